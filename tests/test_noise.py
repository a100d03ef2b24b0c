"""Noise depends on (seed, row content, draw) and nothing else; kinds compose; bits print with their kind."""

import math

import pytest
import torch

from likely.logprob import LogProb, bits, compose, format_bits
from likely.noise import Noise, log_mean_exp, row_hash, seeded
from likely.space import Space


def test_noise_of_a_row_does_not_depend_on_its_batch():
    x = torch.randint(0, 9, (20, 5))
    together = Noise(x, 3, seed=1).normal(4).view(3, 20, 4)
    alone = Noise(x[7:8], 3, seed=1).normal(4).view(3, 1, 4)
    assert torch.equal(together[:, 7:8], alone)


def test_noise_differs_by_seed_row_draw_and_call():
    x = torch.arange(10)[:, None]
    noise = Noise(x, 2, seed=0)
    first, second = noise.uniform(3), noise.uniform(3)
    values = torch.cat([first, second, Noise(x, 2, seed=1).uniform(3)]).flatten()
    assert len(values.unique()) == len(values)


def test_more_draws_keep_the_earlier_ones():
    x = torch.arange(4)[:, None]
    assert torch.equal(Noise(x, 5, seed=0).uniform(3)[:8], Noise(x, 2, seed=0).uniform(3))


@pytest.mark.parametrize("seed", [None, 0, 12345, -3])
def test_noise_has_the_right_moments(seed):
    noise = Noise(torch.arange(50)[:, None], 10, seed=seed)
    u, z = noise.uniform(200), noise.normal(200)
    assert u.min() > 0
    assert u.max() < 1
    assert u.mean().item() == pytest.approx(0.5, abs=0.005)
    assert u.var().item() == pytest.approx(1 / 12, abs=0.002)
    assert z.mean().item() == pytest.approx(0, abs=0.015)
    assert z.var().item() == pytest.approx(1, abs=0.03)
    assert (z**4).mean().item() == pytest.approx(3, abs=0.2)


def test_hash_sees_order_and_value():
    x = torch.tensor([[1, 2], [2, 1], [1, 3], [1, 2]])
    h = row_hash(x)
    assert h[0] == h[3]
    assert len(h[:3].unique()) == 3


def test_seeded_restores_what_was_there():
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    with seeded(99):
        torch.rand(10)
    assert torch.equal(torch.rand(3), want)


def test_log_mean_exp_joins_draws():
    nats = torch.randn(6, dtype=torch.float64)
    torch.testing.assert_close(log_mean_exp(nats, 3), nats.view(3, 2).exp().mean(0).log())


def test_kinds_compose_to_the_weakest():
    assert compose("exact", "exact") == "exact"
    assert compose("exact", "numerical") == "numerical"
    assert compose("numerical", "lower bound") == "lower bound"
    assert compose("lower bound", "estimate") == "estimate"
    one, two = LogProb(torch.ones(2), "exact", how="a"), LogProb(torch.ones(2), "lower bound", torch.full((2,), 3.0), how="b")
    both = one + two
    assert both.kind == "lower bound"
    assert both.how == "a; b"
    assert both.nats.tolist() == [2.0, 2.0]


def test_bits_have_unit_kind_error_and_number():
    result = bits(LogProb(torch.full((10,), -math.log(17) * 64, dtype=torch.float64), "lower bound"), Space.grid(1, 8, 8, 17))
    assert result.value == pytest.approx(math.log2(17))
    assert result.n == 10
    assert result.stderr == pytest.approx(0, abs=1e-12)
    assert str(result).startswith("<= 4.087")
    assert str(result).endswith("bits/dim")
    assert format_bits(1.5, "exact") == "= 1.500"
    assert format_bits(1.5, "estimate", 0.25) == "~ 1.500 +- 0.250"


def test_the_error_of_a_shared_log_z_does_not_average_out():
    estimate = LogProb(torch.zeros(1000, dtype=torch.float64), "estimate", stderr=torch.full((1000,), 2.0))
    assert bits(estimate, Space.reals(1)).stderr == pytest.approx(2.0)
