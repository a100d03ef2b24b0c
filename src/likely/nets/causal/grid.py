"""What causal convolutional nets of grids share: shifted convolutions that can be run as a map, a row or a pixel.

Entries are ordered by row, column, channel. A net computes a vector h of each pixel from the pixels
before it; channel c of the pixel then reads h and the pixel's channels before c.

Causality is by shifts: a map is padded at the top and at the left before it is convolved. So a place of the
result needs a crop of the padded map, and stepping applies the very same weights to crops. Each
convolution has a register for them, which holds the last rows of what it convolves; that is all that is
remembered, whatever the height of the grid. A layer is written once, in terms of

    see(convolution, h)

which convolves a map (the convolution itself), a row (`Rows`) or a pixel (`Pixels`). At a pixel a
convolution is a matrix product with a crop. Registers are laid out column by column, so that the crop is a
view, and kernels are laid out likewise once for all pixels: a pixel costs little but its products.

References:
    | Pixel recurrent neural networks (van den Oord et al., 2016) | https://arxiv.org/abs/1601.06759
    | Fast generation for convolutional autoregressive models (Ramachandran et al., 2017) | https://arxiv.org/abs/1704.06001
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from likely.nets.causal import CausalNet
from likely.nets.causal.inputs import feature_width, features, raster
from likely.nets.conditioning import Conditioner
from likely.space import Space

__all__ = ["GridNet", "GridState", "Layer", "Pixels", "Pointwise", "Position", "Rows", "See", "Shifted", "TwoStreams"]


@dataclass
class Register:
    """The last rows of a map, [n, columns, rows, C]: its first and last `margin` columns are zero, its last row is the current one."""

    rows: Tensor
    margin: int

    def __post_init__(self) -> None:
        """Views are kept: to make one costs more time than to use it."""
        self.crops: dict[tuple[Product, int], Tensor] = {}
        self.pixels: dict[int, Tensor] = {}

    def next_row(self) -> None:
        """Forget the oldest row; the new one is zero as yet."""
        if self.rows.shape[2] > 1:
            self.rows[:, :, :-1] = self.rows[:, :, 1:].clone()
        self.rows[:, :, -1] = 0.0

    def put(self, column: int, h: Tensor) -> None:
        """One pixel [n, C] of the current row; where gradients are recorded, a view from before cannot be written to."""
        pixel = None if torch.is_grad_enabled() else self.pixels.get(column)
        if pixel is None:
            pixel = self.pixels[column] = self.rows.select(1, self.margin + column).select(1, -1)
        pixel.copy_(h)

    def put_row(self, h: Tensor) -> None:
        """The current row [n, C, columns]."""
        self.rows[:, self.margin : self.margin + h.shape[2], -1] = h.transpose(1, 2)


class Shifted(nn.Conv2d):
    """A convolution of a padded map. pads: columns at the left and right, rows at the top and (at most 0) the bottom.

    Args:
        columns: of the map, for its register.
    """

    def __init__(
        self, source: int, target: int, kernel: tuple[int, int], pads: tuple[int, ...], columns: int, *, dilation: int = 1, stride: int = 1
    ) -> None:
        super().__init__(source, target, kernel, stride, dilation=dilation)
        self.pads, self.columns = pads, columns

    @property
    def kernel(self) -> Tensor:
        return self.weight

    def forward(self, input: Tensor) -> Tensor:
        return self._convolve(F.pad(input, self.pads))

    def row(self, register: Register) -> Tensor:
        """The current row of the result, [n, target, 1, columns]; `register` may have more rows and margin than needed."""
        left, right = self.pads[:2]
        begin, end = register.margin - left, register.rows.shape[1] - register.margin + right
        return self._convolve(register.rows[:, begin:end, self.seen(register)].permute(0, 3, 2, 1))

    def seen(self, register: Register) -> slice:
        """Rows of a register that the current row depends on."""
        current = register.rows.shape[2] - 1
        return slice(current - self.pads[2], current + 1 + self.pads[3])

    def _convolve(self, padded: Tensor) -> Tensor:
        return F.conv2d(padded, self.kernel, self.bias, self.stride, dilation=self.dilation)


class Product:
    """A convolution at one pixel of the current row: a matrix product with a crop of its register."""

    def __init__(self, convolution: Shifted, register: Register) -> None:
        assert convolution.bias is not None
        seen, (down, self.stride) = convolution.seen(register), convolution.dilation
        self.rows, self.first = slice(seen.start, seen.stop, down), register.margin - convolution.pads[0]
        self.columns = self.stride * convolution.kernel_size[1]
        self.weight, self.bias = convolution.kernel.permute(0, 3, 2, 1).flatten(1).T.contiguous(), convolution.bias[None]

    def __call__(self, register: Register, column: int, bias: Tensor | None = None) -> Tensor:
        """[n, target]; with another bias than the convolution's own, where one is given."""
        crop = register.crops.get((self, column))
        if crop is None:
            begin = self.first + column
            crop = register.rows[:, begin : begin + self.columns : self.stride, self.rows]
            flat = crop.flatten(1)
            crop = register.crops[self, column] = flat if flat.data_ptr() == crop.data_ptr() else crop  # a copy would grow old
        crop = crop if crop.ndim == 2 else crop.flatten(1)
        return torch.addmm(self.bias if bias is None else bias, crop, self.weight)


def _register(n: int, *convolutions: Shifted) -> Register:
    """An empty register that serves convolutions of one map of n examples."""
    first, margin = convolutions[0], max(max(c.pads[:2]) for c in convolutions)
    rows = 1 + max(c.pads[2] for c in convolutions)
    return Register(first.weight.new_zeros(n, first.columns + 2 * margin, rows, first.in_channels), margin)


class Pointwise(nn.Linear):
    """The same linear map at each place of a map [B, C, H, W], or at one place [B, C]."""

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim == 2:
            return F.linear(input, self.weight, self.bias)
        return F.conv2d(input, self.weight[..., None, None], self.bias)

    def stepper(self) -> Callable[[Tensor], Tensor]:
        """The same at one place as a function, for many steps."""
        assert self.bias is not None
        weight, bias = self.weight.T, self.bias[None]
        return lambda h: torch.addmm(bias, h, weight)


class Layer(nn.Module, ABC):
    """A layer of a stream that goes from pixel to pixel."""

    @abstractmethod
    def stepper(self) -> Callable[..., Tensor]:
        """At one pixel: (h [n, C], what it reads, embedding, `Pixels`) -> the next h. It calls no module, which would cost more
        time than a product with one pixel."""


See = Callable[[Shifted, Tensor], Tensor]


@dataclass
class GridState:
    """What the next rows and pixels look at. Updated in place by `step`.

    Attributes:
        seen: features of the last rows; `pixel`: of the current pixel's channels so far.
        registers: of the convolutions of hidden maps; `products`: of all convolutions.
        layers: at one pixel, as functions; `head`: each channel's outputs.
        rows: what a net keeps of the current row; `columns`: by column, each [n, C].
        h: of the current pixel, [n, width].
    """

    embedding: Tensor | None
    seen: Register
    registers: dict[Shifted, Register]
    products: dict[Shifted, Product]
    layers: dict[Layer, Callable[..., Tensor]]
    head: list[Callable[[Tensor], Tensor]]
    rows: dict[nn.Module, Tensor] = field(default_factory=dict)
    columns: dict[nn.Module, tuple[Tensor, ...]] = field(default_factory=dict)
    pixel: list[Tensor] = field(default_factory=list)
    h: Any = None
    entry: int = 0


@dataclass
class Rows:
    """Convolve one row [n, C, 1, columns] after those before it."""

    state: GridState

    def __call__(self, convolution: Shifted, h: Tensor) -> Tensor:
        register = self.state.registers[convolution]
        register.next_row()
        register.put_row(h[:, :, 0])
        return convolution.row(register)


@dataclass
class Pixels:
    """Convolve one pixel [n, C] of the current row, at `column`."""

    state: GridState
    column: int

    def __call__(self, convolution: Shifted, h: Tensor, bias: Tensor | None = None) -> Tensor:
        register = self.state.registers[convolution]
        register.put(self.column, h)
        return self.state.products[convolution](register, self.column, bias)

    def of_features(self, convolution: Shifted, bias: Tensor) -> Tensor:
        """The same for the pixels before this one, as their features."""
        return self.state.products[convolution](self.state.seen, self.column, bias)


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
        seen, convolutions = _register(n, *self.inputs), [m for m in self.modules() if isinstance(m, Shifted)]
        registers = {m: _register(n, m) for m in convolutions if m not in self.inputs}
        products = {m: Product(m, registers.get(m, seen)) for m in convolutions}
        layers = {m: m.stepper() for m in self.modules() if isinstance(m, Layer)}
        return GridState(self.given(given, n), seen, registers, products, layers, self.head.steppers())

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
