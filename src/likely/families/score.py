r"""Score-based models: the gradient of the log-density of noisy data at every noise level, and the equations that it drives.

    dz = f(t) z dt + g(t) dw,       dz = [f z - g^2 s(z, t)] dt + g dw~ (backwards),       s(z, t) = grad_z log p_t(z)

The stochastic equation `sde` is one of four: "vp", whose variance stays one; "ve", whose variance grows, noise added to data as they are
(the levels of NCSN); "sub-vp", whose noise is less than that of "vp" at the same signal; or "karras", "ve" by the levels of EDM. What s is
trained by:

    denoising     E |sigma s(z_t, t) + eps|^2, the score of what noise was added                     (Vincent, 2011)
    sliced        E [ v . d(v . s)/dz + |s|^2 / 2 ] sigma^2 for random signs v: no target is needed  (Song et al., 2019)
    explicit      E [ tr ds/dz + |s|^2 / 2 ] sigma^2, for few entries                                (Hyvarinen, 2005)
    likelihood    denoising under the weight g^2, by which it bounds the likelihood                  (Song et al., 2021)
    v             denoising under the weight 1 / alpha^2, |v(z_t, t) - (alpha eps - sigma e)|^2      (Karras et al., 2022)

All five have the same minimum. The likelihood is that of the ordinary differential equation with the same marginals (`denoising`).
`noise_levels` trains at so many noise levels alone, evenly in log-SNR, as NCSN does for annealed Langevin dynamics.

`edm` is the recipe of EDM: its noise, at levels that are lognormal in training, drawn by Heun's method at levels even in sigma^(1/7). Its
net F sees z / (1 + sigma^2)^(1/2) and log(sigma) / 4 and says -v, for data of deviation one, as lifted data are; and the objective v is its
weight of the clean example's error, (1 + sigma^2) / sigma^2.

References:
    | Estimation of non-normalized statistical models by score matching (Hyvarinen, 2005) | https://jmlr.org/papers/v6/hyvarinen05a.html
    | A connection between score matching and denoising autoencoders (Vincent, 2011) | https://doi.org/10.1162/NECO_a_00142
    | Sliced score matching (Song et al., 2019) | https://arxiv.org/abs/1905.07088
    | Generative modeling by estimating gradients of the data distribution (Song and Ermon, 2019) | https://arxiv.org/abs/1907.05600
    | Score-based generative modeling through stochastic differential equations (Song et al., 2021) | https://arxiv.org/abs/2011.13456
    | Maximum likelihood training of score-based diffusion models (Song et al., 2021) | https://arxiv.org/abs/2101.09258
    | Elucidating the design space of diffusion-based generative models (Karras et al., 2022) | https://arxiv.org/abs/2206.00364
"""

import math
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from likely.abilities import Likelihood
from likely.denoising import check_words
from likely.errors import UsageError
from likely.logprob import LogProb
from likely.model import Recipe
from likely.nets.partial import Told
from likely.noise import Noise
from likely.partly_known import PartlyKnown
from likely.solve.noise import noise_schedule
from likely.solve.objectives import TIMES, stratified
from likely.solve.parametrisation import preconditioning
from likely.solve.posterior import Posterior
from likely.solve.score_matching import explicit, sliced
from likely.solve.set_lift import lift_of
from likely.space import Space

__all__ = ["ScoreModel"]

OBJECTIVES = ("denoising", "likelihood", "v", "sliced", "explicit")
SHAPES = {
    "vp": ("linear-beta", 6.0, -10.0, "vp"),
    "sub-vp": ("linear-beta", 6.0, -10.0, "sub-vp"),
    "ve": ("linear", 6.0, -8.0, "ve"),
    # sigma from .002 to 80 for data of deviation .5, so twice that for those of one
    "karras": ("karras", -2 * math.log(0.004), -2 * math.log(160.0), "ve"),
}
_HEUN = "heun", 18  # EDM's, 35 calls
_LEVELLED = frozenset({"heun", "euler"})  # samplers that keep to Karras' levels; in few calls dpm-solver is nearer by even log-SNR
_MOST_EXPLICIT = 16  # entries, each of which costs a pass backward


class ScoreModel(PartlyKnown, Likelihood):
    """The score of noisy data, by one of the stochastic equations.

    Args:
        sde: "vp", "ve", "sub-vp" or "karras".
        objective: "denoising", "likelihood", "v", "sliced" or "explicit".
        times: at which it is trained: "uniform", "logit-normal" or "lognormal".
        noise_levels: of training; 0 for all.
        inpaint: whether it also learns to draw any entries given the others, for fills.
        tolerance: of the differential equation that log_prob solves.
        net: another than the default; its options are width, depth, dropout and those that it has besides.
    """

    summary = "scores of noisy data (NCSN, VP, VE and sub-VP equations); likelihood by the ODE"
    layouts = frozenset({"grid", "columns", "set"})
    recipe = Recipe(lr=2e-3, ema=0.995, batch=64)
    net_role = "denoiser"
    words: ClassVar[dict[str, tuple[str, ...]]] = {"sde": tuple(SHAPES), "objective": OBJECTIVES, "times": tuple(TIMES)}

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        sde: str = "vp",
        objective: str = "denoising",
        times: str = "uniform",
        noise_levels: int = 0,
        tolerance: float | None = None,
        inpaint: bool = False,
        net: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(space, given=given, size=size, tolerance=tolerance)
        check_words(self, sde=sde, objective=objective, times=times)
        if times != "uniform" and (objective == "likelihood" or noise_levels):
            told = "The objective 'likelihood' is a mean over uniform times" if objective == "likelihood" else "Levels of noise are even"
            raise UsageError(f"{told}, not {times} ones.", "Leave times=uniform.")
        if space.layout == "columns":
            self.recipe = replace(self.recipe, batch=256)
        self.lift = lift_of(space, few=0)
        if objective == "explicit" and self.lift.space.dims > _MOST_EXPLICIT:
            raise UsageError(
                f"Explicit score matching of {self.lift.space.dims} entries would take as many passes backward.", "Take objective=sliced."
            )
        self.objective, self.trained_at, self.noise_levels = objective, times, noise_levels
        shape, start, end, scaling = SHAPES[sde]
        self.schedule, self.levelled = noise_schedule(shape, max(self.lift.log_snr, start), end, scaling=scaling), sde == "karras"
        if self.levelled:
            self.usual, self.even = _HEUN, _LEVELLED
        self.inpaint = inpaint
        self.net = self.build(net, given, 1, options)

    def forward(self, x: Tensor, given: Tensor | None = None, *, turn: str = "") -> Tensor:
        e, _ = self.lift(x, Noise(x))
        told = self.shown(e, given)
        t, eps = self._times(stratified(len(e), e.device)), torch.randn_like(e)
        alpha, sigma = self.level(t, e)
        z = alpha * e + sigma * eps
        if self.objective == "v":
            return self.unknown(alpha * eps - sigma * e - self._said(z, t, told), e, told).square().flatten(1).mean(1)
        if self.objective in ("denoising", "likelihood"):
            error = self.unknown(eps - self._noise(z, t, told), e, told).square().flatten(1).mean(1)
            return error if self.objective == "denoising" else -0.5 * self.schedule.shape.slope(t).to(e) * error

        def score(z: Tensor) -> Tensor:
            return self.unknown(-self._noise(z, t, told) / sigma, e, told)

        if self.objective == "explicit":
            loss = explicit(score, z)
        else:
            loss = sliced(score, z, self.unknown(torch.randn(z.shape).sign().to(z), e, told)[:, None])
        return sigma.flatten().square() * loss / e[0].numel()

    def _times(self, u: Tensor) -> Tensor:
        """Of the chosen law, from uniform u; or at levels evenly spaced in log-SNR."""
        if not self.noise_levels:
            return TIMES[self.trained_at](u, self.schedule)
        step = (u * self.noise_levels).floor() / max(1, self.noise_levels - 1)
        start, end = self.schedule.start, self.schedule.end
        return self.schedule.time(start + (end - start) * step)

    def _noise(self, z: Tensor, t: Tensor, given: Told) -> Tensor:
        """eps, the net saying v: what z itself tells of eps is exact, so that where little signal is left little can be wrong."""
        alpha, sigma = self.level(t, z)
        return sigma * z + alpha * self._said(z, t, given)

    def _said(self, z: Tensor, t: Tensor, given: Told) -> Tensor:
        """v at z of variance-preserving scale."""
        clock = preconditioning(self.schedule, t.double()).noise if self.levelled else t
        return self.net(z, clock.to(z), given).to(z)

    def posterior(self, z: Tensor, t: Tensor, given: Told) -> Posterior:
        alpha, sigma = self.level(t, z)
        mean = alpha * z - sigma * self._said(z, t, given)
        return self.heeding(Posterior(mean, torch.zeros_like(mean)), given)

    def _log_prob(self, x: Tensor, given: Tensor | None, noise: Noise) -> LogProb:
        return self.ode_log_prob(x, given, noise)
