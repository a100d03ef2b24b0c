"""A denoiser that is shown some entries as they are: beside u it sees which, and in their place what they are."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["PartlyShown", "Shown", "Told"]


class Shown(NamedTuple):
    """What such a denoiser is told: `known`, of u's shape, NaN where it is not; and what else is given."""

    known: Tensor
    given: Tensor | None = None

    def unknown(self, v: Tensor) -> Tensor:
        """v where nothing is known, 0 elsewhere."""
        return v.masked_fill(~self.known.isnan(), 0.0)


Told = Tensor | Shown | None  # what a denoiser is given, with or without entries that are shown


class PartlyShown(nn.Module):
    """(u, t, `Shown` or what else is given) -> what the net says; with nothing known by default.

    Args:
        net: a denoiser of twice as many inputs, values first and then marks.
        axis: of the entries.
    """

    def __init__(self, net: nn.Module, axis: int) -> None:
        super().__init__()
        self.net, self.axis = net, axis

    def forward(self, u: Tensor, t: Tensor, told: Told = None) -> Tensor:
        known, given = told if isinstance(told, Shown) else (None, told)
        there = torch.zeros_like(u, dtype=torch.bool) if known is None else ~known.isnan()
        seen = u if known is None else torch.where(there, known.to(u), u)
        return self.net(torch.cat([seen, there.to(u)], self.axis), t, given)
