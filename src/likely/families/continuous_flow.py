r"""Continuous normalizing flow: data are carried to noise along an ordinary differential equation.

    dz/dt = f(z, t),  z(0) = u,      log p(u) = log N(z(1); 0, I) + int_0^1 tr df/dz dt

f is a small MLP, trained by maximum likelihood through a few Runge-Kutta steps between times drawn at random. Any f is invertible: the
equation is solved backwards to sample. The trace is exact for up to 16 entries and Hutchinson's estimate
beyond, by signs that are a function of the seed and the row.

A solved equation is never exact. log_prob takes steps that fit each row, and says how much halving them changed it;
its kind is `numerical`, and where the trace is estimated it carries a standard error. With
discrete data it is a bound (of a single draw, or of exact traces) or, where traces that are estimates are averaged as
probabilities over several draws, an estimate.

References:
    | Neural ordinary differential equations (Chen et al., 2018) | https://arxiv.org/abs/1806.07366
    | FFJORD: free-form continuous dynamics for scalable reversible generative models (Grathwohl et al., 2019) | https://arxiv.org/abs/1810.01367
"""

import math
from typing import Any, ClassVar

from torch import Tensor

from likely.bijections import ActNorm, Chain, Flatten
from likely.bijections.continuous import Continuous
from likely.bijections.marginal import histograms
from likely.invertible import Invertible, log_normal
from likely.logprob import LogProb
from likely.model import Recipe
from likely.nets.velocity import VelocityMLP
from likely.noise import Noise
from likely.space import Space

__all__ = ["ContinuousFlow"]

_PROBES = 8  # of Hutchinson's trace in log_prob
_DRAWS = 8  # dequantizations that evaluation affords


class ContinuousFlow(Invertible):
    """A flow in time.

    Args:
        steps: in training.
        width, depth: of the velocity's net.
        bounds: where numbers of a table end, as of `flow`.
    """

    summary = "flow along an ordinary differential equation; a numerical density with its error"
    as_computed = False
    recipe = Recipe(lr=5e-3, clip=10.0, ema=0.995, batch=256, bf16=False)
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"steps": 4, "width": 16, "depth": 2},
        "small": {"steps": 8, "width": 64, "depth": 3},
        "base": {"steps": 16, "width": 256, "depth": 4},
    }

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        bounds: str = "",
        steps: int | None = None,
        width: int | None = None,
        depth: int | None = None,
    ) -> None:
        super().__init__(space, given=given, size=size)
        chosen = self.options(size, steps=steps, width=width, depth=depth)
        shape = space.relaxed.shape
        dims = math.prod(shape)
        self.before = Chain([*histograms(space, bounds), Flatten(shape), ActNorm(dims)])
        velocity = VelocityMLP(dims, given=given, width=chosen["width"], depth=max(1, chosen["depth"]))
        self.carried = Continuous(dims, velocity, steps=max(1, chosen["steps"]))
        self.map = Chain([self.before, self.carried])
        if space.discrete:
            self.bound_draws = _DRAWS  # type: ignore[misc]

    def density(self, u: Tensor, given: Tensor | None, noise: Noise) -> LogProb:
        """log p(u) to the tolerance, and how far halving the steps moved it."""
        carried = self.carried
        probes = None if carried.exact else carried.signs(noise.uniform(_PROBES, carried.dims)[: len(u)])
        v, log_det = self.before(u)
        fine, coarse = carried.halved(v, given, probes)
        nats, less = (log_normal(p.z) + p.log_det.mean(1) for p in (fine, coarse))
        calls, change = fine.calls.double().mean().item(), (nats - less).abs().mean().item()
        how = f"differential equation, tolerance {carried.tolerance:g}, {calls:.0f} calls, halving the steps changed nats by {change:.1e}"
        if probes is None:
            return LogProb(nats + log_det, "numerical", how=how)
        stderr = fine.log_det.std(1) / math.sqrt(_PROBES)
        kind = "estimate" if noise.draws > 1 and self.space.discrete else "numerical"
        return LogProb(nats + log_det, kind, stderr=stderr, how=f"{how}; trace by {_PROBES} probes")
