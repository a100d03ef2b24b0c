"""The energy-based model: its chains, its annealing, its marginals, and that its masses sum to one."""

import math

import pytest
import torch

from likely.errors import UsageError
from likely.families.energy import Energy, Marginals
from likely.solve.ais import anneal, temper
from likely.solve.langevin import adapt, place, walk
from likely.space import Space, Support

PAIR = Space.grid(1, 1, 2, 2)
MIXED = Space.columns(
    Support("ordinal", 3, center=1.5, scale=0.9),
    Support("decimal", center=2.0, scale=1.5, missing=True),
    Support("nominal", 3),
    Support("nominal", 2),
)


def fitted(space, x, given=None, *, label=None, steps=100, lr=5e-3):
    torch.manual_seed(0)
    model = Energy(space, given=label, size="tiny", temperatures=80).train()
    model.start(x, given)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,))
        optimiser.zero_grad()
        model(x[rows], None if given is None else given[rows]).mean().backward()
        optimiser.step()
    return model.eval()


def equal_bits(n=512):
    """Two bits that are always equal, and which the histogram takes to be independent."""
    return torch.randint(2, (n, 1, 1, 1)).expand(n, 1, 1, 2).contiguous()


def masses(model, given=None, draws=1000):
    """Masses of all states, and the standard error of their sum: of dequantization, and of log Z."""
    states = model.space.enumerate()
    given = None if given is None else given.expand(len(states), -1)
    with torch.no_grad():
        few = torch.stack([model.log_prob(states, given, draws=draws // 20, seed=i).nats.exp() for i in range(20)])
        stderr = model.log_prob(states[:1], None if given is None else given[:1]).stderr.item()
    spread = few.sum(1).std().item() / math.sqrt(len(few))
    return few.mean(0), math.hypot(spread, stderr)


def test_chains_leave_a_tilted_normal_as_it_is():
    def double_well(v):
        return 2 * (v.square() - 1).square().sum(1)

    grid = torch.linspace(-4, 4, 4001, dtype=torch.float64)[:, None]
    p = torch.softmax(-0.5 * grid[:, 0].square() - double_well(grid), 0)
    start = grid[torch.multinomial(p, 4000, replacement=True)]
    walkers = place(start, double_well)
    for _ in range(20):
        walkers, moved = walk(walkers, double_well, torch.tensor(0.5), leaps=3)
    assert 0.2 < moved.double().mean() < 0.999  # the test is of use where some are turned down
    for moment in (torch.square, lambda v: v.pow(4), torch.tanh):
        exact, seen = (p * moment(grid[:, 0])).sum(), moment(walkers.v[:, 0])
        assert (seen.mean() - exact).abs() < 4 * seen.std() / math.sqrt(4000)


def test_without_a_tilt_every_leap_is_accepted_and_a_quarter_turn_draws_anew():
    walkers = place(torch.full((4000, 3), 5.0), lambda v: v.sum(1))
    walkers, moved = walk(walkers, lambda v: v.sum(1), torch.tensor(math.pi / 2), beta=0.0)
    assert moved.all()
    assert walkers.v.mean().abs() < 0.05
    assert (walkers.v.std() - 1).abs() < 0.05


def test_a_walker_does_not_leave_for_an_energy_that_is_not_a_number():
    walkers, moved = walk(place(torch.zeros(8, 2), lambda v: v.sum(1)), lambda v: v.sum(1) * math.nan, torch.tensor(0.5))
    assert not moved.any()
    assert walkers.v.eq(0).all()


def test_steps_adapt_to_the_acceptance():
    step = torch.tensor(0.5)
    assert adapt(step, torch.ones(8, dtype=torch.bool), 0.1) > step > adapt(step, torch.zeros(8, dtype=torch.bool), 0.1)


@pytest.mark.parametrize(
    ("energy", "exact"),
    [(lambda v: 1.5 * v.square().sum(1), -2.0 * math.log(4.0)), (lambda v: v.sum(1), 2.0)],
    ids=["narrower normal", "shifted normal"],
)
def test_annealing_finds_the_exact_log_z(energy, exact):
    steps = temper(torch.randn(64, 4), energy, 60)
    annealed = anneal(torch.randn(500, 4), energy, steps)
    assert annealed.stderr < 0.1
    assert abs(annealed.log_z - exact) < 4 * annealed.stderr
    assert annealed.log_weight.mean() < annealed.log_z  # Jensen: the mean of the logs lies below
    assert 1 < annealed.effective <= 500


def test_one_temperature_is_plain_importance_sampling():
    v = torch.randn(100, 2)
    annealed = anneal(v, lambda u: u.sum(1), [torch.tensor(0.5)])
    assert torch.allclose(annealed.log_weight, -v.sum(1).double())


def test_marginals_sum_to_one_over_the_states():
    base = Marginals(PAIR, bins=16)
    torch.nn.init.normal_(base.weight, std=0.2)
    relaxed = PAIR.relax(PAIR.enumerate())
    assert (base.log_prob(relaxed.value) + relaxed.nats).exp().sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("space", [PAIR, MIXED, Space.reals(2)], ids=["grid", "mixed", "real"])
def test_the_normal_coordinate_has_the_density_of_the_marginals(space):
    """N(v) = p0(T(v)) |T'(v)|, entry by entry, with T' by autograd."""
    base = Marginals(space, bins=5).double()
    torch.nn.init.normal_(base.weight, std=0.1)
    with_default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        v = torch.randn(200, space.relaxed.dims, requires_grad=True)
        u = base.from_normal(v, base.table())
        (slope,) = torch.autograd.grad(u.sum(), v)
        normal = (-0.5 * v.square() - 0.5 * math.log(2 * math.pi)).sum(1)
        assert torch.allclose(base.log_prob(u) + slope.log().sum(1), normal, atol=1e-6)
    finally:
        torch.set_default_dtype(with_default)


def test_marginals_start_at_the_frequencies():
    x = torch.tensor([0, 0, 0, 1]).view(4, 1, 1, 1).expand(4, 1, 1, 2)
    base = Marginals(PAIR, bins=16)
    base.start(PAIR.relax(x.contiguous()).value)
    assert base.table()[0][0, 0].item() == pytest.approx((3 + 0.5) / 5)


def test_log_z_agrees_with_quadrature():
    torch.manual_seed(3)
    model = Energy(PAIR, size="tiny").eval()
    for p in model.net.parameters():
        p.data.mul_(2.0)
    side = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    v = torch.special.ndtri(torch.cartesian_prod(side, side))
    with torch.no_grad():
        exact = (-model._of_normal(None)(v)).logsumexp(0) - math.log(len(v))
        model.log_prob(PAIR.enumerate())
    assert abs(model.log_z[0] - exact) < 4 * model.log_z_stderr[0] + 1e-3


def test_it_learns_what_the_histogram_cannot_and_its_masses_sum_to_one():
    model = fitted(PAIR, equal_bits())
    p, stderr = masses(model)
    assert abs(p.sum() - 1) < 4 * stderr
    assert stderr < 0.1
    assert p[0] + p[3] > 0.85  # of independent bits: one half
    drawn = model.sample(500)
    assert (drawn[..., 0] == drawn[..., 1]).double().mean() > 0.8


def test_each_label_has_its_own_log_z():
    label = torch.arange(512)[:, None] % 2
    x = label.view(-1, 1, 1, 1).expand(-1, 1, 1, 2).contiguous()
    model = fitted(PAIR, x, label, label=Space.label(2))
    for value in (0, 1):
        p, stderr = masses(model, torch.tensor([[value]]), draws=400)
        assert abs(p.sum() - 1) < 4 * stderr
        assert p[3 * value] > 0.45  # of independent bits: one quarter
    assert (model.sample(200, torch.tensor([[1]])) == 1).double().mean() > 0.6


def test_a_density_integrates_to_one():
    angle = torch.rand(1000, 1) * 2 * math.pi
    ring = torch.cat([angle.cos(), angle.sin()], 1) * 1.4 + 0.1 * torch.randn(1000, 2)
    model = fitted(Space.reals(2), ring, steps=100)
    line = torch.linspace(-5, 5, 201)
    with torch.no_grad():
        claim = model.log_prob(torch.cartesian_prod(line, line))
    assert claim.kind == "estimate"
    assert abs(claim.nats.exp().sum() * 0.05**2 - 1) < 4 * claim.stderr[0] + 0.02


def test_mixed_tables_sample_values_of_their_columns():
    x = torch.stack([torch.randint(3, (256,)), torch.randint(-1, 6, (256,)), torch.randint(3, (256,)), torch.randint(2, (256,))], 1)
    model = fitted(MIXED, x, steps=20)
    MIXED.check(model.sample(50))
    assert model.log_prob(x[:20]).nats.isfinite().all()


def test_log_z_is_estimated_once_and_again_when_weights_change(monkeypatch):
    model = Energy(PAIR, size="tiny").eval()
    x = PAIR.enumerate()
    first = model.log_prob(x)
    copy = Energy(PAIR, size="tiny")
    copy.load_state_dict(model.state_dict())
    calls = []
    anneal_state = Energy._anneal
    monkeypatch.setattr(Energy, "_anneal", lambda self, state: calls.append(state) or anneal_state(self, state))
    assert torch.equal(copy.log_prob(x).nats, first.nats)
    assert calls == []
    model.base.weight.data[0, 0] += 1.0
    changed = model.log_prob(x)
    assert calls == [0]
    assert not torch.equal(changed.nats, first.nats)
    model.fingerprint.zero_()
    assert torch.equal(model.log_prob(x).nats, changed.nats)  # the same weights, the same estimate


def test_every_parameter_learns_and_chains_go_on():
    torch.manual_seed(0)
    model = Energy(PAIR, size="tiny", restart=0.0)
    before = model.chains.clone()
    model(equal_bits(32)).mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    changed = (model.chains != before).any(-1).sum()
    assert 1 <= changed <= 32
    assert torch.equal(model.chains[0, (model.chains == before).all(-1)[0]], before[0, (model.chains == before).all(-1)[0]])


def test_chains_are_picked_of_their_label_and_none_twice():
    model = Energy(PAIR, given=Space.label(3), size="tiny")
    label = torch.tensor([0, 1, 1, 2, 0, 1])[:, None]
    row, column = model._pick(6, label)
    assert torch.equal(row, label[:, 0])
    assert len(set(zip(row.tolist(), column.tolist(), strict=True))) == 6


def test_an_energy_that_outran_its_chains_learns_nothing():
    torch.manual_seed(0)
    model = Energy(PAIR, size="tiny", slack=1e-9, penalty=0.0, restart=0.0)
    model._energy = lambda u, given: 100 * (1 - u[:, 0, 0, 0].sign() + model.net(u, given).squeeze(1)).double()  # ones lie lower
    model(torch.ones(32, 1, 1, 2, dtype=torch.int64)).mean().backward()
    assert all(p.grad is None or p.grad.eq(0).all() for p in model.net.parameters())
    assert model.base.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "given", [Space.reals(2), Space.columns(Support("nominal", 2), Support("nominal", 2))], ids=["vector", "two labels"]
)
def test_only_one_label_can_condition(given):
    with pytest.raises(UsageError, match="one nominal label"):
        Energy(PAIR, given=given, size="tiny")
