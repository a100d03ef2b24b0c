r"""The variational bound of a diffusion model, in T steps or in continuous time; nats of the data's measure.

    -log p(x) <= L_T + sum_t L_t + L_0
    L_T = KL(q(z_1 | x) || N(0, 1))                                 closed form
    L_t = KL(q(z_s | z_t, x) || p(z_s | z_t)),  s = t - 1/T         `solve.diffusion.bridge_kl`
    L_0 = -log p(x | z_0)                                           a mass that sums to one over the levels of x

As T grows the sum becomes an integral, 1/2 int -dSNR/dt E|e - m(z_t, t)|^2 dt, which depends on the schedule by its ends alone.

The sum is estimated without bias: a draw is a term from each of up to 24 equal parts of all terms, each
under its own noise. The LOGS are averaged, so the value stays a lower bound at every number of draws. `terms` reports all of them.

References:
    | Deep unsupervised learning using nonequilibrium thermodynamics (Sohl-Dickstein et al., 2015) | https://arxiv.org/abs/1503.03585
    | Denoising diffusion probabilistic models (Ho et al., 2020) | https://arxiv.org/abs/2006.11239
    | Variational diffusion models (Kingma et al., 2021) | https://arxiv.org/abs/2107.00630
"""

import math
from abc import ABC
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from likely.abilities import Likelihood
from likely.coded_chain import CodedChain
from likely.denoising import rows
from likely.logprob import LogProb
from likely.model import evaluating, expand_given
from likely.nets.conditioning import expand_like
from likely.nets.gamma import LearntShape
from likely.nets.partial import Told
from likely.noise import Noise
from likely.solve.diffusion import bridge_kl, prior_kl
from likely.solve.objectives import strata_error
from likely.solve.posterior import Posterior
from likely.solve.samplers import grid

__all__ = ["Terms", "VariationalBound"]

_EVALUATED, _VALIDATED = 24, 8  # terms of the bound per draw, in log_prob and in validation
_CHUNK = 2**16  # numbers per call of the net outside training
_CONTINUOUS = 128  # steps that stand for continuous time in ancestral sampling
_DECODED = 1 / 64  # share of the draws of continuous time, and of many steps, that are spent on L_0
_MANY = 128  # steps
_PARTS = 128  # of continuous time in a report: two for L_0, and the others for equal parts of time


class Terms(NamedTuple):
    """The parts of -log p(x) <= L_T + sum L_t + L_0, means over examples in the data's unit.

    Attributes:
        prior: L_T.
        steps: L_t, [T] from the cleanest to the noisiest; of continuous time in equal parts of it.
        decoder: L_0, with the nats of the relaxation.
        total: their sum.
        errors: standard errors of L_T, of all L_t together, of L_0 and of the sum: over examples, each under noise of its own.
        unit: such as "bits/dim".
        n: examples.
    """

    prior: float
    steps: Tensor
    decoder: float
    total: float
    errors: tuple[float, float, float, float]
    unit: str
    n: int


class VariationalBound(CodedChain, Likelihood, ABC):
    """A denoising model with the bound of its ancestral sampler, and a code of that length.

    Attributes:
        steps: T; 0 for continuous time.
    """

    bound_sampler: ClassVar[dict[str, Any]] = {"sampler": "ancestral"}
    steps: int

    def loss(self, x: Tensor, given: Tensor | None) -> Tensor:
        """The bound of each example in nats: one random term of it in training, stratified over the batch; several in evaluation."""
        noise = Noise(x)
        if not self.training:
            return self._bound(x, given, noise, self._strata(_VALIDATED)).mean(0)
        u = torch.arange(len(x), device=x.device) / len(x) + torch.rand(1, device=x.device)
        e, nats = self.lift(x, noise)
        return self._ends(e) - nats + self._term(e, x, self.shown(e, given), torch.randn_like(e), u % 1)

    def _log_prob(self, x: Tensor, given: Tensor | None, noise: Noise) -> LogProb:
        strata = self._strata(_EVALUATED)
        nats = -self._bound(x, given, noise, strata).view(strata, noise.draws, -1)
        how = f"L_T + L_t + L_0, T={self.steps}, {strata} of {self.steps + 1} terms, K={noise.draws}"
        if not self.steps:
            how = f"L_T + L_t + L_0 in continuous time, {strata} times, K={noise.draws}"
        how += "; uniform dequantization" if self.lift.dequantizes else ""
        return LogProb(nats.mean((0, 1)), "lower bound", stderr=strata_error(nats), how=how)

    @torch.no_grad()
    def terms(self, x: Tensor, given: Tensor | None = None, *, seed: int = 0) -> Terms:
        """Every term of the bound, once for each example [n, *shape]: T + 1 calls of the net."""
        at_once, given = max(1, _CHUNK // self.lift.space.dims), expand_given(given, len(x))
        with evaluating(self):
            parts = [self._terms(x[i : i + at_once], rows(given, i, at_once), seed) for i in range(0, len(x), at_once)]
        prior, steps, decoder = (torch.cat(part, -1) / self.space.nats_per_unit_of(x) for part in zip(*parts))
        sums = torch.stack([prior, steps.sum(0), decoder, prior + steps.sum(0) + decoder])
        errors = sums.std(1) / math.sqrt(len(x)) if len(x) > 1 else sums[:, 0] * math.nan
        of_prior, _, of_decoder, total = sums.mean(1).tolist()
        return Terms(of_prior, steps.mean(1), of_decoder, total, tuple(errors.tolist()), self.space.unit, len(x))

    def _terms(self, x: Tensor, given: Tensor | None, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """L_T [B], each L_t [T, B] and L_0 [B] of each example, nats."""
        noise = Noise(x, seed=seed)
        e, nats = self.lift(x, noise)
        edges, of_decoder = torch.linspace(0, 1, _PARTS + 1, dtype=torch.float64), round(_PARTS * _DECODED)
        if self.steps:
            later = torch.linspace(self._share, 1, self.steps + 1, dtype=torch.float64)
            edges, of_decoder = torch.cat([later.new_zeros(1), later]), 1
        every = self._drawn(e, x, given, noise, edges) * edges.diff().to(e.device)[:, None]
        prior = prior_kl(e, self.schedule.end).flatten(1).sum(1)
        return prior, every[of_decoder:], every[:of_decoder].sum(0) + self.lift.detail - nats

    def times(self, sampler: str, steps: int | None, word: str | None = None) -> Tensor:
        """The bound's own T + 1 times for the sampler that it belongs to."""
        return self.chain_times if sampler == "ancestral" and steps is None else super().times(sampler, steps, word)

    @property
    def chain_times(self) -> Tensor:
        return grid("time", self.schedule, (self.steps or _CONTINUOUS) + 1)

    def _strata(self, most: int) -> int:
        return min(most, self.steps + 1) if self.steps else most

    def _bound(self, x: Tensor, given: Tensor | None, noise: Noise, strata: int) -> Tensor:
        """Unbiased bounds on -log p(x) from one term of each of `strata` equal parts of them, nats [strata, draws * batch]."""
        e, nats = self.lift(x, noise)
        x, given = noise.repeat(x), None if given is None else noise.repeat(given)
        return self._drawn(e, x, given, noise, torch.linspace(0, 1, strata + 1, dtype=torch.float64)) + self._ends(e) - nats

    def _drawn(self, e: Tensor, x: Tensor, given: Tensor | None, noise: Noise, edges: Tensor) -> Tensor:
        """One term between each two edges of u in [0, 1], each over the chance that it is picked of all; nats [strata, rows of e]."""
        at_once = max(1, _CHUNK // e.numel())
        low, width = edges.tolist(), edges.diff().tolist()
        terms = []
        for group in torch.arange(len(width)).split(at_once):  # in one call of the net; the noise must not depend on how many
            u, eps = zip(*((low[k] + width[k] * noise.uniform(), noise.normal(*e.shape[1:]).to(e)) for k in group.tolist()))
            where = None if given is None else _copies(given, len(group))
            several = self._term(_copies(e, len(group)), _copies(x, len(group)), where, torch.cat(eps), torch.cat(u))
            terms.append(several.view(len(group), -1))
        return torch.cat(terms)

    def _ends(self, e: Tensor) -> Tensor:
        """L_T of each example and what is known of its L_0, nats [B]."""
        return prior_kl(e, self.schedule.end).flatten(1).sum(1) + self.lift.detail

    def _term(self, e: Tensor, x: Tensor, given: Told, eps: Tensor, u: Tensor) -> Tensor:
        """The term that u in [0, 1) picks of L_0 and the L_t, over the chance that it is picked; nats [B]."""
        return self._step(e, x, given, eps, u) if self.steps else self._instant(e, x, given, eps, u)

    def _step(self, e: Tensor, x: Tensor, given: Told, eps: Tensor, u: Tensor) -> Tensor:
        share = self._share
        term = (1 + (u.double() - share) / (1 - share) * self.steps).floor().long().clamp(0, self.steps)
        t = term.double() / self.steps
        alpha, sigma = self.level(t, e)
        nats = self.term_nats(term, e, x, self.posterior(alpha * e + sigma * eps, t, given)) / (self.steps + 1)
        return torch.where(term == 0, nats / share, nats * self.steps / (1 - share))

    @property
    def _share(self) -> float:
        """Of the draws that go to L_0: as to any other term, but more where there are so many that it would hardly ever be asked."""
        return 1 / (self.steps + 1) if self.steps < _MANY else _DECODED

    def term_nats(self, term: Tensor, e: Tensor, x: Tensor, posterior: Posterior) -> Tensor:
        """L_0 (term 0) less what is known of it, or L_t (1..T), [B], over the chance of 1 / (T + 1) with which it is picked; nats [B]."""
        t, s = term.double() / self.steps, (term - 1).clamp_min(0).double() / self.steps
        gain = self.schedule.log_snr(s).exp() - self.schedule.log_snr(t).exp()
        nats = bridge_kl(e, posterior.mean, posterior.var, expand_like(gain.to(e), e)).double().flatten(1).sum(1)
        first = term == 0
        # L_0 of reals is far below zero: estimating only its excess over what is known makes all terms alike
        nats[first] = -self.lift.log_prob(posterior[first], e[first], x[first]) - self.lift.detail
        return (self.steps + 1) * nats

    def _instant(self, e: Tensor, x: Tensor, given: Told, eps: Tensor, u: Tensor) -> Tensor:
        first = u < _DECODED
        t = torch.where(first, 0.0, (u.double() - _DECODED) / (1 - _DECODED))
        alpha, sigma = self.level(t, e)
        posterior = self.posterior(alpha * e + sigma * eps, t, given)
        fall = -self.schedule.shape.slope(t).detach() * self.schedule.log_snr(t).detach().exp()  # of the signal-to-noise ratio
        error = (e - posterior.mean).double().square().masked_fill(e.isnan(), 0.0)  # the padding of sets counts for nothing
        nats = 0.5 * fall * error.flatten(1).sum(1) / (1 - _DECODED)
        if self.training and isinstance(self.schedule.shape, LearntShape):
            nats[~first] += self.schedule.shape.steadied(t[~first], nats[~first])
        nats[first] = (-self.lift.log_prob(posterior[first], e[first], x[first]) - self.lift.detail) / _DECODED
        return nats


def _copies(v: Tensor, n: int) -> Tensor:
    return v.repeat(n, *[1] * (v.ndim - 1))
