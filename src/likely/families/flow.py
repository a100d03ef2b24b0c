r"""Normalizing flow: an invertible map f of the data to noise, so that the likelihood is exact.

    log p(u) = log N(f(u); 0, I) + log |det df/du|

Discrete data are lifted to reals first (`Space.relax`), which makes the mass a lower bound; the mean
of p over K draws of the lifting tightens it. The map is a chain of

    Gaussianise   every ordinal entry by its own histogram: the chain starts as good as `histogram`
    ActNorm       the rest, and every scale of an image, to mean 0 and variance 1
    Linear        y = P L U x, over all entries or, on images, over channels
    Coupling      half of the entries choose splines (or affine maps) of the others

Up to 256 entries are treated as one vector. Larger images are squeezed to more channels at less
resolution again and again, and half of the channels leave at each scale.

Training minimises -log p(u) of one draw. Sampling and scoring cost one pass each.

References:
    | Variational inference with normalizing flows (Rezende and Mohamed, 2015) | https://arxiv.org/abs/1505.05770
    | Density estimation using Real NVP (Dinh et al., 2017) | https://arxiv.org/abs/1605.08803
    | Glow: Generative flow with invertible 1x1 convolutions (Kingma and Dhariwal, 2018) | https://arxiv.org/abs/1807.03039
    | Neural spline flows (Durkan et al., 2019) | https://arxiv.org/abs/1906.04032
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from likely.bijections import (
    ActNorm,
    Affine,
    Bijection,
    Chain,
    Coupling,
    Elementwise,
    Flatten,
    Gaussianise,
    Linear,
    Rest,
    Spline,
    Squeeze,
)
from likely.errors import UsageError, nearest
from likely.invertible import Invertible
from likely.model import Recipe
from likely.nets import net
from likely.space import Space

__all__ = ["Flow"]

_VECTOR_UP_TO = 256  # entries; beyond, a dense map and a dense net cost more than they see
_FEW_ENTRIES = 8  # data of so few are seldom short of examples
_LEVELS_UP_TO = 256  # of an ordinal that is Gaussianised by its histogram


class Flow(Invertible):
    """Normalizing flow of coupling layers.

    Args:
        space: grid or columns, discrete, real or mixed.
        given: what it is conditioned on.
        size: "tiny", "small" or "base".
        transform: what a coupling applies: "spline" (rational-quadratic) or "affine".
        layers: couplings (per scale, on large images).
        bins: of a spline.
        width, depth: of the coupling nets; depth in residual blocks.
        dropout: in the coupling nets, while training; none by default on up to 8 entries, where it blurs sharp edges.

    Raises: UsageError for an unknown transform, size or layout.
    """

    summary = "normalizing flow: exact density by an invertible map; a bound on discrete data"
    recipe = Recipe(lr=2e-3, weight_decay=0.01, clip=40.0, ema=0.995, batch=64, bf16=False)
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"layers": 2, "bins": 4, "width": 32, "depth": 1, "dropout": 0.0},
        "small": {"layers": 6, "bins": 8, "width": 128, "depth": 1, "dropout": 0.2},
        "base": {"layers": 12, "bins": 8, "width": 512, "depth": 2, "dropout": 0.2},
    }

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        transform: str = "spline",
        layers: int | None = None,
        bins: int | None = None,
        width: int | None = None,
        depth: int | None = None,
        dropout: float | None = None,
    ) -> None:
        super().__init__(space, given=given, size=size)
        shape = space.relaxed.shape
        if dropout is None and math.prod(shape) <= _FEW_ENTRIES:
            dropout = 0.0
        chosen = self.options(size, layers=layers, bins=bins, width=width, depth=depth, dropout=dropout)
        self._layers, self._transform = chosen.pop("layers"), _transform(transform, chosen.pop("bins"))
        self._net = {"size": size, "given": given, **chosen}
        body = self._vector(shape) if math.prod(shape) <= _VECTOR_UP_TO or len(shape) == 1 else self._image(shape)
        self.map = Chain([*_gaussianise(space), *body])

    def _vector(self, shape: tuple[int, ...]) -> list[Bijection]:
        dims = math.prod(shape)
        parts: list[Bijection] = [Flatten(shape), ActNorm(dims)]
        for i in range(self._layers):
            parts += [Linear(dims), self._coupling(Space.reals(dims), i)]
        return parts

    def _image(self, shape: tuple[int, ...]) -> list[Bijection]:
        channels, height, width = shape
        parts: list[Bijection] = []
        if height % 2 == width % 2 == 0:
            channels, height, width = 4 * channels, height // 2, width // 2
            parts.append(Squeeze())
        for i in range(self._layers):
            parts += [ActNorm(channels), Linear(channels), self._coupling(Space.grid(channels, height, width), i)]
        if height % 2 == width % 2 == 0 and min(height, width) > 4:
            rest = (channels - channels // 2, height, width)
            return [*parts, Rest((channels, height, width), Chain(self._image(rest)))]
        return [*parts, Flatten((channels, height, width))]

    def _coupling(self, space: Space, turn: int) -> Coupling:
        moves = _alternate(space.shape, turn)
        return Coupling(moves, self._transform, net(space, "coupling", out=self._transform.size, moves=moves, **self._net))


def _transform(name: str, bins: int) -> Elementwise:
    known: dict[str, Elementwise] = {"spline": Spline(bins), "affine": Affine()}
    if name not in known:
        raise UsageError(f"Unknown transform '{name}'.", nearest(name, known))
    return known[name]


def _alternate(shape: tuple[int, ...], turn: int) -> Tensor:
    """Which entries move: every other channel, or a checkerboard of a single one; the others at the next turn."""
    if math.prod(shape) == 1:
        return torch.ones(shape, dtype=torch.bool)
    places = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij"))
    parity = places[0] if shape[0] > 1 else places.sum(0)
    return parity % 2 != turn % 2


def _gaussianise(space: Space) -> list[Bijection]:
    """A layer for each kind of complete ordinal: those on the same grid go together."""
    alike: dict[tuple[int, float, float], list[int]] = {}
    for place, i in enumerate(space.numbers):
        s = space.supports[i]
        if s.kind == "ordinal" and not s.missing and s.levels <= _LEVELS_UP_TO:
            ends = (-s.center / s.scale, (s.levels - s.center) / s.scale)
            alike.setdefault((s.levels, *ends), []).append(place)
    return [Gaussianise(space.relaxed.shape, channels, *grid) for grid, channels in alike.items()]
