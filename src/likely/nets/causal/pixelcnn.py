"""PixelCNN: masked convolutions over the entries of a grid in raster order. It has a blind spot.

A kernel is cut to the rows above and its own row, and the weights at the right of the centre are
zero (in the first layer the centre's, too). One layer can step up and right by as much as half a kernel;
within a row nothing leads to the right. So a pixel j columns to the right and i rows above is seen
only if j <= i - 1 + 3 (one step of the first kernel, 7 wide, and i - 1 steps of the others, 3 wide): the
triangle beyond is never seen, however deep the net. `gated-pixelcnn` has no blind spot; this one is here to show it.

References:
    | Pixel recurrent neural networks (van den Oord et al., 2016) | https://arxiv.org/abs/1601.06759
    | Conditional image generation with PixelCNN decoders (the blind spot; van den Oord et al., 2016) | https://arxiv.org/abs/1606.05328
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from likely.nets.causal.grid import GridNet, Position
from likely.nets.causal.registers import Compiled, GridState, Layer, Pixels, Pointwise, Shifted, Step, modulated
from likely.nets.conditioning import FiLM
from likely.nets.dropout import dropout
from likely.space import Space

__all__ = ["PixelCNN"]

_SIZES = {  # residual width, width of the convolutions, depth, dropout
    "tiny": (16, 8, 2, 0.0),
    "small": (64, 32, 6, 0.25),
    "base": (128, 64, 12, 0.25),
}


class Masked(Shifted):
    """A convolution `side` places up, left and right; the centre itself counts unless `strict`."""

    mask: Tensor

    def __init__(self, source: int, target: int, side: int, columns: int, *, strict: bool) -> None:
        super().__init__(source, target, (side + 1, 2 * side + 1), (side, side, side, 0), columns)
        mask = torch.ones(side + 1, 2 * side + 1)
        mask[-1, side + (not strict) :] = 0.0
        self.register_buffer("mask", mask, persistent=False)

    @property
    def kernel(self) -> Tensor:
        return self.weight * self.mask


class Residual(Layer):
    """h + W silu(masked(W silu(h)))."""

    def __init__(self, width: int, inner: int, columns: int, embedding: int | None, dropout: float) -> None:
        super().__init__()
        self.enter, self.leave, self.dropout = Pointwise(width, inner), Pointwise(inner, width), dropout
        self.masked = Masked(inner, inner, 1, columns, strict=False)
        self.film = FiLM(embedding, inner) if embedding else None

    def stepper(self) -> Step:
        masked, enter, leave = self.masked, self.enter.stepper(), self.leave.stepper()

        def step(h: Tensor, _: None, film: Tensor | None, see: Pixels) -> Tensor:
            return h + leave(F.silu(modulated(see(masked, F.silu(enter(F.silu(h)))), film)))

        return step

    def compiled(self, state: GridState) -> Compiled:
        from likely.solve.one_pixel import residual  # numba takes a third of a second to import

        maps = *state.arrays(self.masked), state.film(self), self.enter.arrays(), state.products[self.masked].arrays, self.leave.arrays()
        return lambda h, _, column: residual(h, column, *maps)

    def forward(self, h: Tensor, embedding: Tensor | None) -> Tensor:
        a = self.masked(F.silu(self.enter(F.silu(h))))
        a = self.film(a, embedding) if self.film else a
        a = F.silu(a)
        return h + self.leave(dropout(a, self.dropout, self.training))


class PixelCNN(GridNet):
    """Causal net of a grid: x [B, C, H, W] -> parameters [B, C, H, W, out]."""

    layers: Sequence[Residual]

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        out: int,
        width: int | None = None,
        inner: int | None = None,
        depth: int | None = None,
        dropout: float | None = None,
    ) -> None:
        preset = _SIZES[size]
        width, inner, depth = width or preset[0], inner or preset[1], preset[2] if depth is None else depth
        dropout = preset[3] if dropout is None else dropout
        super().__init__(space, width, out, given)
        _, height, columns = space.shape
        self.first = Masked(sum(self.features), width, 3, columns, strict=True)
        self.place = Position(width, height, columns)
        layers = [Residual(width, inner, columns, width if given else None, dropout) for _ in range(depth)]
        self.layers = nn.ModuleList(layers)  # type: ignore[assignment]

    @property
    def inputs(self) -> tuple[Shifted, ...]:
        return (self.first,)

    def hidden(self, seen: Tensor, embedding: Tensor | None) -> Tensor:
        h = self.place(self.first(seen))
        for layer in self.layers:
            h = layer(h, embedding)
        return h

    def begin_row(self, state: GridState, row: int) -> None:
        for register in state.registers.values():
            register.next_row()
        state.columns[self.first] = self.place.biases(row, self.first, len(state.seen.rows))

    def at_pixel(self, state: GridState, row: int, column: int) -> Tensor:
        see = Pixels(state, column)
        h = see.of_features(self.first, state.columns[self.first][column])
        return see.run(h, self.layers)
