"""A gated convolutional net over the entries of a grid in raster order, without a blind spot.

The vertical stack v sees the rows above, the horizontal stack h the row's own left part and, through a
link, v; gate(a, b) = a * sigmoid(b):

    v_0 = conv(x one row down) + position          u = gate(conv_2x3(v_l))
    h_0 = conv(x one column right) + position      w = gate(conv_1x3(h_l) + W u)
    v_{l+1} = v_l + W u                            h_{l+1} = h_l + W w

References:
    | Conditional image generation with PixelCNN decoders (van den Oord et al., 2016) | https://arxiv.org/abs/1606.05328
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from likely.nets.causal import layers_of
from likely.nets.causal.grid import TwoStreams
from likely.nets.causal.registers import Compiled, GridState, Layer, Pixels, Pointwise, Rows, See, Shifted, Step, modulated
from likely.nets.conditioning import FiLM
from likely.nets.dropout import dropout
from likely.space import Space

__all__ = ["GatedPixelCNN"]

_SIZES = {  # residual width, gate width, depth, dropout
    "tiny": (16, 8, 2, 0.0),
    "small": (64, 32, 6, 0.25),
    "base": (128, 64, 12, 0.25),
}


class Stacks(Layer):
    """One layer of both stacks."""

    def __init__(self, width: int, gates: int, columns: int, dilation: int, embedding: int | None, dropout: float, *, last: bool) -> None:
        super().__init__()
        d, self.dropout = dilation, dropout
        self.vertical = Shifted(width, 2 * gates, (2, 3), (d, d, d, 0), columns, dilation=d)
        self.horizontal = Shifted(width, 2 * gates, (1, 3), (2 * d, 0, 0, 0), columns, dilation=d)
        self.link, self.out_h = Pointwise(gates, 2 * gates), Pointwise(gates, width)
        self.out_v = None if last else Pointwise(gates, width)  # nothing reads the vertical stack's end
        self.film = FiLM(embedding, 2 * gates) if embedding else None

    def down(self, v: Tensor, see: See) -> tuple[Tensor, Tensor]:
        """(next v, what the horizontal stack takes of it)."""
        u = self._drop(F.glu(see(self.vertical, v), 1))
        return v if self.out_v is None else v + self.out_v(u), self.link(u)

    def right(self, h: Tensor, linked: Tensor, embedding: Tensor | None, see: See) -> Tensor:
        """Next h."""
        a = see(self.horizontal, h) + linked
        a = self.film(a, embedding) if self.film else a
        return h + self.out_h(self._drop(F.glu(a, 1)))

    def stepper(self) -> Step:
        """As `right`; what is linked holds the convolution's bias."""
        horizontal, out = self.horizontal, self.out_h.stepper()

        def step(h: Tensor, linked: Tensor, film: Tensor | None, see: Pixels) -> Tensor:
            return h + out(F.glu(modulated(see(horizontal, h, linked), film), 1))

        return step

    def compiled(self, state: GridState) -> Compiled:
        from likely.solve.one_pixel import gated  # numba takes a third of a second to import

        maps = *state.arrays(self.horizontal), state.film(self), state.products[self.horizontal].arrays[0], self.out_h.arrays()
        return lambda h, linked, column: gated(h, linked.numpy(), column, *maps)

    def _drop(self, u: Tensor) -> Tensor:
        return dropout(u, self.dropout, self.training)


class GatedPixelCNN(TwoStreams):
    """Causal net of a grid: x [B, C, H, W] -> parameters [B, C, H, W, out]."""

    stacks: Sequence[Stacks]

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        out: int,
        width: int | None = None,
        gates: int | None = None,
        depth: int | None = None,
        dropout: float | None = None,
    ) -> None:
        preset = _SIZES[size]
        width, gates, depth = width or preset[0], gates or preset[1], layers_of(depth, preset[2])
        dropout = preset[3] if dropout is None else dropout
        super().__init__(space, width, out, given)
        _, height, columns = space.shape
        cycle = max(1, (max(height, columns) // 8).bit_length())  # dilations 1, 2, 4, ... where grids are large
        embedding = width if given else None
        layers = [Stacks(width, gates, columns, 2 ** (i % cycle), embedding, dropout, last=i == depth - 1) for i in range(depth)]
        self.stacks = nn.ModuleList(layers)  # type: ignore[assignment]

    def maps(self, v: Tensor, h: Tensor, embedding: Tensor | None) -> Tensor:
        for layer in self.stacks:
            v, linked = layer.down(v, Shifted.__call__)
            h = layer.right(h, linked, embedding, Shifted.__call__)
        return h

    def row(self, state: GridState, row: int, v: Tensor) -> None:
        for layer in self.stacks:
            v, linked = layer.down(v, Rows(state))
            assert layer.horizontal.bias is not None
            state.columns[layer] = (linked[:, :, 0] + layer.horizontal.bias[:, None]).unbind(2)
            state.registers[layer.horizontal].next_row()

    def pixel(self, state: GridState, row: int, column: int, h: Tensor) -> Tensor:
        return Pixels(state, column).run(h, self.stacks)
