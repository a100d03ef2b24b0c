r"""Boxes of numbers together, over the bins of each alone: an adaptive joint histogram, exact on grids and on reals.

    p(x | y) = prod_e p_e(x_e | y) share_y(box of x) / volume_y(box),      volume_y = prod_e P_e(low_e <= entry < high_e | y)

Each value lies in one box, so within a box the entries are independent, each as it is alone but confined to the box: the sum (of
reals, the integral) over a box is its share, and over all boxes 1. A missing cell is the last value of its entry, past all numbers.

    share = (counts + a expected) / (n + a)

with `expected` the volume; of several labels, each leans on how all of them depart from their volumes together. How many boxes there
are, one among them, and a, is what the validation split says. The boxes' cuts are those of `solve.partition`.

The code of a row is that of its box, and of each entry within it, as long as -log2 p.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from likely.coding import Codec, Stack, categorical
from likely.solve.labels import shrink
from likely.solve.marginals import Bins, Labelled
from likely.solve.partition import box_of, corners, halvings

__all__ = ["Boxes"]

_PSEUDO = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # a
_ELEMENTS = 2**23  # of the largest table of examples x boxes x dimensions


class Boxes(nn.Module):
    """Boxes [M, D] with lower and upper corners, log shares and log volumes [labels, M]; one box of everything at first.

    Entries [B, D] are those of `bins`, in data units.
    """

    low: Tensor
    high: Tensor
    log_share: Tensor
    log_volume: Tensor

    def __init__(self, labels: int, dims: int) -> None:
        super().__init__()
        low, high = corners([], dims)
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.register_buffer("log_share", torch.zeros(labels, 1, dtype=torch.float64))
        self.register_buffer("log_volume", torch.zeros(labels, 1, dtype=torch.float64))

    def log_ratio(self, bins: Bins, x: Tensor, label: Tensor) -> Tensor:
        """log p(x | label) less that of independent entries, nats [B]."""
        box = box_of(bins.encode(x), self.low, self.high)
        return (self.log_share - self.log_volume)[label, box]

    def sample(self, bins: Bins, label: Tensor) -> Tensor:
        """One row for each label."""
        box = torch.multinomial(self.log_share.exp()[label], 1)[:, 0]
        out = torch.empty(len(label), self.low.shape[1], dtype=torch.float64)
        for y, rows in _each(label):
            below, above = self._reach(bins, y, box[rows])
            out[rows] = bins.axes(y).quantile(below + torch.rand_like(below) * (above - below))
        return bins.decode(out)

    def fill(self, bins: Bins, x: Tensor, known: Tensor, label: Tensor) -> Tensor:
        """Rows whose entries that are not `known` are drawn given those that are, none as missing."""
        out = torch.empty(x.shape, dtype=torch.float64)
        for y, rows in _each(label):
            below, above = self._reach(bins, y, torch.arange(len(self.low)))
            for some in rows.split(max(1, _ELEMENTS // self.low.numel())):
                out[some] = self._filled(bins, bins.encode(x[some]), known[some], y, below, above)
        return torch.where(known, x, bins.decode(out))

    def _filled(self, bins: Bins, position: Tensor, known: Tensor, y: int, below: Tensor, above: Tensor) -> Tensor:
        axes = bins.axes(y)
        there = torch.minimum(above, axes.there).clamp_min(below)
        inside = ((self.low <= position[:, None]) & (position[:, None] < self.high)) | ~known[:, None]
        each = torch.where(known[:, None], 1.0, there - below).log().sum(2) - self.log_volume[y]
        box = torch.multinomial((self.log_share[y] + each).masked_fill(~inside.all(2), -math.inf).softmax(1), 1)[:, 0]
        return axes.quantile(below[box] + torch.rand_like(position) * (there - below)[box])

    def _reach(self, bins: Bins, y: int, box: Tensor) -> tuple[Tensor, Tensor]:
        """P(entry < corner | y) of the boxes' corners [boxes, D]."""
        axes = bins.axes(y)
        return axes.below(self.low[box]), axes.below(self.high[box])

    def codec(self, bins: Bins, label: Tensor) -> Codec:
        """The box is coded, then the bin of each entry within it, then where in the bin; label [1] or [rows].

        Raises: UsageError for reals, which have no mass.
        """
        edges, boxes = bins.whole_edges(), categorical(self.log_share[label][:, None])
        low = torch.where(self.low.isinf(), edges[:, 0], self.low.nan_to_num(neginf=0.0).long())
        high = torch.where(self.high.isinf(), edges[:, -1], self.high.nan_to_num(posinf=0.0).long())

        def cells(box: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
            """Where each entry's bin begins within the box, and how many values it has there [rows, D]."""
            entry = torch.arange(len(edges))
            begin, end = torch.maximum(edges[entry, place], low[box]), torch.minimum(edges[entry, place + 1], high[box])
            return begin, end - begin

        def which(box: Tensor) -> Codec:
            """Bins of each entry within the box of each row."""
            begin, end = torch.maximum(edges[:, :-1], low[box][..., None]), torch.minimum(edges[:, 1:], high[box][..., None])
            share = ((end - begin).clamp_min(0).double() / edges.diff()).nan_to_num(0.0)  # of an empty bin nothing
            return categorical(bins.counts.log_p[label] + share.log())

        def push(stack: Stack, x: Tensor) -> None:
            position = bins.encode(x)
            box, at = box_of(position, self.low, self.high), position.long()
            place = torch.searchsorted(edges, at.T.contiguous(), right=True).T - 1
            begin, size = cells(box, place)
            stack.push_uniform((at - begin).flatten(), size.flatten())
            which(box).push(stack, place)
            boxes.push(stack, box[:, None])

        def pop(stack: Stack, n: int) -> Tensor:
            box = boxes.pop(stack, n)[:, 0]
            begin, size = cells(box, which(box).pop(stack, n))
            return bins.decode(begin + stack.pop_uniform(size.flatten()).view(begin.shape))

        return Codec(push, pop)

    def fit(self, bins: Bins, train: Labelled, valid: Labelled) -> None:
        """Fit to batches of (entries, label) of both splits, once `bins` are; a single box is among what is tried."""
        (mine, label), (theirs, held) = (_gathered(bins, split) for split in (train, valid))
        labels, best = len(self.log_share), -math.inf
        often = torch.bincount(label, minlength=labels).double() / len(label)
        cuts = halvings(mine, bins.pooled_axes(often))
        for boxes in [2**i for i in range((len(cuts) + 1).bit_length())]:
            low, high = corners(cuts[: boxes - 1], mine.shape[1])
            index, where = label * boxes + box_of(mine, low, high), box_of(theirs, low, high)
            counts = torch.bincount(index, minlength=labels * boxes).view(labels, boxes).double()
            volume = torch.stack([(axes.below(high) - axes.below(low)).prod(1) for axes in map(bins.axes, range(labels))])
            log_volume = volume.clamp_min(torch.finfo(volume.dtype).tiny).log()
            for pseudo in _PSEUDO:
                log_share = _shares(counts, volume, often, pseudo).log()
                score = (log_share - log_volume)[held, where].mean().item()
                if score > best:
                    best, self.low, self.high, self.log_share, self.log_volume = score, low, high, log_share, log_volume


def _shares(counts: Tensor, volume: Tensor, often: Tensor, pseudo: float) -> Tensor:
    """Shares [labels, boxes] of counts; a label of none departs from its volumes as all labels do together."""
    expected = often @ volume
    together = shrink(counts.sum(0), expected, pseudo)
    if len(counts) == 1:
        return together[None]
    prior = volume * together / expected
    return shrink(counts, prior / prior.sum(1, keepdim=True), pseudo)


def _gathered(bins: Bins, batches: Labelled) -> tuple[Tensor, Tensor]:
    """All positions [n, D], and their labels."""
    parts = [(bins.encode(x), label) for x, label in batches]
    return torch.cat([x for x, _ in parts]), torch.cat([label for _, label in parts])


def _each(label: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(label, its rows)."""
    for y in label.unique().tolist():
        yield y, (label == y).nonzero()[:, 0]
