r"""Gaussianise every entry by its own marginal distribution, before anything else is learnt.

For an ordinal entry F is the distribution function of a histogram with one bin per level, so its
density is flat within a cell, as uniform dequantization is: alone, this layer is the histogram model
and its bound is tight. What follows it need only learn how entries depend on each other.

    z = Phi^-1(F(u)),      log dz/du = log f(u) - log N(z)

The counts of the first batch are smoothed towards the channel's pooled histogram m:

    p_k = (n_k + w m_k) / (n + w),     w chosen by the leave-one-out likelihood

References:
    | Iterative Gaussianization: from ICA to random rotations (Laparra et al., 2011) | https://arxiv.org/abs/1602.00229
    | Gaussianization flows (Meng et al., 2020) | https://arxiv.org/abs/2003.01941
"""

import math

import torch
from torch import Tensor

from likely.bijections.base import Bijection, per_example
from likely.bijections.domains import domains
from likely.bijections.tails import tails
from likely.space import Space

__all__ = ["Gaussianise", "histograms", "places_by_grid", "smoothed_histogram"]

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_WEIGHTS = torch.logspace(-1, 4, 21)
_LEVELS_UP_TO = 256  # of an ordinal that has a histogram


def smoothed_histogram(code: Tensor, bins: int) -> Tensor:
    """Probabilities [places, bins] of int codes [batch, places], smoothed towards their pool."""
    counts = torch.stack([(code == k).sum(0) for k in range(bins)], 1).double()
    pooled = (counts.sum(0) + 1 / bins) / (counts.sum() + 1)
    others = (counts - 1).clamp_min(0)  # the other examples' counts, as seen by one of the bin's own

    def left_out(w: float) -> float:
        return (counts * ((others + w * pooled) / (len(code) - 1 + w)).log()).sum().item()

    w = max(_WEIGHTS.tolist(), key=left_out)
    return (counts + w * pooled) / (len(code) + w)


class Gaussianise(Bijection):
    """Phi^-1(F_i(u_i)) for the entries of some channels (axis 1); others pass.

    Args:
        shape: of x.
        channels: those that are ordinals on the same grid.
        levels: their number of levels.
        low, high: where the first level begins and the last ends.
    """

    log_mass: Tensor
    channels: Tensor
    started: Tensor

    def __init__(self, shape: tuple[int, ...], channels: list[int], levels: int, low: float, high: float) -> None:
        super().__init__()
        self.levels, self.low, self.high = levels, low, high
        places = len(channels) * math.prod(shape[1:])
        self.register_buffer("channels", torch.tensor(channels))
        self.register_buffer("log_mass", torch.full((places, levels), -math.log(levels), dtype=torch.float64))
        self.register_buffer("started", torch.zeros(1, dtype=torch.bool))

    @property
    def _log_per_unit(self) -> float:
        return math.log(self.levels / (self.high - self.low))

    def _level(self, x: Tensor) -> Tensor:
        """x [B, places] in levels; it may have been rounded onto an end."""
        place = (x.double() - self.low) * (self.levels / (self.high - self.low))
        return place.clamp(1e-6, self.levels - 1e-6)

    def _log_derivative(self, index: Tensor, z: Tensor) -> Tensor:
        place = torch.arange(len(self.log_mass), device=z.device)
        return self.log_mass[place, index] + self._log_per_unit + 0.5 * z.square() + _LOG_SQRT_2PI

    def _through(self, x: Tensor, y: Tensor) -> Tensor:
        out = x.clone()
        out[:, self.channels] = y.to(x.dtype).view_as(x[:, self.channels])
        return out

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        level = self._level(x[:, self.channels].flatten(1))
        index, place = level.long(), torch.arange(len(self.log_mass), device=x.device)
        mass = self.log_mass.exp()
        # whichever tail is the smaller keeps its digits
        below, above = mass.cumsum(1) - mass, mass.flip(1).cumsum(1).flip(1) - mass
        share, inside = level - index, mass[place, index]
        left, right = below[place, index] + share * inside, above[place, index] + (1 - share) * inside
        z = torch.where(left < right, torch.special.ndtri(left.clamp_max(0.5)), -torch.special.ndtri(right.clamp_max(0.5)))
        return self._through(x, z), per_example(self._log_derivative(index, z))

    def inverse(self, y: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z = y[:, self.channels].flatten(1).double()
        mass = self.log_mass.exp()
        edges = mass.cumsum(1)
        cdf = torch.special.ndtr(z)
        index = torch.searchsorted(edges[:, :-1].contiguous(), cdf.T.contiguous(), right=True).T
        place = torch.arange(len(mass), device=y.device)
        inside = mass[place, index]
        share = ((cdf - (edges[place, index] - inside)) / inside).clamp(0, 1)
        x = self.low + (index + share) * ((self.high - self.low) / self.levels)
        return self._through(y, x), -per_example(self._log_derivative(index, z))

    @torch.no_grad()
    def start(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        if not self.started:
            per_channel = x[:, self.channels].reshape(len(x), len(self.channels), -1).unbind(1)
            masses = [smoothed_histogram(self._level(c).long(), self.levels) for c in per_channel]
            self.log_mass.copy_(torch.cat(masses).log())
            self.started.fill_(True)
        return self(x, given)[0]


def places_by_grid(space: Space, levels_up_to: float = math.inf) -> dict[tuple[int, float, float], list[int]]:
    """Places of complete ordinals among the relaxed channels, by levels, beginning and end: those on the same grid go together."""
    alike: dict[tuple[int, float, float], list[int]] = {}
    for place, i in enumerate(space.numbers):
        s = space.supports[i]
        if s.kind == "ordinal" and not s.missing and s.levels <= levels_up_to:
            alike.setdefault((s.levels, -s.center / s.scale, (s.levels - s.center) / s.scale), []).append(place)
    return alike


def histograms(space: Space, bounds: str = "") -> list[Bijection]:
    """A layer for bounds, if there are, one that Gaussianises complete ordinals of few levels, for each grid that some of them share, and
    one for tails."""
    shape, grids = space.relaxed.shape, places_by_grid(space, _LEVELS_UP_TO)
    return [*domains(space, bounds), *(Gaussianise(shape, places, *grid) for grid, places in grids.items()), *tails(space)]
