"""Fills of invertible maps are of p(unknown | known): against quadrature, against enumeration, and what is known stays."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import likely
from likely.abilities import Filled
from likely.checks import tiny_data
from likely.completion import Numbers, Reference, Region
from likely.enumeration import index_of
from likely.errors import UsageError
from likely.noise import seeded
from likely.solve.tempering import temper_particles
from likely.space import Space, Support


def test_particles_find_two_narrow_modes_in_their_shares():
    """0.3 N(-1.5, 0.1^2) + 0.7 N(1.5, 0.4^2), written as a tilt of the standard normal."""
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.tensor([0.3, 0.7]).double()),
        torch.distributions.Normal(torch.tensor([-1.5, 1.5]).double(), torch.tensor([0.1, 0.4]).double()),
    )
    normal = torch.distributions.Normal(0.0, 1.0)
    done = temper_particles(lambda v: normal.log_prob(v[:, 0]) - mixture.log_prob(v[:, 0]), 50, 128, 1, torch.zeros(1))
    weight, v = done.log_weight.exp(), done.v[..., 0]
    share = (weight * (v < 0)).sum(1)
    assert share.mean().item() == pytest.approx(0.3, abs=0.02 + 4 * share.std().item() / math.sqrt(50))
    right = v > 0
    mean = (weight * right * v).sum() / (weight * right).sum()
    assert mean.item() == pytest.approx(1.5, abs=0.05)
    assert (done.effective > 4).all()
    assert 0.4 < done.acceptance < 0.95


def _on_a_ring(**options) -> Any:
    """A flow trained on a ring, whose conditionals have two modes."""
    angle = 2 * math.pi * torch.rand(800)
    x = torch.stack([angle.cos(), angle.sin()], 1) + 0.15 * torch.randn(800, 2)
    with seeded(0):
        flow = likely.build("flow", Space.reals(2).standardised(x), size="tiny", layers=4, **options)
        flow.start(x)
        optimiser = torch.optim.Adam(flow.parameters(), 1e-2)
        for _ in range(80):
            optimiser.zero_grad()
            flow(x).mean().backward()
            optimiser.step()
    return flow.eval()


@pytest.fixture(scope="module")
def bent():
    return _on_a_ring()


def _gap(flow, which: int) -> tuple[float, Filled]:
    """Kolmogorov-Smirnov distance of 200 fills to the distribution function p(x_j <= t | x_i), integrated on a fine grid; the fills."""
    at, other = 0.2, 1 - which
    line = torch.linspace(-4, 4, 2001)
    grid = torch.full((2001, 2), at)
    grid[:, other] = line
    with torch.no_grad():
        density = flow.log_prob(grid).nats.exp()
    cdf = density.cumsum(0) / density.sum()
    known = torch.zeros(1, 2, dtype=torch.bool)
    known[:, which] = True
    filled = flow.fill(torch.tensor([[at, at]]), known, draws=200)
    assert (filled.x[:, 0, which] == at).all()
    drawn = filled.x[:, 0, other].sort().values
    place = torch.searchsorted(line, drawn).clamp_max(2000)
    return (cdf[place] - (torch.arange(200) + 0.5) / 200).abs().max().item(), filled


_LARGEST_GAP = 1.95 / math.sqrt(200)  # 0.1 % of such distances are larger


@pytest.mark.parametrize("which", [0, 1])
def test_fills_of_reals_follow_the_conditional_density_by_quadrature(bent, which):
    gap, filled = _gap(bent, which)
    assert gap < _LARGEST_GAP
    assert not filled.exact
    assert "accepted" in filled.how
    assert (filled.effective > 2).all()


@pytest.mark.parametrize("structure", ["autoregressive", pytest.param("inverse", marks=pytest.mark.slow)])
def test_a_flow_fills_by_its_own_order_where_that_begins_with_what_is_known(structure):
    """And by tempering where it does not; both are of the same conditional density."""
    flow = _on_a_ring(structure=structure, mixing="none")
    gap, filled = _gap(flow, 0)
    assert gap < _LARGEST_GAP
    assert filled.exact
    assert filled.how == "the map's own order"
    gap, filled = _gap(flow, 1)
    assert gap < _LARGEST_GAP
    assert not filled.exact


def test_rows_of_all_kinds_of_gaps_are_filled_together():
    flow = _on_a_ring(structure="autoregressive", mixing="none")
    x = torch.tensor([[0.2, 9.0], [9.0, 0.2], [9.0, 9.0], [0.3, 0.4]])
    known = torch.tensor([[True, False], [False, True], [False, False], [True, True]])
    filled = flow.fill(x, known, draws=3)
    assert filled.effective.isinf().all(0).tolist() == [True, False, True, True]
    assert torch.equal(filled.x[:, known], x[known].expand(3, -1))
    assert (filled.x[:, ~known] != 9.0).all()
    assert not filled.exact


def test_known_cells_are_placed_as_the_density_says():
    """By its own order a flow of integers fills by the masses of the model itself."""
    data = tiny_data()["grid"]
    model: Any = likely.fit(data, "maf", size="tiny", mixing="none", steps=30, progress=False).model.eval()
    known = torch.tensor([True, True, False, False]).view(1, *data.space.shape)
    filled = model.fill(data.test.x[:1], known)
    assert "own order" in filled.how
    assert (filled.effective > 4).all()
    assert _distance(model, data, data.test.x[:1], known, 200) < 0.12


def _distance(model, data, x: Tensor, known: Tensor, draws: int) -> float:
    """Total variation between fills and p(states | known) of the model itself, which is tightened by many draws."""
    states = data.space.enumerate()
    fits = ((states == x) | ~known).flatten(1).all(1)
    if data.space.layout == "columns":
        fits &= ((states >= 0) | known).all(1)
    states = states[fits]
    with torch.no_grad():
        p = model.log_prob(states, draws=400).nats.softmax(0)
    filled = model.fill(x, known, draws=draws)
    count = torch.bincount(index_of(filled.x[:, 0], states), minlength=len(states)).double()
    return (count / draws - p).abs().sum().item() / 2


@pytest.mark.parametrize(("name", "gaps"), [("grid", [0, 3]), ("columns", [0, 2]), ("columns", [1])])
def test_fills_of_discrete_data_follow_the_models_masses(name, gaps):
    data = tiny_data()[name]
    model = likely.fit(data, "flow", size="tiny", steps=30, progress=False).model.eval()
    known = torch.ones(data.space.dims, dtype=torch.bool).index_fill(0, torch.tensor(gaps), False).view(1, *data.space.shape)
    assert _distance(model, data, data.test.x[:1], known, 200) < 0.12


def test_what_is_known_stays_and_what_was_there_is_not_looked_at():
    space = Space.columns(
        Support("decimal", missing=True, scale=3.0),
        Support("nominal", 3, missing=True),
        Support("nominal", 20, missing=True),
        Support("ordinal", 5, missing=True, center=2.5, scale=1.4),
    )
    x = torch.tensor([[-1, 2, -1, 3], [7, -1, 4, -1], [-5, 0, 18, 0], [2, 1, 1, 1]])
    known = torch.tensor([[1, 1, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [1, 1, 1, 1]]).bool()
    flow = likely.build("flow", space, size="tiny").eval()
    for p in flow.parameters():
        torch.nn.init.normal_(p, std=0.1)
    with seeded(0):
        filled = flow.fill(x, known, draws=3)
    with seeded(0):
        again = flow.fill(torch.where(known, x, 1), known, draws=3)
    assert torch.equal(filled.x, again.x)
    assert torch.equal(filled.x[:, known], x[known].expand(3, -1))
    assert (filled.x[:, ~known] >= 0).logical_or(filled.x[:, ~known] < -1).all()  # never "missing"
    space.check(filled.x.flatten(0, 1))
    assert filled.effective[:, 3].isinf().all()
    assert filled.effective[:, :3].isfinite().all()
    with pytest.raises(UsageError, match="none can be preferred"):
        flow.fill(x, known, particles=1)


def test_the_region_is_the_image_of_a_normal_with_the_density_it_claims():
    """E_q[ N(u) / q(u) ] over v ~ N(0, I) is the normal's mass of the region, known in closed form."""
    space = Space.columns(Support("nominal", 3, missing=True), Support("nominal", 4), Support("ordinal", 4, center=2.0, scale=1.0))
    n = 20000
    x = torch.tensor([[1, 2, 3]]).expand(n, -1)
    for known, mass in (([1, 0, 1], 0.25 * 0.1573), ([0, 1, 1], 0.75 * 0.25 * 0.1573)):
        mask = torch.tensor(known).bool().expand(n, -1)
        numbers = Numbers(space, torch.device("cpu"))
        free = torch.zeros(1, dtype=torch.bool)
        region = Region(space, x, mask, Reference(torch.zeros(1).double(), torch.eye(1).double()), numbers, free)
        u, nats = region.lift(torch.randn(n, space.relaxed.dims, dtype=torch.float64))
        back = space.snap(u.float())
        assert torch.equal(back[mask], x[mask])
        # the cell is uniform: its density 1 / width is left out of nats, as a constant
        weight = (torch.distributions.Normal(0.0, 1.0).log_prob(u).sum(1) + nats).exp()
        inside = 0.5 * (math.erf(2 / math.sqrt(2)) - math.erf(1 / math.sqrt(2)))
        want = mass / 0.1573 * inside
        assert weight.mean().item() == pytest.approx(want, abs=5 * weight.std().item() / math.sqrt(n))


def test_a_free_numbers_normal_has_the_density_it_claims_too():
    """A standard normal target integrates to one over the reference of two correlated numbers."""
    space, n = Space.reals(3), 20000
    numbers = Numbers(space, torch.device("cpu"))
    own = torch.randn(500, 3) @ torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.3], [0.0, 0.0, 1.0]])
    reference, free = Reference.of(own, numbers), torch.tensor([True, False, True])
    x = torch.tensor([[0.0, 0.4, 0.0]]).expand(n, -1)
    region = Region(space, x, ~free.expand(n, -1), reference, numbers, free)
    u, nats = region.lift(torch.randn(n, 3, dtype=torch.float64))
    assert (u[:, 1] - 0.4).abs().max() < 1e-6
    log_scale = region.deviation.diagonal().log().sum() + math.log(2 * math.pi)  # the constant that nats leave out
    weight = (torch.distributions.Normal(0.0, 1.0).log_prob(u[:, free]).sum(1) + nats + log_scale).exp()
    assert weight.mean().item() == pytest.approx(1, abs=5 * weight.std().item() / math.sqrt(n))
