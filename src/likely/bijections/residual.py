r"""Residual bijections y = x + g(x), invertible because g contracts: Lip(g) <= c < 1.

    g        x -> c W_n sin( ... sin(W_1 x + b_1) ...) / (sigma_1 ... sigma_n) + b_n,    sigma_i the largest singular value of W_i
    inverse  x <- y - g(x), whose error shrinks by c at least at each iteration, until it is below a tolerance
    log det  log |det (I + J)|, J = dg/dx: exact from all of J for few entries; else the power series, with an
             unbiased random end and Hutchinson's trace,
             sum_k (-1)^(k+1) / k  e . J^k e / P(N >= k),    N - 3 geometric, e random signs

Only the product of the norms is bounded, so that the first matrix can reach frequencies that matrices bounded one by
one cannot, at a smaller amplitude; and g always uses all of its bound. A sine has slopes up to one wherever it is, and
is bounded: far from the data the map is a translation.

In training sigma is followed by power iteration, whose vectors are buffers; otherwise it is computed, so that a model
contracts whatever has become of its weights (averaged, resumed).

References:
    | Invertible residual networks (Behrmann et al., 2019) | https://arxiv.org/abs/1811.00995
    | Residual flows for invertible generative modeling (Chen et al., 2019) | https://arxiv.org/abs/1906.02735
    | Spectral normalization for generative adversarial networks (Miyato et al., 2018) | https://arxiv.org/abs/1802.05957
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from likely.bijections.base import Bijection
from likely.errors import LikelyError
from likely.model import in_precision
from likely.nets.conditioning import Conditioner
from likely.space import Space

__all__ = ["Contraction", "Residual"]

_SURE = 3  # terms of the series that are always there
_GOES_ON = 0.5  # probability of each further one
_TOLERANCE = 1e-6  # of the inverse, relative to 1 + |y|; a float64 gets the square of it
_ITERATIONS = 1200
_FREQUENCY = 2.0  # of the first layer at first, of entries of variance one
_LEAST = 1e-20  # norm of matrices; of matrices of zero g is its bias


class NormedLinear(nn.Module):
    """W h + b, W orthogonal at first, and the largest singular value of W."""

    left: Tensor

    def __init__(self, inputs: int, out: int) -> None:
        super().__init__()
        self.inner = nn.Linear(inputs, out)
        nn.init.orthogonal_(self.inner.weight)
        self.register_buffer("left", F.normalize(torch.randn(out), dim=0))

    def norm(self) -> Tensor:
        matrix = self.inner.weight
        if not self.training:
            return torch.linalg.matrix_norm(matrix.double(), 2)
        with torch.no_grad():
            right = F.normalize(matrix.T @ self.left, dim=0)
            left = F.normalize(matrix @ right, dim=0)
            self.left.copy_(left)
        return left @ matrix @ right


class Contraction(nn.Module):
    """g(x), and its derivatives along directions; its Lipschitz constant is at most `bound`. `given` shifts the first layer."""

    def __init__(self, dims: int, *, given: Space | None = None, width: int = 64, depth: int = 2, bound: float = 0.98) -> None:
        super().__init__()
        sizes = [dims, *[width] * depth, dims]
        self.layers = nn.ModuleList(NormedLinear(a, b) for a, b in itertools.pairwise(sizes))
        self.conditioner, self.bound = Conditioner(given, width), bound
        with torch.no_grad():
            self.layers[0].inner.weight.mul_(_FREQUENCY)  # type: ignore[union-attr,operator]

    def prepared(self, given: Tensor | None, batch: int) -> tuple[list[Tensor], Tensor | None]:
        """Weights and the embedding of `given`, once for many evaluations."""
        weights: list[Tensor] = [layer.inner.weight for layer in self.layers]  # type: ignore[misc,union-attr]
        norm = torch.stack([layer.norm() for layer in self.layers]).prod()  # type: ignore[operator]
        last = weights[-1] * (self.bound / norm.clamp_min(_LEAST)).to(weights[-1])
        return [*weights[:-1], last], self.conditioner(given, batch)

    def linearised(self, x: Tensor, weights: list[Tensor], embedding: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """g(x), and the slopes of the hidden units."""
        h, slopes = x, []
        for i, (weight, layer) in enumerate(zip(weights, self.layers, strict=True)):
            h = F.linear(h, weight, layer.inner.bias)  # type: ignore[union-attr]
            if i == 0 and embedding is not None:
                h = h + embedding
            if i + 1 < len(weights):
                slopes.append(h.cos())
                h = h.sin()
        return h, slopes

    @staticmethod
    def along(v: Tensor, weights: list[Tensor], slopes: list[Tensor]) -> Tensor:
        """J v of directions v [B or 1, n, dims]."""
        for weight, slope in zip(weights, [*slopes, None], strict=True):
            v = v @ weight.T
            v = v if slope is None else v * slope[:, None]
        return v


class Residual(Bijection):
    """y = x + g(x) on [B, dims].

    Args:
        exact_up_to: entries for which the log-determinant is that of the whole Jacobian; (in training, otherwise).

    Attributes:
        iterations: of the last inverse, of the row that took most.
    """

    def __init__(self, dims: int, g: Contraction, exact_up_to: tuple[int, int] = (8, 64)) -> None:
        super().__init__()
        self.dims, self.g, self.exact_up_to, self.iterations = dims, g, exact_up_to, 0

    @property
    def exact(self) -> bool:
        return self.dims <= self.exact_up_to[0 if self.training else 1]

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        uniform = None if self.exact else torch.rand(len(x), 1, self.dims + 1, device=x.device)
        y, log_det = self.passage(x, given, uniform)
        return y, log_det.mean(1)

    def passage(self, x: Tensor, given: Tensor | None, uniform: Tensor | None) -> tuple[Tensor, Tensor]:
        """y, and log-determinants [B, K], float64: exact (K = 1), or estimates from uniform numbers [B, K, dims + 1]."""
        weights, embedding = self.g.prepared(given, len(x))
        image, slopes = self.g.linearised(x, weights, embedding)
        if uniform is None:
            return x + image, torch.linalg.slogdet(self._jacobian(x, weights, slopes).double()).logabsdet[:, None]
        return x + image, self._series(uniform, weights, slopes, x.dtype)

    def _jacobian(self, x: Tensor, weights: list[Tensor], slopes: list[Tensor]) -> Tensor:
        """I + J, transposed, [B, dims, dims]."""
        eye = torch.eye(self.dims, dtype=x.dtype, device=x.device)
        return eye + self.g.along(eye[None].expand(len(x), -1, -1), weights, slopes)

    def _series(self, uniform: Tensor, weights: list[Tensor], slopes: list[Tensor], dtype: torch.dtype) -> Tensor:
        """Each probe of each row ends its series at its own N, so that rows do not depend on each other."""
        last = _SURE + (uniform[..., 0].double().log() / torch.tensor(_GOES_ON).double().log()).floor()
        signs = torch.where(uniform[..., 1:] < 0.5, -1.0, 1.0).to(dtype)
        v, total = signs, torch.zeros_like(last)
        for k in range(1, int(last.max()) + 1):
            v = self.g.along(v, weights, slopes)
            weight = (last >= k) * (-1.0) ** (k + 1) / k / _GOES_ON ** max(0, k - _SURE)
            total = total + weight * (v * signs).sum(2, dtype=torch.float64)
        return total

    def inverse(self, y: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x and log |det dx/dy|. Raises: LikelyError if the iteration does not end, as it does for finite weights."""
        with torch.no_grad():
            x = self._solve(y, given)
        if torch.is_grad_enabled():  # one Newton step more, which has the gradient of the implicit function
            weights, embedding = self.g.prepared(given, len(y))
            image, slopes = self.g.linearised(x, weights, embedding)
            jacobian = self._jacobian(x, weights, slopes).detach()
            x = x + torch.linalg.solve(jacobian.mT, (y - x - image)[..., None])[..., 0]
        return x, -self(x, given)[1]

    def _solve(self, y: Tensor, given: Tensor | None) -> Tensor:
        """By iteration in double precision: what single precision rounds off keeps a map that hardly contracts from coming to rest."""
        with in_precision(self.g, torch.float64):
            weights, embedding = self.g.prepared(given, len(y))
            x = goal = y.double()
            tolerance = (_TOLERANCE if y.dtype == torch.float32 else _TOLERANCE**2) * (1 + goal.abs().amax(1, keepdim=True))
            there = torch.zeros(len(y), 1, dtype=torch.bool, device=y.device)
            for self.iterations in range(1, _ITERATIONS + 1):
                new = goal - self.g.linearised(x, weights, embedding)[0]
                now = (new - x).abs().amax(1, keepdim=True) <= tolerance
                x, there = torch.where(there, x, new), there | now
                if bool(there.all()):
                    return x.to(y)
        raise LikelyError("The inverse of a residual map was not found.", "Its parameters are not finite: train with a smaller lr.")
