r"""Flow matching: a velocity that carries noise to data along straight paths, learnt by regression.

    z_t = (1 - t) e + t eps,        v(z, t) = E[eps - e | z_t = z],        loss  |eps - e - v(z_t, t)|^2

The equation dz/dt = v(z, t), solved from t = 1 to 0, turns noise into data; v is what the mean of the clean example is, v = (z - m) / t,
so that every solver of `solve.samplers` serves, and the equation's divergence gives the likelihood (`denoising`).

Which noise meets which example is free as long as both have their own laws. `coupling` pairs them anew within each batch:

    independent     as they come
    ot              the assignment of least total squared distance: paths cross less, so fewer steps suffice
    sinkhorn        a pair drawn from the plan of least distance plus entropy

Under the last two, noise given an example is no normal: z_t has no score in v, so samplers that add noise are refused.

References:
    | Flow matching for generative modeling (Lipman et al., 2023) | https://arxiv.org/abs/2210.02747
    | Flow straight and fast (rectified flow; Liu et al., 2023) | https://arxiv.org/abs/2209.03003
    | Improving and generalizing flow-based generative models with minibatch optimal transport (Tong et al., 2024) | https://arxiv.org/abs/2302.00482
"""

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
from likely.solve.coupling import COUPLINGS
from likely.solve.objectives import TIMES, stratified
from likely.solve.posterior import Posterior
from likely.solve.set_lift import lift_of
from likely.solve.straight import EVENLY, Straight
from likely.space import Space

__all__ = ["FlowMatching"]


class FlowMatching(PartlyKnown, Likelihood):
    """Velocities along straight paths from noise to data.

    Args:
        coupling: of noise and examples in a batch: "independent", "ot" or "sinkhorn".
        times: at which it is trained: "uniform", "logit-normal" or "lognormal".
        inpaint: whether it also learns to draw any entries given the others, for fills.
        tolerance: of the differential equation that log_prob solves.
        net: another than the default; its options are width, depth, dropout and those that it has besides.
    """

    summary = "velocities along straight paths between noise and data; likelihood by the ODE"
    layouts = frozenset({"grid", "columns", "set"})
    recipe = Recipe(lr=2e-3, ema=0.995, batch=64)  # of grids; small batches are more steps
    net_role = "denoiser"
    usual = ("dpm-solver", 12)
    even = EVENLY
    words: ClassVar[dict[str, tuple[str, ...]]] = {"coupling": tuple(COUPLINGS), "times": tuple(TIMES)}

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        coupling: str = "independent",
        times: str = "uniform",
        tolerance: float | None = None,
        inpaint: bool = False,
        net: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(space, given=given, size=size, tolerance=tolerance)
        check_words(self, coupling=coupling, times=times)
        if (given is not None or inpaint) and coupling != "independent":
            raise UsageError(
                f"The coupling '{coupling}' pairs noise with examples whatever is known of them, which biases a conditional model.",
                "Leave it independent.",
            )
        if space.layout == "set" and coupling != "independent":
            raise UsageError(
                f"The coupling '{coupling}' would pair noise with sets point by point, which have no order.", "Leave it independent."
            )
        if space.layout == "columns":
            self.recipe = replace(self.recipe, batch=256)
        self.coupling, self.trained_at = coupling, times
        self.gaussian = coupling == "independent"
        self.lift = lift_of(space, few=0)
        self.path = Straight(self.lift.log_snr)
        self.schedule = self.path.schedule
        self.inpaint = inpaint
        self.net = self.build(net, given, 1, options)

    def forward(self, x: Tensor, given: Tensor | None = None, *, turn: str = "") -> Tensor:
        """|dz/dt - v|^2 of each example, the mean over its entries."""
        e, _ = self.lift(x, Noise(x))
        told = self.shown(e, given)
        eps = torch.randn_like(e)
        if self.coupling != "independent":
            eps = eps[COUPLINGS[self.coupling](e, eps)]
        t = TIMES[self.trained_at](stratified(len(e), e.device), self.schedule).to(e)
        said = self.path.velocity(self.net, torch.lerp(e, eps, self.path.noise(t, e)), t, told)
        return self.unknown(self.path.span * (eps - e) - said, e, told).square().flatten(1).mean(1)

    def posterior(self, z: Tensor, t: Tensor, given: Told) -> Posterior:
        mean = self.path.clean(self.net, z * self.scale(t, z), t, given)
        return self.heeding(Posterior(mean, torch.zeros_like(mean)), given)

    def _log_prob(self, x: Tensor, given: Tensor | None, noise: Noise) -> LogProb:
        return self.ode_log_prob(x, given, noise)
