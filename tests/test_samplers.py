"""Samplers with perfect denoisers: orders of convergence, calls, moments, and which sampler is which."""

import math
from functools import cache
from itertools import pairwise

import pytest
import torch

from exact import gaussian, two_bumps
from likely.errors import UsageError
from likely.solve.denoise import Watched
from likely.solve.noise import SCALINGS, alpha_bars, betas, noise_schedule, posterior_betas
from likely.solve.samplers import GRIDS, SAMPLERS, ancestral, ddim, dpm_solver, dpm_solver_sde, find_sampler, grid, heun, sampler_options

LAWS = {"rotated Gaussian": gaussian, "two bumps": two_bumps}
STOCHASTIC = ["ancestral", "dpm-solver-sde", "predictor-corrector"]


def noise_for(noise, *shape):
    return noise.prior_scale * torch.randn(*shape, dtype=torch.float64)


@cache
def far_steps(shape, scaling, law):
    """A denoiser, noise for 32 rows, and where the probability flow takes them."""
    noise = noise_schedule(shape, 5.0, -5.0, scaling=scaling)
    exact = LAWS[law](noise)
    z = noise_for(noise, 32, exact.means.shape[1])
    return exact, z, heun(exact, noise, z, grid("log-snr", noise, 385))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("euler", 1), ("heun", 2), ("dpm-solver", 2)])
def test_deterministic_samplers_converge_at_their_order(name, order, scaling, law):
    exact, z, truth = far_steps("linear", scaling, law)
    walk = lambda n: SAMPLERS[name](exact, exact.schedule, z, grid("log-snr", exact.schedule, n + 1))  # noqa: E731
    errors = [(walk(n) - truth).abs().mean().item() for n in (24, 72)]
    assert math.log(errors[0] / errors[1], 3) > order - 0.2
    assert errors[1] < {1: 0.05, 2: 0.005}[order]


@pytest.mark.parametrize("word", GRIDS)
@pytest.mark.parametrize("name", ["heun", "dpm-solver"])
def test_order_two_is_kept_on_every_grid(name, word):
    exact, z, truth = far_steps("cosine", "vp", "two bumps")
    errors = [(SAMPLERS[name](exact, exact.schedule, z, grid(word, exact.schedule, n + 1)) - truth).abs().mean().item() for n in (40, 80)]
    assert errors[0] / errors[1] > 3


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("n", [1, 2, 3, 9])
def test_calls_are_counted_and_shown(name, n):
    noise = noise_schedule("karras", 8.0, -6.0)
    seen = []
    watched = Watched(gaussian(noise), lambda z, t, mean: seen.append((z.shape, t[0].item(), mean.shape)))
    z = SAMPLERS[name](watched, noise, noise_for(noise, 5, 3), grid("karras", noise, n))
    watched(z, torch.zeros(5))
    assert watched.calls == len(seen) == {"heun": 2, "predictor-corrector": 2, "langevin": 10}.get(name, 1) * (n - 1) + 1
    assert all(shapes == (5, 3) for shape in seen for shapes in (shape[0], shape[2]))
    assert seen[-1][1] == 0


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(("shape", "scaling"), [("tapered", "vp"), ("beta", "sub-vp"), ("karras", "ve"), ("rectified", "rectified")])
def test_nothing_is_lost_from_one_step_to_a_thousand(name, shape, scaling):
    noise = noise_schedule(shape, 9.0, -9.0, scaling=scaling)
    options = {"corrections": 1} if name == "langevin" else {}

    def exact(z, t):  # of N(0, 1)
        alpha, sigma = (v[:, None].to(z) for v in noise(t.double()))
        return alpha / (alpha**2 + sigma**2) * z, sigma**2 / (alpha**2 + sigma**2)

    for word, n in [("log-snr", 1001), *((word, n) for word in GRIDS for n in (2, 3, 9))]:
        z = SAMPLERS[name](exact, noise, noise_for(noise, 3, 2).float(), grid(word, noise, n), **options)
        assert z.dtype == torch.float32
        assert z.isfinite().all()


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samplers_have_the_moments_of_the_law(name, scaling, law):
    noise = noise_schedule("linear", 7.0, -7.0, scaling=scaling)
    exact, n = LAWS[law](noise), 2000
    options = {"step": 0.01} if name == "predictor-corrector" else {}
    z = SAMPLERS[name](exact, noise, noise_for(noise, n, exact.means.shape[1]), grid("log-snr", noise, 65), **options)
    alpha, sigma = noise(torch.zeros(1, dtype=torch.float64))
    assert_moments(z / alpha, exact.mean, exact.covariance + (sigma / alpha) ** 2 * torch.eye(len(exact.mean)), slack=0.02)


def assert_moments(x, mean, covariance, slack):
    """Within four standard errors, and the part of the variance that finitely many steps may miss."""
    n, var = len(x), covariance.diagonal()
    apart = (x.mean(0) - mean).abs() / (4 * (var / n).sqrt() + slack * var.sqrt())
    assert apart.max() < 1
    centred = x - x.mean(0)
    products = centred[:, :, None] * centred[:, None]
    scale = (var[:, None] * var).sqrt()
    assert ((products.mean(0) - covariance).abs() / (4 * products.std(0) / math.sqrt(n) + slack * scale)).max() < 1


@pytest.mark.parametrize(("name", "options"), [("ddim", {"eta": 0.6}), ("heun", {"churn": 10.0}), ("dpm-solver-sde", {"eta": 0.4})])
def test_noise_on_the_way_keeps_the_law(name, options):
    noise = noise_schedule("linear", 7.0, -7.0)
    exact = gaussian(noise)
    z = SAMPLERS[name](exact, noise, noise_for(noise, 4000, 3), grid("log-snr", noise, 129), **options)
    assert_moments(z, exact.mean, exact.covariance, slack=0.04 if name == "ddim" else 0.02)


def test_ancestral_with_the_posterior_variance_is_exact_for_one_entry_in_few_steps():
    noise = noise_schedule("cosine", 8.0, -8.0)
    exact = gaussian(noise, (1,), [0.16])
    ratios = {}
    for variance in ("posterior", "small", "large"):
        z = ancestral(exact, noise, noise_for(noise, 40_000, 1), grid("time", noise, 9), variance=variance)
        ratios[variance] = z.std().item() / 0.4
    assert abs(ratios["posterior"] - 1) < 0.02
    assert ratios["small"] < 0.9  # under-dispersed by construction
    assert ratios["large"] > 1.05


def test_reverse_variances_are_beta_and_beta_tilde_of_ddpm():
    noise = noise_schedule("beta", steps=50)
    alpha_bar = alpha_bars(noise, 50)
    k = torch.tensor([30, 29], dtype=torch.float64)
    for variance, truth in {"large": betas(alpha_bar), "small": posterior_betas(alpha_bar)}.items():
        sure = lambda z, t: (torch.zeros_like(z), torch.zeros_like(z))  # noqa: E731
        z = ancestral(sure, noise, torch.zeros(40_000, 1, dtype=torch.float64), k / 50, variance=variance)
        assert z.var().item() == pytest.approx(truth[29].item(), rel=0.03)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_ddim_with_eta_one_is_ancestral_with_beta_tilde(scaling):
    noise = noise_schedule("cosine", 6.0, -6.0, scaling=scaling)
    z, times = noise_for(noise, 8, 2), grid("time", noise, 12)
    torch.manual_seed(1)
    one = ddim(two_bumps(noise), noise, z, times, eta=1.0)
    torch.manual_seed(1)
    torch.testing.assert_close(ancestral(two_bumps(noise), noise, z, times, variance="small"), one)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_ddim_is_euler_in_x_over_alpha_and_the_first_order_of_dpm_solver(scaling):
    noise = noise_schedule("linear-beta", 6.0, -6.0, scaling=scaling)
    exact, z, times = two_bumps(noise), noise_for(noise, 8, 2), grid("karras", noise, 9)
    by_ddim = ddim(exact, noise, z, times)
    y, (alpha, sigma) = z / noise(times)[0][0], noise(times)
    for i in range(8):
        slope = (y - exact(alpha[i] * y, times[i].expand(8))[0]) / (sigma / alpha)[i]
        y = y + (sigma / alpha).diff()[i] * slope
    torch.testing.assert_close(alpha[-1] * y, by_ddim)
    torch.testing.assert_close(SAMPLERS["euler"](exact, noise, z, times), by_ddim)
    for i in range(8):  # one step at a time is all of order one
        z = dpm_solver(exact, noise, z, times[i : i + 2])
    torch.testing.assert_close(z, by_ddim)


def test_where_alpha_and_sigma_sum_to_one_ddim_goes_straight():
    noise = noise_schedule("rectified", 9.0, -9.0, scaling="rectified")
    exact, z, times = two_bumps(noise), noise_for(noise, 8, 2), grid("time", noise, 9)
    by_ddim = ddim(exact, noise, z, times)
    for t, s in pairwise(times):
        mean, _ = exact(z, t.expand(8))
        (alpha, sigma), (alpha_rate, sigma_rate) = noise(t), noise.rates(t)
        z = z + (s - t) * (alpha_rate * mean + sigma_rate * (z - alpha * mean) / sigma)
    torch.testing.assert_close(z, by_ddim)


def test_the_stochastic_solver_without_noise_is_the_other_and_better_than_ancestral():
    noise = noise_schedule("linear", 6.0, -6.0)
    exact, z = gaussian(noise, (1,), [0.16]), noise_for(noise, 40_000, 1)
    times = grid("log-snr", noise, 11)
    torch.testing.assert_close(dpm_solver_sde(exact, noise, z, times, eta=0.0), dpm_solver(exact, noise, z, times))
    alpha, sigma = noise(torch.zeros(1, dtype=torch.float64))
    truth = (0.16 * alpha**2 + sigma**2).sqrt().item()
    second, first = (
        abs(f(exact, noise, z, times).std().item() / truth - 1) for f in (dpm_solver_sde, lambda *a: ancestral(*a, variance="small"))
    )
    assert second < first / 2


@pytest.mark.parametrize("scaling", SCALINGS)
def test_langevin_steps_have_their_stationary_moments(scaling):
    """z + k (A - z) C^-1 + (2k)^(1/2) n leaves C (1 - k C^-1 / 2)^-1 as it is, in closed form."""
    noise = noise_schedule("linear", 6.0, -6.0, scaling=scaling)
    exact, t = gaussian(noise, (2,), [0.3, 1.0]), torch.tensor([0.5, 0.5], dtype=torch.float64)
    alpha, sigma = noise(t[:1])
    marginal, k = alpha**2 * exact.covariance + sigma**2 * torch.eye(2), 0.5 * sigma**2
    stationary = marginal @ torch.linalg.inv(torch.eye(2) - k / 2 * torch.linalg.inv(marginal))
    z = SAMPLERS["langevin"](exact, noise, noise_for(noise, 4000, 2), t, corrections=80, step=0.5)
    assert_moments(z, alpha * exact.mean, stationary, slack=0)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_annealed_langevin_comes_to_the_law_with_its_corrections(scaling):
    noise = noise_schedule("linear", 7.0, -7.0, scaling=scaling)
    exact = gaussian(noise, (1,), [0.16])
    alpha, sigma = noise(torch.zeros(1, dtype=torch.float64))
    truth, missed = (0.16 + (sigma / alpha) ** 2).sqrt().item(), []
    for corrections in (2, 32):
        z = SAMPLERS["langevin"](exact, noise, noise_for(noise, 4000, 1), grid("log-snr", noise, 33), corrections=corrections)
        missed.append(abs((z / alpha).std().item() / truth - 1))
    assert missed[0] > 0.2
    assert missed[1] < 0.08


def test_a_row_of_a_stochastic_sampler_moves_no_other():
    noise = noise_schedule("cosine", 6.0, -6.0)
    exact, z, times = two_bumps(noise), noise_for(noise, 4, 2), grid("log-snr", noise, 9)
    other = torch.cat([z[:3], 100 * z[3:]])
    for name in SAMPLERS:
        torch.manual_seed(2)
        one = SAMPLERS[name](exact, noise, z, times)[:3]
        torch.manual_seed(2)
        assert torch.equal(SAMPLERS[name](exact, noise, other, times)[:3], one)


@pytest.mark.parametrize("word", GRIDS)
@pytest.mark.parametrize("name", ["tapered", "beta", "karras", "rectified"])
def test_grids_go_from_end_to_start(name, word):
    noise = noise_schedule(name, 8.0, -8.0)
    times = grid(word, noise, 17)
    torch.testing.assert_close(noise.log_snr(times)[[0, -1]], torch.tensor([-8.0, 8.0], dtype=torch.float64))
    assert (times.diff() < 0).all()
    root = (-noise.log_snr(times) / 14).exp()
    even = {"time": times, "log-snr": noise.log_snr(times), "karras": root}[word].diff()
    torch.testing.assert_close(even, even[:1].expand(16))


def test_options_are_told_and_nonsense_is_refused():
    assert sampler_options("ddim") == {"eta": 0.0}
    assert sampler_options("dpm-solver") == {}
    assert set(sampler_options("langevin")) == {"corrections", "step"}
    noise = noise_schedule("cosine")
    with pytest.raises(UsageError, match="ancestral"):
        find_sampler("ancestrall")
    with pytest.raises(UsageError, match="karras"):
        grid("karas", noise, 3)
    with pytest.raises(UsageError, match="0 steps"):
        grid("time", noise, 0)
    with pytest.raises(UsageError, match="small"):
        ancestral(gaussian(noise), noise, torch.zeros(1, 3), grid("time", noise, 3), variance="smal")
