"""Dynamic evaluation: exact, of a copy that learns from what is behind it alone."""

import itertools
import math

import pytest
import torch

from likely import Space, dynamic
from likely.errors import UsageError
from likely.evaluation.stretch import stretch_bits
from likely.families.autoregressive import Autoregressive
from likely.families.mixture import Mixture
from likely.sources import load

NETS = ["dilated", "transformer", "rnn"]


def model(net="dilated", window=8, levels=3, **options):
    torch.manual_seed(0)
    made = Autoregressive(Space.sequence(window, levels), net=net, size="tiny", **options).eval()
    for p in made.parameters():  # no map is left at nought
        torch.nn.init.normal_(p, std=0.3)
    return made


def bits(made, stretch, prefix):
    return -made.log_prob_after(stretch, prefix).mean().item() / math.log(2)


@pytest.mark.parametrize("net", NETS)
def test_masses_of_all_stretches_sum_to_one(net):
    made, prefix = model(net, window=4, levels=2), torch.randint(2, (9,))
    stretches = torch.tensor(list(itertools.product(range(2), repeat=6)))  # three parts: it learns twice in between
    total = torch.stack([made.log_prob_after(s, prefix).sum() for s in stretches]).logsumexp(0)
    assert total.item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("net", NETS)
def test_only_what_is_behind_is_learnt(net):
    made, prefix, stretch = model(net), torch.randint(3, (20,)), torch.randint(3, (40,))
    before = {k: v.clone() for k, v in made.state_dict().items()}
    other = torch.cat([stretch[:24], (stretch[24:] + 1) % 3])
    first = made.log_prob_after(stretch, prefix)
    assert torch.equal(first[:24], made.log_prob_after(other, prefix)[:24])
    assert all(torch.equal(v, before[k]) for k, v in made.state_dict().items())
    assert all(p.grad is None for p in made.parameters())
    with torch.no_grad():
        assert torch.equal(first, made.log_prob_after(stretch, prefix))


def test_it_learns():
    stretch, prefix = torch.tensor([0, 1, 2, 2, 1]).repeat(200), torch.randint(3, (50,))
    adapting, static = model("transformer"), model("transformer", adapt=False)
    assert adapting.adapts
    assert not static.adapts
    assert bits(adapting, stretch, prefix) < bits(static, stretch, prefix) - 0.1
    first = slice(0, 4)  # of which nothing is learnt yet
    assert torch.allclose(adapting.log_prob_after(stretch[first], prefix), static.log_prob_after(stretch[first], prefix), atol=1e-6)


def test_tables_of_logits_are_those_of_the_likelihood():
    made, stretch, prefix = model(), torch.randint(3, (30,)), torch.randint(3, (20,))
    log_p = torch.cat(list(made.logits_after(stretch, prefix))).log_softmax(-1)
    assert torch.allclose(log_p.gather(1, stretch[:, None])[:, 0], made.log_prob_after(stretch, prefix), atol=1e-6)


def test_the_row_says_so(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"to be or not to be, that is the question. " * 40)
    data = load(path, window=16)
    made = Autoregressive(data.space, size="tiny").eval()
    assert stretch_bits(made, data)[0].how == "one sequence, primed, adapting to it as it goes"


@pytest.mark.parametrize("net", NETS)
def test_without_a_text_before_it(net):
    made, stretch = model(net), torch.randint(3, (30,))
    assert made.log_prob_after(stretch, stretch[:0]).isfinite().all()
    assert len(made.log_prob_after(stretch[:0], stretch)) == 0


def test_many_windows_a_step_are_exact_too(monkeypatch):
    monkeypatch.setattr(dynamic, "_STEPS", 1)
    test_masses_of_all_stretches_sum_to_one("transformer")
    test_only_what_is_behind_is_learnt("dilated")


def test_from_the_end_and_in_a_mixture():
    turned, prefix = model("transformer", window=4, levels=2, order="reverse"), torch.randint(2, (9,))
    stretches = torch.tensor(list(itertools.product(range(2), repeat=5)))
    total = torch.stack([turned.log_prob_after(s, prefix).sum() for s in stretches]).logsumexp(0)
    assert total.item() == pytest.approx(0.0, abs=1e-5)
    mixed = Mixture(turned.space, members=[model("transformer", window=4, levels=2), model("dilated", window=4, levels=2)])
    total = torch.stack([mixed.log_prob_after(s, prefix).sum() for s in stretches]).logsumexp(0)
    assert total.item() == pytest.approx(0.0, abs=1e-5)


def test_inference_mode_has_no_gradients_and_says_so():
    with torch.inference_mode(), pytest.raises(UsageError, match="inference mode"):
        model().log_prob_after(torch.randint(3, (9,)), torch.randint(3, (9,)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recurrent_nets_learn_on_an_accelerator():
    made = model("rnn").cuda()
    assert made.log_prob_after(torch.randint(3, (30,)).cuda(), torch.randint(3, (20,)).cuda()).isfinite().all()
