r"""Diffusion that knows what values its data can take: the bound's own denoiser, in T steps or in continuous time.

Noise is added to x, lifted to centred and scaled reals e(x): z_t = alpha_t e(x) + sigma_t eps. A denoiser
says what x was; the model walks back from z_1 ~ N(0, 1). Training minimises the bound itself (`variational_bound`).

One net serves all its terms: its output is a posterior p(x | z_t) of each entry (`solve.posterior`), of which L_t takes mean
and variance and L_0 the mass. Entries of finitely many values are diffused where they are, and not dequantized;
decimals and reals are relaxed, and the nats of the relaxation are added.

`vdm` is the same in continuous time, with a schedule that learns where the loss is, so that its estimate varies least. The
bound does not depend on the schedule but by its ends, which the data set.

`sample` takes `steps` calls of the net. The bound belongs to the ancestral sampler with T + 1 of them; a solver of order
two draws as good examples in far fewer, and is the default.

References:
    | Denoising diffusion probabilistic models (Ho et al., 2020) | https://arxiv.org/abs/2006.11239
    | Variational diffusion models (Kingma et al., 2021) | https://arxiv.org/abs/2107.00630
"""

from typing import Any, ClassVar

from torch import Tensor

from likely.model import Recipe
from likely.nets.gamma import LearntShape
from likely.nets.partial import Told
from likely.solve.noise import Schedule, noise_schedule
from likely.solve.posterior import Posterior
from likely.solve.set_lift import lift_of
from likely.space import Space
from likely.variational_bound import VariationalBound

__all__ = ["Diffusion"]

_LAST_LOG_SNR = -5.0  # at t = 1, where what is left of the data is coded at its marginal variance
_RECIPES = {
    # a small net on vectors is as fast on large batches, which average out the terms' noise
    "columns": Recipe(lr=2e-3, weight_decay=0.01, ema=0.995, batch=256),
    "set": Recipe(lr=1e-3, weight_decay=0.01, ema=0.995, batch=64),
}


class Diffusion(VariationalBound):
    """Variance-preserving diffusion, trained by its variational bound.

    Options:
        steps: T, of the bound and of the ancestral sampler; 0 for continuous time.
        schedule: of noise: "learnt", or a shape of `solve.noise`.
        inpaint: whether it also learns to draw any entries given the others, for fills.
        net: another than the default; its options are width, depth, dropout and those that it has besides.
    """

    summary = "variance-preserving diffusion: full variational bound, ancestral, DDIM and DPM-Solver++ sampling"
    layouts = frozenset({"grid", "columns", "set"})
    recipe = Recipe(lr=4e-3, weight_decay=0.01, ema=0.995, batch=64)  # of grids
    net_role = "denoiser"
    sizes: ClassVar[dict[str, dict[str, Any]]] = {"tiny": {"steps": 8}, "small": {"steps": 64}, "base": {"steps": 256}}

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        steps: int | None = None,
        schedule: str = "tapered",
        inpaint: bool = False,
        net: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(space, given=given, size=size)
        self.steps = self.options(size, steps=steps)["steps"]
        self.recipe = _RECIPES.get(space.layout, self.recipe)
        self.lift = lift_of(space)
        ends = self.lift.log_snr, _LAST_LOG_SNR
        self.shape = LearntShape(*ends) if schedule == "learnt" else None
        self.schedule = noise_schedule(schedule, *ends) if self.shape is None else Schedule(self.shape)
        self.inpaint = inpaint
        self.net = self.build(net, given, self.lift.width, options)

    def forward(self, x: Tensor, given: Tensor | None = None, *, turn: str = "") -> Tensor:
        return self.loss(x, given)

    def posterior(self, z: Tensor, t: Tensor, given: Told) -> Posterior:
        alpha, sigma = self.level(t, z)
        # a learnt shape moves in time, so that its net is told the log-SNR
        clock = t if self.shape is None else self.shape.log_snr(t.double()).detach() / 4
        params = self.net(z, clock.to(z), given).to(z).unflatten(1, (z.shape[1], self.lift.width))
        return self.heeding(self.lift.posterior(params, z, alpha, sigma), given)
