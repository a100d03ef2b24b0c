"""A recurrent net over the entries of a sequence or a table; with a sequence given, an encoder-decoder with attention.

    h_i = cell(h_{i-1}, token(x_{i-1}))                     LSTM or GRU, in layers; tokens may hold n-grams (see `NGrams`)
    e_ij = v . tanh(W h_i + U m_j),  c_i = sum_j softmax_j(e_ij) m_j,  r_i = tanh(P [h_i, c_i])

The first state comes from what is given. Of a sequence, that is the last state of an encoder, which
has to hold all of it: a bottleneck. Attention is the cure: each place reads c_i from the encoder's
states m. It is read after the recurrent layers, not fed back into them, so that training stays one
call of a fused kernel. With `attend=False` the bottleneck remains.

References:
    | Long short-term memory (Hochreiter and Schmidhuber, 1997) | https://doi.org/10.1162/neco.1997.9.8.1735
    | Learning phrase representations using RNN encoder-decoder (GRU; Cho et al., 2014) | https://arxiv.org/abs/1406.1078
    | Neural machine translation by jointly learning to align and translate (Bahdanau et al., 2015) | https://arxiv.org/abs/1409.0473
    | Effective approaches to attention-based neural machine translation (Luong et al., 2015) | https://arxiv.org/abs/1508.04025
    | The unreasonable effectiveness of recurrent neural networks (char-RNN; Karpathy, 2015) | https://karpathy.github.io/2015/05/21/rnn-effectiveness/
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from likely.errors import UsageError, nearest
from likely.nets.causal import CausalNet, layers_of
from likely.nets.causal.inputs import NGrams, Outputs, Tokens, before, newest, no_history, spellings
from likely.nets.conditioning import Conditioner
from likely.nets.dropout import dropout
from likely.nets.reader import RecurrentReader, required
from likely.space import Space

__all__ = ["RecurrentNet", "RecurrentState"]

_SIZES = {  # width, depth, dropout
    "tiny": (16, 1, 0.0),
    "small": (256, 1, 0.0),
    "base": (512, 2, 0.2),
}
_NGRAMS = {"tiny": (256, 8), "small": (16384, 64), "base": (65536, 128)}  # buckets per table, width of tables
_CELLS = {"lstm": nn.LSTM, "gru": nn.GRU}


class AdditiveAttention(nn.Module):
    """Reads a memory [B, S, width] for each h [B, L, width]; see e, c and r above."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.score = nn.Linear(width, width), nn.Linear(width, width, bias=False), nn.Linear(width, 1, bias=False)
        self.mix = nn.Linear(2 * width, width)

    def forward(self, h: Tensor, memory: Tensor, keys: Tensor, filled: Tensor) -> Tensor:
        scores = self.score(torch.tanh(self.query(h)[:, :, None] + keys[:, None]))[..., 0]
        weights = scores.masked_fill(~filled[:, None], -torch.inf).softmax(-1)
        return torch.tanh(self.mix(torch.cat([h, weights @ memory], -1)))


@dataclass
class RecurrentState:
    """Each layer's h, and c of an LSTM, [n, depth, width]; what attention reads; the last symbols [n, longest n-gram], latest first."""

    cells: list[Tensor]
    memory: tuple[Tensor, Tensor, Tensor] | None
    history: Tensor | None
    entry: int = 0


class RecurrentNet(CausalNet):
    """Causal net of a sequence or table: x [B, D] -> parameters [B, D, out]; of a sequence, of any length.

    Args:
        cell: "lstm" or "gru".
        ngrams: longest n-gram in a token of a sequence; 1 for symbols alone. gram_dropout: of whole n-grams.
        attend: whether a sequence that is given is attended to.
        subwords: whether tokens of a text are embedded by the n-grams of their spelling, too.
    """

    words: ClassVar[dict[str, tuple[str, ...]]] = {"cell": tuple(_CELLS)}

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
        cell: str = "lstm",
        ngrams: int = 1,
        gram_dropout: float = 0.0,
        attend: bool = True,
        subwords: bool = False,
    ) -> None:
        super().__init__()
        if cell not in _CELLS:
            raise UsageError(f"Unknown cell '{cell}'.", nearest(cell, tuple(_CELLS)))
        preset = _SIZES[size]
        width, depth, dropout = width or preset[0], layers_of(depth, preset[1]), preset[2] if dropout is None else dropout
        self.kinds, self.depth, self.dropout = len(space.supports), depth, dropout
        spelt, grams = spellings(space, subwords), (space.supports[0].levels, ngrams, *_NGRAMS[size], width, gram_dropout)
        self.tokens = NGrams(*grams, spelt) if space.layout == "sequence" and ngrams > 1 else Tokens(space, width, spelt)
        self.start = nn.Embedding(1, width)
        self.cells = _CELLS[cell](width, width, depth, batch_first=True, dropout=dropout if depth > 1 else 0.0)
        reads = given is not None and given.layout == "sequence"
        self.reader = RecurrentReader(given, width) if reads and given is not None else None
        self.given = Conditioner(None if reads else given, width)
        self.initial = nn.Linear(width, depth * width) if given else None
        self.attention = AdditiveAttention(width) if reads and attend else None
        self.last, self.order = Outputs(self.kinds, width, out), torch.arange(space.dims)

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        state = self.init_state(len(x), given)
        h = before(self.tokens, x, self.kinds)
        h = torch.cat([h[:, :1] + self.start.weight, h[:, 1:]], 1)
        return self.last(self._read(self._run(h, state), state))

    def init_state(self, n: int, given: Tensor | None = None) -> RecurrentState:
        first, memory = self._given(n, given)
        zeros = self.start.weight.new_zeros(n, self.depth, self.start.weight.shape[1])
        h = zeros if first is None or self.initial is None else torch.tanh(self.initial(first)).view_as(zeros)
        return RecurrentState([h, zeros] if isinstance(self.cells, nn.LSTM) else [h], memory, no_history(self.tokens, n, h.device))

    def _given(self, n: int, given: Tensor | None) -> tuple[Tensor | None, tuple[Tensor, Tensor, Tensor] | None]:
        """What the first state is made of [n, width], and what attention reads: memory, its keys, which places are filled."""
        if self.reader is None:
            return self.given(given, n), None
        memory, filled, last = self.reader(required(given))
        return last, (memory, self.attention.key(memory), filled) if self.attention else None

    def _run(self, h: Tensor, state: RecurrentState) -> Tensor:
        """Tokens [n, L, width] -> states of the last layer; the state moves on."""
        first = [c.transpose(0, 1).contiguous() for c in state.cells]
        h, after = self.cells(h, tuple(first) if len(first) > 1 else first[0])
        state.cells = [c.transpose(0, 1) for c in (after if isinstance(after, tuple) else (after,))]
        return h

    def _cell(self, h: Tensor, state: RecurrentState) -> Tensor:
        """One token [n, width] through all layers; at a single place this is faster than the fused kernel."""
        after = [[] for _ in state.cells]
        for layer, weights in enumerate(self.cells.all_weights):
            cells = [c[:, layer] for c in state.cells]
            now = torch.lstm_cell(h, cells, *weights) if len(cells) > 1 else (torch.gru_cell(h, cells[0], *weights),)
            for layers, cell in zip(after, now, strict=True):
                layers.append(cell)
            h = now[0]
        state.cells = [torch.stack(layers, 1) for layers in after]
        return h

    def _read(self, h: Tensor, state: RecurrentState) -> Tensor:
        h = h if self.attention is None or state.memory is None else self.attention(h, *state.memory)
        return dropout(h, self.dropout, self.training)

    def step(self, state: RecurrentState, x_i: Tensor | None) -> tuple[RecurrentState, Tensor]:
        start = self.start.weight.expand(len(state.cells[0]), -1)
        token, state.history = newest(self.tokens, x_i, state.history, start, (state.entry - 1) % self.kinds)
        h = self._read(self._cell(token, state)[:, None], state)[:, 0]
        state.entry += 1
        return state, self.last.one(h, (state.entry - 1) % self.kinds)
