r"""A learnt shape of a noise schedule: the log-SNR as a monotone function of time, as in variational diffusion models.

    lambda_t = start + (end - start) (g(t) - g(0)) / (g(1) - g(0)),    g(t) = w_0 t + sum_j w_j sigmoid(a_j (t - b_j))

with all w and a positive, so that lambda falls whatever the parameters are, and g is nearly a straight line at first. The bound does
not depend on what lies between the ends, but the noise of its estimate does: to train g, minimise the variance of the loss.
The ends themselves change the bound, and can be learnt by it; then lambda_0 and lambda_1 carry gradients.

References:
    | Variational diffusion models (Kingma et al., 2021) | https://arxiv.org/abs/2107.00630
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from likely.errors import UsageError
from likely.solve.shapes import Shape

__all__ = ["LearntShape"]

_TABLE, _NEWTON = 1024, 4  # places between which lambda is all but straight, and steps to the last bits of a double


class LearntShape(nn.Module, Shape):
    """lambda_t by a small monotone net; `solve.noise.Schedule(LearntShape(...))` is a schedule.

    Args:
        start, end: log-SNRs at t = 0 and 1.
        width: bends of the curve.
        learn_ends: whether the ends are parameters; start stays above end.
    """

    span: Tensor  # [2]: the middle of the two, and the log of half their distance

    def __init__(self, start: float, end: float, *, width: int = 32, learn_ends: bool = False) -> None:
        super().__init__()
        if not start > end:
            raise UsageError(f"A noise schedule cannot go from log-SNR {start} to {end}.", "It falls from start to end.")
        span = torch.tensor([(start + end) / 2, math.log((start - end) / 2)])
        self.span = nn.Parameter(span) if learn_ends else nn.Buffer(span)
        self.weight = nn.Parameter(torch.cat([torch.full((1,), 0.54), torch.full((width,), -5.0)]))  # softplus(.54) = 1
        self.steepness = nn.Parameter(torch.full((width,), 10.0))
        self.place = nn.Parameter(torch.linspace(0, 1, width))

    def ends(self) -> tuple[float, float]:
        start, end = self._ends()
        return start.item(), end.item()

    def _ends(self) -> tuple[Tensor, Tensor]:
        middle, half = self.span[0], self.span[1].exp()
        return middle + half, middle - half

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(lambda_t, d lambda / dt), of the shape and precision of t, with gradients for the parameters."""
        start, end = (v.to(t) for v in self._ends())
        (first, _), (last, _), (value, slope) = (self._curve(at) for at in (t.new_zeros(1), t.new_ones(1), t))
        return start + (end - start) * (value - first) / (last - first), (end - start) * slope / (last - first)

    def _curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """g(t) and its derivative."""
        weight, steepness, place = (p.to(t) for p in (softplus(self.weight), softplus(self.steepness), self.place))
        bend = torch.sigmoid(steepness * (t[..., None] - place))
        value = weight[0] * t + (weight[1:] * bend).sum(-1)
        return value, weight[0] + (weight[1:] * steepness * bend * (1 - bend)).sum(-1)

    def log_snr(self, t: Tensor) -> Tensor:
        return self(t)[0]

    def slope(self, t: Tensor) -> Tensor:
        return self(t)[1]

    @torch.no_grad()
    def time(self, log_snr: Tensor) -> Tensor:
        """By Newton's method from a table, between its two neighbouring places."""
        table = torch.linspace(0, 1, _TABLE, dtype=log_snr.dtype, device=log_snr.device)
        place = torch.searchsorted(-self.log_snr(table), -log_snr.contiguous()).clamp(1, _TABLE - 1)
        low, high = table[place - 1], table[place]
        t = (low + high) / 2
        for _ in range(_NEWTON):
            value, slope = self(t)
            t = (t - (value - log_snr) / slope).clamp(low, high)
        return t

    def steadied(self, t: Tensor, nats: Tensor) -> Tensor:
        r"""Zero, with the gradient that lowers the variance of `nats` [B], unbiased estimates of the bound at times t [B].

        At a time t they are f(lambda) / p(lambda), p = -dt/dlambda, whatever the shape; so E[nats^2] = int f^2 / p, and its gradient is
        -E[nats^2 grad log p(lambda)] at fixed lambda, where t moves with the parameters.
        """
        value, slope = self(t)
        moved = t + (value.detach() - value) / slope.detach()
        log_density = -(-self(moved)[1]).log()
        weight = nats.detach().square()
        loss = -weight / weight.mean() * nats.detach().mean() * log_density
        return loss - loss.detach()
