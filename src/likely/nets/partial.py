"""A denoiser that is shown some entries as they are: beside u it sees which, and in their place what they are."""

import torch
from torch import Tensor, nn

__all__ = ["PartlyShown"]


class PartlyShown(nn.Module):
    """(u, t, entries of u's shape that are known, NaN where they are not) -> what the net says; with nothing known by default.

    Args:
        net: a denoiser of twice as many inputs, values first and then marks.
        axis: of the entries.
    """

    def __init__(self, net: nn.Module, axis: int) -> None:
        super().__init__()
        self.net, self.axis = net, axis

    def forward(self, u: Tensor, t: Tensor, known: Tensor | None = None) -> Tensor:
        there = torch.zeros_like(u, dtype=torch.bool) if known is None else ~known.isnan()
        seen = u if known is None else torch.where(there, known.to(u), u)
        return self.net(torch.cat([seen, there.to(u)], self.axis), t)
