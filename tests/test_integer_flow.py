"""Integer flows: bijections of the grid by enumeration, mass one, codes of the length that is claimed."""

import math

import pytest
import torch
from torch import Tensor, nn

from likely.bijections.integer import ModularCoupling
from likely.coding import Stack
from likely.errors import UsageError
from likely.families.integer_flow import IntegerFlow
from likely.space import Space, Support

SPACES = {
    "grid": Space.grid(1, 2, 2, 4),
    "channels": Space.grid(2, 1, 2, 3),
    "table": Space.columns(Support("nominal", 3), Support("ordinal", 4, missing=True), Support("ordinal", 2), Support("nominal", 5)),
    "one entry": Space.columns(Support("ordinal", 7)),
}


def _flow(space: Space, given: Space | None = None, **options) -> IntegerFlow:
    """Random weights, large enough that every coupling shifts."""
    torch.manual_seed(0)
    flow = IntegerFlow(space, given=given, size="tiny", layers=2, **options).eval()
    for p in flow.parameters():
        nn.init.normal_(p, std=0.4)
    for stage in flow._stages():
        for part in stage.couplings:
            nn.init.normal_(part.net.body.last.weight, std=5.0)
    return flow


class _Line(ModularCoupling):
    """A planted mistake: the shift does not go round, so levels leave the grid."""

    def _moved(self, x: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
        return x.index_copy(1, self.moved, x[:, self.moved] + by), x.new_zeros(len(x), dtype=torch.float64)


@pytest.mark.parametrize("name", SPACES)
def test_couplings_permute_the_grid_and_go_back(name):
    flow, states = _flow(SPACES[name]), SPACES[name].enumerate()
    codes = z = flow._codes(states)
    for stage in flow._stages():
        z = stage.couplings(z)[0]
    assert bool((z != codes).any()) or name == "one entry"
    assert len(z.unique(dim=0)) == len(states)
    assert bool(((z >= 0) & (z < flow.levels)).all())
    for stage in reversed(flow._stages()):
        z = stage.couplings.inverse(z)[0]
    assert torch.equal(flow._values(z), states)


@pytest.mark.parametrize("name", SPACES)
def test_masses_sum_to_one_whatever_the_weights(name):
    flow, states = _flow(SPACES[name]), SPACES[name].enumerate()
    with torch.no_grad():
        log_prob = flow.log_prob(states)
    assert log_prob.kind == "exact"
    assert log_prob.nats.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_shifts_on_the_line_would_lose_mass():
    flow, states = _flow(SPACES["grid"]), SPACES["grid"].enumerate()
    for stage in flow._stages():
        for part in stage.couplings:
            part.__class__ = _Line
    with torch.no_grad():
        images = flow._codes(states)
        for stage in flow._stages():
            images = stage.couplings(images)[0]
    assert bool(((images < 0) | (images >= 4)).any())


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("name", SPACES)
def test_codes_return_and_are_as_long_as_the_likelihood_says(name, conditional, monkeypatch):
    monkeypatch.setattr("likely.families.integer_flow._TABLE", 50)  # several chunks
    flow = _flow(SPACES[name], Space.label(3) if conditional else None)
    given = torch.arange(60)[:, None] % 3 if conditional else None
    x = flow.sample(60, given)
    stack = Stack()
    flow.codec(given).push(stack, x)
    with torch.no_grad():
        bits = -flow.log_prob(x, given).nats.sum().item() / math.log(2)
    assert stack.claim == pytest.approx(bits, rel=1e-3, abs=0.5)
    assert len(stack) <= 1.001 * stack.claim + 128
    assert torch.equal(flow.codec(given).pop(stack, 60), x)
    assert len(stack) == len(Stack())


def test_rounding_lets_gradients_through():
    flow = _flow(SPACES["grid"]).train()
    flow(SPACES["grid"].enumerate()).mean().backward()
    shifts = [p for stage in flow._stages() for part in stage.couplings for p in part.parameters()]
    assert shifts
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in shifts)


def test_large_images_have_convolutional_nets():
    flow = IntegerFlow(Space.grid(2, 12, 12, 256), size="tiny", layers=1).eval()
    x = flow.sample(2)
    assert flow.log_prob(x).nats.shape == (2,)
    assert torch.equal(flow.codec().decompress(flow.codec().compress(x), 2), x)


def test_reals_are_refused():
    with pytest.raises(UsageError, match="finitely many levels"):
        IntegerFlow(Space.reals(2))
