r"""Marginal maps and rotations, the two halves of a step of Gaussianization.

    Marginals    y_d = Phi^-1(F_d(x_d)),   F_d(x) = sum_k w_dk Phi((x - m_dk) / s_dk)        (see `MixtureCDF`)
    Rotation     y = Q W x,                Q = H_1 ... H_R,   H_r = I - 2 v_r v_r^T / |v_r|^2

Both start from data: a mixture as a kernel estimate of its entry (components at quantiles, as wide as
their distances, and a wide one for the tails), the rotation W at the axes of independent components, with
reflections that undo one another.

References:
    | Gaussianization (Chen and Gopinath, 2000) | https://papers.nips.cc/paper/1856-gaussianization
    | Iterative Gaussianization: from ICA to random rotations (Laparra et al., 2011) | https://arxiv.org/abs/1602.00229
    | Gaussianization flows (Meng et al., 2020) | https://arxiv.org/abs/2003.01941
"""

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from likely.bijections.base import Bijection, no_volume, per_example
from likely.bijections.monotone import MixtureCDF
from likely.nets.conditioning import Conditioner
from likely.space import Space

__all__ = ["Marginals", "Rotation"]

_WIDTH = 16  # of the embedding of `given`


class Marginals(Bijection):
    """Each entry of [B, dims] through the distribution function of its own mixture of normals.

    Embedded, `given` shifts the mixtures' parameters by a linear map.
    """

    started: Tensor

    def __init__(self, dims: int, components: int, *, given: Space | None = None) -> None:
        super().__init__()
        self.transform, self.dims = MixtureCDF(components, "normal"), dims
        self.raw = nn.Parameter(torch.zeros(self.transform.size, dims))
        self.conditioner = Conditioner(given, _WIDTH)
        self.shift = nn.Linear(_WIDTH, self.raw.numel()) if given is not None else None
        if self.shift is not None:
            nn.init.zeros_(self.shift.weight)
            nn.init.zeros_(self.shift.bias)
        self.register_buffer("started", torch.zeros(1, dtype=torch.bool))

    def _raw(self, given: Tensor | None, batch: int) -> Tensor:
        embedding = self.conditioner(given, batch)
        return self.raw[None] if self.shift is None else self.raw + self.shift(embedding).view(-1, *self.raw.shape)

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, log_slope = self.transform(x, self._raw(given, len(x)))
        return y, per_example(log_slope)

    def inverse(self, y: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, log_slope = self.transform.inverse(y, self._raw(given, len(y)))
        return x, per_example(log_slope)

    @torch.no_grad()
    def start(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        if not self.started:
            k, values = self.transform.components - 1, x.double()
            center, spread = values.mean(0, keepdim=True), values.std(0, correction=0, keepdim=True).clamp_min(1e-3)
            means = torch.quantile(values, (torch.arange(k, device=x.device).double() + 0.5) / max(1, k), dim=0)
            edges = torch.cat([means[:1], means, means[-1:]])
            scales = torch.cat([((edges[2:] - edges[:-2]) / 2).maximum(spread / (2 * k)), spread]) if k else spread
            self.raw.copy_(self.transform.raw_of(torch.cat([means, center]), scales))
            self.started.fill_(True)
        return self(x, given)[0]


class Rotation(Bijection):
    """y = Q W x over entries [B, dims]: W orthogonal and fixed by the start, Q a product of learnt reflections."""

    axes: Tensor
    started: Tensor

    def __init__(self, dims: int, reflections: int) -> None:
        super().__init__()
        half = torch.randn(max(1, reflections // 2), dims)
        self.reflectors = nn.Parameter(torch.cat([half, half.flip(0)]))  # each is undone by its twin at first
        self.register_buffer("axes", torch.linalg.qr(torch.randn(dims, dims, dtype=torch.float64))[0].float())
        self.register_buffer("started", torch.zeros(1, dtype=torch.bool))

    def _matrix(self) -> Tensor:
        matrix = self.axes
        for v in F.normalize(self.reflectors, dim=1):
            matrix = matrix - 2 * v[:, None] * (v @ matrix)
        return matrix

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x @ self._matrix().T, no_volume(x)

    def inverse(self, y: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return y @ self._matrix(), no_volume(y)

    @torch.no_grad()
    def start(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        if not self.started:
            self.axes.copy_(independent_axes(x).to(self.axes))
            self.started.fill_(True)
        return self(x, given)[0]


def independent_axes(x: Tensor) -> Tensor:
    """The orthogonal matrix nearest to what unmixes x [B, dims] into independent components (FastICA)."""
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    if x.shape[1] == 1 or len(x) <= x.shape[1]:
        return torch.linalg.qr(torch.randn(x.shape[1], x.shape[1], dtype=torch.float64))[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # nearly normal data have no best axes; any will do
        ica = FastICA(whiten="unit-variance", max_iter=20, tol=1e-2, random_state=0).fit(x.double().cpu().numpy())
    left, _, right = torch.linalg.svd(torch.from_numpy(ica.components_))
    return left @ right
