r"""Annealed importance sampling of log Z = log E_{v ~ N(0, I)} exp(-E(v)).

Chains walk from the normal, beta = 0, to the model, beta = 1. Each collects the log weight

    log w = - sum_t (beta_t - beta_{t-1}) E(v_{t-1}),      E[w] = Z exactly, for any number of temperatures,

so log mean w tends to log Z from BELOW as chains and temperatures grow: a likelihood that rests on
it is optimistic, and the standard error does not show modes that no chain has found.

References:
    | Annealed importance sampling (Neal, 2001) | https://arxiv.org/abs/physics/9803008
    | On the quantitative analysis of deep belief networks (Salakhutdinov and Murray, 2008) | https://doi.org/10.1145/1390156.1390266
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from likely.solve.langevin import Energy, Walkers, adapt, place, walk

__all__ = ["Annealed", "anneal", "temper"]


class Annealed(NamedTuple):
    """Chains at beta = 1 and their log weights, [..., chains] float64; what follows is over the last axis."""

    walkers: Walkers
    log_weight: Tensor

    @property
    def log_z(self) -> Tensor:
        return self.log_weight.logsumexp(-1) - math.log(self.log_weight.shape[-1])

    @property
    def stderr(self) -> Tensor:
        """Standard error of log Z by the delta method: that of the mean weight, relative to it."""
        w = (self.log_weight - self.log_weight.amax(-1, keepdim=True)).exp()
        return w.std(-1) / w.mean(-1) / math.sqrt(w.shape[-1])

    @property
    def effective(self) -> Tensor:
        """Effective number of chains, (sum w)^2 / sum w^2."""
        return (2 * self.log_weight.logsumexp(-1) - (2 * self.log_weight).logsumexp(-1)).exp()


def temper(v: Tensor, energy: Energy, temperatures: int, leaps: int = 1) -> list[Tensor]:
    """Step size of each temperature, adapted on pilot chains from `v`: the chains that count then use fixed ones."""
    walkers, step, steps = place(v, energy), v.new_tensor(1.0), []
    for t in range(1, temperatures + 1):
        walkers, moved = walk(walkers, energy, step, t / temperatures, leaps)
        step = adapt(step, moved, rate=0.3)
        steps.append(step)
    return steps


def anneal(v: Tensor, energy: Energy, steps: list[Tensor], leaps: int = 1) -> Annealed:
    """Carry v ~ N(0, I) [chains, dims] to beta = 1 in equal stages, one for each of `steps`."""
    walkers, log_weight = place(v, energy), torch.zeros(len(v), dtype=torch.float64, device=v.device)
    for t, step in enumerate(steps, 1):
        log_weight -= walkers.energy.double() / len(steps)
        walkers, _ = walk(walkers, energy, step, t / len(steps), leaps)
    return Annealed(walkers, log_weight)
