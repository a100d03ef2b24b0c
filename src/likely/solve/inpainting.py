r"""Drawing some entries given the others, with a denoiser that was never told of them.

    replacement    before each step the known entries of z are set to alpha_t e + sigma_t n. Each step sees its own noise, and what it
                   makes of the unknown ones is never taken back: biased towards the unconditional law, however many the steps
    repaint        the same, and each stretch of `jump` steps is noised again and walked anew, `resamplings` times in all: the two parts
                   come to agree, and the bias falls with the calls
    posterior      the denoiser of p(e | z_t, known e), by Bayes' rule for a Gaussian p(e | z_t) = N(m, C):
                       m + C A^T (A C A^T)^-1 (e_known - A m),    A picks the known;    C = sigma^2/alpha dm/dz
                   C is the posterior's covariance whatever the law of the data; that the posterior is Gaussian is true for Gaussian data,
                   where this is exact, and a good approximation once sigma is small. Any sampler may use it.

A C v is a backward pass. The linear equations are solved by conjugate gradients, row by row, in `iterations` passes.
`settle` ends a walk: unknown entries are drawn from the posterior at the last time, known ones are those given, to the bit.

References:
    | Score-based generative modeling through stochastic differential equations (Song et al., 2021) | https://arxiv.org/abs/2011.13456
    | RePaint: inpainting using denoising diffusion probabilistic models (Lugmayr et al., 2022) | https://arxiv.org/abs/2201.09865
    | Diffusion posterior sampling for general noisy inverse problems (Chung et al., 2023) | https://arxiv.org/abs/2209.14687
    | Learning diffusion priors from observations by expectation maximization (Rozet et al., 2024) | https://arxiv.org/abs/2405.13712
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from likely.solve.denoise import Denoise
from likely.solve.noise import Schedule
from likely.solve.parametrisation import expand_like
from likely.solve.samplers import Level, find_sampler, levels

__all__ = ["INPAINTERS", "posterior_guided", "repaint", "replacement", "settle"]

_FLATTEST = 0.01  # as a share of the covariance of data of variance one; flatter directions are left alone until the noise is small


def replacement(
    denoise: Denoise, schedule: Schedule, z: Tensor, times: Tensor, e: Tensor, known: Tensor, *, sampler: str = "ancestral"
) -> Tensor:
    """z at the last of `times`, its known entries those of `e` [B, ...] with noise; `known` is a mask that broadcasts over it."""
    step, at = find_sampler(sampler), levels(schedule, times)
    z = _replaced(z, at[0], e, known)
    for i, level in enumerate(at[1:]):
        z = _replaced(step(denoise, schedule, z, times[i : i + 2]), level, e, known)
    return z


def _replaced(z: Tensor, at: Level, e: Tensor, known: Tensor) -> Tensor:
    return torch.where(known, at.alpha * e.to(z) + at.sigma * torch.randn_like(z), z)


def repaint(
    denoise: Denoise,
    schedule: Schedule,
    z: Tensor,
    times: Tensor,
    e: Tensor,
    known: Tensor,
    *,
    resamplings: int = 10,
    jump: int = 1,
    sampler: str = "ancestral",
) -> Tensor:
    """As `replacement`, every `jump` steps walked `resamplings` times."""
    for start in range(0, len(times) - 1, jump):
        block = times[start : start + jump + 1]
        z = replacement(denoise, schedule, z, block, e, known, sampler=sampler)
        for _ in range(resamplings - 1):
            z = replacement(denoise, schedule, _noised(z, schedule, block), block, e, known, sampler=sampler)
    return z


def _noised(z: Tensor, schedule: Schedule, block: Tensor) -> Tensor:
    """z of the last time of a block, noised up to its first."""
    first, *_, last = levels(schedule, block)
    return first.alpha / last.alpha * z + first.sigma * math.sqrt(first.below(last)) * torch.randn_like(z)


def posterior(
    denoise: Denoise,
    schedule: Schedule,
    z: Tensor,
    times: Tensor,
    e: Tensor,
    known: Tensor,
    *,
    sampler: str = "dpm-solver-sde",
    iterations: int = 10,
) -> Tensor:
    """z at the last of `times`, by a sampler with the denoiser of the conditional law."""
    return find_sampler(sampler)(posterior_guided(denoise, schedule, e, known, iterations=iterations), schedule, z, times)


INPAINTERS: dict[str, Callable[..., Tensor]] = {"replacement": replacement, "repaint": repaint, "posterior": posterior}


def posterior_guided(
    denoise: Denoise, schedule: Schedule, e: Tensor, known: Tensor, *, iterations: int = 10, ridge: float = 1e-5
) -> Denoise:
    """The denoiser of p(e | z_t, known entries of e); its mean has them exactly, its variance of the others stays as it was.

    Args:
        denoise: differentiable in z.
        iterations: of conjugate gradients, a backward pass each; as many as there are known entries are exact.
        ridge: added to A C A^T, as a share of what C would be for data of variance one.
    """

    known = known & ~e.isnan()  # the padding of sets

    def guided(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = schedule(t.double())
        usual = sigma.square() / (alpha.square() + sigma.square())  # what C would be for data of variance one
        unit, least = (expand_like(v, z) for v in (sigma.square() / alpha, ridge * usual))
        with torch.enable_grad():
            there = z.detach().requires_grad_()
            mean, var = denoise(there, t)

        def covariance(v: Tensor) -> Tensor:
            return (unit * torch.autograd.grad(mean, there, v, retain_graph=True, materialize_grads=True)[0]).masked_fill(z.isnan(), 0.0)

        missed = torch.where(known, e.to(z) - mean.detach(), 0.0)
        weights = _solved(lambda v: torch.where(known, covariance(v) + least * v, 0.0), missed, iterations, _FLATTEST * usual)
        moved = mean.detach() + covariance(weights)
        return torch.where(known, e.to(z), moved), torch.where(known, 0.0, var.detach())

    return guided


def _solved(product: Callable[[Tensor], Tensor], right: Tensor, iterations: int, flattest: Tensor) -> Tensor:
    """x with product(x) = right for each row, by conjugate gradients from zero.

    A row stops in a direction along which its matrix is less than `flattest` [B]: the Jacobian of a learnt net is not quite a covariance,
    and where it is nearly zero or negative by chance, the solution is thousands of deviations away.
    """
    x, residual, direction, size = torch.zeros_like(right), right, right, _dot(right, right)
    for _ in range(iterations):
        image = product(direction)
        bend = _dot(direction, image)
        step = torch.where(bend > flattest * _dot(direction, direction), size / bend, 0.0)
        x, residual = x + expand_like(step, x) * direction, residual - expand_like(step, x) * image
        size, before = _dot(residual, residual), size
        direction = residual + expand_like(torch.where(before > 0, size / before, 0.0), x) * direction
    return x


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() * b.double()).flatten(1).sum(1)


def settle(denoise: Denoise, z: Tensor, time: Tensor, e: Tensor, known: Tensor) -> Tensor:
    """Examples from z at `time` (0-dim): entries drawn from the denoiser's mean and variance, the known ones those of `e` to the bit."""
    mean, var = denoise(z, time.to(z).expand(len(z)))
    return torch.where(known, e, (mean + var.sqrt() * torch.randn_like(mean)).to(e))
