"""Boxes of an adaptive histogram: they tile the cube, their density sums to one, what is drawn and filled follows it."""

import math

import pytest
import torch

from likely.dataset import Split
from likely.families import build
from likely.noise import seeded
from likely.solve.partition import Partition
from likely.space import Space


@pytest.fixture(autouse=True)
def _seed():
    with seeded(0):
        yield


def _related(n):
    """Points of the unit square near its diagonal."""
    w = torch.rand(n, 1, dtype=torch.float64)
    return ((torch.cat([w, w], 1) + 0.05 * torch.randn(n, 2, dtype=torch.float64)) % 1.0).clamp(0, 1 - 1e-9)


def _fitted(labels=1):
    part, w, y = Partition(labels, 2), _related(3000), torch.randint(0, labels, (3000,))
    part.fit(w[:2500], y[:2500], w[2500:], y[2500:])
    return part


@pytest.mark.parametrize("labels", [1, 2])
def test_boxes_tile_the_cube_and_hold_all_mass(labels):
    part = _fitted(labels)
    volume = (part.high - part.low).prod(1)
    assert len(volume) > 8
    assert volume.sum().item() == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(part.log_share.exp().sum(1), torch.ones(labels, dtype=torch.float64))
    anywhere = torch.rand(2000, 2, dtype=torch.float64)
    inside = (part.low <= anywhere[:, None]) & (anywhere[:, None] < part.high)
    assert (inside.all(2).sum(1) == 1).all()
    for y in range(labels):  # the density is flat in a box
        density = part.log_density((part.low + part.high) / 2, torch.full((len(volume),), y)).exp()
        assert (density * volume).sum().item() == pytest.approx(1.0, abs=1e-9)


def test_unrelated_entries_want_one_box():
    part, w, y = Partition(1, 2), torch.rand(2000, 2, dtype=torch.float64), torch.zeros(2000, dtype=torch.int64)
    part.fit(w[:1500], y[:1500], w[1500:], y[1500:])
    assert len(part.low) <= 4


def test_what_is_unknown_follows_the_density_along_the_known():
    part, n = _fitted(), 20_000
    w = torch.tensor([[0.3, 0.0]], dtype=torch.float64).expand(n, -1)
    label = torch.zeros(n, dtype=torch.int64)
    drawn = part.draw(w, torch.tensor([[True, False]]).expand(n, -1), label)
    assert (drawn[:, 0] == 0.3).all()
    line = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    p = part.log_density(torch.stack([torch.full_like(line, 0.3), line], 1), label[:64]).exp()
    p = p / p.sum()
    count = torch.bincount((drawn[:, 1] * 64).long(), minlength=64)
    assert ((count - n * p).square() / (n * p)).sum().item() < 63 + 5 * math.sqrt(2 * 63)


def test_a_histogram_of_two_reals_beats_independent_ones():
    z = torch.randn(2000, 1)
    x = torch.cat([z, z + 0.3 * torch.randn(2000, 1)], 1)
    space, splits = Space.reals(2).standardised(x[:1400]), (x[:1400], x[1400:1600])
    models = {name: build(name, space, size="tiny") for name in ("histogram", "independent")}
    for model in models.values():
        model.solve(*(Split(part).batches() for part in splits))
    nats = {name: model.log_prob(x[1600:]).nats.mean().item() for name, model in models.items()}
    assert nats["histogram"] > nats["independent"] + 0.3
    drawn = models["histogram"].sample(4000)
    assert torch.corrcoef(drawn.clamp(-5, 5).T)[0, 1].item() > 0.8
    filled = models["histogram"].fill(torch.tensor([[1.5, 0.0]]), torch.tensor([[True, False]]), draws=500)
    assert filled.exact
    assert filled.x[..., 1].median().item() == pytest.approx(1.5, abs=0.4)


def test_quantiles_undo_the_distribution_function():
    x = torch.randn(500, 2)
    model = build("histogram", Space.reals(2).standardised(x), size="tiny")
    model.solve(Split(x[:400]).batches(), Split(x[400:]).batches())
    w, label = torch.rand(300, 2, dtype=torch.float64), torch.zeros(300, dtype=torch.int64)
    torch.testing.assert_close(model.bins.cdf(model.bins.quantile(w, label), label), w)
