r"""Shapes of noise schedules: the log-SNR lambda_t = log alpha_t^2 / sigma_t^2, falling from `start` (data) to `end` (noise).

The likelihood bound in continuous time depends on a shape through its two ends alone; what lies between them decides how noisy the
training loss is, and how good a few steps are. Each shape is a function u of lambda that is even in t, cut to the ends it is given:

    tapered        u = (lambda - end)^2              the loss of a step grows about in proportion to lambda - end where data
                                                     have levels or details, so that its terms come out even
    linear         u = lambda                        geometric where alpha = 1   (Kingma et al., 2021; Song and Ermon, 2019)
    cosine         u = atan exp(-lambda / 2)         alpha_t = cos(pi/2 t)       (Nichol and Dhariwal, 2021)
    linear-beta    int_0^u beta = -log alpha^2       beta from .1 to 20          (Ho et al., 2020; Song et al., 2021)
    beta           u = k / T                         alpha^2 = prod (1 - beta_k) (the same in T discrete steps, exactly)
    karras         u = (sigma / alpha)^(1/7)         (Karras et al., 2022)
    rectified      u = 1 / (1 + exp(lambda / 2))     sigma = t where alpha + sigma = 1  (flow matching)

References:
    | Generative modeling by estimating gradients of the data distribution (Song and Ermon, 2019) | https://arxiv.org/abs/1907.05600
    | Denoising diffusion probabilistic models (Ho et al., 2020) | https://arxiv.org/abs/2006.11239
    | Score-based generative modeling through stochastic differential equations (Song et al., 2021) | https://arxiv.org/abs/2011.13456
    | Improved denoising diffusion probabilistic models (Nichol and Dhariwal, 2021) | https://arxiv.org/abs/2102.09672
    | Variational diffusion models (Kingma et al., 2021) | https://arxiv.org/abs/2107.00630
    | Elucidating the design space of diffusion-based generative models (Karras et al., 2022) | https://arxiv.org/abs/2206.00364
    | Flow matching for generative modeling (Lipman et al., 2023) | https://arxiv.org/abs/2210.02747
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from likely.errors import UsageError

__all__ = ["SHAPES", "Cosine", "DiscreteBeta", "Even", "Karras", "LinearBeta", "LogLinear", "Rectified", "Shape", "Tapered"]


class Shape(ABC):
    """lambda_t, falling strictly from `start` at t = 0 to `end` at t = 1."""

    @abstractmethod
    def ends(self) -> tuple[float, float]:
        """(start, end)."""

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """lambda_t, of the shape and precision of t."""

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        """t at which lambda_t is `log_snr`: the inverse of `log_snr`."""

    def slope(self, t: Tensor) -> Tensor:
        """d lambda / dt."""
        with torch.enable_grad():
            t = t.detach().requires_grad_()
            return torch.autograd.grad(self.log_snr(t).sum(), t)[0]


@dataclass(frozen=True)
class Even(Shape):
    """A shape by the function u of lambda that is even in t."""

    start: float = 8.0
    end: float = -8.0

    def __post_init__(self) -> None:
        if not self.start > self.end:
            raise UsageError(f"A noise schedule cannot go from log-SNR {self.start} to {self.end}.", "It falls from start to end.")

    @classmethod
    def natural_ends(cls, **_: Any) -> tuple[float, float]:
        """(start, end) of those who do not choose them."""
        return cls.start, cls.end

    @abstractmethod
    def _u(self, log_snr: Tensor) -> Tensor: ...

    @abstractmethod
    def _at(self, u: Tensor) -> Tensor:
        """lambda, the inverse of u."""

    def ends(self) -> tuple[float, float]:
        return self.start, self.end

    def _ends(self, like: Tensor) -> Tensor:
        return self._u(torch.tensor([self.start, self.end], dtype=torch.float64, device=like.device)).to(like)

    def log_snr(self, t: Tensor) -> Tensor:
        first, last = self._ends(t)
        return self._at(torch.lerp(first, last, t))

    def time(self, log_snr: Tensor) -> Tensor:
        first, last = self._ends(log_snr)
        return (self._u(log_snr) - first) / (last - first)


class Tapered(Even):
    """Less time the noisier, in proportion to lambda - end. The slope at t = 1 is infinite: it has no velocity there."""

    def _u(self, log_snr: Tensor) -> Tensor:
        return (log_snr - self.end).square()

    def _at(self, u: Tensor) -> Tensor:
        return self.end + u.clamp_min(0).sqrt()


class LogLinear(Even):
    """The log-SNR even in time."""

    def _u(self, log_snr: Tensor) -> Tensor:
        return log_snr

    def _at(self, u: Tensor) -> Tensor:
        return u


class Cosine(Even):
    """The angle between alpha and sigma even in time."""

    def _u(self, log_snr: Tensor) -> Tensor:
        return torch.atan(torch.exp(-log_snr / 2))

    def _at(self, u: Tensor) -> Tensor:
        return -2 * torch.log(torch.tan(u))


class Rectified(Even):
    """sigma / (alpha + sigma) even in time."""

    def _u(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr / 2)

    def _at(self, u: Tensor) -> Tensor:
        return 2 * (torch.log1p(-u) - u.log())


@dataclass(frozen=True)
class Karras(Even):
    """(sigma / alpha)^(1/rho) even in time; of EDM, sigma / alpha goes from .002 to 80."""

    start: float = -2 * math.log(0.002)
    end: float = -2 * math.log(80.0)
    rho: float = 7.0

    def _u(self, log_snr: Tensor) -> Tensor:
        return torch.exp(-log_snr / (2 * self.rho))

    def _at(self, u: Tensor) -> Tensor:
        return -2 * self.rho * u.log()


@dataclass(frozen=True)
class LinearBeta(Even):
    """lambda = -log(exp(B) - 1) with B(u) = beta_0 u + (beta_1 - beta_0) u^2 / 2."""

    beta_0: float = 0.1
    beta_1: float = 20.0

    def _u(self, log_snr: Tensor) -> Tensor:
        """The u at which B(u) = log(1 + exp(-lambda)): the positive root of a quadratic, written without cancellation."""
        integral = softplus(-log_snr)
        return 2 * integral / (self.beta_0 + (self.beta_0**2 + 2 * (self.beta_1 - self.beta_0) * integral).sqrt())

    def _at(self, u: Tensor) -> Tensor:
        return -torch.log(torch.expm1(self.beta_0 * u + (self.beta_1 - self.beta_0) * u.square() / 2))


@dataclass(frozen=True)
class DiscreteBeta(Even):
    """T steps, beta_k rising evenly from beta_0 / T to beta_1 / T: 1e-4 to .02 for T = 1000, as in DDPM.

    lambda at t = k / T is that of the product, if the ends are the natural ones, and linear in between. There is no noise at k = 0,
    so that `start` there goes on from k = 1 by the step from k = 2.

    Raises: UsageError for so few steps that some beta_k >= 1.
    """

    steps: int = 1000
    beta_0: float = 0.1
    beta_1: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 2 or max(self.beta_0, self.beta_1) >= self.steps:
            raise UsageError(f"The noise schedule 'beta' cannot have {self.steps} steps.", f"It takes more than {self.beta_1:g}.")

    @classmethod
    def natural_ends(cls, **options: Any) -> tuple[float, float]:
        knots = cls(**options)._knots
        return knots[0].item(), knots[-1].item()

    @property
    def _knots(self) -> Tensor:
        """lambda at k / T, k = 0..T."""
        return _products(self.steps, self.beta_0, self.beta_1)

    def _u(self, log_snr: Tensor) -> Tensor:
        knots = self._knots.to(log_snr)
        k = torch.searchsorted(-knots, -log_snr.detach().contiguous()).clamp(1, self.steps) - 1
        return (k + (log_snr - knots[k]) / (knots[k + 1] - knots[k])) / self.steps

    def _at(self, u: Tensor) -> Tensor:
        knots, place = self._knots.to(u), u * self.steps
        k = place.detach().floor().clamp(0, self.steps - 1).long()
        return knots[k] + (place - k) * (knots[k + 1] - knots[k])


@cache
def _products(steps: int, beta_0: float, beta_1: float) -> Tensor:
    log_alpha2 = torch.log1p(-torch.linspace(beta_0, beta_1, steps, dtype=torch.float64) / steps).cumsum(0)
    log_snr = log_alpha2 - torch.log(-torch.expm1(log_alpha2))
    return torch.cat([2 * log_snr[:1] - log_snr[1:2], log_snr])


SHAPES: dict[str, type[Even]] = {
    "tapered": Tapered,
    "linear": LogLinear,
    "cosine": Cosine,
    "linear-beta": LinearBeta,
    "beta": DiscreteBeta,
    "karras": Karras,
    "rectified": Rectified,
}
