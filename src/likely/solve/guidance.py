r"""Guidance: a denoiser made of a denoiser, which leans to where a condition is likelier.

Classifier-free, from a conditional and an unconditional denoiser:

    m = m_u + scale (m_c - m_u)      score of p(z)^(1 - scale) p(z | c)^scale;  scale 0 is unconditional, 1 conditional

(Elsewhere `scale` may be called w + 1.) Scores and posterior covariances are linear in each other's units, cov = sigma^2/alpha dm/dz,
so the variance is the same combination, though not less than zero. Above 1 this is of no p(e): the product of noisy marginals
is no noisy marginal of a product.

By a classifier of noisy data, log p(c | z, t):

    score = grad log p(z) + scale grad log p(c | z, t),    m = m_u + scale sigma^2/alpha grad log p(c | z, t)

References:
    | Diffusion models beat GANs on image synthesis (Dhariwal and Nichol, 2021) | https://arxiv.org/abs/2105.05233
    | Classifier-free diffusion guidance (Ho and Salimans, 2022) | https://arxiv.org/abs/2207.12598
    | Applying guidance in a limited interval improves sample and distribution quality (Kynkaanniemi et al., 2024) | https://arxiv.org/abs/2404.07724
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from likely.solve.denoise import Denoise
from likely.solve.noise import Schedule
from likely.solve.parametrisation import expand_like

__all__ = ["classifier_free", "classifier_guided"]


def classifier_free(
    conditional: Denoise,
    unconditional: Denoise,
    schedule: Schedule,
    scale: float,
    *,
    interval: tuple[float, float] = (-math.inf, math.inf),
) -> Denoise:
    """The guided denoiser: two calls for one, except where the answer is that of one of the two.

    Args:
        scale: 1 is the conditional denoiser and 0 the unconditional, to the bit.
        interval: log-SNRs between which to guide; elsewhere the denoiser is the conditional.
    """

    def denoise(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        log_snr = schedule.log_snr(t.double())
        weight = torch.where((log_snr >= interval[0]) & (log_snr <= interval[1]), log_snr.new_tensor(scale), 1.0)
        if bool((weight == 1).all()):
            return conditional(z, t)
        if bool((weight == 0).all()):
            return unconditional(z, t)
        weight = expand_like(weight, z)
        mean, var = (torch.lerp(u, c, weight) for u, c in zip(unconditional(z, t), conditional(z, t), strict=True))
        return mean, var.clamp_min(0)

    return denoise


def classifier_guided(
    denoise: Denoise, log_likelihood: Callable[[Tensor, Tensor], Tensor], schedule: Schedule, scale: float = 1.0
) -> Denoise:
    """The guided denoiser, of the variance of the other; `log_likelihood(z, t)` is log p(c | z, t) [B], differentiable in z."""

    def guided(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            there = z.detach().requires_grad_()
            (slope,) = torch.autograd.grad(log_likelihood(there, t).sum(), there)
        alpha, sigma = schedule(t.double())
        mean, var = denoise(z, t)
        return mean + expand_like(scale * sigma.square() / alpha, z) * slope, var

    return guided
