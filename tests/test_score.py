"""Score models: every objective has the true score as its minimum; densities, Langevin's levels and equations in closed form."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from exact import gaussian
from likely import families
from likely.errors import UsageError
from likely.families.score import SHAPES, ScoreModel
from likely.noise import Noise
from likely.solve.objectives import stratified
from likely.space import Space, Support

OBJECTIVES = ("denoising", "sliced", "explicit", "likelihood", "v")


class Says(nn.Module):
    """A net that says v = (alpha eps - sigma e) of an exact denoiser, scaled and moved by what can be learnt."""

    def __init__(self, model, exact) -> None:
        super().__init__()
        self.level, self.scale, self.exact = model.level, model.scale, exact
        noise = model.schedule  # EDM's net is told log(sigma) / 4, others the time
        self.at = (lambda t: noise.time((-8 * t.double()).clamp(noise.end, noise.start))) if model.levelled else (lambda t: t)
        self.factor, self.shift = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def forward(self, z, t, given=None):
        t = self.at(t)
        alpha, sigma = self.level(t, z)
        mean, _ = self.exact(z * self.scale(t, z), t)
        return self.factor * (alpha * z - mean) / sigma + self.shift


def perfect(shape=(2,), **options):
    space = Space.reals(*shape) if len(shape) == 1 else Space.grid(*shape)
    model = ScoreModel(space, size="tiny", **options)
    exact = gaussian(model.schedule, shape)
    model.net = Says(model, exact)
    return model, exact


def gradients(model, x, seed=1):
    torch.manual_seed(seed)
    loss = model(x)
    return torch.stack(torch.autograd.grad(loss.mean(), (model.net.factor, model.net.shift))).flatten()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_true_score_is_the_minimum_of_every_objective(objective):
    model, exact = perfect(objective=objective)
    x = exact.sample(20_000).float()

    def loss(factor, shift):
        model.net.factor.data.fill_(factor)
        model.net.shift.data.fill_(shift)
        torch.manual_seed(1)
        return model(x).mean().item()

    least = loss(1.0, 0.0)
    assert least < min(loss(1.2, 0.0), loss(0.8, 0.0), loss(1.0, 0.1), loss(1.0, -0.1))


@pytest.mark.parametrize("objective", ["denoising", "sliced"])
def test_gradients_agree_with_those_of_the_explicit_loss_on_average(objective):
    # per entry |sigma s + eps|^2 is twice sigma^2 (tr ds/dz + |s|^2 / 2) and a constant
    model, exact = perfect(objective=objective)
    x = exact.sample(2000).float()
    model.net.factor.data.fill_(0.7)
    model.net.shift.data.fill_(0.3)
    factor = 2.0 if objective == "denoising" else 1.0
    each = torch.stack([gradients(model, x, seed) for seed in range(10)]) / factor
    model.objective = "explicit"
    truth = torch.stack([gradients(model, x, seed) for seed in range(10)])
    error = (each.var(0) / 10 + truth.var(0) / 10).sqrt()
    assert ((each.mean(0) - truth.mean(0)).abs() < 4 * error + 1e-3).all()


def test_the_likelihood_weight_makes_every_level_count_by_how_fast_noise_grows():
    model, exact = perfect(objective="denoising")
    x = exact.sample(64).float()
    torch.manual_seed(2)
    plain = model(x)
    model.objective = "likelihood"
    torch.manual_seed(2)
    weighted = model(x)
    # under the same noise: g^2 / sigma^2 = -d lambda / dt, whatever the scaling, at times that are one apart in 64
    slope = weighted / plain
    torch.manual_seed(2)
    t = stratified(64, x.device)
    torch.testing.assert_close(slope.double(), -0.5 * model.schedule.shape.slope(t), rtol=1e-4, atol=0)


def test_edm_is_the_recipe_of_its_paper():
    """Its own numbers for data of deviation .5, whose sigma is half of ours: levels, training noise, weight and preconditioning."""
    model, said = families.build("edm", Space.reals(2), size="tiny"), []
    alpha, sigma = model.schedule(model.times("heun", None))
    step = torch.arange(18).double() / 17
    torch.testing.assert_close(sigma / alpha / 2, (80 ** (1 / 7) + step * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7)
    model.sample(1)
    assert model.drawn_by == "heun, 35 calls of the net"
    t = model._times(torch.linspace(1e-6, 1 - 1e-6, 20_001).double())
    noise = model.schedule(t)[1] / 2
    assert noise.log().mean().item() == pytest.approx(-1.2, abs=0.01)
    assert noise.log().std().item() == pytest.approx(1.2, abs=0.01)

    class Net(nn.Module):
        def forward(self, z, clock, given=None):
            said.append((z, clock))
            return torch.zeros_like(z)

    model.net, x = Net(), torch.randn(4096, 2)
    loss = model(x)
    z, clock = said[0]
    noise = torch.exp(4 * clock.double())  # sigma over the data's deviation
    denoised = z / (1 + noise**2).sqrt()[:, None]  # c_skip z of EDM, where F = 0
    weight = (noise**2 + 1) / noise**2
    torch.testing.assert_close(loss.mean().item(), (weight[:, None] * (denoised - x) ** 2).mean().item(), rtol=1e-4, atol=0)
    torch.testing.assert_close(z.var().item(), 1.0, rtol=0.05, atol=0)  # c_in


def test_uneven_times_are_refused_where_even_ones_are_meant():
    with pytest.raises(UsageError, match="mean over uniform times, not lognormal"):
        ScoreModel(Space.reals(2), objective="likelihood", times="lognormal")
    with pytest.raises(UsageError, match="Levels of noise are even, not logit-normal"):
        ScoreModel(Space.reals(2), noise_levels=4, times="logit-normal")


def test_levels_are_few_and_evenly_apart_in_log_snr():
    model = ScoreModel(Space.reals(2), size="tiny", noise_levels=5)
    levels = model.schedule.log_snr(model._times(torch.linspace(0.001, 0.999, 200).double())).unique()
    apart = levels.sort().values.diff()
    assert (apart > 1e-6).sum() == 4
    torch.testing.assert_close(apart[apart > 1e-6], torch.full((4,), (model.schedule.start - model.schedule.end) / 4, dtype=torch.float64))
    assert model.train()(torch.randn(8, 2)).isfinite().all()


@pytest.mark.parametrize("sde", SHAPES)
def test_equations_are_their_own_and_draw_the_law(sde):
    model, exact = perfect(sde=sde)
    alpha, sigma = model.schedule(torch.tensor([0.3, 0.9]).double())
    kept = {"vp": alpha**2 + sigma**2, "ve": alpha, "karras": alpha, "sub-vp": sigma + alpha**2}[sde]
    torch.testing.assert_close(kept, torch.ones(2, dtype=torch.float64))
    x = model.sample(4000, steps=32)
    torch.testing.assert_close(x.double().T.cov(), exact.covariance, rtol=0, atol=0.1)
    torch.testing.assert_close(x.double().mean(0), exact.mean, rtol=0, atol=0.1)


@pytest.mark.parametrize("sde", SHAPES)
@pytest.mark.parametrize("shape", [(3,), (1, 2, 2)], ids=["vectors", "images"])
def test_the_likelihood_of_a_perfect_net_is_that_in_closed_form(sde, shape):
    model, exact = perfect(shape, sde=sde, tolerance=1e-4)
    e = exact.sample(3).float()
    first = torch.zeros(3)
    alpha = model.schedule(first.double())[0]
    truth = exact.log_prob(e * alpha[0], first) + math.prod(shape) * alpha.log()
    claim = model.log_prob(e)
    torch.testing.assert_close(claim.nats.detach(), truth, rtol=0, atol=0.02)
    assert torch.equal(model.log_prob(e[1:2]).nats, claim.nats[1:2])


class Uniform(nn.Module):
    """A perfect net where all levels of an entry are as likely."""

    def __init__(self, model) -> None:
        super().__init__()
        self.level, self.points = model.level, model.lift.levels.points[0].double()

    def forward(self, z, t, given=None):
        alpha, sigma = self.level(t, z.double())
        noisy = z.double().unsqueeze(-1)
        weight = (-0.5 * ((noisy - alpha.unsqueeze(-1) * self.points) / sigma.unsqueeze(-1)).square()).softmax(-1)
        mean = (weight * self.points).sum(-1)
        return ((alpha * z - mean) / sigma).to(z)


@pytest.mark.parametrize("levels", [4, 256])
def test_uniform_levels_cost_their_number_of_bits_by_the_equation(levels):
    space = Space.grid(1, 1, 1, levels)
    model = ScoreModel(space, size="tiny", tolerance=1e-3)
    model.net = Uniform(model)
    x = torch.randint(0, levels, (4, 1, 1, 1))
    claim = model.log_prob(x, draws=8)
    bits = -claim.nats.detach() / math.log(2)
    assert claim.kind == "lower bound"
    torch.testing.assert_close(bits.mean(), torch.tensor(math.log2(levels)).double(), rtol=0, atol=0.15)


@pytest.mark.parametrize("support", [Support("ordinal", 4), Support("ordinal", 1000)], ids=["noised", "dequantized"])
def test_the_stated_error_of_several_draws_is_that_of_all_that_is_random(support):
    space = Space.columns(*(replace(support, name=f"{i}") for i in range(20)))
    torch.manual_seed(0)
    model = families.build("score", space, size="tiny", tolerance=1.0).eval()
    nn.init.normal_(list(model.parameters())[-2], std=0.5)
    x = torch.randint(support.levels, (1, 20)).expand(200, -1)  # noise without a seed differs from row to row
    with torch.no_grad():
        several, one = (model.ode_log_prob(x, None, Noise(x, draws)) for draws in (3, 1))
    assert 1 / 1.5 < several.stderr.square().mean() / several.nats.var() < 1.5
    assert "divergence alone" not in several.how
    assert one.stderr.square().mean() < 0.7 * one.nats.var()
    assert "error of the divergence alone" in one.how


def test_nonsense_is_refused():
    with pytest.raises(UsageError, match="sliced"):
        ScoreModel(Space.reals(40), objective="explicit")
    with pytest.raises(UsageError, match="sub-vp"):
        ScoreModel(Space.reals(2), sde="subvp")
