r"""Particles that are carried from a standard normal to p(v) proportional to N(v; 0, I) exp(-E(v)) by tempering, many populations at once.

At the inverse temperature beta the particles are of N(v; 0, I) exp(-beta E(v)). From one stage to the next they are reweighed by
exp(-(beta' - beta) E), drawn anew where their effective number falls below half, and moved by Hamiltonian proposals, which leave
p_beta invariant. The step in beta is the largest that keeps 80 % of the particles effective in the middle population.

What a population rests on are its families: particles that descend from different draws of the normal. Their effective number,
(sum_f W_f)^2 / sum_f W_f^2, counts no copy twice, and is therefore low rather than high.

References:
    | Sequential Monte Carlo samplers (Del Moral et al., 2006) | https://doi.org/10.1111/j.1467-9868.2006.00553.x
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from likely.solve.langevin import Energy, Walkers, adapt, place, walk

__all__ = ["Tempered", "temper_particles"]

_KEPT = 0.8  # share of particles that a step in beta leaves effective
_STAGES = 64  # at most; the last goes the rest of the way
_LEAPS = 4
_SETTLING = 8  # proposals at beta = 1


class Tempered(NamedTuple):
    """Particles v [populations, particles, dims], their normalised log weights and effective families [populations], and the acceptance."""

    v: Tensor
    log_weight: Tensor
    effective: Tensor
    acceptance: float
    stages: int


def temper_particles(energy: Energy, populations: int, particles: int, dims: int, like: Tensor) -> Tempered:
    """`energy` takes v [populations * particles, dims], population-major; `like` says on which device."""
    walkers = place(torch.randn(populations * particles, dims, dtype=torch.float64, device=like.device), energy)
    log_weight = torch.zeros(populations, particles, dtype=torch.float64, device=like.device)
    family = torch.arange(particles, device=like.device).expand(populations, -1)
    beta, step, moved, stages = 0.0, walkers.v.new_tensor(0.5), [], 0
    while beta < 1:
        stages += 1
        each = walkers.energy.double().view(populations, particles).nan_to_num(math.inf)
        rise = 1 - beta if stages == _STAGES else _rise(each, 1 - beta)
        log_weight, beta = (log_weight - rise * each).log_softmax(1), beta + rise
        walkers, log_weight, family = _resampled(walkers, log_weight, family)
        walkers, went = walk(walkers, energy, step, beta, _LEAPS)
        step = adapt(step, went, rate=0.5)
    for _ in range(_SETTLING):
        walkers, went = walk(walkers, energy, step, 1.0, _LEAPS)
        moved.append(went.double().mean().item())
        step = adapt(step, went, rate=0.2)
    shares = torch.zeros_like(log_weight).scatter_add(1, family, log_weight.exp())
    v = walkers.v.view(populations, particles, dims)
    return Tempered(v, log_weight, 1 / shares.square().sum(1), sum(moved) / len(moved), stages)


def _effective(log_weight: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 over the last axis."""
    return (2 * log_weight.logsumexp(-1) - (2 * log_weight).logsumexp(-1)).exp()


def _rise(energy: Tensor, most: float) -> float:
    """The largest step in beta after which the middle population keeps its share, by bisection."""

    def keeps(rise: float) -> bool:
        return _effective(-rise * energy).median().item() >= _KEPT * energy.shape[1]

    if keeps(most):
        return most
    low, high = 0.0, most
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return max(low, 1e-6)


def _resampled(walkers: Walkers, log_weight: Tensor, family: Tensor) -> tuple[Walkers, Tensor, Tensor]:
    """Populations with few effective particles drawn anew, systematically: as many copies of each as its weight says, but for rounding."""
    populations, particles = log_weight.shape
    poor = _effective(log_weight) < particles / 2
    if not bool(poor.any()):
        return walkers, log_weight, family
    places = (torch.arange(particles, device=log_weight.device) + torch.rand(populations, 1, device=log_weight.device)) / particles
    parent = torch.searchsorted(log_weight.exp().cumsum(1), places.double()).clamp_max(particles - 1)
    parent = torch.where(poor[:, None], parent, torch.arange(particles, device=parent.device))
    flat = (parent + particles * torch.arange(populations, device=parent.device)[:, None]).flatten()
    even = torch.full_like(log_weight, -math.log(particles))
    return Walkers(*(part[flat] for part in walkers)), torch.where(poor[:, None], even, log_weight), family.gather(1, parent)
