"""Dropout by random bytes: how often, how much, where, and its gradient."""

import math

import pytest
import torch

from likely.nets.dropout import dropout


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_units_are_dropped_independently_at_the_share_and_the_mean_stays(share):
    torch.manual_seed(0)
    n, rounded = 200_000, round(256 * share) / 256
    stays = dropout(torch.ones(n), share) > 0
    assert abs(stays.double().mean().item() - (1 - rounded)) < 4 * math.sqrt(rounded * (1 - rounded) / n)
    for apart in (1, 4, 8, 64):  # within the draw of eight and across
        pairs = (stays[apart:] & stays[:-apart]).double().mean().item()
        assert abs(pairs - (1 - rounded) ** 2) < 5 / math.sqrt(n)
    torch.testing.assert_close(dropout(torch.ones(5000), share).unique(), torch.tensor([0.0, 1 / (1 - rounded)]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_and_memory_are_those_of_the_product(layout, dtype):
    h = torch.randn(3, 5, 7, 9, dtype=dtype).to(memory_format=layout).requires_grad_()
    y = dropout(h, 0.25)
    (slope,) = torch.autograd.grad(y.sum(), h)
    assert (y.dtype, y.stride()) == (h.dtype, h.stride())
    torch.testing.assert_close(y, h * slope)
    assert set(slope.unique().tolist()) == {0.0, torch.tensor(4 / 3, dtype=dtype).item()}


def test_nothing_is_dropped_where_nothing_should_be():
    h = torch.randn(4, 6)
    assert dropout(h, 0.5, False) is h
    assert torch.equal(dropout(h, 0.0), h)
    assert torch.equal(dropout(h, 1.0), torch.zeros(4, 6))
    assert dropout(torch.empty(0, 3), 0.5).shape == (0, 3)


def test_a_seed_repeats_it():
    h = torch.ones(100)
    first, second = (torch.manual_seed(7) and dropout(h, 0.5) for _ in range(2))
    assert torch.equal(first, second)
