"""Linear maps masked by degrees: a weight is there where the target's degree is at least the source's.

References:
    | MADE: masked autoencoder for distribution estimation (Germain et al., 2015) | https://arxiv.org/abs/1502.03509
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MaskedLinear"]


class MaskedLinear(nn.Linear):
    """A linear map whose weights are zero where the target's degree is below the source's.

    Called, it has the degrees it was built for, where they are `fixed`; `masked` takes others.
    """

    mask: Tensor | None

    def __init__(self, source: Tensor, target: Tensor, bias: bool = True, *, fixed: bool = False) -> None:
        super().__init__(len(source), len(target), bias)
        allowed = source <= target[:, None]
        self.register_buffer("mask", allowed.to(self.weight) if fixed and not allowed.all() else None, persistent=False)
        with torch.no_grad():  # as many terms as sources, not as columns of the matrix
            self.weight.mul_((len(source) / allowed.sum(1, keepdim=True).clamp_min(1)).sqrt())

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight if self.mask is None else self.weight * self.mask, self.bias)

    def masked(self, input: Tensor, source: Tensor, target: Tensor) -> Tensor:
        return F.linear(input, torch.where(source <= target[:, None], self.weight, 0.0), self.bias)

    def part(self, input: Tensor, rows: slice) -> Tensor:
        """Some targets, from the first sources: those that `input` holds."""
        return F.linear(input, self.weight[rows, : input.shape[1]], None if self.bias is None else self.bias[rows])
