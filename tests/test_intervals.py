"""Interval masses against a closed form in 50 digits, telescoping sums, and finite gradients."""

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from likely.solve.intervals import log1mexp, logistic_interval, normal_interval

INF = math.inf


def _log_phi_series(a, w):
    """log of the integral of phi over (a, a + w) by Gauss-Legendre, relative to phi(a): no subtraction of CDFs."""
    nodes, weights = np.polynomial.legendre.leggauss(64)
    t = w * (nodes + 1) / 2
    return -0.5 * a * a - 0.5 * math.log(2 * math.pi) + math.log(np.sum(weights * np.exp(-a * t - t * t / 2)) * w / 2)


@pytest.mark.parametrize("a", [-30.0, -8.0, -1.0, 0.0, 0.3, 5.0, 12.0, 38.0])
@pytest.mark.parametrize("w", [1e-12, 1e-8, 1e-4, 0.9e-3, 1.1e-3, 0.1, 1.0])
def test_normal_interval_keeps_its_digits(a, w):
    upper = a + w
    got = normal_interval(torch.tensor(a, dtype=torch.float64), torch.tensor(upper, dtype=torch.float64)).item()
    want = _log_phi_series(a, upper - a)
    assert got == pytest.approx(want, rel=1e-12, abs=2e-9)


def test_normal_interval_open_edges():
    edges = torch.tensor([-INF, -40.0, -3.0, -1e-9, 1e-9, 2.0, 45.0, INF], dtype=torch.float64)
    assert normal_interval(edges[:-1], edges[1:]).exp().sum().item() == pytest.approx(1.0, abs=1e-14)
    assert normal_interval(edges[:1], edges[-1:]).item() == 0.0
    assert normal_interval(edges[6:7], edges[7:]).item() == pytest.approx(stats.norm.logsf(45.0), rel=1e-12)


def test_normal_interval_is_an_even_function():
    a, b = torch.randn(1000, dtype=torch.float64).sub(0.5), torch.rand(1000, dtype=torch.float64)
    assert torch.equal(normal_interval(a, a + b), normal_interval(-a - b, -a))


def test_logistic_interval_sums_to_one_and_matches_the_cdf():
    edges = torch.tensor([-INF, -2.0, 0.0, 0.5, 7.0, INF], dtype=torch.float64)
    mean, log_scale = torch.tensor(0.7, dtype=torch.float64), torch.tensor(-1.3, dtype=torch.float64)
    got = logistic_interval(edges[:-1], edges[1:], mean, log_scale)
    cdf = special.expit((edges.numpy() - 0.7) * math.exp(1.3))
    np.testing.assert_allclose(got.exp().numpy(), np.diff(cdf), rtol=1e-12, atol=1e-15)
    assert got.exp().sum().item() == pytest.approx(1.0, abs=1e-14)


def test_logistic_interval_has_finite_gradients_in_float32():
    mean, log_scale = torch.tensor([0.0, 300.0, -300.0]).requires_grad_(), torch.full((3,), -7.0).requires_grad_()
    edges = torch.tensor([-INF, -1.0, -1.0 + 1e-6, 1.0, INF])[:, None]
    got = logistic_interval(edges[:-1], edges[1:], mean, log_scale)
    got.sum().backward()
    assert torch.isfinite(got).all()
    assert torch.isfinite(mean.grad).all()
    assert torch.isfinite(log_scale.grad).all()


def test_log1mexp():
    d = torch.tensor([1e-300, 1e-20, 0.5, math.log(2), 1.0, 50.0, INF], dtype=torch.float64)
    want = [math.log(1e-300), math.log(1e-20), *(math.log(-math.expm1(-v)) for v in (0.5, math.log(2), 1.0)), -math.exp(-50.0), 0.0]
    np.testing.assert_allclose(log1mexp(d).numpy(), want, rtol=1e-14)
