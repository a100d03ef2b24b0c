"""Encoders and decoders: examples x [B, *shape] -> [B, out], and latents z [B, inputs] -> [B, *shape, out].

    dense   a residual multilayer perceptron over all entries: tables, and grids of few pixels
    conv    residual convolutions that halve (double) every axis in each stage: larger grids, and
            sequences as grids of one axis; with so many `halvings` what it puts out (takes) is a grid,
            [B, out, ...] or [B, inputs, ...] with every axis halved so often

Encoders take examples in data units. Numbers enter standardised, nominals and symbols by embedding,
a missing cell as its own embedding. GroupNorm and LayerNorm keep every example to itself.

References:
    | Deep residual learning for image recognition (He et al., 2016) | https://arxiv.org/abs/1512.03385
    | Group normalization (Wu and He, 2018) | https://arxiv.org/abs/1803.08494
"""

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from likely.nets.conditioning import Conditioner, FiLM
from likely.nets.dropout import dropout
from likely.nets.mlp import ResMLP
from likely.relaxation import per_number
from likely.space import MISSING, Space, to_grid

__all__ = ["ConvDecoder", "ConvEncoder", "DenseDecoder", "DenseEncoder", "grid_decoder", "grid_encoder"]

DENSE = {"tiny": {"width": 32, "depth": 1}, "small": {"width": 256, "depth": 2}, "base": {"width": 512, "depth": 4}}
CONV = {"tiny": {"width": 8, "depth": 1}, "small": {"width": 32, "depth": 1}, "base": {"width": 64, "depth": 2}}
DENSE_UP_TO = 256  # entries of a grid; more are convolved
COARSEST = 7  # an axis is halved until it is no longer than this
WIDEST = 4  # channels grow to at most so many times those of the first stage


def standardise(space: Space, x: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of a batch on the standardised scale, 0 where missing; and which of the flagged are missing."""
    x = x[:, space.numbers]
    decimal, real = (per_number([space.supports[i].kind == kind for i in space.numbers], x).bool() for kind in ("decimal", "real"))
    lost = (torch.isnan(x) | (x == MISSING)) & per_number([space.supports[i].missing for i in space.numbers], x).bool()
    center, scale = space.affine(x)
    number = torch.where(decimal, to_grid(x), x).double() + torch.where(real, 0.0, 0.5)
    value = torch.where(lost, 0.0, (number - center) / scale).to(torch.get_default_dtype())
    return value, lost[:, [space.numbers.index(i) for i in space.flags]]


def planes(space: Space, x: Tensor) -> Tensor:
    """A grid's channels as reals: numbers, then missing flags, then nominals one-hot."""
    number, lost = standardise(space, x)
    codes = [(x[:, i].nan_to_num(MISSING).long() + 1, space.supports[i].levels + 1) for i in space.nominals]
    return torch.cat([number, lost.to(number), *(F.one_hot(code, states).movedim(-1, 1).to(number) for code, states in codes)], 1)


def plane_count(space: Space) -> int:
    return len(space.numbers) + len(space.flags) + sum(space.supports[i].levels + 1 for i in space.nominals)


class Cells(nn.Module):
    """A row as one vector [B, width]: numbers linearly, nominals and missing cells by lookup, all columns at once."""

    offsets: Tensor

    def __init__(self, space: Space, width: int) -> None:
        super().__init__()
        self.space = space
        states = [space.supports[i].levels + 1 for i in space.nominals] + [2] * len(space.flags)
        self.linear = nn.Linear(len(space.numbers), width) if space.numbers else None
        self.table = nn.EmbeddingBag(sum(states), width, mode="sum") if states else None
        self.register_buffer("offsets", torch.tensor([0, *itertools.accumulate(states)][:-1]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        number, lost = standardise(self.space, x)
        parts = [] if self.linear is None else [self.linear(number)]
        if self.table is not None:
            codes = torch.cat([x[:, self.space.nominals].nan_to_num(MISSING).long() + 1, lost.long()], 1)
            parts.append(self.table(codes + self.offsets))
        return torch.stack(parts).sum(0)


class Pixels(nn.Module):
    """A small grid as one vector [B, width], linear in its planes."""

    def __init__(self, space: Space, width: int) -> None:
        super().__init__()
        self.space, self.linear = space, nn.Linear(plane_count(space) * math.prod(space.shape[1:]), width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(planes(self.space, x).flatten(1))


class DenseEncoder(nn.Module):
    """x [B, *shape] -> [B, out] by a residual MLP."""

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None,
        size: str,
        out: int,
        width: int | None = None,
        depth: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        width, depth = width or DENSE[size]["width"], DENSE[size]["depth"] if depth is None else depth
        self.conditioner = Conditioner(given, width)
        self.entries = (Cells if space.layout == "columns" else Pixels)(space, width)
        self.mlp = ResMLP(width, out, embedding=width if given else None, width=width, depth=depth, dropout=dropout)

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        return self.mlp(F.silu(self.entries(x)), self.conditioner(given, len(x)))


class DenseDecoder(nn.Module):
    """z [B, inputs] -> [B, *shape, out] by a residual MLP."""

    def __init__(
        self,
        space: Space,
        *,
        inputs: int,
        given: Space | None,
        size: str,
        out: int,
        width: int | None = None,
        depth: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        width, depth = width or DENSE[size]["width"], DENSE[size]["depth"] if depth is None else depth
        self.shape = (*space.shape, out)
        self.conditioner = Conditioner(given, width)
        self.mlp = ResMLP(inputs, space.dims * out, embedding=width if given else None, width=width, depth=depth, dropout=dropout)

    def forward(self, z: Tensor, given: Tensor | None = None) -> Tensor:
        return self.mlp(z, self.conditioner(given, len(z))).view(len(z), *self.shape)


def _conv(rank: int, inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
    return (nn.Conv1d, nn.Conv2d)[rank - 1](inputs, outputs, kernel, stride, kernel // 2)


class Residual(nn.Module):
    """h + conv(dropout(silu(FiLM(conv(silu(norm(h)))))))."""

    def __init__(self, rank: int, width: int, embedding: int | None, dropout: float) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(math.gcd(8, width), width)
        self.up, self.down = _conv(rank, width, width, 3), _conv(rank, width, width, 3)
        self.film = FiLM(embedding, width) if embedding else None
        self.dropout = dropout

    def forward(self, h: Tensor, embedding: Tensor | None) -> Tensor:
        g = self.up(F.silu(self.norm(h)))
        g = self.film(g, embedding) if self.film else g
        return h + self.down(dropout(F.silu(g), self.dropout, self.training))


class Stage(nn.Module):
    """Residual blocks at one resolution."""

    def __init__(self, rank: int, width: int, depth: int, embedding: int | None, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual(rank, width, embedding, dropout) for _ in range(depth))

    def forward(self, h: Tensor, embedding: Tensor | None) -> Tensor:
        for block in self.blocks:
            h = block(h, embedding)
        return h


def _stages(space: Space, width: int, halvings: int | None) -> list[tuple[tuple[int, ...], int]]:
    """Extent and channels of each stage, from the finest to the coarsest."""
    extent = space.shape[1:] if space.layout == "grid" else space.shape
    stages = [(extent, width)]
    while max(stages[-1][0]) > COARSEST if halvings is None else len(stages) <= halvings:
        extent, channels = stages[-1]
        stages.append((tuple((n + 1) // 2 for n in extent), min(2 * channels, WIDEST * width)))
    return stages


class ConvEncoder(nn.Module):
    """x [B, *shape] -> [B, out]: residual blocks at each of ever coarser stages."""

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None,
        size: str,
        out: int,
        width: int | None = None,
        depth: int | None = None,
        dropout: float = 0.0,
        halvings: int | None = None,
    ) -> None:
        super().__init__()
        width, depth = width or CONV[size]["width"], CONV[size]["depth"] if depth is None else depth
        self.space, stages = space, _stages(space, width, halvings)
        rank, embedding = len(stages[0][0]), 4 * width if given else None
        self.conditioner = Conditioner(given, 4 * width)
        self.symbols = nn.Embedding(space.supports[0].levels + 1, width) if space.layout == "sequence" else None
        self.first = _conv(rank, width if self.symbols else plane_count(space), width, 3)
        self.stages = nn.ModuleList(Stage(rank, c, depth, embedding, dropout) for _, c in stages)
        self.shrink = nn.ModuleList(_conv(rank, a, b, 3, stride=2) for (_, a), (_, b) in itertools.pairwise(stages))
        self.flat, coarse = halvings is None, stages[-1][1]
        self.last = nn.Linear(coarse * math.prod(stages[-1][0]), out) if self.flat else _conv(rank, coarse, out, 1)

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        embedding = self.conditioner(given, len(x))
        h = self.first(planes(self.space, x) if self.symbols is None else self.symbols(x + 1).transpose(1, 2))
        for i, stage in enumerate(self.stages):
            h = stage(self.shrink[i - 1](h) if i else h, embedding)
        return self.last(F.silu(h).flatten(1) if self.flat else F.silu(h))


class ConvDecoder(nn.Module):
    """z [B, inputs] -> [B, *shape, out]: residual blocks at each of ever finer stages."""

    def __init__(
        self,
        space: Space,
        *,
        inputs: int,
        given: Space | None,
        size: str,
        out: int,
        width: int | None = None,
        depth: int | None = None,
        dropout: float = 0.0,
        halvings: int | None = None,
    ) -> None:
        super().__init__()
        width, depth = width or CONV[size]["width"], CONV[size]["depth"] if depth is None else depth
        stages = _stages(space, width, halvings)[::-1]
        rank, embedding = len(stages[0][0]), 4 * width if given else None
        self.conditioner = Conditioner(given, 4 * width)
        self.extents, self.coarse = [extent for extent, _ in stages], (stages[0][1], *stages[0][0])
        self.first = nn.Linear(inputs, math.prod(self.coarse)) if halvings is None else _conv(rank, inputs, stages[0][1], 3)
        self.stages = nn.ModuleList(Stage(rank, c, depth, embedding, dropout) for _, c in stages)
        self.grow = nn.ModuleList(_conv(rank, a, b, 3) for (_, a), (_, b) in itertools.pairwise(stages))
        self.channels, self.out, self.sequence = len(space.supports), out, space.layout == "sequence"
        self.last = _conv(rank, width, self.channels * out, 1)

    def forward(self, z: Tensor, given: Tensor | None = None) -> Tensor:
        embedding = self.conditioner(given, len(z))
        h = self.first(z).view(len(z), *self.coarse)
        h = self.stages[0](h, embedding)
        for stage, grow, extent in zip(self.stages[1:], self.grow, self.extents[1:], strict=True):
            h = stage(grow(F.interpolate(h, extent)), embedding)
        h = self.last(F.silu(h)).unflatten(1, (self.channels, self.out)).movedim(2, -1)
        return h.squeeze(1) if self.sequence else h


def grid_encoder(space: Space, **options: Any) -> nn.Module:
    """Dense for grids of few entries, convolutional for larger ones."""
    return (DenseEncoder if space.dims <= DENSE_UP_TO else ConvEncoder)(space, **options)


def grid_decoder(space: Space, **options: Any) -> nn.Module:
    """Dense for grids of few entries, convolutional for larger ones."""
    return (DenseDecoder if space.dims <= DENSE_UP_TO else ConvDecoder)(space, **options)
