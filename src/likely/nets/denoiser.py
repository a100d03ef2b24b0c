"""What every denoiser shares, an embedding of time; and the denoiser of vectors, a residual MLP.

References:
    | Attention is all you need (Vaswani et al., 2017) | https://arxiv.org/abs/1706.03762
    | Denoising diffusion probabilistic models (Ho et al., 2020) | https://arxiv.org/abs/2006.11239
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from likely.nets.conditioning import Conditioner
from likely.nets.mlp import ResMLP
from likely.space import Space

__all__ = ["MLPDenoiser", "TimeEmbedding"]


class TimeEmbedding(nn.Module):
    """(t [B] in [0, 1], given) -> embedding [B, width]: sines and cosines of t through an MLP, plus that of `given`."""

    frequencies: Tensor

    def __init__(self, width: int, given: Space | None = None, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi * torch.logspace(0, math.log2(64), 16, base=2), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.conditioner = Conditioner(given, width, dropout=dropout)

    def forward(self, t: Tensor, given: Tensor | None) -> Tensor:
        angle = t[:, None].float() * self.frequencies
        embedding = self.mlp(torch.cat([angle.sin(), angle.cos()], 1))
        extra = self.conditioner(given, len(t))
        return F.silu(embedding if extra is None else embedding + extra)


class MLPDenoiser(nn.Module):
    """(u [B, D], t [B]) -> [B, out * D] by a residual MLP; zero at first."""

    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"width": 64, "depth": 2, "dropout": 0.0},
        "small": {"width": 256, "depth": 4, "dropout": 0.1},
        "base": {"width": 1024, "depth": 8, "dropout": 0.1},
    }

    def __init__(self, space: Space, *, given: Space | None = None, size: str = "small", out: int, **options: Any) -> None:
        super().__init__()
        chosen = {**self.sizes[size], **options}
        width = chosen["width"]
        self.time = TimeEmbedding(width, given)
        self.body = ResMLP(space.dims, out * space.dims, embedding=width, zero=True, **chosen)

    def forward(self, u: Tensor, t: Tensor, given: Tensor | None = None) -> Tensor:
        return self.body(u, self.time(t, given))
