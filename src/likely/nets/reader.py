"""Reading a sequence that is given (a caption, a source sentence): a memory with a vector per symbol, to attend to.

A symbol's vector depends on all others, those after it, too. Memory begins with a place of its own,
so that an empty sequence can be read as well.

References:
    | Neural machine translation by jointly learning to align and translate (Bahdanau et al., 2015) | https://arxiv.org/abs/1409.0473
    | Attention is all you need (the encoder; Vaswani et al., 2017) | https://arxiv.org/abs/1706.03762
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from likely.errors import UsageError
from likely.nets.positions import Positions
from likely.nets.split import head_width
from likely.space import Space

__all__ = ["CrossAttention", "Reader", "RecurrentReader", "required"]


_WORDS, _FACTOR, _MIX = 4096, 1_000_003, 0x1E3779B97F4A7C15  # rows of the table; numbers of the hash, odd


class CrossAttention(nn.Module):
    """Attention of tokens to a memory, of their own width unless said otherwise, some of whose places may be empty."""

    def __init__(self, width: int, heads: int, memory: int | None = None) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width(width, heads)
        self.q, self.kv, self.out = nn.Linear(width, width, bias=False), nn.Linear(memory or width, 2 * width), nn.Linear(width, width)

    def read(self, memory: Tensor) -> Tensor:
        """Keys and values of a memory [B, S, width]: [B, 2, heads, S, width / heads]."""
        return self.kv(memory).unflatten(-1, (2, self.heads, self.head_width)).permute(0, 2, 3, 1, 4)

    def forward(self, h: Tensor, known: Tensor, filled: Tensor) -> Tensor:
        """h [B, L, width] or [B, width], known from `read`, filled [B, S] -> the shape of h."""
        q = self.q(h).view(len(h), -1, self.heads, self.head_width).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, known[:, 0], known[:, 1], filled[:, None, None])
        return self.out(y.transpose(1, 2).reshape(h.shape))


class _Block(nn.Module):
    """h + attention(norm(h)), then h + W2 gelu(W1 norm(h)); attention in both directions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_1, self.attention, self.norm_2 = nn.LayerNorm(width), CrossAttention(width, heads), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor, filled: Tensor) -> Tensor:
        u = self.norm_1(h)
        h = h + self.attention(u, self.attention.read(u), filled)
        return h + self.down(F.gelu(self.up(self.norm_2(h))))


def hashed_words(given: Tensor) -> Tensor:
    """For each byte of strings [B, S] padded with -1 a number below 4096 that its word shares; 0 where there is none.

    Words are what blanks and punctuation of ASCII part, in lower case of ASCII. Few words share a number.
    """
    codes, places = given + 32 * ((given >= 65) & (given <= 90)), torch.arange(given.shape[1], device=given.device)
    inside = ((codes >= 97) & (codes <= 122)) | ((codes >= 48) & (codes <= 57)) | (codes >= 128)
    begins = inside & ~F.pad(inside[:, :-1], (1, 0))
    place = places - torch.where(begins, places, 0).cummax(1).values
    terms = (codes + 1) * torch.full_like(places, _FACTOR).cumprod(0)[place]  # int64 wraps around
    word = begins.cumsum(1)
    sums = torch.zeros_like(F.pad(codes, (0, 1))).scatter_add(1, word, terms * inside).gather(1, word)
    return torch.where(inside, 1 + ((sums * _MIX) >> 40).remainder(_WORDS - 1), 0)


class Reader(nn.Module):
    """A bidirectional transformer: given [B, S] -> (memory [B, 1 + S, width], which places are filled).

    Bytes are seen with the words that they are in.
    """

    def __init__(self, space: Space, width: int, *, depth: int = 2) -> None:
        super().__init__()
        heads = math.gcd(width // 2, 4)
        self.symbol = nn.Embedding(space.supports[0].levels + 1, width)  # the last begins every sequence
        self.word = nn.Embedding(_WORDS, width) if space.supports[0].levels == 256 else None
        self.positions = Positions(space, "sinusoidal", width=width, heads=heads)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, given: Tensor) -> tuple[Tensor, Tensor]:
        h, filled = _embedded(self.symbol, given)
        h = h if self.word is None else h + self.word(F.pad(hashed_words(given), (1, 0)))
        added = self.positions.added(torch.arange(h.shape[1], device=h.device), h.dtype)
        h = h if added is None else h + added
        for block in self.blocks:
            h = block(h, filled)
        return self.norm(h), filled


class RecurrentReader(nn.Module):
    """A GRU in both directions: given [B, S] -> (memory [B, 1 + S, width], which are filled, last states of both [B, width])."""

    def __init__(self, space: Space, width: int) -> None:
        super().__init__()
        self.symbol = nn.Embedding(space.supports[0].levels + 1, width)
        self.cells = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)

    def forward(self, given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, filled = _embedded(self.symbol, given)
        packed = nn.utils.rnn.pack_padded_sequence(h, filled.sum(1).cpu(), batch_first=True, enforce_sorted=False)
        memory, last = self.cells(packed)
        memory, _ = nn.utils.rnn.pad_packed_sequence(memory, batch_first=True, total_length=h.shape[1])
        return memory, filled, last.transpose(0, 1).flatten(1)


def required(given: Tensor | None) -> Tensor:
    """The sequence that a conditional net cannot do without."""
    if given is None:
        raise UsageError("This model is conditional, p(x | given), but no `given` was passed.", "Pass the sequence it is conditioned on.")
    return given


def _embedded(table: nn.Embedding, given: Tensor) -> tuple[Tensor, Tensor]:
    """(vectors [B, 1 + S, width] of strings [B, S] padded with -1, after that of their beginning; which places are filled)."""
    filled = F.pad(given >= 0, (1, 0), value=True)
    return table(F.pad(given.clamp_min(0), (1, 0), value=table.num_embeddings - 1)), filled
