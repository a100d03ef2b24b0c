"""Learnt dequantization: it starts as the uniform one, its density is right, its bound holds and tightens, whatever the weights."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import likely
from likely.errors import UsageError
from likely.families.flow import Flow
from likely.noise import Noise
from likely.space import Space, Support

TABLE = Space.columns(
    Support("ordinal", 4),
    Support("nominal", 3, missing=True),
    Support("decimal", missing=True, center=0.5, scale=2.0),
    Support("ordinal", 3, missing=True, center=1.0, scale=1.5),
    Support("nominal", 20),
)
SPACES = {
    "grid": Space.grid(2, 3, 2, 5),
    "one number": Space.columns(Support("ordinal", 6)),
    "table": TABLE,
    "image": Space.grid(1, 18, 20, 8),
    "colour image": Space.grid(3, 10, 10, 256),
}


def _examples(space: Space, n: int) -> Tensor:
    columns = [torch.randint(-1 if s.missing else 0, s.levels or 9, (n, *space.shape[1:])) for s in space.supports]
    return torch.stack(columns, 1)


def _variational(space: Space, **options) -> Flow:
    return Flow(space, size="tiny", dequantization="variational", **options).eval()


def _disturbed(flow: Flow, std: float = 0.3) -> Flow:
    """With other weights than those that a start or training gives."""
    assert flow.dequantizer is not None
    for p in flow.dequantizer.parameters():
        torch.nn.init.normal_(p, std=std)
    return flow


def _fixed_noise(x: Tensor, e: Tensor) -> Noise:
    noise = Noise(x)
    noise.normal = lambda *shape: e.reshape(-1, *shape)  # type: ignore[method-assign]
    return noise


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("conditional", [False, True])
def test_it_starts_as_uniform_dequantization_and_reaches_every_parameter(name, conditional):
    space, label = SPACES[name], Space.label(3) if conditional else None
    x, given = _examples(space, 6), torch.randint(3, (6, 1)) if conditional else None
    uniform = Flow(space, size="tiny", given=label).eval()
    learnt = _variational(space, given=label)
    uniform.start(x, given)
    learnt.load_state_dict(uniform.state_dict(), strict=False)
    if not space.flags:  # where cells are missing, fillers take other random numbers
        ours, theirs = (flow.log_prob(x, given, draws=3) for flow in (learnt, uniform))
        torch.testing.assert_close(ours.nats, theirs.nats, atol=2e-3, rtol=1e-6)
    _disturbed(learnt, 0.05)(x, given).mean().backward()
    assert learnt.dequantizer is not None
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learnt.dequantizer.parameters())
    assert all(p.grad.abs().sum() > 0 for n, p in learnt.dequantizer.named_parameters() if n.endswith("weight") and p.grad is not None)
    back = learnt.decode(learnt.encode(x, given, draws=2).value[:6], given)
    assert (back == x).double().mean() > 0.999


def test_its_log_density_is_that_of_the_jacobian():
    flow = _disturbed(_variational(Space.grid(1, 2, 2, 3))).double()
    torch.set_default_dtype(torch.float64)
    try:
        lifting = flow.dequantizer
        assert lifting is not None
        x, e = torch.tensor([[[[0, 2], [1, 1]]]]), torch.randn(4)
        within = lifting(x, None, _fixed_noise(x, e))
        jacobian = torch.autograd.functional.jacobian(lambda v: lifting(x, None, _fixed_noise(x, v)).share.flatten(), e)
    finally:
        torch.set_default_dtype(torch.float32)
    log_normal = -(0.5 * e.square() + 0.5 * math.log(2 * math.pi)).sum()
    assert within.share.sub(torch.special.ndtr(e).view_as(within.share)).abs().max() > 0.01  # it is no longer uniform
    torch.testing.assert_close(within.nats[0], torch.linalg.slogdet(jacobian).logabsdet - log_normal, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["one number", "table"])
def test_it_covers_the_whole_of_every_cell(name):
    space = SPACES[name]
    flow = _disturbed(_variational(space), 0.15)
    assert flow.dequantizer is not None
    x = _examples(space, 1)
    with torch.no_grad():
        within = flow.dequantizer(x, None, Noise(x, 20_000, seed=1))
    inverse = within.nats.exp()  # of q(w): its mean is the volume that q reaches
    assert inverse.std() > 0.05
    assert abs(inverse.mean() - 1) < 4 * inverse.std() / math.sqrt(len(inverse))


def test_masses_are_the_flows_own_and_one_draw_is_below_them():
    space = Space.columns(Support("ordinal", 3), Support("ordinal", 2, missing=True, center=1.0))
    x, states = _examples(space, 400), space.enumerate()
    uniform = Flow(space, size="tiny")
    uniform.start(x)
    for p in uniform.map.parameters():
        p.data.add_(0.05 * torch.randn_like(p))
    learnt = _disturbed(_variational(space), 0.15)
    learnt.load_state_dict(uniform.state_dict(), strict=False)
    with torch.no_grad():
        ours, theirs = (flow.eval().log_prob(states, draws=4000).nats.exp() for flow in (learnt, uniform))
        one = torch.stack([learnt.log_prob(states, seed=s).nats for s in range(100)])
    assert 0.5 < theirs.sum() < 1.01
    torch.testing.assert_close(ours, theirs, atol=0.004, rtol=0.1)  # whatever q, the mean over draws is the same mass
    assert (one.mean(0) < theirs.log() + 3 * one.std(0) / 10 + 0.1).all()
    assert one.mean(0).exp().sum() < 0.9 * theirs.sum()


def _corners(n: int) -> Tensor:
    """Images of 2 x 2 and 4 levels, whose rows are alike."""
    top = torch.randint(4, (n, 1, 1, 2))
    return torch.cat([top, (top + torch.randint(2, top.shape)).clamp_max(3)], 2)


@pytest.mark.slow
def test_learning_where_to_lift_to_tightens_the_bound_of_a_fixed_map_and_of_few_draws():
    torch.manual_seed(0)
    x = _corners(512)
    flow = Flow(Space.grid(1, 2, 2, 4), size="tiny", marginals="none", dequantization="variational")
    assert flow.dequantizer is not None
    flow.start(x)
    for module, steps in ((flow.map, 60), (flow.dequantizer, 60)):
        optimiser = torch.optim.Adam(module.parameters(), 1e-2)
        before = _bounds(flow, x)
        for _ in range(steps):
            optimiser.zero_grad()
            flow(x).mean().backward()
            optimiser.step()
    after = _bounds(flow, x)
    assert after[0] > before[0] + 0.1  # in nats
    assert after[0] - before[0] > after[-1] - before[-1]
    assert all(less < more for less, more in pairwise(after))  # K = 1, 4, 64


def _bounds(flow: Flow, x: Tensor) -> list[float]:
    """Mean log p in nats by 1, 4 and 64 draws; rows that are alike have the same noise, so that each counts by its number."""
    rows, counts = x.unique(dim=0, return_counts=True)
    with torch.no_grad():
        nats = [torch.stack([flow.log_prob(rows, draws=k, seed=s).nats for s in range(40)]).mean(0) for k in (1, 4, 64)]
    return [(counts * each).sum().item() / len(x) for each in nats]


def test_a_number_says_what_it_rests_on_and_its_noise_is_a_function_of_seed_and_row():
    flow, x = _disturbed(_variational(SPACES["grid"])), _examples(SPACES["grid"], 8)
    told = flow.log_prob(x, draws=4)
    assert (told.kind, told.how) == ("lower bound", "variational dequantization, K=4")
    torch.testing.assert_close(flow.log_prob(x.flip(0)[:3], draws=4).nats, told.nats.flip(0)[:3], atol=1e-4, rtol=0)
    assert torch.equal(flow.log_prob(x, draws=4).nats, told.nats)
    assert (flow.log_prob(x, draws=4, seed=1).nats - told.nats).abs().max() > 1e-3


def test_filling_keeps_what_is_known():
    flow, x = _disturbed(_variational(TABLE)), _examples(TABLE, 3)
    known = torch.rand(3, 5) < 0.5
    filled = likely.fill(flow, x, known, draws=2, particles=4)
    assert (filled.x == x)[:, known].all()


@pytest.mark.parametrize("space", [Space.reals(2), Space.columns(Support("nominal", 3))], ids=["reals", "categories"])
def test_where_no_number_is_dequantized_it_is_refused(space):
    with pytest.raises(UsageError, match="lies on a grid"):
        Flow(space, size="tiny", dequantization="variational")
