r"""Latents and densities of models of noisy data, by the ordinary differential equation that has their marginals.

It is invertible, so that an example has a latent, the noise that it is carried to, and a density:

    log p(x) >= E_q(z_0 | x) [ log p(x | z_0) - log q(z_0 | x) + log p(z_0) ],       log p(z_0) = log N(z_1; 0, I) + int div

Entries of finitely many values are noised to z_0 and decoded by Bayes' rule, p(x | z_0), which is all but certain there; numbers
that are relaxed already are z_0 = alpha_0 e itself. So nothing is dequantized but what `Space.relax` dequantizes.

A set of n points has a latent of n points: each size is an equation of its own.

References:
    | Score-based generative modeling through stochastic differential equations (Song et al., 2021) | https://arxiv.org/abs/2011.13456
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from likely import pointsets
from likely.abilities import Latent
from likely.errors import UsageError
from likely.logprob import Kind, LogProb
from likely.model import Model, evaluating, expand_given, in_precision
from likely.nets.partial import Told
from likely.noise import Noise, log_mean_exp
from likely.solve.denoise import Denoise
from likely.solve.noise import Schedule
from likely.solve.posterior import Lift
from likely.solve.probability_flow import Density, decode, log_density
from likely.space import Relaxed, Space

__all__ = ["ProbabilityFlow"]

_EXACT_UP_TO, _PROBES = 16, 2  # entries whose divergence is exact, and signs that estimate it beyond


class ProbabilityFlow(Model, Latent, ABC):
    """Has a denoiser at every noise level of a schedule.

    Attributes:
        lift: of examples to the reals that are noised.
        tolerance: of the differential equation, by which densities and latents are solved.
    """

    lift: Lift
    schedule: Schedule

    def __init__(self, space: Space, *, given: Space | None = None, size: str = "small", tolerance: float | None = None) -> None:
        super().__init__(space, given=given, size=size)
        if tolerance is not None and not tolerance > 0:
            raise UsageError(
                f"A differential equation cannot be solved to a tolerance of {tolerance}.", "Give a small number, such as 1e-4."
            )
        # of many entries the solver's error is little beside that of the divergence's estimate
        usual = 1e-3 if size == "tiny" or space.dims > _EXACT_UP_TO else 1e-4
        self.tolerance = usual if tolerance is None else tolerance

    @abstractmethod
    def denoiser(self, given: Told, guidance: float = 1.0) -> Denoise:
        """z on the schedule's own scale and t [B] -> mean and variance of the clean example."""

    @property
    def deviation(self) -> float:
        """Of the noise that is left at t = 0."""
        return math.exp(-self.schedule.start / 2)

    def ode_log_prob(self, x: Tensor, given: Tensor | None, noise: Noise) -> LogProb:
        """log p(x) of what the differential equation draws, solved for each row with steps of its own; nats [B].

        The divergence is exact for up to 16 entries; beyond, Hutchinson's estimate by signs that are a function of the row. Its standard
        error is that between draws, which covers their noise, too; of a single draw, and where only signs are random, that between signs.
        """
        solved, nats = self._solved(x, given, noise)
        kind: Kind = "lower bound" if self.lift.levels is not None or self.lift.dequantizes else "numerical"
        how = "; ".join(h for h in (solved.how, self.lift.dequantizes and "uniform dequantization") if h)
        how += f", K={noise.draws}" if kind == "lower bound" else ""
        if solved.stderr is None:
            return LogProb(log_mean_exp(nats, noise.draws), kind, how=how)
        # exp of an estimate is none of exp: logs are averaged, which stays a bound
        each, by_signs = nats.view(noise.draws, -1), solved.stderr.view(noise.draws, -1).square().mean(0).sqrt()
        between = kind == "lower bound" and noise.draws > 1
        how += "; error of the divergence alone" if kind == "lower bound" and not between else ""
        return LogProb(each.mean(0), kind, stderr=(each.std(0) if between else by_signs) / math.sqrt(noise.draws), how=how)

    def _solved(self, x: Tensor, given: Tensor | None, noise: Noise) -> tuple[Density, Tensor]:
        """The equation's density of the lifted example, and the bound on log p(x), nats [draws * B]."""
        e, nats = self.lift(x, noise)
        blurred, more = self.lift.noised(e, self.deviation, noise)
        probes = None if self.lift.space.dims <= _EXACT_UP_TO else noise.uniform(_PROBES, *e.shape[1:]).sub(0.5).sign()
        context = () if given is None else (noise.repeat(given),)
        # in double precision a row's steps do not hang on what is beside it in a matrix product
        with evaluating(self), in_precision(self, torch.float64):
            solved = _joined(
                blurred,
                [
                    (rows, self._density(blurred[rows, :n], None if probes is None else probes[rows, :, :n], _each(context, rows)))
                    for rows, n in self._by_size(blurred)
                ],
            )
        return solved, solved.nats + nats + more + self.lift.log_decoded(noise.repeat(x), blurred, self.deviation)

    def _density(self, e: Tensor, probes: Tensor | None, context: tuple[Tensor, ...]) -> Density:
        how = {"probes": probes, "tolerance": self.tolerance, "context": context}
        return log_density(self._conditional, self.schedule, e.double(), **how)

    def _by_size(self, e: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Rows that one equation serves, and how many entries they have along their first axis: of sets, those of as many points."""
        if self.lift.space.layout != "set":
            yield torch.arange(len(e), device=e.device), e.shape[1]
            return
        number = pointsets.counts(e)
        for n in number.unique().tolist():
            yield (number == n).nonzero()[:, 0], n

    def _conditional(self, z: Tensor, t: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.denoiser(given)(z, t)

    @property
    def latent(self) -> Space:
        """Standard normal: of sets as many points as they have, of anything else one vector."""
        return self.lift.space if self.lift.space.layout == "set" else Space.reals(self.lift.space.dims)

    def encode(self, x: Tensor, given: Tensor | None = None, draws: int = 1, noise: Noise | None = None) -> Relaxed:
        """The noise that the differential equation carries an example to, standard normal, and log p(x) less the noise's."""
        noise = noise or Noise(x, draws)
        solved, nats = self._solved(x, given, noise)
        z = (solved.z / self.schedule.prior_scale).view(-1, *self.latent.shape).to(torch.get_default_dtype())
        normal = (-0.5 * (z.double().square() + math.log(2 * math.pi))).nan_to_num(0.0).flatten(1).sum(1)
        return Relaxed(z, nats - normal, exact=False, draws=noise.draws, how=solved.how)

    @torch.no_grad()
    def decode(self, z: Tensor, given: Tensor | None = None) -> Tensor:
        """Examples from standard normal noise [B, *latent shape], NaN where sets have no points, by the differential equation."""
        noise = self.schedule.prior_scale * z.view(-1, *self.lift.space.shape).to(self.lift.zero)
        given, e = expand_given(given, len(z)), torch.full_like(noise, math.nan)
        with evaluating(self):
            for rows, n in self._by_size(noise):
                context = _each(() if given is None else (given,), rows)
                e[rows, :n] = decode(self._conditional, self.schedule, noise[rows, :n], tolerance=self.tolerance, context=context).to
        return self.lift.settle(e, self.deviation)


def _each(values: tuple[Tensor, ...], rows: Tensor) -> tuple[Tensor, ...]:
    return tuple(v[rows] for v in values)


def _joined(e: Tensor, parts: list[tuple[Tensor, Density]]) -> Density:
    """One density of all rows of e, from those of some each; NaN where a row of the noise has no entry."""
    z, of = torch.full_like(e, math.nan, dtype=torch.float64), {}
    for name in ("nats", "error", "stderr", "calls"):
        values = [getattr(part, name) for _, part in parts]
        of[name] = None if values[0] is None else torch.cat(values)[torch.cat([rows for rows, _ in parts]).argsort()]
    for rows, part in parts:
        z[rows, : part.z.shape[1]] = part.z
    return Density(**of, z=z, tolerance=parts[0][1].tolerance)
