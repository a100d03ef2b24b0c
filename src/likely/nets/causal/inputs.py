"""What a causal net sees of entries (numbers at order one, and codes where there are few levels), and its output map.

References:
    | Enriching word vectors with subword information (n-grams of spellings; Bojanowski et al., 2017) | https://arxiv.org/abs/1607.04606
"""

import zlib
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from likely.errors import UsageError
from likely.space import MISSING, Space, Support, to_grid

__all__ = [
    "NGrams",
    "Outputs",
    "Signs",
    "Subwords",
    "Tokens",
    "before",
    "coded",
    "feature_width",
    "features",
    "newest",
    "no_history",
    "orders_of",
    "raster",
    "spellings",
    "standard",
    "tokens_of",
]

_CODED_UP_TO = 32
_SHORTEST_GRAM, _LONGEST_GRAM = 3, 6  # of a token's spelling between its marks
_GRAMS = 64  # of a token; spellings of up to 17 bytes have no more
_GRAM_BUCKETS = 2**15
_GOLDEN = -7046029254386353131  # 2**64 / golden ratio, as int64


def coded(s: Support) -> bool:
    """Whether each level has a code of its own."""
    return s.kind == "nominal" or 0 < s.levels <= _CODED_UP_TO


def standard(supports: tuple[Support, ...], x: Tensor) -> tuple[Tensor, Tensor]:
    """(value, lost): standardised numbers in float64, 0 where missing or nominal, and whether an entry is missing.

    x [B, supports, ...]; one support may stand for all of axis 1.
    """

    integer, decimal, numeric, center, scale = _constants(supports, x.ndim - 2, x.device)
    lost = x.isnan() | ((integer > 0) & (x == MISSING))
    number = torch.where(decimal > 0, to_grid(x), x).double() + 0.5 * integer  # an integer stands for its cell's middle
    return ((number - center) / scale).masked_fill(lost | (numeric == 0), 0.0), lost


@lru_cache(maxsize=1024)
def _constants(supports: tuple[Support, ...], trailing: int, device: torch.device) -> Tensor:
    """Per support, along axis 1 of `trailing` more axes: whether integer, decimal, numeric; center and scale. [5, supports, 1...]."""
    values = [(s.kind != "real", s.kind == "decimal", s.numeric, s.center, s.scale) for s in supports]
    return torch.tensor(values, dtype=torch.float64, device=device).T.reshape(5, -1, *[1] * trailing)


def feature_width(s: Support) -> int:
    """Features of one entry: a constant one (zeros mean "outside"), the number, a missing flag, the code."""
    return 1 + s.numeric + s.missing + s.levels * coded(s)


def features(s: Support, x: Tensor, dtype: torch.dtype) -> Tensor:
    """x [B, ...] of one support -> [B, feature_width(s), ...]; it has no parameters."""
    if coded(s):
        return _of_levels(s, dtype, x.device)[x.nan_to_num(MISSING).long() if x.is_floating_point() else x].movedim(-1, 1)
    return torch.cat(_numbers(s, x), 1).to(dtype)


def _numbers(s: Support, x: Tensor) -> list[Tensor]:
    """All features but the code, [B, 1, ...] each."""
    value, lost = standard((s,), x[:, None])
    return [torch.ones_like(value)] + [value] * s.numeric + [lost.to(value)] * s.missing


@lru_cache(maxsize=1024)
def _of_levels(s: Support, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Features of each level of a support that is coded, and last (at -1, too) of a missing entry; [levels + 1, feature_width(s)]."""
    x = torch.tensor([*range(s.levels), MISSING], device=device)
    return torch.cat([*_numbers(s, x), torch.eye(s.levels + 1, s.levels, dtype=torch.float64, device=device)], 1).to(dtype)


def raster(space: Space) -> Tensor:
    """Places of a flattened example in the order of its entries; of a grid by row, column, channel."""
    place = torch.arange(space.dims).view(space.shape)
    return (place.permute(1, 2, 0) if space.layout == "grid" else place).flatten()


def orders_of(natural: Tensor, count: int) -> Tensor:
    """The natural order of places and random others, always the same ones, [count, entries]."""
    generator = torch.Generator().manual_seed(0)
    return torch.stack([natural, *(torch.randperm(len(natural), generator=generator) for _ in range(count - 1))])


def tokens_of(space: Space, width: int) -> "Tokens | Signs":
    """Vectors of the entries of a flattened example: signs where all have two values, else tokens of a width."""
    per_support = space.dims // len(space.supports)
    entries = tuple(s for s in space.supports for _ in range(per_support))
    binary = all(s.levels == 2 and not s.missing for s in entries)
    return Signs() if binary else Tokens(Space.columns(*entries), width)


def spellings(space: Space, subwords: bool) -> tuple[str, ...]:
    """The spellings that tokens are embedded by; none unless asked for.

    Raises: UsageError if the space has no tokens.
    """
    if subwords and not space.vocabulary:
        raise UsageError(f"The symbols of a {space.named} have no spellings.", "Load the text with tokens=4096 or tokens='words'.")
    return space.vocabulary if subwords else ()


class Subwords(nn.Module):
    """Tokens [...] -> vectors [..., width] of their own and of the n-grams of their spelling, which tokens that are spelt alike share.

        E(t) = V[t] + sum_{g in G(t)} U[hash(g)] / sqrt(|G(t)|),   G(t) the 3- to 6-grams of "<" + spelling + ">"

    V begins at zero: what a token that training never meets has is what its spelling tells. A blank before a word is no part of
    it. Token `first` is the first one of the vocabulary; others (a start, an end) have vectors of their own alone.
    """

    grams: Tensor
    scale: Tensor

    def __init__(self, vocabulary: tuple[str, ...], symbols: int, width: int, *, first: int = 0, std: float = 1.0) -> None:
        super().__init__()
        self.own, self.shared = nn.Embedding(symbols, width), nn.Embedding(1 + _GRAM_BUCKETS, width)
        nn.init.zeros_(self.own.weight)
        nn.init.normal_(self.shared.weight, std=std)
        of_token = [()] * first + [hashed_grams(spelling) for spelling in vocabulary]
        longest = max(map(len, of_token))
        table = torch.zeros(symbols, longest, dtype=torch.int64)  # row 0 of `shared` is padding, and not looked at
        table[: len(of_token)] = torch.tensor([[*grams, *[0] * (longest - len(grams))] for grams in of_token])
        self.register_buffer("grams", table, persistent=False)
        self.register_buffer("scale", (table > 0).sum(1).clamp_min(1).float().rsqrt()[:, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        ids = x.flatten()
        spelt = F.embedding_bag(self.grams[ids], self.shared.weight, mode="sum", padding_idx=0)
        return (self.own(ids) + spelt * self.scale[ids]).view(*x.shape, -1)


def embedding(symbols: int, width: int, vocabulary: tuple[str, ...] = (), *, first: int = 0, std: float = 1.0) -> nn.Embedding | Subwords:
    """Vectors of symbols, normal of deviation `std` at first; those from `first` on by the spellings of a vocabulary, if there is one."""
    if vocabulary:
        return Subwords(vocabulary, symbols, width, first=first, std=std)
    table = nn.Embedding(symbols, width)
    nn.init.normal_(table.weight, std=std)
    return table


def hashed_grams(spelling: str) -> tuple[int, ...]:
    """Buckets, from 1 on, of the n-grams of a spelling between marks that no byte is spelt as."""
    marked = f"\u27e8{spelling.strip(' ')}\u27e9"
    grams = (marked[i : i + n] for n in range(_SHORTEST_GRAM, _LONGEST_GRAM + 1) for i in range(len(marked) - n + 1))
    return tuple(1 + zlib.crc32(gram.encode()) % _GRAM_BUCKETS for gram in grams)[:_GRAMS]


class Signs(nn.Module):
    """Entries of two values as -1 and 1."""

    width = 1

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """x [B, D] -> [B, D, 1]."""
        return (2 * x - 1)[..., None]


class Tokens(nn.Module):
    """Entries of a table or a sequence as vectors: E[d, state] + W silu(a_d asinh(u) + b_d), u the standardised number.

    The state is the level, where each has a code, or else whether the number is missing. All
    columns are looked up at once. Tokens of a text may be embedded by the spellings of a vocabulary.
    """

    def __init__(self, space: Space, width: int, vocabulary: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.supports, self.width = space.supports, width
        self.levels = [s.levels if coded(s) else 1 for s in space.supports]  # the next state is "missing"
        self.offsets = torch.tensor([0] + [k + s.missing for k, s in zip(self.levels, space.supports, strict=True)]).cumsum(0).tolist()
        self.state = embedding(self.offsets.pop(), width, vocabulary)
        self.plain = len(space.supports) == 1 and coded(space.supports[0]) and not (space.supports[0].numeric or space.supports[0].missing)
        self.numbers = any(s.numeric for s in space.supports)
        if self.numbers:
            self.slope, self.shift = nn.Embedding(len(self.levels), width), nn.Embedding(len(self.levels), width)
            self.mix = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """x [B, D] of the columns from `first` on (or of a sequence) -> [B, D, width]."""
        if self.plain:
            return self.state(x)
        columns = slice(first, first + x.shape[1]) if len(self.supports) > 1 else slice(0, 1)
        supports = self.supports[columns]
        value, lost = standard(supports, x)
        has_code = torch.tensor([coded(s) for s in supports], device=x.device)
        state = torch.where(has_code, x, 0).masked_fill(lost, 0).long().clamp_min(0)
        state = torch.where(lost, torch.tensor(self.levels[columns], device=x.device), state)
        h = self.state(state + torch.tensor(self.offsets[columns], device=x.device))
        if not self.numbers:
            return h
        u = value.asinh().to(h.dtype)[..., None]
        return h + self.mix(F.silu(u * self.slope.weight[columns] + self.shift.weight[columns]))


class NGrams(nn.Module):
    """The symbols before a place [..., n], latest first and 0 where there is none -> their embedding [..., width].

    `dropout` leaves out whole n-grams in training, so that what follows a rare one is not told by heart alone.
    Symbols may be embedded by the spellings of a `vocabulary`.
    """

    def __init__(
        self,
        levels: int,
        longest: int,
        buckets: int,
        inner: int,
        width: int,
        dropout: float = 0.0,
        vocabulary: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.longest, self.buckets, self.dropout, self.symbols = longest, buckets, dropout, levels + 1
        self.symbol = embedding(levels + 1, inner, vocabulary, first=1, std=0.1)
        self.grams = embedding((longest - 1) * buckets, inner, std=0.02)
        self.mix = nn.Linear(inner, width)

    def histories(self, x: Tensor) -> Tensor:
        """The symbols before each place of x [B, L], [B, L, longest]."""
        return torch.stack([F.pad(x + 1, (k, 0))[:, : x.shape[1]] for k in range(1, self.longest + 1)], -1)

    def forward(self, history: Tensor) -> Tensor:
        key, rows = history[..., 0], []
        for k in range(1, self.longest):
            key = (key * self.symbols + history[..., k]) * _GOLDEN
            rows.append(((key >> 32) & (self.buckets - 1)) + (k - 1) * self.buckets)
        grams = self.grams(torch.stack(rows, -1))
        if self.training and self.dropout:
            kept = torch.rand(grams.shape[:-1], device=grams.device) >= self.dropout
            grams = grams * (kept / (1 - self.dropout))[..., None]
        return self.mix(self.symbol(history[..., 0]) + grams.sum(-2))


def before(tokens: Tokens | NGrams, x: Tensor, kinds: int) -> Tensor:
    """Entries in order [B, D], of `kinds` in turn -> the vector of what is before each, [B, D, width]; before the first, a constant."""
    if isinstance(tokens, NGrams):
        return tokens(tokens.histories(x))
    seen = tokens(x.reshape(-1, kinds)).view(*x.shape, -1)
    return F.pad(seen, (0, 0, 1, 0))[:, :-1]


def no_history(tokens: Tokens | NGrams, n: int, device: torch.device) -> Tensor | None:
    """The symbols before the first entry, [n, longest n-gram], where there are n-grams."""
    return torch.zeros(n, tokens.longest, dtype=torch.int64, device=device) if isinstance(tokens, NGrams) else None


def newest(tokens: Tokens | NGrams, x_i: Tensor | None, history: Tensor | None, start: Tensor, kind: int) -> tuple[Tensor, Tensor | None]:
    """(the newest token [n, width], the symbols so far), of the previous entry's values [n]; `start` at first, else as of `before`."""
    if isinstance(tokens, NGrams) and history is not None:
        history = history if x_i is None else torch.cat([x_i[:, None] + 1, history[:, :-1]], 1)
        h = tokens(history)
        return h + start if x_i is None else h, history
    if x_i is None:
        return start, None
    if isinstance(tokens, Tokens) and tokens.plain and isinstance(tokens.state, nn.Embedding):
        return F.embedding(x_i, tokens.state.weight), None
    return tokens(x_i[:, None], kind)[:, 0], None


class Outputs(nn.Module):
    """[B, L, width] -> [B, L, out]: `kinds` linear maps, entries take turns with them."""

    def __init__(self, kinds: int, width: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(kinds, width, out) * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(kinds, out))

    def forward(self, h: Tensor) -> Tensor:
        if len(self.weight) == 1:
            return F.linear(h, self.weight[0].mT, self.bias[0])
        each = h.reshape(-1, *self.weight.shape[:2])
        return (torch.einsum("bdw,dwo->bdo", each, self.weight) + self.bias).reshape(*h.shape[:-1], -1)

    def one(self, h: Tensor, kind: int) -> Tensor:
        """h [n, width] of entries of one kind -> [n, out]."""
        return self.stepper()(h, kind)

    def stepper(self) -> Callable[[Tensor, int], Tensor]:
        """The same as a function, for many steps."""
        weights, biases = self.weight.unbind(), self.bias.unbind()
        return lambda h, kind: torch.addmm(biases[kind], h, weights[kind])
