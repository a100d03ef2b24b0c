r"""What every model of noisy data does alike: draw and vary, by what it says of the clean example.

    z_t = alpha_t e + sigma_t eps,   eps ~ N(0, I)          p(e | z_t) has the mean m(z_t, t) and variance V(z_t, t)

e is the example lifted to reals (`solve.posterior.Lift`). A family says what p(e | z_t) is, for alpha^2 + sigma^2 = 1; other scalings
are changes of variable, made here. Any sampler then walks from noise to data, or from part of the noise to variations of an example.
Latents and densities are those of the differential equation (`probability_flow`); fills are walks held to what is known (`partly_known`).

References:
    | Classifier-free diffusion guidance (Ho and Salimans, 2022) | https://arxiv.org/abs/2207.12598
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from likely.abilities import Traced, Varied
from likely.errors import UsageError, nearest
from likely.model import Model, evaluating, expand_given
from likely.nets.conditioning import expand_like
from likely.nets.known import Knowledge
from likely.nets.partial import Told
from likely.noise import Noise
from likely.probability_flow import ProbabilityFlow
from likely.solve.denoise import Denoise, Watched
from likely.solve.guidance import classifier_free
from likely.solve.parametrisation import convert
from likely.solve.posterior import Posterior
from likely.solve.samplers import GRIDS, SAMPLERS, find_sampler, grid, sampler_options

__all__ = ["CHUNK", "Denoising", "Plan", "See", "check_words", "rows"]

CHUNK = 2**16  # numbers per call of the net outside training
See = Callable[[Tensor, Tensor, Tensor], None]  # what each call of the net was for: z, t [B] and the mean
_SOLVER = "dpm-solver", 16
_STRAIGHT = ("ddim", "euler", "heun", "dpm-solver")  # samplers that add no noise of their own


class Plan(NamedTuple):
    """How to draw: a sampler with its options, when it calls the net (from 1 to 0), and how much `given` is overstated."""

    sampler: str
    options: dict[str, Any]
    times: Tensor
    guidance: float


class Denoising(ProbabilityFlow, Traced, Varied, ABC):
    """Says what the clean example is, given a noisy one.

    Attributes:
        usual: sampler, and how many times the net is called at by it, where none are asked for.
        even: samplers that walk evenly in time, and not in log-SNR, where no grid is asked for.
        drawn_by: the sampler of the last examples, and its calls of the net, for people to read.
        gaussian: whether the noise of an example is normal, so that samplers may add noise.
    """

    usual: tuple[str, int] = _SOLVER
    even: frozenset[str] = frozenset()
    drawn_by: str = ""
    gaussian: bool = True

    @abstractmethod
    def posterior(self, z: Tensor, t: Tensor, given: Any) -> Posterior:
        """p(e | z_t), z [B, *lifted shape] of variance-preserving scale at times t [B]; `given` is a tensor, None, or what is shown
        to a model that learns to inpaint."""

    def level(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha_t, sigma_t) of the variance-preserving scale, t [B], to broadcast over `like` [B, ...]."""
        log_snr = self.schedule.log_snr(t.double()).detach()
        return expand_like(log_snr.sigmoid().sqrt().to(like), like), expand_like((-log_snr).sigmoid().sqrt().to(like), like)

    def clean(self, said: Tensor, prediction: str, z: Tensor, t: Tensor) -> Tensor:
        """The mean of the clean example from what a net says at z of variance-preserving scale."""
        return convert(said, prediction, "x0", z * self.scale(t, z), self.schedule, t)

    def scale(self, t: Tensor, like: Tensor) -> Tensor:
        """The schedule's own scale over the variance-preserving one, (alpha^2 + sigma^2)^(1/2), to broadcast over `like`."""
        return expand_like(torch.hypot(*self.schedule(t.double())).to(like), like)

    def denoiser(self, given: Told, guidance: float = 1.0) -> Denoise:
        """What samplers call: z on the schedule's own scale and t [B] -> mean and variance of the clean example."""

        def under(condition: Told) -> Denoise:
            def denoise(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
                posterior = self.posterior(z / self.scale(t, z), t, condition)
                return posterior.mean, posterior.var

            return denoise

        if guidance == 1.0:
            return under(given)
        if not math.isfinite(guidance):
            raise UsageError(f"Got guidance={guidance}.", "1 is the conditional model, 0 the unconditional one.")
        if self.given_space is None:
            raise UsageError("This model is unconditional, p(x): there is nothing to guide by.", "Fit it with --given to condition it.")
        if not any(part.drop for part in self.modules() if isinstance(part, Knowledge)):
            raise UsageError("This model has not learnt to do without what it is given, as guidance asks.", "Fit it with --drop 0.1.")
        return classifier_free(under(given), under(None), self.schedule, guidance)

    def decoded(self, z: Tensor, t: Tensor, given: Told, guidance: float = 1.0) -> Tensor:
        """Draws from p(x | z_t), z on the schedule's own scale; under guidance linear in the mean and in the log-mass of levels."""
        z = z / self.scale(t, z)
        posterior = self.posterior(z, t, None if guidance == 0.0 else given)
        if guidance not in (0.0, 1.0):
            posterior = self.posterior(z, t, None).towards(posterior, guidance)
        return self.lift.draw(posterior)

    # -- sample ---------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        n: int,
        given: Tensor | None = None,
        *,
        sampler: str | None = None,
        steps: int | None = None,
        grid: str | None = None,
        guidance: float = 1.0,
        eta: float | None = None,
        churn: float | None = None,
        corrections: int | None = None,
        variance: str | None = None,
    ) -> Tensor:
        """n examples in data units.

        Args:
            sampler: "dpm-solver", "ddim", "ancestral", "euler", "heun", "dpm-solver-sde", "predictor-corrector" or "langevin".
            steps: noise levels that the net is called at, once each by most samplers.
            grid: how they are spaced: "log-snr", "karras" or "time"; by default as suits the model and the sampler.
            guidance: scale of classifier-free guidance: 1 is the conditional model, 0 the unconditional one, more overstates `given`,
                less leans away from it.
            eta: of "ddim" and "dpm-solver-sde": noise that is added, from 0 to 1.
            churn: of "euler" and "heun": noise that is added before steps.
            corrections: Langevin steps at each level, of "predictor-corrector" and "langevin".
            variance: of "ancestral": "posterior", "small" or "large".
        """
        options = {"eta": eta, "churn": churn, "corrections": corrections, "variance": variance}
        plan = self.plan(sampler, steps, grid, guidance, {name: value for name, value in options.items() if value is not None})
        given, size = expand_given(given, n), max(1, CHUNK // self.lift.space.dims)
        with evaluating(self):
            return torch.cat([self.drawn(plan, min(size, n - i), rows(given, i, size)) for i in range(0, max(n, 1), size)])

    def plan(self, sampler: str | None, steps: int | None, grid: str | None, guidance: float, options: dict[str, Any]) -> Plan:
        """How to draw; the model's own ways where nothing is asked for.

        Raises: UsageError for what is unknown, and for samplers that the model cannot be drawn from by.
        """
        sampler = sampler or self.usual[0]
        known = sampler_options(sampler)
        for option in options:
            if option not in known:
                having = [name for name in SAMPLERS if option in sampler_options(name)]
                raise UsageError(f"The sampler '{sampler}' has no option '{option}'.", f"Those that have: {', '.join(having)}.")
        if not self.gaussian and (sampler not in _STRAIGHT or any(options.values())):
            raise UsageError(
                f"The sampler '{sampler}' adds noise, which is wrong where noise was coupled to examples in training.",
                f"Take one of {', '.join(_STRAIGHT)}.",
            )
        return Plan(sampler, options, self.times(sampler, steps, grid), guidance)

    def times(self, sampler: str, steps: int | None, word: str | None = None) -> Tensor:
        """When the net is called, from 1 to 0."""
        word = word or ("time" if sampler in self.even else GRIDS[0])
        usual = self.usual[1] if sampler == self.usual[0] else _SOLVER[1]
        return grid(word, self.schedule, usual if steps is None else steps)

    def drawn(self, plan: Plan, n: int, given: Tensor | None, see: See | None = None) -> Tensor:
        """From noise to n examples, the last call of the net being the decoder's."""
        return self._walked(plan, self.schedule.prior_scale * self.lift.start(n), given, see)

    def _walked(self, plan: Plan, z: Tensor, given: Tensor | None, see: See | None = None) -> Tensor:
        """From z at the first of a plan's times."""
        watched = Watched(self.denoiser(given, plan.guidance), see)
        begun = z.isfinite()
        z = find_sampler(plan.sampler)(watched, self.schedule, z, plan.times, **plan.options)
        if plan.guidance != 1.0 and not bool(z[begun].isfinite().all()):
            raise UsageError(f"A guidance of {plan.guidance:g} carries draws beyond all numbers.", "Guide by less: 2 to 10 is usual.")
        calls = (watched.calls + 1) * (1 if plan.guidance in (0.0, 1.0) else 2)  # with that of `decoded`
        self.drawn_by = f"{plan.sampler}, {calls} call{'s' * (calls > 1)} of the net"
        return self.decoded(z, plan.times[-1].expand(len(z)).to(z.device), given, plan.guidance)

    @torch.no_grad()
    def vary(
        self,
        x: Tensor,
        given: Tensor | None = None,
        *,
        strength: float = 0.5,
        sampler: str | None = None,
        steps: int | None = None,
        guidance: float = 1.0,
    ) -> Tensor:
        """Others like x [n, *shape] (image to image): noise is added up to a level, and a sampler walks back from there.

        Args:
            strength: of the noise, as a share of the sampler's levels: 0 gives x all but back, 1 anything.
            given: what the others are conditioned on, which may be another than x had.
            sampler, steps, guidance: as of `sample`; as large a share of the steps is walked.

        References:
            | SDEdit: guided image synthesis and editing with stochastic differential equations (Meng et al., 2022) | https://arxiv.org/abs/2108.01073
        """
        if not 0 <= strength <= 1:
            raise UsageError(f"A strength of {strength} is no share of the noise.", "It goes from 0 to 1.")
        self.space.check(x)
        if not self.gaussian:
            raise UsageError(
                "Noise was coupled to examples in training, so they cannot have any noise.", "Train with coupling=independent."
            )
        plan = self.plan(sampler or _SOLVER[0], _SOLVER[1] if steps is None else steps, GRIDS[0], guidance, {})
        given = expand_given(given, len(x))
        plan = plan._replace(times=plan.times[round((1 - strength) * (len(plan.times) - 1)) :])
        with evaluating(self):
            e, _ = self.lift(x, Noise(x))
            alpha, sigma = self.schedule(plan.times[0].to(e.device))
            return self._walked(plan, (alpha * e + sigma * torch.randn_like(e)).to(e), given)

    @torch.no_grad()
    def trace(
        self,
        n: int,
        given: Tensor | None = None,
        *,
        steps: int | None = None,
        sampler: str | None = None,
        grid: str | None = None,
        guidance: float = 1.0,
        eta: float | None = None,
        churn: float | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """n examples on their way from noise: at each call of the net (x [n, *shape] in data units, which entries are hidden: none).

        Options are those of `sample`.
        """
        seen: list[Tensor] = []
        with evaluating(self):
            options = {name: value for name, value in {"eta": eta, "churn": churn}.items() if value is not None}
            plan, given = self.plan(sampler, steps, grid, guidance, options), expand_given(given, n)
            x = self.drawn(plan, n, given, lambda z, t, mean: seen.append(z / self.scale(t, z)))
            frames = [*map(self.lift.nearest, seen), x]  # afterwards, so that x is what `sample` draws from the same random state
        yield from ((each, torch.zeros_like(each, dtype=torch.bool)) for each in frames)


def rows(given: Tensor | None, start: int, count: int) -> Tensor | None:
    """Some rows of what is given, if anything is."""
    return None if given is None else given[start : start + count]


def check_words(model: Model, **chosen: str) -> None:
    """Raise a UsageError for a word that is not one of its option's."""
    for option, word in chosen.items():
        if word not in model.words[option]:
            raise UsageError(f"Unknown {option} '{word}'.", nearest(word, model.words[option]))
