r"""What a net may predict, and how each says the other; and EDM's preconditioning.

Given z = alpha e + sigma eps, all predictions are linear in the pair (e, eps), as z is:

    x0          e
    eps         eps
    v           (alpha eps - sigma e) / n,   n^2 = alpha^2 + sigma^2     (z/n, v) is (e, eps) turned by an angle
    score       -eps / sigma                 grad log p(z), in expectation
    velocity    alpha' e + sigma' eps        dz/dt along the path of flow matching and of the probability flow

So with p = a e + b eps known beside z, any q = a' e + b' eps is a combination of the two, by Cramer's rule

    q = [(a' b - b' a) z + (alpha b' - sigma a') p] / (alpha b - sigma a)

which is one formula for all twenty conversions. No intermediate is divided by what is small unless the answer itself is: eps, score
and v pass into one another at both ends of a schedule, where e and eps say nothing of each other in turn.

EDM's net F sees inputs and predicts targets of variance one, for data of variance one:

    m(z) = c_skip z + c_out F(c_in z, c_noise),   c_skip = alpha/n^2,  c_out = sigma/n,  c_in = 1/n,  c_noise = -lambda/8

which makes F = -v; in EDM's own scaling, alpha = 1, c_noise is log(sigma) / 4.

References:
    | Progressive distillation for fast sampling of diffusion models (Salimans and Ho, 2022) | https://arxiv.org/abs/2202.00512
    | Elucidating the design space of diffusion-based generative models (Karras et al., 2022) | https://arxiv.org/abs/2206.00364
    | Flow matching for generative modeling (Lipman et al., 2023) | https://arxiv.org/abs/2210.02747
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from likely.errors import UsageError, nearest
from likely.solve.denoise import Denoise
from likely.solve.noise import Schedule

__all__ = ["PARAMETRISATIONS", "Preconditioning", "convert", "denoiser", "expand_like", "preconditioning"]

PARAMETRISATIONS = ("x0", "eps", "v", "score", "velocity")


def convert(value: Tensor, source: str, target: str, z: Tensor, schedule: Schedule, t: Tensor) -> Tensor:
    """`value` [B, ...], the `source` parametrisation at z [B, ...] and t [B], said as `target`.

    Raises: UsageError for an unknown parametrisation.
    """
    if source == target and source in PARAMETRISATIONS:
        return value
    t = t.double()
    (alpha, sigma), (a, b), (c, d) = schedule(t), _weights(source, schedule, t), _weights(target, schedule, t)
    scale = alpha * b - sigma * a
    of_z, of_value = (expand_like(w / scale, z) for w in (c * b - d * a, alpha * d - sigma * c))
    return of_z * z + of_value * value


def _weights(name: str, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """(a, b) of the parametrisation a e + b eps, [B] each."""
    alpha, sigma = schedule(t)
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    if name == "x0":
        return one, zero
    if name == "eps":
        return zero, one
    if name == "v":
        scale = torch.hypot(alpha, sigma)
        return -sigma / scale, alpha / scale
    if name == "score":
        return zero, -1 / sigma
    if name == "velocity":
        return schedule.rates(t)
    raise UsageError(f"Unknown parametrisation '{name}'.", nearest(name, PARAMETRISATIONS))


def expand_like(v: Tensor, z: Tensor) -> Tensor:
    """[B] -> [B, 1, ...], to broadcast over z, in its precision."""
    return v.to(z).view(-1, *[1] * (z.ndim - 1))


def denoiser(predict: Callable[[Tensor, Tensor], Tensor], source: str, schedule: Schedule) -> Denoise:
    """The denoiser of a net (z, t) -> prediction in the `source` parametrisation; its variance is zero."""

    def denoise(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        mean = convert(predict(z, t), source, "x0", z, schedule, t)
        return mean, torch.zeros_like(mean)

    return denoise


class Preconditioning(NamedTuple):
    """Coefficients at t [B] of m(z) = skip z + out F(into z, noise)."""

    skip: Tensor
    out: Tensor
    into: Tensor
    noise: Tensor


def preconditioning(schedule: Schedule, t: Tensor) -> Preconditioning:
    """EDM's coefficients for data of variance one under any schedule; [B] each, of the precision of t."""
    alpha, sigma = schedule(t)
    scale = torch.hypot(alpha, sigma)
    return Preconditioning(alpha / scale.square(), sigma / scale, 1 / scale, -schedule.log_snr(t) / 8)
