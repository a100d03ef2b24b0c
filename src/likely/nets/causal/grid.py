"""What causal convolutional nets of grids share: a vector of each pixel from the pixels before it, and the outputs that read it.

Entries are ordered by row, column, channel. A net computes a vector h of each pixel from the pixels
before it; channel c of the pixel then reads h and the pixel's channels before c.

Causality is by shifts: a map is padded at the top and at the left before it is convolved. So a place of the
result needs a crop of the padded map, and stepping applies the very same weights to crops (see `registers`).

References:
    | Pixel recurrent neural networks (van den Oord et al., 2016) | https://arxiv.org/abs/1601.06759
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from likely.nets.causal import CausalNet
from likely.nets.causal.inputs import feature_width, features, raster
from likely.nets.causal.registers import GridState, Layer, Pixels, Pointwise, Product, Shifted, empty_register
from likely.nets.conditioning import Conditioner
from likely.space import Space

__all__ = ["GridNet", "Position", "TwoStreams"]


class Position(nn.Module):
    """A learned vector per place of the grid, added to a map or a row."""

    def __init__(self, width: int, height: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, height, columns))

    def forward(self, h: Tensor, row: int = 0) -> Tensor:
        """h [B, width, rows, columns] from `row` on."""
        return h + self.weight[:, row : row + h.shape[2]]

    def biases(self, row: int, convolution: Shifted, n: int) -> tuple[Tensor, ...]:
        """A convolution's bias with what is added to it, [n, C] at each column of a row."""
        assert convolution.bias is not None
        return (self.weight[:, row].T + convolution.bias)[:, None].expand(-1, n, -1).unbind()


class ChannelHead(nn.Module):
    """Parameters of each channel of a pixel from h and the pixel's channels before it."""

    def __init__(self, width: int, features: list[int], out: int) -> None:
        super().__init__()
        self.before = nn.ModuleList(Pointwise(sum(features[:c]), width, bias=False) for c in range(1, len(features)))
        self.out: Sequence[Pointwise] = nn.ModuleList(Pointwise(width, out) for _ in features)  # type: ignore[assignment]

    def forward(self, h: Tensor, features: list[Tensor], channel: int) -> Tensor:
        """[B, out, ...] of one channel; `features` of the channels before it, at least."""
        return self.out[channel](F.silu(self.reading(h, features, channel)))

    def reading(self, h: Tensor, features: list[Tensor], channel: int) -> Tensor:
        """h with what it reads of the channels before."""
        return h + self.before[channel - 1](torch.cat(features[:channel], 1)) if channel else h

    def steppers(self) -> list[Callable[[Tensor], Tensor]]:
        """The outputs of each channel from h, which knows the channels before."""
        return [_after_silu(out.stepper()) for out in self.out]


def _after_silu(out: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda h: out(F.silu(h))


class GridNet(CausalNet):
    """Causal net of a grid, x [B, C, H, W] -> parameters [B, C, H, W, out], by a vector of each pixel.

    Subclasses say how that vector is computed: of all pixels at once, and of the next one.
    """

    def __init__(self, space: Space, width: int, out: int, given: Space | None) -> None:
        super().__init__()
        self.space, self.order = space, raster(space)
        self.features = [feature_width(s) for s in space.supports]
        self.given, self.head = Conditioner(given, width), ChannelHead(width, self.features, out)

    @property
    @abstractmethod
    def inputs(self) -> tuple[Shifted, ...]:
        """The convolutions of the features."""

    @abstractmethod
    def hidden(self, seen: Tensor, embedding: Tensor | None) -> Tensor:
        """Features [B, F, H, W] of all pixels -> h [B, width, H, W], each from the pixels before it."""

    @abstractmethod
    def begin_row(self, state: GridState, row: int) -> None:
        """Compute what depends on the rows above alone."""

    @abstractmethod
    def at_pixel(self, state: GridState, row: int, column: int) -> Tensor:
        """h [n, width] of the next pixel."""

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        parts = [features(s, x[:, c], self.dtype) for c, s in enumerate(self.space.supports)]
        h = self.hidden(torch.cat(parts, 1), self.given(given, len(x)))
        return torch.stack([self.head(h, parts, c).movedim(1, -1) for c in range(len(parts))], 1)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.head.parameters()).dtype

    def init_state(self, n: int, given: Tensor | None = None) -> GridState:
        seen, convolutions = empty_register(n, *self.inputs), [m for m in self.modules() if isinstance(m, Shifted)]
        registers = {m: empty_register(n, m) for m in convolutions if m not in self.inputs}
        products = {m: Product(m, registers.get(m, seen)) for m in convolutions}
        layers, embedding = [m for m in self.modules() if isinstance(m, Layer)], self.given(given, n)
        steps = {m: m.stepper() for m in layers}
        films = {m: m.film.factors(embedding) for m in layers if m.film and embedding is not None}
        return GridState(embedding, seen, registers, products, steps, films, self.head.steppers())

    def step(self, state: GridState, x_i: Tensor | None) -> tuple[GridState, Tensor]:
        channels, _, columns = self.space.shape
        if x_i is not None:
            support = self.space.supports[(state.entry - 1) % channels]
            state.pixel.append(features(support, x_i, state.seen.rows.dtype))
        pixel, channel = divmod(state.entry, channels)
        if channel == 0:
            row, column = divmod(pixel, columns)
            self._next_pixel(state, row, column)
        state.entry += 1
        return state, state.head[channel](self.head.reading(state.h, state.pixel, channel))

    def _next_pixel(self, state: GridState, row: int, column: int) -> None:
        if state.pixel:
            state.seen.put((column or self.space.shape[2]) - 1, torch.cat(state.pixel, 1) if len(state.pixel) > 1 else state.pixel[0])
            state.pixel = []
        if column == 0:
            state.seen.next_row()
            self.begin_row(state, row)
        state.h = self.at_pixel(state, row, column)


class TwoStreams(GridNet):
    """A net of one stream that sees the rows above, and one that sees the row's own left part (and reads the first)."""

    def __init__(self, space: Space, width: int, out: int, given: Space | None) -> None:
        super().__init__(space, width, out, given)
        _, height, columns = space.shape
        self.above = Shifted(sum(self.features), width, (2, 3), (1, 1, 2, -1), columns)
        self.left = Shifted(sum(self.features), width, (1, 2), (2, -1, 0, 0), columns)
        self.place_above, self.place_left = Position(width, height, columns), Position(width, height, columns)

    @property
    def inputs(self) -> tuple[Shifted, ...]:
        return self.above, self.left

    def hidden(self, seen: Tensor, embedding: Tensor | None) -> Tensor:
        return self.maps(self.place_above(self.above(seen)), self.place_left(self.left(seen)), embedding)

    def begin_row(self, state: GridState, row: int) -> None:
        self.row(state, row, self.place_above(self.above.row(state.seen), row))
        state.columns[self.left] = self.place_left.biases(row, self.left, len(state.seen.rows))

    def at_pixel(self, state: GridState, row: int, column: int) -> Tensor:
        return self.pixel(state, row, column, Pixels(state, column).of_features(self.left, state.columns[self.left][column]))

    @abstractmethod
    def maps(self, v: Tensor, h: Tensor, embedding: Tensor | None) -> Tensor:
        """Run both streams on maps; the end of h."""

    @abstractmethod
    def row(self, state: GridState, row: int, v: Tensor) -> Any:
        """Run the stream v on one row, and keep what h reads of it."""

    @abstractmethod
    def pixel(self, state: GridState, row: int, column: int, h: Tensor) -> Tensor:
        """Run the stream h on one pixel; its end."""
