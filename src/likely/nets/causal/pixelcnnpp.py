"""PixelCNN++: two streams of gated residual blocks through a U of resolutions, without a blind spot.

The stream v sees the rows above; the stream h sees those and the row's own left part, and reads v in each block:

    v_0 = conv(x one row down) + position          v <- v + gate(conv_2x3(silu(conv_2x3(silu(v)))))
    h_0 = conv(x one column right) + position      h <- h + gate(conv_2x2(silu(conv_2x2(silu(h)) + W silu(v))))

with gate(a, b) = a * sigmoid(b). At each resolution run `depth` blocks, then all coarser resolutions, then
`depth` blocks more. A coarser pixel (i, j) is computed from the finer ones up to (2i, 2j), so it knows only what is
before those, and gives a vector to each of (2i, 2j) .. (2i + 1, 2j + 1). It is added to what was there
before, which is the shortcut: what came after (2i, 2j) is known at the finer resolution. A grid is halved while both
sides are even and leave 6 places, at most twice (28 -> 14 -> 7, 32 -> 16 -> 8).

References:
    | PixelCNN++: Improving the PixelCNN with discretized logistic mixture likelihood (Salimans et al., 2017) | https://arxiv.org/abs/1701.05517
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from likely.nets.causal import layers_of
from likely.nets.causal.grid import TwoStreams
from likely.nets.causal.registers import Compiled, GridState, Layer, Pixels, Pointwise, Rows, See, Shifted, Step, modulated
from likely.nets.conditioning import FiLM
from likely.nets.dropout import dropout
from likely.space import Space

__all__ = ["PixelCNNPlusPlus"]

_SIZES = {  # width, blocks before and after the coarser resolutions, dropout
    "tiny": (8, 1, 0.0),
    "small": (32, 1, 0.25),
    "base": (96, 3, 0.25),
}
_Convolution = Callable[..., Shifted]
_DOWN: _Convolution = partial(Shifted, kernel=(2, 3), pads=(1, 1, 1, 0))
_RIGHT: _Convolution = partial(Shifted, kernel=(2, 2), pads=(1, 0, 1, 0))


class Block(Layer):
    """A gated residual block; `reads` whether it reads the other stream."""

    def __init__(self, convolution: _Convolution, width: int, embedding: int | None, dropout: float, *, reads: bool) -> None:
        super().__init__()
        self.first, self.second = convolution(width, width), convolution(width, 2 * width)
        self.link = Pointwise(width, width) if reads else None
        self.film, self.dropout = FiLM(embedding, 2 * width) if embedding else None, dropout

    def read(self, v: Tensor) -> Tensor:
        """What it takes of the other stream."""
        assert self.link is not None
        return self.link(F.silu(v))

    def read_row(self, v: Tensor) -> tuple[Tensor, ...]:
        """What it takes of a row of the other stream, with the first convolution's bias, by column."""
        assert self.first.bias is not None
        return (self.read(v)[:, :, 0] + self.first.bias[:, None]).unbind(2)

    def forward(self, h: Tensor, read: Tensor | None, embedding: Tensor | None, see: See = Shifted.__call__) -> Tensor:
        a = see(self.first, F.silu(h))
        a = F.silu(a if read is None else a + read)
        a = see(self.second, dropout(a, self.dropout, self.training))
        a = a if self.film is None else self.film(a, embedding)
        return h + F.glu(a, 1)

    def stepper(self) -> Step:
        """As `forward` of a block that reads; what is read holds the first convolution's bias."""
        first, second = self.first, self.second

        def step(h: Tensor, read: Tensor, film: Tensor | None, see: Pixels) -> Tensor:
            return h + F.glu(modulated(see(second, F.silu(see(first, F.silu(h), read))), film), 1)

        return step

    def compiled(self, state: GridState) -> Compiled:
        from likely.solve.one_pixel import block  # numba takes a third of a second to import

        seen, at = zip(state.arrays(self.first), state.arrays(self.second), strict=True)
        maps = seen, at, state.film(self), state.products[self.first].arrays[0], state.products[self.second].arrays
        return lambda h, read, column: block(h, read.numpy(), column, *maps)


class Finer(nn.Module):
    """Each pixel of a map, row or single pixel as a square of two by two."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spread = Pointwise(width, 4 * width)

    def forward(self, h: Tensor) -> Tensor:
        """[B, C, rows, columns] -> [B, C, 2 rows, 2 columns]; [B, C] -> [B, C, 2, 2]."""
        a = self.spread(h)
        return F.pixel_shuffle(a if a.ndim == 4 else a[..., None, None], 2)


class Level(nn.Module):
    """One resolution of one stream: its blocks, and the ways to and from the next coarser one."""

    before: Sequence[Block]
    after: Sequence[Block]

    def __init__(self, convolution: _Convolution, width: int, blocks: list[Block], *, last: bool) -> None:
        super().__init__()
        half = len(blocks) // 2
        self.before, self.after = nn.ModuleList(blocks[:half]), nn.ModuleList(blocks[half:])  # type: ignore[assignment]
        self.last = last
        if not last:
            self.coarser, self.finer = convolution(width, width, stride=2), Finer(width)

    def convolutions(self) -> list[Shifted]:
        """Its convolutions of maps of this resolution."""
        return [m for m in self.modules() if isinstance(m, Shifted)]


class PixelCNNPlusPlus(TwoStreams):
    """Causal net of a grid: x [B, C, H, W] -> parameters [B, C, H, W, out]."""

    down: Sequence[Level]
    right: Sequence[Level]

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        out: int,
        width: int | None = None,
        depth: int | None = None,
        dropout: float | None = None,
    ) -> None:
        preset = _SIZES[size]
        width, depth, dropout = width or preset[0], layers_of(depth, preset[1]), preset[2] if dropout is None else dropout
        super().__init__(space, width, out, given)
        _, height, columns = space.shape
        count, embedding = _resolutions(height, columns), width if given else None

        def level(i: int, stream: _Convolution, *, reads: bool) -> Level:
            convolution = partial(stream, columns=columns >> i)
            blocks = [Block(convolution, width, embedding, dropout, reads=reads) for _ in range(2 * depth)]
            return Level(convolution, width, blocks, last=i == count - 1)

        self.down = nn.ModuleList(level(i, _DOWN, reads=False) for i in range(count))  # type: ignore[assignment]
        self.right = nn.ModuleList(level(i, _RIGHT, reads=True) for i in range(count))  # type: ignore[assignment]

    def maps(self, v: Tensor, h: Tensor, embedding: Tensor | None) -> Tensor:
        return self._maps(0, v, h, embedding)[1]

    def _maps(self, i: int, v: Tensor, h: Tensor, embedding: Tensor | None) -> tuple[Tensor, Tensor]:
        """Both streams at the resolution i and all coarser ones."""
        down, right = self.down[i], self.right[i]
        for above, left in zip(down.before, right.before, strict=True):
            v = above(v, None, embedding)
            h = left(h, left.read(v), embedding)
        if not down.last:
            low_v, low_h = self._maps(i + 1, down.coarser(v), right.coarser(h), embedding)
            v, h = v + down.finer(low_v), h + right.finer(low_h)
        for above, left in zip(down.after, right.after, strict=True):
            v = above(v, None, embedding)
            h = left(h, left.read(v), embedding)
        return v, h

    def row(self, state: GridState, row: int, v: Tensor, i: int = 0) -> Tensor:
        down, right, see = self.down[i], self.right[i], Rows(state)
        for convolution in right.convolutions():
            state.registers[convolution].next_row()
        for above, left in zip(down.before, right.before, strict=True):
            v = above(v, None, state.embedding, see)
            state.columns[left] = left.read_row(v)
        if not down.last:
            coarse = see(down.coarser, v)
            if row % 2 == 0:
                state.rows[down] = down.finer(self.row(state, row // 2, coarse, i + 1))
                state.rows[right] = torch.zeros_like(state.rows[down])
            v = v + state.rows[down][:, :, row % 2 : row % 2 + 1]
        for above, left in zip(down.after, right.after, strict=True):
            v = above(v, None, state.embedding, see)
            state.columns[left] = left.read_row(v)
        return v

    def pixel(self, state: GridState, row: int, column: int, h: Tensor, i: int = 0) -> Tensor:
        right, see = self.right[i], Pixels(state, column)
        h = see.run(h, right.before)
        if not right.last:
            coarse = see(right.coarser, h)
            if row % 2 == column % 2 == 0:
                low = self.pixel(state, row // 2, column // 2, coarse, i + 1)
                state.rows[right][..., column : column + 2] = right.finer(low)
            h = h + state.rows[right].select(2, row % 2).select(2, column)
        return see.run(h, right.after)


def _resolutions(height: int, width: int) -> int:
    """How many a grid is run at."""
    halves = 0
    while halves < 2 and height % 2 == width % 2 == 0 and min(height, width) >= 12:
        height, width, halves = height // 2, width // 2, halves + 1
    return 1 + halves
