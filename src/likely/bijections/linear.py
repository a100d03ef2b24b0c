r"""Linear bijections over axis 1 (of a grid they are 1x1 convolutions): each invertible by construction.

    ActNorm      scale and shift of every channel, started on a first batch
    Linear       y = P L U x, P a fixed permutation, L and U triangular
    Orthogonal   y = exp(A - A^T) x, a rotation: volume is kept, and the inverse is the transpose
    Permute      entries change places

References:
    | Glow: Generative flow with invertible 1x1 convolutions (Kingma and Dhariwal, 2018) | https://arxiv.org/abs/1807.03039
    | Cheap orthogonal constraints in neural networks (the exponential of skew matrices; Lezcano-Casado, 2019) | https://arxiv.org/abs/1901.08428
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from likely.bijections.base import Bijection, no_volume

__all__ = ["ActNorm", "Linear", "Orthogonal", "Permute"]


_STILL = 1e-3  # spread below which a channel of a first batch counts as constant


class ActNorm(Bijection):
    """y = (x - shift) exp(log_scale), per axis-1 channel, started so that a first batch comes out with mean 0 and variance 1.

    Whether it was started is a buffer: a resumed or fine-tuned model is not started again.
    """

    started: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift, self.log_scale = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("started", torch.zeros(1, dtype=torch.bool))

    def _over(self, v: Tensor, like: Tensor) -> Tensor:
        return v.view(-1, *[1] * (like.ndim - 2))

    def _log_det(self, x: Tensor) -> Tensor:
        return (self.log_scale.double().sum() * math.prod(x.shape[2:])).expand(len(x))

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return (x - self._over(self.shift, x)) * self._over(self.log_scale.exp(), x), self._log_det(x)

    def inverse(self, y: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return y * self._over((-self.log_scale).exp(), y) + self._over(self.shift, y), -self._log_det(y)

    @torch.no_grad()
    def start(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        if not self.started:
            values = x.transpose(0, 1).flatten(1).double()
            self.shift.copy_(values.mean(1))
            spread = values.std(1, correction=0)
            # a channel that stands still in this batch need not in the next, so nothing is known of its scale
            self.log_scale.copy_(-torch.where(spread > _STILL, spread, 1.0).log())
            self.started.fill_(True)
        return self(x, given)[0]


class Linear(Bijection):
    """y = W x over axis 1 (a 1x1 convolution on a grid), W = P L U with U's diagonal exp(log_diagonal).

    P is a fixed random permutation, L and U are triangular: invertible whatever the weights.
    """

    order: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("order", torch.randperm(channels))
        self.lower, self.upper = (nn.Parameter(torch.zeros(channels, channels)) for _ in range(2))
        self.log_diagonal = nn.Parameter(torch.zeros(channels))

    def _factors(self) -> tuple[Tensor, Tensor]:
        lower = self.lower.tril(-1) + torch.eye(len(self.order), device=self.lower.device)
        return lower, self.upper.triu(1) + torch.diag(self.log_diagonal.exp())

    def _log_det(self, x: Tensor) -> Tensor:
        return (self.log_diagonal.double().sum() * math.prod(x.shape[2:])).expand(len(x))

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        lower, upper = self._factors()
        weight = (lower @ upper)[self.order]
        return _over_channels(weight, x), self._log_det(x)

    def inverse(self, y: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        lower, upper = (f.double() for f in self._factors())
        flat = (y.flatten(2) if y.ndim > 2 else y[..., None]).double()[:, self.order.argsort()]
        half = torch.linalg.solve_triangular(lower, flat, upper=False, unitriangular=True)
        x = torch.linalg.solve_triangular(upper, half, upper=True)
        return x.to(y.dtype).view_as(y), -self._log_det(y)


class Orthogonal(Bijection):
    """y = exp(A - A^T) x over axis 1, A free; at first a random rotation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.free = nn.Parameter(torch.randn(channels, channels))

    @property
    def _weight(self) -> Tensor:
        free = self.free.tril(-1)
        return torch.linalg.matrix_exp(free - free.T)

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return _over_channels(self._weight, x), no_volume(x)

    def inverse(self, y: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return _over_channels(self._weight.T, y), no_volume(y)


class Permute(Bijection):
    """Entries of axis 1 change places: reversed, or in a random order that stays."""

    order: Tensor

    def __init__(self, channels: int, how: Literal["reverse", "random"]) -> None:
        super().__init__()
        self.reverse = how == "reverse"
        self.register_buffer("order", torch.arange(channels).flip(0) if self.reverse else torch.randperm(channels))

    def step(self, given: Tensor | None, n: int, *, inverse: bool) -> Tensor:
        return self.order

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x.flip(1) if self.reverse else x.index_select(1, self.order), no_volume(x)

    def inverse(self, y: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return y.flip(1) if self.reverse else torch.empty_like(y).index_copy(1, self.order, y), no_volume(y)


def _over_channels(weight: Tensor, x: Tensor) -> Tensor:
    """W x over axis 1."""
    return (weight @ x.flatten(2) if x.ndim > 2 else x @ weight.T).view_as(x)
