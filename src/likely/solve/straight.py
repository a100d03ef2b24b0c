r"""The straight path from an example to its noise, and where a velocity along it leads.

    z_t = (1 - s) e + s eps,     s = first + span t,     dz/dt = span (eps - e),     e = z - s / span dz/dt

s begins where the data are resolved and ends where next to nothing is left of them. Nets see z / ((1 - s)^2 + s^2)^(1/2), whose variance
is that of the data.

References:
    | Flow matching for generative modeling (Lipman et al., 2023) | https://arxiv.org/abs/2210.02747
"""

from collections.abc import Callable

import torch
from torch import Tensor

from likely.nets.conditioning import expand_like
from likely.nets.partial import Told
from likely.solve.noise import noise_schedule

__all__ = ["ENDS", "EVENLY", "Straight"]

ENDS = (6.0, -14.0)  # log-SNR: sigma from 5 % of the data's deviation, less where the data are finer; alpha down to .1 %

# in its own time a path is straight, so that solvers of velocities take even steps of it; Heun's method, in sigma / alpha, does not
EVENLY = frozenset({"dpm-solver", "ddim", "euler"})


class Straight:
    """The path of data that are resolved at a log-SNR; `schedule` says the same as all others do."""

    def __init__(self, log_snr: float) -> None:
        self.schedule = noise_schedule("rectified", max(log_snr, ENDS[0]), ENDS[1], scaling="rectified")
        ends = torch.tensor([self.schedule.start, self.schedule.end], dtype=torch.float64)
        self.first, last = self.schedule.at(ends)[1].tolist()
        self.span = last - self.first

    def noise(self, t: Tensor, like: Tensor) -> Tensor:
        """s at times t [B], to broadcast over `like`."""
        return expand_like(self.first + self.span * t.to(like), like)

    def velocity(self, net: Callable[..., Tensor], z: Tensor, t: Tensor, given: Told) -> Tensor:
        """dz/dt by a net, z [B, ...] at t [B]."""
        s = self.noise(t, z)
        return net(z / torch.hypot(1 - s, s), t.to(z), given).to(z)

    def clean(self, net: Callable[..., Tensor], z: Tensor, t: Tensor, given: Told) -> Tensor:
        """The example at the end of the line through z along the net's velocity."""
        return z - self.noise(t, z) / self.span * self.velocity(net, z, t, given)
