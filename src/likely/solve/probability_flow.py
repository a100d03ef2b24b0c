r"""The probability flow of a diffusion: an ordinary differential equation between data and noise, and the density that it gives.

The path of z follows the score, which any denoiser knows: score = (alpha m - z) / sigma^2. In the variance-preserving units u,
alpha^2 + sigma^2 = 1, to which every scaling is a change of units, and with the log-SNR lambda as the time,

    du/dlambda = (alpha m(u) - alpha^2 u) / 2
    log p(e) = log N(u_end; 0, I) + int_start^end div du/dlambda dlambda + D log alpha_start,    u_start = alpha_start e

The integral begins at the schedule's first log-SNR and not at infinity: the density is that of e with the noise sigma / alpha there
added to it, p_eps, and not p_0. It is the density of what `decode` draws from N(0, I) before it is cleaned, up to the error
of the solver, and neither the likelihood of a stochastic sampler nor a bound.

The divergence is exact by one backward pass per entry, or Hutchinson's estimate by one per probe, e . (dm/dz) e with random signs e,
which are given from outside so that they can be a function of the row. Each row is solved with steps of its own (`solve.adaptive`).

References:
    | Score-based generative modeling through stochastic differential equations (Song et al., 2021) | https://arxiv.org/abs/2011.13456
    | FFJORD (Grathwohl et al., 2019) | https://arxiv.org/abs/1810.01367
    | Maximum likelihood training of score-based diffusion models (Song et al., 2021) | https://arxiv.org/abs/2101.09258
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from likely.solve.adaptive import dormand_prince, halved
from likely.solve.noise import Schedule

__all__ = ["Density", "Passage", "decode", "encode", "log_density"]

# a denoiser (z, t, *context rows) -> (m, V): the context has a row per example, and follows those that are still on their way
Conditional = Callable[..., tuple[Tensor, Tensor]]


class Passage(NamedTuple):
    """Where rows came to [B, ...], and how often the denoiser was called for each [B]."""

    to: Tensor
    calls: Tensor


@dataclass(frozen=True)
class Density:
    """log p of each row.

    Attributes:
        nats: [B], float64, by the given tolerance.
        error: [B], how far halving the solver's steps moved `nats` to where it is: the error before, several times that now.
        stderr: [B], of Hutchinson's estimate; None if the divergence is exact, NaN for a single probe.
        calls: [B], of the denoiser, by whole steps and by halved ones.
        z: [B, ...], the noise that the rows came to, in the schedule's units.
        tolerance: of the solver, for every entry and for nats per entry.
    """

    nats: Tensor
    error: Tensor
    stderr: Tensor | None
    calls: Tensor
    z: Tensor
    tolerance: float

    @property
    def how(self) -> str:
        """What the numbers rest on, for a report."""
        trace = "exact divergence" if self.stderr is None else "Hutchinson's divergence"
        change = self.error.mean().item()
        return (
            f"probability flow, {trace}, tolerance {self.tolerance:g}, {self.calls.double().mean().item():.0f} calls, "
            f"halving the steps changed nats by {change:.1e}"
        )


def encode(denoise: Conditional, schedule: Schedule, e: Tensor, *, tolerance: float = 1e-5, context: tuple[Tensor, ...] = ()) -> Passage:
    """Data e [B, ...] -> noise z at the schedule's end."""
    field = _Field(denoise, schedule, e, context)
    u, calls = dormand_prince(field, e.double().flatten(1) * field.units(schedule.start)[0], schedule.start, schedule.end, tolerance)
    return Passage(field.out(u, schedule.end), calls)


def decode(denoise: Conditional, schedule: Schedule, z: Tensor, *, tolerance: float = 1e-5, context: tuple[Tensor, ...] = ()) -> Passage:
    """Noise z [B, ...] at the schedule's end -> data e, with the noise of the schedule's start: the inverse of `encode`."""
    field = _Field(denoise, schedule, z, context)
    u, calls = dormand_prince(field, z.double().flatten(1) / field.units(schedule.end)[1], schedule.end, schedule.start, tolerance)
    return Passage((u / field.units(schedule.start)[0]).view(z.shape).to(z), calls)


def log_density(
    denoise: Conditional,
    schedule: Schedule,
    e: Tensor,
    *,
    probes: Tensor | None = None,
    tolerance: float = 1e-5,
    context: tuple[Tensor, ...] = (),
) -> Density:
    """log p(e) of vectors or images e [B, ...], in nats; what the density is of, see above.

    Args:
        denoise: of the schedule's z, differentiable in it, with no randomness of its own.
        probes: signs [B, K, ...] for Hutchinson's estimate; None for the exact divergence, of as many backward passes as entries.
        tolerance: of the solver.
        context: tensors of B rows that the denoiser takes after z and t.
    """
    field, dims = _Field(denoise, schedule, e, context, trace=True, probes=probes), math.prod(e.shape[1:])
    alpha = field.units(schedule.start)[0]
    begin = torch.cat([alpha * e.double().flatten(1), e.new_zeros(len(e), field.columns, dtype=torch.float64)], 1)
    way = halved(field, begin, schedule.start, schedule.end, tolerance)

    def by_probe(end: Tensor) -> Tensor:
        """log p [B, K] from where u and the divergence came to."""
        prior = -0.5 * (end[:, :dims].square().sum(1, keepdim=True) + dims * math.log(2 * math.pi))
        return prior + dims * end[:, dims:] + dims * math.log(alpha)

    each, nats = by_probe(way.fine), by_probe(way.fine).mean(1)
    error = (nats - by_probe(way.coarse).mean(1)).abs()
    stderr = (
        None if probes is None else (each.std(1) if each.shape[1] > 1 else nats.new_full(nats.shape, math.nan)) / math.sqrt(each.shape[1])
    )
    return Density(nats, error, stderr, way.calls, field.out(way.fine[:, :dims], schedule.end), tolerance)


class _Field:
    """du/dlambda of flat rows; with `trace` beside it, per probe, its divergence over the number of entries."""

    def __init__(
        self,
        denoise: Conditional,
        schedule: Schedule,
        like: Tensor,
        context: tuple[Tensor, ...],
        *,
        trace: bool = False,
        probes: Tensor | None = None,
    ) -> None:
        self.denoise, self.schedule, self.context, self.trace = denoise, schedule, context, trace
        self.shape, self.like, self.dims = like.shape[1:], like, math.prod(like.shape[1:])
        self.probes = None if probes is None else probes.flatten(2)
        self.columns = 1 if probes is None else probes.shape[1]

    def units(self, log_snr: float) -> tuple[float, float]:
        """alpha of the variance-preserving units, and a unit of u in the schedule's z."""
        at = torch.tensor(log_snr, dtype=torch.float64)
        alpha = at.sigmoid().sqrt().item()
        return alpha, self.schedule.at(at)[0].item() / alpha

    def out(self, u: Tensor, log_snr: float) -> Tensor:
        """z in the schedule's units, in the shape and precision of what was given."""
        return (u * self.units(log_snr)[1]).view(-1, *self.shape).to(self.like)

    def __call__(self, log_snr: Tensor, state: Tensor, rows: Tensor) -> Tensor:
        u, alpha = state[:, : self.dims], log_snr.sigmoid().sqrt()[:, None]
        unit = self.schedule.at(log_snr)[0][:, None] / alpha
        with torch.set_grad_enabled(self.trace):
            z = (u * unit).to(self.like).requires_grad_(self.trace)
            t = self.schedule.time(log_snr.clamp(self.schedule.end, self.schedule.start)).to(self.like)
            mean, _ = self.denoise(z.view(-1, *self.shape), t, *(c[rows] for c in self.context))
            flat = mean.flatten(1)
            slope = (alpha * flat.detach().double() - alpha.square() * u) / 2
            if not self.trace:
                return slope
            trace = self._trace(flat, z, rows)
        return torch.cat([slope, (alpha * unit * trace / self.dims - alpha.square()) / 2], 1)

    def _trace(self, mean: Tensor, z: Tensor, rows: Tensor) -> Tensor:
        """tr dm/dz of each row, by each probe [R, K] or exactly [R, 1]; float64."""
        if self.probes is not None:
            signs = self.probes[rows].to(mean).unbind(1)
            return torch.stack([(_pulled(mean, z, sign) * sign).double().sum(1) for sign in signs], 1)
        axes = torch.eye(self.dims, dtype=mean.dtype, device=mean.device)
        return torch.stack([_pulled(mean, z, axis.expand_as(mean))[:, i] for i, axis in enumerate(axes)], 1).double().sum(1, keepdim=True)


def _pulled(mean: Tensor, z: Tensor, direction: Tensor) -> Tensor:
    """(dm/dz)^T times a direction."""
    return torch.autograd.grad(mean, z, direction, retain_graph=True, materialize_grads=True)[0]
