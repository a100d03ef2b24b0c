"""A transformer over the patches of a grid or of a sequence (see `tower`).

Sides that patches do not divide are padded with zeros, and cut again. Images that are given are concatenated to the input.

References:
    | An image is worth 16x16 words (patches; Dosovitskiy et al., 2020) | https://arxiv.org/abs/2010.11929
    | Scalable diffusion models with transformers (DiT; Peebles and Xie, 2022) | https://arxiv.org/abs/2212.09748
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from likely.nets.denoiser import as_grid, grid_shape, of_size
from likely.nets.known import Knowledge
from likely.nets.positions import KINDS, Positions
from likely.nets.tower import Among, Tower
from likely.space import Space

__all__ = ["DiT"]


class DiT(nn.Module):
    """(u [B, C, H, W] or [B, C, L], t [B]) -> [B, out * C, *rest]; zero at first.

    Options:
        width, depth, heads, dropout: of the transformer.
        patch: side of a patch; by default the least that leaves as many patches as the size says.
        positions: "learned", "sinusoidal", "rotary" or "alibi".
        drop: share of training examples that are shown without what is given.
    """

    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"width": 16, "depth": 1, "heads": 2, "dropout": 0.0},
        "small": {"width": 128, "depth": 4, "heads": 4, "dropout": 0.1},
        "base": {"width": 384, "depth": 12, "heads": 6, "dropout": 0.1},
    }
    most: ClassVar[dict[str, int]] = {"tiny": 16, "small": 64, "base": 256}  # patches
    words: ClassVar[dict[str, tuple[str, ...]]] = {"positions": KINDS}

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
        patch: int | None = None,
        positions: str = "learned",
        dropout: float | None = None,
        drop: float = 0.0,
        times: int = 1,
        extra: int = 0,
    ) -> None:
        super().__init__()
        how = of_size(self.sizes, size, width=width, depth=depth, heads=heads, dropout=dropout)
        channels, sides = grid_shape(space)
        self.patch = _patch(sides, self.most[size], patch)
        area = math.prod(self.patch)
        self.knowledge = Knowledge(given, how["width"], image=sides if space.layout == "grid" else None, drop=drop, times=times)
        self.positions = _positions(sides, self.patch, positions, how["width"], how["heads"])
        inputs = (channels + extra + self.knowledge.channels) * area
        self.tower = Tower(inputs, out * channels * area, text=self.knowledge.reads, **how)

    def forward(self, u: Tensor, t: Tensor, given: Tensor | None = None) -> Tensor:
        known, grid = self.knowledge(t, given), as_grid(u)
        tokens, counts = self._patches(grid if known.image is None else torch.cat([grid, known.image], 1))
        place = torch.arange(tokens.shape[1], device=u.device)
        among = Among(self.positions.turns(place, u.dtype), self.positions.bias(place[:, None], place[None], u.dtype))
        y = self.tower(tokens, known, among, self.positions.added(place, u.dtype))
        y = self._joined(y, counts)[..., : grid.shape[2], : grid.shape[3]]
        return y if u.ndim == 4 else y.squeeze(2)

    def _patches(self, u: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """[B, C, H, W] -> ([B, patches, C * area], patches along each side)."""
        p, q = self.patch
        u = F.pad(u, (0, -u.shape[3] % q, 0, -u.shape[2] % p))
        tiles = u.unflatten(3, (-1, q)).unflatten(2, (-1, p)).permute(0, 2, 4, 1, 3, 5)
        return tiles.flatten(3).flatten(1, 2), (tiles.shape[1], tiles.shape[2])

    def _joined(self, y: Tensor, counts: tuple[int, int]) -> Tensor:
        """The inverse: [B, patches, C * area] -> [B, C, H, W]."""
        tiles = y.unflatten(2, (-1, *self.patch)).unflatten(1, counts).permute(0, 3, 1, 4, 2, 5)
        return tiles.flatten(4).flatten(2, 3)


def _patch(sides: tuple[int, int], most: int, asked: int | None) -> tuple[int, int]:
    """Height and width of a patch: asked for, or the least of which `most` cover all."""
    along = math.isqrt(most) if min(sides) > 1 else most
    p, q = (min(side, asked or -(-side // along)) for side in sides)
    return p, q


def _positions(sides: tuple[int, int], patch: tuple[int, int], kind: str, width: int, heads: int) -> Positions:
    """Of the patches, on a grid or along a line."""
    rows, columns = (-(-side // step) for side, step in zip(sides, patch, strict=True))
    places = Space.grid(1, rows, columns) if rows > 1 else Space.sequence(columns)
    return Positions(places, kind, width=width, heads=heads)
