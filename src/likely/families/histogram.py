r"""Smoothed counts: of independent entries, the floor that every other model must beat; of few numbers, of boxes, too.

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

Of two and more decimals or reals of a table the joint distribution may be counted: they are cut into boxes (`solve.boxes`),
as many as the validation split says, one among them:

    p(x) = prod_e p_e(x_e) share(box) / volume(box),      volume(box) = what independent entries would have of it

Entries of finitely many states stay independent of all others. `independent` is the same without boxes. Everything is exact,
what is filled in, too, and so is the code: the file that `codec` writes is as long as -log2 p says.
"""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from likely.abilities import ClosedForm, Coded, Fillable, Filled, Likelihood
from likely.coding import Codec, categorical, columns, prefixed
from likely.errors import UsageError
from likely.logprob import LogProb
from likely.model import Batches, Model
from likely.noise import Noise
from likely.solve.boxes import Boxes
from likely.solve.counts import Counts, uniform
from likely.solve.labels import label_count, label_of
from likely.solve.marginals import Bins, Labelled, States
from likely.space import MISSING, Space, Support

__all__ = ["Histogram"]


class Histogram(Model, Likelihood, Fillable, ClosedForm, Coded):
    """Smoothed counts of independent entries, and of boxes where numbers are few; exact, on grids, columns and sequences.

    Args:
        joint: whether boxes of several decimals or reals may be counted, where the validation split wants them.
    """

    summary = "smoothed counts: of each entry alone, of boxes where numbers are few"
    layouts: ClassVar[frozenset[str]] = frozenset({"grid", "columns", "sequence"})

    def __init__(self, space: Space, *, given: Space | None = None, size: str = "small", joint: bool = True) -> None:
        super().__init__(space, given=given, size=size)
        labels, supports = label_count(given), _entries(space)
        self.finite = [e for e, s in enumerate(supports) if s.states is not None]
        self.wide = [e for e, s in enumerate(supports) if s.states is None]
        self.states = States(labels, [supports[e] for e in self.finite])
        self.bins = Bins(labels, [supports[e] for e in self.wide])
        self.length = Counts(labels, uniform([space.shape[0] + 1])) if space.variable else None
        self.boxes = Boxes(labels, len(self.wide)) if joint and space.layout == "columns" and len(self.wide) > 1 else None

    def forward(self, x: Tensor, given: Tensor | None = None, *, turn: str = "") -> Tensor:
        """-log p(x | given), nats [batch]."""
        return -self._log_prob(x, given, Noise(x)).nats

    def _log_prob(self, x: Tensor, given: Tensor | None, noise: Noise) -> LogProb:
        label = label_of(self.given_space, given, len(x))
        if self.space.layout == "sequence":
            return LogProb(self._string_log_prob(x, label), "exact")
        finite, wide = x.flatten(1)[:, self.finite], x.flatten(1)[:, self.wide]
        nats = self.states.log_prob(finite, label).sum(1) + self.bins.log_prob(wide, label).sum(1)
        return LogProb(nats if self.boxes is None else nats + self.boxes.log_ratio(self.bins, wide, label), "exact")

    def _string_log_prob(self, x: Tensor, label: Tensor) -> Tensor:
        there = x >= 0
        each = self.states.counts.log_p[label[:, None], 0, x.clamp_min(0)]
        nats = torch.where(there, each, 0.0).sum(1)
        return nats if self.length is None else nats + self.length.log_prob(there.sum(1, keepdim=True), label)[:, 0]

    @torch.no_grad()
    def sample(self, n: int, given: Tensor | None = None, *, with_log_prob: bool = False) -> Any:
        """Draw n examples, [n, *shape]; with_log_prob: a `Drawn`."""
        x = self._drawn(n, given)
        return self.scored(x, given) if with_log_prob else x

    def _drawn(self, n: int, given: Tensor | None) -> Tensor:
        label, longest = label_of(self.given_space, given, n), self.space.shape[0]
        if self.space.layout == "sequence":
            unknown = torch.zeros(n, longest, dtype=torch.bool)
            return self._fill_strings(torch.zeros(n, longest, dtype=torch.int64), unknown, label)
        wide = self.bins.sample(label) if self.boxes is None else self.boxes.sample(self.bins, label)
        return self._join(self.states.sample(label), wide)

    @torch.no_grad()
    def fill(self, x: Tensor, known: Tensor, given: Tensor | None = None, draws: int = 1) -> Filled:
        """Unknown entries drawn given those known, never as missing: each on its own, numbers from the boxes that what is known leaves."""
        if known.shape != x.shape or known.dtype != torch.bool:
            raise UsageError(f"`known` is {known.dtype} of shape {tuple(known.shape)}, not bool of {tuple(x.shape)}.")
        x = torch.where(known, x, torch.zeros_like(x))
        self.space.check(x)
        label = label_of(self.given_space, given, len(x)).repeat(draws)
        rows, there = (v.repeat(draws, *[1] * (v.ndim - 1)) for v in (x, known))
        if self.space.layout == "sequence":
            drawn = self._fill_strings(rows, there, label)
        else:
            drawn = self._join(self.states.sample(label, there=True), self._fill_wide(rows.flatten(1), there.flatten(1), label))
        effective = torch.full((draws, len(x)), torch.inf, dtype=torch.float64)
        return Filled(torch.where(there, rows, drawn).view(draws, *x.shape), True, effective, "the model's own conditional")

    def _fill_wide(self, flat: Tensor, known: Tensor, label: Tensor) -> Tensor:
        if self.boxes is None:
            return self.bins.sample(label, there=True)
        return self.boxes.fill(self.bins, flat[:, self.wide], known[:, self.wide], label)

    def _fill_strings(self, x: Tensor, known: Tensor, label: Tensor) -> Tensor:
        """Symbols, which do not depend on each other; and a length that goes with the symbols and the padding that are known."""
        longest, place = self.space.shape[0], torch.arange(self.space.shape[0])
        drawn = self.states.sample(label.repeat_interleave(longest)).view(-1, longest)
        if self.length is None:
            if bool((x < 0).any()):
                raise UsageError("Padding cannot be known in texts of a fixed length.", "Fill whole windows.")
            return drawn
        least = ((place + 1) * (known & (x >= 0))).amax(1)
        most = torch.where(known & (x < 0), place, longest).amin(1)
        lengths = torch.arange(longest + 1)
        fits = (lengths >= least[:, None]) & (lengths <= most[:, None])
        length = torch.multinomial(self.length.log_p[label, 0].exp() * fits, 1)
        return torch.where(place < length, drawn, MISSING)

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
        if self.boxes is not None:
            self.boxes.fit(self.bins, self._part(train, self.wide), self._part(valid, self.wide))
        if self.length is not None:
            self.length.fit(self._lengths(self.length, train), self._lengths(self.length, valid), uniform([self.space.shape[0] + 1]))

    def codec(self, given: Tensor | None = None) -> Codec:
        """A codec of batches, whose message is as long as log p says. Raises: UsageError for reals."""
        label = label_of(self.given_space, given, 1 if given is None else len(given))
        if self.space.layout == "sequence":
            return self._string_codec(label)
        parts = [(self.finite, self.states.codec(label))] if self.finite else []
        if self.wide:
            parts.append((self.wide, self.bins.codec(label) if self.boxes is None else self.boxes.codec(self.bins, label)))
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
