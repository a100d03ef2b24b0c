r"""Numerics of Gaussian diffusion that know no parameters: the bridge between two times, its divergence, and samplers.

For s < t, with the posterior mean m and variance V of x given z_t, and r = SNR_s - SNR_t, rho = 1 - SNR_t / SNR_s:

    q(z_s | z_t, x) = N(a z_t + b x, v),   a = (1 - rho) alpha_s / alpha_t,  b = rho alpha_s,  v = rho sigma_s^2
    p(z_s | z_t)    = N(a z_t + b m, v + b^2 V)       the Gaussian of the same mean and variance as E_p(x|z_t) q
    KL(q || p)      = 1/2 [ r ((x - m)^2 - V) / (1 + r V) + log(1 + r V) ]      since b^2 / v = r

V is what makes few steps count: with the bridge's own variance (V = 0) the gap between bound and truth stays
large even for hundreds of steps. As s -> t the divergence becomes r (x - m)^2 / 2, the variational diffusion loss.

A sampler takes `denoise(z, t [B]) -> (m, V)` and walks `times` from noise to data; each step calls it once.

References:
    | Variational diffusion models (Kingma et al., 2021) | https://arxiv.org/abs/2107.00630
    | Analytic-DPM: an analytic estimate of the optimal reverse variance (Bao et al., 2022) | https://arxiv.org/abs/2201.06503
    | Denoising diffusion implicit models (Song et al., 2021) | https://arxiv.org/abs/2010.02502
    | DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models (Lu et al., 2022) | https://arxiv.org/abs/2211.01095
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from likely.solve.schedule import Schedule

__all__ = ["SAMPLERS", "Denoise", "ancestral", "bridge_kl", "ddim", "dpm_solver", "prior_kl"]

Denoise = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def bridge_kl(x: Tensor, mean: Tensor, var: Tensor, gain: Tensor) -> Tensor:
    """KL(q(z_s | z_t, x) || p(z_s | z_t)) of each entry, nats; `gain` is SNR_s - SNR_t, broadcast over x."""
    return 0.5 * (gain * ((x - mean).square() - var) / (1 + gain * var) + torch.log1p(gain * var))


def prior_kl(x: Tensor, log_snr: float) -> Tensor:
    """KL(q(z_1 | x) || N(0, 1)) of each entry, nats: (alpha^2 x^2 + sigma^2 - 1 - log sigma^2) / 2."""
    alpha2, sigma2 = torch.tensor([log_snr, -log_snr], dtype=torch.float64, device=x.device).sigmoid()
    return 0.5 * (alpha2 * (x.double().square() - 1) - sigma2.log())


def ancestral(denoise: Denoise, schedule: Schedule, z: Tensor, times: Tensor) -> Tensor:
    """z_s ~ N(a z_t + b m, v + b^2 V): the sampler that the bound belongs to, when `times` are the bound's."""
    for t, s in pairwise(times):
        (alpha_t, _), (alpha_s, sigma_s) = schedule(t), schedule(s)
        mean, var = denoise(z, t.expand(len(z)).to(z))
        rho = -torch.expm1(schedule.log_snr(t) - schedule.log_snr(s))
        a, b, v = (c.to(z) for c in ((1 - rho) * alpha_s / alpha_t, rho * alpha_s, rho * sigma_s.square()))
        z = a * z + b * mean + (v + b.square() * var).sqrt() * torch.randn_like(z)
    return z


def ddim(denoise: Denoise, schedule: Schedule, z: Tensor, times: Tensor) -> Tensor:
    """z_s = alpha_s m + sigma_s eps with the eps that z_t and m imply: order 1, deterministic."""
    for t, s in pairwise(times):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (tuple(c.to(z) for c in schedule(time)) for time in (t, s))
        mean, _ = denoise(z, t.expand(len(z)).to(z))
        z = alpha_s * mean + sigma_s / sigma_t * (z - alpha_t * mean)
    return z


def dpm_solver(denoise: Denoise, schedule: Schedule, z: Tensor, times: Tensor) -> Tensor:
    """DPM-Solver++(2M): DDIM with m extrapolated linearly in half the log-SNR; order 2, one call a step."""
    last = None
    for t, s in pairwise(times):
        (alpha_s, sigma_s), (_, sigma_t) = (tuple(c.to(z) for c in schedule(time)) for time in (s, t))
        mean, _ = denoise(z, t.expand(len(z)).to(z))
        h = ((schedule.log_snr(s) - schedule.log_snr(t)) / 2).to(z)
        data = mean if last is None else mean + h / (2 * last[1]) * (mean - last[0])
        z = sigma_s / sigma_t * z - alpha_s * torch.expm1(-h) * data
        last = mean, h
    return z


SAMPLERS = {"ancestral": ancestral, "ddim": ddim, "dpm-solver": dpm_solver}
