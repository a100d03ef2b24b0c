"""A causal transformer over the entries of a table or a sequence, with a cache of keys and values.

Token i is the vector of entry i - 1 plus that of place i; before the first stands a start token,
which carries `given`. Tables have their own output map per column, sequences share one.

References:
    | Attention is all you need (Vaswani et al., 2017) | https://arxiv.org/abs/1706.03762
    | On layer normalization in the transformer architecture (Xiong et al., 2020) | https://arxiv.org/abs/2002.04745
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from likely.nets.causal import CausalNet
from likely.nets.causal.inputs import Tokens
from likely.nets.conditioning import Conditioner
from likely.space import Space

__all__ = ["CausalTransformer", "TransformerState"]

_SIZES = {  # width, depth, dropout
    "tiny": (16, 1, 0.0),
    "small": (64, 3, 0.1),
    "base": (192, 6, 0.1),
}
_HEADS = 4


class Attention(nn.Module):
    """Multi-head attention of the newest tokens to the cached ones and, causally, to each other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, h: Tensor, cache: Tensor | None) -> tuple[Tensor, Tensor]:
        """(attended [B, L, width], keys and values [2, B, heads, cached + L, -1]); with a cache, L is 1."""
        q, *kv = self.qkv(h).unflatten(-1, (3, _HEADS, -1)).permute(2, 0, 3, 1, 4)
        known = torch.stack(kv) if cache is None else torch.cat([cache, torch.stack(kv)], 3)
        attended = F.scaled_dot_product_attention(q, known[0], known[1], is_causal=cache is None)
        return self.out(attended.transpose(1, 2).flatten(2)), known


class Block(nn.Module):
    """h + attention(norm(h)), then h + MLP(norm(h))."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm_1, self.attention = nn.LayerNorm(width), Attention(width)
        self.norm_2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = dropout

    def forward(self, h: Tensor, cache: Tensor | None = None) -> tuple[Tensor, Tensor]:
        attended, known = self.attention(self.norm_1(h), cache)
        h = h + F.dropout(attended, self.dropout, self.training)
        return h + F.dropout(self.down(F.silu(self.up(self.norm_2(h)))), self.dropout, self.training), known


class Outputs(nn.Module):
    """[B, D, width] -> [B, D, out] by a linear map of each entry's own, or by one where `entries` is 1."""

    def __init__(self, entries: int, width: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(entries, width, out) * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(entries, out))

    def forward(self, h: Tensor, first: int = 0) -> Tensor:
        """h of the entries from `first` on."""
        if len(self.weight) == 1:
            return h @ self.weight[0] + self.bias[0]
        which = slice(first, first + h.shape[1])
        return torch.einsum("bdw,dwo->bdo", h, self.weight[which]) + self.bias[which]


@dataclass
class TransformerState:
    """Keys and values of each block, and the start token; updated in place by `step`."""

    start: Tensor
    caches: list[Tensor]
    entry: int = 0


class CausalTransformer(CausalNet):
    """Causal net of a table or sequence: x [B, D] -> parameters [B, D, out]."""

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
        super().__init__()
        preset = _SIZES[size]
        width, depth, dropout = width or preset[0], depth or preset[1], preset[2] if dropout is None else dropout
        self.tokens, self.given = Tokens(space, width), Conditioner(given, width)
        self.start, self.place = nn.Embedding(1, width), nn.Embedding(space.dims, width)
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(depth))
        self.norm, self.last = nn.LayerNorm(width), Outputs(len(space.supports), width, out)
        self.order = torch.arange(space.dims)

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        h = torch.cat([self._start(len(x), given), self.tokens(x[:, :-1])], 1) + self.place.weight[: x.shape[1]]
        for block in self.blocks:
            h, _ = block(h)
        return self.last(self.norm(h))

    def _start(self, n: int, given: Tensor | None) -> Tensor:
        """The token before the first entry, [n, 1, width]."""
        start, embedding = self.start.weight.expand(n, 1, -1), self.given(given, n)
        return start if embedding is None else start + embedding[:, None]

    def init_state(self, n: int, given: Tensor | None = None) -> TransformerState:
        start = self._start(n, given)
        empty = start.new_zeros(2, n, _HEADS, 0, start.shape[-1] // _HEADS)
        return TransformerState(start, [empty] * len(self.blocks))

    def step(self, state: TransformerState, x_i: Tensor | None) -> tuple[TransformerState, Tensor]:
        token = state.start if x_i is None else self.tokens(x_i[:, None], state.entry - 1)
        h = token + self.place.weight[state.entry]
        for i, block in enumerate(self.blocks):
            h, state.caches[i] = block(h, state.caches[i])
        state.entry += 1
        return state, self.last(self.norm(h), state.entry - 1)[:, 0]
