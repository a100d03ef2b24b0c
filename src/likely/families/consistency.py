r"""Consistency models: a net tuned until it says the same end of a path wherever on it it is asked, so that one call draws.

    z_t = (1 - t) e + t eps,      f(z, t) = z - t v(z, t),      f(z, 0) = z

A net v that has learnt flow matching says the mean of the clean example, f = E[e | z_t]. Tuned, it says where the flow through z ends:
the function that is constant along each path of dz/dt = v and is z itself at t = 0. What is asked is agreement with itself a little
nearer to the data, on the line that joins an example to its noise,

    loss  |f(z_t, t) - f(z_r, r)|,      r = max(t - 1 / rungs, 0),      z_t, z_r of the same e and eps,   f(z_r, r) held fixed

At r = 0 this is the loss of denoising, which anchors all others. The mean over the lines through z_t moves along the flow, and their
spread costs of the order of 1 / rungs. The parametrisation is that of `flow-matching`, of which training begins (`--from`); from
random weights, what holds at r = 0 has to climb rung by rung.

It draws in one call, f(eps, 1); or in several, adding new noise of a lower level to what it said before. It has no likelihood.

References:
    | Consistency models (Song et al., 2023) | https://arxiv.org/abs/2303.01469
    | Improved techniques for training consistency models (Song and Dhariwal, 2024) | https://arxiv.org/abs/2310.14189
    | Consistency models made easy (tuning from a trained model; Geng et al., 2025) | https://arxiv.org/abs/2406.14548
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from likely.errors import UsageError
from likely.model import Model, Recipe, evaluating, expand_given
from likely.nets import net as build_net
from likely.nets.conditioning import expand_like
from likely.noise import Noise
from likely.solve.objectives import stratified
from likely.solve.posterior import Lift
from likely.solve.straight import Straight
from likely.space import Space

__all__ = ["Consistency"]

_SLACK = 1e-3  # below such an error, the loss is its square: pseudo-Huber


class Consistency(Model):
    """Examples in one call of a net that flow matching has trained.

    Args:
        rungs: levels of noise that are asked to agree with their neighbours.
        net: another than the default; its options are width, depth, dropout and those that it has besides.
    """

    summary = "examples in one call, tuned from a fitted flow-matching model (--from); no likelihood"
    recipe = Recipe(lr=1e-3, ema=0.995, batch=64, patience=0)  # the loss measures agreement with itself, not examples
    net_role = "denoiser"

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        rungs: int = 16,
        net: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(space, given=given, size=size)
        if rungs < 2:
            raise UsageError(f"Got rungs={rungs}.", "The least is two.")
        if space.layout == "columns":
            self.recipe = replace(self.recipe, batch=256)
        self.rungs = rungs
        self.lift = Lift(space, few=0)
        self.path = Straight(self.lift.log_snr)
        options = {"dropout": 0.0, **options}  # the two that should agree would drop other units
        self.net = build_net(self.lift.space, "denoiser", size, word=net, given=given, out=1, **options)

    def forward(self, x: Tensor, given: Tensor | None = None, *, turn: str = "") -> Tensor:
        """How far the ends of a path differ, said at one rung and at the next: pseudo-Huber, over the square root of the entries."""
        e, _ = self.lift(x, Noise(x))
        eps, t = torch.randn_like(e), stratified(len(e), e.device).to(e)
        there = self.end(self._between(e, eps, t), t, given)
        with torch.no_grad():
            r = (t - 1 / self.rungs).clamp_min(0)
            nearer = torch.where(expand_like(r > 0, e), self.end(self._between(e, eps, r), r, given), e)
        return ((there - nearer).square().flatten(1).mean(1) + _SLACK**2).sqrt() - _SLACK

    def _between(self, e: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return torch.lerp(e, eps, self.path.noise(t, e))

    def end(self, z: Tensor, t: Tensor, given: Tensor | None) -> Tensor:
        """f(z, t): the clean example at the end of the path through z [B, ...] at t [B]."""
        return self.path.clean(self.net, z, t, given)

    @torch.no_grad()
    def sample(self, n: int, given: Tensor | None = None, *, steps: int = 1) -> Tensor:
        """n examples in data units.

        Args:
            steps: calls of the net, at levels of noise evenly in time; what is said is noised again before each but the first.
        """
        if steps < 1:
            raise UsageError(f"Cannot sample in {steps} steps.", "The least is one.")
        given, e = expand_given(given, n), torch.zeros(n, *self.lift.space.shape, device=next(self.parameters()).device)
        with evaluating(self):
            for t in torch.linspace(1, 0, steps + 1)[:-1].to(e):
                times = t.expand(n)
                z = torch.randn_like(e) if t == 1 else self._between(e, torch.randn_like(e), times)
                e = self.end(z, times, given)
        return self.lift.nearest(e)
