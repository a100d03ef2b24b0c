r"""A partition of the unit cube into boxes, and the share of examples in each: an adaptive histogram of few dimensions.

    p(w | y) = share_y(box of w) / volume(box),      share = (counts + a volume) / (n + a)

Boxes are halved, one after another, in the dimension that gains most log-likelihood of the training split; how
many there are, and a, is what the validation split says. A label's shares shrink to those of all labels.

References:
    | Density estimation trees (Ram and Gray, 2011) | https://doi.org/10.1145/2020408.2020507
    | Multivariate density estimation by Bayesian sequential partitioning (Lu et al., 2013) | https://doi.org/10.1080/01621459.2013.813389
"""

import heapq
import math

import torch
from torch import Tensor, nn

from likely.solve.labels import shrink

__all__ = ["Partition"]

_MOST = 4096  # boxes
_FEW = 4  # examples; fewer say nothing about where to halve
_PSEUDO = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # a
_ELEMENTS = 2**24  # of the largest table of examples x boxes x dimensions


class Partition(nn.Module):
    """Boxes [M, D] with lower and upper corners, and log shares [labels, M]; one box of everything at first."""

    low: Tensor
    high: Tensor
    log_share: Tensor

    def __init__(self, labels: int, dims: int) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(1, dims, dtype=torch.float64))
        self.register_buffer("high", torch.ones(1, dims, dtype=torch.float64))
        self.register_buffer("log_share", torch.zeros(labels, 1, dtype=torch.float64))

    def log_density(self, w: Tensor, label: Tensor) -> Tensor:
        """w [B, D] in [0, 1) -> log p(w | label), nats [B]."""
        box = _boxes(w, self.low, self.high)
        return self.log_share[label, box] - (self.high - self.low).log().sum(1)[box]

    def draw(self, w: Tensor, known: Tensor, label: Tensor) -> Tensor:
        """w [B, D] whose entries that are not `known` are drawn given those that are."""
        size = max(1, _ELEMENTS // self.low.numel())
        parts = zip(w.split(size), known.split(size), label.split(size), strict=True)
        return torch.cat([self._drawn(*part) for part in parts])

    def _drawn(self, w: Tensor, known: Tensor, label: Tensor) -> Tensor:
        inside = ((self.low <= w[:, None]) & (w[:, None] < self.high)) | ~known[:, None]
        volume = torch.where(known[:, None], (self.high - self.low).log(), 0.0).sum(2)
        fits = (self.log_share[label] - volume).masked_fill(~inside.all(2), -math.inf)
        box = torch.multinomial(fits.softmax(1), 1)[:, 0]
        drawn = self.low[box] + torch.rand_like(w) * (self.high - self.low)[box]
        return torch.where(known, w, drawn)

    def fit(self, train: Tensor, label: Tensor, valid: Tensor, held: Tensor) -> None:
        """Fit to w [n, D] of both splits and their labels; a single box is among what is tried."""
        halves, labels, best = _halvings(train), len(self.log_share), -math.inf
        for boxes in [2**i for i in range((len(halves) + 1).bit_length())]:
            low, high = _corners(halves[: boxes - 1], train.shape[1])
            mine, theirs = _boxes(train, low, high), _boxes(valid, low, high)
            volume = (high - low).prod(1)
            counts = torch.bincount(label * boxes + mine, minlength=labels * boxes).view(labels, boxes).double()
            for pseudo in _PSEUDO:
                together = shrink(counts.sum(0), volume, pseudo)
                log_share = (shrink(counts, together, pseudo) if labels > 1 else together[None]).log()
                score = (log_share[held, theirs] - volume.log()[theirs]).mean().item()
                if score > best:
                    best, self.low, self.high, self.log_share = score, low, high, log_share


def _boxes(w: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Number of the box that each of w [B, D] is in."""
    size = max(1, _ELEMENTS // low.numel())
    return torch.cat([((low <= part[:, None]) & (part[:, None] < high)).all(2).int().argmax(1) for part in w.split(size)])


def _corners(halves: list[tuple[int, int]], dims: int) -> tuple[Tensor, Tensor]:
    """Boxes after so many halvings (box, dimension); the upper half is a new box, the last."""
    low, high = [[0.0] * dims], [[1.0] * dims]
    for box, d in halves:
        middle = (low[box][d] + high[box][d]) / 2
        low.append([*low[box][:d], middle, *low[box][d + 1 :]])
        high.append(list(high[box]))
        high[box][d] = middle
    return torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)


def _halvings(w: Tensor) -> list[tuple[int, int]]:
    """(box, dimension) of halvings, the most gainful next, until boxes hold a few examples or are many."""
    dims, halves = w.shape[1], []
    boxes = [(torch.arange(len(w)), [0.0] * dims, [1.0] * dims)]
    waiting = [_best(w, *boxes[0], 0)]
    while waiting and len(boxes) < _MOST:
        loss, box, d = heapq.heappop(waiting)
        if not math.isfinite(loss):
            break
        rows, low, high = boxes[box]
        middle = (low[d] + high[d]) / 2
        upper = w[rows, d] >= middle
        boxes[box] = rows[~upper], low, [*high[:d], middle, *high[d + 1 :]]
        boxes.append((rows[upper], [*low[:d], middle, *low[d + 1 :]], high))
        halves.append((box, d))
        for i in (box, len(boxes) - 1):
            heapq.heappush(waiting, _best(w, *boxes[i], i))
    return halves


def _best(w: Tensor, rows: Tensor, low: list[float], high: list[float], box: int) -> tuple[float, int, int]:
    """(minus the gain in nats, box, dimension) of its best halving; infinite where too few examples are left to tell."""
    n = len(rows)
    if n < _FEW:
        return math.inf, box, 0
    middle = (torch.tensor(low, dtype=torch.float64) + torch.tensor(high, dtype=torch.float64)) / 2
    upper = (w[rows] >= middle).sum(0).double()
    gain = torch.special.xlogy(upper, 2 * upper / n) + torch.special.xlogy(n - upper, 2 - 2 * upper / n)
    return -gain.max().item(), box, int(gain.argmax())
