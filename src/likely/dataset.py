"""`Data`: a space, and its training, validation and test examples with what they are conditioned on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from likely.space import MISSING, Space, Support, to_grid

__all__ = ["Data", "Split", "Truth", "permutation_split"]

_FEW = 20  # values, of which fewer say nothing about repeats
_ATOM = 0.02  # share of one value among reals
_GRID_ATOM = 0.2  # among numbers on a grid, ...
_ABOVE = 5  # times as frequent as the next, ...
_MANY = 20  # ... of so many distinct values or more


@dataclass(frozen=True)
class Split:
    """Examples [n, *shape], the values of `given` [n, *given shape], and how many times each counts, `weights` [n], once where None.

    A text's `x` is a view of all overlapping windows of `stream`, the contiguous bytes (or tokens) themselves.
    """

    x: Tensor
    given: Tensor | None = None
    stream: Tensor | None = None
    weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, index: Tensor | slice) -> tuple[Tensor, Tensor | None]:
        """One batch."""
        return self.x[index], None if self.given is None else self.given[index]

    def batches(self, size: int = 256) -> "BatchView":
        """Consecutive batches, re-iterable."""
        return BatchView(self, size)

    def apart(self) -> "Split":
        """Examples that do not overlap: of a text the consecutive whole windows, of anything else all."""
        return self if self.stream is None else Split(self.x[:: self.x.shape[1]])

    def pieces(self, size: int = 256) -> "BatchView":
        """Batches of `apart`, for what counts each entry once; of a text with its stream."""
        return BatchView(self.apart(), size, self.stream)

    def head(self, n: int) -> "Split":
        return Split(*self.rows(slice(0, n)), stream=self.stream)


@dataclass(frozen=True)
class BatchView:
    split: Split
    size: int
    stream: Tensor | None = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        for i in range(0, len(self.split), self.size):
            yield self.split.rows(slice(i, i + self.size))


@dataclass(frozen=True)
class Truth:
    """The known distribution of a toy: log p(x) in nats, and the entropy with its Monte Carlo error (0 if exact)."""

    log_prob: Callable[[Tensor], Tensor]
    entropy: float
    stderr: float = 0.0


@dataclass(frozen=True)
class Data:
    """What a source was read into.

    Attributes:
        space: of one example, standardised on the training split.
        given: the space of what the examples are conditioned on, if anything.
        card: how the data came to be: source, seed and sizes of the split, what was skipped and
            counted, augmentation; stored with every model that is fitted to it.
        truth: of a toy whose density is known.
    """

    space: Space
    train: Split
    valid: Split
    test: Split
    given: Space | None = None
    name: str = "data"
    card: dict[str, Any] = field(default_factory=dict)
    truth: Truth | None = None

    @property
    def splits(self) -> dict[str, Split]:
        return {"train": self.train, "valid": self.valid, "test": self.test}

    @cached_property
    def nats_per_unit(self) -> float:
        """Nats of one example -> `space.unit`: divide by this; windows of tokens have the training text's mean number of bytes."""
        if not self.space.vocabulary:
            return self.space.nats_per_unit
        return self.space.nats_per_unit_of(self.train.apart().x).mean().item()

    @property
    def weighted(self) -> bool:
        """Whether examples count more or less than once."""
        return self.train.weights is not None

    def repeats(self) -> list[str]:
        """A line for each column of numbers of a table whose training values repeat, or heap on one value.

        A density has no limit at reals that repeat, and its nats mean little. On a grid an atom is a value with more than a fifth of
        the rows and five times those of the next, among 20 values and more: a model that is smooth from one to the next blurs it.
        """
        if self.space.layout != "columns":
            return []
        told = (_repeated(s, s.name or str(i), self.train.x[:, i]) for i, s in enumerate(self.space.supports) if s.numeric)
        return [line for line in told if line]

    def unconditional(self) -> "Data":
        """The same examples without their `given`: what p(x) is fitted to."""
        bare = {name: replace(split, given=None) for name, split in self.splits.items()}
        return replace(self, given=None, **bare)

    def standardised(self) -> "Data":
        """Centers and scales learnt from the training split."""
        return replace(self, space=self.space.standardised(self.train.x))


def _repeated(s: Support, name: str, codes: Tensor) -> str:
    """What repeats in a column of numbers, in a sentence; "" where nothing does."""
    values = codes[codes.isfinite()] if s.kind == "real" else codes[codes != MISSING]
    if len(values) < _FEW:
        return ""
    distinct, counts = values.unique(return_counts=True)
    top, share = int(counts.max()), counts.max().item() / len(values)
    commonest = distinct[counts.argmax()]
    if s.kind == "real":
        if top == 1 or (share < _ATOM and len(distinct) >= len(values) / 2):
            return ""
        told = f"{len(distinct)} distinct of {len(values)} real values, {commonest.item():g} in {share:.0%} of rows"
        return f"Column {name}: {told}. A density has no limit there: give the numbers a precision, which makes it a mass."
    if len(distinct) < _MANY or share <= _GRID_ATOM or top < _ABOVE * int(counts.topk(2).values[1]):
        return ""
    value = (int(to_grid(commonest)) + s.origin) / 10**s.decimals if s.kind == "decimal" else int(commonest)
    told = f"{value:g} in {share:.0%} of {len(values)} rows, among {len(distinct)} distinct values"
    return f"Column {name}: {told}. A smooth model blurs such an atom: histogram gives it a bin of its own, and autoregressive learns it."


def permutation_split(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Disjoint row numbers (train, valid, test) of `numpy.random.default_rng(seed).permutation(n)`.

    Test is the last fifth of the permutation, validation the last tenth of what is before it, both rounded up.
    """
    order = torch.from_numpy(np.random.default_rng(seed).permutation(n))
    n_test = -(-n // 5)
    n_valid = -(-(n - n_test) // 10)
    return order[: n - n_test - n_valid], order[n - n_test - n_valid : n - n_test], order[n - n_test :]
