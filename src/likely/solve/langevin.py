r"""Langevin and Hamiltonian dynamics of a tilted standard normal, p(v) proportional to N(v; 0, I) exp(-beta E(v)).

With a momentum p ~ N(0, I) the flow of H(v, p) = |v|^2 / 2 + |p|^2 / 2 + beta E(v) leaves p(v) invariant.
A leap of size h splits it: the normal part is a rotation, solved exactly, and only the tilt is discretised,

    p <- p - h/2 beta grad E(v);   (v, p) <- (v cos h + p sin h, p cos h - v sin h);   p <- p - h/2 beta grad E(v)

and the walker goes there with probability min(1, exp(H before - H after)), which makes p exactly
invariant. At beta = 0 every leap is accepted, in any dimension, and h = pi/2 draws anew. One leap is
a Langevin step (MALA); several carry the momentum on, and cover in n steps the way that a random walk needs n^2 for.

References:
    | Hybrid Monte Carlo on Hilbert spaces (Beskos et al., 2011) | https://doi.org/10.1016/j.spa.2011.06.003
    | MCMC using Hamiltonian dynamics (Neal, 2011) | https://arxiv.org/abs/1206.1901
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Energy", "Walkers", "adapt", "place", "walk"]

Energy = Callable[[Tensor], Tensor]  # v [n, dims] -> E(v) [n]
_ACCEPTANCE = 0.65  # at which Hamiltonian proposals travel fastest in many dimensions


class Walkers(NamedTuple):
    """Chains at `v` [n, dims], with E(v) [n] and its gradient [n, dims]; beta does not enter, so that any may follow."""

    v: Tensor
    energy: Tensor
    slope: Tensor


def place(v: Tensor, energy: Energy) -> Walkers:
    """Walkers at `v`; one evaluation of the energy and its gradient."""
    with torch.enable_grad():
        v = v.detach().requires_grad_()
        e = energy(v)
        (slope,) = torch.autograd.grad(e.sum(), v)
    return Walkers(v.detach(), e.detach(), slope)


def walk(walkers: Walkers, energy: Energy, step: Tensor, beta: float = 1.0, leaps: int = 1) -> tuple[Walkers, Tensor]:
    """One proposal of `leaps` leaps of size `step` (0-dim); returns the walkers and who moved, bool [n]."""
    there, p = walkers, torch.randn_like(walkers.v)
    before = _hamiltonian(walkers, p, beta)
    for _ in range(leaps):
        p = p - step / 2 * beta * there.slope
        v, p = there.v * step.cos() + p * step.sin(), p * step.cos() - there.v * step.sin()
        there = place(v, energy)
        p = p - step / 2 * beta * there.slope
    moved = torch.rand_like(before).log() < before - _hamiltonian(there, p, beta)  # False for NaN: nobody leaves for nowhere
    return Walkers(*(torch.where(moved.view(-1, *[1] * (a.ndim - 1)), b, a) for a, b in zip(walkers, there, strict=True))), moved


def _hamiltonian(at: Walkers, p: Tensor, beta: float) -> Tensor:
    return (at.v.double().square() + p.double().square()).sum(1) / 2 + beta * at.energy.double()


def adapt(step: Tensor, moved: Tensor, rate: float) -> Tensor:
    """A step nudged towards the best acceptance; at most a quarter turn."""
    return (step * torch.exp(rate * (moved.to(step).mean() - _ACCEPTANCE))).clamp(1e-3, math.pi / 2)
