r"""Noise schedules: time t in [0, 1] -> (alpha, sigma) of z_t = alpha_t e + sigma_t eps.

A schedule is a shape, the log-SNR lambda_t = log alpha_t^2 / sigma_t^2 that falls from data to noise (`solve.shapes`), and a scaling,
which says what alpha is at that log-SNR. Bounds and densities know lambda alone; a scaling is a change of units. Since
log alpha - log sigma = lambda / 2, a scaling is known by f = d log alpha / d lambda:

    vp          alpha^2 + sigma^2 = 1     f = sigma^2 / 2
    ve          alpha = 1                 f = 0
    sub-vp      sigma = 1 - alpha^2       f = sigma / (2 + 2 alpha^2)
    rectified   alpha + sigma = 1         f = sigma / 2

References:
    | Score-based generative modeling through stochastic differential equations (Song et al., 2021) | https://arxiv.org/abs/2011.13456
    | Denoising diffusion probabilistic models (Ho et al., 2020) | https://arxiv.org/abs/2006.11239
    | Flow matching for generative modeling (Lipman et al., 2023) | https://arxiv.org/abs/2210.02747
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from likely.errors import UsageError, nearest
from likely.solve.shapes import SHAPES, Shape

__all__ = ["SCALINGS", "Schedule", "alpha_bars", "betas", "noise_schedule", "posterior_betas"]


def _vp(log_snr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt(), (-log_snr).sigmoid() / 2


def _ve(log_snr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ones_like(log_snr), torch.exp(-log_snr / 2), torch.zeros_like(log_snr)


def _sub_vp(log_snr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    ratio = torch.exp(log_snr / 2)
    sigma = 2 / (1 + (1 + 4 * ratio.square()).sqrt())  # the root of sigma = 1 - (ratio sigma)^2
    alpha = ratio * sigma
    return alpha, sigma, sigma / (2 + 2 * alpha.square())


def _rectified(log_snr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.sigmoid(log_snr / 2), torch.sigmoid(-log_snr / 2), torch.sigmoid(-log_snr / 2) / 2


# log-SNR -> (alpha, sigma, d log alpha / d log-SNR)
SCALINGS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]] = {
    "vp": _vp,
    "ve": _ve,
    "sub-vp": _sub_vp,
    "rectified": _rectified,
}


@dataclass(frozen=True)
class Schedule:
    """A shape and a scaling; immutable.

    Args:
        shape: of the log-SNR, fixed or learnt.
        scaling: a word of SCALINGS.
    """

    shape: Shape
    scaling: str = "vp"

    def __post_init__(self) -> None:
        if self.scaling not in SCALINGS:
            raise UsageError(f"Unknown scaling '{self.scaling}' of noise.", nearest(self.scaling, SCALINGS))

    @property
    def start(self) -> float:
        """log-SNR at t = 0."""
        return self.shape.ends()[0]

    @property
    def end(self) -> float:
        """log-SNR at t = 1."""
        return self.shape.ends()[1]

    @property
    def prior_scale(self) -> float:
        """The standard deviation of z_1 for data of variance one, (alpha_1^2 + sigma_1^2)^(1/2): where samplers start."""
        alpha, sigma = self.at(torch.tensor(self.end, dtype=torch.float64))
        return math.hypot(alpha.item(), sigma.item())

    def log_snr(self, t: Tensor) -> Tensor:
        """lambda_t, of the shape and precision of t."""
        return self.shape.log_snr(t)

    def time(self, log_snr: Tensor) -> Tensor:
        """t at which lambda_t is `log_snr`."""
        return self.shape.time(log_snr)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha_t, sigma_t), of the shape and precision of t."""
        return self.at(self.log_snr(t))

    def at(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) where the log-SNR is `log_snr`."""
        alpha, sigma, _ = SCALINGS[self.scaling](log_snr)
        return alpha, sigma

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(d alpha / dt, d sigma / dt), of the shape and precision of t."""
        alpha, sigma, share = SCALINGS[self.scaling](self.log_snr(t))
        slope = self.shape.slope(t)
        return alpha * share * slope, sigma * (share - 0.5) * slope


def noise_schedule(name: str, start: float | None = None, end: float | None = None, *, scaling: str = "vp", **options: Any) -> Schedule:
    """A schedule by the name of its shape, between two log-SNRs (where not given, its own).

    Raises: UsageError for an unknown name or scaling, or a start that is not above the end.
    """
    if name not in SHAPES:
        raise UsageError(f"Unknown noise schedule '{name}'.", nearest(name, SHAPES))
    own = SHAPES[name].natural_ends(**options)
    return Schedule(SHAPES[name](own[0] if start is None else start, own[1] if end is None else end, **options), scaling)


def alpha_bars(schedule: Schedule, steps: int) -> Tensor:
    """alpha^2 of the variance-preserving form at t = k / steps, k = 1..steps; float64."""
    return schedule.log_snr(torch.arange(1, steps + 1, dtype=torch.float64) / steps).sigmoid()


def betas(alpha_bar: Tensor) -> Tensor:
    """beta_k = 1 - alpha_bar_k / alpha_bar_(k-1), with alpha_bar_0 = 1: the variance that step k adds."""
    return 1 - alpha_bar / _before(alpha_bar)


def posterior_betas(alpha_bar: Tensor) -> Tensor:
    """beta~_k = beta_k (1 - alpha_bar_(k-1)) / (1 - alpha_bar_k): the variance of z_(k-1) given z_k and the data."""
    return betas(alpha_bar) * (1 - _before(alpha_bar)) / (1 - alpha_bar)


def _before(alpha_bar: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(alpha_bar[:1]), alpha_bar[:-1]])
