r"""Where to cut numbers into boxes: the cells of an adaptive histogram of few dimensions.

Boxes are halved, one after another, at the median of what they hold if entries were independent, in the dimension that gains
most log-likelihood of the training split,

    n_l log n_l / (n v) + n_u log n_u / (n (1 - v)),      v the share of the lower half's mass if entries were independent

A decimal is cut at a whole position, so that each of its values lies in one box.

References:
    | Density estimation trees (Ram and Gray, 2011) | https://doi.org/10.1145/2020408.2020507
    | Multivariate density estimation by Bayesian sequential partitioning (Lu et al., 2013) | https://doi.org/10.1080/01621459.2013.813389
"""

import heapq
import math
from typing import NamedTuple

import torch
from torch import Tensor

from likely.solve.bins import Axes

__all__ = ["Cut", "box_of", "corners", "halvings"]

_MOST = 4096  # boxes
_FEW = 4  # examples; fewer say nothing about where to halve
_THIN = 1e-9  # share of its box that a half has at least: differences of less are lost to rounding
_ELEMENTS = 2**24  # of the largest table of examples x boxes x dimensions


class Cut(NamedTuple):
    """Box number `box` is halved at a position of one dimension; the upper half is a new box, the last."""

    box: int
    dim: int
    at: float


class _Box(NamedTuple):
    """Which examples are in a box, its corners, and P(entry < corner) of each dimension."""

    rows: Tensor
    low: Tensor
    high: Tensor
    below: Tensor
    above: Tensor


def halvings(position: Tensor, axes: Axes) -> list[Cut]:
    """Cuts for positions [n, D], the most gainful next, until boxes hold a few examples or are many."""
    boxes, cuts = [_whole(position)], list[Cut]()
    waiting = [(*_best(position, boxes[0], axes), 0)]
    while waiting and len(boxes) < _MOST:
        loss, dim, at, share, box = heapq.heappop(waiting)
        if not math.isfinite(loss):
            break
        boxes[box], other = _halved(boxes[box], position, dim, at, share)
        boxes.append(other)
        cuts.append(Cut(box, dim, at))
        for i in (box, len(boxes) - 1):
            heapq.heappush(waiting, (*_best(position, boxes[i], axes), i))
    return cuts


def corners(cuts: list[Cut], dims: int) -> tuple[Tensor, Tensor]:
    """Lower and upper corners [boxes, dims] after so many cuts; those of everything are infinite."""
    low, high = [[-math.inf] * dims], [[math.inf] * dims]
    for box, d, at in cuts:
        low.append([*low[box][:d], at, *low[box][d + 1 :]])
        high.append(list(high[box]))
        high[box][d] = at
    return torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)


def box_of(position: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Number of the box that each position [B, D] is in."""
    size = max(1, _ELEMENTS // low.numel())
    return torch.cat([((low <= part[:, None]) & (part[:, None] < high)).all(2).int().argmax(1) for part in position.split(size)])


def _whole(position: Tensor) -> _Box:
    zero = torch.zeros(position.shape[1], dtype=torch.float64)
    return _Box(torch.arange(len(position)), zero - math.inf, zero + math.inf, zero, zero + 1)


def _halved(box: _Box, position: Tensor, dim: int, at: float, share: float) -> tuple[_Box, _Box]:
    """Both halves; `share` is P(entry < at)."""
    upper = position[box.rows, dim] >= at
    low, high, below, above = (v.clone() for v in box[1:])
    high[dim], above[dim], low[dim], below[dim] = at, share, at, share
    return _Box(box.rows[~upper], box.low, high, box.below, above), _Box(box.rows[upper], low, box.high, below, box.above)


def _best(position: Tensor, box: _Box, axes: Axes) -> tuple[float, int, float, float]:
    """(minus the gain in nats, dimension, position, P(entry < position)) of a box's best halving; no gain is infinite loss."""
    n = len(box.rows)
    if n < _FEW:
        return math.inf, 0, 0.0, 0.0
    at = axes.edge_near(axes.quantile(((box.below + box.above) / 2)[None])[0], box.low)
    share = axes.below(at[None])[0]
    lower = ((share - box.below) / (box.above - box.below)).clamp(0.0, 1.0)
    upper = (position[box.rows] >= at).sum(0).double()
    gain = torch.special.xlogy(n - upper, (n - upper) / (n * lower)) + torch.special.xlogy(upper, upper / (n * (1 - lower)))
    fair = (lower > _THIN) & (lower < 1 - _THIN) & (at > box.low) & (at < box.high)
    dim = int(gain.masked_fill(~fair, -math.inf).argmax())
    return (-gain[dim].item() if bool(fair[dim]) else math.inf), dim, at[dim].item(), share[dim].item()
