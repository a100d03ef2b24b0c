"""Bijections that move entries and leave their values: volume is kept, the log-determinant is zero.

References:
    | Density estimation using Real NVP (Dinh et al., 2017) | https://arxiv.org/abs/1605.08803
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from likely.bijections.base import Bijection, no_volume

__all__ = ["Flatten", "Rest", "Squeeze"]


class Flatten(Bijection):
    """[B, *shape] -> [B, dims]."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x.flatten(1), no_volume(x)

    def inverse(self, y: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return y.view(-1, *self.shape), no_volume(y)


class Squeeze(Bijection):
    """[B, C, H, W] -> [B, 4 C, H / 2, W / 2]: each 2 x 2 block becomes channels."""

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return F.pixel_unshuffle(x, 2), no_volume(x)

    def inverse(self, y: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return F.pixel_shuffle(y, 2), no_volume(y)


class Rest(Bijection):
    """Half of the channels are done; the others go on through `inner`, which flattens: -> [B, dims]."""

    def __init__(self, shape: tuple[int, int, int], inner: Bijection) -> None:
        super().__init__()
        self.shape, self.inner = (shape[0] // 2, *shape[1:]), inner

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        done = self.shape[0]
        y, log_det = self.inner(x[:, done:], given)
        return torch.cat([x[:, :done].flatten(1), y], 1), log_det

    def inverse(self, y: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        count = self.shape[0] * self.shape[1] * self.shape[2]
        x, log_det = self.inner.inverse(y[:, count:], given)
        return torch.cat([y[:, :count].view(-1, *self.shape), x], 1), log_det

    def start(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        done = self.shape[0]
        return torch.cat([x[:, :done].flatten(1), self.inner.start(x[:, done:], given)], 1)
