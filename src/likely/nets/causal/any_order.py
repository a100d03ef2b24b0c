r"""A causal transformer that takes the entries in any order.

With s a permutation of places, token t holds the value of the entry before it, where that entry
stands, and where the entry to be predicted stands:

    h_0,t = token(x_{s(t-1)}) + here(s(t-1)) + there(s(t))          (before the first, a start token)
    parameters_{s(t)} = W norm(h_L,t),   h_l+1 = block(h_l)          (see `block`; full causal attention)

Each step of training takes another order for each example, all equally likely, so that the loss is
the mean over orders of the code length,

    E_s [ -sum_t log p(x_{s(t)} | x_{s(1)} .. x_{s(t-1)}) ]

and the net learns each entry given any set of others. Under a fixed order the conditionals make one
normalised distribution. The distributions of two orders differ, however little training leaves of it:
each is a model of its own. The likelihood is that of the raster order, or of `orderings` of them, mixed
as probabilities; what is unknown is drawn in the order that begins with what is known (`ordered`).

References:
    | A deep and tractable density estimator (orderless training; Uria et al., 2014) | https://arxiv.org/abs/1310.1757
    | XLNet: generalized autoregressive pretraining (the place to be predicted; Yang et al., 2019) | https://arxiv.org/abs/1906.08237
    | sigma-GPTs: a new approach to autoregressive models (both places in a token; Pannatier et al., 2024) | https://arxiv.org/abs/2404.09562
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from likely.errors import UsageError
from likely.nets.causal import CausalNet, OrderFree
from likely.nets.causal.attention import Place, SoftmaxAttention
from likely.nets.causal.block import Block, Context, Norm
from likely.nets.causal.inputs import Outputs, Tokens, orders_of, raster
from likely.nets.conditioning import Conditioner
from likely.nets.split import head_width
from likely.space import Space

__all__ = ["AnyOrder", "AnyOrderState"]

_SIZES = {  # width, depth, heads, dropout
    "tiny": (16, 1, 2, 0.0),
    "small": (64, 3, 4, 0.0),  # random orders keep it from overfitting
    "base": (192, 6, 6, 0.1),
}
_NOWHERE = Place(None, None, None)  # where entries stand is in their tokens


@dataclass
class AnyOrderState:
    """What attention keeps of the entries so far, updated in place by `step`; `order` holds ranks in raster order."""

    context: Context
    caches: list[Any]
    blocks: list[Any]
    order: list[int]
    entry: int = 0


class AnyOrder(OrderFree):
    """Causal net: x [B, *shape] -> parameters [B, *shape, out], under an order of the entries.

    Args:
        heads: of attention, a divisor of the width.
        orderings: that the likelihood mixes: raster order, and others drawn at random, always the same ones.

    Raises: UsageError for several orderings of a sequence, which is read and continued in one.
    """

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
        heads: int | None = None,
        dropout: float | None = None,
        orderings: int = 1,
    ) -> None:
        super().__init__()
        preset = _SIZES[size]
        width, depth, heads = width or preset[0], preset[1] if depth is None else depth, preset[2] if heads is None else heads
        dropout = preset[3] if dropout is None else dropout
        _check(space, width, heads, orderings)
        self.space, self.kinds, self.orderings = space, len(space.supports), orderings
        self.natural = raster(space)
        self.orders, self.ordering = orders_of(self.natural, orderings), 0
        self.order, self.room = self.orders[0], space.dims
        self.tokens, self.given, self.start = Tokens(space, width), Conditioner(given, width), nn.Embedding(1, width)
        self.here, self.there = nn.Embedding(space.dims, width), nn.Embedding(space.dims, width)
        self.blocks = nn.ModuleList(  # type: ignore[assignment]
            Block(
                width,
                SoftmaxAttention(width, heads, heads, space.dims),
                heads=heads,
                norm="layer",
                ffn="gelu",
                given_by=None,
                dropout=dropout,
            )
            for _ in range(depth)
        )
        self.norm, self.last = Norm("layer", width, film=False), Outputs(self.kinds, width, out)

    # -- orders ---------------------------------------------------------------------------------

    def lead(self, order: Tensor) -> None:
        self.orders[0] = order
        self.order = self.orders[self.ordering]

    def ordered(self, order: Tensor) -> CausalNet:
        return Bound(self, order)

    def ranks(self, order: Tensor) -> Tensor:
        """Places of a flattened example -> their ranks in raster order."""
        return self.natural.argsort()[order.cpu()]

    # -- all at once ----------------------------------------------------------------------------

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        if not self.training:
            return self.along(x, given, self.ranks(self.order))
        entries = min(x[0].numel(), self.space.dims)
        return self.along(x, given, torch.rand(len(x), entries, device=x.device).argsort(1))

    def along(self, x: Tensor, given: Tensor | None, order: Tensor) -> Tensor:
        """Parameters under orders of ranks, [entries] or each example's own [B, entries]; a shorter sequence has the first ranks alone."""
        entries = x.movedim(1, -1) if self.space.layout == "grid" else x
        seen = self.tokens(entries.reshape(-1, self.kinds)).view(len(x), -1, self.here.embedding_dim)
        order = order[order < seen.shape[1]] if order.ndim == 1 else order
        order = order.to(x.device).expand(len(x), -1)
        seen = (seen + self.here.weight[: seen.shape[1]]).gather(1, _wide(order, seen))
        before = torch.cat([self._context(len(x), given).start[:, None], seen[:, :-1]], 1)
        h, context = before + self.there(order), Context(before)
        for i, block in enumerate(self.blocks):
            h = block(h, _NOWHERE, context, i)
        h = h.gather(1, _wide(order.argsort(1), h))
        parameters = self.last(self.norm(h, None)).unflatten(1, entries.shape[1:])
        return parameters.movedim(-2, 1) if self.space.layout == "grid" else parameters

    def _context(self, n: int, given: Tensor | None) -> Context:
        embedding = self.given(given, n)
        start = self.start.weight.expand(n, -1)
        return Context(start if embedding is None else start + embedding)

    # -- entry by entry -------------------------------------------------------------------------

    def init_state(self, n: int, given: Tensor | None = None) -> AnyOrderState:
        return self.begin(n, given, self.order)

    def begin(self, n: int, given: Tensor | None, order: Tensor) -> AnyOrderState:
        """The state before the first entry of an order of places."""
        caches, steppers = [b.attention.init(n) for b in self.blocks], [b.stepper(i) for i, b in enumerate(self.blocks)]
        return AnyOrderState(self._context(n, given), caches, steppers, self.ranks(order).tolist())

    def step(self, state: AnyOrderState, x_i: Tensor | None) -> tuple[AnyOrderState, Tensor]:
        rank, h = state.order[state.entry], state.context.start
        if x_i is not None:
            last = state.order[state.entry - 1]
            h = self.tokens(x_i[:, None], last % self.kinds)[:, 0] + self.here.weight[last]
        h = h + self.there.weight[rank]
        for block, cache in zip(state.blocks, state.caches, strict=True):
            h = block(h, _NOWHERE, state.context, cache)
        state.entry += 1
        return state, self.last.one(self.norm(h, None), rank % self.kinds)


class Bound(CausalNet):
    """An order-free net under one order of places."""

    def __init__(self, net: AnyOrder, order: Tensor) -> None:
        super().__init__()
        self.net, self.order, self.room = net, order, net.room

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        return self.net.along(x, given, self.net.ranks(self.order))

    def init_state(self, n: int, given: Tensor | None = None) -> AnyOrderState:
        return self.net.begin(n, given, self.order)

    def step(self, state: AnyOrderState, x_i: Tensor | None) -> tuple[AnyOrderState, Tensor]:
        return self.net.step(state, x_i)


def _wide(index: Tensor, like: Tensor) -> Tensor:
    """Indices [B, L] of rows of `like` [B, L, width]."""
    return index[..., None].expand(-1, -1, like.shape[-1])


def _check(space: Space, width: int, heads: int, orderings: int) -> None:
    head_width(width, heads)
    if space.layout == "sequence" and orderings > 1:
        raise UsageError("A sequence is read in one order.", "Leave out orderings; fill takes any mask all the same.")
