r"""TarFlow: autoregressive affine maps whose parameters a transformer over patches chooses.

    y_i = x_i exp(s(x_<i)) + t(x_<i) for patches i = 1 ... T;  the next block goes the other way

A patch of an image is a square of pixels, of a table a column. Each block is a causal transformer, so a density
costs one pass of each. All start as the identity; everything is in float32 (an inverse in lower precision is none).
Sampling solves each block by iteration, x <- f^-1(y; net(x)): one more patch is exact after each pass, so T passes are enough and
mostly fewer are taken.

Discrete data are Gaussianised by their histograms first, as in `flow`.

References:
    | Normalizing flows are capable generative models (Zhai et al., 2024) | https://arxiv.org/abs/2412.06329
    | Masked autoregressive flow for density estimation (Papamakarios et al., 2017) | https://arxiv.org/abs/1705.07057
    | Accelerating TarFlow sampling with GS-Jacobi iteration (Liu and Qin, 2025) | https://arxiv.org/abs/2505.12849
"""

import math
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from likely.bijections import ActNorm, Affine, Autoregressive, Bijection, Chain, Flatten, Permute
from likely.bijections.base import no_volume
from likely.bijections.marginal import histograms
from likely.invertible import Invertible
from likely.model import Recipe
from likely.nets.patches import PatchTransformer
from likely.space import Space

__all__ = ["TarFlow"]


class Patches(Bijection):
    """[B, C, H, W] -> [B, dims], patch after patch."""

    def __init__(self, shape: tuple[int, int, int], side: int) -> None:
        super().__init__()
        self.shape, self.side = shape, side

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return F.pixel_unshuffle(x, self.side).flatten(2).transpose(1, 2).flatten(1), no_volume(x)

    def inverse(self, y: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        channels, height, width = self.shape
        grid = y.view(len(y), height // self.side * (width // self.side), -1).transpose(1, 2)
        x = F.pixel_shuffle(grid.unflatten(2, (height // self.side, width // self.side)), self.side)
        return x.reshape(len(y), channels, height, width), no_volume(y)


class TarFlow(Invertible):
    """Blocks of patch-wise autoregressive affine maps.

    Args:
        blocks: maps, each in the other direction than the last.
        patch: side of an image's patches, where it divides height and width; else 1.
        width, depth, heads: of each block's transformer; dropout in it.
        bounds: where numbers of a table end, as of `flow`.
    """

    summary = "autoregressive flow of transformers over patches or columns; a bound on discrete data"
    recipe = Recipe(lr=1e-3, weight_decay=0.01, clip=40.0, ema=0.995, batch=64, bf16=False)
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"blocks": 2, "patch": 1, "width": 16, "depth": 1, "heads": 2, "dropout": 0.0},
        "small": {"blocks": 4, "patch": 2, "width": 64, "depth": 2, "heads": 4, "dropout": 0.1},
        "base": {"blocks": 8, "patch": 2, "width": 256, "depth": 4, "heads": 8, "dropout": 0.1},
    }

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        bounds: str = "",
        blocks: int | None = None,
        patch: int | None = None,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        dropout: float | None = None,
    ) -> None:
        super().__init__(space, given=given, size=size)
        chosen = self.options(size, blocks=blocks, patch=patch, width=width, depth=depth, heads=heads, dropout=dropout)
        shape, side = space.relaxed.shape, max(1, chosen["patch"])
        parts: list[Bijection] = histograms(space, bounds)
        if len(shape) == 3:
            side = side if shape[1] % side == shape[2] % side == 0 else 1
            parts.append(Patches((shape[0], shape[1], shape[2]), side))
        else:
            parts.append(Flatten(shape))
        entries = shape[0] * side * side if len(shape) == 3 else 1
        net = {name: chosen[name] for name in ("width", "depth", "heads", "dropout")}
        for i in range(chosen["blocks"]):
            transformer = PatchTransformer(math.prod(shape) // entries, entries, given=given, out=Affine().size, **net)
            parts += [Permute(math.prod(shape), "reverse")] * (i > 0) + [Autoregressive(Affine(), transformer, "iteration")]
        self.map = Chain([*parts, ActNorm(math.prod(shape))])
