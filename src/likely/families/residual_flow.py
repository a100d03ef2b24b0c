r"""Residual flow: blocks y = x + g(x) that can be undone because g contracts.

    log p(u) = log N(z; 0, I) + sum_l log |det (I + J_l)|,      z = f_L ( ... f_1(u) ),   f_l(x) = x + g_l(x), Lip(g_l) < 1

Nothing is masked or split: every entry sees every other in every block. What it costs is the determinant. For up to
8 entries (64 when scoring) it is exact, from the whole Jacobian. Beyond, training and scoring use an unbiased
estimate by a power series with a random end (see `bijections.residual`), and log_prob says so: its kind is `estimate`, with a
standard error. A loss of training on such data is the loss of one estimate, and no likelihood.

Sampling solves x = y - g(x) by iteration.

References:
    | Invertible residual networks (Behrmann et al., 2019) | https://arxiv.org/abs/1811.00995
    | Residual flows for invertible generative modeling (Chen et al., 2019) | https://arxiv.org/abs/1906.02735
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from likely.bijections import ActNorm, Bijection, Chain, Flatten
from likely.bijections.marginal import histograms
from likely.bijections.residual import Contraction, Residual
from likely.invertible import Invertible, log_normal
from likely.logprob import LogProb
from likely.model import Recipe
from likely.noise import Noise
from likely.space import Space

__all__ = ["ResidualFlow"]

_PROBES = 8  # of each block's series in log_prob


class ResidualFlow(Invertible):
    """Residual blocks, each after a scaling (ActNorm).

    Args:
        blocks: of residual maps.
        width, depth: of their nets' hidden layers.
        bounds: where numbers of a table end, as of `flow`.
    """

    summary = "residual blocks that contract; exact density of few entries, an estimate of many"
    as_computed = False
    recipe = Recipe(lr=1e-2, clip=40.0, ema=0.995, batch=256, bf16=False)
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"blocks": 2, "width": 16, "depth": 1},
        "small": {"blocks": 8, "width": 64, "depth": 2},
        "base": {"blocks": 16, "width": 256, "depth": 3},
    }

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        bounds: str = "",
        blocks: int | None = None,
        width: int | None = None,
        depth: int | None = None,
    ) -> None:
        super().__init__(space, given=given, size=size)
        chosen = self.options(size, blocks=blocks, width=width, depth=depth)
        shape = space.relaxed.shape
        dims = math.prod(shape)
        parts: list[Bijection] = [*histograms(space, bounds), Flatten(shape), ActNorm(dims)]
        for _ in range(chosen["blocks"]):
            g = Contraction(dims, given=given, width=chosen["width"], depth=max(1, chosen["depth"]))
            parts += [Residual(dims, g), ActNorm(dims)]
        self.map = self.parts = Chain(parts)
        if space.discrete:
            self.bound_draws = 8  # type: ignore[misc]

    def density(self, u: Tensor, given: Tensor | None, noise: Noise) -> LogProb:
        """log p(u): exact, or the mean of several estimates of each block."""
        estimated, nats, variance = False, torch.zeros(len(u), dtype=torch.float64, device=u.device), 0.0
        for part in self.parts:
            if isinstance(part, Residual) and not part.exact:
                estimated = True
                u, each = part.passage(u, given, noise.uniform(_PROBES, part.dims + 1)[: len(u)])
                log_det, variance = each.mean(1), variance + each.var(1) / _PROBES
            else:
                u, log_det = part(u, given)
            nats = nats + log_det
        nats = nats + log_normal(u)
        if not estimated:
            return LogProb(nats, "exact")
        assert isinstance(variance, Tensor)
        return LogProb(nats, "estimate", stderr=variance.sqrt(), how=f"series with a random end, {_PROBES} probes a block")
