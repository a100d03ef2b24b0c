r"""MeanFlow: the average velocity between two times, so that one call of the net goes from noise to data.

    z_t = (1 - t) e + t eps,     u(z_t, r, t) = 1 / (t - r) int_r^t v(z_tau, tau) dtau,     z_r = z_t - (t - r) u(z_t, r, t)

The integral of an interval is that of its parts: with any time m between r and t

    (t - r) u(z_t, r, t) = (t - m) u(z_t, m, t) + (m - r) u(z_m, r, m)

where all three points lie on one path. This is what is trained, its right side held fixed: the first part, of at most 1 / rungs, is a step
of Heun's method by the velocity v, the second what the net says of the rest of the way. As m -> t it is the identity of the first
MeanFlow, u = v - (t - r) du/dt, without its derivative, and without its noise if v is right: a velocity eps - e of one example is right
on average, but scatters as the data do.

So a run has two parts. In the first r = t, where u = v: plain flow matching, |u(z_t, t, t) - (eps - e)|^2. Its averaged weights then stand
still and say v, while the net, which begins from them, learns intervals. A net without such a teacher takes its own u(z, t, t) for v.

u(z, t, t) is the velocity itself, so that the model has all of `denoising`: its solvers, its latent, its likelihood, which is that of the
differential equation and not of one call.

References:
    | Mean flows for one-step generative modeling (Geng et al., 2025) | https://arxiv.org/abs/2505.13447
    | SplitMeanFlow: interval splitting consistency in few-step generative modeling (Guo et al., 2025) | https://arxiv.org/abs/2507.16884
    | How to build a consistency model: learning flow maps via self-distillation (Boffi et al., 2025) | https://arxiv.org/abs/2505.18825
"""

import copy
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from likely.abilities import Likelihood, Tuned
from likely.denoising import Plan, See
from likely.errors import UsageError
from likely.logprob import LogProb
from likely.model import Model, Recipe
from likely.nets import net as build_net
from likely.nets.conditioning import expand_like
from likely.noise import Noise
from likely.partly_known import PartlyKnown
from likely.solve.objectives import stratified
from likely.solve.posterior import Posterior
from likely.solve.set_lift import lift_of
from likely.solve.straight import ENDS, EVENLY, Straight
from likely.space import Space

__all__ = ["MeanFlow"]

_NEAR = 1e-6  # in time, as good as nothing


class MeanFlow(PartlyKnown, Likelihood, Tuned):
    """Average velocities; examples in one call of the net.

    Args:
        instant: share of each batch that learns the velocity itself, r = t; 1 is plain flow matching.
        landing: share of the others that learn intervals down to the data, r = 0: one call is the longest of these.
        rungs: steps by the velocity that a path would take.
        tolerance: of the differential equation that log_prob solves.
        net: another than the default; its options are width, depth, dropout and those that it has besides.
    """

    summary = "average velocities: examples in one call of the net; likelihood by the ODE"
    layouts = frozenset({"grid", "columns", "set"})
    recipe = Recipe(lr=4e-3, ema=0.995, batch=64, bf16=False, patience=0)  # the loss measures agreement with itself, not examples
    net_role = "denoiser"
    usual = ("meanflow", 1)
    even = EVENLY
    bound_sampler: ClassVar[dict[str, Any]] = {"sampler": "heun", "steps": 32}

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        instant: float = 0.1,
        landing: float = 0.75,
        rungs: int = 16,
        tolerance: float | None = None,
        net: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(space, given=given, size=size, tolerance=tolerance)
        if space.layout == "columns":
            self.recipe = replace(self.recipe, lr=2e-3, batch=256)
        elif space.layout == "set":
            self.recipe = replace(self.recipe, lr=2e-3)
        if rungs < 2:
            raise UsageError(f"Got rungs={rungs}.", "The least is two.")
        if other := next((f"{word}={share}" for word, share in (("instant", instant), ("landing", landing)) if not 0 <= share <= 1), None):
            raise UsageError(f"Got {other}.", "It is a share, from 0 to 1.")
        self.instant, self.landing, self.rungs = instant, landing, rungs
        self._teacher: list[nn.Module] = []
        self.lift = lift_of(space, few=0)
        self.schedule = Straight(self.lift.log_snr).schedule
        options = {"dropout": 0.0, **options}  # the two sides of the identity would drop other units
        self.net = build_net(self.lift.space, "denoiser", size, word=net, given=given, out=1, times=2, **options)

    def first(self) -> Model | None:
        """A copy that learns the velocity alone; of one that does nothing else, none."""
        if self.instant == 1:
            return None
        teacher = copy.deepcopy(self)
        teacher.instant, teacher._teacher = 1.0, []
        teacher.config = {**self.config, "options": {**self.config.get("options", {}), "instant": 1.0}}
        return teacher

    def learn_from(self, teacher: Model) -> None:
        """Follow the velocity of a fitted copy, whose weights are begun from; it is no part of the model, and is not stored with it."""
        net = teacher.get_submodule("net")
        self.net.load_state_dict(net.state_dict())
        self._teacher = [copy.deepcopy(net).eval().requires_grad_(False)]

    def forward(self, x: Tensor, given: Tensor | None = None, *, turn: str = "") -> Tensor:
        """How far the two sides of the identity differ, |.|^2 of each example, the mean over its entries."""
        e, _ = self.lift(x, Noise(x))
        eps = torch.randn_like(e)
        t, r = (v.to(e) for v in self._times(len(e), e.device))
        z, target = torch.lerp(e, eps, expand_like(t, e)), eps - e
        rows = (r < t) | bool(self._teacher)  # a velocity is learnt from examples, or from the teacher
        if rows.any():
            target[rows] = self._joined(z[rows], r[rows], t[rows], None if given is None else given[rows])
        return self.unknown(self.average(z, r, t, given) - target, e, None).square().flatten(1).mean(1)

    def _times(self, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """(t, r), r <= t, each [n]: the larger and the smaller of two uniform times; in a share of them r = 0, in another r = t."""
        pair = torch.stack([stratified(n, device), stratified(n, device)[torch.randperm(n, device=device)]])
        t, r = pair.max(0).values.float(), pair.min(0).values.float()
        r = torch.where(torch.rand(n, device=device) < self.landing, 0.0, r)
        return t, torch.where(torch.rand(n, device=device) < self.instant, t, r)

    @torch.no_grad()
    def _joined(self, z: Tensor, r: Tensor, t: Tensor, given: Tensor | None) -> Tensor:
        """u(z_t, r, t) of two parts: a step of Heun's method by velocities, and what the net says of the rest of the way, if any is."""
        m = torch.maximum(r, t - 1 / self.rungs)
        step, share = expand_like(t - m, z), expand_like((m - r) / (t - r).clamp_min(_NEAR), z)
        slope = self._velocity(z, t, given)
        slope = (slope + self._velocity(z - step * slope, m, given)) / 2
        return slope.lerp(self.average(z - step * slope, r, m, given), share)

    @torch.no_grad()
    def _velocity(self, z: Tensor, t: Tensor, given: Tensor | None) -> Tensor:
        """v(z_t, t) by the teacher, or where there is none by the net itself."""
        return self._said(self._teacher[0].to(z.device) if self._teacher else self.net, z, t, t, given)

    def average(self, z: Tensor, r: Tensor, t: Tensor, given: Tensor | None) -> Tensor:
        """u(z_t, r, t), z [B, ...] at times t [B] of the straight path, r [B] <= t."""
        return self._said(self.net, z, r, t, given)

    def _said(self, net: nn.Module, z: Tensor, r: Tensor, t: Tensor, given: Tensor | None) -> Tensor:
        return net(z / expand_like(torch.hypot(1 - t, t), z), torch.stack([t, t - r], 1), given).to(z)

    def plan(self, sampler: str | None, steps: int | None, grid: str | None, guidance: float, options: dict[str, Any]) -> Plan:
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
        z = self.lift.start(n)
        for t, r in pairwise(plan.times.to(z)):
            leap = (t - r) * self.average(z, r.expand(n), t.expand(n), given)
            if see is not None:
                see(z, self.schedule.time((2 * torch.log((1 - t) / t)).clamp(*ENDS[::-1])).expand(n), z - leap)
            z = z - leap
        calls = len(plan.times) - 1
        self.drawn_by = f"leaps, {calls} call{'s' * (calls > 1)} of the net"
        return self.lift.nearest(z)

    def posterior(self, z: Tensor, t: Tensor, given: Tensor | None) -> Posterior:
        alpha, sigma = self.schedule(t.double())
        time = (sigma / (alpha + sigma)).to(z)
        straight = z * expand_like(torch.hypot(1 - time, time), z)
        mean = straight - expand_like(time, z) * self.average(straight, time, time, given)
        return Posterior(mean, torch.zeros_like(mean))

    def _log_prob(self, x: Tensor, given: Tensor | None, noise: Noise) -> LogProb:
        return self.ode_log_prob(x, given, noise)
