"""Flow matching and MeanFlow against closed forms: couplings by brute force, densities and average velocities of Gaussians."""

import copy
import math
from itertools import permutations

import pytest
import torch
from torch import nn

import likely
from exact import gaussian
from likely.errors import UsageError
from likely.families.flow_matching import FlowMatching
from likely.families.meanflow import MeanFlow
from likely.noise import Noise
from likely.solve.coupling import COUPLINGS, log_plan
from likely.solve.parametrisation import convert
from likely.solve.samplers import SAMPLERS
from likely.space import Space

_STRAIGHT = ("ddim", "euler", "heun", "dpm-solver")


class Says(nn.Module):
    """A net that is a function of z, its times and what is given."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.where = function, nn.Parameter(torch.zeros(1))

    def forward(self, z, t, given=None):
        return self.function(z, t)


def velocity_of(model, exact):
    """The net of the exact velocity; its input is of the scale that preserves variance."""

    def net(u, t):
        z = u * model.scale(t, u)
        return convert(exact(z, t)[0], "x0", "velocity", z, model.schedule, t)

    return Says(net)


# --- couplings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 4, 6])
def test_the_assignment_is_the_best_of_all_permutations(n):
    x, y = torch.randn(n, 1, 2, 2), torch.randn(n, 1, 2, 2)
    cost = torch.cdist(x.flatten(1), y.flatten(1)).square()
    best = min(sum(cost[i, j].item() for i, j in enumerate(order)) for order in permutations(range(n)))
    order = COUPLINGS["ot"](x, y)
    assert sorted(order.tolist()) == list(range(n))
    assert sum(cost[i, j].item() for i, j in enumerate(order.tolist())) == pytest.approx(best, rel=1e-5)


def test_many_pairs_are_assigned_in_groups():
    x, y = torch.randn(150, 2), torch.randn(150, 2)
    order = COUPLINGS["ot"](x, y)
    assert sorted(order.tolist()) == list(range(150))
    for group in (slice(0, 64), slice(64, 128), slice(128, 150)):
        assert torch.equal(order[group] - group.start, COUPLINGS["ot"](x[group], y[group]))


def test_the_entropic_plan_has_uniform_marginals_and_goes_from_independence_to_the_assignment():
    x, y = torch.randn(6, 2), torch.randn(6, 2)
    cost = torch.cdist(x, y).square()
    plan = log_plan(cost, 0.5).exp()
    torch.testing.assert_close(plan.sum(1), torch.full((6,), 1 / 6, dtype=torch.float64))
    torch.testing.assert_close(plan.sum(0), torch.full((6,), 1 / 6, dtype=torch.float64), rtol=1e-3, atol=0)
    torch.testing.assert_close(log_plan(cost, 1e6).exp(), torch.full((6, 6), 1 / 36, dtype=torch.float64), rtol=1e-4, atol=0)
    assert torch.equal(log_plan(cost, 1e-3, rounds=2000).argmax(1), COUPLINGS["ot"](x, y))


def test_drawn_pairs_follow_the_plan():
    x, y = torch.randn(4, 2), torch.randn(4, 2)
    cost = torch.cdist(x, y).square()
    plan = log_plan(cost, 0.05 * cost.mean().item()).exp() * 4
    counts = torch.stack([COUPLINGS["sinkhorn"](x, y) for _ in range(200)])
    frequency = nn.functional.one_hot(counts, 4).double().mean(0)
    assert ((frequency - plan).abs() < 4 * (plan * (1 - plan) / 200).sqrt() + 1e-6).all()


@pytest.mark.parametrize("coupling", ["ot", "sinkhorn"])
def test_coupled_noise_refuses_what_adds_noise_and_what_is_given(coupling):
    model = FlowMatching(Space.reals(2), size="tiny", coupling=coupling)
    for sampler in SAMPLERS:
        if sampler in _STRAIGHT:
            assert model.sample(3, sampler=sampler, steps=3).isfinite().all()
        else:
            with pytest.raises(UsageError, match="adds noise"):
                model.sample(3, sampler=sampler, steps=3)
    for option in ({"sampler": "ddim", "eta": 0.5}, {"sampler": "heun", "churn": 2.0}):
        with pytest.raises(UsageError, match="adds noise"):
            model.sample(3, steps=3, **option)
    x = torch.randn(2, 2)
    with pytest.raises(UsageError, match="adds noise"):
        model.fill(x, torch.tensor([[True, False]] * 2), method="repaint")
    with pytest.raises(UsageError, match="biases a conditional model"):
        FlowMatching(Space.reals(2), size="tiny", given=Space.label(2), coupling=coupling)


def test_optimal_couplings_shorten_the_paths():
    e, eps = torch.randn(64, 2) + 3, torch.randn(64, 2)
    length = {name: (e - eps[couple(e, eps)]).square().sum(1).mean().item() for name, couple in COUPLINGS.items()}
    assert length["ot"] < length["sinkhorn"] < length["independent"]


# --- flow matching -----------------------------------------------------------------------------------


def test_the_loss_is_least_at_the_exact_velocity_and_is_plain_regression():
    model = FlowMatching(Space.reals(2), size="tiny")
    exact = gaussian(model.schedule, (2,))
    x, right = exact.sample(4000).float(), velocity_of(model, exact)

    def loss(off):
        model.net = Says(lambda z, t: right(z, t) + off)
        torch.manual_seed(1)
        return model(x).mean().item()

    assert loss(0.0) < min(loss(0.1), loss(-0.1))
    assert loss(0.1) - loss(0.0) + loss(-0.1) - loss(0.0) == pytest.approx(2 * 0.1**2, rel=1e-3)


def test_what_is_said_of_the_clean_example_is_that_of_the_schedule():
    model = FlowMatching(Space.reals(2), size="tiny").double()
    exact = gaussian(model.schedule, (2,))
    model.net = velocity_of(model, exact)
    z, t = torch.randn(50, 2, dtype=torch.float64), torch.linspace(0, 1, 50, dtype=torch.float64)
    scale = model.scale(t, z)
    torch.testing.assert_close(model.posterior(z / scale, t, None).mean, exact(z, t)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(3,), (1, 2, 2)], ids=["vectors", "images"])
@pytest.mark.parametrize("family", [FlowMatching, MeanFlow])
def test_the_likelihood_of_a_perfect_net_is_that_in_closed_form(family, shape):
    space = Space.reals(3) if len(shape) == 1 else Space.grid(*shape)
    model = family(space, size="tiny", tolerance=1e-5).eval()
    exact = gaussian(model.schedule, shape)
    model.net = average_of(exact) if family is MeanFlow else velocity_of(model, exact)
    e = exact.sample(3).float()
    first = torch.zeros(3)
    alpha = model.schedule(first.double())[0]
    truth = exact.log_prob(e * alpha[0], first) + math.prod(shape) * alpha.log()
    claim = model.log_prob(e)
    assert claim.kind == "numerical"
    torch.testing.assert_close(claim.nats.detach(), truth, rtol=0, atol=3e-3)  # what is left of the data at the last time
    alone = model.log_prob(e[1:2]).nats
    torch.testing.assert_close(alone, claim.nats[1:2], rtol=0, atol=1e-12)  # last bits of its matrix products hang on the batch


# --- MeanFlow ----------------------------------------------------------------------------------------


class GaussianAverage:
    """The average velocity of N(mean, covariance) from noise by straight paths: the flow is linear along each axis.

    Along an axis of variance v, z_r = m_r + (s_r / s_t) (z_t - m_t) with m_t = (1 - t) mean and s_t^2 = (1 - t)^2 v + t^2,
    so that u = (z_t - z_r) / (t - r).
    """

    def __init__(self, exact) -> None:
        self.mean, self.variances, self.axes = exact.means[0], exact.variances[0], exact.axes[0]

    def spread(self, t):
        return ((1 - t).square()[:, None] * self.variances + t.square()[:, None]).sqrt()

    def moved(self, z, r, t):
        along = (z.flatten(1).double() - (1 - t)[:, None] * self.mean) @ self.axes
        there = (along * self.spread(r) / self.spread(t)) @ self.axes.T + (1 - r)[:, None] * self.mean
        return there.view_as(z)

    def velocity(self, z, t):
        along = (z.flatten(1).double() - (1 - t)[:, None] * self.mean) @ self.axes
        rate = (t[:, None] - (1 - t)[:, None] * self.variances) / self.spread(t).square()
        return ((along * rate) @ self.axes.T - self.mean).view_as(z)

    def __call__(self, z, r, t):
        r, t, z = r.double(), t.double(), z.double()
        gap = (t - r).view(-1, *[1] * (z.ndim - 1))
        far = (z - self.moved(z, r, t)) / gap.clamp_min(1e-9)
        return torch.where(gap < 1e-6, self.velocity(z, t), far)


def average_of(exact):
    """The net of the exact average velocity, told t and t - r, its input of the scale that preserves variance."""
    average = GaussianAverage(exact)

    def net(u, times):
        t, r = times[:, 0], times[:, 0] - times[:, 1]
        return average(u * torch.hypot(1 - t, t).view(-1, *[1] * (u.ndim - 1)), r, t).to(u)

    return Says(net)


def meanflow(**options):
    model = MeanFlow(Space.reals(2), size="tiny", **options)
    exact = gaussian(model.schedule, (2,))
    model.net = average_of(exact)
    return model, exact


def test_the_exact_average_velocity_satisfies_the_identity():
    t, r = torch.tensor([0.9, 0.5, 0.7, 0.4]).double(), torch.tensor([0.1, 0.2, 0.69, 0.4]).double()
    z = torch.randn(4, 2, dtype=torch.float64)

    def off(rungs):
        model, exact = meanflow(rungs=rungs)
        return (model._joined(z, r, t, None) - GaussianAverage(exact)(z, r, t)).abs().max(1).values

    coarse, fine = off(16), off(32)
    assert (fine[:2] < coarse[:2] / 6).all()  # a step of Heun's method is off by its cube
    assert (coarse < 3e-3).all()
    assert fine[3] < 1e-12


def test_as_the_first_part_shrinks_the_identity_is_the_one_with_a_derivative():
    torch.manual_seed(0)
    model = MeanFlow(Space.reals(2), size="tiny", rungs=10**4)
    velocity, average = nn.Linear(3, 2).double(), nn.Linear(4, 2).double()
    model._teacher = [Says(lambda u, t: velocity(torch.cat([u * torch.hypot(1 - t[:, :1], t[:, :1]), t[:, :1]], 1).tanh()))]
    model.net = Says(lambda u, t: average(torch.cat([u * torch.hypot(1 - t[:, :1], t[:, :1]), t], 1).tanh()))
    t, r = torch.tensor([0.9, 0.5, 0.7]).double(), torch.tensor([0.1, 0.2, 0.3]).double()
    z, gap = torch.randn(3, 2, dtype=torch.float64), (t - r)[:, None]
    v = model._velocity(z, t, None)
    u, derivative = torch.func.jvp(lambda z, t: model.average(z, r, t, None), (z, t), (v, torch.ones_like(t)))
    pull = (model._joined(z, r, t, None) - u) * gap * model.rungs
    torch.testing.assert_close(pull, v - gap * derivative - u, rtol=1e-2, atol=1e-3)


def test_an_exact_average_velocity_is_a_fixed_point_of_training():
    model, exact = meanflow(rungs=64)
    x = exact.sample(20_000).float()
    shift = nn.Parameter(torch.zeros(2))
    perfect = model.net
    model.net = Says(lambda z, t: perfect(z, t) + shift)
    # velocities of examples are noisy, and right on average
    rows = model(x)
    gradient = torch.autograd.grad(rows.mean(), shift)[0]
    assert gradient.abs().max() < 4 * (rows.detach().mean() / len(x)).sqrt()
    model.learn_from(model)  # what the teacher says is right for every example
    assert model(x).max() < 1e-6


def test_intervals_of_time_are_of_the_kinds_asked_for():
    torch.manual_seed(0)
    model, _ = meanflow(instant=0.2, landing=0.5)
    t, r = model._times(4000, torch.device("cpu"))
    assert (r <= t).all()
    for kind, share in ((r == t, 0.2), ((r == 0) & (t > 0), 0.8 * 0.5)):
        assert abs(kind.float().mean().item() - share) < 4 * math.sqrt(share * (1 - share) / 4000)
    with pytest.raises(UsageError, match="landing=2"):
        meanflow(landing=2)


@pytest.mark.parametrize("family", [FlowMatching, MeanFlow])
def test_solvers_of_straight_paths_take_even_steps_of_time(family):
    model = family(Space.reals(2), size="tiny")
    even, heun = (model.plan(sampler, None, None, 1.0, {}).times.diff() for sampler in ("ddim", "heun"))
    torch.testing.assert_close(even, even[:1].expand_as(even))
    assert (len(even), len(heun)) == (15, 15)  # sixteen calls where the sampler is not the model's own
    log_snr = model.schedule.log_snr(model.plan("heun", None, None, 1.0, {}).times).diff()
    torch.testing.assert_close(log_snr, log_snr[:1].expand_as(log_snr))


def test_one_call_of_an_exact_average_velocity_draws_exactly():
    model, exact = meanflow()
    calls = []
    model.net.register_forward_hook(lambda *_: calls.append(1))
    x = model.sample(20_000)
    assert len(calls) == 1
    torch.testing.assert_close(x.double().T.cov(), exact.covariance, rtol=0, atol=0.03)
    torch.testing.assert_close(x.double().mean(0), exact.mean, rtol=0, atol=0.03)
    torch.manual_seed(3)
    one = model.sample(50, steps=1)
    torch.manual_seed(3)
    torch.testing.assert_close(model.sample(50, steps=7), one, rtol=1e-4, atol=1e-4)


def test_where_all_is_instant_it_is_plain_flow_matching():
    model, exact = meanflow(instant=1.0)
    t, r = model._times(64, torch.device("cpu"))
    assert torch.equal(t, r)
    x = exact.sample(64).float()
    torch.manual_seed(4)
    loss = model(x)
    torch.manual_seed(4)
    e, _ = model.lift(x, Noise(x))
    eps = torch.randn_like(e)
    t, _ = model._times(64, e.device)
    z = e + t[:, None] * (eps - e)
    error = (GaussianAverage(exact).velocity(z, t.double()) - (eps - e)).square().mean(1)
    torch.testing.assert_close(loss.double(), error, rtol=1e-3, atol=1e-3)
    assert model.first() is None


def test_leaps_refuse_options_and_other_samplers_serve():
    model, exact = meanflow()
    with pytest.raises(UsageError, match="no options"):
        model.sample(2, guidance=2.0)
    with pytest.raises(UsageError, match="least is one"):
        model.sample(2, steps=0)
    x = model.sample(4000, sampler="heun", steps=24)
    torch.testing.assert_close(x.double().T.cov(), exact.covariance, rtol=0, atol=0.08)


def test_the_gradient_of_two_halves_of_a_batch_is_that_of_the_whole(monkeypatch):
    # what two ranks average is then what one learns from
    torch.manual_seed(0)
    model = MeanFlow(Space.reals(2), size="tiny")
    for p in model.parameters():
        if p.count_nonzero() == 0:
            nn.init.normal_(p, std=0.1)
    x, noise = torch.randn(16, 2), torch.randn(16, 2)
    t, r = model._times(16, x.device)

    def gradient(part):
        monkeypatch.setattr(model, "_times", lambda *_: (t[part], r[part]))
        monkeypatch.setattr("likely.families.meanflow.torch.randn_like", lambda _: noise[part])
        model.zero_grad()
        model(x[part]).mean().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    halves = gradient(slice(8)), gradient(slice(8, 16))
    torch.testing.assert_close(torch.stack(halves).mean(0), gradient(slice(16)), rtol=1e-4, atol=1e-6)
    assert (halves[0] - halves[1]).abs().max() > 1e-3


def test_a_run_learns_the_velocity_first_and_then_follows_it(tmp_path):
    data = likely.load("moons", count=200)
    run = likely.fit(data, "meanflow", size="tiny", steps=6, out=tmp_path / "run", progress=False)
    assert run.steps == 6
    assert not (tmp_path / "run/teacher").exists()
    torch.manual_seed(0)
    model = MeanFlow(Space.reals(2), size="tiny")
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    teacher, z, t = model.first(), torch.randn(5, 2), torch.rand(5)
    teacher.net = copy.deepcopy(model.net)
    model.learn_from(teacher)
    before = model._velocity(z, t, None)
    torch.testing.assert_close(before, model.average(z, t, t, None))
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    assert torch.equal(model._velocity(z, t, None), before)
    assert not [name for name in model.state_dict() if "teacher" in name]


def test_a_killed_run_goes_on_with_the_same_velocity(tmp_path):
    data, how = likely.load("moons", count=200), {"size": "tiny", "steps": 8, "checkpoint_seconds": 0.0}
    whole = likely.fit(data, "meanflow", out=tmp_path / "whole", progress=False, **how)

    def kill(record):
        if record["step"] == 2 and not (tmp_path / "killed/teacher/checkpoints").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        likely.fit(data, "meanflow", out=tmp_path / "killed", progress=kill, **how)
    assert (tmp_path / "killed/teacher/manifest.json").exists()
    again = likely.fit(data, "meanflow", out=tmp_path / "killed", progress=False, **how)
    assert again.steps == 8
    for mine, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
