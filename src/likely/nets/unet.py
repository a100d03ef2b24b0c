"""A U-Net for grids of any size: residual blocks under FiLM on time and `given`, attention where the grid is coarse.

Odd sizes need no padding: a level halves the grid rounding up, and the way back interpolates to the size that the skip
connection has. A learned bias per place tells the net where it is, since the images of one data set are often centred.

References:
    | U-Net: Convolutional networks for biomedical image segmentation (Ronneberger et al., 2015) | https://arxiv.org/abs/1505.04597
    | Denoising diffusion probabilistic models (Ho et al., 2020) | https://arxiv.org/abs/2006.11239
    | Diffusion models beat GANs on image synthesis (Dhariwal and Nichol, 2021) | https://arxiv.org/abs/2105.05233
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from likely.nets.conditioning import FiLM
from likely.nets.denoiser import TimeEmbedding
from likely.space import Space

__all__ = ["Attention", "ResBlock", "UNet"]

_COARSE = 64  # attention where a grid has at most so many places


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(next(groups for groups in (8, 4, 2, 1) if channels % groups == 0), channels)


def _zero_conv(channels: int, out: int, kernel: int) -> nn.Conv2d:
    """A convolution that starts at zero: the end of a residual branch, or of the net."""
    conv = nn.Conv2d(channels, out, kernel, padding=kernel // 2)
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return conv


class ResBlock(nn.Module):
    """skip(h) + conv(silu(FiLM(norm(conv(silu(norm(h)))))))."""

    def __init__(self, channels: int, out: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(channels), nn.Conv2d(channels, out, 3, padding=1)
        self.norm2, self.conv2 = _norm(out), _zero_conv(out, out, 3)
        self.film = FiLM(embedding, out)
        self.skip = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)
        self.dropout = dropout

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        g = self.conv1(F.silu(self.norm1(h)))
        g = F.silu(self.film(self.norm2(g), embedding))
        return self.skip(h) + self.conv2(F.dropout(g, self.dropout, self.training))


class Attention(nn.Module):
    """h + self-attention of all places with all."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm, self.heads = _norm(channels), heads
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), _zero_conv(channels, channels, 1)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(h)).flatten(2).unflatten(1, (3 * self.heads, -1)).transpose(2, 3).chunk(3, 1)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return h + self.out(mixed.transpose(2, 3).reshape_as(h))


class Stage(nn.Module):
    """Residual blocks at one resolution, around the stage of half the resolution and twice the channels."""

    def __init__(
        self, channels: int, sides: tuple[int, ...], embedding: int, *, levels: int, depth: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.enter = nn.ModuleList(ResBlock(channels, channels, embedding, dropout) for _ in range(depth))
        self.leave = nn.ModuleList(ResBlock(channels, channels, embedding, dropout) for _ in range(depth))
        self.attention = Attention(channels, heads) if heads and sides[0] * sides[1] <= _COARSE else None
        self.inner = None
        if levels > 1 and min(sides) >= 8:
            half = tuple(-(-side // 2) for side in sides)
            self.down = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
            self.inner = Stage(2 * channels, half, embedding, levels=levels - 1, depth=depth, heads=heads, dropout=dropout)
            self.join = nn.Conv2d(3 * channels, channels, 1)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        for block in self.enter:
            h = block(h, embedding)
        if self.inner is not None:
            coarse = self.inner(self.down(h), embedding)
            h = self.join(torch.cat([h, F.interpolate(coarse, size=h.shape[2:])], 1))
        h = self.attention(h) if self.attention is not None else h
        for block in self.leave:
            h = block(h, embedding)
        return h


class UNet(nn.Module):
    """(u [B, C, H, W], t [B]) -> [B, out * C, H, W]; zero at first.

    Options:
        width: channels at full resolution, doubled at each halving.
        depth: residual blocks per resolution, on the way down and again on the way up.
        levels: resolutions; sides below 8 are not halved.
        heads: of the attention where a grid has at most 64 places; 0 for none.
        dropout: within residual blocks.
    """

    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"width": 16, "levels": 1, "depth": 1, "heads": 0, "dropout": 0.0},
        "small": {"width": 32, "levels": 3, "depth": 1, "heads": 4, "dropout": 0.1},
        "base": {"width": 128, "levels": 3, "depth": 2, "heads": 4, "dropout": 0.1},
    }

    def __init__(self, space: Space, *, given: Space | None = None, size: str = "small", out: int, **options: Any) -> None:
        super().__init__()
        channels, height, across = space.shape
        how = {**self.sizes[size], **options}
        width = how.pop("width")
        self.time = TimeEmbedding(4 * width, given)
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.place = nn.Embedding(height * across, width)
        self.body = Stage(width, (height, across), 4 * width, **how)
        self.norm, self.last = _norm(width), _zero_conv(width, out * channels, 3)
        nn.init.zeros_(self.place.weight)

    def forward(self, u: Tensor, t: Tensor, given: Tensor | None = None) -> Tensor:
        h = self.first(u) + self.place.weight.T.unflatten(1, u.shape[2:])
        h = self.body(h, self.time(t, given))
        return self.last(F.silu(self.norm(h)))
