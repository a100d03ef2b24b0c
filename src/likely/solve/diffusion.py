r"""The variational bound of Gaussian diffusion: the bridge between two times and its divergence, whatever the scaling.

For s < t, with the posterior mean m and variance V of x given z_t, and r = SNR_s - SNR_t, rho = 1 - SNR_t / SNR_s:

    q(z_s | z_t, x) = N(a z_t + b x, v),   a = (1 - rho) alpha_s / alpha_t,  b = rho alpha_s,  v = rho sigma_s^2
    p(z_s | z_t)    = N(a z_t + b m, v + b^2 V)       the Gaussian of the same mean and variance as E_p(x|z_t) q
    KL(q || p)      = 1/2 [ r ((x - m)^2 - V) / (1 + r V) + log(1 + r V) ]      since b^2 / v = r

V is what makes few steps count: with the bridge's own variance (V = 0) the gap between bound and truth stays
large even for hundreds of steps. As s -> t the divergence becomes r (x - m)^2 / 2, the variational diffusion loss.

References:
    | Variational diffusion models (Kingma et al., 2021) | https://arxiv.org/abs/2107.00630
    | Analytic-DPM: an analytic estimate of the optimal reverse variance (Bao et al., 2022) | https://arxiv.org/abs/2201.06503
"""

import torch
from torch import Tensor

__all__ = ["bridge_kl", "prior_kl"]


def bridge_kl(x: Tensor, mean: Tensor, var: Tensor, gain: Tensor) -> Tensor:
    """KL(q(z_s | z_t, x) || p(z_s | z_t)) of each entry, nats, 0 where x is NaN; `gain` is SNR_s - SNR_t, broadcast over x."""
    nats = 0.5 * (gain * ((x - mean).square() - var) / (1 + gain * var) + torch.log1p(gain * var))
    return nats.masked_fill(x.isnan(), 0.0)


def prior_kl(x: Tensor, log_snr: float) -> Tensor:
    """KL(q(z_1 | x) || N(0, 1)) of each entry, nats: (alpha^2 x^2 + sigma^2 - 1 - log sigma^2) / 2; 0 where x is NaN."""
    alpha2, sigma2 = torch.tensor([log_snr, -log_snr], dtype=torch.float64, device=x.device).sigmoid()
    return (0.5 * (alpha2 * (x.double().square() - 1) - sigma2.log())).masked_fill(x.isnan(), 0.0)
