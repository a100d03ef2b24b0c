"""Maps of single numbers: far values, starts, closed forms, the certified inverse of a mixture, domains."""

import math

import numpy as np
import pytest
import scipy.special
import torch

from likely.bijections import Additive, Affine, Logit, MixtureCDF, Softplus, Spline
from likely.bijections.monotone import log_ndtri
from likely.errors import DataError, LikelyError, UsageError


@pytest.mark.parametrize(
    "transform", [Additive(), Affine(), Spline(), Spline(bins=16, bound=3.0), MixtureCDF(), MixtureCDF(5, "normal")], ids=str
)
@pytest.mark.parametrize("weight", [0.0, 1.0, 100.0])
def test_elementwise_maps_reach_far_and_never_give_nan(transform, weight):
    torch.manual_seed(1)
    y = torch.cat([torch.linspace(-6, 6, 401), torch.tensor([-1e3, 1e3, 4.0, -4.0, 3.0])])[None].requires_grad_()
    raw = (weight * torch.randn(1, transform.size, y.shape[1])).requires_grad_()
    x, log_derivative = transform.inverse(y, raw)
    assert x.isfinite().all()
    back, log_back = transform(x, raw)
    assert x.abs().max() > 100 or weight > 0  # the whole line is reached, so the density has mass 1
    (back.square().sum() + log_back.sum() + log_derivative.sum()).backward()
    assert y.grad is not None
    assert raw.grad is not None
    assert y.grad.isfinite().all()
    assert raw.grad.isfinite().all()
    if weight <= 1:
        torch.testing.assert_close(back[:, -5:-3], y[:, -5:-3], rtol=1e-5, atol=1e-3)  # at |y| = 1e3
        torch.testing.assert_close(back, y, rtol=1e-4, atol=1e-3)


def test_spline_starts_as_the_identity_and_rises():
    spline = Spline(6)
    x = torch.linspace(-5, 5, 300)[None]
    y, log_derivative = spline(x, torch.zeros(1, spline.size, 300))
    torch.testing.assert_close(y, x, atol=1e-6, rtol=1e-6)
    assert log_derivative.abs().max() < 1e-6
    raw = 2 * torch.randn(1, spline.size, 1, generator=torch.Generator().manual_seed(0))
    y, _ = spline(x, raw.expand(-1, -1, 300))
    assert (y.diff() > 0).all()


@pytest.mark.parametrize("base", ["logistic", "normal"])
def test_a_mixture_starts_near_the_identity(base):
    mixture = MixtureCDF(8, base)
    x = torch.linspace(-2, 2, 81)[None]
    y, log_derivative = mixture(x, torch.zeros(1, mixture.size, 81))
    assert (y - x).abs().max() < 0.1
    assert log_derivative.abs().max() < 0.15


def test_a_mixture_of_one_is_affine():
    mixture = MixtureCDF(1)
    x = torch.linspace(-1e3, 1e3, 101)[None]
    y, log_derivative = mixture(x, torch.tensor([0.3, 2.0, 0.5])[None, :, None].expand(-1, -1, 101))
    scale = 4 * math.tanh(0.5 / 4)
    torch.testing.assert_close(y, (x - 2) * math.exp(-scale))
    torch.testing.assert_close(log_derivative, torch.full_like(x, -scale))


def test_a_mixture_is_the_quantile_of_its_distribution_function():
    torch.manual_seed(0)
    mixture, raw = MixtureCDF(3, "normal"), torch.randn(1, 9, 1, dtype=torch.float64)
    weights, means, scales = mixture._mixture(raw)
    x = torch.linspace(-4, 4, 17, dtype=torch.float64)[None]
    y, _ = mixture(x, raw.expand(-1, -1, 17))
    cdf = (weights.exp() * torch.special.ndtr((x[:, None] - means) / scales.exp())).sum(1)
    torch.testing.assert_close(torch.special.ndtr(y), cdf, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("base", ["logistic", "normal"])
@pytest.mark.parametrize("scale", [1, 100, 1e4])
def test_the_inverse_of_a_mixture_is_certified(base, scale):
    torch.manual_seed(0)
    mixture = MixtureCDF(6, base)
    y = scale * torch.linspace(-1, 1, 301, dtype=torch.float64)[None]
    raw = 3 * torch.randn(1, mixture.size, 301, dtype=torch.float64)
    x, _ = mixture.inverse(y, raw)
    residual = (mixture(x, raw)[0] - y).abs() * (-mixture(x, raw)[1]).exp()  # in x
    assert (residual <= 1e-12 * (1 + x.abs())).all()


@pytest.mark.parametrize("base", ["logistic", "normal"])
def test_far_out_a_mixture_is_a_line_whose_inverse_and_slopes_are_known(base):
    mixture, x = MixtureCDF(8, base), torch.tensor([[-1e30, -1e8, -9.9e3, 9.9e3, 1.1e4, 1e8, 1e30]])
    raw = (2 * torch.randn(1, mixture.size, 7, dtype=torch.float64)).requires_grad_()
    y, log_derivative = mixture(x.double(), raw)
    back, log_inverse = mixture.inverse(y, raw)
    torch.testing.assert_close(back, x.double(), rtol=1e-9, atol=0)
    torch.testing.assert_close(log_inverse, -log_derivative, rtol=0, atol=1e-3)
    (left,) = torch.autograd.grad((back / x).sum(), raw)  # the parameters cancel
    assert left.abs().max() < 1e-3


def test_a_spline_has_no_more_bins_than_there_is_room_for():
    for bins in (0, 1000, 2000):
        with pytest.raises(UsageError, match=f"cannot have {bins} bins"):
            Spline(bins)
    assert Spline(999).size == 2996


def test_a_mixture_with_bad_parameters_is_an_error_and_no_endless_search():
    with pytest.raises(LikelyError, match="not found"):
        MixtureCDF(2).inverse(torch.zeros(1, 1), torch.full((1, 6, 1), torch.nan))


def test_the_normal_quantile_of_a_log_probability_is_scipys_and_goes_on_where_probabilities_end():
    log_p = torch.tensor([-0.7, -3.0, -20.0, -29.9, -30.1, -300.0, -700.0], dtype=torch.float64, requires_grad=True)
    x = log_ndtri(log_p)
    np.testing.assert_allclose(x.detach(), scipy.special.ndtri_exp(log_p.detach().numpy()), rtol=1e-13)
    far = torch.tensor([-1e3, -1e6, -1e9], dtype=torch.float64)
    torch.testing.assert_close(torch.special.log_ndtr(log_ndtri(far)), far, rtol=1e-14, atol=0)
    (slope,) = torch.autograd.grad(x.sum(), log_p)
    step = (log_ndtri(log_p + 1e-5) - log_ndtri(log_p - 1e-5)) / 2e-5
    torch.testing.assert_close(slope, step.detach(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("layer", "inside", "outside"), [(Softplus(1.0), 1.5, 1.0), (Logit(1.0, 2.0), 1.0, 2.1), (Logit(1.0, 2.0), 1.5, 0.9)]
)
def test_values_outside_of_a_domain_are_an_error(layer, inside, outside):
    y, log_det = layer(torch.full((1, 2), inside))
    assert y.isfinite().all()
    assert log_det.isfinite().all()
    with pytest.raises(DataError, match=r"of 0\.9|of 2\.1|are not above 1"):
        layer(torch.tensor([[inside, outside]]))


def test_domains_keep_their_digits_far_out():
    layer = Softplus().double()
    y = torch.tensor([[-500.0, -30.0, 0.0, 30.0, 1e3]], dtype=torch.float64)
    torch.testing.assert_close(layer(layer.inverse(y)[0])[0], y, rtol=1e-12, atol=1e-12)
