"""The protocol of an invertible map.

A bijection takes x [B, *shape] to y [B, *shape'] of as many dimensions, and returns with it
log |det dy/dx| [B] in nats and float64, from one pass; `inverse` does the same the other way
round. For a density this is all there is: log p(x) = log p(y) + log |det dy/dx|.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Bijection", "Inverse", "chunks", "no_volume", "per_example"]

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

    def step(self, given: Tensor | None, n: int, *, inverse: bool) -> Any:
        """What the map is on n vectors where several run as one (`fused`): a `Layer`, the order of a permutation, or None."""
        return None

    def start(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        """Set what depends on a first batch, and return its image."""
        return self(x, given)[0]


class Inverse(Bijection):
    """A bijection the other way round: what was drawn in one pass is scored in one, and the reverse."""

    def __init__(self, inner: Bijection) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.inner.inverse(x, given)

    def inverse(self, y: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.inner(y, given)
