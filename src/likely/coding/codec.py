"""Codecs: a pair of functions that put a batch on a `Stack` and take it back off, and ways to compose them.

A codec's `push(stack, x)` is undone by `pop(stack, n)`, whatever lies below on the stack. All rows
of a batch are coded in lockstep on one stack: entry i of every row, then entry i + 1.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from likely.coding.integer import counts
from likely.coding.stack import Stack
from likely.errors import DataError
from likely.model import expand_given
from likely.space import MISSING, Space

__all__ = ["Causal", "Codec", "autoregressive", "categorical", "columns", "piecewise", "prefixed"]


@dataclass(frozen=True)
class Codec:
    """`push(stack, x)` codes a batch [n, *shape]; `pop(stack, n)` returns it."""

    push: Callable[[Stack, Tensor], None]
    pop: Callable[[Stack, int], Tensor]

    def mapped(self, encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor]) -> "Codec":
        """A codec of x where this one codes encode(x)."""
        return Codec(lambda stack, x: self.push(stack, encode(x)), lambda stack, n: decode(self.pop(stack, n)))

    def compress(self, x: Tensor) -> bytes:
        """A batch as bytes."""
        stack = Stack()
        self.push(stack, x)
        return stack.to_bytes()

    def decompress(self, words: bytes, n: int) -> Tensor:
        """What `compress` made bytes of."""
        return self.pop(Stack(words), n)


def categorical(logits: Tensor) -> Codec:
    """Independent symbols x [n, D] int64.

    Args:
        logits: [n, D, K], or [1, D, K] for all rows alike; unnormalised, -inf for a symbol that does not occur.
    """
    table = counts(logits)

    def rows(n: int) -> Tensor:
        return table.expand(n, *table.shape[1:])

    def push(stack: Stack, x: Tensor) -> None:
        # entry by entry, so that memory is one entry's tables for the batch
        for i in reversed(range(x.shape[1])):
            stack.push(x[:, i], rows(len(x))[:, i])

    def pop(stack: Stack, n: int) -> Tensor:
        return torch.stack([stack.pop(rows(n)[:, i]) for i in range(table.shape[1])], 1)

    return Codec(push, pop)


def piecewise(edges: Tensor, logits: Tensor) -> Codec:
    """Integers x [n, D] of piecewise uniform distributions: the bin is coded, then the offset in it.

    Args:
        edges: [D, M + 1] int64, ascending; bin j of column d is edges[d, j] <= x < edges[d, j + 1].
        logits: [n or 1, D, M], -inf for a bin that is empty.
    """
    bins = categorical(logits)
    column = torch.arange(len(edges))

    def cells(place: Tensor) -> tuple[Tensor, Tensor]:
        low = edges[column, place]
        return low, edges[column, place + 1] - low

    def push(stack: Stack, x: Tensor) -> None:
        place = torch.searchsorted(edges, x.T.contiguous(), right=True).T - 1
        if bool((place < 0).any() | (place >= edges.shape[1] - 1).any()):
            raise DataError(f"Cannot code integers outside {int(edges.min())}..{int(edges.max()) - 1}.")
        low, width = cells(place)
        stack.push_uniform((x - low).flatten(), width.flatten())
        bins.push(stack, place)

    def pop(stack: Stack, n: int) -> Tensor:
        low, width = cells(bins.pop(stack, n))
        return low + stack.pop_uniform(width.flatten()).view(low.shape)

    return Codec(push, pop)


def columns(*parts: tuple[Sequence[int], Codec]) -> Codec:
    """Rows [n, D] whose columns are divided among codecs, given as (column numbers, codec)."""

    def push(stack: Stack, x: Tensor) -> None:
        for index, codec in reversed(parts):
            codec.push(stack, x[:, index])

    def pop(stack: Stack, n: int) -> Tensor:
        blocks = [codec.pop(stack, n) for _, codec in parts]
        place = torch.tensor([i for index, _ in parts for i in index])
        return torch.cat(blocks, 1)[:, place.argsort()]

    return Codec(push, pop)


def prefixed(length: Codec, body: Callable[[int, Tensor], Codec], longest: int) -> Codec:
    """Strings x [n, longest] padded with -1: the lengths are coded, then the rows of each length together.

    Args:
        length: codec of lengths [n, 1].
        body: the codec of complete strings of a length, for the row numbers given.
    """

    def groups(lengths: Tensor) -> list[tuple[int, Tensor]]:
        return [(size, (lengths == size).nonzero()[:, 0]) for size in lengths.unique().tolist() if size > 0]

    def push(stack: Stack, x: Tensor) -> None:
        lengths = (x >= 0).sum(1)
        for size, rows in reversed(groups(lengths)):
            body(size, rows).push(stack, x[rows, :size])
        length.push(stack, lengths[:, None])

    def pop(stack: Stack, n: int) -> Tensor:
        lengths = length.pop(stack, n)[:, 0]
        x = torch.full((n, longest), -1)
        for size, rows in groups(lengths):
            x[rows, :size] = body(size, rows).pop(stack, len(rows))
        return x

    return Codec(push, pop)


@runtime_checkable
class Causal(Protocol):
    """A net that `autoregressive` codes with; `step` takes in the previous entry (None at first) and gives the next one's parameters."""

    def init_state(self, n: int, given: Tensor | None = None) -> Any: ...

    def step(self, state: Any, x_i: Tensor | None) -> tuple[Any, Tensor]: ...


def autoregressive(
    space: Space, net: Causal, logits: Callable[[int, Tensor], Tensor], given: Tensor | None = None, order: Sequence[int] | None = None
) -> Codec:
    """Examples [n, *shape] whose entries each have a table that depends on those before.

    A float64 copy of the net steps through the entries, when coding as when decoding: only then do
    both sides see the same numbers.

    Args:
        net: a module with `init_state(n, given)` and `step(state, x_i)`.
        logits: (place in a flattened example, parameters [n, width]) -> float64 logits of its states
            [n, K], a missing cell being the last.
        order: places of a flattened example in the order of the net; raster order by default.
    """
    exact = _in_float64(net)
    places = list(order) if order is not None else list(range(space.dims))

    def begin(n: int) -> Any:
        rows = expand_given(given, n)
        return exact.init_state(n, rows.double() if rows is not None and rows.is_floating_point() else rows)

    @torch.no_grad()
    def push(stack: Stack, x: Tensor) -> None:
        state, flat, last, tables = begin(len(x)), x.flatten(1), None, []
        for i in places:
            state, parameters = exact.step(state, last)
            tables.append(counts(logits(i, parameters)).int())
            last = flat[:, i]
        for i, table in reversed(list(zip(places, tables, strict=True))):
            stack.push(torch.where(flat[:, i] < 0, table.shape[-1] - 1, flat[:, i]), table)

    @torch.no_grad()
    def pop(stack: Stack, n: int) -> Tensor:
        state, flat, last = begin(n), torch.zeros(n, space.dims, dtype=torch.int64), None
        for i in places:
            state, parameters = exact.step(state, last)
            table = counts(logits(i, parameters))
            symbol = stack.pop(table)
            may_be_missing = space.supports[i * len(space.supports) // space.dims].missing
            last = flat[:, i] = torch.where(may_be_missing & (symbol == table.shape[-1] - 1), MISSING, symbol)
        return flat.view(n, *space.shape)

    return Codec(push, pop)


def _in_float64(net: Any) -> Any:
    return copy.deepcopy(net).double().eval() if isinstance(net, nn.Module) else net
