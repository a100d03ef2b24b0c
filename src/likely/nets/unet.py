"""A U-Net for grids of any size, and for sequences, which are grids of height 1: residual blocks under FiLM on time and
`given`, attention where the grid is coarse, to all its places and to the symbols of a text that is given.

    resnet     h + conv(silu(FiLM(norm(conv(silu(norm(h)))))))
    convnext   h + W gelu(V FiLM(norm(depthwise_7x7(h))))

Odd sizes need no padding: a level halves the grid rounding up, and the way back interpolates to the size that the skip
connection has. A learned bias per place tells the net where it is, since the images of one data set are often centred.

Images that are given are concatenated to the input. So are, if asked for, its Fourier features sin and cos of
2^k pi u, which show a net the fine differences that the last bits of a likelihood hang on.

References:
    | U-Net: Convolutional networks for biomedical image segmentation (Ronneberger et al., 2015) | https://arxiv.org/abs/1505.04597
    | Denoising diffusion probabilistic models (Ho et al., 2020) | https://arxiv.org/abs/2006.11239
    | Diffusion models beat GANs on image synthesis (Dhariwal and Nichol, 2021) | https://arxiv.org/abs/2105.05233
    | Variational diffusion models (Fourier features; Kingma et al., 2021) | https://arxiv.org/abs/2107.00630
    | A ConvNet for the 2020s (ConvNeXt; Liu et al., 2022) | https://arxiv.org/abs/2201.03545
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from likely.errors import UsageError, nearest
from likely.nets.conditioning import FiLM
from likely.nets.denoiser import as_grid, grid_shape, of_size
from likely.nets.dropout import dropout
from likely.nets.known import Knowledge, Known
from likely.nets.reader import CrossAttention
from likely.nets.split import head_width
from likely.space import Space

__all__ = ["Attention", "ConvNeXtBlock", "ResBlock", "UNet"]

_OCTAVES = 8  # of Fourier features; the finest has a period of 1/128, half a step of 256 levels


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(next(groups for groups in (8, 4, 2, 1) if channels % groups == 0), channels)


class Conv(nn.Conv2d):
    """A convolution that keeps the size, or halves it rounding up; flat along an axis of one place."""

    def __init__(self, channels: int, out: int, sides: tuple[int, int], kernel: int = 3, *, halve: bool = False, groups: int = 1) -> None:
        spans = [kernel if side > 1 else 1 for side in sides]
        stride = [2 if halve and side > 1 else 1 for side in sides]
        super().__init__(channels, out, (spans[0], spans[1]), (stride[0], stride[1]), (spans[0] // 2, spans[1] // 2), groups=groups)

    def zero(self) -> "Conv":
        """Starting at zero: the end of a residual branch, or of the net."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        return self


class ResBlock(nn.Module):
    """skip(h) + conv(silu(FiLM(norm(conv(silu(norm(h)))))))."""

    def __init__(self, channels: int, out: int, sides: tuple[int, int], embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(channels), Conv(channels, out, sides)
        self.norm2, self.conv2 = _norm(out), Conv(out, out, sides).zero()
        self.film = FiLM(embedding, out)
        self.skip = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)
        self.dropout = dropout

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        g = self.conv1(F.silu(self.norm1(h)))
        g = F.silu(self.film(self.norm2(g), embedding))
        return self.skip(h) + self.conv2(dropout(g, self.dropout, self.training))


class ConvNeXtBlock(nn.Module):
    """skip(h) + W gelu(V FiLM(norm(depthwise_7x7(h)))), four times as wide between V and W."""

    def __init__(self, channels: int, out: int, sides: tuple[int, int], embedding: int, dropout: float) -> None:
        super().__init__()
        self.depthwise, self.norm = Conv(channels, channels, sides, 7, groups=channels), nn.GroupNorm(1, channels)
        self.film = FiLM(embedding, channels)
        self.up, self.down = nn.Conv2d(channels, 4 * channels, 1), Conv(4 * channels, out, sides, 1).zero()
        self.skip = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)
        self.dropout = dropout

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        g = F.gelu(self.up(self.film(self.norm(self.depthwise(h)), embedding)))
        return self.skip(h) + self.down(dropout(g, self.dropout, self.training))


BLOCKS: dict[str, type[ResBlock | ConvNeXtBlock]] = {"resnet": ResBlock, "convnext": ConvNeXtBlock}


class Attention(nn.Module):
    """h + self-attention of all places with all."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm, self.heads, self.head_width = _norm(channels), heads, head_width(channels, heads)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), Conv(channels, channels, (1, 1)).zero()

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(h)).flatten(2).unflatten(1, (3 * self.heads, self.head_width)).transpose(2, 3).chunk(3, 1)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return h + self.out(mixed.transpose(2, 3).reshape_as(h))


class TextAttention(nn.Module):
    """h + attention of all places to a text; the identity at first."""

    def __init__(self, channels: int, heads: int, memory: int) -> None:
        super().__init__()
        self.norm, self.attention = _norm(channels), CrossAttention(channels, heads, memory)
        for parameter in self.attention.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, h: Tensor, memory: Tensor, filled: Tensor) -> Tensor:
        mixed = self.attention(self.norm(h).flatten(2).transpose(1, 2), self.attention.read(memory), filled)
        return h + mixed.transpose(1, 2).reshape_as(h)


class Stage(nn.Module):
    """Blocks at one resolution, around the stage of half the resolution and twice the channels.

    Attention is there where a grid has at most `attention` places; a text is read there, and at the coarsest stage in any case.
    """

    def __init__(
        self,
        channels: int,
        sides: tuple[int, int],
        embedding: int,
        *,
        text: int | None,
        block: str,
        levels: int,
        depth: int,
        heads: int,
        attention: int,
        dropout: float,
    ) -> None:
        super().__init__()
        build = BLOCKS[block]
        self.enter = nn.ModuleList(build(channels, channels, sides, embedding, dropout) for _ in range(depth))
        self.leave = nn.ModuleList(build(channels, channels, sides, embedding, dropout) for _ in range(depth))
        shortest = min((side for side in sides if side > 1), default=1)
        attends, deeper = heads > 0 and math.prod(sides) <= attention, levels > 1 and shortest >= 8
        self.attention = Attention(channels, heads) if attends else None
        self.text = TextAttention(channels, heads or 1, text) if text and (attends or not deeper) else None
        self.inner = None
        if deeper:
            half = (-(-sides[0] // 2), -(-sides[1] // 2))
            how: dict[str, Any] = {"text": text, "block": block, "depth": depth, "heads": heads, "attention": attention, "dropout": dropout}
            self.down = Conv(channels, 2 * channels, sides, halve=True)
            self.inner = Stage(2 * channels, half, embedding, levels=levels - 1, **how)
            # maps of each place alone, so that the coarse grid is mapped before it is spread
            self.up, self.across = nn.Conv2d(2 * channels, channels, 1), nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, h: Tensor, known: Known) -> Tensor:
        for block in self.enter:
            h = block(h, known.embedding)
        if self.inner is not None:
            coarse = self.up(self.inner(self.down(h), known))
            h = self.across(h) + F.interpolate(coarse, size=h.shape[2:])
        h = self.attention(h) if self.attention is not None else h
        h = self.text(h, known.memory, known.filled) if self.text is not None else h
        for block in self.leave:
            h = block(h, known.embedding)
        return h


class UNet(nn.Module):
    """(u [B, C, H, W] or [B, C, L], t [B]) -> [B, out * C, *rest]; zero at first.

    Options:
        width: channels at full resolution, doubled at each halving.
        depth: blocks per resolution, on the way down and again on the way up.
        levels: resolutions; sides below 8 are not halved.
        block: "resnet" or "convnext".
        heads: of the attention; 0 for none.
        attention: places that a grid may have for attention on it.
        dropout: within blocks.
        fourier: whether the input comes with its Fourier features.
        drop: share of training examples that are shown without what is given.
    """

    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"width": 16, "levels": 1, "depth": 1, "heads": 0, "dropout": 0.0},
        "small": {"width": 32, "levels": 3, "depth": 1, "heads": 4, "dropout": 0.1},
        "base": {"width": 128, "levels": 3, "depth": 2, "heads": 4, "dropout": 0.1},
    }
    words: ClassVar[dict[str, tuple[str, ...]]] = {"block": tuple(BLOCKS)}

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        out: int,
        width: int | None = None,
        depth: int | None = None,
        levels: int | None = None,
        block: str = "resnet",
        heads: int | None = None,
        attention: int = 64,
        dropout: float | None = None,
        fourier: bool = False,
        drop: float = 0.0,
        times: int = 1,
        extra: int = 0,
    ) -> None:
        super().__init__()
        if block not in BLOCKS:
            raise UsageError(f"Unknown block '{block}' of a U-Net.", nearest(block, BLOCKS))
        channels, sides = grid_shape(space)
        how = of_size(self.sizes, size, width=width, depth=depth, levels=levels, heads=heads, dropout=dropout)
        wide: int = how.pop("width")
        self.knowledge = Knowledge(given, 4 * wide, image=sides if space.layout == "grid" else None, drop=drop, times=times)
        self.fourier = fourier
        inputs = (channels + extra) * (1 + 2 * _OCTAVES * fourier) + self.knowledge.channels
        self.first = Conv(inputs, wide, sides)
        self.place = nn.Embedding(math.prod(sides), wide)
        text = 4 * wide if self.knowledge.reads else None
        self.body = Stage(wide, sides, 4 * wide, text=text, block=block, attention=attention, **how)
        self.norm, self.last = _norm(wide), Conv(wide, out * channels, sides).zero()
        nn.init.zeros_(self.place.weight)

    def forward(self, u: Tensor, t: Tensor, given: Tensor | None = None) -> Tensor:
        known, grid = self.knowledge(t, given), as_grid(u)
        h = self.first(self._inputs(grid, known.image)) + self.place.weight.T.unflatten(1, grid.shape[2:])
        h = self.body(h, known)
        y = self.last(F.silu(self.norm(h)))
        return y if u.ndim == 4 else y.squeeze(2)

    def _inputs(self, u: Tensor, image: Tensor | None) -> Tensor:
        parts = [u]
        if self.fourier:
            angles = torch.cat([2**k * math.pi * u for k in range(1, _OCTAVES + 1)], 1)
            parts += [angles.sin(), angles.cos()]
        return torch.cat([*parts, *([] if image is None else [image])], 1) if self.fourier or image is not None else u
