"""The protocol of an invertible map, and their composition.

A bijection takes x [B, *shape] to y [B, *shape'] of as many dimensions, and returns with it
log |det dy/dx| [B] in nats and float64, from one pass; `inverse` does the same the other way
round. For a density this is all there is: log p(x) = log p(y) + log |det dy/dx|.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import cast

import torch
from torch import Tensor, nn

__all__ = ["Bijection", "Chain", "Inverse", "chunks", "no_volume", "per_example"]

_CHUNK = 2**16  # entries that pass a map at once, so that memory stays bounded


def per_example(log_derivative: Tensor) -> Tensor:
    """Sum of the entries' log-derivatives, [B, ...] -> [B], in float64."""
    return log_derivative.flatten(1).sum(1, dtype=torch.float64)


def no_volume(x: Tensor) -> Tensor:
    """The log-determinant [B] of a map that keeps volume."""
    return x.new_zeros(len(x), dtype=torch.float64)


def chunks(v: Tensor, given: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Rows of v, and theirs of `given`, as many at once as memory is meant for."""
    rows = max(1, _CHUNK // max(1, math.prod(v.shape[1:])))
    for first in range(0, len(v), rows):
        yield v[first : first + rows], None if given is None else given[first : first + rows]


class Bijection(nn.Module, ABC):
    """An invertible differentiable map, optionally conditioned on `given`."""

    @abstractmethod
    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """y and log |det dy/dx|."""

    @abstractmethod
    def inverse(self, y: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x and log |det dx/dy|."""

    def start(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        """Set what depends on a first batch, and return its image."""
        return self(x, given)[0]


class Chain(Bijection):
    """Bijections one after the other."""

    def __init__(self, parts: Iterable[Bijection]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def __iter__(self) -> Iterator[Bijection]:
        return iter(cast("Iterable[Bijection]", self.parts))

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = None
        for part in self:
            x, log_det = part(x, given)
            total = log_det if total is None else total + log_det
        return x, no_volume(x) if total is None else total

    def inverse(self, y: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = None
        for part in reversed(list(self)):
            y, log_det = part.inverse(y, given)
            total = log_det if total is None else total + log_det
        return y, no_volume(y) if total is None else total

    def start(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        for part in self:
            x = part.start(x, given)
        return x


class Inverse(Bijection):
    """A bijection the other way round: what was drawn in one pass is scored in one, and the reverse."""

    def __init__(self, inner: Bijection) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.inner.inverse(x, given)

    def inverse(self, y: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.inner(y, given)
