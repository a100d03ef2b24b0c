"""Diffusion against closed forms: exact denoisers of Gaussians and of enumerable laws, whose bound must meet the truth."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from likely.errors import UsageError
from likely.families.diffusion import Diffusion
from likely.nets.denoiser import MLPDenoiser
from likely.nets.unet import UNet
from likely.noise import Noise
from likely.solve.diffusion import bridge_kl, prior_kl
from likely.solve.noise import noise_schedule
from likely.solve.objectives import strata_error
from likely.solve.posterior import Levels, Lift, Posterior
from likely.solve.samplers import SAMPLERS, ancestral
from likely.space import Space, Support

GRID, LINE = Space.grid(1, 2, 2, 3), Space.grid(1, 1, 3, 3)
MIXED = Space.columns(
    Support("nominal", 3, missing=True), Support("decimal", missing=True, decimals=1), Support("ordinal", 4), Support("ordinal", 2**16)
)


class ExactLevels(nn.Module):
    """What a perfect net would say of an enumerable law: of each entry, log p(x_i = k | the other entries of z)."""

    def __init__(self, model: Diffusion, states: Tensor, log_p: Tensor) -> None:
        super().__init__()
        self.where = nn.Parameter(torch.zeros(1))  # samples are drawn on the parameters' device
        self.schedule, self.code, self.log_p = model.schedule, model.lift.levels.code(states).flatten(1), log_p
        self.points, self.e = model.lift.levels.points, model.lift.levels.value(model.lift.levels.code(states)).flatten(1)

    def forward(self, z: Tensor, t: Tensor, given: Tensor | None = None) -> Tensor:
        alpha, sigma = (c[:, None, None] for c in self.schedule(t.double()))
        nats = -0.5 * ((z.flatten(1)[:, None] - alpha * self.e) / sigma).square()  # [B, states, entries]
        others = self.log_p + nats.sum(2, keepdim=True).sub(nats).movedim(2, 0)  # [entries, B, states]
        one_hot = nn.functional.one_hot(self.code, self.points.shape[1]).permute(2, 1, 0).bool()  # [K, entries, states]
        logits = torch.stack([others.masked_fill(~hot[:, None], -math.inf).logsumexp(2) for hot in one_hot])  # [K, entries, B]
        return logits.permute(2, 1, 0).unflatten(1, (z.shape[1], -1)).transpose(2, 3).reshape(len(z), -1, *z.shape[2:]).float()


class ExactGaussian(nn.Module):
    """A perfect net of N(0, covariance): posterior mean and the variance of each entry."""

    def __init__(self, noise, covariance: Tensor) -> None:
        super().__init__()
        self.schedule, self.covariance, self.calls = noise, covariance.double(), 0

    def moments(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        alpha, sigma = (c[:, None, None] for c in self.schedule(t.double()))
        gain = alpha * self.covariance @ torch.linalg.inv(alpha**2 * self.covariance + sigma**2 * torch.eye(len(self.covariance)))
        mean = (gain @ z.double()[:, :, None])[:, :, 0]
        return mean.to(z), (self.covariance - gain @ (alpha * self.covariance)).diagonal(dim1=1, dim2=2).to(z)

    def forward(self, z: Tensor, t: Tensor, given: Tensor | None = None) -> Tensor:
        alpha, sigma = (c[:, None].to(z) for c in self.schedule(t.double()))
        mean, var = self.moments(z, t)
        return torch.stack([(alpha * z - mean) / sigma, var.log() - 2 * sigma.log()], 2).flatten(1)


def law(space: Space) -> tuple[Tensor, Tensor]:
    """All states of a space, and the log of a random pmf in which entries depend on each other."""
    states = space.enumerate()
    return states, (1.5 * torch.randn(len(states), dtype=torch.float64)).log_softmax(0)


def perturbed(space: Space, **options) -> Diffusion:
    """A model whose output layers, zero at first, are random."""
    torch.manual_seed(0)
    model = Diffusion(space, size="tiny", **options)
    for p in model.parameters():
        if p.count_nonzero() == 0:
            nn.init.normal_(p, std=0.1)
    return model.eval()


@torch.no_grad()
def mean_nats(model: Diffusion, x: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    claim = model.log_prob(x, draws=draws)
    return claim.nats, claim.stderr


def test_schedules_refuse_nonsense():
    with pytest.raises(UsageError, match="tapered"):
        noise_schedule("taperd", 5.0, -5.0)
    with pytest.raises(UsageError, match="falls"):
        noise_schedule("linear", -5.0, 5.0)


# --- divergences and posteriors ----------------------------------------------------------------------


def test_bridge_kl_is_that_of_the_two_gaussians():
    noise = noise_schedule("cosine", 6.0, -5.0)
    s, t = torch.tensor([0.1, 0.4, 0.8]).double(), torch.tensor([0.2, 0.7, 0.9]).double()
    x, mean, var, z = (torch.randn(3, dtype=torch.float64) for _ in range(4))
    var = var.exp()
    (alpha_s, sigma_s), (alpha_t, sigma_t) = noise(s), noise(t)
    # the bridge by the textbook: z_t = a z_s + N(0, b), alpha_t = a alpha_s
    a, b = alpha_t / alpha_s, sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2
    bridge = lambda x: (a * sigma_s**2 * z + alpha_s * b * x) / sigma_t**2  # noqa: E731
    own = sigma_s**2 * b / sigma_t**2
    q = Normal(bridge(x), own.sqrt())
    p = Normal(bridge(mean), (own + (alpha_s * b / sigma_t**2) ** 2 * var).sqrt())
    gain = noise.log_snr(s).exp() - noise.log_snr(t).exp()
    torch.testing.assert_close(bridge_kl(x, mean, var, gain), kl_divergence(q, p))


def test_bridge_kl_of_a_small_step_is_the_variational_diffusion_loss():
    x, mean, var = torch.tensor([0.3]), torch.tensor([-0.5]), torch.tensor([0.7])
    torch.testing.assert_close(bridge_kl(x, mean, var, torch.tensor([1e-4])), 0.5 * 1e-4 * (x - mean) ** 2, rtol=1e-3, atol=0)


def test_prior_kl_is_closed_form():
    x = torch.randn(5, dtype=torch.float64)
    alpha, sigma = noise_schedule("linear", 6.0, -5.0)(torch.ones(1, dtype=torch.float64))
    expected = kl_divergence(Normal(alpha * x, sigma), Normal(torch.zeros(5).double(), torch.ones(5).double()))
    torch.testing.assert_close(prior_kl(x, -5.0), expected)


@pytest.mark.parametrize("few", [256, 2], ids=["few levels", "many levels"])
def test_masses_sum_to_one_over_the_levels_whatever_the_net_says(few):
    levels = Levels([Support("ordinal", 5, center=2.5, scale=1.4, missing=True), Support("nominal", 3), Support("ordinal", 2)], few=few)
    params, z = 3 * torch.randn(7, 3, levels.width, 4), torch.randn(7, 3, 4)
    alpha, sigma = torch.full((7, 1, 1), 0.9), torch.full((7, 1, 1), 0.4)
    log_mass = levels.log_mass(levels.posterior(params, z, alpha, sigma))
    torch.testing.assert_close(log_mass.exp().sum(2), torch.ones(7, 3, 4))
    assert (log_mass[:, 1, 3:] == -math.inf).all()
    assert (log_mass[:, 2, 2:] == -math.inf).all()


@pytest.mark.parametrize("bins", [False, True])
def test_a_mean_without_variance_draws_the_nearest_level(bins):
    levels = Levels([Support("ordinal", 5, center=2.5, scale=1.4)], few=0, bins=bins)
    code = torch.arange(5).repeat(20).view(20, 1, 5)
    off = torch.empty(20, 1, 5).uniform_(-0.49, 0.49, generator=torch.Generator().manual_seed(0)) / 1.4
    assert levels.draw(Posterior(levels.value(code) + off, torch.zeros_like(off))).equal(code)


@pytest.mark.parametrize("bins", [False, True])
@pytest.mark.parametrize("deviation", [0.02, 0.5, 0.9, 3.0, 40.0])
@pytest.mark.parametrize("place", [17.3, 0.4, -2.0, 63.9])
def test_levels_are_drawn_by_their_mass(bins, deviation, place):
    torch.manual_seed(0)
    levels, n = Levels([Support("ordinal", 64, center=30.0, scale=15.0, missing=True), Support("ordinal", 2)], few=0, bins=bins), 20_000
    mean = levels.points[:, :1] + levels.gaps[:, None] * torch.tensor([[place], [0.3]])
    var = (levels.gaps * deviation).square()[:, None]
    mass = levels.log_mass(Posterior(mean[None], var[None])).exp()[0, :, :, 0]
    code = levels.draw(Posterior(mean.expand(n, 2, 1), var.expand(n, 2, 1)))
    for channel in (0, 1):
        counts = torch.bincount(code[:, channel, 0], minlength=65).double()
        expected = n * mass[channel].double() / mass[channel].double().sum()
        seen = expected > 5
        chi = ((counts - expected)[seen].square() / expected[seen]).sum() + (counts[~seen].sum() - expected[~seen].sum()).abs()
        freedom = max(1, int(seen.sum()) - 1)
        assert chi < freedom + 5 * (2 * freedom) ** 0.5 + 5


def test_moments_of_few_levels_are_those_of_their_mass():
    levels = Levels([Support("ordinal", 5, center=2.5, scale=1.4)])
    one = torch.ones(6, 1)
    posterior = levels.posterior(torch.randn(6, 1, 5), torch.randn(6, 1), 0.8 * one, 0.6 * one)
    p = levels.log_mass(posterior).exp()
    torch.testing.assert_close(posterior.mean, (p * levels.points).sum(2))
    torch.testing.assert_close(posterior.var, (p * levels.points**2).sum(2) - posterior.mean**2)
    narrow = levels.log_mass(Posterior(levels.points[:, 3:4], torch.full((1, 1), 1e-3)))
    assert narrow.argmax() == 3


def test_cells_and_points_round_trip_and_samples_belong():
    lift = Lift(MIXED)
    x = torch.tensor([[0, 13, 3, 65535], [-1, -1, 0, 0], [2, -7, 1, 9]])
    levels = lift.levels
    assert torch.equal(levels.cell(levels.code(x[:, lift.finite])), x[:, lift.finite])
    e, nats = lift(x, Noise(x, 5, seed=0))
    assert e.shape == (15, *lift.space.shape)
    assert nats.shape == (15,)
    sure = Posterior(e, torch.full_like(e, 1e-12))
    torch.testing.assert_close(lift.draw(sure), x.repeat(5, 1))


# --- the bound ---------------------------------------------------------------------------------------


def test_with_an_exact_denoiser_the_bound_meets_the_law_as_steps_grow():
    states, log_p = law(LINE)
    gaps = []
    for steps in (2, 12, 256):
        model = Diffusion(LINE, size="tiny", steps=steps)
        model.net = ExactLevels(model, states, log_p)
        nats, stderr = mean_nats(model, states, draws=50)
        p = log_p.exp()
        gaps.append((p * (log_p - nats)).sum().item())
        error = (p * stderr).square().sum().sqrt().item()
        assert gaps[-1] > -4 * error
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 0.03


def test_with_an_exact_denoiser_the_bound_of_a_rotated_gaussian_meets_its_density():
    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    truth = MultivariateNormal(torch.zeros(2), covariance)
    x = truth.sample((400,))
    gaps = []
    for steps in (8, 128):
        model = Diffusion(Space.reals(2), size="tiny", steps=steps)
        model.net = ExactGaussian(model.schedule, covariance)
        nats, stderr = mean_nats(model, x, draws=40)
        gaps.append((truth.log_prob(x) - nats).mean().item())
    error = stderr.square().mean().sqrt().item() / math.sqrt(len(x))
    assert gaps[0] > gaps[1] > -4 * error
    assert gaps[1] < 0.06


def test_ancestral_samples_of_an_exact_denoiser_follow_the_law():
    states, log_p = law(LINE)
    model = Diffusion(LINE, size="tiny", steps=48)
    model.net = ExactLevels(model, states, log_p)
    x = model.sample(4000, sampler="ancestral")
    frequency = (x[:, None] == states[None]).flatten(2).all(2).double().mean(0)
    total_variation = 0.5 * (frequency - log_p.exp()).abs().sum().item()
    assert total_variation < 0.06  # 4000 draws of the law itself are .03 away on average


def test_independent_uniform_levels_cost_log_k_bits():
    model = Diffusion(Space.grid(1, 4, 4, 8), size="tiny", steps=64)  # a net at zero says just this
    x = torch.randint(0, 8, (64, 1, 4, 4))
    nats, stderr = mean_nats(model, x, draws=4)
    bits = -nats.mean().item() / model.space.nats_per_unit
    assert abs(bits - 3) < 0.02 + 4 * stderr.mean().item() / 8 / model.space.nats_per_unit
    assert bits > 3 - 0.02


@pytest.mark.parametrize("space", [GRID, Space.columns(Support("nominal", 3, missing=True), Support("ordinal", 4))], ids=str)
def test_whatever_the_net_says_masses_sum_to_at_most_one(space):
    model = perturbed(space, steps=4)
    nats, stderr = mean_nats(model, space.enumerate(), draws=200)
    mass = nats.exp().sum().item()
    error = (nats.exp() * stderr).square().sum().sqrt().item() + (nats.exp() * stderr.square() / 2).sum().item()
    assert mass < 1 + 4 * error
    assert mass > 0.1


def test_the_training_loss_is_the_bound_on_average():
    model = perturbed(GRID, steps=5)
    x = GRID.enumerate()[:64]
    nats, _ = mean_nats(model, x, draws=200)
    model.train()
    with torch.no_grad():
        losses = torch.stack([model(x).mean() for _ in range(225)])
    error = losses.std().item() / 15
    assert abs(losses.mean().item() + nats.mean().item()) < 4 * error + 0.02


def test_a_row_does_not_depend_on_its_batch_and_says_its_error():
    model, x = perturbed(GRID), GRID.enumerate()[:10]
    claim = model.log_prob(x, draws=2)
    torch.testing.assert_close(model.log_prob(x[7:8], draws=2).nats, claim.nats[7:8], rtol=1e-5, atol=1e-5)
    assert claim.kind == "lower bound"
    assert "L_0" in claim.how
    with torch.no_grad():
        seeds = torch.stack([model.log_prob(x, draws=2, seed=s).nats for s in range(25)])
    ratio = (claim.stderr.mean() / seeds.std(0).mean()).item()
    assert 0.6 < ratio < 2.2  # rather over- than underestimated


def test_relaxed_columns_are_counted_in_their_own_measure():
    fine, coarse = (Space.columns(Support("decimal", center=50.0, scale=s), Support("nominal", 2)) for s in (10.0, 20.0))
    x = torch.stack([torch.arange(40, 60), torch.arange(20) % 2], 1)
    nats, stderr = mean_nats(perturbed(fine), x, draws=60)
    assert "dequantization" in perturbed(coarse).log_prob(x).how
    # a net at zero says N(50, 10^2) and a fair coin
    zero = Diffusion(fine, size="tiny", steps=64).eval()
    nats, stderr = mean_nats(zero, x, draws=60)
    expected = Normal(50.0, 10.0).log_prob(x[:, 0] + 0.5) - math.log(2)
    assert (expected - nats).mean().abs() < 0.08 + 4 * stderr.mean() / math.sqrt(len(x))


# --- samplers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpm-solver", 2)])
def test_deterministic_samplers_converge_at_their_order(name, order):
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.5]]).double()
    noise = noise_schedule("linear", 5.0, -5.0)
    z = torch.randn(64, 2, dtype=torch.float64)
    run = lambda steps: SAMPLERS[name](  # noqa: E731
        ExactGaussian(noise, covariance).moments, noise, z, torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    )
    truth = run(1024)
    errors = [(run(steps) - truth).abs().max().item() for steps in (16, 32, 64)]
    assert math.log2(errors[0] / errors[2]) / 2 > order - 0.25
    assert errors[2] < 0.1


def test_ancestral_steps_have_the_moments_of_the_data():
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.5]]).double()
    noise = noise_schedule("linear", 6.0, -5.0)
    z = torch.randn(20_000, 2, dtype=torch.float64)
    x = ancestral(ExactGaussian(noise, covariance).moments, noise, z, torch.linspace(1, 0, 65, dtype=torch.float64))
    torch.testing.assert_close(x.T.cov(), covariance, rtol=0, atol=0.06)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_steps_count_calls_of_the_net(sampler, steps):
    model, calls = perturbed(GRID), []
    model.net.register_forward_hook(lambda *_: calls.append(1))
    x = model.sample(5, sampler=sampler, steps=steps)
    GRID.check(x)
    each = {"heun": 2, "predictor-corrector": 2, "langevin": 10}.get(sampler, 1)
    assert len(calls) == each * (steps - 1) + 1


def test_the_bound_belongs_to_the_ancestral_sampler_of_its_own_steps():
    model, calls = perturbed(GRID, steps=6), []
    model.net.register_forward_hook(lambda *_: calls.append(1))
    x = model.sample(10_000, **model.bound_sampler)
    assert len(calls) == 7
    states = GRID.enumerate()
    frequency = (x[:, None] == states[None]).flatten(2).all(2).double().mean(0)
    nats, stderr = mean_nats(model, states, draws=60)
    p = nats.exp()
    slack = 4 * (p / len(x)).sqrt() + 4 * p * stderr
    assert (frequency >= p - slack).all()


def test_sampling_refuses_nonsense():
    model = perturbed(GRID)
    with pytest.raises(UsageError, match="ancestral"):
        model.sample(2, sampler="ancestrall")
    with pytest.raises(UsageError, match="0 steps"):
        model.sample(2, steps=0)
    assert model.sample(0).shape == (0, 1, 2, 2)


# --- nets, layouts, given ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 2), (2, 5, 7), (3, 8, 9)])
def test_the_u_net_takes_any_sides(shape):
    net = UNet(Space.grid(*shape), size="small", out=3, width=8)
    y = net(torch.randn(2, *shape), torch.rand(2))
    assert y.shape == (2, 3 * shape[0], *shape[1:])
    assert y.count_nonzero() == 0


@pytest.mark.parametrize("space", [GRID, Space.grid(2, 3, 3, 100), Space.grid(1, 2, 3), Space.reals(2), MIXED], ids=str)
def test_every_space_trains_scores_and_samples(space):
    model = perturbed(space)
    model.train()
    x = model.sample(32)
    space.check(x)
    model(x).mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    assert model.eval().log_prob(x).nats.isfinite().all()


def test_given_conditions_both_the_bound_and_the_samples():
    space, label = Space.grid(1, 1, 2, 3), Space.label(2)
    torch.manual_seed(0)
    model = Diffusion(space, given=label, size="tiny")
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    given = torch.arange(128)[:, None] % 2
    x = (2 * given)[:, None, None].expand(-1, 1, 1, 2).reshape(-1, 1, 1, 2)
    for _ in range(50):
        optimiser.zero_grad()
        model(x, given).mean().backward()
        optimiser.step()
    model.eval()
    right, wrong = (model.log_prob(x[:8], y).nats.mean().item() for y in (given[:8], 1 - given[:8]))
    assert right - wrong > 2
    assert (model.sample(100, torch.ones(1, 1, dtype=torch.int64)) == 2).float().mean() > 0.8
    with pytest.raises(UsageError, match="given"):
        model.sample(2)


def test_an_mlp_denoiser_knows_its_time():
    net = MLPDenoiser(Space.reals(3), size="tiny", out=2)
    for p in net.parameters():
        nn.init.normal_(p, std=0.1)
    u = torch.randn(1, 3).expand(2, 3)
    early, late = net(u, torch.tensor([0.1, 0.9]))
    assert early.shape == (6,)
    assert (early - late).abs().max() > 1e-3


def test_the_error_of_strata_is_that_of_their_noise_whatever_their_smooth_course():
    torch.manual_seed(0)
    course = torch.linspace(0, 3, 40).exp()[:, None, None]
    said = strata_error(course + 0.5 * torch.randn(40, 2, 3000))
    torch.testing.assert_close(said.square().mean().sqrt().item(), 0.5 / math.sqrt(80), rtol=0.05, atol=0)
    assert strata_error(course[:1]) is None
