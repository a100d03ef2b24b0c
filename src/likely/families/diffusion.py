r"""Variance-preserving diffusion with its full variational bound.

Noise is added to x, lifted to centred and scaled reals e(x), in T steps: z_t = alpha_t e(x) + sigma_t eps. A denoiser
says what x was; the model walks back from z_1 ~ N(0, 1). Its bound has three parts, all in nats of the data's measure:

    -log p(x) <= L_T + sum_t L_t + L_0
    L_T = KL(q(z_1 | x) || N(0, 1))                                 closed form
    L_t = KL(q(z_s | z_t, x) || p(z_s | z_t)),  s = t - 1/T         `solve.diffusion.bridge_kl`
    L_0 = -log p(x | z_0)                                           a mass that sums to one over the levels of x

One net serves all three: its output is a posterior p(x | z_t) of each entry (`solve.posterior`), of which L_t takes mean
and variance and L_0 the mass. Entries of finitely many values are diffused where they are, and not dequantized;
decimals and reals are relaxed, and the nats of the relaxation are added.

The sum over T + 1 terms is estimated without bias: a draw is a term from each of up to 24 equal parts of them, each
under its own noise. The LOGS are averaged, so the value stays a lower bound at every number of draws.

`sample` takes `steps` calls of the net. The bound belongs to the ancestral sampler with T + 1 of them; a solver of order
two draws as good examples in far fewer, and is the default.

References:
    | Deep unsupervised learning using nonequilibrium thermodynamics (Sohl-Dickstein et al., 2015) | https://arxiv.org/abs/1503.03585
    | Denoising diffusion probabilistic models (Ho et al., 2020) | https://arxiv.org/abs/2006.11239
    | Variational diffusion models (Kingma et al., 2021) | https://arxiv.org/abs/2107.00630
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from likely.errors import UsageError
from likely.logprob import LogProb
from likely.model import Likelihood, Model, Recipe, expand_given
from likely.nets import net as build_net
from likely.nets.conditioning import expand_like
from likely.noise import Noise
from likely.solve.diffusion import bridge_kl, prior_kl
from likely.solve.noise import noise_schedule
from likely.solve.posterior import Posterior
from likely.solve.samplers import find_sampler, grid
from likely.solve.set_lift import lift_of
from likely.space import Space

__all__ = ["Diffusion"]

_SOLVER_STEPS = 16
_LAST_LOG_SNR = -5.0  # at t = 1, where what is left of the data is coded at its marginal variance
_EVALUATED, _VALIDATED = 24, 8  # terms of the bound per draw, in log_prob and in validation
_CHUNK = 2**16  # numbers per call of the net outside training
# a small net on vectors is as fast on large batches, which average out the terms' noise
_COLUMNS = Recipe(lr=2e-3, weight_decay=0.01, ema=0.995, batch=256)


class Diffusion(Model, Likelihood):
    """Variance-preserving diffusion in T discrete steps.

    Options:
        steps: T, of the bound and of the ancestral sampler.
        schedule: of noise, "tapered", "linear" (in log-SNR), "cosine" or another of `solve.shapes`.
        width, depth, dropout: of the net.
        net: another than the default.
    """

    summary = "variance-preserving diffusion: full variational bound, ancestral, DDIM and DPM-Solver++ sampling"
    layouts = frozenset({"grid", "columns", "set"})
    recipe = Recipe(lr=4e-3, weight_decay=0.01, ema=0.995, batch=64)  # of grids
    bound_draws = 1
    bound_sampler: ClassVar[dict[str, Any]] = {"sampler": "ancestral"}
    sizes: ClassVar[dict[str, dict[str, Any]]] = {"tiny": {"steps": 8}, "small": {"steps": 64}, "base": {"steps": 256}}

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        steps: int | None = None,
        schedule: str = "tapered",
        net: str | None = None,
        width: int | None = None,
        depth: int | None = None,
        dropout: float | None = None,
    ) -> None:
        super().__init__(space, given=given, size=size)
        self.steps = self.options(size, steps=steps)["steps"]
        if self.steps < 1:
            raise UsageError(f"Got steps={self.steps}.", "Diffusion takes at least one step.")
        if space.layout == "columns":
            self.recipe = _COLUMNS
        self.lift = lift_of(space)
        self.schedule = noise_schedule(schedule, self.lift.log_snr, _LAST_LOG_SNR)
        chosen = {name: value for name, value in {"width": width, "depth": depth, "dropout": dropout}.items() if value is not None}
        self.net = build_net(self.lift.space, "denoiser", size, word=net, given=given, out=self.lift.width, **chosen)

    def forward(self, x: Tensor, given: Tensor | None = None, *, turn: str = "") -> Tensor:
        """The bound of each example in nats: one random term of it in training, stratified over the batch; several in evaluation."""
        noise = Noise(x)
        if not self.training:
            return self._bound(x, given, noise, min(_VALIDATED, self.steps + 1)).mean(0)
        u = torch.arange(len(x), device=x.device) / len(x) + torch.rand(1, device=x.device)
        e, nats = self.lift(x, noise)
        return self._ends(e) - nats + self._term(e, x, given, torch.randn_like(e), u % 1)

    def _log_prob(self, x: Tensor, given: Tensor | None, noise: Noise) -> LogProb:
        strata = min(_EVALUATED, self.steps + 1)
        nats = -self._bound(x, given, noise, strata).view(strata, noise.draws, -1)
        # neighbouring strata differ by noise and by what the terms differ: the error is rather over- than underestimated
        error = (nats.diff(dim=0).square().mean((0, 1)) / (2 * strata * noise.draws)).sqrt() if strata > 1 else None
        how = f"L_T + L_t + L_0, T={self.steps}, {strata} of {self.steps + 1} terms, K={noise.draws}"
        how += "; uniform dequantization" if self.lift.dequantizes else ""
        return LogProb(nats.mean((0, 1)), "lower bound", stderr=error, how=how)

    def _bound(self, x: Tensor, given: Tensor | None, noise: Noise, strata: int) -> Tensor:
        """Unbiased bounds on -log p(x) from one term of each of `strata` equal parts of them, nats [strata, draws * batch]."""
        e, nats = self.lift(x, noise)
        x, given = noise.repeat(x), None if given is None else noise.repeat(given)
        at_once = max(1, _CHUNK // e.numel())
        terms = []
        for group in torch.arange(strata).split(at_once):  # in one call of the net; the noise must not depend on how many
            u, eps = zip(*(((k + noise.uniform()) / strata, noise.normal(*e.shape[1:]).to(e)) for k in group.tolist()))
            where = None if given is None else _copies(given, len(group))
            several = self._term(_copies(e, len(group)), _copies(x, len(group)), where, torch.cat(eps), torch.cat(u))
            terms.append(several.view(len(group), -1))
        return torch.cat(terms) + self._ends(e) - nats

    def _ends(self, e: Tensor) -> Tensor:
        """L_T of each example and what is known of its L_0, nats [B]."""
        return prior_kl(e, self.schedule.end).flatten(1).sum(1) + self.lift.detail

    def _term(self, e: Tensor, x: Tensor, given: Tensor | None, eps: Tensor, u: Tensor) -> Tensor:
        """The term that u in [0, 1) picks of L_0 and the L_t, times their number; nats [B]."""
        term = (u.double() * (self.steps + 1)).long().clamp_max(self.steps)
        t, s = term.double() / self.steps, (term - 1).clamp_min(0).double() / self.steps
        alpha, sigma = (expand_like(c.to(e), e) for c in self.schedule(t))
        posterior = self._posterior(alpha * e + sigma * eps, t, given)
        gain = self.schedule.log_snr(s).exp() - self.schedule.log_snr(t).exp()
        nats = bridge_kl(e, posterior.mean, posterior.var, expand_like(gain.to(e), e)).double().flatten(1).sum(1)
        first = term == 0
        # L_0 of reals is far below zero: estimating only its excess over what is known makes all terms alike
        nats[first] = -self.lift.log_prob(posterior[first], e[first], x[first]) - self.lift.detail
        return (self.steps + 1) * nats

    def _posterior(self, z: Tensor, t: Tensor, given: Tensor | None) -> Posterior:
        """p(x | z_t), z [B, *diffused shape] at times t [B]."""
        alpha, sigma = (expand_like(c.to(z), z) for c in self.schedule(t.double()))
        params = self.net(z, t.to(z), given).float().unflatten(1, (z.shape[1], self.lift.width))
        return self.lift.posterior(params, z, alpha, sigma)

    @torch.no_grad()
    def sample(self, n: int, given: Tensor | None = None, *, sampler: str = "dpm-solver", steps: int | None = None) -> Tensor:
        """n examples in data units.

        Args:
            sampler: of `solve.samplers`.
            steps: levels of noise that the net is called at, once each by most samplers; by default 16, and the bound's T + 1 for
                "ancestral".
        """
        find_sampler(sampler)
        times = self._times(sampler, steps)
        given, size = expand_given(given, n), max(1, _CHUNK // self.lift.space.dims)
        starts = range(0, max(n, 1), size)
        return torch.cat([self._walk(sampler, times, min(size, n - i), _rows(given, i, size)) for i in starts])

    def _times(self, sampler: str, steps: int | None) -> Tensor:
        """When the net is called, from 1 to 0: the bound's own times for its sampler, or even in log-SNR."""
        if steps is None and sampler == "ancestral":
            return torch.linspace(1, 0, self.steps + 1, dtype=torch.float64)
        return grid("log-snr", self.schedule, _SOLVER_STEPS if steps is None else steps)

    def _walk(self, sampler: str, times: Tensor, n: int, given: Tensor | None) -> Tensor:
        """From noise to n examples, the last call of the net being the decoder's."""
        z = self.lift.start(n, next(self.parameters()).device)

        def denoise(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            posterior = self._posterior(z, t, given)
            return posterior.mean, posterior.var

        z = find_sampler(sampler)(denoise, self.schedule, z, times)
        return self.lift.draw(self._posterior(z, times[-1].expand(n).to(z.device), given))


def _copies(v: Tensor, n: int) -> Tensor:
    return v.repeat(n, *[1] * (v.ndim - 1))


def _rows(given: Tensor | None, start: int, count: int) -> Tensor | None:
    return None if given is None else given[start : start + count]
