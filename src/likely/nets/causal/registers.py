"""How convolutions of a grid are run a row or a pixel at a time: registers, products with crops of them, layers at a pixel.

Each convolution has a register, which holds the last rows of what it convolves; that is all that is
remembered, whatever the height of the grid. A layer is written once, in terms of

    see(convolution, h)

which convolves a map (the convolution itself), a row (`Rows`) or a pixel (`Pixels`). At a pixel a
convolution is a matrix product with a crop. Registers are laid out column by column, so that the crop is a
view, and kernels are laid out likewise once for all pixels: a pixel costs little but its products. Of a few
grids on a CPU the products cost less than to start them, and a layer is one compiled function (`solve.one_pixel`).

References:
    | Fast generation for convolutional autoregressive models (Ramachandran et al., 2017) | https://arxiv.org/abs/1704.06001
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from likely.nets.conditioning import FiLM

__all__ = [
    "Compiled",
    "GridState",
    "Layer",
    "Pixels",
    "Pointwise",
    "Product",
    "Register",
    "Rows",
    "See",
    "Shifted",
    "Step",
    "empty_register",
    "modulated",
]

_FEW = 4  # grids, whose layers at a pixel are compiled functions; more are left to the products of torch


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
        self.convolution = convolution
        seen, (down, self.stride) = convolution.seen(register), convolution.dilation
        self.rows, self.first = slice(seen.start, seen.stop, down), register.margin - convolution.pads[0]
        self.columns = self.stride * convolution.kernel_size[1]
        self.weight, self.bias = convolution.kernel.permute(0, 3, 2, 1).flatten(1).T.contiguous(), convolution.bias[None]

    @cached_property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Kernel [places of the crop, C, target] and bias, as `solve.one_pixel` takes them."""
        channels = self.convolution.in_channels
        return self.weight.view(-1, channels, self.weight.shape[1]).numpy(), self.bias[0].numpy()

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


def empty_register(n: int, *convolutions: Shifted) -> Register:
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

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Weight [source, target] and bias, as `solve.one_pixel` takes them."""
        assert self.bias is not None
        return self.weight.T.contiguous().numpy(), self.bias.numpy()


See = Callable[[Shifted, Tensor], Tensor]
Step = Callable[[Tensor, Any, Tensor | None, "Pixels"], Tensor]  # (h [n, C], what it reads, its film [n, 2, C], where) -> the next h
Compiled = Callable[[np.ndarray, Any, int], None]  # (h, which it writes to, what it reads, the column)


class Layer(nn.Module, ABC):
    """A layer of a stream that goes from pixel to pixel."""

    film: FiLM | None

    @abstractmethod
    def stepper(self) -> Step:
        """At one pixel. It calls no module, which would cost more time than a product with one pixel."""

    @abstractmethod
    def compiled(self, state: "GridState") -> Compiled:
        """The same with the state's memory, as a compiled function."""


@dataclass
class GridState:
    """What the next rows and pixels look at. Updated in place by `step`.

    Attributes:
        seen: features of the last rows; `pixel`: of the current pixel's channels so far.
        registers: of the convolutions of hidden maps; `products`: of all convolutions.
        layers: at one pixel, as functions; `films`: what modulates each, if anything does; `head`: each channel's outputs.
        rows: what a net keeps of the current row; `columns`: by column, each [n, C].
        h: of the current pixel, [n, width].
    """

    embedding: Tensor | None
    seen: Register
    registers: dict[Shifted, Register]
    products: dict[Shifted, Product]
    layers: dict[Layer, Step]
    films: dict[Layer, Tensor]
    head: list[Callable[[Tensor], Tensor]]
    rows: dict[nn.Module, Tensor] = field(default_factory=dict)
    columns: dict[nn.Module, tuple[Tensor, ...]] = field(default_factory=dict)
    pixel: list[Tensor] = field(default_factory=list)
    h: Any = None
    entry: int = 0

    @cached_property
    def compiled(self) -> dict[Layer, Compiled]:
        """The layers as compiled functions; none where numba cannot take them: off a CPU, in bf16, or with gradients."""
        h = self.seen.rows
        possible = h.device.type == "cpu" and h.dtype in (torch.float32, torch.float64) and not torch.is_grad_enabled()
        return {layer: layer.compiled(self) for layer in self.layers} if possible else {}

    def arrays(self, convolution: Shifted) -> tuple[np.ndarray, tuple[int, int, int]]:
        """A convolution's register and how it is read, as `solve.one_pixel` takes them."""
        register, product = self.registers[convolution], self.products[convolution]
        return register.rows.numpy(), (register.margin, product.first, product.stride)

    def film(self, layer: Layer) -> np.ndarray:
        """Likewise."""
        return self.films.get(layer, self.seen.rows.new_empty(0, 2, 0)).numpy()


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
    """Convolve one pixel [n, C] of the current row, at `column`, or apply a layer there."""

    state: GridState
    column: int

    def run(self, h: Tensor, layers: Iterable[Layer]) -> Tensor:
        """Layers one after the other, each with what it reads at this column, if anything: h [n, C] -> the next, perhaps in place."""
        columns, column = self.state.columns, self.column
        reads = [columns[layer][column] if layer in columns else None for layer in layers]
        if len(h) <= _FEW and self.state.compiled:
            array = h.numpy()
            for layer, read in zip(layers, reads, strict=True):
                self.state.compiled[layer](array, read, column)
            return h
        for layer, read in zip(layers, reads, strict=True):
            h = self.state.layers[layer](h, read, self.state.films.get(layer), self)
        return h

    def __call__(self, convolution: Shifted, h: Tensor, bias: Tensor | None = None) -> Tensor:
        register = self.state.registers[convolution]
        register.put(self.column, h)
        return self.state.products[convolution](register, self.column, bias)

    def of_features(self, convolution: Shifted, bias: Tensor) -> Tensor:
        """The same for the pixels before this one, as their features."""
        return self.state.products[convolution](self.state.seen, self.column, bias)


def modulated(a: Tensor, film: Tensor | None) -> Tensor:
    """a [n, C] times a factor plus a summand, film [n, 2, C]."""
    return a if film is None else torch.addcmul(film[:, 1], a, film[:, 0])
