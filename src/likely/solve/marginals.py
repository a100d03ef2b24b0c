"""Entries that are independent given a label: counts of states, and adaptive bins of numbers without an end."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from likely.coding import Codec, categorical, piecewise
from likely.errors import UsageError
from likely.solve.bins import Axes, adaptive_bins, log_widths, padded
from likely.solve.counts import Counts, pooled, uniform
from likely.space import MISSING, Support, from_grid, to_grid

__all__ = ["Bins", "Labelled", "States"]

Labelled = Iterable[tuple[Tensor, Tensor]]  # re-iterable batches of (entries, label)
_BINS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class States(nn.Module):
    """Entries of finitely many states, [B, entries] in data units; a missing cell is the last state."""

    def __init__(self, labels: int, supports: list[Support]) -> None:
        super().__init__()
        self.supports = supports
        self.prior = uniform([s.levels + s.missing for s in supports])
        self.counts = Counts(labels, self.prior)

    def log_prob(self, x: Tensor, label: Tensor) -> Tensor:
        return self.counts.log_prob(self.encode(x), label)

    def sample(self, label: Tensor, there: bool = False) -> Tensor:
        """One value of each entry; not missing where all are to be `there`."""
        missing = torch.arange(self.counts.log_p.shape[2]) == self._levels(self.counts.log_p)[:, None]
        return self.decode(self.counts.sample(label, ~missing if there else None))

    def fit(self, train: Labelled, valid: Labelled, groups: int) -> None:
        """Fit to batches of (x, label); where there are `groups` of entries (channels), pixels shrink to theirs."""
        seen, held_out = (self.counts.count((self.encode(x), y) for x, y in split) for split in (train, valid))
        self.counts.fit(seen, held_out, pooled(seen, self.prior, groups) if groups else self.prior)

    def codec(self, label: Tensor) -> Codec:
        return categorical(self.counts.log_p[label]).mapped(self.encode, self.decode)

    def encode(self, x: Tensor) -> Tensor:
        return torch.where(torch.isnan(x) | (x == MISSING), self._levels(x), x.nan_to_num()).long()

    def decode(self, code: Tensor) -> Tensor:
        return torch.where(code == self._levels(code), MISSING, code)

    def _levels(self, like: Tensor) -> Tensor:
        return torch.tensor([s.levels for s in self.supports], device=like.device)


class Bins(nn.Module):
    """Decimals and reals, [B, entries] in data units. Missing cells are the last bin."""

    edges: Tensor

    def __init__(self, labels: int, supports: list[Support]) -> None:
        super().__init__()
        self.supports = supports
        edges, self.prior = padded([adaptive_bins(torch.tensor([s.center]), s, 1) for s in supports])
        self.register_buffer("edges", edges)
        self.counts = Counts(labels, self.prior)

    def log_prob(self, x: Tensor, label: Tensor) -> Tensor:
        place = self.place(x)
        return self.counts.log_prob(place, label) - _entrywise(log_widths(self.edges), place)

    def sample(self, label: Tensor, there: bool = False) -> Tensor:
        """One value of each entry; not missing where all are to be `there`."""
        bins = self.edges.shape[1] - 1
        place = self.counts.sample(label, (torch.arange(bins) < bins - 1).expand(len(self.edges), -1) if there else None)
        low, high = _entrywise(self.edges, place), _entrywise(self.edges, place + 1)
        return self.decode(low + torch.rand_like(low) * (high - low))

    def fit(self, train: Labelled, valid: Labelled) -> None:
        """Fit to batches of (x, label); each entry's number of bins by its own code length on `valid`."""
        x = self.encode(torch.cat([x for x, _ in train]))
        costs = torch.stack([self._fit(x, [m] * len(self.supports), train, valid) for m in _BINS])
        self._fit(x, [_BINS[i] for i in costs.argmin(0).tolist()], train, valid)

    def _fit(self, x: Tensor, bins: list[int], train: Labelled, valid: Labelled) -> Tensor:
        there = x < self.edges[:, -2]
        adapted = [adaptive_bins(x[there[:, e], e], s, bins[e]) for e, s in enumerate(self.supports)]
        self.edges, self.prior = padded(adapted)
        self.counts.log_p = self.prior.log().expand(len(self.counts.log_p), -1, -1)
        seen, held_out = (self.counts.count((self.place(x), y) for x, y in split) for split in (train, valid))
        cost = self.counts.fit(seen, held_out, self.prior)
        return cost + (held_out.sum(0) * log_widths(self.edges).nan_to_num(neginf=0.0)).sum(1)

    def codec(self, label: Tensor) -> Codec:
        """Raises: UsageError for reals, which have no mass."""
        return piecewise(self.whole_edges(), self.counts.log_p[label]).mapped(lambda x: self.encode(x).long(), self.decode)

    def whole_edges(self) -> Tensor:
        """Edges as int64.

        Raises: UsageError for reals, which have no mass.
        """
        if any(s.kind == "real" for s in self.supports):
            raise UsageError("Real numbers without a grid have a density and cannot be coded.", "Load them with a precision.")
        edges = self.edges.long()
        edges[:, -1] = edges[:, -2] + 1
        return edges

    def axes(self, label: int) -> Axes:
        """Distribution functions of the entries, given a label."""
        return Axes.of(self.edges, self.counts.log_p[label].exp(), self._is_decimal(self.edges))

    def pooled_axes(self, often: Tensor) -> Axes:
        """Those of all labels together, of so often each [labels]."""
        return Axes.of(self.edges, torch.einsum("y,yek->ek", often, self.counts.log_p.exp()), self._is_decimal(self.edges))

    def place(self, x: Tensor) -> Tensor:
        """Bin of each entry."""
        return (torch.searchsorted(self.edges, self.encode(x).T.contiguous(), right=True) - 1).T

    def encode(self, x: Tensor) -> Tensor:
        """Positions on the axis of the edges, float64; a missing cell is at their limit."""
        decimal = self._is_decimal(x)
        lost = torch.isnan(x) | (decimal & (x == MISSING))
        present = x.masked_fill(lost, 0)
        return torch.where(lost, self.edges[:, -2], torch.where(decimal, to_grid(present.long()).double(), present.double()))

    def decode(self, position: Tensor) -> Tensor:
        """Data units of positions: int64 if all entries are decimals, else float64."""
        decimal, lost = self._is_decimal(position), position >= self.edges[:, -2]
        if bool(decimal.all()):
            return from_grid(position.floor().long()).masked_fill(lost, MISSING)
        whole = from_grid(position.masked_fill(~decimal, 0).floor().long()).double()
        return torch.where(decimal, whole, position).masked_fill(lost, torch.nan)

    def _is_decimal(self, like: Tensor) -> Tensor:
        return torch.tensor([s.kind == "decimal" for s in self.supports], dtype=torch.bool, device=like.device)


def _entrywise(table: Tensor, place: Tensor) -> Tensor:
    """table [entries, bins], place [B, entries] -> [B, entries]."""
    return table.gather(1, place.T).T
