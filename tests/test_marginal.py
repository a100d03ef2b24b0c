"""Gaussianise: the histogram as a bijection, its ends, its smoothing."""

import math

import torch
from torch import Tensor

from likely.bijections import Gaussianise
from likely.bijections.marginal import smoothed_histogram
from likely.bijections.tails import Tails
from likely.families.flow import Flow
from likely.space import Space


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


def test_heavy_tails_alone_are_drawn_in_invertibly():
    torch.manual_seed(0)
    x = torch.stack([torch.randn(4000), torch.randn(4000) / torch.randn(4000), -torch.rand(4000).log()], 1).double()
    layer = Tails(3)
    layer.start(x)
    assert layer.heavy.tolist() == [False, True, False]
    y, log_det = layer(x)
    assert y[:, 1].abs().max() < 12 < x[:, 1].abs().max()
    assert torch.equal(y[:, [0, 2]], x[:, [0, 2]])
    derivative = torch.stack([torch.autograd.functional.jacobian(lambda row: layer(row[None])[0][0], row) for row in x[:20]])
    torch.testing.assert_close(derivative.slogdet().logabsdet, log_det[:20])
    back, backwards = layer.inverse(y)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(backwards, -log_det)


def test_a_flow_of_cauchy_draws_is_nearly_as_good_as_their_law():
    torch.manual_seed(1)
    law = torch.distributions.Cauchy(torch.zeros(2), torch.ones(2))
    train, test = law.sample((2000,)), law.sample((2000,))
    model = Flow(Space.reals(2).standardised(train), size="tiny")
    model.start(train)
    found, true = model.log_prob(test).nats, law.log_prob(test).sum(1)
    assert found.mean() > true.mean() - 1  # before any training
    assert found.min() > true.min() - 40  # in squares of deviations it would be thousands
