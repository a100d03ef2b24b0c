r"""MeanFlow: the average velocity between two times, so that one call of the net goes from noise to data.

    z_t = (1 - t) e + t eps,     u(z_t, r, t) = 1 / (t - r) int_r^t v(z_tau, tau) dtau,     z_r = z_t - (t - r) u(z_t, r, t)

No path is solved in training: differentiating (t - r) u = int v along the path gives an identity that holds at every point of it,

    u = v - (t - r) du/dt,     du/dt = v . grad_z u + du/dt|_z

whose right side, with the velocity eps - e of the example at hand for v and the net itself for u, is the target (held fixed). The
total derivative, along (v, 0, 1), is a central difference of two calls. In most of each batch r = t, where u = v and no derivative is
needed: plain flow matching, which the other times rest on. Errors are weighed by 1 / (error + c), for targets of long times are noisy.

u(z, t, t) is the velocity itself, so that the model has all of `denoising`: its solvers, its latent, its likelihood, which is that of the
differential equation and not of one call.

References:
    | Mean flows for one-step generative modeling (Geng et al., 2025) | https://arxiv.org/abs/2505.13447
    | Transition models (the derivative by a difference; Wang et al., 2025) | https://arxiv.org/abs/2509.04394
"""

from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from likely.denoising import Plan, See
from likely.errors import UsageError
from likely.logprob import LogProb
from likely.model import Likelihood, Recipe
from likely.nets import net as build_net
from likely.nets.conditioning import expand_like
from likely.noise import Noise
from likely.partly_known import PartlyKnown
from likely.solve.objectives import stratified
from likely.solve.posterior import Lift, Posterior
from likely.solve.straight import ENDS, Straight
from likely.space import Space

__all__ = ["MeanFlow"]

_SLACK = 1e-3  # c of the weight, per entry
_STEP = 2e-3  # in time, of the difference: where what single precision rounds off is as little as what the third derivative adds


class MeanFlow(PartlyKnown, Likelihood):
    """Average velocities; examples in one call of the net.

    Args:
        instant: share of each batch that learns the velocity itself, r = t.
        tolerance: of the differential equation that log_prob solves.
        net: another than the default; its options are width, depth, dropout and those that it has besides.
    """

    summary = "average velocities: examples in one call of the net; likelihood by the ODE"
    recipe = Recipe(lr=2e-3, ema=0.995, batch=64, bf16=False, patience=0)  # the loss is weighed to one: its least says nothing
    net_role = "denoiser"
    usual: ClassVar[tuple[str, int]] = ("meanflow", 1)
    bound_sampler: ClassVar[dict[str, Any]] = {"sampler": "heun", "steps": 32}

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        instant: float = 0.75,
        tolerance: float | None = None,
        net: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(space, given=given, size=size, tolerance=tolerance)
        if space.layout == "columns":
            self.recipe = replace(self.recipe, batch=256)
        self.instant = instant
        self.lift = Lift(space, few=0)
        self.schedule = Straight(self.lift.log_snr).schedule
        options = {"dropout": 0.0, **options}  # the derivative and the call that it corrects would drop other units
        self.net = build_net(self.lift.space, "denoiser", size, word=net, given=given, out=1, times=2, **options)

    def forward(self, x: Tensor, given: Tensor | None = None, *, turn: str = "") -> Tensor:
        """|u - (v - (t - r) du/dt)|^2 of each example, the mean over its entries, under its weight."""
        e, _ = self.lift(x, Noise(x))
        eps = torch.randn_like(e)
        t, r = self._times(len(e), e.device)
        velocity = eps - e
        z = e + expand_like(t, e) * velocity
        target, far = velocity.clone(), r < t
        if far.any():
            derivative = self._total_derivative(z[far], velocity[far], r[far], t[far], None if given is None else given[far])
            target[far] -= expand_like(t - r, e)[far] * derivative
        error = (self.average(z, r, t, given) - target).square().flatten(1).mean(1)
        return error / (error.detach() + _SLACK)

    def _times(self, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """(t, r), r <= t, each [n]: the larger and the smaller of two uniform times, and equal in a share of them."""
        pair = torch.stack([stratified(n, device), stratified(n, device)[torch.randperm(n, device=device)]])
        t, r = pair.max(0).values.float(), pair.min(0).values.float()
        return t, torch.where(torch.rand(n, device=device) < self.instant, t, r)

    @torch.no_grad()
    def _total_derivative(self, z: Tensor, velocity: Tensor, r: Tensor, t: Tensor, given: Tensor | None) -> Tensor:
        """du/dt along the path, [B, ...], by a central difference; without gradients, which in training flow through `average` alone."""
        both = torch.cat([z + _STEP * velocity, z - _STEP * velocity])
        given = None if given is None else given.repeat(2, *[1] * (given.ndim - 1))
        after, before = self.average(both, r.repeat(2), torch.cat([t + _STEP, t - _STEP]), given).chunk(2)
        return (after - before) / (2 * _STEP)

    def average(self, z: Tensor, r: Tensor, t: Tensor, given: Tensor | None) -> Tensor:
        """u(z_t, r, t), z [B, ...] at times t [B] of the straight path, r [B] <= t."""
        scale = torch.hypot(1 - t, t)
        return self.net(z / expand_like(scale, z), torch.stack([t, t - r], 1), given).to(z)

    def plan(self, sampler: str | None, steps: int | None, grid: str, guidance: float, options: dict[str, Any]) -> Plan:
        """Leaps by average velocities, evenly in time, unless another sampler is asked for."""
        if (sampler or self.usual[0]) != "meanflow":
            return super().plan(sampler, steps, grid, guidance, options)
        if options or guidance != 1.0:
            raise UsageError("Leaps by average velocities take no options but their steps.", "Ask for another sampler, such as heun.")
        steps = self.usual[1] if steps is None else steps
        if steps < 1:
            raise UsageError(f"Cannot sample in {steps} steps.", "The least is one.")
        return Plan("meanflow", options, torch.linspace(1, 0, steps + 1), guidance)

    def drawn(self, plan: Plan, n: int, given: Tensor | None, see: See | None = None) -> Tensor:
        if plan.sampler != "meanflow":
            return super().drawn(plan, n, given, see)
        z = torch.randn(n, *self.lift.space.shape, device=next(self.parameters()).device)
        for t, r in pairwise(plan.times.to(z.device)):
            leap = (t - r) * self.average(z, r.expand(n), t.expand(n), given)
            if see is not None:
                see(z, self.schedule.time((2 * torch.log((1 - t) / t)).clamp(*ENDS[::-1])).expand(n), z - leap)
            z = z - leap
        return self.lift.nearest(z)

    def posterior(self, z: Tensor, t: Tensor, given: Tensor | None) -> Posterior:
        alpha, sigma = self.schedule(t.double())
        time = (sigma / (alpha + sigma)).to(z)
        straight = z * expand_like(torch.hypot(1 - time, time), z)
        mean = straight - expand_like(time, z) * self.average(straight, time, time, given)
        return Posterior(mean, torch.zeros_like(mean))

    def _log_prob(self, x: Tensor, given: Tensor | None, noise: Noise) -> LogProb:
        return self.ode_log_prob(x, given, noise)
