"""Nets of role "generator": noise z [B, in] -> reals [B, *shape], with any number of features out of few.

References:
    | Unsupervised representation learning with deep convolutional GANs (Radford et al., 2016) | https://arxiv.org/abs/1511.06434
"""

from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from likely.nets.conditioning import Conditioner
from likely.nets.energy import DENSE_UP_TO, ConvBlock
from likely.nets.mlp import ResMLP
from likely.space import Space

__all__ = ["ConvGenerator", "MLPGenerator", "grid_generator"]


class MLPGenerator(nn.Module):
    """A residual multilayer perceptron: z [B, inputs] -> [B, *shape]."""

    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"width": 32, "depth": 1},
        "small": {"width": 256, "depth": 2},
        "base": {"width": 512, "depth": 4},
    }

    def __init__(self, space: Space, *, given: Space | None = None, size: str = "small", out: int = 1, inputs: int, **options: Any) -> None:
        super().__init__()
        chosen = {**self.sizes[size], **options}
        self.shape = (out * space.shape[0], *space.shape[1:])
        self.conditioner = Conditioner(given, chosen["width"])
        self.body = ResMLP(inputs, out * space.dims, embedding=chosen["width"] if given else None, **chosen)

    def forward(self, z: Tensor, given: Tensor | None = None) -> Tensor:
        return self.body(z, self.conditioner(given, len(z))).view(-1, *self.shape)


class ConvGenerator(nn.Module):
    """A linear map to at most 4 x 4 places, then residual convolutions, doubled in size and halved in channels: z -> [B, out * C, H, W]."""

    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"width": 8, "depth": 1},
        "small": {"width": 32, "depth": 1},
        "base": {"width": 96, "depth": 2},
    }

    def __init__(self, space: Space, *, given: Space | None = None, size: str = "small", out: int = 1, inputs: int, **options: Any) -> None:
        super().__init__()
        chosen = {**self.sizes[size], **options}
        width, depth = chosen["width"], chosen["depth"]
        self.places = [space.shape[1:]]
        while max(self.places[0]) > 4:
            self.places.insert(0, tuple(-(-side // 2) for side in self.places[0]))
        embedding = 4 * width if given else None
        self.conditioner = Conditioner(given, 4 * width)
        widths = [width << level for level in reversed(range(len(self.places)))]
        self.first = nn.Linear(inputs, widths[0] * self.places[0][0] * self.places[0][1])
        self.depth, self.blocks = depth, nn.ModuleList(ConvBlock(w, embedding) for w in widths for _ in range(depth))
        self.narrow = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairwise(widths))
        self.last = nn.Conv2d(width, out * space.shape[0], 3, padding=1)

    def forward(self, z: Tensor, given: Tensor | None = None) -> Tensor:
        embedding = self.conditioner(given, len(z))
        h = self.first(z).view(len(z), -1, *self.places[0])
        for level, places in enumerate(self.places):
            if level:
                h = F.interpolate(self.narrow[level - 1](h), places)
            for block in self.blocks[level * self.depth : (level + 1) * self.depth]:
                h = block(h, embedding)
        return self.last(F.silu(h))


def grid_generator(
    space: Space, *, given: Space | None = None, size: str = "small", out: int = 1, inputs: int, **options: Any
) -> nn.Module:
    """The default on grids: dense where the grid is small, else convolutional."""
    cls = MLPGenerator if space.dims <= DENSE_UP_TO else ConvGenerator
    return cls(space, given=given, size=size, out=out, inputs=inputs, **options)
