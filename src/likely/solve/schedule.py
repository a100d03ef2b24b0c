r"""Noise schedules of variance-preserving diffusion: time t in [0, 1] -> (alpha, sigma), alpha^2 + sigma^2 = 1.

    z_t = alpha_t x + sigma_t eps,     lambda_t = log alpha_t^2 / sigma_t^2 (log-SNR, falls as t grows)

A schedule is its log-SNR: alpha^2 = sigmoid(lambda) and sigma^2 = sigmoid(-lambda), which loses no digits at
either end. The likelihood bound in continuous time depends on a schedule through lambda_0 and lambda_1 alone;
its shape between them decides how noisy the training loss is, and how good a few steps are. So each
schedule here is a classical shape, cut to the end points it is given.

    tapered        lambda_t = end + (start - end) sqrt(1 - t): the loss of a step grows about in proportion to
                   lambda - end where data have levels or details, so that its terms come out even
    linear         lambda_t linear in t                                          (Kingma et al., 2021)
    cosine         alpha_t = cos(pi/2 t)        =>  lambda = -2 log tan(pi/2 t)  (Nichol and Dhariwal, 2021)
    linear beta    alpha_t^2 = exp(-int_0^t beta), beta rising from .1 to 20     (Ho et al., 2020; Song et al., 2021)

References:
    | Denoising diffusion probabilistic models (Ho et al., 2020) | https://arxiv.org/abs/2006.11239
    | Score-based generative modeling through stochastic differential equations (Song et al., 2021) | https://arxiv.org/abs/2011.13456
    | Improved denoising diffusion probabilistic models (Nichol and Dhariwal, 2021) | https://arxiv.org/abs/2102.09672
    | Variational diffusion models (Kingma et al., 2021) | https://arxiv.org/abs/2107.00630
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from likely.errors import UsageError, nearest

__all__ = ["SCHEDULES", "Cosine", "LinearBeta", "LogLinear", "Schedule", "Tapered", "noise_schedule"]


@dataclass(frozen=True)
class Schedule(ABC):
    """From log-SNR `start` at t = 0 (data) down to `end` at t = 1 (noise)."""

    start: float = 8.0
    end: float = -8.0

    def __post_init__(self) -> None:
        if not self.start > self.end:
            raise UsageError(f"A noise schedule cannot go from log-SNR {self.start} to {self.end}.", "It falls from start to end.")

    @property
    def _ends(self) -> Tensor:
        return torch.tensor([self.start, self.end], dtype=torch.float64)

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """lambda_t, of the shape and precision of t."""

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        """t at which lambda_t is `log_snr`: the inverse of `log_snr`."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha_t, sigma_t), of the shape and precision of t."""
        log_snr = self.log_snr(t)
        return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()


@dataclass(frozen=True)
class LogLinear(Schedule):
    """lambda_t = start + t (end - start)."""

    def log_snr(self, t: Tensor) -> Tensor:
        return self.start + t * (self.end - self.start)

    def time(self, log_snr: Tensor) -> Tensor:
        return (self.start - log_snr) / (self.start - self.end)


@dataclass(frozen=True)
class Tapered(Schedule):
    """lambda_t = end + (start - end) sqrt(1 - t): less time the noisier, in proportion to lambda - end."""

    def log_snr(self, t: Tensor) -> Tensor:
        return self.end + (self.start - self.end) * (1 - t).clamp_min(0).sqrt()

    def time(self, log_snr: Tensor) -> Tensor:
        return 1 - ((log_snr - self.end) / (self.start - self.end)).square()


@dataclass(frozen=True)
class Cosine(Schedule):
    """lambda = -2 log tan(angle), the angle even in t."""

    def log_snr(self, t: Tensor) -> Tensor:
        first, last = _angles(self._ends)
        return -2 * torch.log(torch.tan(first + t * (last - first)))

    def time(self, log_snr: Tensor) -> Tensor:
        first, last = _angles(self._ends)
        return (_angles(log_snr) - first) / (last - first)


def _angles(log_snr: Tensor) -> Tensor:
    return torch.atan(torch.exp(-log_snr / 2))


@dataclass(frozen=True)
class LinearBeta(Schedule):
    """lambda = -log(exp(B) - 1) with B(u) = beta_0 u + (beta_1 - beta_0) u^2 / 2, u even in t between the two ends."""

    beta_0: float = 0.1
    beta_1: float = 20.0

    def log_snr(self, t: Tensor) -> Tensor:
        first, last = self._u(self._ends)
        u = first + t * (last - first)
        return -torch.log(torch.expm1(self.beta_0 * u + (self.beta_1 - self.beta_0) * u.square() / 2))

    def time(self, log_snr: Tensor) -> Tensor:
        first, last = self._u(self._ends)
        return (self._u(log_snr) - first) / (last - first)

    def _u(self, log_snr: Tensor) -> Tensor:
        """The u at which B(u) = log(1 + exp(-lambda)): the positive root of a quadratic, written without cancellation."""
        integral = softplus(-log_snr)
        return 2 * integral / (self.beta_0 + (self.beta_0**2 + 2 * (self.beta_1 - self.beta_0) * integral).sqrt())


SCHEDULES: dict[str, type[Schedule]] = {"tapered": Tapered, "linear": LogLinear, "cosine": Cosine, "linear-beta": LinearBeta}


def noise_schedule(name: str, start: float, end: float) -> Schedule:
    """A schedule by its name, between two log-SNRs.

    Raises: UsageError for an unknown name.
    """
    if name not in SCHEDULES:
        raise UsageError(f"Unknown noise schedule '{name}'.", nearest(name, SCHEDULES))
    return SCHEDULES[name](start, end)
