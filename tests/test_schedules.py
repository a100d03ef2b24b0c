"""Noise schedules: their algebra, and that each is the classical one."""

import math
import pickle

import pytest
import torch

from likely.errors import UsageError
from likely.nets.gamma import LearntShape
from likely.solve.noise import SCALINGS, Schedule, alpha_bars, betas, noise_schedule, posterior_betas
from likely.solve.shapes import SHAPES, DiscreteBeta

T = torch.linspace(0, 1, 1001, dtype=torch.float64)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("name", SHAPES)
def test_a_schedule_falls_from_start_to_end_and_keeps_to_its_scaling(name, scaling):
    noise = noise_schedule(name, 7.0, -5.0, scaling=scaling)
    alpha, sigma = noise(T)
    kept = {"vp": alpha**2 + sigma**2, "ve": alpha, "sub-vp": sigma + alpha**2, "rectified": alpha + sigma}[scaling]
    torch.testing.assert_close(kept, torch.ones_like(T))
    torch.testing.assert_close(2 * (alpha / sigma).log(), noise.log_snr(T))
    assert (noise.log_snr(T).diff() < 0).all()
    torch.testing.assert_close(noise.log_snr(T[[0, -1]]), torch.tensor([7.0, -5.0], dtype=torch.float64))
    torch.testing.assert_close(noise.time(noise.log_snr(T)), T)
    assert (noise.start, noise.end) == (7.0, -5.0)
    assert pickle.loads(pickle.dumps(noise)) == noise


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("name", SHAPES)
def test_rates_are_the_derivatives(name, scaling):
    noise, h = noise_schedule(name, 7.0, -5.0, scaling=scaling), 1e-6
    t = torch.linspace(0.0512, 0.9412, 9, dtype=torch.float64)
    for rate, after, before in zip(noise.rates(t), noise(t + h), noise(t - h)):
        torch.testing.assert_close(rate, (after - before) / (2 * h), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("name", SHAPES)
def test_schedules_keep_shape_and_precision_and_nothing_is_lost_at_extreme_ends(name, scaling):
    noise = noise_schedule(name, 20.0, -20.0, scaling=scaling)
    alpha, sigma = noise(torch.tensor([[0.0, 0.3], [0.7, 1.0]]))
    assert alpha.shape == (2, 2)
    assert alpha.dtype == sigma.dtype == torch.float32
    alpha, sigma = noise(T)
    torch.testing.assert_close(2 * (alpha.log() - sigma.log()), noise.log_snr(T), rtol=1e-9, atol=1e-9)


def test_cosine_linear_beta_and_rectified_are_the_classical_ones():
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    torch.testing.assert_close(noise_schedule("cosine", 40.0, -40.0)(t)[0], torch.cos(math.pi / 2 * t), rtol=1e-6, atol=1e-6)
    integral = 0.1 * t + 19.9 * t**2 / 2
    ends = [-math.log(math.expm1(b)) for b in (1e-12, 10.05)]
    for scaling, sigma in {"vp": (-torch.expm1(-integral)).sqrt(), "sub-vp": -torch.expm1(-integral)}.items():
        # a sub-VP of the same alpha has its log-SNR at another time
        alpha = torch.exp(-integral / 2)
        noise = noise_schedule("linear-beta", *ends, scaling=scaling)
        at = noise.time(2 * (alpha / sigma).log())
        torch.testing.assert_close(noise(at), (alpha, sigma))
    torch.testing.assert_close(noise_schedule("linear-beta", *ends)(t)[0], torch.exp(-integral / 2), rtol=1e-8, atol=1e-8)
    straight = noise_schedule("rectified", 40.0, -40.0, scaling="rectified")
    torch.testing.assert_close(straight(t), (1 - t, t), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(straight.rates(t), (-torch.ones_like(t), torch.ones_like(t)), rtol=1e-7, atol=1e-7)


def test_linear_is_geometric_and_karras_is_edm_where_variance_explodes():
    geometric = noise_schedule("linear", -2 * math.log(0.01), -2 * math.log(50.0), scaling="ve")
    torch.testing.assert_close(geometric(T), (torch.ones_like(T), 0.01 * (50 / 0.01) ** T))
    karras = noise_schedule("karras", scaling="ve")
    root = 0.002 ** (1 / 7) + T * (80 ** (1 / 7) - 0.002 ** (1 / 7))
    torch.testing.assert_close(karras(T)[1], root**7)
    assert karras.prior_scale == pytest.approx(math.hypot(1, 80))
    assert noise_schedule("karras").prior_scale == pytest.approx(1)


def test_beta_is_ddpm_to_the_last_product():
    noise = noise_schedule("beta")
    golden = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    product = (1 - golden).cumprod(0)
    alpha_bar = alpha_bars(noise, 1000)
    torch.testing.assert_close(alpha_bar, product, rtol=1e-12, atol=0)
    torch.testing.assert_close(betas(alpha_bar), golden, rtol=1e-10, atol=0)
    assert alpha_bar[-1].item() == pytest.approx(4.0358e-5, rel=1e-4)  # the published one of DDPM
    # beta~ is the variance of the Gaussian N(z_(k-1); sqrt(a_(k-1)) x, 1 - a_(k-1)) N(z_k; sqrt(1 - beta_k) z_(k-1), beta_k) in z_(k-1)
    before = torch.cat([torch.ones(1).double(), product[:-1]])
    precision = (1 - golden[1:]) / golden[1:] + 1 / (1 - before[1:])
    torch.testing.assert_close(posterior_betas(alpha_bar)[1:], 1 / precision, rtol=1e-8, atol=0)
    assert posterior_betas(alpha_bar)[0] == 0


def test_discrete_beta_comes_to_the_continuous_one():
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    truth = torch.exp(-(0.1 * t + 19.9 * t**2 / 2))
    errors = [(noise_schedule("beta", steps=n)(t)[0].square() - truth).abs().max().item() for n in (100, 1000, 10_000)]
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert errors[2] < 1e-3
    cut = noise_schedule("beta", 12.0, -12.0)  # beyond both ends of its own
    assert cut.log_snr(T).diff().max() < 0


def test_schedules_refuse_nonsense():
    with pytest.raises(UsageError, match="tapered"):
        noise_schedule("taperd", 5.0, -5.0)
    with pytest.raises(UsageError, match="falls"):
        noise_schedule("linear", -5.0, 5.0)
    with pytest.raises(UsageError, match="rectified"):
        noise_schedule("linear", scaling="rectify")
    with pytest.raises(UsageError, match="more than 20"):
        noise_schedule("beta", steps=20)
    with pytest.raises(AttributeError):
        Schedule(DiscreteBeta()).scaling = "ve"


def learnt(**options):
    torch.manual_seed(3)
    shape = LearntShape(7.0, -5.0, **options)
    torch.nn.init.normal_(shape.weight)
    torch.nn.init.uniform_(shape.place)
    return shape


def test_a_learnt_shape_is_a_shape_whatever_its_parameters():
    noise = Schedule(learnt(), "ve")
    assert (noise.log_snr(T).diff() < 0).all()
    torch.testing.assert_close(noise.log_snr(T[[0, -1]]), torch.tensor([7.0, -5.0], dtype=torch.float64), rtol=0, atol=1e-5)
    torch.testing.assert_close(noise.time(noise.log_snr(T)), T)
    h, t = 1e-6, T[50:-50:90]
    for rate, after, before in zip(noise.rates(t), noise(t + h), noise(t - h)):
        torch.testing.assert_close(rate, (after - before) / (2 * h), rtol=1e-5, atol=1e-6)
    straight = Schedule(LearntShape(7.0, -5.0))
    assert (straight.log_snr(T) - noise_schedule("linear", 7.0, -5.0).log_snr(T)).abs().max() < 0.5


def test_every_parameter_of_a_learnt_shape_gets_a_gradient():
    shape = learnt(learn_ends=True)
    log_snr, slope = shape(torch.rand(16))
    (log_snr.square().mean() + slope.square().mean()).backward()
    assert len(list(shape.parameters())) == 4
    assert all(p.ndim == 1 and bool(p.grad.count_nonzero() == p.numel()) for p in shape.parameters())
    assert shape.ends() == pytest.approx((7, -5), abs=1e-5)
    (first,) = torch.autograd.grad(shape.log_snr(torch.zeros(1)).sum(), shape.span)
    torch.testing.assert_close(first, torch.tensor([1.0, 6.0]))  # d start / d (middle, log of half the distance)
    with pytest.raises(UsageError, match="falls"):
        LearntShape(-5.0, 7.0)
