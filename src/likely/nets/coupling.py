"""Coupling nets: the entries that stay -> raw parameters of the maps of those that move; zero at first.

Each is built for the entries that it says something about (`moves`), so nothing is computed for the others.

References:
    | Density estimation using Real NVP (Dinh et al., 2017) | https://arxiv.org/abs/1605.08803
    | Neural spline flows (Durkan et al., 2019) | https://arxiv.org/abs/1906.04032
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from likely.nets.conditioning import Conditioner, FiLM
from likely.nets.dropout import dropout
from likely.nets.mlp import PlainMLP, ResMLP
from likely.nets.perceptron import Perceptron
from likely.space import Space

__all__ = ["ConvCoupling", "MLPCoupling"]


class MLPCoupling(nn.Module):
    """Reals [B, *shape] -> [B, out, moved] by a residual MLP that sees every entry, or a plain one that sees those that stay.

    Args:
        residual: else a block is one matrix and a ReLU (and `given` is added once): half of the matrices,
            and on a CPU several times as fast in affine couplings (`bijections.fused`).
    """

    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"width": 32, "depth": 1},
        "small": {"width": 128, "depth": 1},
        "base": {"width": 512, "depth": 2},
    }

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        out: int,
        moves: Tensor,
        residual: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        chosen = {"dropout": 0.1, **self.sizes[size], **options}
        embedding, outputs = chosen["width"] if given is not None else None, int(moves.sum()) * out
        self.out, self.conditional = out, given is not None
        self.conditioner = Conditioner(given, chosen["width"])
        self.body = (
            ResMLP(space.dims, outputs, embedding=embedding, zero=True, **chosen)
            if residual or moves.all()  # where nothing stays there is nothing to read
            else PlainMLP((~moves).flatten().nonzero().squeeze(1), outputs, **chosen)
        )

    def perceptron(self, given: Tensor | None, n: int) -> Perceptron | None:
        """All that the net computes, if that is a perceptron."""
        body = self.body
        if not isinstance(body, PlainMLP):
            return None
        return body.perceptron(self.conditioner(given, n) if self.conditional or given is not None else None)

    def forward(self, u: Tensor, given: Tensor | None = None) -> Tensor:
        return self.body(u.flatten(1), self.conditioner(given, len(u))).view(len(u), self.out, -1)


class ConvBlock(nn.Module):
    """h + conv1x1 silu(FiLM(conv3x3 silu(h)))."""

    def __init__(self, width: int, embedding: int | None, dropout: float) -> None:
        super().__init__()
        self.look, self.mix = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 1)
        self.film = FiLM(embedding, width) if embedding else None
        self.dropout = dropout

    def forward(self, h: Tensor, embedding: Tensor | None) -> Tensor:
        g = self.look(F.silu(h))
        g = self.film(g, embedding) if self.film else g
        return h + self.mix(dropout(F.silu(g), self.dropout, self.training))


class ConvCoupling(nn.Module):
    """Reals [B, C, H, W] -> [B, out, moved] by a residual convolutional net that knows where it is.

    A learned bias per position lets it treat the border unlike the centre.
    """

    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"width": 16, "depth": 1},
        "small": {"width": 32, "depth": 1},
        "base": {"width": 128, "depth": 3},
    }
    places: Tensor

    def __init__(self, space: Space, *, given: Space | None = None, size: str = "small", out: int, moves: Tensor, **options: Any) -> None:
        super().__init__()
        chosen = {"dropout": 0.1, **self.sizes[size], **options}
        width, (channels, height, across) = chosen["width"], space.shape
        self.out, self.channels = out, [c for c in range(channels) if moves[c].any()]
        self.register_buffer("places", moves[self.channels].flatten().nonzero().squeeze(1))
        self.conditioner = Conditioner(given, width)
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.position = nn.Parameter(torch.zeros(width, height, across))
        self.blocks = nn.ModuleList(
            ConvBlock(width, width if given is not None else None, chosen["dropout"]) for _ in range(chosen["depth"])
        )
        self.last = nn.Conv2d(width, len(self.channels) * out, 1)
        for p in self.last.parameters():
            nn.init.zeros_(p)

    def forward(self, u: Tensor, given: Tensor | None = None) -> Tensor:
        embedding = self.conditioner(given, len(u))
        h = self.first(u) + self.position
        for block in self.blocks:
            h = block(h, embedding)
        raw = self.last(F.silu(h)).unflatten(1, (self.out, len(self.channels)))
        return raw.flatten(2)[:, :, self.places]
