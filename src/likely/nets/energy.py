"""Nets of role "energy": reals -> a few numbers per example, smooth in the reals and in the weights.

An energy or a critic is differentiated by its input, and where that gradient is penalised, again by
its weights. So activations are SiLU, there is no normalisation over the batch, and pooling averages. Energies and
critics mean something up to a constant only, which is why the last map has no bias.

References:
    | Implicit generation and modeling with energy-based models (Du and Mordatch, 2019) | https://arxiv.org/abs/1903.08689
    | The GAN is dead; long live the GAN! A modern baseline GAN (Huang et al., 2024) | https://arxiv.org/abs/2501.05441
"""

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from likely.nets.conditioning import Conditioner, FiLM
from likely.nets.mlp import ResMLP
from likely.space import Space

__all__ = ["ConvEnergy", "MLPEnergy", "grid_energy"]

DENSE_UP_TO = 1024  # entries of a grid; chains take thousands of evaluations, and a dense net costs a tenth of convolutions


class MLPEnergy(nn.Module):
    """A residual multilayer perceptron on the flattened reals: u [B, *shape] -> [B, out]."""

    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"width": 32, "depth": 1},
        "small": {"width": 128, "depth": 1},
        "base": {"width": 512, "depth": 4},
    }

    def __init__(self, space: Space, *, given: Space | None = None, size: str = "small", out: int, **options: Any) -> None:
        super().__init__()
        chosen = {**self.sizes[size], **options}
        embedding = chosen["width"] if given else None
        self.conditioner = Conditioner(given, chosen["width"])
        self.body = ResMLP(space.dims, out, embedding=embedding, **chosen)
        self.body.last = nn.Linear(chosen["width"], out, bias=False)

    def forward(self, u: Tensor, given: Tensor | None = None) -> Tensor:
        return self.body(u.flatten(1), self.conditioner(given, len(u)))


class ConvBlock(nn.Module):
    """h + W2 silu(FiLM(W1 silu(h))) by 3 x 3 convolutions; then, with `out`, half the size and that many channels."""

    def __init__(self, channels: int, embedding: int | None, out: int | None = None) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.film = FiLM(embedding, channels) if embedding else None
        self.widen = nn.Conv2d(channels, out, 1) if out else None

    def forward(self, h: Tensor, embedding: Tensor | None) -> Tensor:
        g = self.first(F.silu(h))
        h = h + self.second(F.silu(self.film(g, embedding) if self.film else g))
        return self.widen(F.avg_pool2d(h, 2, ceil_mode=True)) if self.widen else h


class ConvEnergy(nn.Module):
    """Residual convolutions, halved until at most 4 x 4 and doubled in channels, then a linear map of what is left.

    u [B, C, H, W] -> [B, out]. Images of more than 16 x 16 are halved by the first convolution already.
    """

    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"width": 8, "depth": 1},
        "small": {"width": 32, "depth": 1},
        "base": {"width": 96, "depth": 2},
    }

    def __init__(self, space: Space, *, given: Space | None = None, size: str = "small", out: int, **options: Any) -> None:
        super().__init__()
        chosen = {**self.sizes[size], **options}
        width, depth, (channels, height, length) = chosen["width"], chosen["depth"], space.shape
        embedding = 4 * width if given else None
        self.conditioner = Conditioner(given, 4 * width)
        large = min(height, length) > 16
        self.stem = nn.Conv2d(channels, width, 4, stride=2, padding=1) if large else nn.Conv2d(channels, width, 3, padding=1)
        height, length = (height // 2, length // 2) if large else (height, length)
        self.blocks = nn.ModuleList(ConvBlock(width, embedding) for _ in range(depth))
        while max(height, length) > 4:
            self.blocks.append(ConvBlock(width, embedding, 2 * width))
            width, height, length = 2 * width, -(-height // 2), -(-length // 2)
            self.blocks.extend(ConvBlock(width, embedding) for _ in range(depth - 1))
        self.head = nn.Linear(width * height * length, out, bias=False)

    def forward(self, u: Tensor, given: Tensor | None = None) -> Tensor:
        embedding, h = self.conditioner(given, len(u)), self.stem(u)
        for block in self.blocks:
            h = block(h, embedding)
        return self.head(F.silu(h).flatten(1))


def grid_energy(space: Space, *, given: Space | None = None, size: str = "small", out: int, **options: Any) -> nn.Module:
    """The default on grids: dense where the grid is small, else convolutional."""
    cls = MLPEnergy if space.dims <= DENSE_UP_TO else ConvEnergy
    return cls(space, given=given, size=size, out=out, **options)
