r"""Consistency models: a net tuned until it says the same end of a path wherever on it it is asked, so that one call draws.

    z_t = (1 - t) e + t eps,      f(z, t) = z - t v(z, t),      f(z, 0) = z

A net v that has learnt flow matching says the mean of the clean example, f = E[e | z_t]. Tuned, it says where the flow through z ends:
the function that is constant along each path of dz/dt = v and is z itself at t = 0. What is asked is agreement with itself a little
nearer to the data,

    loss  |f(z_t, t) - f(z_r, r)|,      r = max(t - 1 / rungs, 0),      f(z_r, r) held fixed

where z_r is one Euler step of the teacher, the net that tuning began from (`--from`), so that both lie on one path. At r = 0 the step
ends at what the teacher takes the example to be, which anchors all others. Without a teacher z_r is on the line from the example to
its noise, of the same e and eps, and e itself at r = 0: right on average, while the lines' spread adds up to a variance of the order
of 1 / rungs, which blurs.

It draws in one call, f(eps, 1); or in several, adding new noise of a lower level to what it said before. It has no likelihood.

References:
    | Consistency models (Song et al., 2023) | https://arxiv.org/abs/2303.01469
    | Improved techniques for training consistency models (Song and Dhariwal, 2024) | https://arxiv.org/abs/2310.14189
    | Consistency models made easy (tuning from a trained model; Geng et al., 2025) | https://arxiv.org/abs/2406.14548
"""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from likely.abilities import Tuned
from likely.errors import UsageError
from likely.model import Model, Recipe, evaluating, expand_given
from likely.nets import net as build_net
from likely.nets.conditioning import expand_like
from likely.noise import Noise
from likely.solve.objectives import stratified
from likely.solve.set_lift import lift_of
from likely.solve.straight import Straight
from likely.space import Space

__all__ = ["Consistency"]

_SLACK = 1e-3  # below such an error, the loss is its square: pseudo-Huber


class Consistency(Model, Tuned):
    """Examples in one call of a net that flow matching has trained.

    Args:
        rungs: levels of noise that are asked to agree with their neighbours.
        net: another than the default; its options are width, depth, dropout and those that it has besides.
    """

    summary = "examples in one call, tuned from a fitted flow-matching model (--from); no likelihood"
    layouts = frozenset({"grid", "columns", "set"})
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
        self._teacher: list[nn.Module] = []
        self.lift = lift_of(space, few=0)
        self.path = Straight(self.lift.log_snr)
        options = {"dropout": 0.0, **options}  # the two that should agree would drop other units
        self.net = build_net(self.lift.space, "denoiser", size, word=net, given=given, out=1, **options)

    def learn_from(self, teacher: Model) -> None:
        """Follow the paths of a fitted model with the same net; it is no part of the model, and is not stored with it."""
        self._teacher = [copy.deepcopy(teacher.get_submodule("net")).eval().requires_grad_(False)]

    def forward(self, x: Tensor, given: Tensor | None = None, *, turn: str = "") -> Tensor:
        """How far the ends of a path differ, said at one rung and at the next: pseudo-Huber, over the square root of the entries."""
        e, _ = self.lift(x, Noise(x))
        eps, t = torch.randn_like(e), stratified(len(e), e.device).to(e)
        r = (t - 1 / self.rungs).clamp_min(0)
        z = self._between(e, eps, t)
        there = self.end(z, t, given)
        with torch.no_grad():
            before, clean = (self._between(e, eps, r), e) if not self._teacher else self._stepped(z, t, r, given)
            nearer = torch.where(expand_like(r > 0, e), self.end(before, r, given), clean)
        error = (there - nearer).masked_fill(e.isnan(), 0.0)  # the padding of sets
        return (error.square().flatten(1).mean(1) + _SLACK**2).sqrt() - _SLACK

    def _stepped(self, z: Tensor, t: Tensor, r: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        """z_r, and what the teacher takes the example to be."""
        clean = self.path.clean(self._teacher[0].to(z.device), z, t, given)
        return clean + self.path.noise(r, z) / self.path.noise(t, z) * (z - clean), clean

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
        given, times = expand_given(given, n), torch.linspace(1, 0, steps + 1)[:-1].to(self.lift.zero)
        with evaluating(self):
            e = self.end(self.lift.start(n), times[0].expand(n), given)
            for t in times[1:]:
                e = self.end(self._between(e, torch.randn_like(e), t.expand(n)), t.expand(n), given)
        return self.lift.nearest(e)
