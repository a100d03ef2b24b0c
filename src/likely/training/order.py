"""Which examples a step sees: a pure function of (seed, step), whatever the number of ranks or restarts."""

from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["batch_rows", "step_seed"]


@lru_cache(maxsize=2)
def _permutation(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(step_seed(seed, epoch, 0)))


def batch_rows(n: int, batch: int, seed: int, step: int, rank: int = 0, world: int = 1) -> Tensor:
    """Row numbers of this rank's share of global batch `step`: consecutive slices of per-epoch permutations."""
    first, last = step * batch, (step + 1) * batch
    parts = []
    for epoch in range(first // n, (last - 1) // n + 1):
        parts.append(_permutation(n, seed, epoch)[max(0, first - epoch * n) : last - epoch * n])
    return torch.cat(parts)[rank::world]


def step_seed(seed: int, step: int, rank: int) -> int:
    """A seed for the noise of one step on one rank (multiplicative mixing keeps neighbours apart)."""
    return ((seed * 1_000_003 + step) * 1_000_033 + rank) % (2**63)
