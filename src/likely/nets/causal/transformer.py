"""A causal transformer over the entries of a sequence, a table or a grid.

    h_0,i = token(x_{i-1}) + position_i          (before the first entry stands a start token)
    u     = h_l + attention(norm(h_l))           (see `attention`: full, a local window, linear)
    h_l+1 = u + ffn(norm(u))                     swiglu: W3 (silu(W1 u) * W2 u),  relu2: W2 relu(W1 u)^2,  gelu: W2 gelu(W1 u)
    parameters_i = W norm(h_L,i)                 (columns and channels have a W each, sequences share one)

Entries of a grid go by row, column, channel. A sequence's tokens may hold the hashed n-grams that
end there (see `NGrams`), which need not be learnt by attention then. `given` enters by the start
token, or by scale and shift of every norm (film), or is a sequence to attend to (cross).

References:
    | Attention is all you need (Vaswani et al., 2017) | https://arxiv.org/abs/1706.03762
    | On layer normalization in the transformer architecture (pre-norm; Xiong et al., 2020) | https://arxiv.org/abs/2002.04745
    | Root mean square layer normalization (Zhang and Sennrich, 2019) | https://arxiv.org/abs/1910.07467
    | GLU variants improve transformer (SwiGLU; Shazeer, 2020) | https://arxiv.org/abs/2002.05202
    | Primer: searching for efficient transformers (squared ReLU; So et al., 2021) | https://arxiv.org/abs/2109.08668
    | Scalable diffusion models with transformers (adaptive norm; Peebles and Xie, 2023) | https://arxiv.org/abs/2212.09748
    | Generative pretraining from pixels (images; Chen et al., 2020) | https://proceedings.mlr.press/v119/chen20s.html
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from likely.errors import UsageError, nearest
from likely.nets.causal import CausalNet
from likely.nets.causal.attention import LinearAttention, Place, Places, Ring, SoftmaxAttention, Sums
from likely.nets.causal.inputs import NGrams, Outputs, Tokens, before, newest, no_history, raster, spellings
from likely.nets.conditioning import Conditioner, FiLM
from likely.nets.positions import Positions
from likely.nets.reader import CrossAttention, Reader, required
from likely.space import Space

__all__ = ["CausalTransformer", "TransformerState"]

_SIZES = {  # width, depth, heads, dropout
    "tiny": (16, 1, 2, 0.0),
    "small": (64, 3, 4, 0.1),
    "base": (192, 6, 6, 0.1),
}
_TEXT_SIZES = {
    "tiny": (16, 1, 2, 0.0),
    "small": (192, 4, 3, 0.1),
    "base": (384, 8, 6, 0.2),
}
_NGRAMS = {  # longest n-gram, buckets per table, width of tables
    "tiny": (2, 256, 8),
    "small": (4, 16384, 64),
    "base": (6, 65536, 128),
}
_NORMS = ("layer", "rms")
_ATTENTIONS = ("full", "local", "linear")
_WAYS = ("start", "film", "cross")


def _swiglu(u: Tensor) -> Tensor:
    gate, value = u.chunk(2, -1)
    return F.silu(gate) * value


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"swiglu": _swiglu, "relu2": lambda u: u.relu().square(), "gelu": F.gelu}


class FeedForward(nn.Module):
    """The map of each token by itself; swiglu's hidden width is 8/3 of the token's, the others' is 4 times it."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        hidden = 8 * width // 3 if kind == "swiglu" else 4 * width
        self.kind = kind
        self.up = nn.Linear(width, 2 * hidden if kind == "swiglu" else hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        return self.down(_ACTIVATIONS[self.kind](self.up(h)))


@dataclass
class Context:
    """What is given, as the net uses it: the start token [n, width], an embedding [n, width] for film, and
    keys and values of a memory for each block [n, 2, heads, S, d] with the places that are filled [n, S]."""

    start: Tensor
    film: Tensor | None = None
    memory: list[Tensor] | None = None
    filled: Tensor | None = None


class Norm(nn.Module):
    """A norm of tokens, and with `film` a scale and shift of it by an embedding."""

    def __init__(self, kind: str, width: int, *, film: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if kind == "layer" else None
        self.film = FiLM(width, width) if film else None

    def forward(self, h: Tensor, embedding: Tensor | None) -> Tensor:
        h = self.plain()(h)
        return h if self.film is None else self.film(h.movedim(-1, 1), embedding).movedim(1, -1)

    def plain(self) -> Callable[[Tensor], Tensor]:
        """The norm itself, as a function."""
        shape, weight, bias = self.weight.shape, self.weight, self.bias
        if bias is None:
            return lambda h: F.rms_norm(h, shape, weight)
        return lambda h: torch.layer_norm(h, shape, weight, bias)


class Block(nn.Module):
    """Attention, attention to a memory where there is one, and a feed-forward map, each added to its normed input."""

    attention: SoftmaxAttention | LinearAttention

    def __init__(
        self,
        width: int,
        attention: SoftmaxAttention | LinearAttention,
        *,
        heads: int,
        norm: str,
        ffn: str,
        given_by: str | None,
        dropout: float,
    ) -> None:
        super().__init__()
        film = given_by == "film"
        self.norm_1, self.attention = Norm(norm, width, film=film), attention
        self.norm_x, self.cross = (Norm(norm, width, film=False), CrossAttention(width, heads)) if given_by == "cross" else (None, None)
        self.norm_2, self.ffn, self.dropout = Norm(norm, width, film=film), FeedForward(width, ffn), dropout

    def forward(self, h: Tensor, place: Place, context: Context, index: int) -> Tensor:
        """h [B, L, width] -> the same shape."""
        return self._after(h + self._drop(self.attention(self.norm_1(h, context.film), place)), context, index)

    def _after(self, h: Tensor, context: Context, index: int) -> Tensor:
        """What follows attention: h [B, L, width] or [n, width]."""
        if self.cross is not None and self.norm_x is not None and context.memory is not None:
            h = h + self._drop(self.cross(self.norm_x(h, None), context.memory[index], context.filled))
        return h + self._drop(self.ffn(self.norm_2(h, context.film)))

    def stepper(self, index: int) -> Callable[[Tensor, Place, Context, Ring | Sums], Tensor]:
        """A function (h [n, width] of the next token, its place, context, cache) -> the same shape, see `SoftmaxAttention.stepper`."""
        attend = self.attention.stepper()
        if self.cross is not None or self.norm_1.film is not None:
            return lambda h, place, context, cache: self._after(h + attend(self.norm_1(h, context.film), place, cache), context, index)
        norm_1, norm_2, activation = self.norm_1.plain(), self.norm_2.plain(), _ACTIVATIONS[self.ffn.kind]
        up, down = self.ffn.up.weight, self.ffn.down.weight

        def step(h: Tensor, place: Place, context: Context, cache: Ring | Sums) -> Tensor:
            h = h + attend(norm_1(h), place, cache)
            return h + F.linear(activation(F.linear(norm_2(h), up)), down)

        return step

    def _drop(self, h: Tensor) -> Tensor:
        return F.dropout(h, self.dropout, self.training) if self.training and self.dropout else h


@dataclass
class TransformerState:
    """What each block's attention keeps, and the last symbols [n, longest n-gram], latest first; updated in place by `step`.

    The blocks' functions and the places hold nothing of the examples.
    """

    context: Context
    caches: list[Ring | Sums]
    history: Tensor | None
    blocks: list[Callable[[Tensor, Place, Context, Ring | Sums], Tensor]]
    places: Places
    entry: int = 0


class CausalTransformer(CausalNet):
    """Causal net: x [B, *shape] -> parameters [B, *shape, out].

    Args:
        heads: of queries; kv_heads: of keys and values, a divisor of it (as many by default).
        norm: "layer" or "rms"; ffn: "swiglu", "relu2" or "gelu".
        positions: "rotary", "learned", "sinusoidal" or "alibi".
        attention: "full", "local" (within `window` entries) or "linear".
        ngrams: longest n-gram in a token of a sequence; 1 for symbols alone.
        given_by: "start", "film" or, of a sequence, "cross".
        subwords: whether tokens of a text are embedded by the n-grams of their spelling, too.

    Raises: UsageError for unknown words and combinations that mean nothing.
    """

    blocks: Sequence[Block]
    tokens: NGrams | Tokens

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
        gram_dropout: float = 0.0,
        heads: int | None = None,
        kv_heads: int | None = None,
        norm: str = "layer",
        ffn: str = "relu2",
        positions: str | None = None,
        attention: str | None = None,
        window: int | None = None,
        ngrams: int | None = None,
        given_by: str | None = None,
        subwords: bool = False,
    ) -> None:
        super().__init__()
        text = space.layout == "sequence"
        preset = (_TEXT_SIZES if text else _SIZES)[size]
        width, depth, heads = width or preset[0], depth or preset[1], heads or preset[2]
        dropout, kv_heads = preset[3] if dropout is None else dropout, kv_heads or heads
        positions = positions or ("learned" if space.layout == "columns" else "rotary")
        attention = attention or ("full" if window is None else "local")
        given_by = _way(given, given_by)
        _check(width, heads, kv_heads, norm, ffn, positions, attention)
        self.space, self.window = space, (window or max(2, space.dims // 2)) if attention == "local" else space.dims

        longest, buckets, inner = _NGRAMS[size]
        longest = longest if ngrams is None else ngrams
        spelt, grams = spellings(space, subwords), (space.supports[0].levels, longest, buckets, inner, width, gram_dropout)
        self.tokens = NGrams(*grams, spelt) if text and longest > 1 else Tokens(space, width, spelt)
        self.start = nn.Embedding(1, width)
        self.given = Conditioner(given if given_by in ("start", "film") else None, width)
        self.given_by, self.reader = given_by, Reader(given, width) if given is not None and given_by == "cross" else None
        self.positions = Positions(space, positions, width=width, heads=heads, head_width=width // heads)

        def attend() -> SoftmaxAttention | LinearAttention:
            return (
                LinearAttention(width, heads, kv_heads) if attention == "linear" else SoftmaxAttention(width, heads, kv_heads, self.window)
            )

        self.blocks = nn.ModuleList(  # type: ignore[assignment]
            Block(width, attend(), heads=heads, norm=norm, ffn=ffn, given_by=given_by, dropout=dropout) for _ in range(depth)
        )
        self.norm, self.last = Norm(norm, width, film=given_by == "film"), Outputs(len(space.supports), width, out)
        self.order, self.longest = raster(space), self.positions.longest
        relative = attention == "local" and positions in ("rotary", "alibi")
        self.reach = depth * (self.window - 1) + max(1, longest) if text and relative else None

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        entries = x.movedim(1, -1) if self.space.layout == "grid" else x
        context, h = self._context(len(x), given), before(self.tokens, entries.flatten(1), len(self.space.supports))
        h = torch.cat([h[:, :1] + context.start[:, None], h[:, 1:]], 1)
        self._check_end(h.shape[1])
        place = Place.whole(self.positions, h.shape[1], self.window, h)
        h = h if place.added is None else h + place.added
        for i, block in enumerate(self.blocks):
            h = block(h, place, context, i)
        parameters = self.last(self.norm(h, context.film)).unflatten(1, entries.shape[1:])
        return parameters.movedim(-2, 1) if self.space.layout == "grid" else parameters

    def _check_end(self, end: int) -> None:
        if self.longest is not None and end > self.longest:
            raise UsageError(f"Learned positions end after {self.longest} places.", "Fit with positions='rotary' for longer texts.")

    def _context(self, n: int, given: Tensor | None) -> Context:
        start = self.start.weight.expand(n, -1)
        if self.reader is not None:
            memory, filled = self.reader(required(given))
            known = [block.cross.read(memory) for block in self.blocks if block.cross is not None]
            return Context(start, memory=known, filled=filled)
        embedding = self.given(given, n)
        if embedding is not None and self.given_by == "start":
            return Context(start + embedding)
        return Context(start, film=embedding)

    def init_state(self, n: int, given: Tensor | None = None) -> TransformerState:
        weight = self.start.weight
        history = no_history(self.tokens, n, weight.device)
        caches, blocks = [block.attention.init(n) for block in self.blocks], [block.stepper(i) for i, block in enumerate(self.blocks)]
        return TransformerState(self._context(n, given), caches, history, blocks, Places(self.positions, self.window, weight))

    def step(self, state: TransformerState, x_i: Tensor | None) -> tuple[TransformerState, Tensor]:
        self._check_end(state.entry + 1)
        place, kinds = state.places[state.entry], len(self.space.supports)
        h, state.history = newest(self.tokens, x_i, state.history, state.context.start, (state.entry - 1) % kinds)
        h = h if place.added is None else h + place.added
        for block, cache in zip(state.blocks, state.caches, strict=True):
            h = block(h, place, state.context, cache)
        state.entry += 1
        return state, self.last.one(self.norm(h, state.context.film), (state.entry - 1) % kinds)


def _way(given: Space | None, way: str | None) -> str | None:
    """How `given` enters: as asked for, or by what it is."""
    if given is None:
        return None
    if way is None:
        return "cross" if given.layout == "sequence" else "start"
    if way not in _WAYS:
        raise UsageError(f"Unknown given_by '{way}'.", nearest(way, _WAYS))
    if way == "cross" and given.layout != "sequence":
        raise UsageError(f"Only a sequence can be attended to, not {given.layout} data.", "Pass given_by='start' or 'film'.")
    return way


def _check(width: int, heads: int, kv_heads: int, norm: str, ffn: str, positions: str, attention: str) -> None:
    for name, word, known in (("norm", norm, _NORMS), ("ffn", ffn, tuple(_ACTIVATIONS)), ("attention", attention, _ATTENTIONS)):
        if word not in known:
            raise UsageError(f"Unknown {name} '{word}'.", nearest(word, known))
    if width % heads or heads % kv_heads:
        raise UsageError(f"width={width}, heads={heads}, kv_heads={kv_heads} do not divide.", "Each must divide the one before.")
    if attention == "linear" and positions == "alibi":
        raise UsageError("Linear attention has no scores for alibi to bias.", "Pass positions='rotary'.")
