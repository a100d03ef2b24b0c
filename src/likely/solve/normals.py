r"""Normals with any covariance over the numbers of an example, some of which may be unknown.

    log N(u_O; m_O, S_OO)        the marginal of what is known, O
    u_U | u_O ~ v_U + S_UO S_OO^-1 (u_O - v_O),   v ~ N(m, S)        (Matheron's rule)

A real is a point u. A number on a grid is a cell, in which u is drawn uniformly: p(x) is then the
mean over draws, and its log a lower bound.
"""

import torch
from torch import Tensor

from likely.noise import Noise
from likely.solve.intervals import normal_log_density
from likely.solve.numbers import Numbers
from likely.space import Space

__all__ = ["Normals", "alike"]


def alike(there: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(pattern [N], its rows) of each distinct row of bools [B, N]."""
    if bool(there.all()):
        return [(there.new_ones(there.shape[1]), torch.arange(len(there), device=there.device))]
    patterns, which = there.unique(dim=0, return_inverse=True)
    return [(pattern, (which == p).nonzero()[:, 0]) for p, pattern in enumerate(patterns)]


class Normals(Numbers):
    """Normals of any covariance: exact on reals, by dequantization on a grid.

    Attributes:
        mean, root: on the relaxed scale [C, N], and lower triangles R [C, N, N] with R R' the covariance.
    """

    mean: Tensor
    root: Tensor

    def __init__(self, flat: Space) -> None:
        super().__init__(flat)
        self.register_buffer("mean", torch.zeros(0, len(self.center), dtype=torch.float64))
        self.register_buffer("root", torch.zeros(0, len(self.center), len(self.center), dtype=torch.float64))

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def exact(self) -> bool:
        return not self.gridded

    def noise(self, number: Tensor, noise: Noise) -> Tensor:
        """Places within cells, [K, B, N]."""
        return noise.uniform(number.shape[1]).view(noise.draws, *number.shape) if self.gridded else super().noise(number, noise)

    def log_prob(self, number: Tensor, noise: Tensor) -> Tensor:
        u = self._placed(number, noise).flatten(0, 1)
        volume = (self.scale.log() * ~number.isnan()).sum(1)
        return self.log_density(u).view(-1, len(number), len(self)) - volume[:, None]

    def _placed(self, number: Tensor, noise: Tensor) -> Tensor:
        """u [K, B, N] within the cells of numbers."""
        within = noise - 0.5 if self.gridded else number.new_zeros(1, 1, 1)
        return self.at(number) + within / self.scale

    def log_density(self, u: Tensor) -> Tensor:
        """log N of what is known of u [B, N] under each component, [B, C]."""
        nats = u.new_zeros(len(u), len(self))
        for known, rows in alike(~u.isnan()):
            for c in range(len(self)):
                root = self._marginal_root(c, known)
                z = torch.linalg.solve_triangular(root, (u[rows][:, known] - self.mean[c, known]).T, upper=False)
                nats[rows, c] = normal_log_density(z).sum(0) - root.diagonal().log().sum()
        return nats

    def _marginal_root(self, c: int, known: Tensor) -> Tensor:
        part = self.root[c, known]
        return self.root[c] if bool(known.all()) else torch.linalg.cholesky(part @ part.T)

    def complete(self, number: Tensor, noise: Tensor, component: Tensor) -> Tensor:
        u = self._placed(number, noise[None])[0]
        for c in component.unique().tolist():
            mine = (component == c).nonzero()[:, 0]
            for known, rows in alike(~u[mine].isnan()):
                u[mine[rows]] = self._conditional(u[mine[rows]], known, c)
        return u

    def _conditional(self, u: Tensor, known: Tensor, c: int) -> Tensor:
        drawn = self.mean[c] + torch.randn(u.shape, dtype=u.dtype, device=u.device) @ self.root[c].T
        gain, _ = self.regression(c, known)
        return torch.where(known, u, drawn + (u[:, known] - drawn[:, known]) @ gain.T)

    def regression(self, c: int, known: Tensor) -> tuple[Tensor, Tensor]:
        """S_:O S_OO^-1 [N, O], by which all numbers follow those known, and the covariance that is left [N, N]."""
        covariance = self.root[c] @ self.root[c].T
        gain = torch.cholesky_solve(covariance[known], self._marginal_root(c, known)).T
        return gain, covariance - gain @ covariance[known]
