"""A causal transformer over the entries of a sequence, a table or a grid.

    h_0,i = token(x_{i-1}) + position_i          (before the first entry stands a start token)
    h_l+1 = block(h_l)                           (see `block`, and `attention`: full, a local window, linear)
    parameters_i = W norm(h_L,i)                 (columns and channels have a W each, sequences share one)

Entries of a grid go by row, column, channel. A sequence's tokens may hold the hashed n-grams that
end there (see `NGrams`), which need not be learnt by attention then. `given` enters by the start
token, or by scale and shift of every norm (film), or is a sequence to attend to (cross), or stands
before the first entry (prefix): tokens at places -1, -2, ..., that all entries attend to, one of a label or a
vector, of a sequence one for each symbol that a reader encodes (zero where it is padded).

References:
    | Attention is all you need (Vaswani et al., 2017) | https://arxiv.org/abs/1706.03762
    | Generative pretraining from pixels (images; Chen et al., 2020) | https://proceedings.mlr.press/v119/chen20s.html
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from likely.errors import UsageError, nearest
from likely.nets.causal import CausalNet
from likely.nets.causal.attention import LinearAttention, Place, Places, Ring, SoftmaxAttention, Sums
from likely.nets.causal.block import ACTIVATIONS, NORMS, Block, Context, Norm
from likely.nets.causal.inputs import NGrams, Outputs, Tokens, before, newest, no_history, raster, spellings
from likely.nets.conditioning import Conditioner
from likely.nets.positions import KINDS, Positions
from likely.nets.reader import Reader, required
from likely.nets.split import head_width
from likely.space import Space

__all__ = ["CausalTransformer", "TransformerState"]

_SIZES = {  # width, depth, heads, dropout
    "tiny": (16, 1, 2, 0.0),
    "small": (64, 3, 4, 0.1),
    "base": (192, 6, 6, 0.1),
}
_TEXT_SIZES = {
    "tiny": (16, 1, 2, 0.0),
    "small": (128, 4, 4, 0.0),
    "base": (384, 8, 6, 0.2),
}
_NGRAMS = {  # buckets per table, width of tables
    "tiny": (256, 8),
    "small": (16384, 64),
    "base": (65536, 128),
}
_ATTENTIONS = ("full", "local", "linear")
_WAYS = ("start", "film", "cross", "prefix")


@dataclass
class TransformerState:
    """What each block's attention keeps, and the last symbols [n, longest n-gram], latest first; updated in place by `step`.

    The blocks' functions, the places and the last norm and outputs hold nothing of the examples.
    """

    context: Context
    caches: list[Ring | Sums]
    history: Tensor | None
    blocks: list[Callable[[Tensor, Place, Context, Ring | Sums], Tensor]]
    places: Places
    norm: Callable[[Tensor, Tensor | None], Tensor]
    last: Callable[[Tensor, int], Tensor]
    entry: int = 0


class CausalTransformer(CausalNet):
    """Causal net: x [B, *shape] -> parameters [B, *shape, out].

    Args:
        heads: of queries; kv_heads: of keys and values, a divisor of it (as many by default).
        norm: "layer" or "rms"; ffn: "swiglu", "relu2" or "gelu".
        positions: "rotary", "learned", "sinusoidal" or "alibi".
        attention: "full", "local" (within `window` entries) or "linear".
        ngrams: longest n-gram in a token of a sequence; 1 for symbols alone.
        given_by: "start", "film", "prefix" or, of a sequence, "cross".
        subwords: whether tokens of a text are embedded by the n-grams of their spelling, too.

    Raises: UsageError for unknown words and combinations that mean nothing.
    """

    words: ClassVar[dict[str, tuple[str, ...]]] = {
        "norm": NORMS,
        "ffn": tuple(ACTIVATIONS),
        "positions": KINDS,
        "attention": _ATTENTIONS,
        "given_by": _WAYS,
    }
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
        ngrams: int = 1,
        given_by: str | None = None,
        subwords: bool = False,
    ) -> None:
        super().__init__()
        text = space.layout == "sequence"
        preset = (_TEXT_SIZES if text else _SIZES)[size]
        width, depth, heads = width or preset[0], preset[1] if depth is None else depth, preset[2] if heads is None else heads
        dropout, kv_heads = preset[3] if dropout is None else dropout, kv_heads or heads
        positions = positions or ("learned" if space.layout == "columns" else "rotary")
        attention = attention or ("full" if window is None else "local")
        given_by = _way(given, given_by)
        _check(width, heads, kv_heads, norm, ffn, positions, attention, given_by)
        read = given is not None and given.layout == "sequence" and given_by in ("cross", "prefix")
        self.ahead = 0 if given is None or given_by != "prefix" else 1 + given.dims if read else 1
        self.space, self.window = space, (window or max(2, space.dims // 2)) if attention == "local" else self.ahead + space.dims

        buckets, inner = _NGRAMS[size]
        spelt, grams = spellings(space, subwords), (space.supports[0].levels, ngrams, buckets, inner, width, gram_dropout)
        self.tokens = NGrams(*grams, spelt) if text and ngrams > 1 else Tokens(space, width, spelt)
        self.start = nn.Embedding(1, width)
        self.given = Conditioner(None if read else given, width)
        self.given_by, self.reader = given_by, Reader(given, width) if given is not None and read else None
        self.positions = Positions(space, positions, width=width, heads=heads)

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
        self.reach = depth * (self.window - 1) + max(1, ngrams) if text and relative else None
        self.room = space.dims if self.ahead and text else self.positions.longest

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        entries = x.movedim(1, -1) if self.space.layout == "grid" else x
        context, h = self._context(len(x), given), before(self.tokens, entries.flatten(1), len(self.space.supports))
        h = torch.cat([h[:, :1] + context.start[:, None], h[:, 1:]], 1)
        self._check_end(h.shape[1])
        place = Place.whole(self.positions, self.ahead + h.shape[1], self.window, h, self.ahead)
        h = h if place.added is None else h + place.added
        h = h if context.ahead is None else torch.cat([context.ahead, h], 1)
        for i, block in enumerate(self.blocks):
            h = block(h, place, context, i)
        parameters = self.last(self.norm(h[:, self.ahead :], context.film)).unflatten(1, entries.shape[1:])
        return parameters.movedim(-2, 1) if self.space.layout == "grid" else parameters

    def _check_end(self, end: int) -> None:
        if self.longest is not None and end > self.longest:
            raise UsageError(f"Learned positions end after {self.longest} places.", "Fit with positions='rotary' for longer texts.")

    def _context(self, n: int, given: Tensor | None) -> Context:
        start = self.start.weight.expand(n, -1)
        if self.reader is not None:
            memory, filled = self.reader(required(given))
            if self.ahead:
                return Context(start, ahead=memory * filled[..., None])
            known = [block.cross.read(memory) for block in self.blocks if block.cross is not None]
            return Context(start, memory=known, filled=filled)
        embedding = self.given(given, n)
        if embedding is not None and self.given_by != "film":
            return Context(start, ahead=embedding[:, None]) if self.ahead else Context(start + embedding)
        return Context(start, film=embedding)

    def init_state(self, n: int, given: Tensor | None = None) -> TransformerState:
        weight = self.start.weight
        history = no_history(self.tokens, n, weight.device)
        caches, blocks = [block.attention.init(n) for block in self.blocks], [block.stepper(i) for i, block in enumerate(self.blocks)]
        context, places = self._context(n, given), Places(self.positions, self.window, weight, self.ahead)
        for i in range(self.ahead):
            assert context.ahead is not None
            h = context.ahead[:, i]
            for block, cache in zip(blocks, caches, strict=True):
                h = block(h, places[i - self.ahead], context, cache)
        return TransformerState(replace(context, ahead=None), caches, history, blocks, places, self.norm.stepper(), self.last.stepper())

    def step(self, state: TransformerState, x_i: Tensor | None) -> tuple[TransformerState, Tensor]:
        self._check_end(state.entry + 1)
        place, kinds = state.places[state.entry], len(self.space.supports)
        h, state.history = newest(self.tokens, x_i, state.history, state.context.start, (state.entry - 1) % kinds)
        h = h if place.added is None else h + place.added
        for block, cache in zip(state.blocks, state.caches, strict=True):
            h = block(h, place, state.context, cache)
        state.entry += 1
        return state, state.last(state.norm(h, state.context.film), (state.entry - 1) % kinds)


def _way(given: Space | None, way: str | None) -> str | None:
    """How `given` enters: as asked for, or by what it is."""
    if way is not None and way not in _WAYS:
        raise UsageError(f"Unknown given_by '{way}'.", nearest(way, _WAYS))
    if given is None:
        return None
    if way is None:
        return "cross" if given.layout == "sequence" else "start"
    if way == "cross" and given.layout != "sequence":
        raise UsageError(f"Only a sequence can be attended to, not {given.layout} data.", "Pass given_by='start', 'film' or 'prefix'.")
    return way


def _check(width: int, heads: int, kv_heads: int, norm: str, ffn: str, positions: str, attention: str, given_by: str | None) -> None:
    for name, word, known in (("norm", norm, NORMS), ("ffn", ffn, tuple(ACTIVATIONS)), ("attention", attention, _ATTENTIONS)):
        if word not in known:
            raise UsageError(f"Unknown {name} '{word}'.", nearest(word, known))
    head_width(width, heads)
    if heads % kv_heads:
        raise UsageError(f"{kv_heads} heads of keys and values do not divide {heads} of queries.", "Give kv_heads that do.")
    if attention == "linear" and positions == "alibi":
        raise UsageError("Linear attention has no scores for alibi to bias.", "Pass positions='rotary'.")
    if attention == "local" and given_by == "prefix":
        raise UsageError("A local window loses sight of a prefix.", "Pass attention='full' or 'linear', or given_by='start'.")
