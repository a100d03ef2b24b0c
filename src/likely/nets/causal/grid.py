"""A gated convolutional net over the entries of a grid in raster order, without a blind spot.

Entries are ordered by row, column, channel. The vertical stack v sees the rows above, the
horizontal stack h the row's own left part and, through a link, v; gate(a, b) = a * sigmoid(b):

    v_0 = conv(x one row down) + position          u = gate(conv_2x3(v_l))
    h_0 = conv(x one column right) + position      w = gate(conv_1x3(h_l) + W u)
    v_{l+1} = v_l + W u                            h_{l+1} = h_l + W w

and channel c of a pixel reads h_L and the pixel's channels before c. Causality is by shifts and
padding, no weight is masked. So a step applies the very same convolutions to crops: of one row of
v when a row begins, and of three pixels of h. The maps below are what the crops are taken from.

References:
    | Conditional image generation with PixelCNN decoders (van den Oord et al., 2016) | https://arxiv.org/abs/1606.05328
    | PixelCNN++ (Salimans et al., 2017) | https://arxiv.org/abs/1701.05517
    | Fast generation for convolutional autoregressive models (Ramachandran et al., 2017) | https://arxiv.org/abs/1704.06001
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from likely.nets.causal import CausalNet
from likely.nets.causal.inputs import feature_width, features
from likely.nets.conditioning import Conditioner, FiLM
from likely.space import Space

__all__ = ["GatedPixelCNN", "GridState"]

_SIZES = {  # residual width, gate width, depth, dropout
    "tiny": (16, 8, 2, 0.0),
    "small": (64, 32, 6, 0.25),
    "base": (128, 64, 12, 0.25),
}


class Stacks(nn.Module):
    """One layer of both stacks. It never pads: it is given padded maps, or crops of them."""

    def __init__(self, width: int, gates: int, dilation: int, embedding: int | None, dropout: float, *, last: bool) -> None:
        super().__init__()
        self.dilation, self.dropout = dilation, dropout
        self.vertical = nn.Conv2d(width, 2 * gates, (2, 3), dilation=dilation)
        self.horizontal = nn.Conv2d(width, 2 * gates, (1, 3), dilation=dilation)
        self.link = nn.Conv2d(gates, 2 * gates, 1)
        self.out_h = nn.Conv2d(gates, width, 1)
        self.out_v = None if last else nn.Conv2d(gates, width, 1)  # nothing reads the vertical stack's end
        self.film = FiLM(embedding, 2 * gates) if embedding else None

    def down(self, v: Tensor, padded: Tensor) -> tuple[Tensor, Tensor]:
        """(next v, gates u); `padded` has `dilation` rows above v and as many columns at both sides."""
        u = self._drop(F.glu(self.vertical(padded), 1))
        return v if self.out_v is None else v + self.out_v(u), u

    def right(self, h: Tensor, padded: Tensor, u: Tensor, embedding: Tensor | None) -> Tensor:
        """Next h; `padded` has 2 `dilation` columns left of h."""
        a = self.horizontal(padded) + self.link(u)
        a = self.film(a, embedding) if self.film else a
        return h + self.out_h(self._drop(F.glu(a, 1)))

    def _drop(self, u: Tensor) -> Tensor:
        return F.dropout(u, self.dropout, self.training)


class Position(nn.Module):
    """A learned vector per place of the grid, added to a map or a crop of it."""

    def __init__(self, width: int, height: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, height, columns))

    def forward(self, h: Tensor, row: int = 0, column: int = 0) -> Tensor:
        """h [B, width, rows, columns], whose first place is (row, column)."""
        return h + self.weight[:, row : row + h.shape[2], column : column + h.shape[3]]


class ChannelHead(nn.Module):
    """Parameters of each channel of a pixel from h and the pixel's channels before it."""

    def __init__(self, width: int, features: list[int], out: int) -> None:
        super().__init__()
        self.before = nn.ModuleList(nn.Conv2d(sum(features[:c]), width, 1, bias=False) for c in range(1, len(features)))
        self.out = nn.ModuleList(nn.Conv2d(width, out, 1) for _ in features)

    def forward(self, h: Tensor, features: list[Tensor], channel: int) -> Tensor:
        """[B, out, H, W] of one channel; `features` of the channels before it, at least."""
        if channel:
            h = h + self.before[channel - 1](torch.cat(features[:channel], 1))
        return self.out[channel](F.silu(h))


@dataclass
class GridState:
    """Shift registers: what the convolutions of the next row and pixel look at. Updated in place by `step`.

    Attributes:
        rows: features of the last two rows, padded; `row`: of the current row's pixels so far.
        v: per layer, its last dilation + 1 rows, padded; `u`: its gates of the current row.
        left: features of the last two pixels; `h`: per layer, its last 2 dilation + 1 pixels.
        last: h_L of the current pixel; `pixel`: features of its channels so far.
    """

    embedding: Tensor | None
    rows: Tensor
    v: list[Tensor]
    left: Tensor
    h: list[Tensor]
    last: Tensor
    row: list[Tensor] = field(default_factory=list)
    u: list[Tensor] = field(default_factory=list)
    pixel: list[Tensor] = field(default_factory=list)
    entry: int = 0


class GatedPixelCNN(CausalNet):
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
        super().__init__()
        preset = _SIZES[size]
        width, gates, depth = width or preset[0], gates or preset[1], depth or preset[2]
        dropout = preset[3] if dropout is None else dropout
        self.space, self.width = space, width
        self.features = [feature_width(s) for s in space.supports]
        count, embedding = sum(self.features), width if given else None
        self.given = Conditioner(given, width)
        self.above, self.left = nn.Conv2d(count, width, (2, 3)), nn.Conv2d(count, width, (1, 2))
        self.place_v, self.place_h = Position(width, *space.shape[1:]), Position(width, *space.shape[1:])
        cycle = max(1, (max(space.shape[1:]) // 8).bit_length())  # dilations 1, 2, 4, ... where grids are large
        layers = [Stacks(width, gates, 2 ** (i % cycle), embedding, dropout, last=i == depth - 1) for i in range(depth)]
        self.stacks = nn.ModuleList(layers)  # type: ignore[assignment]
        self.head = ChannelHead(width, self.features, out)
        self.order = torch.arange(space.dims).view(space.shape).permute(1, 2, 0).flatten()  # by row, column, channel

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        embedding = self.given(given, len(x))
        parts = [features(s, x[:, c], self.left.weight.dtype) for c, s in enumerate(self.space.supports)]
        seen = torch.cat(parts, 1)
        v = self.place_v(self.above(F.pad(seen, (1, 1, 2, -1))))
        h = self.place_h(self.left(F.pad(seen, (2, -1))))
        for layer in self.stacks:
            d = layer.dilation
            v, u = layer.down(v, F.pad(v, (d, d, d, 0)))
            h = layer.right(h, F.pad(h, (2 * d, 0)), u, embedding)
        return torch.stack([self.head(h, parts, c).movedim(1, -1) for c in range(len(parts))], 1)

    def init_state(self, n: int, given: Tensor | None = None) -> GridState:
        count, columns, zeros = sum(self.features), self.space.shape[-1], self.left.weight.new_zeros
        return GridState(
            embedding=self.given(given, n),
            rows=zeros(n, count, 2, columns + 2),
            v=[zeros(n, self.width, s.dilation + 1, columns + 2 * s.dilation) for s in self.stacks],
            left=zeros(n, count, 1, 2),
            h=[zeros(n, self.width, 1, 2 * s.dilation + 1) for s in self.stacks],
            last=zeros(n, self.width, 1, 1),
        )

    def step(self, state: GridState, x_i: Tensor | None) -> tuple[GridState, Tensor]:
        channels, _, columns = self.space.shape
        if x_i is not None:
            support = self.space.supports[(state.entry - 1) % channels]
            state.pixel.append(features(support, x_i[:, None, None], self.left.weight.dtype))
        pixel, channel = divmod(state.entry, channels)
        row, column = divmod(pixel, columns)
        if channel == 0:
            self._end_pixel(state)
            if column == 0:
                self._begin_row(state, row)
            self._begin_pixel(state, row, column)
        state.entry += 1
        return state, self.head(state.last, state.pixel, channel)[..., 0, 0]

    def _end_pixel(self, state: GridState) -> None:
        if state.pixel:
            seen = torch.cat(state.pixel, 1)
            state.row.append(seen)
            state.left = _shifted(state.left, seen, 3)
            state.pixel = []

    def _begin_row(self, state: GridState, row: int) -> None:
        """Run the vertical stack for one row, and start the horizontal one from zeros."""
        if state.row:
            state.rows = _shifted(state.rows, F.pad(torch.cat(state.row, 3), (1, 1)), 2)
        v, state.row, state.u = self.place_v(self.above(state.rows), row), [], []
        for i, layer in enumerate(self.stacks):
            d = layer.dilation
            state.v[i] = _shifted(state.v[i], F.pad(v, (d, d)), 2)
            v, u = layer.down(v, state.v[i])
            state.u.append(u)
        state.left, state.h = torch.zeros_like(state.left), [torch.zeros_like(h) for h in state.h]

    def _begin_pixel(self, state: GridState, row: int, column: int) -> None:
        """Run the horizontal stack for one pixel."""
        h = self.place_h(self.left(state.left), row, column)
        for i, layer in enumerate(self.stacks):
            state.h[i] = _shifted(state.h[i], h, 3)
            h = layer.right(h, state.h[i], state.u[i][..., column : column + 1], state.embedding)
        state.last = h


def _shifted(register: Tensor, new: Tensor, axis: int) -> Tensor:
    """Drop the oldest slice, append the newest."""
    return torch.cat([register.narrow(axis, 1, register.shape[axis] - 1), new], axis)
