r"""A bijection that is the flow of an ordinary differential equation over the time from 0 to 1.

    dz/dt = f(z, t),      d log|det dz(t)/dz(0)| / dt = tr df/dz

The trace is exact, sum_d e_d . (df/dz) e_d, for up to `exact_up_to` entries, and beyond that
Hutchinson's estimate, the mean over K random signs e of e . (df/dz) e, which is unbiased: the signs are those of a row for the whole solve.

References:
    | Neural ordinary differential equations (Chen et al., 2018) | https://arxiv.org/abs/1806.07366
    | FFJORD (Grathwohl et al., 2019) | https://arxiv.org/abs/1810.01367
"""

from typing import NamedTuple

import torch
from torch import Tensor

from likely.bijections.base import Bijection
from likely.nets.velocity import VelocityMLP
from likely.solve.ode import runge_kutta

__all__ = ["Continuous", "Passage"]


class Passage(NamedTuple):
    """Where rows came to [B, dims], log-determinants by each probe [B, K] (K = 1 where exact), float64."""

    z: Tensor
    log_det: Tensor


class Continuous(Bijection):
    """x [B, dims] carried along f from time 0 to 1 in `steps` steps; back for the inverse."""

    def __init__(self, dims: int, velocity: VelocityMLP, *, steps: int, exact_up_to: int = 16) -> None:
        super().__init__()
        self.velocity, self.dims, self.steps, self.exact = velocity, dims, steps, dims <= exact_up_to

    def passage(self, x: Tensor, given: Tensor | None, probes: Tensor | None, steps: int, *, back: bool = False) -> Passage:
        """Through all of time; `probes` [B, K, dims] are signs, or None for the exact trace."""
        embedding = self.velocity.conditioner(given, len(x))
        along = torch.eye(self.dims, dtype=x.dtype, device=x.device)[None] if probes is None else probes.to(x)

        def f(t: float, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            slope, derivative = self.velocity(state[0], t, embedding, along)
            each = (derivative * along).sum(2)
            trace = each.sum(1, keepdim=True) if probes is None else each
            return slope, trace.double()

        columns = 1 if probes is None else probes.shape[1]
        begin = (x, x.new_zeros(len(x), columns, dtype=torch.float64))
        return Passage(*runge_kutta(f, begin, *((1.0, 0.0) if back else (0.0, 1.0)), steps))

    def signs(self, uniform: Tensor) -> Tensor | None:
        """Random signs of probes from uniform numbers [B, K, dims]; None where the trace is exact."""
        return None if self.exact else torch.where(uniform < 0.5, -1.0, 1.0)

    def _moved(self, x: Tensor, given: Tensor | None, back: bool) -> tuple[Tensor, Tensor]:
        probes = None if self.exact else self.signs(torch.rand(len(x), 1, self.dims, device=x.device))
        end = self.passage(x, given, probes, self.steps, back=back)
        return end.z, end.log_det.mean(1)

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._moved(x, given, False)

    def inverse(self, y: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._moved(y, given, True)
