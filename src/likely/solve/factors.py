r"""Normals of low rank over the numbers of an example: factor analysers, probabilistic PCA.

    z ~ N(0, I_q),    u | z ~ N(m + W z, s^2 I)

Given z the numbers are independent, so cells are integrated and only z is drawn, from its posterior
at the cells' middles; of reals the same formula is exact without a draw, at any z:

    p(x) = E P(x | z) p(z) / q(z),    z ~ q(z) = p(z | u at the middles of cells)

Unknown numbers have no factor, neither in P(x | z) nor in the posterior.
"""

import torch
from torch import Tensor

from likely.noise import Noise
from likely.solve.intervals import normal_interval, normal_log_density
from likely.solve.numbers import Numbers
from likely.space import Space

__all__ = ["Factors"]


class Factors(Numbers):
    """Normals of low rank: exact on reals, by importance draws of z on a grid.

    Attributes:
        mean, axes, variance: m [C, N], W [C, N, q] and s^2 [C], on the relaxed scale.
    """

    mean: Tensor
    axes: Tensor
    variance: Tensor

    def __init__(self, flat: Space, components: int = 1) -> None:
        super().__init__(flat)
        self.register_buffer("mean", torch.zeros(components, len(self.center), dtype=torch.float64))
        self.register_buffer("axes", torch.zeros(components, len(self.center), 0, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(components, dtype=torch.float64))

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def exact(self) -> bool:
        return not self.gridded

    def noise(self, number: Tensor, noise: Noise) -> Tensor:
        """Standard normals for z, [K, B, q]; zeros on reals, where any z serves."""
        rank = self.axes.shape[2]
        return noise.normal(rank).view(noise.draws, len(number), rank) if self.gridded else number.new_zeros(1, len(number), rank)

    def log_prob(self, number: Tensor, noise: Tensor) -> Tensor:
        edges = self.cells(number) if self.gridded else (self.at(number),)
        return torch.stack([self._component(number, edges, noise, c) for c in range(len(self))], 2)

    def _component(self, number: Tensor, edges: tuple[Tensor, ...], noise: Tensor, c: int) -> Tensor:
        """log P(x | z) p(z) / q(z) of each draw of z, [K, B]."""
        center, root = self.posterior(number, c)
        z = center + (root @ noise[..., None])[..., 0]
        mean, s = self.mean[c] + z @ self.axes[c].T, self.variance[c].sqrt()
        if self.gridded:
            each = normal_interval((edges[0] - mean) / s, (edges[1] - mean) / s)
        else:
            each = normal_log_density((edges[0] - mean) / s) - (s * self.scale).log()
        volume = root.diagonal(dim1=1, dim2=2).log().sum(1)
        return each.masked_fill(number.isnan(), 0.0).sum(2) - 0.5 * (z.square() - noise.square()).sum(2) + volume

    def posterior(self, number: Tensor, c: int) -> tuple[Tensor, Tensor]:
        """Mean [B, q] and Cholesky factor [B, q, q] of q(z | known numbers); a cell has a variance besides the noise."""
        u, axes = self.at(number), self.axes[c]
        precision = (~u.isnan()) / (self.variance[c] + self.gridded / (12 * self.scale.square()))
        each, which = precision.unique(dim=0, return_inverse=True)  # rows with the same gaps share a factor
        inner = torch.einsum("pn,nq,nr->pqr", each, axes, axes) + torch.eye(axes.shape[1], dtype=u.dtype, device=u.device)
        covariance = torch.cholesky_inverse(torch.linalg.cholesky(inner))
        pulled = ((u - self.mean[c]).nan_to_num(0.0) * precision) @ axes
        return (covariance[which] @ pulled[..., None])[..., 0], torch.linalg.cholesky(covariance)[which]

    def complete(self, number: Tensor, noise: Tensor, component: Tensor) -> Tensor:
        u = torch.empty_like(number)
        for c in component.unique().tolist():
            rows = component == c
            center, root = self.posterior(number[rows], c)
            e = noise[rows] if self.gridded else torch.randn(center.shape, dtype=u.dtype, device=u.device)
            z = center + (root @ e[..., None])[..., 0]
            u[rows] = self.mean[c] + z @ self.axes[c].T + self.variance[c].sqrt() * torch.randn_like(u[rows])
        return u
