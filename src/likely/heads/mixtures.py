"""Mixtures for numbers: logistics integrated over cells, which have mass, and normals, which have density."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from likely.errors import UsageError
from likely.heads.base import at_least_float32, categorical_draw, constant, missing
from likely.solve.intervals import log1mexp
from likely.space import MISSING, Support, from_grid, to_grid

__all__ = ["LogisticMixture", "NormalMixture"]

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_REAL_FLOOR = 1e-3  # smallest standard deviation of a real's component, in the data's own
_CELL_FLOOR = 1 / 32  # smallest logistic scale, in cells: narrower ones are a point mass already
_CEILING = 1e3  # largest scale of a component, in the data's standard deviation
_FINE = 1e-3  # cells narrower than this on the standardised scale need float64


@dataclass(frozen=True)
class _Mixture(ABC):
    """What the mixtures of numbers share: parameters, missing cells, standardisation."""

    supports: tuple[Support, ...]
    components: int = 5

    @cached_property
    def missing(self) -> bool:
        return any(s.missing for s in self.supports)

    @property
    def width(self) -> int:
        return 3 * self.components + self.missing

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of positions: float64 where a cell is so narrow that float32 could not tell it from its neighbour."""
        fine = any(s.kind != "real" and s.scale * _FINE > 1 for s in self.supports)
        return torch.float64 if fine else torch.float32

    def logits(self, params: Tensor) -> Tensor:
        s = self.supports[0]
        if s.states is None:
            raise UsageError(f"The values of a {s.kind} entry cannot be listed, as filters and beam search want.", "Sample without them.")
        states = torch.tensor([*range(s.levels), *[MISSING] * s.missing], device=params.device)
        each = params[..., None, :].expand(*params.shape[:-1], len(states), -1)
        return self.log_mass(each, states.expand(each.shape[:-1]))

    @abstractmethod
    def log_mass(self, params: Tensor, x: Tensor) -> Tensor: ...

    def _affine(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Center and scale per entry, float64."""
        return self._per_entry([s.center for s in self.supports], like), self._per_entry([s.scale for s in self.supports], like)

    def _per_entry(self, values: Sequence[float | int], like: Tensor) -> Tensor:
        return constant(tuple(map(float, values)), max(0, like.ndim - 2), torch.float64, like.device)

    def _mixture(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weight logits, means and log-scales [..., components]; zero parameters spread the components over [-1.5, 1.5]."""
        logits, mean, log_s = at_least_float32(params[..., : 3 * self.components]).unflatten(-1, (3, self.components)).unbind(-2)
        spread = torch.linspace(-1.5, 1.5, self.components, device=params.device) if self.components > 1 else mean.new_zeros(1)
        floor = self._floor(params[..., 0])[..., None].to(mean.dtype)
        log_s = torch.minimum(torch.maximum(log_s - math.log(self.components), floor), mean.new_tensor(math.log(_CEILING)))
        return logits, mean + spread, log_s

    def _floor(self, like: Tensor) -> Tensor:
        """Smallest log-scale per entry."""
        return self._per_entry([math.log(_REAL_FLOOR if s.kind == "real" else _CELL_FLOOR / s.scale) for s in self.supports], like)

    def _component(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale of one component of each entry, drawn by its weight; in data units, float64."""
        logits, mean, log_s = self._mixture(params)
        k = categorical_draw(logits)[..., None]
        center, scale = self._affine(params[..., 0])
        pick = [v.gather(-1, k)[..., 0].double() for v in (mean, log_s)]
        return center + scale * pick[0], scale * pick[1].exp()

    def _with_missing(self, nats: Tensor, params: Tensor, lost: Tensor) -> Tensor:
        if not self.missing:
            return nats
        logit = at_least_float32(params[..., -1])
        can = self._per_entry([s.missing for s in self.supports], lost).bool()
        return torch.where(lost & can, F.logsigmoid(logit), nats + torch.where(can, F.logsigmoid(-logit), 0.0))

    def _lose(self, x: Tensor, params: Tensor, empty: float | int) -> Tensor:
        """Put `empty` where the missing state is drawn."""
        if not self.missing:
            return x
        can = self._per_entry([s.missing for s in self.supports], x).bool()
        return torch.where(can & (torch.rand(x.shape, device=x.device) < params[..., -1].float().sigmoid()), empty, x)


@dataclass(frozen=True)
class LogisticMixture(_Mixture):
    """A mixture of logistics integrated over the cells of an ordinal (open at both ends) or a decimal (unbounded)."""

    def log_mass(self, params: Tensor, x: Tensor) -> Tensor:
        return self._with_missing(self._log_present(params, x), params, missing(x))

    def _log_present(self, params: Tensor, x: Tensor) -> Tensor:
        """log p of x, given that it is not missing."""
        weights = self._mixture(params)[0].log_softmax(-1)
        return (weights + self.log_components(params, x)).logsumexp(-1)

    def log_components(self, params: Tensor, x: Tensor) -> Tensor:
        """The log-mass of x under each component, [..., components]."""
        index = self._index(x)
        center, scale = self._affine(x)
        _, mean, log_s = self._mixture(params)
        lower = ((index - center) / scale).to(self.dtype)[..., None]
        z = ((lower - mean) / log_s.exp()).to(mean.dtype)
        w = (1 / scale).to(mean.dtype)[..., None] / log_s.exp()
        levels = self._levels(x)
        first, last = ((index <= 0) & levels.isfinite())[..., None], (index >= levels - 1)[..., None]
        return _log_cell(z, w, first, last)

    def sample(self, params: Tensor) -> Tensor:
        return self._lose(self._drawn(params), params, MISSING)

    def _drawn(self, params: Tensor) -> Tensor:
        """Draws, none of them missing."""
        mean, s = self._component(params)
        index = (mean + s * torch.logit(torch.rand_like(mean).clamp_min(2.0**-54))).floor()
        levels = self._levels(mean)
        finite = levels.isfinite()
        index = torch.where(finite, index.clamp_min(0.0), index).clamp(-(2.0**52), 2.0**52).minimum(levels - 1).long()
        return torch.where(finite, index, from_grid(index))

    def _index(self, x: Tensor) -> Tensor:
        """Position on the grid of each cell, float64; 0 where missing, whose mass is not asked."""
        x = torch.where(missing(x), 0, x)
        return torch.where(self._levels(x).isfinite(), x, to_grid(x)).double()

    def _levels(self, like: Tensor) -> Tensor:
        return self._per_entry([s.levels if s.kind == "ordinal" else math.inf for s in self.supports], like)


@dataclass(frozen=True)
class NormalMixture(_Mixture):
    """The density of reals as a mixture of normals."""

    def log_mass(self, params: Tensor, x: Tensor) -> Tensor:
        lost = torch.isnan(x)
        center, scale = self._affine(x)
        logits, mean, log_s = self._mixture(params)
        u = ((torch.where(lost, 0.0, x).double() - center) / scale).to(mean.dtype)[..., None]
        component = -0.5 * ((u - mean) / log_s.exp()).square() - log_s - _LOG_SQRT_2PI
        nats = (logits.log_softmax(-1) + component).logsumexp(-1) - scale.log().to(mean.dtype)
        return self._with_missing(nats, params, lost)

    def sample(self, params: Tensor) -> Tensor:
        mean, s = self._component(params)
        return self._lose((mean + s * torch.randn_like(mean)).float(), params, math.nan)


def _log_cell(z: Tensor, w: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """log [F(z + w) - F(z)] of the logistic CDF F; `first` cells reach to -infinity, `last` ones to infinity."""
    below, above = F.logsigmoid(z + w), F.logsigmoid(-z)
    inside = torch.where(first | last, 0.0, log1mexp(w))
    return torch.where(last, 0.0, below) + torch.where(first, 0.0, above) + inside
