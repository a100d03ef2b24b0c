r"""Normalizing flow: an invertible map f of the data to noise, so that the likelihood is exact.

    log p(u) = log N(f(u); 0, I) + log |det df/du|

Discrete data are lifted to reals first (`Space.relax`), which makes the mass a lower bound; the mean
of p over K draws of the lifting tightens it, and so may learning where in its cell a number is lifted to
(`dequantization`). The map is a chain of

    bounds        numbers that end somewhere by a logit or the inverse of a softplus, where bounds are told
    marginals     every ordinal entry by its own histogram (the chain starts as good as `histogram`), or by a logit
    ActNorm       entries or channels to mean 0 and variance 1
    mixing        y = P L U x, a rotation or a permutation, over all entries or, on images, over channels
    structure     coupling          half of the entries choose maps of the others: one pass there, one back
                  autoregressive    each entry's map is chosen by all before it: one pass there, entry by entry back
                  inverse           that the other way round: draws in one pass, scores entry by entry

Up to 256 entries are treated as one vector. Larger images are squeezed to more channels at less
resolution again and again, and half of the channels leave at each scale. Autoregressive maps are of vectors.

The classical flows are choices of these options, registered under their names (see `families`). Training minimises
-log p(u) of one draw.

References:
    | Variational inference with normalizing flows (Rezende and Mohamed, 2015) | https://arxiv.org/abs/1505.05770
    | NICE: Non-linear independent components estimation (Dinh et al., 2014) | https://arxiv.org/abs/1410.8516
    | Density estimation using Real NVP (Dinh et al., 2017) | https://arxiv.org/abs/1605.08803
    | Glow: Generative flow with invertible 1x1 convolutions (Kingma and Dhariwal, 2018) | https://arxiv.org/abs/1807.03039
    | Improving variational inference with inverse autoregressive flow (Kingma et al., 2016) | https://arxiv.org/abs/1606.04934
    | Masked autoregressive flow for density estimation (Papamakarios et al., 2017) | https://arxiv.org/abs/1705.07057
    | Neural spline flows (Durkan et al., 2019) | https://arxiv.org/abs/1906.04032
    | Flow++ (variational dequantization; Ho et al., 2019) | https://arxiv.org/abs/1902.00275
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

from likely.bijections import (
    MASKS,
    ActNorm,
    Additive,
    Affine,
    Autoregressive,
    Bijection,
    Chain,
    Coupling,
    Elementwise,
    Flatten,
    Inverse,
    Linear,
    Logit,
    MixtureCDF,
    Orthogonal,
    Permute,
    Rest,
    Spline,
    Squeeze,
    domains,
    mask,
)
from likely.bijections.marginal import histograms, places_by_grid
from likely.dequantization import Dequantizer
from likely.errors import UsageError, nearest
from likely.invertible import Invertible
from likely.model import Recipe
from likely.nets import net
from likely.space import Space

__all__ = ["Flow"]

_VECTOR_UP_TO = 256  # entries; beyond, a dense map and a dense net cost more than they see
_FEW_ENTRIES = 8  # data of so few are seldom short of examples

_TRANSFORMS: dict[str, Callable[[int], Elementwise]] = {
    "spline": Spline,
    "affine": lambda bins: Affine(),
    "mixture": MixtureCDF,
    "additive": lambda bins: Additive(),
}
_MIXINGS: dict[str, Callable[[int], list[Bijection]]] = {
    "lu": lambda channels: [Linear(channels)],
    "orthogonal": lambda channels: [Orthogonal(channels)],
    "random": lambda channels: [Permute(channels, "random")],
    "reverse": lambda channels: [Permute(channels, "reverse")],
    "none": lambda channels: [],
}


class Flow(Invertible):
    """Normalizing flow, by layers of couplings or of autoregressive maps.

    Args:
        space: grid or columns, discrete, real or mixed.
        given: what it is conditioned on.
        size: "tiny", "small" or "base".
        structure: "coupling", "autoregressive" or "inverse" (autoregressive the other way round).
        transform: what a layer applies to single numbers: "spline" (rational-quadratic), "affine", "mixture"
            (distribution functions of mixtures of logistics) or "additive".
        mixing: what joins the layers: "lu" (P L U x), "orthogonal", "random" or "reverse" (permutations), or "none".
        masks: which half a coupling moves: "alternate", "halves" or "checkerboard" (images: then channels after each squeeze).
        marginals: of ordinal entries at first: "histogram", "logit" or "none"; with "histogram", heavy tails of others are drawn in.
        bounds: where numbers of a table end, as "0..1" for all, or "age=0..120,income=0.." for some; they are mapped to the whole
            line by a logit or the inverse of a softplus, and beyond them the density is 0.
        normalise: where ActNorm stands: "each" layer, "first" (images: each), or "none".
        dequantization: of numbers on a grid: "uniform", or "variational" (learnt; it starts as uniform).
        multiscale: images by scales, squeezed; by default those of more than 256 entries.
        layers: couplings or autoregressive maps (per scale, on large images).
        bins: of a spline, or components of a mixture.
        width, depth: of the nets; depth in residual blocks. Those of large images are convolutional: 32 channels wide if small.
        residual: else a block of a net is one matrix and a ReLU, and on a CPU a layer is compiled as a whole: several times
            as fast with affine maps. Vectors only.
        dropout: in the nets, while training; none by default on up to 8 entries, where it blurs sharp edges, and of an inverse.

    Raises: UsageError for an unknown word or size, or a layout that it does not model.
    """

    summary = "normalizing flow: exact density by an invertible map; a bound on discrete data"
    recipe = Recipe(lr=2e-3, weight_decay=0.01, clip=40.0, ema=0.995, batch=64, bf16=False)
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"layers": 2, "bins": 4, "width": 32, "depth": 1, "dropout": 0.0},
        "small": {"layers": 6, "bins": 8, "width": 128, "depth": 1, "dropout": 0.2},
        "base": {"layers": 12, "bins": 8, "width": 512, "depth": 2, "dropout": 0.2},
    }
    words: ClassVar[dict[str, tuple[str, ...]]] = {
        "structure": ("coupling", "autoregressive", "inverse"),
        "transform": tuple(_TRANSFORMS),
        "mixing": tuple(_MIXINGS),
        "masks": MASKS,
        "marginals": ("histogram", "logit", "none"),
        "normalise": ("each", "first", "none"),
        "dequantization": ("uniform", "variational"),
    }

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        structure: str = "coupling",
        transform: str = "spline",
        mixing: str = "lu",
        masks: str = "alternate",
        marginals: str = "histogram",
        bounds: str = "",
        normalise: str = "first",
        dequantization: str = "uniform",
        multiscale: bool | None = None,
        layers: int | None = None,
        bins: int | None = None,
        width: int | None = None,
        depth: int | None = None,
        dropout: float | None = None,
        residual: bool = True,
    ) -> None:
        super().__init__(space, given=given, size=size)
        self._check_words(
            structure=structure,
            transform=transform,
            mixing=mixing,
            masks=masks,
            marginals=marginals,
            normalise=normalise,
            dequantization=dequantization,
        )
        shape = space.relaxed.shape
        if dropout is None and (math.prod(shape) <= _FEW_ENTRIES or structure == "inverse"):
            dropout = 0.0
        sized = self.options(size, layers=layers, bins=bins, width=width, depth=depth, dropout=dropout)
        self._layers, self._bins = sized.pop("layers"), sized.pop("bins")
        self._transform = _TRANSFORMS[transform](self._bins)
        scales = structure == "coupling" and (math.prod(shape) > _VECTOR_UP_TO if multiscale is None else multiscale) and len(shape) == 3
        if scales:  # convolutional nets, whose sizes are their own
            sized = {name: v for name, v in (("width", width), ("depth", depth), ("dropout", dropout)) if v is not None}
        self._net = {"size": size, "given": given, **sized}
        self._residual = residual
        self._structure, self._mixing, self._masks, self._normalise = structure, _MIXINGS[mixing], masks, normalise
        if scales:
            body = self._image(shape)
        elif multiscale and structure != "coupling":
            raise UsageError(f"A flow of the structure '{structure}' has no scales.", "Those of couplings have: --structure coupling.")
        else:
            body = self._vector(shape)
        if transform == "additive":  # the layers keep volume
            body.append(ActNorm(math.prod(shape)))
        self.map = Chain([*domains(space, bounds), *_MARGINALS[marginals](space), *body])
        if dequantization == "variational":
            self.dequantizer = Dequantizer(space, Spline(self._bins), **self._net)

    def _check_words(self, **chosen: str) -> None:
        for option, word in chosen.items():
            if word not in self.words[option]:
                raise UsageError(f"Unknown {option} '{word}'.", nearest(word, self.words[option]))

    def _vector(self, shape: tuple[int, ...]) -> list[Bijection]:
        dims = math.prod(shape)
        first: list[Bijection] = [ActNorm(dims)] if self._normalise == "first" else []
        return [Flatten(shape), *first, *self._steps(Space.reals(dims), self._masks, self._layers, self._normalise == "each")]

    def _image(self, shape: tuple[int, ...]) -> list[Bijection]:
        """A scale: on a checkerboard first where masks say so, then squeezed, over channels; then half of them go on, if there is room."""
        if not self._residual:
            raise UsageError(
                "Convolutional nets are residual.", "Plain ones are of vectors: leave out residual, or set --multiscale false."
            )
        channels, height, width = shape
        parts: list[Bijection] = []
        masks, layers, normalised = self._masks, self._layers, self._normalise != "none"
        even = height % 2 == width % 2 == 0
        if masks == "checkerboard":
            first = -(-layers // 2) if even else layers
            parts += self._steps(Space.grid(*shape), masks, first, normalised)
            masks, layers = "alternate", layers - first
        if even:
            channels, height, width = 4 * channels, height // 2, width // 2
            parts.append(Squeeze())
        parts += self._steps(Space.grid(channels, height, width), masks, layers, normalised)
        if height % 2 == width % 2 == 0 and min(height, width) > 4:
            rest = (channels - channels // 2, height, width)
            return [*parts, Rest((channels, height, width), Chain(self._image(rest)))]
        return [*parts, Flatten((channels, height, width))]

    def _steps(self, space: Space, masks: str, layers: int, normalised: bool) -> list[Bijection]:
        """Layers, each with what stands before it."""
        parts: list[Bijection] = []
        for i in range(layers):
            parts += [ActNorm(space.shape[0])] if normalised else []
            parts += [*self._mixing(space.shape[0]), self._layer(space, masks, i)]
        return parts

    def _layer(self, space: Space, masks: str, turn: int) -> Bijection:
        how = self._net if self._residual else {**self._net, "residual": False}
        if self._structure == "coupling":
            moves = mask(masks, space.shape, turn)
            return Coupling(moves, self._transform, net(space, "coupling", out=self._transform.size, moves=moves, **how))
        layer = Autoregressive(self._transform, net(space, "ordered", out=self._transform.size, **how))
        return Inverse(layer) if self._structure == "inverse" else layer


_MARGINALS: dict[str, Callable[[Space], list[Bijection]]] = {
    "histogram": histograms,
    "logit": lambda space: [Logit(low, high, places) for (_, low, high), places in places_by_grid(space).items()],
    "none": lambda space: [],
}
