r"""Sets of points in the plane to try models of sets on.

swarms     3 to 10 points about a centre of their own: c ~ N(0, I), points ~ N(c, 0.3^2 I). Given their number points are jointly
           normal with covariance 0.3^2 on the diagonal and 1 everywhere, so that the density of a set is known:
           log p = log 1/8 + log n! + log N(points)
circles    6 to 16 points evenly about a circle of their own, radius 0.5 to 1.5 about c ~ N(0, I), turned, with noise of 0.05
"""

import math

import numpy as np
import torch
from torch import Tensor

from likely import pointsets
from likely.dataset import Truth
from likely.sources.examples import Examples, Options
from likely.space import Space

__all__ = ["circles", "swarms"]

_SPREAD, _LEAST, _MOST = 0.3, 3, 10


def swarms(options: Options) -> Examples:
    """Sets of 3 to 10 points about a centre of their own, 10,000 unless `count` says otherwise."""
    n, g = options.count or 10_000, np.random.default_rng(options.seed)
    points = g.normal(size=(n, 1, 2)) + _SPREAD * g.normal(size=(n, _MOST, 2))
    x = pointsets.padded(torch.from_numpy(points).float(), torch.from_numpy(g.integers(_LEAST, _MOST + 1, n)))
    entropy = float(np.mean([_swarm_entropy(k) for k in range(_LEAST, _MOST + 1)])) + math.log(_MOST - _LEAST + 1)
    return Examples(Space.points(_MOST, 2, variable=True), x, truth=Truth(swarm_log_prob, entropy), notes={"drawn": n})


def swarm_log_prob(x: Tensor) -> Tensor:
    """Of sets [batch, N, 2] padded with NaN, nats: by the mean of the points and what they are off it."""
    n, points = pointsets.counts(x).double(), x.double()
    mean = points.nanmean(1)
    around = (points - mean[:, None]).square().nansum((1, 2)) / _SPREAD**2
    volume = n * math.log(2 * math.pi) + (n - 1) * math.log(_SPREAD**2) + (_SPREAD**2 + n).log()  # of each of the two dimensions
    nats = -0.5 * (around + n * mean.square().sum(1) / (_SPREAD**2 + n)) - volume
    known = (n >= _LEAST) & (n <= _MOST)
    return torch.where(known, nats + torch.lgamma(n + 1) - math.log(_MOST - _LEAST + 1), -math.inf)


def _swarm_entropy(n: int) -> float:
    """Of the points of a set of n, whose order does not count."""
    volume = n * math.log(2 * math.pi * math.e) + (n - 1) * math.log(_SPREAD**2) + math.log(_SPREAD**2 + n)
    return volume - math.lgamma(n + 1)


def circles(options: Options) -> Examples:
    """Sets of 6 to 16 points about a circle of their own, 10,000 unless `count` says otherwise."""
    n, g = options.count or 10_000, np.random.default_rng(options.seed)
    counts = g.integers(6, 17, n)
    angle = 2 * np.pi * (np.arange(16) / counts[:, None] + g.random((n, 1)))
    radius = g.uniform(0.5, 1.5, (n, 1, 1))
    points = g.normal(size=(n, 1, 2)) + radius * np.stack([np.cos(angle), np.sin(angle)], 2) + 0.05 * g.normal(size=(n, 16, 2))
    return Examples(Space.points(16, 2, variable=True), pointsets.padded(torch.from_numpy(points).float(), torch.from_numpy(counts)))
