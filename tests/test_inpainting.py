"""Inpainting of a Gaussian, whose conditional law is known: who is biased, and by how much."""

import math

import pytest
import torch

from exact import Mixture, gaussian, rotated
from likely.solve.denoise import Watched
from likely.solve.inpainting import INPAINTERS, posterior_guided, settle
from likely.solve.noise import SCALINGS, noise_schedule
from likely.solve.samplers import ddim, grid

KNOWN = torch.tensor([True, False, False])


def problem(scaling="vp"):
    """Three entries of which the first is known, and strongly tied to the others."""
    noise = noise_schedule("linear", 7.0, -7.0, scaling=scaling)
    covariance = torch.tensor([[1.0, 0.9, -0.5], [0.9, 1.0, -0.3], [-0.5, -0.3, 1.0]])
    return noise, Mixture(noise, [1.0], torch.tensor([[0.2, 0.0, -0.1]]), covariance[None])


def conditional(exact, value):
    """Mean and covariance of the two unknown entries."""
    c, m = exact.covariance, exact.mean
    slope = c[1:, :1] / c[0, 0]
    return m[1:] + slope[:, 0] * (value - m[0]), c[1:, 1:] - slope @ c[:1, 1:]


def filled(word, n, steps, scaling="vp", **options):
    noise, exact = problem(scaling)
    e = torch.zeros(n, 3, dtype=torch.float64)
    e[:, 0] = 1.5
    times = grid("log-snr", noise, steps)
    z = noise.prior_scale * torch.randn(n, 3, dtype=torch.float64)
    watched = Watched(exact)
    z = INPAINTERS[word](watched, noise, z, times, e, KNOWN, **options)
    final = posterior_guided(exact, noise, e, KNOWN) if word == "posterior" else exact
    return settle(final, z, times[-1], e, KNOWN), exact, watched.calls


def bias(word, n=1500, steps=32, **options):
    """How far the mean is from the conditional one in standard deviations, and the ratio of the trace of the covariance."""
    x, exact, _ = filled(word, n, steps, **options)
    mean, covariance = conditional(exact, 1.5)
    apart = (x[:, 1:].mean(0) - mean).abs() / covariance.diagonal().sqrt()
    return apart.max().item(), (x[:, 1:].T.cov().trace() / covariance.trace()).item()


def test_replacement_is_biased_repaint_is_less_and_the_posterior_is_right():
    replaced, repainted, right = bias("replacement"), bias("repaint", resamplings=10), bias("posterior")
    assert replaced[0] > 0.3
    assert repainted[0] < replaced[0] / 2
    assert right[0] < 0.15
    assert abs(right[1] - 1) < 0.15


def test_more_steps_do_not_mend_replacement():
    assert bias("replacement", n=1000, steps=128)[0] > 0.3


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("word", INPAINTERS)
def test_known_entries_come_back_to_the_bit(word, scaling):
    x, _, calls = filled(word, 5, 6, scaling=scaling)
    assert (x[:, 0] == 1.5).all()
    assert x.isfinite().all()
    assert (x[:, 1:].std(0) > 0).all()
    assert calls == {"repaint": 50}.get(word, 5)


def test_images_with_masks_of_their_own():
    noise = noise_schedule("cosine", 6.0, -6.0)
    exact = gaussian(noise, (2, 2, 2))
    e = exact.sample(4).float()
    known = torch.rand(4, 1, 2, 2) < 0.5
    for word in INPAINTERS:
        times = grid("log-snr", noise, 8)
        z = INPAINTERS[word](exact, noise, torch.randn(4, 2, 2, 2), times, e, known)
        x = settle(exact, z, times[-1], e, known)
        assert x.dtype == torch.float32
        assert torch.equal(x[known.expand_as(x)], e[known.expand_as(x)])
        assert x.isfinite().all()


@pytest.mark.parametrize("scaling", SCALINGS)
def test_the_guided_denoiser_of_a_gaussian_is_that_of_its_conditional_law(scaling):
    noise = noise_schedule("linear", 5.0, -5.0, scaling=scaling)
    exact = gaussian(noise, (5,), [0.1, 0.4, 0.9, 1.5, 2.0])
    known, t = torch.tensor([True, False, True, False, True]), torch.linspace(0, 1, 7, dtype=torch.float64)
    e, z = exact.sample(7), torch.randn(7, 5, dtype=torch.float64)
    mean, var = posterior_guided(exact, noise, e, known, iterations=3, ridge=1e-12)(z, t)
    assert torch.equal(mean[:, known], e[:, known])
    assert var[:, known].abs().max() == 0
    alpha, sigma = (v[:, None, None] for v in noise(t))
    given = torch.cat([torch.eye(5).double()[known].expand(7, 3, 5), alpha * torch.eye(5).double()], 1)  # what is seen: e_known and z
    seen = torch.cat([e[:, known], z], 1) - (given @ exact.mean)
    spread = given @ exact.covariance @ given.mT
    spread[:, 3:, 3:] += sigma**2 * torch.eye(5)
    truth = exact.mean + (exact.covariance @ given.mT @ torch.linalg.solve(spread, seen[:, :, None]))[:, :, 0]
    torch.testing.assert_close(mean, truth, rtol=1e-5, atol=1e-5)


def test_guidance_of_a_mixture_finds_the_component_that_the_known_entry_tells():
    noise = noise_schedule("linear", 7.0, -7.0)
    covariance = rotated([0.05, 0.1])
    exact = Mixture(noise, [0.5, 0.5], torch.tensor([[1.5, 1.5], [-1.5, -1.5]]), torch.stack([covariance, covariance]))
    e, known = torch.tensor([[1.5, 0.0]], dtype=torch.float64).expand(64, 2), torch.tensor([True, False])
    denoise, times = posterior_guided(exact, noise, e, known), grid("log-snr", noise, 33)
    x = ddim(denoise, noise, torch.randn(64, 2, dtype=torch.float64), times)
    assert (x[:, 1] > 0.5).all()


def test_rows_do_not_depend_on_each_other():
    noise, exact = problem()
    e, z, t = exact.sample(4), torch.randn(4, 3, dtype=torch.float64), torch.full((4,), 0.4, dtype=torch.float64)
    mean, _ = posterior_guided(exact, noise, e, KNOWN)(z, t)
    for row in range(4):
        one, _ = posterior_guided(exact, noise, e[row : row + 1], KNOWN)(z[row : row + 1], t[:1])
        assert torch.equal(one[0], mean[row])
    assert math.isfinite(mean.sum().item())


def test_a_jacobian_that_is_flat_by_chance_sends_nothing_far_away():
    mixing = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1e-4, 0.3], [0.0, 0.3, 0.5]], dtype=torch.float64)
    schedule = noise_schedule("linear", 6.0, -6.0)

    def denoise(z, t):
        return z @ mixing, torch.ones_like(z)

    guided = posterior_guided(denoise, schedule, torch.ones(4, 3).double(), torch.tensor([[True, True, False]]))
    mean, _ = guided(torch.randn(4, 3).double(), torch.full((4,), 0.5))
    assert mean.abs().max() < 100  # and not thousands: a step is a hundredfold at most
