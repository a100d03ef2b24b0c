"""Where an entry stands, told to a transformer in one of four ways; each on a line, or on the rows and columns of a grid.

    sinusoidal    sin and cos of the place, added to the token
    learned       a vector per place (of a grid: per row and per column), added to the token
    rotary        pairs of a query's and a key's numbers, as complex numbers, times exp(i place / 10000^(2k/d)),
                  so that their product depends on the difference of places alone
    alibi         -slope_h * distance of the places, added to the score of head h

On a grid half of the numbers turn with the row and half with the column, the distance is the sum
over both, and the channels of a pixel are told apart by a learned vector. All but `learned` are
defined at any place, however far.

References:
    | Attention is all you need (sinusoidal; Vaswani et al., 2017) | https://arxiv.org/abs/1706.03762
    | RoFormer: enhanced transformer with rotary position embedding (Su et al., 2021) | https://arxiv.org/abs/2104.09864
    | Train short, test long: attention with linear biases (ALiBi; Press et al., 2022) | https://arxiv.org/abs/2108.12409
"""

import math

import torch
from torch import Tensor, nn

from likely.errors import UsageError, nearest
from likely.nets.split import head_width
from likely.space import Space

__all__ = ["KINDS", "Positions", "rotated"]

KINDS = ("rotary", "learned", "sinusoidal", "alibi")
_BASE = 10_000.0


class Positions(nn.Module):
    """Places 0, 1, ... in the order of a space's entries, as vectors, rotations or biases.

    Args:
        kind: one of `KINDS`.
        width: of tokens; heads: of queries, that divide it.
    """

    slopes: Tensor

    def __init__(self, space: Space, kind: str, *, width: int, heads: int) -> None:
        super().__init__()
        if kind not in KINDS:
            raise UsageError(f"Unknown positions '{kind}'.", nearest(kind, KINDS))
        grid = space.layout == "grid"
        self.kind, self.width, self.head_width = kind, width, head_width(width, heads)
        self.channels, *self.sizes = space.shape if grid else (1, space.dims)
        split = 2 * len(self.sizes)
        if (kind == "rotary" and self.head_width % split) or (kind == "sinusoidal" and width % split):
            raise UsageError(f"{kind} positions of a {space.layout} need widths in multiples of {split}, got {width} of {heads} heads.")
        self.tables = nn.ModuleList(nn.Embedding(n, width) for n in self.sizes if kind == "learned")
        self.channel = nn.Embedding(self.channels, width) if self.channels > 1 else None
        for table in [*self.tables, *([self.channel] if self.channel else [])]:
            nn.init.normal_(table.weight, std=0.02)
        split = (width if kind == "sinusoidal" else self.head_width) // len(self.sizes)
        self.speed = _BASE ** -(torch.arange(0, split, 2, dtype=torch.float64) / split)  # angle per place
        self.register_buffer("slopes", 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads), persistent=False)

    @property
    def longest(self) -> int | None:
        """How many places there are; None without end."""
        return math.prod(self.sizes) * self.channels if self.kind == "learned" else None

    def coordinates(self, place: Tensor) -> list[Tensor]:
        """Of entries at places [...]: the place itself, or the row and column."""
        pixel = place // self.channels
        return [place] if len(self.sizes) == 1 else [pixel // self.sizes[1], pixel % self.sizes[1]]

    def added(self, place: Tensor, dtype: torch.dtype) -> Tensor | None:
        """What is added to the tokens at places [L], [L, width]."""
        parts = [table(at) for table, at in zip(self.tables, self.coordinates(place), strict=True)] if self.kind == "learned" else []
        if self.channel is not None:
            parts.append(self.channel(place % self.channels))
        if self.kind == "sinusoidal":
            angle = self._angles(place)
            parts.append(torch.cat([angle.sin(), angle.cos()], -1).to(dtype))
        return torch.stack(parts).sum(0) if parts else None

    def turns(self, place: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Complex rotations [L, 1, head_width / 2] of the heads of queries and keys at places [L]."""
        if self.kind != "rotary":
            return None
        angle = self._angles(place)
        turns = torch.polar(torch.ones_like(angle), angle)
        return (turns if dtype == torch.float64 else turns.to(torch.complex64))[:, None]

    def bias(self, query: Tensor, key: Tensor, dtype: torch.dtype) -> Tensor | None:
        """What is added to the scores of queries and keys at places that broadcast to [...], [heads, ...]."""
        if self.kind != "alibi":
            return None
        pairs = zip(self.coordinates(query), self.coordinates(key), strict=True)
        distance = torch.stack([(i - j).abs() for i, j in pairs]).sum(0)
        return -self.slopes.to(dtype).view(-1, *[1] * distance.ndim) * distance

    def _angles(self, place: Tensor) -> Tensor:
        """Angles [L, half of the numbers], float64, an equal share for each coordinate."""
        speed = self.speed.to(place.device)
        return torch.cat([at[:, None] * speed for at in self.coordinates(place)], -1)


def rotated(x: Tensor, turns: Tensor | None) -> Tensor:
    """x [..., L, heads, d], or [n, heads, d] with one turn, whose pairs are complex numbers, turned."""
    if turns is None:
        return x
    wide = x if x.dtype == torch.float64 else x.float()
    pairs = torch.view_as_complex(wide.view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)
