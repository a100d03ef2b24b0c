"""The denoisers of vectors, a residual MLP and a plain one; what those of grids and sequences share: a sequence is a grid of height 1.

References:
    | Denoising diffusion probabilistic models (Ho et al., 2020) | https://arxiv.org/abs/2006.11239
    | Fourier features let networks learn high frequency functions in low dimensional domains (Tancik et al., 2020) | https://arxiv.org/abs/2006.10739
    | Revisiting deep learning models for tabular data (Gorishniy et al., 2021) | https://arxiv.org/abs/2106.11959
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from likely.errors import UsageError
from likely.nets.conditioning import Conditioner
from likely.nets.dropout import dropout
from likely.nets.known import Knowledge
from likely.nets.mlp import ResMLP
from likely.space import Space

__all__ = ["MLPDenoiser", "PlainDenoiser", "as_grid", "grid_shape", "of_size"]


def of_size(sizes: dict[str, dict[str, Any]], size: str, **chosen: Any) -> dict[str, Any]:
    """Options of a size, overridden by those chosen (not None).

    Raises: UsageError for an unknown size.
    """
    if size not in sizes:
        raise UsageError(f"Unknown size '{size}'.", f"Known: {', '.join(sizes)}.")
    return {**sizes[size], **{name: value for name, value in chosen.items() if value is not None}}


def grid_shape(space: Space) -> tuple[int, tuple[int, int]]:
    """C and (H, W) of a grid; of sequences [C, L] they are C and (1, L)."""
    channels, *sides = space.shape
    return channels, (sides[0] if len(sides) > 1 else 1, sides[-1])


def as_grid(u: Tensor) -> Tensor:
    """Reals [B, C, H, W] or [B, C, L] as [B, C, H, W]."""
    return u if u.ndim == 4 else u.unsqueeze(2)


_TIME_WAVES = 2  # octaves of sines and cosines of the time that the plain net sees


class MLPDenoiser(nn.Module):
    """(u [B, D], t [B]) -> [B, out * D] by a residual MLP; zero at first.

    Options:
        width, depth, dropout: of the residual blocks.
        drop: share of training examples that are shown without what is given.
    """

    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"width": 64, "depth": 2, "dropout": 0.0},
        "small": {"width": 256, "depth": 4, "dropout": 0.1},
        "base": {"width": 1024, "depth": 8, "dropout": 0.1},
    }

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        out: int,
        width: int | None = None,
        depth: int | None = None,
        dropout: float | None = None,
        drop: float = 0.0,
        times: int = 1,
        extra: int = 0,
    ) -> None:
        super().__init__()
        how = of_size(self.sizes, size, width=width, depth=depth, dropout=dropout)
        self.knowledge = Knowledge(given, how["width"], drop=drop, times=times)
        self.body = ResMLP(space.dims + extra, out * space.dims, embedding=how["width"], zero=True, **how)

    def forward(self, u: Tensor, t: Tensor, given: Tensor | None = None) -> Tensor:
        return self.body(u, self.knowledge(t, given).embedding)


class PlainDenoiser(nn.Module):
    """(u [B, D], t [B]) -> [B, out * D] by linear maps with SiLU between them; zero at first.

    It sees u and t with sines and cosines of both. Few operations: where data are of few dimensions, many steps a second.

    Options:
        width, depth, dropout: of hidden layers.
        waves: octaves of sines and cosines of u, the slowest of a period of eight deviations.
        drop: share of training examples that are shown without what is given.
    """

    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"width": 32, "depth": 2, "waves": 1, "dropout": 0.0},
        "small": {"width": 128, "depth": 3, "waves": 2, "dropout": 0.0},
        "base": {"width": 512, "depth": 4, "waves": 3, "dropout": 0.0},
    }

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        out: int,
        width: int | None = None,
        depth: int | None = None,
        dropout: float | None = None,
        waves: int | None = None,
        drop: float = 0.0,
        times: int = 1,
        extra: int = 0,
    ) -> None:
        super().__init__()
        how = of_size(self.sizes, size, width=width, depth=depth, dropout=dropout, waves=waves)
        self.waves, self.dropout = how["waves"], how["dropout"]
        self.conditioner = Conditioner(given, how["width"], dropout=drop)
        inputs = (space.dims + extra) * (1 + 2 * self.waves) + times * (1 + 2 * _TIME_WAVES)
        self.first = nn.Linear(inputs, how["width"])
        self.hidden = nn.ModuleList(nn.Linear(how["width"], how["width"]) for _ in range(how["depth"] - 1))
        self.last = nn.Linear(how["width"], out * space.dims)
        for p in self.last.parameters():
            nn.init.zeros_(p)

    def forward(self, u: Tensor, t: Tensor, given: Tensor | None = None) -> Tensor:
        t = t.view(len(t), -1).to(u)
        h = self.first(torch.cat([*_waves(u, math.pi / 4, self.waves), *_waves(t, math.pi / 2, _TIME_WAVES)], 1))
        known = self.conditioner(given, len(u))
        h = h if known is None else h + known
        for layer in self.hidden:
            h = layer(dropout(F.silu(h), self.dropout, self.training))
        return self.last(F.silu(h))


def _waves(v: Tensor, slowest: float, octaves: int) -> list[Tensor]:
    """v itself, and its sines and cosines at frequencies that double."""
    if octaves == 0:
        return [v]
    angle = torch.cat([v * (slowest * 2**k) for k in range(octaves)], 1)
    return [v, angle.sin(), angle.cos()]
