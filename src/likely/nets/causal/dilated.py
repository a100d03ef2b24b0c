"""Causal dilated convolutions over a sequence, fed by embeddings of the n-grams that end before each place.

    h_0 = W (E_1[x_{i-1}] + E_2[hash(x_{i-1}, x_{i-2})] + ... + E_n[hash(x_{i-1} .. x_{i-n})])
    h_{l+1} = h_l + W2 silu(W1 [norm(h_l)_i, norm(h_l)_{i - 2^l}])

The hashed tables memorise what follows frequent n-grams at the price of a lookup, which a matrix
product would need many steps to learn; the convolutions generalise over a longer context. An entry
depends on the `reach` entries before it and no others, so the net takes sequences of any length.

References:
    | WaveNet (van den Oord et al., 2016) | https://arxiv.org/abs/1609.03499
    | Enriching word vectors with subword information (hashed n-grams; Bojanowski et al., 2017) | https://arxiv.org/abs/1607.04606
    | Byte latent transformer (hashed byte n-gram embeddings; Pagnoni et al., 2024) | https://arxiv.org/abs/2412.09871
    | Fast WaveNet generation algorithm (Le Paine et al., 2016) | https://arxiv.org/abs/1611.09482
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from likely.nets.causal import CausalNet
from likely.nets.causal.inputs import NGrams, spellings
from likely.nets.conditioning import Conditioner
from likely.nets.dropout import dropout
from likely.space import Space

__all__ = ["DilatedConvolutions", "DilatedState"]

_SIZES = {  # width, depth, dropout, of n-grams, longest n-gram, buckets per n-gram table, width of tables
    "tiny": (16, 2, 0.0, 0.0, 2, 256, 8),
    "small": (192, 6, 0.1, 0.3, 4, 16384, 64),
    "base": (384, 12, 0.1, 0.3, 6, 65536, 128),
}


class Layer(nn.Module):
    """h + W2 silu(W1 [u, past]), u = norm(h), `past` the u of `dilation` places before."""

    def __init__(self, width: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.dilation, self.dropout = dilation, dropout
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(2 * width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, h: Tensor, u: Tensor, past: Tensor) -> Tensor:
        return h + dropout(self.down(F.silu(self.up(torch.cat([u, past], -1)))), self.dropout, self.training)


@dataclass
class DilatedState:
    """The last symbols [n, longest n-gram], latest first, and each layer's last `dilation` inputs; updated in place by `step`."""

    given: Tensor | None
    history: Tensor
    queues: list[Tensor]


class DilatedConvolutions(CausalNet):
    """Causal net of a sequence: x [B, L] -> parameters [B, L, out], of any L.

    Args:
        gram_dropout: probability with which an n-gram is left out in training.
        subwords: whether tokens of a text are embedded by the n-grams of their spelling, too.
    """

    layers: Sequence[Layer]

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
        gram_dropout: float | None = None,
        subwords: bool = False,
    ) -> None:
        super().__init__()
        preset = _SIZES[size]
        width, depth, dropout = width or preset[0], preset[1] if depth is None else depth, preset[2] if dropout is None else dropout
        gram_dropout, self.longest, (length,) = preset[3] if gram_dropout is None else gram_dropout, preset[4], space.shape
        self.ngrams = NGrams(space.supports[0].levels, *preset[4:], width, gram_dropout, spellings(space, subwords))
        self.given = Conditioner(given, width)
        cycle = max(1, (length // 2).bit_length())  # dilations 1, 2, 4 ... up to half a window
        self.layers = nn.ModuleList(Layer(width, 2 ** (i % cycle), dropout) for i in range(depth))  # type: ignore[assignment]
        self.norm, self.last = nn.LayerNorm(width), nn.Linear(width, out)
        self.order = torch.arange(length)
        self.reach = self.longest + sum(layer.dilation for layer in self.layers)

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        places = x.shape[1]
        h = self._first(self.ngrams.histories(x), self.given(given, len(x)))
        for layer in self.layers:
            u = layer.norm(h)
            h = layer(h, u, F.pad(u, (0, 0, layer.dilation, 0))[:, :places])
        return self.last(self.norm(h))

    def _first(self, history: Tensor, embedding: Tensor | None) -> Tensor:
        h = self.ngrams(history)
        return h if embedding is None else h + embedding[:, None]

    def init_state(self, n: int, given: Tensor | None = None) -> DilatedState:
        weight = self.last.weight
        history = torch.zeros(n, self.longest, dtype=torch.int64, device=weight.device)
        return DilatedState(self.given(given, n), history, [weight.new_zeros(n, layer.dilation, weight.shape[1]) for layer in self.layers])

    def step(self, state: DilatedState, x_i: Tensor | None) -> tuple[DilatedState, Tensor]:
        if x_i is not None:
            state.history = torch.cat([x_i[:, None] + 1, state.history[:, :-1]], 1)
        h = self._first(state.history[:, None], state.given)
        for i, layer in enumerate(self.layers):
            u, queue = layer.norm(h), state.queues[i]
            h = layer(h, u, queue[:, :1])
            state.queues[i] = torch.cat([queue[:, 1:], u], 1)
        return state, self.last(self.norm(h))[:, 0]
