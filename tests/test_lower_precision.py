"""Draws of a net in bf16: a distribution of its own, near the model's, which the log-probabilities that come with them are of."""

from typing import Any

import pytest
import torch

import likely
from likely.errors import UsageError
from likely.families.autoregressive import Autoregressive
from likely.model import in_precision
from likely.nets import NETS
from likely.space import Space, Support
from test_stepwise import model, tail

SPACES = {
    "grid": Space.grid(1, 6, 6, 3),
    "columns": Space.columns(Support("nominal", 3, missing=True), Support("ordinal", 4), Support("real"), Support("decimal", decimals=1)),
    "sequence": Space.sequence(12, 5),
}
CASES = [(layout, word, {}) for layout in SPACES for word in NETS["causal", layout]]
ATTENTION = [{"attention": "linear"}, {"attention": "local"}, {"positions": "alibi"}, {"positions": "learned"}, {"ffn": "swiglu"}]
CASES += [("sequence", "transformer", options) for options in ATTENTION]


def mild(space: Space, net: str, **options) -> Autoregressive:
    made = Autoregressive(space, size="tiny", net=net, **options).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made


@pytest.mark.parametrize(("layout", "net", "options"), CASES, ids=str)
def test_every_net_runs_in_precision_near_itself(layout, net, options):
    """Differences are of 8 bits in every number, so small beside the nats themselves, and there."""
    made = mild(SPACES[layout], net, **options)
    drawn = made.sample(32, precision="bf16", with_log_prob=True)
    exact = made.log_prob(drawn.x).nats
    off = (drawn.log_prob - exact).abs()
    assert 1e-6 < off.max() < 0.02 * exact.abs().mean() + 0.2


def test_draws_follow_the_log_probabilities_that_come_with_them():
    """The masses under the net as it runs sum to one over all strings, and the draws are of these masses."""
    made = model(Space.sequence(3, 3), "transformer")
    torch.manual_seed(0)
    drawn = made.sample(20_000, precision="bf16", with_log_prob=True, top_p=0.95)
    x, which = drawn.x.unique(dim=0, return_inverse=True)
    first = torch.tensor([(which == i).nonzero()[0, 0] for i in range(len(x))])
    p = drawn.filtered_log_prob[first].exp()
    assert p.sum() == pytest.approx(1, abs=1e-3)
    assert tail(drawn.x, x, p) > 1e-3
    unfiltered = made.sample(20_000, precision="bf16", with_log_prob=True)
    assert torch.equal(unfiltered.log_prob, unfiltered.filtered_log_prob)


def test_weights_and_likelihood_are_as_before():
    made = model(Space.sequence(4, 3), "transformer")
    x, before = made.sample(3), {name: t.clone() for name, t in made.state_dict().items()}
    nats = made.log_prob(x).nats
    made.sample(3, precision="bf16")
    next(made.follow(x[:1, :2], precision="bf16"))
    with pytest.raises(UsageError), in_precision(made.net, torch.bfloat16):  # restored whatever happens inside
        made.sample(1, top_k=0)
    assert all(torch.equal(before[name], t) and before[name].dtype == t.dtype for name, t in made.state_dict().items())
    assert torch.equal(made.log_prob(x).nats, nats)


def test_what_has_no_net_or_no_such_precision_is_refused():
    with pytest.raises(UsageError, match="Unknown precision 'bf61'"):
        model(Space.sequence(4, 3)).sample(1, precision="bf61")
    counts: Any = likely.build("ngram", Space.sequence(4, 3))
    with pytest.raises(UsageError, match="no net of its own"):
        counts.sample(1, precision="bf16")
