"""The mixture against its formula and brute-force fits; how it is named, trained, resumed and stored."""

import math
from dataclasses import replace

import pytest
import torch

import likely
from likely import families, store
from likely.coding import Stack
from likely.dataset import Data, Split
from likely.errors import UsageError
from likely.evaluation.stretch import stretch_bits
from likely.families import build, mixture
from likely.space import Space

TEXT, STRINGS = Space.sequence(8, 5), Space.sequence(3, 4, variable=True)
TINY = {"size": "tiny", "progress": False}


def text(seed=0):
    """A noisy cycle of five symbols, split in three."""
    torch.manual_seed(seed)
    stream = torch.where(torch.rand(2600) < 0.8, torch.arange(2600) % 5, torch.randint(0, 5, (2600,)))
    parts = stream.split([1800, 300, 500])
    return Data(TEXT, *(Split(part.unfold(0, 8, 1), stream=part) for part in parts), name="cycle")


def both(space, **options):
    """A mixture whose members are set by hand: counts of random strings, a net of random weights, uneven trusts."""
    model = build("mixture(ngram, autoregressive)", space, size="tiny", **options).eval()
    x = space.enumerate()[::3] if space.dims < 4 else torch.randint(0, 5, (60, space.dims))
    model.members[0].solve([(x, None)], [(x[:9], None)])
    model.trust = 0.2 + 0.4 * torch.rand(model.trust.shape, dtype=torch.float64)
    return model


def tables(n=200, members=2, symbols=5):
    return (2 * torch.randn(n, members, symbols, dtype=torch.float64)).log_softmax(-1), torch.randint(0, symbols, (n,))


def test_the_weighted_product_is_its_formula():
    log_p, _ = tables(1)
    trust = torch.rand(2, 2, mixture._SURE, dtype=torch.float64)
    steps = [min(mixture._SURE - 1, int(-math.log2(1 - log_p[0, j].exp().max().item()))) for j in range(2)]
    weights = [sum(trust[k, j, steps[j]].item() for j in range(2)) for k in range(2)]
    p = (weights[0] * log_p[0, 0] + weights[1] * log_p[0, 1]).exp()
    assert torch.allclose(mixture._mixed(log_p, trust)[0].exp(), p / p.sum())


def test_the_slope_is_the_gradient():
    log_p, target = tables()
    trust = torch.full((2, 2, mixture._SURE), 0.3, dtype=torch.float64).requires_grad_(True)
    mixed = mixture._mixed(log_p, trust)
    mixed.gather(1, target[:, None]).sum().backward()
    assert torch.allclose(mixture._slope(log_p, mixed.detach(), target, trust.detach()), trust.grad)


def test_fitted_trusts_are_a_maximum():
    log_p, target = tables(500)
    start = torch.full((2, 2, mixture._SURE), 0.25, dtype=torch.float64)
    fitted = mixture._fitted(log_p, target, start)

    def nats(trust):
        return (mixture._mixed(log_p, trust).gather(1, target[:, None]).sum() - mixture._PRIOR * (trust - 0.25).square().sum()).item()

    assert nats(fitted) > nats(start)
    for _ in range(20):
        assert nats(fitted) >= nats(fitted + 0.05 * torch.randn_like(fitted)) - 1e-3


def test_a_certain_member_leaves_numbers_finite():
    log_p = torch.tensor([[[0.0, -800.0], [-0.5, -0.9]]], dtype=torch.float64).log_softmax(-1)
    assert mixture._mixed(log_p, torch.full((2, 2, mixture._SURE), 0.25, dtype=torch.float64)).isfinite().all()


@pytest.mark.parametrize("space", [Space.sequence(3, 4), STRINGS], ids=str)
def test_masses_sum_to_one_and_steps_equal_rows(space):
    model = both(space).double()
    x = space.enumerate()
    assert model.log_prob(x).nats.exp().sum().item() == pytest.approx(1, abs=1e-12)
    x = x[::5]
    rows, state, last = model.logits(x), model.init_state(len(x)), None
    for i in range(space.dims):
        state, logits = model.step(state, last)
        before = (x[:, :i] >= 0).all(1)
        assert torch.allclose(logits[before], rows[before, i], atol=1e-10)
        last = space.ended(x)[:, i]


def test_codes_return():
    model, stack = both(STRINGS), Stack()
    x = STRINGS.enumerate()[::4]
    model.codec().push(stack, x)
    assert stack.claim == pytest.approx(-model.log_prob(x).nats.sum().item() / math.log(2), rel=1e-3)
    assert torch.equal(model.codec().pop(stack, len(x)), x)


@pytest.mark.parametrize("adapt", [True, False])
def test_a_stretch_equals_its_tables(adapt):
    model = both(TEXT, adapt=adapt)
    stretch, prefix = torch.randint(0, 5, (50,)), torch.randint(0, 5, (30,))
    nats, logits = model.log_prob_after(stretch, prefix), torch.cat(list(model.logits_after(stretch, prefix)))
    assert torch.allclose(logits.logsumexp(1), torch.zeros(50, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(logits.gather(1, stretch[:, None])[:, 0], nats)


def test_trusts_learn_from_what_is_behind_only():
    model = both(TEXT)
    stretch, prefix = torch.randint(0, 5, (80,)), torch.randint(0, 5, (30,))
    other = torch.cat([stretch[:60], (stretch[60:] + 1) % 5])
    assert torch.equal(model.log_prob_after(stretch, prefix)[:60], model.log_prob_after(other, prefix)[:60])
    assert not torch.equal(model.log_prob_after(stretch, prefix), still(model).log_prob_after(stretch, prefix))


def still(model):
    """The same model with trusts that stay."""
    twin = build("mixture(ngram, autoregressive)", TEXT, size="tiny", adapt=False).eval()
    store.load_state(twin, model.state_dict())
    return twin


def test_the_mixture_is_better_than_its_members():
    data = text()
    model = likely.fit(data, "mixture(ngram, autoregressive)", steps=60, **TINY).model
    values = [stretch_bits(m, data)[0].value for m in (model, *model.members)]
    assert values[0] < min(values[1:]) + 0.005
    assert stretch_bits(model, data)[0].how == "one sequence, primed, adapting to it as it goes"


def test_members_share_steps_and_what_is_left_of_the_time():
    run = likely.fit(text(), "mixture(ngram, autoregressive, autoregressive)", steps=20, **TINY)
    assert run.steps == 20
    run = likely.fit(text(), "mixture(ngram, autoregressive)", minutes=0.02, **TINY)
    assert run.stopped == "budget"
    assert run.seconds >= 0.5


def test_a_killed_run_goes_on(tmp_path):
    data, how = text(), {"steps": 30, "seed": 3, **TINY}
    whole = likely.fit(data, "mixture(ngram, autoregressive)", out=tmp_path / "whole", **how)

    class Killed(Exception):
        pass

    def kill(record):
        raise Killed

    with pytest.raises(Killed):
        likely.fit(data, "mixture(ngram, autoregressive)", out=tmp_path / "killed", **{**how, "progress": kill})
    assert (tmp_path / "killed/members/0/manifest.json").exists()
    again = likely.fit(data, "mixture(ngram, autoregressive)", out=tmp_path / "killed", **how)
    for mine, theirs in zip(whole.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    assert not list((tmp_path / "killed/members").iterdir())


def test_it_is_stored_and_reopened_by_its_name(tmp_path):
    data = text()
    run = likely.fit(data, "mixture(autoregressive, ngram)", steps=5, out=tmp_path / "model", **TINY)
    twin = likely.open(tmp_path / "model")
    assert [type(m).__name__ for m in twin.members] == ["Autoregressive", "NGram"]
    assert torch.equal(twin.log_prob(data.test.x[:4]).nats, run.model.log_prob(data.test.x[:4]).nats)


def test_names_with_members():
    assert families.split_names("gmm, mixture(ngram, autoregressive),flow") == ["gmm", "mixture(ngram, autoregressive)", "flow"]
    assert families.parsed("mixture( ngram,autoregressive )") == ("mixture", ["ngram", "autoregressive"], {})
    assert families.parsed("mixture") == ("mixture", ["ngram", "autoregressive"], {})
    assert families.parsed("flow") == ("flow", [], {})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mixture(ngram, histogram)", "Histogram cannot be mixed per step"),
        ("flow(ngram)", "Model 'flow' is not made of others"),
        ("mixture(ngram, ngrm)", "Did you mean 'ngram'"),
        ("mixtur(ngram)", "Did you mean 'mixture'"),
    ],
)
def test_names_that_cannot_be(name, message):
    with pytest.raises(UsageError, match=message):
        build(name, TEXT)


def test_given_reaches_every_member():
    space = Space.sequence(3, 3)
    x, y = torch.randint(0, 3, (300, 3)), torch.randint(0, 2, (300, 1))
    x = torch.where(y == 1, x, (x[:, :1] + torch.arange(3)) % 3)
    data = Data(space, Split(x[:200], y[:200]), Split(x[200:250], y[200:250]), Split(x[250:], y[250:]), given=Space.label(2))
    model = likely.fit(replace(data, name="labelled"), "mixture", steps=20, **TINY).model
    states = space.enumerate()
    for label in range(2):
        assert model.log_prob(states, torch.tensor([[label]])).nats.exp().sum().item() == pytest.approx(1, abs=1e-6)
    right, wrong = (model.log_prob(x[250:], labels).nats.mean() for labels in (y[250:], 1 - y[250:]))
    assert right > wrong + 0.3
