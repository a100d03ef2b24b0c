"""Any probabilities over finitely many states."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from likely.heads.base import at_least_float32, categorical_draw, constant, missing
from likely.space import MISSING, Support

__all__ = ["Categorical"]


@dataclass(frozen=True)
class Categorical:
    """Any probabilities over finitely many states; entries with fewer than `width` of them ignore the rest."""

    supports: tuple[Support, ...]

    @cached_property
    def states(self) -> tuple[int, ...]:
        return tuple(s.levels + s.missing for s in self.supports)

    @property
    def width(self) -> int:
        return max(self.states)

    def log_mass(self, params: Tensor, x: Tensor) -> Tensor:
        code = torch.where(missing(x) | (x < 0), self._per_entry(self.states, x) - 1, x).long()
        return -F.cross_entropy(self._logits(params, x).flatten(0, -2), code.flatten(), reduction="none").view(x.shape)

    def sample(self, params: Tensor) -> Tensor:
        code = categorical_draw(self._logits(params, params[..., 0]))
        if not any(s.missing for s in self.supports):
            return code
        last = self._per_entry(tuple(s.levels if s.missing else -2 for s in self.supports), code)
        return torch.where(code == last, MISSING, code)

    def logits(self, params: Tensor) -> Tensor:
        return at_least_float32(params)

    def _logits(self, params: Tensor, like: Tensor) -> Tensor:
        """Logits, minus infinity for states that an entry lacks."""
        if min(self.states) == self.width:
            return at_least_float32(params)
        state = torch.arange(self.width, device=params.device)
        return at_least_float32(params).masked_fill(state >= self._per_entry(self.states, like)[..., None], -math.inf)

    def _per_entry(self, values: tuple[int, ...], like: Tensor) -> Tensor:
        return constant(values, max(0, like.ndim - 2), torch.int64, like.device)
