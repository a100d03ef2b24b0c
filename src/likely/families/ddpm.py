r"""Denoising diffusion probabilistic models as in the paper: a thousand steps, a net that says the noise, fixed variances.

    z_k = sqrt(abar_k) e + sqrt(1 - abar_k) eps,    abar_k = prod_{i <= k} (1 - beta_i),   beta_1..beta_T = 1e-4 .. 0.02
    L_simple = E_k |eps - eps_hat(z_k, k)|^2

    p(z_{k-1} | z_k) = N(mu(z_k, eps_hat), s_k^2),   s_k^2 = beta_k ("large"), beta~_k ("small"), or between them ("learned")
    p(x | z_1)       = the mass of N(e_hat(z_1), s_1^2) in each level's bin, the first and the last open

L_T + L_t + L_0 bounds the likelihood whatever the net was trained by. "small" is the variance of the known step, which is right for data
without spread and makes the bound bad; "learned" interpolates the logarithms, v log beta + (1 - v) log beta~, v from the net, which is
trained by L_simple + .001 L_bound, the bound reaching v alone (`objective` "hybrid").

References:
    | Denoising diffusion probabilistic models (Ho et al., 2020) | https://arxiv.org/abs/2006.11239
    | Improved denoising diffusion probabilistic models (Nichol and Dhariwal, 2021) | https://arxiv.org/abs/2102.09672
    | Progressive distillation, for v (Salimans and Ho, 2022) | https://arxiv.org/abs/2202.00512
    | Efficient diffusion training via min-SNR weighting strategy (Hang et al., 2023) | https://arxiv.org/abs/2303.09556
"""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from likely.denoising import check_words
from likely.errors import UsageError
from likely.model import Recipe
from likely.nets.partial import Told
from likely.noise import Noise
from likely.solve.noise import Schedule, noise_schedule
from likely.solve.objectives import WEIGHTS, stratified
from likely.solve.parametrisation import PARAMETRISATIONS
from likely.solve.posterior import Posterior
from likely.solve.set_lift import lift_of
from likely.space import Space
from likely.variational_bound import VariationalBound

__all__ = ["DDPM"]

VARIANCES = ("large", "small", "learned")
OBJECTIVES = ("simple", "min-snr", "bound", "hybrid")
_FEWEST = 21  # steps that the paper's schedule can have
_HYBRID = 1e-3  # of the bound beside L_simple


class DDPM(VariationalBound):
    """Diffusion in discrete steps by a net that says the noise.

    Args:
        steps: T, calls of the net in the ancestral sampler.
        schedule: "beta", the paper's, or a shape of `solve.noise`.
        prediction: what the net says: "eps" (default of images, as in the paper), "x0", "v" (of tables, where the noise of entries
            without bounds would be divided by an alpha of next to nothing), "score" or "velocity".
        variance: of the reverse steps: "large", "small" or "learned".
        objective: "simple" (the squared error of `prediction`), "min-snr", "bound", or "hybrid".
        inpaint: whether it also learns to draw any entries given the others, for fills.
        net: another than the default; its options are width, depth, dropout and those that it has besides.
    """

    summary = "diffusion as in the DDPM paper: 1000 steps, the noise predicted, fixed variances; learned ones as an option"
    layouts = frozenset({"grid", "columns", "set"})
    recipe = Recipe(lr=1e-3, ema=0.995, batch=64)
    net_role = "denoiser"
    words: ClassVar[dict[str, tuple[str, ...]]] = {
        "prediction": tuple(PARAMETRISATIONS),
        "variance": VARIANCES,
        "objective": OBJECTIVES,
    }
    sizes: ClassVar[dict[str, dict[str, Any]]] = {"tiny": {"steps": 24}, "small": {"steps": 1000}, "base": {"steps": 1000}}

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        steps: int | None = None,
        schedule: str = "beta",
        prediction: str | None = None,
        variance: str = "large",
        objective: str = "simple",
        inpaint: bool = False,
        net: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(space, given=given, size=size)
        prediction = prediction or ("eps" if space.layout == "grid" else "v")
        check_words(self, prediction=prediction, variance=variance, objective=objective)
        if objective == "hybrid" and variance != "learned":
            raise UsageError("The objective 'hybrid' trains a learned variance.", "Add --variance learned.")
        self.prediction, self.variance, self.objective = prediction, variance, objective
        self.lift = lift_of(space, few=0, bins=True)
        calls = self.options(size, steps=steps)["steps"]
        if calls < 2:
            raise UsageError(f"Got steps={calls}.", "DDPM takes at least two.")
        self.steps = calls - 1  # between z_1 and z_T; the decoder's call is one more
        self.schedule = _schedule(schedule, calls)
        self.inpaint = inpaint
        self.net = self.build(net, given, 2 if variance == "learned" else 1, options)

    def forward(self, x: Tensor, given: Tensor | None = None, *, turn: str = "") -> Tensor:
        if self.objective == "bound":
            return self.loss(x, given)
        e, nats = self.lift(x, Noise(x))
        told = self.shown(e, given)
        term = (stratified(len(x), x.device) * (self.steps + 1)).long().clamp_max(self.steps)
        t, eps = term.double() / self.steps, torch.randn_like(e)
        alpha, sigma = self.level(t, e)
        posterior = self.posterior(alpha * e + sigma * eps, t, told)
        weight = WEIGHTS["min-snr" if self.objective == "min-snr" else self.prediction](self.schedule.log_snr(t))
        simple = weight * self.unknown(e - posterior.mean, e, told).double().square().flatten(1).mean(1)
        if self.objective != "hybrid":
            return simple.float()
        fixed = replace(posterior, mean=posterior.mean.detach())
        bound = self.term_nats(term, e, x, fixed) + self._ends(e) - nats
        return (simple + _HYBRID * bound / e[0].numel()).float()

    def posterior(self, z: Tensor, t: Tensor, given: Told) -> Posterior:
        out = self.net(z, t.to(z), given).to(z).unflatten(1, (z.shape[1], -1))
        mean = self.clean(out[:, :, 0], self.prediction, z, t)
        share = {"large": 1.0, "small": 0.0}.get(self.variance)
        var = self._variance(t, out[:, :, 1].sigmoid() if share is None else torch.full_like(mean, share))
        return self.heeding(Posterior(mean, var), given)

    def _variance(self, t: Tensor, share: Tensor) -> Tensor:
        r"""V of p(e | z_t) with which the step's variance is beta~ (beta / beta~)^share, since s^2 = beta~ (1 + r V), r = SNR_s - SNR_t.

        The decoder's, where nothing is before: that of the noise of z_0, or beta~ of the first step.
        """
        step = 1 / self.steps
        first = t.double() < step / 2
        later, sooner = torch.where(first, step, t.double()), torch.where(first, 0.0, t.double() - step)
        of_later, of_sooner = self.schedule.log_snr(later), self.schedule.log_snr(sooner)
        log_ratio = torch.nn.functional.logsigmoid(-of_later) - torch.nn.functional.logsigmoid(-of_sooner)  # of beta to beta~
        log_ratio, gain, first = (v.view(-1, *[1] * (share.ndim - 1)) for v in (log_ratio, of_sooner.exp() - of_later.exp(), first))
        # the decoder has no beta~: its largest variance is that of the noise of z_0, its smallest lower by the ratio of the first step
        own = (-of_sooner).exp().view_as(gain) * ((share - 1) * log_ratio).exp()
        return torch.where(first, own, torch.expm1(share * log_ratio) / gain).to(share.dtype)


def _schedule(name: str, steps: int) -> Schedule:
    """From z_1 at t = 0 to z_T at t = 1; other shapes than the paper's between the same ends."""
    own = noise_schedule("beta", steps=max(steps, _FEWEST))
    first = own.log_snr(torch.tensor([1 / max(steps, _FEWEST)], dtype=torch.float64)).item()
    return noise_schedule("beta", first, steps=steps) if name == "beta" else noise_schedule(name, first, own.end)
