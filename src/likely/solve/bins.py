"""Adaptive bins for numbers without an end: quantiles inside the data, doubling widths beyond them.

Edges and a prior mass per bin, for one entry. The first and last regular edges are at +-limit,
beyond any number that is stored; one more bin past the limit stands for a missing cell.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from likely.space import Support

__all__ = ["Axes", "adaptive_bins", "limit", "log_widths", "padded"]

_FINEST = 1024  # bins of a real are no narrower than its standard deviation / 1024


def limit(s: Support) -> float:
    """Where the axis of edges ends: beyond all decimals of 15 digits, beyond all of float32."""
    return 2.0**60 if s.kind == "decimal" else 2.0**128


def adaptive_bins(values: Tensor, s: Support, count: int) -> tuple[Tensor, Tensor]:
    """About `count` bins at quantiles of `values` [n] and doubling ones beyond -> edges [M + 1], prior [M], float64.

    Each bin among the data, each tail and a missing cell have equal mass in the prior. Outwards, a
    tail's bins double in width and fall to a quarter in mass: a density of |x|^-3.
    """
    values = values.double().sort().values
    if len(values) == 0:
        values = torch.tensor([s.center], dtype=torch.float64).floor()
    inner = _decimal_edges(values, count) if s.kind == "decimal" else _real_edges(values, s, count)
    end = limit(s)
    unit = max(1.0, math.floor(s.scale)) if s.kind == "decimal" else s.scale
    reach = unit * (torch.exp2(torch.arange(1, 300, dtype=torch.float64)) - 1)
    below, above = inner[0] - reach, inner[-1] + reach
    below, above = below[below > -end].flip(0), above[above < end]
    edges = torch.cat([below.new_tensor([-end]), below, inner, above, above.new_tensor([end, math.nextafter(end, math.inf)])])
    missing = inner.new_full((1,), float(s.missing))
    mass = torch.cat([_tail(len(below) + 1).flip(0), torch.ones_like(inner[1:]), _tail(len(above) + 1), missing])
    return edges, mass / mass.sum()


def _decimal_edges(index: Tensor, count: int) -> Tensor:
    """Whole edges at quantiles; an index that fills a quantile has a bin of its own."""
    q = _quantiles(index, count)
    atoms = q[1:][q[1:] == q[:-1]]
    return torch.cat([q, atoms, atoms + 1, index[-1:] + 1]).unique()


def _real_edges(values: Tensor, s: Support, count: int) -> Tensor:
    """Edges at quantiles, rounded outwards to multiples of the smallest width."""
    finest = s.scale / _FINEST
    q = (_quantiles(values, count) / finest).floor().unique() * finest
    return torch.cat([q, (values[-1:] / finest).floor() * finest + finest])


def _quantiles(values: Tensor, count: int) -> Tensor:
    return values[torch.linspace(0, len(values) - 1, count + 1, dtype=torch.float64).long()]


def _tail(bins: int) -> Tensor:
    """Masses of a tail's bins from the data outwards: 3/4, 3/16, ...; the last has what is left of 1."""
    mass = 0.75 * torch.exp2(-2.0 * torch.arange(bins, dtype=torch.float64))
    mass[-1] += 1 - mass.sum()
    return mass


def padded(bins: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Bins of several entries as edges [entries, M + 1] and priors [entries, M]: empty bins are put before the last."""
    most = max((len(prior) for _, prior in bins), default=0)
    edges = [torch.cat([e[:-1], e[-2:-1].expand(most - len(p)), e[-1:]]) for e, p in bins]
    priors = [torch.cat([p[:-1], p.new_zeros(most - len(p)), p[-1:]]) for _, p in bins]
    if not bins:
        return torch.zeros(0, 2, dtype=torch.float64), torch.ones(0, 1, dtype=torch.float64)
    return torch.stack(edges), torch.stack(priors)


def log_widths(edges: Tensor) -> Tensor:
    """Log-width of each bin [entries, M]; the last, of missing cells, counts as one point."""
    width = edges.diff()
    return torch.cat([width[:, :-1], torch.ones_like(width[:, -1:])], 1).log()


@dataclass(frozen=True)
class Axes:
    """Distribution functions of entries with bins: piecewise linear, so that those of whole numbers are exact at each.

    Attributes:
        edges: of the bins [D, M + 1].
        total: P(entry < edge) [D, M + 1].
        whole: whether an entry is a decimal, whose positions are whole numbers [D].
    """

    edges: Tensor
    total: Tensor
    whole: Tensor

    @classmethod
    def of(cls, edges: Tensor, mass: Tensor, whole: Tensor) -> "Axes":
        """Bins [D, M + 1] that have such masses [D, M]."""
        return cls(edges, torch.nn.functional.pad(mass.cumsum(1), (1, 0)), whole)

    @property
    def there(self) -> Tensor:
        """P(entry is not missing) [D]."""
        return self.total[:, -2]

    def below(self, position: Tensor) -> Tensor:
        """P(entry < position), [B, D]."""
        place = (torch.searchsorted(self.edges, position.T.contiguous(), right=True) - 1).clamp(0, self.edges.shape[1] - 2)
        (low, high), (before, after) = ((v.gather(1, place).T, v.gather(1, place + 1).T) for v in (self.edges, self.total))
        return before + ((position - low) / (high - low)).clamp(0.0, 1.0) * (after - before)

    def quantile(self, w: Tensor) -> Tensor:
        """The inverse of `below`, [B, D]."""
        inner = self.total[:, 1:].contiguous()
        place = torch.searchsorted(inner, w.T.contiguous(), right=True).clamp_max(inner.shape[1] - 1)
        (low, high), (before, after) = ((v.gather(1, place).T, v.gather(1, place + 1).T) for v in (self.edges, self.total))
        return low + ((w - before) / (after - before)).nan_to_num(0.0).clamp(0.0, 1.0) * (high - low)

    def edge_near(self, position: Tensor, low: Tensor) -> Tensor:
        """Where an axis may be cut near a position, above `low` [D]: anywhere, but between the values of a decimal."""
        floor = position.floor()
        return torch.where(self.whole, torch.where(floor > low, floor, floor + 1), position).minimum(self.edges[:, -2])
