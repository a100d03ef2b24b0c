r"""Probabilistic PCA: a normal whose covariance has few large directions, in closed form.

    z ~ N(0, I_q),    u | z ~ N(mu + W z, s^2 I),    so u ~ N(mu, W W' + s^2 I)
    W = V_q (L_q - s^2 I)^(1/2),    s^2 = f times the mean of the eigenvalues that are left out

with V_q, L_q the leading eigenvectors and eigenvalues of the covariance (scikit-learn's PCA). The
rank q and f (1 by maximum likelihood; more is safer) are chosen on the validation split. Of real
data the density is exact. Numbers on a grid are independent given z, so their cells are
integrated, open edges included, and only z is drawn: an importance-weighted lower bound

    log p(x) >= E log 1/K sum_k P(x | z_k) p(z_k) / q(z_k | x),    q the posterior at the cells' middles

Tables with nominals or missing cells have a lower bound by dequantization in K draws. Given a
label, each label has a normal of its own, and p(x | y) mixes in all others' a little.

References:
    | Probabilistic principal component analysis (Tipping and Bishop, 1999) | https://doi.org/10.1111/1467-9868.00196
    | Importance weighted autoencoders (Burda et al., 2016) | https://arxiv.org/abs/1509.00519
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from likely.logprob import LogProb
from likely.model import Batches, ClosedForm, Likelihood, Model
from likely.noise import Noise, log_mean_exp
from likely.solve.intervals import normal_interval, normal_log_density
from likely.solve.labels import component_weights, label_count, label_of, labelled
from likely.solve.products import Observed, flattened
from likely.space import Space

__all__ = ["ProbabilisticPCA"]

_DRAWS = 4  # of a validation example's bound, when ranks are compared
_INFLATIONS = (1.0, 1.4, 2.0, 2.8)  # f
_FLOOR = 1e-6  # smallest s^2, of the variance of standardised data
_JUDGES = 512  # validation examples that choose


class Subspace(nn.Module):
    """u [., F] = mean + axes z + noise: one normal of low rank."""

    mean: Tensor
    axes: Tensor
    variance: Tensor

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dims, dtype=torch.float64))
        self.register_buffer("axes", torch.zeros(dims, 0, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(1, dtype=torch.float64))

    def posterior(self, u: Tensor, extra: float = 0.0) -> tuple[Tensor, Tensor]:
        """Mean [B, q] and Cholesky factor [q, q] of q(z | u); `extra` is variance that u has besides the noise."""
        variance = self.variance + extra
        precision = torch.eye(self.axes.shape[1], dtype=torch.float64) + self.axes.T @ self.axes / variance
        covariance = torch.cholesky_inverse(torch.linalg.cholesky(precision))
        return (u - self.mean) @ self.axes @ covariance / variance, torch.linalg.cholesky(covariance)

    def log_density(self, u: Tensor) -> Tensor:
        """log p(u) = log p(u | z) + log p(z) - log q(z | u), at the posterior's mean; u [B, F] -> nats [B]."""
        z, root = self.posterior(u)
        residual = (u - self.mean - z @ self.axes.T) / self.variance.sqrt()
        nats = (normal_log_density(residual) - 0.5 * self.variance.log()).sum(1)
        return nats - 0.5 * z.square().sum(1) + root.diagonal().log().sum()

    def log_mass(self, lower: Tensor, upper: Tensor, middle: Tensor, noise: Tensor, extra: float) -> Tensor:
        """The bound on log P(lower < u < upper), nats [B], with standard normal `noise` [K, B, q] for z."""
        z, root = self.posterior(middle, extra)
        weights = [self._weight(lower, upper, z + e @ root.T, e) for e in noise]
        return log_mean_exp(torch.cat(weights), len(noise)) + root.diagonal().log().sum()

    def _weight(self, lower: Tensor, upper: Tensor, z: Tensor, e: Tensor) -> Tensor:
        """log P(lower < u < upper | z) + log p(z) - log q(z), but for q's volume."""
        mean, s = self.mean + z @ self.axes.T, self.variance.sqrt()
        return normal_interval((lower - mean) / s, (upper - mean) / s).sum(1) - 0.5 * (z.square() - e.square()).sum(1)

    def sample(self, n: int) -> Tensor:
        """u [n, F]."""
        noise = torch.randn(n, sum(self.axes.shape), dtype=torch.float64)
        z, e = noise.split([self.axes.shape[1], self.axes.shape[0]], 1)
        return self.mean + z @ self.axes.T + self.variance.sqrt() * e


@dataclass(frozen=True)
class Spectrum:
    """Mean [F], leading eigenvectors [F, Q] and eigenvalues [Q] of a covariance, and its trace."""

    mean: Tensor
    directions: Tensor
    values: Tensor
    trace: float

    @classmethod
    def of(cls, u: Tensor, most: int) -> "Spectrum":
        """u [n, F]; scikit-learn finds the eigenvectors."""
        from sklearn.decomposition import PCA
        from threadpoolctl import threadpool_limits

        with threadpool_limits(torch.get_num_threads()):
            fit = PCA(min(most, len(u) - 1, u.shape[1]), random_state=int(torch.randint(2**31, ()))).fit(u.numpy())
        mean, directions, values = (torch.from_numpy(v) for v in (fit.mean_, np.asarray(fit.components_).T, fit.explained_variance_))
        return cls(mean, directions, values, u.var(0).sum().item())

    def subspace(self, rank: int, inflation: float, floor: float) -> dict[str, Tensor]:
        """Buffers of the `Subspace` of a rank; s^2 is scaled by `inflation`, and at least `floor`."""
        values = self.values[:rank]
        rest = max(self.trace - values.sum().item(), 0.0) / max(1, len(self.mean) - len(values))
        variance = torch.tensor([max(inflation * rest, floor)], dtype=torch.float64)
        return {"mean": self.mean, "axes": self.directions[:, :rank] * (values - variance).clamp_min(0.0).sqrt(), "variance": variance}


class ProbabilisticPCA(Model, Likelihood, ClosedForm):
    """Probabilistic PCA: exact on reals, a lower bound on discrete data.

    Args:
        rank: the highest rank that is tried.
    """

    summary = "probabilistic PCA: one normal of low rank, in closed form"
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"rank": 16, "rows": 1024},
        "small": {"rank": 128, "rows": 8192},
        "base": {"rank": 512, "rows": 65536},
    }
    bound_draws = 64

    def __init__(self, space: Space, *, given: Space | None = None, size: str = "small", rank: int | None = None) -> None:
        super().__init__(space, given=given, size=size)
        self.most = self.options(size, rank=rank)
        self.flat, self.labels = flattened(space), label_count(given)
        self.gridded = space.discrete and not self.flat.nominals and not self.flat.flags  # every entry has a cell
        self.parts = nn.ModuleList(Subspace(space.relaxed.dims) for _ in range(self.labels))
        self.register_buffer("log_weight", torch.full((self.labels, self.labels), -math.log(self.labels), dtype=torch.float64))
        self.log_weight: Tensor

    def forward(self, x: Tensor, given: Tensor | None = None, *, turn: str = "") -> Tensor:
        """-log p(x | given), nats [batch]; of discrete data, its bound by one draw."""
        return -self._log_prob(x, given, Noise(x)).nats

    def _log_prob(self, x: Tensor, given: Tensor | None, noise: Noise) -> LogProb:
        return self._given_label(x, label_of(self.given_space, given, len(x)), noise)

    def _given_label(self, x: Tensor, label: Tensor, noise: Noise) -> LogProb:
        if self.gridded:
            nats = torch.stack(self._masses(x, noise), 1) + self.log_weight[label]
            return LogProb(nats.logsumexp(1), "lower bound", how=f"interval masses, {noise.draws} importance draws of z")
        lifted = self.space.relax(x, noise=noise)
        u = lifted.value.flatten(1).double()
        density = torch.stack([part.log_density(u) for part in self._subspaces()], 1) + self.log_weight[label.repeat(lifted.draws)]
        return lifted.log_prob(density.logsumexp(1))

    def _masses(self, x: Tensor, noise: Noise) -> list[Tensor]:
        lower, upper = self.flat.cells(x.flatten(1))
        middle = Observed.of(self.space, x).number
        extra = sum(1 / s.scale**2 for s in self.flat.supports) / (12 * len(self.flat.supports))  # a cell's own variance
        rank = max(part.axes.shape[1] for part in self._subspaces())
        e = noise.normal(rank).view(noise.draws, len(x), rank)
        return [part.log_mass(lower, upper, middle, e[..., : part.axes.shape[1]], extra) for part in self._subspaces()]

    def _subspaces(self) -> list[Subspace]:
        return [part for part in self.parts if isinstance(part, Subspace)]

    @torch.no_grad()
    def sample(self, n: int, given: Tensor | None = None) -> Tensor:
        """Draw n examples, [n, *shape]."""
        c = torch.multinomial(self.log_weight.exp()[label_of(self.given_space, given, n)], 1)[:, 0]
        u = torch.empty(n, self.space.relaxed.dims, dtype=torch.float64)
        for y in c.unique().tolist():
            u[c == y] = self._subspaces()[y].sample(int((c == y).sum()))
        return self.space.snap(u.view(n, *self.space.relaxed.shape))

    @torch.no_grad()
    def solve(self, train: Batches, valid: Batches) -> None:
        """Eigenvectors of each label's covariance; the rank and noise that code the validation split best are kept."""
        x, label = labelled(train, self.given_space, self.most["rows"])
        held_out, y = labelled(valid, self.given_space, _JUDGES)
        self.log_weight = component_weights(torch.bincount(label, minlength=self.labels).double(), torch.arange(self.labels), self.labels)
        u = self._middles(x)
        spectra = {k: Spectrum.of(u[label == k], self.most["rank"]) for k in label.unique().tolist() if int((label == k).sum()) > 1}
        ways = [(rank, inflation) for rank in self._ranks(u) for inflation in _INFLATIONS]

        def score(way: tuple[int, float]) -> float:
            self._take(spectra, *way)
            return self._given_label(held_out, y, Noise(held_out, _DRAWS)).nats.mean().item()

        self._take(spectra, *max(ways, key=score))

    def _middles(self, x: Tensor) -> Tensor:
        """What the normal is fitted to [n, F]: middles of cells where every entry has one, else relaxed draws."""
        return Observed.of(self.space, x).number if self.gridded else self.space.relax(x).value.flatten(1).double()

    def _ranks(self, u: Tensor) -> list[int]:
        """0, 1, 2, 3, 4, 6, 8, 12, ... and the highest that leaves noise."""
        most = min(self.most["rank"], u.shape[1] - 1, len(u) - 1)
        steps = {0, 1, *(2**i for i in range(1, 12)), *(3 * 2**i for i in range(11))}
        return sorted({r for r in steps if r <= most} | {most})

    def _take(self, spectra: dict[int, Spectrum], rank: int, inflation: float) -> None:
        for k, spectrum in spectra.items():
            for name, value in spectrum.subspace(rank, inflation, _FLOOR).items():
                setattr(self.parts[k], name, value)
