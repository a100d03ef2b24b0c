"""Two states by one number, half as many outputs as free probabilities of each would need."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from likely.heads.base import at_least_float32
from likely.space import Support

__all__ = ["Bernoulli"]


@dataclass(frozen=True)
class Bernoulli:
    """Entries of two states, none of them missing: p(1) = sigmoid(l), log p(x) = log sigmoid(+-l)."""

    supports: tuple[Support, ...]

    @property
    def width(self) -> int:
        return 1

    def log_mass(self, params: Tensor, x: Tensor) -> Tensor:
        logit = at_least_float32(params[..., 0])
        return F.logsigmoid(torch.where(x > 0, logit, -logit))

    def sample(self, params: Tensor) -> Tensor:
        p = at_least_float32(params[..., 0]).sigmoid()
        return (torch.rand_like(p) < p).long()

    def logits(self, params: Tensor) -> Tensor:
        logit = at_least_float32(params[..., 0])
        return F.logsigmoid(torch.stack([-logit, logit], -1))
