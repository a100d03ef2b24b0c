r"""Bijections of integers onto integers, which need no log-determinant: no mass is spread or squeezed, it only moves.

    y_m = (x_m + round(t(x_stay))) mod K_m,      y_stay = x_stay

Levels 0..K-1 stand on a circle, so that the shift is a bijection of the grid onto itself and what a
distribution on the grid sums to, one, stays. (Shifts on the line would carry mass off the grid, where there is no
data.) Rounding has the gradient of the identity while training.

References:
    | Integer discrete flows and lossless compression (Hoogeboom et al., 2019) | https://arxiv.org/abs/1905.07376
    | Discrete flows: invertible generative models of discrete data (Tran et al., 2019) | https://arxiv.org/abs/1905.10347
"""

import torch
from torch import Tensor, nn

from likely.bijections.base import Bijection

__all__ = ["ModularCoupling", "on_unit_scale"]

_REACH = 0.1  # levels per unit of a net's output: shifts that jump while little is learnt cost much


def on_unit_scale(x: Tensor, levels: Tensor) -> Tensor:
    """Levels 0..K-1 as the middles of K cells of [-1, 1]."""
    return (2 * x + 1) / levels - 1


class ModularCoupling(Bijection):
    """Some entries are shifted, around the circle of their levels, by amounts that others choose.

    Takes integers as floats [B, D], and gives such.

    Args:
        levels: of each entry, [D].
        stay, moves: bool [D]: which entries choose, and which move; entries that are in neither pass.
        net: (reals [B, D], given) -> [B, 1, moved].
    """

    levels: Tensor
    stay: Tensor
    moved: Tensor

    def __init__(self, levels: Tensor, stay: Tensor, moves: Tensor, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("levels", levels)
        self.register_buffer("stay", stay)
        self.register_buffer("moved", moves.nonzero().squeeze(1))

    def _shift(self, x: Tensor, given: Tensor | None) -> Tensor:
        t = self.net(on_unit_scale(x, self.levels) * self.stay, given)[:, 0] * _REACH
        return t + (t.round() - t).detach()

    def _moved(self, x: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
        there = torch.remainder(x.index_select(1, self.moved) + by, self.levels[self.moved])
        return x.index_copy(1, self.moved, there), x.new_zeros(len(x), dtype=torch.float64)

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._moved(x, self._shift(x, given))

    def inverse(self, y: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._moved(y, -self._shift(y, given))
