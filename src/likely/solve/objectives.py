r"""What a denoiser is trained to: how an error in the clean example counts at each log-SNR lambda, and at which times it is asked.

Each classical target is a multiple of the same squared error |e - m(z_t, t)|^2, for a net may say m in any of its words:

    x0         1                               min-snr   min(SNR, 5)
    eps        SNR = exp(lambda)               v         1 + SNR, which is EDM's weight for data of variance one
    score      as eps: sigma^2 |score|^2       velocity  (1 + sqrt SNR)^2, of eps - e on the straight path

Times are uniform in t, or crowd where training gains most: "logit-normal" in t, "lognormal" in sigma / alpha. EDM's are for data
whose deviation is a half; here it is one, so that they are doubled.

References:
    | Elucidating the design space of diffusion-based generative models (Karras et al., 2022) | https://arxiv.org/abs/2206.00364
    | Understanding diffusion objectives as the ELBO with simple data augmentation (Kingma and Gao, 2023) | https://arxiv.org/abs/2303.00848
    | Efficient diffusion training via min-SNR weighting strategy (Hang et al., 2023) | https://arxiv.org/abs/2303.09556
    | Scaling rectified flow transformers for high-resolution image synthesis (Esser et al., 2024) | https://arxiv.org/abs/2403.03206
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from likely.solve.noise import Schedule

__all__ = ["TIMES", "WEIGHTS", "strata_error", "stratified"]

_MIN_SNR = 5.0
_LOGNORMAL = (-1.2 + math.log(2), 1.2)  # mean and deviation of log sigma / alpha in EDM, for data of deviation one

WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "x0": torch.ones_like,
    "eps": torch.exp,
    "score": torch.exp,
    "v": lambda log_snr: 1 + log_snr.exp(),
    "velocity": lambda log_snr: (1 + (log_snr / 2).exp()).square(),
    "min-snr": lambda log_snr: log_snr.exp().clamp_max(_MIN_SNR),
}


def stratified(n: int, device: torch.device) -> Tensor:
    """n numbers, uniform on (0, 1) each, one in each n-th of it: [n], float64."""
    return (torch.arange(n, device=device, dtype=torch.float64) + torch.rand(1, device=device, dtype=torch.float64)) / n


def strata_error(values: Tensor) -> Tensor | None:
    """Standard errors [B] of the mean of values [strata, draws, B], one of each stratum and draw; None of a single stratum.

    Strata differ by noise and by what they stand for. Of a smooth course of the latter three neighbours in a row have next to
    nothing left, x_0 - 2 x_1 + x_2, whose variance is six times that of the noise. Where the course bends sharply the error is
    too large (of `ddpm` by several times), where the noise is largest in the first or last stratum too small (of masks by a
    fifth).
    """
    strata, draws = values.shape[:2]
    if strata < 2:
        return None
    variance = values.diff(dim=0).square() / 2 if strata == 2 else values.diff(n=2, dim=0).square() / 6
    return (variance.mean((0, 1)) / (strata * draws)).sqrt()


def _lognormal(u: Tensor, schedule: Schedule) -> Tensor:
    mean, deviation = _LOGNORMAL
    log_snr = -2 * (mean + deviation * torch.special.ndtri(u))
    return schedule.time(log_snr.clamp(schedule.end, schedule.start))


TIMES: dict[str, Callable[[Tensor, Schedule], Tensor]] = {
    "uniform": lambda u, schedule: u,
    "logit-normal": lambda u, schedule: torch.special.ndtri(u).sigmoid(),
    "lognormal": _lognormal,
}
