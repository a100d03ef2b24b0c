r"""A bijection that is the flow of an ordinary differential equation over the time from 0 to 1.

    dz/dt = f(z, t),      d log|det dz(t)/dz(0)| / dt = tr df/dz

The trace is exact, sum_d e_d . (df/dz) e_d, for up to `exact_up_to` entries, and beyond that
Hutchinson's estimate, the mean over K random signs e of e . (df/dz) e, which is unbiased: the signs are those of a row for the whole solve.

A few steps of equal length are no way to learn f: a net finds velocities whose error at these very steps looks like likelihood, and what it
then claims is no density (one summed to 1.9 +- .1). In training the steps' ends are drawn at random, so that errors do not add up to
anything to be learnt; otherwise each row is solved by steps of its own, to a tolerance (`solve.adaptive`), in double precision.

References:
    | Neural ordinary differential equations (Chen et al., 2018) | https://arxiv.org/abs/1806.07366
    | FFJORD (Grathwohl et al., 2019) | https://arxiv.org/abs/1810.01367
    | STEER: simple temporal regularization for neural ODEs (times drawn at random; Ghosh et al., 2020) | https://arxiv.org/abs/2006.10711
"""

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from likely.bijections.base import Bijection
from likely.model import in_precision
from likely.nets.velocity import VelocityMLP
from likely.solve.adaptive import dormand_prince, halved
from likely.solve.ode import runge_kutta

__all__ = ["Continuous", "Passage"]

_FINER = 100  # there and back again, errors of both ways add up; the price is less than twice the calls


class Passage(NamedTuple):
    """Where rows came to [B, dims]; log-determinants by each probe [B, K] (K = 1 where exact), float64; calls of f for each row [B]."""

    z: Tensor
    log_det: Tensor
    calls: Tensor


class Continuous(Bijection):
    """x [B, dims] carried along f from time 0 to 1; back for the inverse.

    Args:
        steps: of Runge and Kutta, in training.
        tolerance: of the solver otherwise, for every entry and for nats per entry; a hundredth of it where maps must return.
        exact_up_to: entries for which the trace is exact.
    """

    def __init__(self, dims: int, velocity: VelocityMLP, *, steps: int, tolerance: float = 1e-4, exact_up_to: int = 16) -> None:
        super().__init__()
        self.velocity, self.dims, self.steps, self.tolerance, self.exact = velocity, dims, steps, tolerance, dims <= exact_up_to

    def passage(self, x: Tensor, given: Tensor | None, probes: Tensor | None, tolerance: float, *, back: bool = False) -> Passage:
        """Through all of time by steps of each row's own; `probes` [B, K, dims] are signs, or None for the exact trace."""
        return self._passages(x, given, probes, tolerance, back=back)[0]

    def halved(self, x: Tensor, given: Tensor | None, probes: Tensor | None) -> tuple[Passage, Passage]:
        """The same to the model's own tolerance by halved steps, and by those that were halved; calls are those of both."""
        fine, coarse = self._passages(x, given, probes, self.tolerance, twice=True)
        return fine, coarse

    def _passages(
        self, x: Tensor, given: Tensor | None, probes: Tensor | None, tolerance: float, *, back: bool = False, twice: bool = False
    ) -> list[Passage]:
        """In double precision, where a row's steps do not hang on what is beside it; where a gradient is asked, in that of the weights."""
        graph = torch.is_grad_enabled()
        dtype = x.dtype if graph else torch.float64
        with nullcontext() if graph else in_precision(self.velocity, dtype):
            embedding = self.velocity.conditioner(given, len(x))

            def f(t: Tensor, state: Tensor, rows: Tensor) -> Tensor:
                z, mine = state[:, : self.dims].to(dtype), None if embedding is None else embedding[rows]
                slope, trace = self._slopes(z, t.to(dtype), mine, None if probes is None else probes[rows])
                return torch.cat([slope.double(), trace / self.dims], 1)

            begin = torch.cat([x.double(), x.new_zeros(len(x), 1 if probes is None else probes.shape[1], dtype=torch.float64)], 1)
            way = (f, begin, *((1.0, 0.0) if back else (0.0, 1.0)), tolerance)
            *ends, calls = halved(*way) if twice else dormand_prince(*way)
        return [Passage(end[:, : self.dims].to(x), self.dims * end[:, self.dims :], calls) for end in ends]

    def marched(self, x: Tensor, given: Tensor | None, probes: Tensor | None, *, back: bool = False) -> tuple[Tensor, Tensor]:
        """The same by `steps` steps between times drawn at random: z, and log-determinants [B, K]."""
        embedding = self.velocity.conditioner(given, len(x))

        def f(t: float, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return self._slopes(state[0], x.new_full((1,), t), embedding, probes)

        inner = (torch.arange(1, self.steps) + torch.rand(self.steps - 1) - 0.5) / self.steps
        times = [0.0, *inner.tolist(), 1.0]
        columns = 1 if probes is None else probes.shape[1]
        z, log_det = runge_kutta(f, (x, x.new_zeros(len(x), columns, dtype=torch.float64)), times[::-1] if back else times)
        return z, log_det

    def _slopes(self, z: Tensor, t: Tensor, embedding: Tensor | None, probes: Tensor | None) -> tuple[Tensor, Tensor]:
        """f [B, dims], and its trace by each probe [B, K], float64."""
        along = torch.eye(self.dims, dtype=z.dtype, device=z.device)[None] if probes is None else probes.to(z)
        slope, derivative = self.velocity(z, t, embedding, along)
        each = (derivative * along).sum(2)
        return slope, (each.sum(1, keepdim=True) if probes is None else each).double()

    def signs(self, uniform: Tensor) -> Tensor | None:
        """Random signs of probes from uniform numbers [B, K, dims]; None where the trace is exact."""
        return None if self.exact else torch.where(uniform < 0.5, -1.0, 1.0)

    def _moved(self, x: Tensor, given: Tensor | None, back: bool) -> tuple[Tensor, Tensor]:
        probes = None if self.exact else self.signs(torch.rand(len(x), 1, self.dims, device=x.device))
        if self.training:
            z, log_det = self.marched(x, given, probes, back=back)
        else:
            z, log_det, _ = self.passage(x, given, probes, self.tolerance / _FINER, back=back)
        return z, log_det.mean(1)

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._moved(x, given, False)

    def inverse(self, y: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._moved(y, given, True)
