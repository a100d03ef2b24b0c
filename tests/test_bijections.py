"""Every bijection: round trip, log-determinant against autograd's Jacobian, tails, starts."""

import math

import pytest
import torch
from torch import Tensor, nn

from likely.bijections import (
    ActNorm,
    Affine,
    Bijection,
    Chain,
    Coupling,
    Elementwise,
    Flatten,
    Gaussianise,
    Linear,
    Rest,
    Spline,
    Squeeze,
)
from likely.bijections.marginal import smoothed_histogram
from likely.nets import net
from likely.space import Space

LABEL = Space.label(3)


def _coupling(space: Space, transform: Elementwise, word: str, given: Space | None = None) -> Coupling:
    moves = (torch.arange(space.dims) % 2 == 0).view(space.shape)
    return Coupling(moves, transform, net(space, "coupling", "tiny", word=word, given=given, out=transform.size, moves=moves))


def _perturbed(bijection: Bijection, scale: float = 0.1) -> Bijection:
    """Random weights: a bijection must be one whatever they are."""
    for p in bijection.parameters():
        nn.init.normal_(p, std=scale)
    return bijection.eval()


CASES = {
    "actnorm": (lambda: ActNorm(3), (3,)),
    "actnorm on a grid": (lambda: ActNorm(2), (2, 2, 3)),
    "linear": (lambda: Linear(5), (5,)),
    "linear on a grid": (lambda: Linear(3), (3, 2, 2)),
    "affine coupling": (lambda: _coupling(Space.reals(5), Affine(), "mlp"), (5,)),
    "spline coupling": (lambda: _coupling(Space.reals(5), Spline(5), "mlp"), (5,)),
    "spline coupling of one number": (lambda: _coupling(Space.reals(1), Spline(5), "mlp"), (1,)),
    "convolutional coupling": (lambda: _coupling(Space.grid(2, 2, 2), Spline(4), "conv"), (2, 2, 2)),
    "flatten": (lambda: Flatten((2, 2, 2)), (2, 2, 2)),
    "squeeze": (lambda: Squeeze(), (1, 4, 2)),
    "rest": (lambda: Rest((4, 1, 2), Chain([ActNorm(2), Flatten((2, 1, 2))])), (4, 1, 2)),
    "chain": (lambda: Chain([Linear(4), _coupling(Space.reals(4), Spline(4), "mlp"), ActNorm(4)]), (4,)),
}


@pytest.fixture(params=CASES, ids=lambda name: name.replace(" ", "-"))
def case(request: pytest.FixtureRequest) -> tuple[Bijection, Tensor]:
    make, shape = CASES[request.param]
    torch.manual_seed(0)
    return _perturbed(make()), 2 * torch.randn(16, *shape)


def test_round_trip(case):
    bijection, x = case
    y, log_det = bijection(x)
    back, log_det_back = bijection.inverse(y)
    assert log_det.dtype == torch.float64
    torch.testing.assert_close(back, x, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(log_det_back, -log_det, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("way", ["forward", "inverse"])
def test_log_determinant_is_that_of_autograds_jacobian(case, way):
    bijection, x = case
    bijection, x = bijection.double(), x.double()
    go = getattr(bijection, way)
    x = bijection(x)[0].detach() if way == "inverse" else x
    y, log_det = go(x)
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda v: go(v[None])[0][0].flatten(), row) for row in x[:4]])
    expected = torch.linalg.slogdet(jacobian.reshape(4, y[0].numel(), -1)).logabsdet
    torch.testing.assert_close(log_det[:4], expected, atol=1e-8, rtol=1e-8)


def test_rows_do_not_see_each_other(case):
    bijection, x = case
    alone = bijection(x[:1])
    for one, many in zip(alone, bijection(x), strict=True):
        torch.testing.assert_close(one, many[:1], atol=1e-5, rtol=1e-5)


def test_conditional_couplings_use_given():
    coupling = _perturbed(_coupling(Space.reals(4), Spline(4), "mlp", given=LABEL))
    x, labels = torch.randn(3, 4), torch.arange(3)[:, None]
    y, _ = coupling(x, labels)
    torch.testing.assert_close(coupling.inverse(y, labels)[0], x, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(coupling(x[:1].expand(3, -1), labels)[0].std(0), torch.zeros(4))


@pytest.mark.parametrize("transform", [Affine(), Spline(), Spline(bins=16, bound=3.0)], ids=str)
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


def test_dense_inverse_is_accurate_far_out():
    torch.manual_seed(0)
    linear = _perturbed(Linear(64), 0.1)
    x = 1e3 * torch.randn(8, 64)
    torch.testing.assert_close(linear.inverse(linear(x)[0])[0], x, atol=0.2, rtol=1e-3)


def test_actnorm_starts_once_and_survives_a_resume():
    x = 3 * torch.randn(256, 4) + torch.tensor([0.0, 5.0, -5.0, 100.0])
    norm = ActNorm(4)
    y = norm.start(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(y.std(0, correction=0), torch.ones(4), atol=1e-4, rtol=0)
    resumed = ActNorm(4)
    resumed.load_state_dict(norm.state_dict())
    resumed.start(10 * x)
    torch.testing.assert_close(resumed.log_scale, norm.log_scale)


def test_actnorm_bears_a_constant_channel():
    assert ActNorm(2).start(torch.ones(8, 2)).isfinite().all()


def _gaussianise(levels: int = 5) -> tuple[Gaussianise, Tensor]:
    torch.manual_seed(0)
    code = torch.distributions.Binomial(levels - 1, torch.tensor([0.1, 0.5, 0.8])).sample((400,))
    low, high = -1.0, 2.0
    u = low + (code + torch.rand(400, 3)) * (high - low) / levels
    layer = Gaussianise((4,), [0, 2, 3], levels, low, high)
    x = torch.stack([u[:, 0], torch.randn(400), u[:, 1], u[:, 2]], 1)
    layer.start(x)
    return layer, x


def test_gaussianise_is_invertible_normal_and_has_the_right_log_determinant():
    layer, x = _gaussianise()
    z, log_det = layer(x)
    assert (z[:, [0, 2, 3]].mean(0).abs() < 0.1).all()
    assert ((z[:, [0, 2, 3]].std(0) - 1).abs() < 0.1).all()
    assert torch.equal(z[:, 1], x[:, 1])
    torch.testing.assert_close(layer.inverse(z)[0], x, atol=1e-5, rtol=1e-5)
    row = x[0].double()
    jacobian = torch.autograd.functional.jacobian(lambda v: layer(v[None])[0][0], row)
    torch.testing.assert_close(layer(row[None])[1][0], torch.linalg.slogdet(jacobian).logabsdet)
    torch.testing.assert_close(log_det, -layer.inverse(z.double())[1], atol=1e-5, rtol=1e-5)


def test_gaussianise_alone_is_the_histogram():
    layer, x = _gaussianise()
    z, log_det = layer(x)
    log_density = log_det - (0.5 * z[:, [0, 2, 3]].double().square() + 0.5 * math.log(2 * math.pi)).sum(1)
    code = ((x[:, [0, 2, 3]] + 1) / 3 * 5).long()
    expected = sum(layer.log_mass[i, code[:, i]] for i in range(3)) + 3 * math.log(5 / 3)
    torch.testing.assert_close(log_density, expected, atol=1e-5, rtol=1e-5)


def test_gaussianise_bears_the_ends_and_extreme_noise():
    layer, _ = _gaussianise()
    ends = torch.tensor([[-1.0, 0.0, -1.0, -1.0], [2.0, 0.0, 2.0, 2.0]])
    assert all(t.isfinite().all() for t in layer(ends))
    x, log_det = layer.inverse(torch.tensor([[-1e3, 0.0, 1e3, 9.0], [-9.0, 0.0, -38.0, 38.0]]))
    assert x.isfinite().all()
    assert log_det.isfinite().all()
    assert (x[:, [0, 2, 3]].abs() <= 2).all()


def test_smoothed_histogram_sums_to_one_and_shrinks_small_samples_to_the_pool():
    torch.manual_seed(0)
    p = smoothed_histogram(torch.randint(0, 4, (6, 50)), 4)
    torch.testing.assert_close(p.sum(1), torch.ones(50, dtype=torch.float64))
    assert (p - 0.25).abs().max() < 0.12  # 50 alike places: each leans on the others
    unlike = smoothed_histogram(torch.arange(4).repeat(200, 1), 4)
    assert (unlike.diagonal() > 0.95).all()
