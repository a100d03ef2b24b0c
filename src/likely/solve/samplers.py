r"""Samplers: walks from noise to data with any denoiser, under any schedule and scaling.

A sampler takes `denoise(z, t [B]) -> (m, V)` and walks `times` (float64, from 1 down to where the data are resolved). It calls the
denoiser once a step (Heun: twice; the Langevin ones: 1 + corrections, and corrections), and returns z at the last time. There the
caller asks once more what the data are: this last call is a step of order one to sigma = 0, which solvers of higher order need. So N
times make N calls in all (Heun 2N - 1), and nothing is ever divided by a sigma of zero.

From t to s, with h = (lambda_s - lambda_t) / 2, rho = 1 - SNR_t / SNR_s = 1 - exp(-2h), and the eps that z_t and m imply:

    ancestral        z_s ~ N((1 - rho) alpha_s/alpha_t z_t + rho alpha_s m, w)
                     w: "posterior" rho sigma_s^2 + (rho alpha_s)^2 V; "small" rho sigma_s^2 (beta~); "large" rho sigma_t^2 (beta)
    ddim             z_s = alpha_s m + (sigma_s^2 - eta^2 w)^(1/2) eps + eta w^(1/2) n,  w "small": order 1; eta = 1 is ancestral
    euler, heun      y = z / alpha, s = sigma / alpha:  dy/ds = eps, by Euler's (the same as ddim) and Heun's method: orders 1, 2;
                     `churn` first adds noise, up to a larger s
    dpm-solver       z_s = sigma_s/sigma_t z_t + alpha_s (1 - e^-h) (m extrapolated linearly in lambda to half way): order 2
    dpm-solver-sde   the same of the reverse diffusion: e^(-(1 + eta) h), and noise of variance sigma_s^2 (1 - e^(-2 eta h))
    langevin         at each level `corrections` steps z + k score + (2k)^(1/2) n, k = step sigma^2: annealed Langevin dynamics
    predictor-corrector   an ancestral step, then such corrections

References:
    | Denoising diffusion probabilistic models (Ho et al., 2020) | https://arxiv.org/abs/2006.11239
    | Analytic-DPM: an analytic estimate of the optimal reverse variance (Bao et al., 2022) | https://arxiv.org/abs/2201.06503
    | Denoising diffusion implicit models (Song et al., 2021) | https://arxiv.org/abs/2010.02502
    | Elucidating the design space of diffusion-based generative models (Karras et al., 2022) | https://arxiv.org/abs/2206.00364
    | DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models (Lu et al., 2022) | https://arxiv.org/abs/2211.01095
    | Generative modeling by estimating gradients of the data distribution (Song and Ermon, 2019) | https://arxiv.org/abs/1907.05600
    | Score-based generative modeling through stochastic differential equations (Song et al., 2021) | https://arxiv.org/abs/2011.13456
"""

import math
from collections.abc import Callable, Iterator
from inspect import Parameter, signature
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from likely.errors import UsageError, nearest
from likely.solve.denoise import Denoise
from likely.solve.noise import Schedule

__all__ = ["GRIDS", "SAMPLERS", "Level", "ancestral", "ddim", "dpm_solver", "find_sampler", "grid", "levels", "sampler_options"]

_KARRAS_RHO = 7.0
_MOST_CHURN = math.sqrt(2) - 1


class Level(NamedTuple):
    """A time and what a schedule says of it; floats, so that coefficients are of double precision whatever z is."""

    t: float
    log_snr: float
    alpha: float
    sigma: float

    def times(self, z: Tensor) -> Tensor:
        """t of every row, [B]."""
        return z.new_full((len(z),), self.t)

    def below(self, other: "Level") -> float:
        """1 - SNR here / SNR there: the share of the noise here that the step to there takes away."""
        return -math.expm1(self.log_snr - other.log_snr)


def levels(schedule: Schedule, times: Tensor) -> list[Level]:
    """What a schedule says of some times."""
    times = times.double()
    return [Level(*numbers) for numbers in zip(*(v.tolist() for v in (times, schedule.log_snr(times), *schedule(times))))]


def _steps(schedule: Schedule, times: Tensor) -> Iterator[tuple[Level, Level]]:
    return pairwise(levels(schedule, times))


def ancestral(denoise: Denoise, schedule: Schedule, z: Tensor, times: Tensor, *, variance: str = "posterior") -> Tensor:
    """Draws of the reverse step; with `variance="posterior"` the sampler of the bound, when `times` are the bound's.

    Raises: UsageError for a variance other than "posterior", "small" or "large".
    """
    if variance not in ("posterior", "small", "large"):
        raise UsageError(f"Unknown variance '{variance}' of a reverse step.", nearest(variance, ("posterior", "small", "large")))
    for t, s in _steps(schedule, times):
        mean, var = denoise(z, t.times(z))
        rho = t.below(s)
        known = rho * (t if variance == "large" else s).sigma ** 2
        unknown = (rho * s.alpha) ** 2 * var if variance == "posterior" else mean.new_zeros(())
        z = (1 - rho) * s.alpha / t.alpha * z + rho * s.alpha * mean + (known + unknown).sqrt() * torch.randn_like(z)
    return z


def ddim(denoise: Denoise, schedule: Schedule, z: Tensor, times: Tensor, *, eta: float = 0.0) -> Tensor:
    """Denoising diffusion implicit models: deterministic with eta = 0, ancestral of the "small" variance with eta = 1."""
    _share("eta", eta)
    for t, s in _steps(schedule, times):
        mean, _ = denoise(z, t.times(z))
        fresh = eta**2 * t.below(s)  # of the variance sigma_s^2
        z = s.alpha * mean + s.sigma * math.sqrt(1 - fresh) / t.sigma * (z - t.alpha * mean)
        if fresh:
            z = z + s.sigma * math.sqrt(fresh) * torch.randn_like(z)
    return z


def euler(denoise: Denoise, schedule: Schedule, z: Tensor, times: Tensor, *, churn: float = 0.0) -> Tensor:
    """Euler's method in sigma / alpha; churn = 0 is ddim."""
    return _karras(denoise, schedule, z, times, churn, twice=False)


def heun(denoise: Denoise, schedule: Schedule, z: Tensor, times: Tensor, *, churn: float = 0.0) -> Tensor:
    """Heun's method in sigma / alpha, two calls a step; `churn` / (number of steps) is how much noise a step first adds."""
    return _karras(denoise, schedule, z, times, churn, twice=True)


def _karras(denoise: Denoise, schedule: Schedule, z: Tensor, times: Tensor, churn: float, *, twice: bool) -> Tensor:
    if not 0 <= churn < math.inf:
        raise UsageError(f"Cannot add noise of churn={churn}.", "It is 0 or more.")
    for t, s in _steps(schedule, times):
        z, t = _churned(schedule, z, t, min(churn / (len(times) - 1), _MOST_CHURN))
        step = s.sigma / s.alpha - t.sigma / t.alpha
        slope = _eps(denoise, z, t)
        there = s.alpha * (z / t.alpha + step * slope)
        if twice:
            there = s.alpha * (z / t.alpha + step / 2 * (slope + _eps(denoise, there, s)))
        z = there
    return z


def _eps(denoise: Denoise, z: Tensor, at: Level) -> Tensor:
    mean, _ = denoise(z, at.times(z))
    return (z - at.alpha * mean) / at.sigma


def _churned(schedule: Schedule, z: Tensor, t: Level, growth: float) -> tuple[Tensor, Level]:
    """z with noise added until sigma / alpha is 1 + growth times as large, or the noisiest of the schedule."""
    log_snr = max(t.log_snr - 2 * math.log1p(growth), schedule.end)
    if not log_snr < t.log_snr:
        return z, t
    (noisier,) = levels(schedule, schedule.time(torch.tensor([log_snr], dtype=torch.float64)))
    added = noisier.sigma * math.sqrt(noisier.below(t))
    return noisier.alpha / t.alpha * z + added * torch.randn_like(z), noisier


def dpm_solver(denoise: Denoise, schedule: Schedule, z: Tensor, times: Tensor) -> Tensor:
    """DPM-Solver++(2M): the first step is ddim's."""
    return dpm_solver_sde(denoise, schedule, z, times, eta=0.0)


def dpm_solver_sde(denoise: Denoise, schedule: Schedule, z: Tensor, times: Tensor, *, eta: float = 1.0) -> Tensor:
    """SDE-DPM-Solver++(2M): eta = 1 is the reverse diffusion, eta = 0 dpm-solver."""
    _share("eta", eta)
    last = None
    for t, s in _steps(schedule, times):
        mean, _ = denoise(z, t.times(z))
        h = (s.log_snr - t.log_snr) / 2
        data = mean if last is None else mean + h / (2 * last[1]) * (mean - last[0])
        z = s.sigma / t.sigma * math.exp(-eta * h) * z - s.alpha * math.expm1(-(1 + eta) * h) * data
        if eta:
            z = z + s.sigma * math.sqrt(-math.expm1(-2 * eta * h)) * torch.randn_like(z)
        last = mean, h
    return z


def predictor_corrector(
    denoise: Denoise, schedule: Schedule, z: Tensor, times: Tensor, *, corrections: int = 1, step: float = 0.05
) -> Tensor:
    """An ancestral step to each level, then `corrections` of Langevin dynamics there."""
    for i, (_, s) in enumerate(_steps(schedule, times)):
        z = ancestral(denoise, schedule, z, times[i : i + 2])
        z = _langevin(denoise, z, s, corrections, step)
    return z


def langevin(denoise: Denoise, schedule: Schedule, z: Tensor, times: Tensor, *, corrections: int = 10, step: float = 0.1) -> Tensor:
    """Annealed Langevin dynamics: z / alpha is kept from level to level, and `corrections` steps are made at each."""
    for t, s in _steps(schedule, times):
        z = _langevin(denoise, s.alpha / t.alpha * z, s, corrections, step)
    return z


def _langevin(denoise: Denoise, z: Tensor, at: Level, corrections: int, step: float) -> Tensor:
    """The step is a share of sigma^2 and not of norms of a batch, so that no row depends on another."""
    if corrections < 1:
        raise UsageError(f"Langevin dynamics of corrections={corrections} do not move.", "Ask for one or more.")
    for _ in range(corrections):
        z = z - step * at.sigma * _eps(denoise, z, at) + math.sqrt(2 * step) * at.sigma * torch.randn_like(z)
    return z


def _share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UsageError(f"Got {name}={value}.", "It is a share of the noise, from 0 to 1.")


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "dpm-solver": dpm_solver,
    "dpm-solver-sde": dpm_solver_sde,
    "predictor-corrector": predictor_corrector,
    "langevin": langevin,
}


def sampler_options(word: str) -> dict[str, Any]:
    """The options of a sampler, and what they are if not given."""
    parameters = signature(find_sampler(word)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is Parameter.KEYWORD_ONLY}


def find_sampler(word: str) -> Callable[..., Tensor]:
    """The sampler of that name.

    Raises: UsageError if there is none.
    """
    if word not in SAMPLERS:
        raise UsageError(f"Unknown sampler '{word}'.", nearest(word, SAMPLERS))
    return SAMPLERS[word]


GRIDS = ("log-snr", "karras", "time")


def grid(word: str, schedule: Schedule, n: int) -> Tensor:
    """n times from noise to data, float64: even in log-SNR, in (sigma/alpha)^(1/7), or in time.

    Raises: UsageError for another word, or fewer than one.
    """
    if n < 1:
        raise UsageError(f"Cannot sample in {n} steps.", "The least is one.")
    end, start = schedule.end, schedule.start
    if word == "time":
        return torch.linspace(1, 0, n, dtype=torch.float64)
    if word == "log-snr":
        return schedule.time(torch.linspace(end, start, n, dtype=torch.float64))
    if word == "karras":
        root = torch.linspace(math.exp(-end / (2 * _KARRAS_RHO)), math.exp(-start / (2 * _KARRAS_RHO)), n, dtype=torch.float64)
        return schedule.time((-2 * _KARRAS_RHO * root.log()).clamp(end, start))
    raise UsageError(f"Unknown grid '{word}' of times.", nearest(word, GRIDS))
