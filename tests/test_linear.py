"""Linear bijections: accuracy far out, and ActNorm's start, which is made once."""

import torch
from torch import nn

from likely.bijections import ActNorm, Linear, Orthogonal, Permute


def test_dense_inverse_is_accurate_far_out():
    torch.manual_seed(0)
    linear = Linear(64)
    for p in linear.parameters():
        nn.init.normal_(p, std=0.1)
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


def test_an_orthogonal_map_is_a_rotation_whatever_its_weights():
    torch.manual_seed(0)
    layer = Orthogonal(6).double()
    nn.init.normal_(layer.free, std=3.0)
    weight = layer(torch.eye(6, dtype=torch.float64))[0]
    torch.testing.assert_close(weight @ weight.T, torch.eye(6, dtype=torch.float64), atol=1e-12, rtol=0)


def test_permutations_are_fixed_and_stored():
    x = torch.arange(5.0)[None]
    assert Permute(5, "reverse")(x)[0].tolist() == [[4, 3, 2, 1, 0]]
    layer, twin = Permute(5, "random"), Permute(5, "random")
    twin.load_state_dict(layer.state_dict())
    torch.testing.assert_close(twin.inverse(layer(x)[0])[0], x)
