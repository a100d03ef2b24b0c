"""Guidance of Gaussians in closed form."""

import math

import pytest
import torch

from exact import Mixture, rotated
from likely.solve.denoise import Watched
from likely.solve.guidance import classifier_free, classifier_guided
from likely.solve.noise import SCALINGS, noise_schedule
from likely.solve.parametrisation import convert
from likely.solve.samplers import dpm_solver, grid

MEANS, COVARIANCES = torch.tensor([[1.0, -0.5], [-0.8, 0.4]]), torch.stack([rotated([0.1, 0.6]), rotated([0.3, 0.2], 1.2)])


def classes(noise):
    """Two Gaussian classes, and all data."""
    some = [Mixture(noise, [1.0], MEANS[i : i + 1], COVARIANCES[i : i + 1]) for i in (0, 1)]
    return *some, Mixture(noise, [0.3, 0.7], MEANS, COVARIANCES)


def start(n=6):
    return torch.randn(n, 2, dtype=torch.float64), torch.linspace(0.05, 0.95, n, dtype=torch.float64)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("scale", [0.5, 1.5, 3.0])
def test_guided_gaussians_are_the_tempered_ones(scale, scaling):
    noise = noise_schedule("linear", 5.0, -5.0, scaling=scaling)
    conditional, unconditional, _ = classes(noise)
    z, t = start()
    mean, _ = classifier_free(conditional, unconditional, noise, scale)(z, t)
    score = convert(mean, "x0", "score", z, noise, t)
    alpha, sigma = (v[:, None, None] for v in noise(t))
    precisions = [torch.linalg.inv(alpha**2 * law.covariance + sigma**2 * torch.eye(2)) for law in (unconditional, conditional)]
    weights = (1 - scale, scale)
    precision = sum(w * p for w, p in zip(weights, precisions))
    centre = sum(w * p @ (alpha * law.mean[:, None]) for w, p, law in zip(weights, precisions, (unconditional, conditional)))
    torch.testing.assert_close(score, (centre - precision @ z[:, :, None])[:, :, 0])


def test_scale_one_is_conditional_and_zero_unconditional_to_the_bit_and_cost_one_call():
    noise = noise_schedule("linear", 5.0, -5.0)
    conditional, _, everything = classes(noise)
    z, t = start()
    for scale, truth in ((1.0, conditional), (0.0, everything)):
        one, other = Watched(conditional), Watched(everything)
        mean, var = classifier_free(one, other, noise, scale)(z, t)
        assert torch.equal(mean, truth(z, t)[0])
        assert torch.equal(var, truth(z, t)[1])
        assert one.calls + other.calls == 1
    mean, var = classifier_free(conditional, everything, noise, 30.0)(z, t)
    assert (var >= 0).all()
    assert mean.isfinite().all()


def test_guidance_is_confined_to_its_interval():
    noise = noise_schedule("linear", 5.0, -5.0)
    conditional, _, everything = classes(noise)
    z, t = start()
    always, some = (classifier_free(conditional, everything, noise, 2.0, interval=i)(z, t)[0] for i in ((-math.inf, math.inf), (-2.0, 2.0)))
    inside = noise.log_snr(t).abs() <= 2
    assert 0 < inside.sum() < len(t)
    assert torch.equal(some[inside], always[inside])
    assert torch.equal(some[~inside], conditional(z, t)[0][~inside])


@pytest.mark.parametrize("scaling", SCALINGS)
def test_an_exact_classifier_makes_the_conditional_denoiser(scaling):
    noise = noise_schedule("linear", 5.0, -5.0, scaling=scaling)
    conditional, _, everything = classes(noise)
    likelihood = lambda z, t: math.log(0.3) + conditional.log_prob(z, t) - everything.log_prob(z, t)  # noqa: E731
    z, t = start()
    torch.testing.assert_close(classifier_guided(everything, likelihood, noise)(z, t)[0], conditional(z, t)[0])
    strong = classifier_guided(everything, likelihood, noise, 2.5)(z, t)[0]
    torch.testing.assert_close(strong, classifier_free(conditional, everything, noise, 2.5)(z, t)[0])
    assert torch.equal(classifier_guided(everything, likelihood, noise, 0.0)(z, t)[0], everything(z, t)[0])


def test_a_guided_walk_ends_in_the_class():
    noise = noise_schedule("linear", 6.0, -6.0)
    conditional, _, everything = classes(noise)
    likelihood = lambda z, t: conditional.log_prob(z, t) - everything.log_prob(z, t)  # noqa: E731
    z, times = torch.randn(64, 2, dtype=torch.float64), grid("log-snr", noise, 33)
    walk = lambda denoise: dpm_solver(denoise, noise, z, times)  # noqa: E731
    torch.testing.assert_close(walk(classifier_guided(everything, likelihood, noise)), walk(conditional))
