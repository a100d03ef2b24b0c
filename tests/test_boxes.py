"""Boxes of numbers: they tile the axes, their mass sums to one on grids without an end, what is drawn, filled and coded follows it."""

import math

import pytest
import torch

from likely.coding import Stack
from likely.dataset import Split
from likely.families import build
from likely.noise import seeded
from likely.solve.bins import Axes
from likely.solve.labels import label_of
from likely.solve.partition import box_of, corners, halvings
from likely.space import MISSING, Space, Support, from_grid, to_grid


@pytest.fixture(autouse=True)
def _seed():
    with seeded(0):
        yield


def _fitted(space, x, given=None, label=None, name="histogram"):
    model, cut = build(name, space.standardised(x), given=given, size="tiny"), 3 * len(x) // 4
    parts = [Split(x[s], None if label is None else label[s]).batches() for s in (slice(0, cut), slice(cut, None))]
    model.solve(*parts)
    return model


def _decimals(n, missing=False):
    """A line and its noise; the second number is 0 half of the time, and may be missing."""
    a = torch.randint(0, 12, (n,))
    b = torch.where(torch.rand(n) < 0.5, 0, 2 * a + torch.randint(-1, 2, (n,)))
    x = from_grid(torch.stack([a, b], 1))
    if missing:
        x[torch.rand(n) < 0.2, 1] = MISSING
    return Space.columns(Support("decimal"), Support("decimal", missing=missing)), x


def _window(reach, missing):
    """All values up to so far from 0, and a missing cell."""
    line = from_grid(torch.arange(-reach, reach))
    return torch.cartesian_prod(line, torch.cat([line, torch.tensor([MISSING])]) if missing else line)


def _label(n):
    return torch.randint(0, 2, (n, 1))


# -- the partition ------------------------------------------------------------------------------


def test_boxes_tile_the_axes():
    edges = torch.linspace(0, 1, 65, dtype=torch.float64).expand(2, -1).contiguous()
    axes = Axes.of(edges, torch.full((2, 64), 1 / 64, dtype=torch.float64), torch.tensor([False, False]))
    w = torch.rand(3000, 1, dtype=torch.float64)
    near = (torch.cat([w, w], 1) + 0.05 * torch.randn(3000, 2, dtype=torch.float64)) % 1.0
    low, high = corners(halvings(near, axes), 2)
    assert len(low) > 64
    anywhere = torch.rand(2000, 2, dtype=torch.float64)
    inside = (low <= anywhere[:, None]) & (anywhere[:, None] < high)
    assert (inside.all(2).sum(1) == 1).all()
    assert torch.equal(inside.all(2).int().argmax(1), box_of(anywhere, low, high))
    assert (axes.below(high) - axes.below(low)).prod(1).sum().item() == pytest.approx(1, abs=1e-12)


def test_quantiles_undo_the_distribution_function():
    model = _fitted(Space.reals(2), torch.randn(500, 2))
    axes, w = model.bins.axes(0), torch.rand(300, 2, dtype=torch.float64)
    torch.testing.assert_close(axes.below(axes.quantile(w)), w)
    assert torch.equal(
        axes.below(torch.tensor([[-math.inf, math.inf]], dtype=torch.float64)).round(decimals=12), torch.tensor([[0.0, 1.0]])
    )


def test_unrelated_entries_want_one_box():
    space = Space.columns(Support("decimal"), Support("decimal"))
    assert len(_fitted(space, from_grid(torch.randint(0, 40, (2000, 2)))).boxes.low) <= 4


def test_decimals_are_cut_between_their_values_and_atoms_stay_whole():
    space, x = _decimals(4000, missing=True)
    boxes = _fitted(space, x).boxes
    assert len(boxes.low) > 8
    ends = torch.cat([boxes.low, boxes.high])
    assert torch.equal(ends[ends.isfinite()], ends[ends.isfinite()].round())
    assert (boxes.high > boxes.low).all()


# -- mass ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("labels", [1, 2])
def test_masses_of_an_unbounded_grid_sum_to_one(labels, missing):
    """Over a window of the grid, beyond which little is left; over the boxes, exactly."""
    space, x = _decimals(3000, missing)
    given, label = (Space.label(2), _label(3000)) if labels == 2 else (None, None)
    if label is not None:
        x[label[:, 0] == 1, 0] = from_grid(to_grid(x[label[:, 0] == 1, 0]) + 5)
    model = _fitted(space, x, given, label)
    assert len(model.boxes.low) > 8
    window = _window(250, missing)
    for y in range(labels):
        nats = model.log_prob(window, None if given is None else torch.full((len(window), 1), y)).nats
        assert nats.logsumexp(0).exp().item() == pytest.approx(1, abs=1e-4)  # a tail beyond k units has a share of k**-2
        share, volume = model.boxes.log_share[y].exp(), model.boxes.log_volume[y].exp()
        assert share.sum().item() == pytest.approx(1, abs=1e-12)
        assert volume.sum().item() == pytest.approx(1, abs=1e-9)


def test_each_box_has_its_share_to_the_last_digit():
    """Boxes that end: the sum of the masses of their values is their share."""
    space, x = _decimals(3000)
    model = _fitted(space, x)
    boxes, window = model.boxes, _window(80, False)
    where, p = box_of(model.bins.encode(window), boxes.low, boxes.high), model.log_prob(window).nats.exp()
    held = torch.zeros(len(boxes.low), dtype=torch.float64).index_add(0, where, p)
    ended = (boxes.low.isfinite() & boxes.high.isfinite()).all(1)
    assert ended.sum() > 4
    torch.testing.assert_close(held[ended], boxes.log_share[0, ended].exp(), rtol=1e-9, atol=0)


def test_decimals_beside_names_and_gaps_sum_to_one():
    n, (space, x) = 2000, _decimals(2000, missing=True)
    job = (to_grid(x[:, 0]) > 5).long()[:, None]
    model = _fitted(Space.columns(space.supports[0], Support("nominal", 2), space.supports[1]), torch.cat([x[:, :1], job, x[:, 1:]], 1))
    window = _window(250, True)
    both = [torch.cat([window[:, :1], torch.full((len(window), 1), k), window[:, 1:]], 1) for k in range(2)]
    assert torch.cat([model.log_prob(rows).nats for rows in both]).logsumexp(0).exp().item() == pytest.approx(1, abs=1e-4)
    assert len(model.sample(n)) == n


@pytest.mark.parametrize("real", [False, True])
def test_boxes_beat_independent_entries_where_numbers_are_related(real):
    z = torch.randn(3000, 1)
    x = torch.cat([z, z + 0.3 * torch.randn(3000, 1)], 1)
    space = Space.reals(2) if real else Space.columns(Support("decimal"), Support("decimal"))
    x = x if real else from_grid((10 * x).round().long())
    models = {name: _fitted(space, x[:2200], name=name) for name in ("histogram", "independent")}
    nats = {name: model.log_prob(x[2200:]).nats.mean().item() for name, model in models.items()}
    assert nats["histogram"] > nats["independent"] + 0.3
    drawn = models["histogram"].sample(4000)
    value = drawn.clamp(-5, 5) if real else to_grid(drawn).double().clamp(-50, 50)
    assert torch.corrcoef(value.T)[0, 1].item() > 0.8


# -- what is drawn, filled and coded ------------------------------------------------------------


def _follows(drawn, log_p, key):
    """Chi-square of draws against masses, values of few expected draws pooled."""
    p, count = log_p.exp(), torch.bincount(key, minlength=len(log_p)).double()
    often = p * len(drawn) > 8
    p, count = (torch.cat([v[often], v[~often].sum()[None]]) for v in (p, count))
    p[-1] = 1 - p[:-1].sum()
    wanted = p.clamp_min(1e-12) * len(drawn)
    degrees = int((wanted > 0.5).sum()) - 1
    assert ((count - wanted).square() / wanted.clamp_min(0.5)).sum().item() < degrees + 5 * math.sqrt(2 * degrees)


def test_what_is_drawn_follows_the_mass():
    space, x = _decimals(3000, missing=True)
    model, window = _fitted(space, x), _window(60, True)
    drawn = model.sample(20_000)
    same = {tuple(row): i for i, row in enumerate(window.tolist())}
    drawn = [same[row] for row in map(tuple, drawn.tolist()) if row in same]
    nats = model.log_prob(window).nats
    _follows(drawn, nats - nats.logsumexp(0), torch.tensor(drawn))


@pytest.mark.parametrize("labels", [1, 2])
def test_what_is_filled_follows_the_conditional(labels):
    """Given one number the other is drawn from p(other | it, and that it is there): closed form by enumeration."""
    space, x = _decimals(3000, missing=True)
    given, label = (Space.label(2), _label(3000)) if labels == 2 else (None, None)
    model, n = _fitted(space, x, given, label), 10_000
    line = from_grid(torch.arange(-200, 200))
    for known, value in ((0, 5), (1, 0), (1, MISSING)):
        rows = torch.full((len(line), 2), 0)
        rows[:, known], rows[:, 1 - known] = value, line
        nats = model.log_prob(rows, None if given is None else torch.full((len(line), 1), 1)).nats
        mask = torch.tensor([[known == 0, known == 1]])
        filled = model.fill(torch.full((1, 2), value), mask, None if given is None else torch.tensor([[1]]), draws=n)
        assert filled.exact
        assert (filled.x[..., known] == value).all()
        other = to_grid(filled.x[:, 0, 1 - known])
        assert (filled.x[:, 0, 1 - known] != MISSING).all()
        inside = (other >= -200) & (other < 200)
        _follows(other[inside].tolist(), nats - nats.logsumexp(0), other[inside] + 200)


@pytest.mark.parametrize("labels", [1, 2])
def test_the_code_of_boxes_is_as_long_as_it_says(labels):
    space, x = _decimals(3000, missing=True)
    given, label = (Space.label(2), _label(3000)) if labels == 2 else (None, None)
    model = _fitted(space, x, given, label)
    rows = torch.cat([x[:500], from_grid(torch.tensor([[10**12, -(10**9)], [-5, 77_777_777]])), torch.tensor([[3, MISSING]])])
    y = None if label is None else torch.cat([label[:500], torch.ones(3, 1, dtype=torch.int64)])
    stack, codec = Stack(), model.codec(y)
    model.codec(None if y is None else y[:500]).push(stack, rows[:500])
    said = -model.log_prob(rows[:500], None if y is None else y[:500]).nats.sum().item() / math.log(2)
    assert stack.claim == pytest.approx(said, rel=1e-3, abs=1)
    assert len(stack) <= said * 1.001 + 128
    assert torch.equal(codec.decompress(codec.compress(rows), len(rows)), rows)


def test_reals_have_no_code():
    with pytest.raises(Exception, match="have a density and cannot be coded"):
        build("histogram", Space.reals(2)).codec()


def test_labels_that_are_rare_lean_on_how_all_depart_from_independence():
    """A label of three examples has the correlation of the others, around its own marginals."""
    space, x = _decimals(3000)
    label = (torch.arange(3000) % 500 == 0).long()[:, None]
    model = _fitted(space, x, Space.label(2), label)
    near, far = from_grid(torch.tensor([[6, 12]])), from_grid(torch.tensor([[6, 20]]))
    ratio = [
        model.boxes.log_ratio(model.bins, row, label_of(Space.label(2), torch.ones(1, 1, dtype=torch.int64), 1)).item()
        for row in (near, far)
    ]
    assert ratio[0] > ratio[1] + 0.5
