r"""Bijections between a part of the line and the whole of it, for data that have bounds.

    Softplus   y = log(exp(x - low) - 1),            x > low
    Logit      y = log((x - low) / (high - x)),      low < x < high

Both are onto the whole line, so that a density made with them has mass one on their domain. (The usual logit of
alpha + (1 - 2 alpha) x keeps away from the ends but is not onto: the mass beyond logit(alpha) is lost.)

References:
    | Density estimation using Real NVP (Dinh et al., 2017) | https://arxiv.org/abs/1605.08803
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from likely.bijections.base import Bijection, per_example
from likely.errors import DataError

__all__ = ["Logit", "Softplus"]


class Softplus(Bijection):
    """Numbers above `low` -> the whole line, the inverse of a softplus; nearly x - low where that is large.

    Raises: DataError for values that are not above `low`.
    """

    def __init__(self, low: float = 0.0) -> None:
        super().__init__()
        self.low = low

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        above = x - self.low
        if bool((above <= 0).any()):
            raise DataError(
                f"Values of {x.min().item():.6g} are not above {self.low:g}.", "Was the bound that of the training split alone?"
            )
        rest = -torch.expm1(-above)  # log(e^a - 1) = a + log(1 - e^-a)
        return above + rest.log(), -per_example(rest.log())

    def inverse(self, y: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return torch.logaddexp(y, torch.zeros_like(y)) + self.low, per_example(F.logsigmoid(y))  # F.softplus rounds from 20 on


class Logit(Bijection):
    """Numbers between `low` and `high` -> the whole line.

    Args:
        channels: those of axis 1 that it is for; the others pass. All by default.
        edge: values so near to an end (as a share of the width) count as that far from it: what rounding has put onto one.

    Raises: DataError for values outside, by more than rounding.
    """

    def __init__(self, low: float = 0.0, high: float = 1.0, channels: list[int] | None = None, edge: float = 1e-7) -> None:
        super().__init__()
        self.low, self.high, self.channels, self.edge = low, high, channels, edge

    def _mine(self, x: Tensor) -> Tensor:
        return x if self.channels is None else x[:, self.channels]

    def _through(self, x: Tensor, y: Tensor) -> Tensor:
        if self.channels is None:
            return y
        return x.index_copy(1, torch.tensor(self.channels, device=x.device), y)

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        width = self.high - self.low
        share = (self._mine(x) - self.low) / width
        if bool(((share - 0.5).abs() > 0.5 + 1e-5).any()):
            worst = self._mine(x).flatten()[(share - 0.5).abs().flatten().argmax()]
            raise DataError(
                f"A value of {worst.item():.6g} is outside {self.low:g}..{self.high:g}.", "Was the data loaded with other bounds?"
            )
        y = torch.special.logit(share.clamp(self.edge, 1 - self.edge))
        return self._through(x, y), self._log_det(y)

    def _log_det(self, y: Tensor) -> Tensor:
        """Of the way to the line: -log(s (1 - s) width) at s = sigmoid(y)."""
        return per_example(-F.logsigmoid(y) - F.logsigmoid(-y) - math.log(self.high - self.low))

    def inverse(self, y: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mine = self._mine(y)
        return self._through(y, self.low + (self.high - self.low) * mine.sigmoid()), -self._log_det(mine)
