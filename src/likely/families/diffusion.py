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

The sum over T + 1 terms is estimated without bias from K draws of a term and its noise, stratified over the terms. It is
the LOGS that are averaged, so the value stays a lower bound at every K. `sample` takes `steps` calls of the net; by
default it is the ancestral sampler of the bound's own T + 1, whose samples have the bound's distribution.

References:
    | Deep unsupervised learning using nonequilibrium thermodynamics (Sohl-Dickstein et al., 2015) | https://arxiv.org/abs/1503.03585
    | Denoising diffusion probabilistic models (Ho et al., 2020) | https://arxiv.org/abs/2006.11239
    | Variational diffusion models (Kingma et al., 2021) | https://arxiv.org/abs/2107.00630
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from likely.errors import UsageError, nearest
from likely.logprob import LogProb
from likely.model import Likelihood, Model, Recipe, expand_given
from likely.nets import net
from likely.nets.conditioning import expand_like
from likely.noise import Noise
from likely.solve.diffusion import SAMPLERS, bridge_kl, prior_kl
from likely.solve.posterior import Lift, Posterior
from likely.solve.schedule import schedule
from likely.space import Space

__all__ = ["Diffusion"]

_LAST_LOG_SNR = -5.0  # at t = 1, where what is left of the data is coded at its marginal variance
_CHUNK = 2**16  # numbers per call of the net outside training


class Diffusion(Model, Likelihood):
    """Variance-preserving diffusion in T discrete steps.

    Options:
        steps: T, of the bound and of the ancestral sampler.
        noise: schedule, "linear" (in log-SNR), "cosine" or "linear-beta".
        width, depth, dropout: of the net.
        word: another net than the default.
    """

    summary = "variance-preserving diffusion: full variational bound, ancestral, DDIM and DPM-Solver++ sampling"
    layouts = frozenset({"grid", "columns"})
    recipe = Recipe(lr=1e-3, ema=0.995, batch=64)
    bound_draws = 24
    sizes: ClassVar[dict[str, dict[str, Any]]] = {"tiny": {"steps": 16}, "small": {"steps": 64}, "base": {"steps": 256}}

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        steps: int | None = None,
        noise: str = "linear",
        word: str | None = None,
        width: int | None = None,
        depth: int | None = None,
        dropout: float | None = None,
    ) -> None:
        super().__init__(space, given=given, size=size)
        self.steps = self.options(size, steps=steps)["steps"]
        if self.steps < 1:
            raise UsageError(f"Got steps={self.steps}.", "Diffusion takes at least one step.")
        self.lift = Lift(space)
        self.schedule = schedule(noise, self.lift.log_snr, _LAST_LOG_SNR)
        chosen = {name: value for name, value in {"width": width, "depth": depth, "dropout": dropout}.items() if value is not None}
        self.net = net(self.lift.space, "denoiser", size, word=word, given=given, out=self.lift.width, **chosen)

    def forward(self, x: Tensor, given: Tensor | None = None, *, turn: str = "") -> Tensor:
        """One random term of the bound for each example, times their number: its expectation is the bound, in nats."""
        noise = Noise(x)
        place = torch.arange(len(x), device=x.device) / len(x)  # the batch is stratified over the terms, too
        return self._bound(x, given, noise, (place + torch.rand(1, device=x.device)) % 1)

    def _log_prob(self, x: Tensor, given: Tensor | None, noise: Noise) -> LogProb:
        draw = torch.arange(noise.draws, device=x.device).repeat_interleave(len(x))
        nats = -self._bound(x, given, noise, (draw + noise.uniform()) / noise.draws).view(noise.draws, -1)
        how = f"L_T + L_t + L_0, T={self.steps}, K={noise.draws}" + ("; uniform dequantization" if self.lift.dequantizes else "")
        return LogProb(nats.mean(0), "lower bound", stderr=_stratified_error(nats), how=how)

    def _bound(self, x: Tensor, given: Tensor | None, noise: Noise, u: Tensor) -> Tensor:
        """Unbiased -log p(x) bound of each draw, [draws * batch], from the term that u in [0, 1) picks."""
        e, nats = self.lift(x, noise)
        eps = noise.normal(*e.shape[1:]).to(e)
        term = (u.double() * (self.steps + 1)).long().clamp_max(self.steps)
        whole = (e, noise.repeat(x), eps, term, None if given is None else noise.repeat(given))
        size = len(e) if self.training else self._chunk
        parts = [self._term(*(None if v is None else v[i : i + size] for v in whole)) for i in range(0, len(e), size)]
        return (self.steps + 1) * torch.cat(parts) + prior_kl(e, self.schedule.end).flatten(1).sum(1) - nats

    def _term(self, e: Tensor, x: Tensor, eps: Tensor, term: Tensor, given: Tensor | None) -> Tensor:
        """L_0 where `term` is 0, otherwise L_t with t = term / T; nats [B]."""
        t, s = term.double() / self.steps, (term - 1).clamp_min(0).double() / self.steps
        alpha, sigma = (expand_like(c.to(e), e) for c in self.schedule(t))
        posterior = self._posterior(alpha * e + sigma * eps, t, given)
        gain = self.schedule.log_snr(s).exp() - self.schedule.log_snr(t).exp()
        nats = bridge_kl(e, posterior.mean, posterior.var, expand_like(gain.to(e), e)).double().flatten(1).sum(1)
        first = term == 0
        nats[first] = -self.lift.log_prob(posterior[first], e[first], x[first])
        return nats

    def _posterior(self, z: Tensor, t: Tensor, given: Tensor | None) -> Posterior:
        """p(x | z_t), z [B, *diffused shape] at times t [B]."""
        alpha, sigma = (expand_like(c.to(z), z) for c in self.schedule(t.double()))
        params = self.net(z, t.to(z), given).float().unflatten(1, (z.shape[1], self.lift.width))
        return self.lift.posterior(params, z, alpha, sigma)

    @property
    def _chunk(self) -> int:
        """Examples per call of the net where nothing is trained, which bounds memory."""
        return max(1, _CHUNK // self.lift.space.dims)

    @torch.no_grad()
    def sample(self, n: int, given: Tensor | None = None, *, sampler: str = "ancestral", steps: int | None = None) -> Tensor:
        """n examples in data units.

        Args:
            sampler: "ancestral", "ddim" or "dpm-solver".
            steps: calls of the net; by default the bound's T + 1.
        """
        if sampler not in SAMPLERS:
            raise UsageError(f"Unknown sampler '{sampler}'.", nearest(sampler, SAMPLERS))
        if steps is not None and steps < 1:
            raise UsageError(f"Cannot sample in {steps} steps.", "The least is one.")
        times = torch.linspace(1, 0, steps or self.steps + 1, dtype=torch.float64)
        given = expand_given(given, n)
        starts = range(0, max(n, 1), self._chunk)
        return torch.cat([self._walk(sampler, times, min(self._chunk, n - i), _rows(given, i, self._chunk)) for i in starts])

    def _walk(self, sampler: str, times: Tensor, n: int, given: Tensor | None) -> Tensor:
        """From noise to n examples, the last call of the net being the decoder's."""
        z = torch.randn(n, *self.lift.space.shape, device=next(self.parameters()).device)

        def denoise(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            posterior = self._posterior(z, t, given)
            return posterior.mean, posterior.var

        z = SAMPLERS[sampler](denoise, self.schedule, z, times)
        return self.lift.draw(self._posterior(z, times[-1].expand(n).to(z.device), given))


def _rows(given: Tensor | None, start: int, count: int) -> Tensor | None:
    return None if given is None else given[start : start + count]


def _stratified_error(nats: Tensor) -> Tensor | None:
    """Standard error of the mean over strata [K, B], one draw in each, by differences of neighbours; None for one draw."""
    return (nats.diff(dim=0).square().mean(0) / (2 * len(nats))).sqrt() if len(nats) > 1 else None
