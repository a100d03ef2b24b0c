"""Autoregressive maps: the certificate of the inverse, its two ways, its gradient; the masked net step by step."""

import pytest
import torch
from torch import nn

from likely.bijections import Affine, Autoregressive, Inverse, MixtureCDF, Spline
from likely.nets import net
from likely.space import Space

LABEL = Space.label(3)


def _map(dims, transform, given=None, scale=0.3, **options):
    torch.manual_seed(0)
    layer = Autoregressive(transform, net(Space.reals(dims), "ordered", "tiny", given=given, out=transform.size, **options))
    for p in layer.parameters():
        nn.init.normal_(p, std=scale)
    return layer.double().eval()


@pytest.mark.parametrize("given", [None, LABEL], ids=["", "given"])
@pytest.mark.parametrize(("dims", "width", "depth"), [(1, 8, 1), (2, 7, 0), (5, 32, 1), (7, 10, 2), (150, 150, 1)])
def test_steps_equal_the_whole_pass(dims, width, depth, given):
    layer = _map(dims, Affine(), given, 0.1, width=width, depth=depth)
    x, label = torch.randn(3, dims, dtype=torch.float64), None if given is None else torch.arange(3)[:, None]
    with torch.no_grad():
        whole, state, last = layer.net(x, label), layer.net.init_state(3, label), None
        for i in range(dims):
            torch.testing.assert_close(layer.net.step(state, last), whole[..., i], atol=1e-12, rtol=1e-12)
            last = x[:, i]


@pytest.mark.parametrize("transform", [Affine(), Spline(4), MixtureCDF(3)], ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("dims", [1, 2, 9, 40])
def test_iteration_and_steps_find_the_same_inverse(transform, dims):
    layer = _map(dims, transform, LABEL, scale=0.3 / dims**0.5)
    x, label = torch.randn(40, dims, dtype=torch.float64), torch.randint(0, 3, (40, 1))
    with torch.no_grad():
        y, log_det = layer(x, label)
        for layer.by in ("iteration", "steps"):
            back, log_back = layer.inverse(y, label)
            torch.testing.assert_close(back, x, atol=1e-8, rtol=1e-8)
            torch.testing.assert_close(log_back, -log_det, atol=1e-7, rtol=1e-8)
    assert layer.passes == 1


def test_iteration_stops_at_a_fixed_point_bit_for_bit():
    dims = 40
    layer = _map(dims, Affine(), scale=0.05)
    layer.by = "iteration"
    y = torch.randn(1, dims, dtype=torch.float64)
    with torch.no_grad():
        x, _ = layer.inverse(y)
        assert 1 < layer.passes < dims
        again, _ = layer.transform.among(y, None, layer.net(x), inverse=True)
    assert torch.equal(again, x)


def test_iteration_is_exact_after_as_many_passes_as_entries_whatever_the_net():
    layer = _map(6, Affine(bound=4.0), scale=2.0)
    layer.by = "iteration"
    y = torch.randn(200, 6, dtype=torch.float64)
    with torch.no_grad():
        x, _ = layer.inverse(y)
        layer.by, passes = "steps", layer.passes
        expected, _ = layer.inverse(y)
    assert passes == 6
    torch.testing.assert_close(x, expected, atol=1e-8, rtol=1e-8)


def test_rows_that_are_done_leave_the_batch():
    layer = _map(12, Affine(), scale=0.2)
    layer.by, rows = "iteration", []
    layer.net.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    with torch.no_grad():
        layer.inverse(torch.cat([torch.zeros(50, 12), 5 * torch.randn(50, 12)]).double())
    assert rows[0] == 100
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < 100


@pytest.mark.parametrize("by", ["iteration", "steps"])
@pytest.mark.parametrize("transform", [Affine(), Spline(4), MixtureCDF(3)], ids=lambda t: type(t).__name__)
def test_the_gradient_of_an_inverse_is_that_of_the_passes_it_stands_for(transform, by):
    dims = 4
    layer = _map(dims, transform)
    layer.by = by
    y = torch.randn(5, dims, dtype=torch.float64, requires_grad=True)

    def loss():
        x, log_det = layer.inverse(y)
        return x.sin().sum() * len(x) + log_det.square().sum()

    def loss_of_the_same():
        x = y
        for _ in range(dims + 1):
            x, log_derivative = transform.inverse(y, layer.net(x))
        return x.sin().sum() * len(x) + log_derivative.sum(1).square().sum()

    inputs = [y, *layer.parameters()]
    for ours, expected in zip(torch.autograd.grad(loss(), inputs), torch.autograd.grad(loss_of_the_same(), inputs), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-8, rtol=1e-8)


def test_an_inverse_is_the_other_way_round():
    layer = _map(3, Affine())
    x = torch.randn(2, 3, dtype=torch.float64)
    for one, other in zip(Inverse(layer).inverse(x), layer(x), strict=True):
        assert torch.equal(one, other)


def test_dropout_is_off_in_an_inverse():
    layer = _map(4, Affine(), dropout=0.5).train()
    y = torch.randn(8, 4, dtype=torch.float64)
    assert torch.equal(layer.inverse(y)[0], layer.inverse(y)[0])
    assert layer.net.training
