r"""Independent entries by smoothed counts: the floor that every other model must beat.

    log p(x) = sum_i log p_i(x_i),      p_i = (counts_i + a q_i) / (n + a)

Counts shrink towards a prior q by a pseudo-count a that is chosen on the validation split: a
label's towards all labels', a pixel's towards its channel's, those towards uniform. Per support:

    ordinal, nominal   one count per state; a missing cell is one more state
    decimal, real      bins at quantiles of the training split, uniform inside; a decimal that
                       repeats has a bin of its own. Beyond the data bins double in width and fall
                       to a quarter in mass, so every value has mass and the tails are heavy, |x|^-3;
                       the number of bins is chosen on the validation split, column by column
    sequence           one table for all positions; where lengths vary, log p(length) besides. A
                       string shorter than a fixed window is the marginal of its prefix

Everything is exact, and so is the code: the file that `codec` writes is as long as -log2 p says.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from likely.coding import Codec, categorical, columns, piecewise, prefixed
from likely.errors import UsageError
from likely.logprob import LogProb
from likely.model import Batches, ClosedForm, Coded, Likelihood, Model
from likely.noise import Noise
from likely.solve.bins import adaptive_bins, log_widths, padded
from likely.solve.counts import Counts, pooled, uniform
from likely.solve.labels import label_count, label_of
from likely.space import MISSING, Space, Support, from_grid, to_grid

__all__ = ["Histogram"]

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

    def sample(self, label: Tensor) -> Tensor:
        return self.decode(self.counts.sample(label))

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

    def sample(self, label: Tensor) -> Tensor:
        place = self.counts.sample(label)
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
        if any(s.kind == "real" for s in self.supports):
            raise UsageError("Real numbers without a grid have a density and cannot be coded.", "Load them with a precision.")
        edges = self.edges.long()
        edges[:, -1] = edges[:, -2] + 1
        return piecewise(edges, self.counts.log_p[label]).mapped(lambda x: self.encode(x).long(), self.decode)

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


class Histogram(Model, Likelihood, ClosedForm, Coded):
    """Independent entries by smoothed counts; exact, on grids, columns and sequences."""

    summary = "independent entries by smoothed counts"
    layouts: ClassVar[frozenset[str]] = frozenset({"grid", "columns", "sequence"})

    def __init__(self, space: Space, *, given: Space | None = None, size: str = "small") -> None:
        super().__init__(space, given=given, size=size)
        labels, supports = label_count(given), _entries(space)
        self.finite = [e for e, s in enumerate(supports) if s.states is not None]
        self.wide = [e for e, s in enumerate(supports) if s.states is None]
        self.states = States(labels, [supports[e] for e in self.finite])
        self.bins = Bins(labels, [supports[e] for e in self.wide])
        self.length = Counts(labels, uniform([space.shape[0] + 1])) if space.variable else None

    def forward(self, x: Tensor, given: Tensor | None = None, *, turn: str = "") -> Tensor:
        """-log p(x | given), nats [batch]."""
        return -self._log_prob(x, given, Noise(x)).nats

    def _log_prob(self, x: Tensor, given: Tensor | None, noise: Noise) -> LogProb:
        label = label_of(self.given_space, given, len(x))
        nats = self._string_log_prob(x, label) if self.space.layout == "sequence" else self._entry_log_probs(x.flatten(1), label).sum(1)
        return LogProb(nats, "exact")

    def _entry_log_probs(self, flat: Tensor, label: Tensor) -> Tensor:
        return torch.cat([self.states.log_prob(flat[:, self.finite], label), self.bins.log_prob(flat[:, self.wide], label)], 1)

    def _string_log_prob(self, x: Tensor, label: Tensor) -> Tensor:
        there = x >= 0
        each = self.states.counts.log_p[label[:, None], 0, x.clamp_min(0)]
        nats = torch.where(there, each, 0.0).sum(1)
        return nats if self.length is None else nats + self.length.log_prob(there.sum(1, keepdim=True), label)[:, 0]

    @torch.no_grad()
    def sample(self, n: int, given: Tensor | None = None) -> Tensor:
        """Draw n examples, [n, *shape]."""
        label = label_of(self.given_space, given, n)
        if self.space.layout == "sequence":
            return self._sample_strings(label)
        return self._join(self.states.sample(label), self.bins.sample(label))

    def _sample_strings(self, label: Tensor) -> Tensor:
        longest = self.space.shape[0]
        x = self.states.sample(label.repeat_interleave(longest)).view(-1, longest)
        return x if self.length is None else torch.where(torch.arange(longest) < self.length.sample(label), x, MISSING)

    def _join(self, finite: Tensor, wide: Tensor) -> Tensor:
        """Entries of both kinds in data units, [n, *shape]."""
        out = torch.empty(len(finite), self.space.dims, dtype=self.space.dtype)
        if not self.space.discrete:  # a number that is missing beside reals is NaN
            numeric = torch.tensor([s.numeric for s in self.states.supports], dtype=torch.bool)
            finite = finite.double().masked_fill(numeric & (finite == MISSING), torch.nan)
        out[:, self.finite], out[:, self.wide] = finite.to(out.dtype), wide.to(out.dtype)
        return out.view(-1, *self.space.shape)

    def solve(self, train: Batches, valid: Batches) -> None:
        """Count the training split; pseudo-counts and numbers of bins are chosen on the validation split."""
        if self.finite:
            channels = self.space.shape[0] if self.space.layout == "grid" else 0
            self.states.fit(self._part(train, self.finite), self._part(valid, self.finite), channels)
        if self.wide:
            self.bins.fit(self._part(train, self.wide), self._part(valid, self.wide))
        if self.length is not None:
            self.length.fit(self._lengths(self.length, train), self._lengths(self.length, valid), uniform([self.space.shape[0] + 1]))

    def codec(self, given: Tensor | None = None) -> Codec:
        """A codec of batches, whose message is as long as log p says. Raises: UsageError for reals."""
        label = label_of(self.given_space, given, 1 if given is None else len(given))
        if self.space.layout == "sequence":
            return self._string_codec(label)
        parts = [(which, part.codec(label)) for which, part in ((self.finite, self.states), (self.wide, self.bins)) if which]
        return columns(*parts).mapped(lambda x: x.flatten(1), lambda flat: flat.view(-1, *self.space.shape))

    def _string_codec(self, label: Tensor) -> Codec:
        def body(size: int, rows: Tensor) -> Codec:
            table = self.states.counts.log_p[label[rows] if len(label) > 1 else label]
            return categorical(table.expand(-1, size, -1))

        if self.length is None:
            return body(self.space.shape[0], torch.arange(len(label)))
        return prefixed(categorical(self.length.log_p[label]), body, self.space.shape[0])

    def _part(self, batches: Batches, entries: list[int]) -> Labelled:
        """Some entries of re-iterable batches, with their labels; every symbol of strings is one example."""
        return _Mapped(
            lambda x, y: _symbols(x, y) if self.space.layout == "sequence" else (x.flatten(1)[:, entries], y), batches, self.given_space
        )

    def _lengths(self, length: Counts, batches: Batches) -> Tensor:
        return length.count(_Mapped(lambda x, y: ((x >= 0).sum(1, keepdim=True), y), batches, self.given_space))


class _Mapped:
    """Re-iterable batches of function(x, label)."""

    def __init__(self, function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], batches: Batches, given: Space | None) -> None:
        self.function, self.batches, self.given = function, batches, given

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, given in self.batches:
            yield self.function(x, label_of(self.given, given, len(x)))


def _symbols(x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    there = x >= 0
    return x[there][:, None], label.repeat_interleave(there.sum(1))


def _entries(space: Space) -> list[Support]:
    """The support of each entry of a flattened example; one for all places of a sequence."""
    each = 1 if space.layout == "sequence" else space.dims // len(space.supports)
    return [s for s in space.supports for _ in range(each)]


def _entrywise(table: Tensor, place: Tensor) -> Tensor:
    """table [entries, bins], place [B, entries] -> [B, entries]."""
    return table.gather(1, place.T).T
