r"""MADE: a residual multilayer perceptron whose masked weights keep each output from its own and later entries.

Every hidden unit has a degree m and sees the first m entries alone. With r(i) the rank of entry i in
the ordering, a weight is there where it leads

    from entry j to a unit of degree m       if r(j) < m
    from a unit to one of degree m'          if m <= m'
    from a unit to the parameters of entry i if m <= r(i)
    from entry j to those of entry i         if r(j) < r(i)

The last are direct connections: units are few per degree, and what is near an entry often tells most about it.
An ordering is therefore a choice of r alone, and all orderings share the weights. Units are sorted by
degree: when an entry becomes known, the units of the next degree can be computed for good, from
those before them. So a whole draw costs each weight once, not once per entry.

References:
    | MADE: masked autoencoder for distribution estimation (Germain et al., 2015) | https://arxiv.org/abs/1502.03509
    | Autoregressive energy machines (ResMADE; Nash and Durkan, 2019) | https://arxiv.org/abs/1904.05626
    | A deep and tractable density estimator (shared weights, many orderings; Uria et al., 2014) | https://arxiv.org/abs/1310.1757
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from likely.nets.causal import CausalNet
from likely.nets.causal.inputs import Signs, orders_of, raster, tokens_of
from likely.nets.conditioning import Conditioner
from likely.nets.dropout import dropout
from likely.nets.masked import MaskedLinear
from likely.space import Space

__all__ = ["MADE", "MADEState"]

_SIZES = {  # width, depth, dropout
    "tiny": (64, 1, 0.0),
    "small": (512, 2, 0.1),
    "base": (1024, 3, 0.1),
}
_TOKEN = 16


class Block(nn.Module):
    """h + W2 silu(W1 silu(h)), all masked alike."""

    def __init__(self, degree: Tensor, dropout: float) -> None:
        super().__init__()
        self.up, self.down, self.dropout = MaskedLinear(degree, degree), MaskedLinear(degree, degree), dropout

    def forward(self, h: Tensor, degree: Tensor) -> Tensor:
        u = dropout(F.silu(self.up.masked(F.silu(h), degree, degree)), self.dropout, self.training)
        return h + self.down.masked(u, degree, degree)


@dataclass
class MADEState:
    """Updated in place by `step`.

    Attributes:
        known: what the known entries and `given` add up to in the first layer, [n, width].
        tokens: of the known entries, by place, and zeros [n, places * width of a token]; for direct connections.
        units: per layer, its units after their nonlinearity, those of the degrees so far; [n, width] each.
        order: places in the order of the entries.
    """

    known: Tensor
    tokens: Tensor | None
    units: list[Tensor]
    order: list[int]
    entry: int = 0


class MADE(CausalNet):
    """Causal net of a table or grid: x [B, *shape] -> parameters [B, *shape, out].

    Args:
        dropout: of the units inside of blocks, and of those that the outputs read.
        orderings: of the entries: the natural one, and others drawn at random. Training takes another one at each
            step; otherwise `under` says which.
        direct: connections from entries to outputs; by default where all entries have two values.
    """

    degree: Tensor
    rank: Tensor
    blocks: Sequence[Block]

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
        orderings: int = 1,
        direct: bool | None = None,
    ) -> None:
        super().__init__()
        preset = _SIZES[size]
        width = max(width or preset[0], space.dims)  # a unit of each degree, at least: else an entry would not see the latest ones
        depth, dropout = preset[1] if depth is None else depth, preset[2] if dropout is None else dropout
        self.space, self.out, self.dropout = space, out, dropout
        self.orderings, self.orders = orderings, orders_of(raster(space), orderings)
        self.ordering, self.order = 0, self.orders[0]
        degree, rank = torch.arange(width) * space.dims // width, self.orders.argsort(1)  # degree 0 sees nothing
        self.register_buffer("degree", degree.int(), persistent=False)  # small: masks are made of comparisons at each step
        self.register_buffer("rank", rank.int(), persistent=False)
        self.tokens, self.given = tokens_of(space, _TOKEN), Conditioner(given, width)
        self.first = MaskedLinear(self._ranks(rank[0])[0], degree)
        self.blocks = nn.ModuleList(Block(degree, dropout) for _ in range(depth))  # type: ignore[assignment]
        self.last = MaskedLinear(degree, rank[0].repeat_interleave(out))
        direct = isinstance(self.tokens, Signs) if direct is None else direct
        self.direct = MaskedLinear(*self._ranks(rank[0]), bias=False) if direct else None
        if self.direct is not None:
            nn.init.zeros_(self.direct.weight)

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        drawn = self.training and self.orderings > 1
        source, target = self._ranks(self.rank[int(torch.randint(self.orderings, ())) if drawn else self.ordering])
        tokens, embedding = self._tokens(x.flatten(1)), self.given(given, len(x))
        h = self.first.masked(tokens, source, self.degree)
        h = h if embedding is None else h + embedding
        for block in self.blocks:
            h = block(h, self.degree)
        parameters = self.last.masked(dropout(F.silu(h), self.dropout, self.training), self.degree, target)
        if self.direct is not None:
            parameters = parameters + self.direct.masked(tokens, source, target)
        return parameters.view(*x.shape, self.out)

    def _ranks(self, rank: Tensor) -> tuple[Tensor, Tensor]:
        """Degrees of the numbers of all tokens, and of all parameters."""
        return rank.repeat_interleave(self.tokens.width) + 1, rank.repeat_interleave(self.out)

    def _tokens(self, x: Tensor, first: int = 0) -> Tensor:
        """Entries from the place `first` on, each as `tokens.width` numbers, side by side."""
        return self.tokens(x, first).flatten(1).to(self.first.weight.dtype)

    def init_state(self, n: int, given: Tensor | None = None) -> MADEState:
        embedding, units = self.given(given, n), self.first.bias.new_zeros(n, len(self.degree))
        known = self.first.bias.expand(n, -1) + (0.0 if embedding is None else embedding)
        tokens = None if self.direct is None else units.new_zeros(n, self.direct.in_features)
        return MADEState(known, tokens, [units.clone() for _ in range(2 * len(self.blocks) + 1)], self.order.tolist())

    def step(self, state: MADEState, x_i: Tensor | None) -> tuple[MADEState, Tensor]:
        if x_i is not None:
            place = state.order[state.entry - 1]
            columns = slice(place * self.tokens.width, (place + 1) * self.tokens.width)
            token = self._tokens(x_i[:, None], place)
            state.known = state.known + F.linear(token, self.first.weight[:, columns])
            if state.tokens is not None:
                state.tokens[:, columns] = token
        place, known = state.order[state.entry], self._extend(state)
        state.entry += 1
        rows = slice(place * self.out, (place + 1) * self.out)
        parameters = self.last.part(known, rows)
        if self.direct is not None and state.tokens is not None:
            parameters = parameters + self.direct.part(state.tokens, rows)  # of unknown entries they are zero
        return state, parameters

    def _extend(self, state: MADEState) -> Tensor:
        """Compute the units whose degree is the number of known entries; the last layer's units so far."""
        begin, end = (-(-m * len(self.degree) // self.space.dims) for m in (state.entry, state.entry + 1))
        new, units = slice(begin, end), iter(state.units)

        def grown(values: Tensor) -> Tensor:
            layer = next(units)
            layer[:, new] = F.silu(values)
            return layer[:, :end]

        h = state.known[:, new]
        so_far = grown(h)
        for block in self.blocks:
            h = h + block.down.part(grown(block.up.part(so_far, new)), new)
            so_far = grown(h)
        return so_far
