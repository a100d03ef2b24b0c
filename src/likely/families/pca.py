r"""Probabilistic PCA: a normal whose covariance has few large directions, in closed form.

    z ~ N(0, I_q),    u | z ~ N(mu + W z, s^2 I),    so u ~ N(mu, W W' + s^2 I)
    W = V_q (L_q - s^2 I)^(1/2),    s^2 = f times the mean of the eigenvalues that are left out

with V_q, L_q the leading eigenvectors and eigenvalues of the covariance (scikit-learn's PCA; of tables with
missing cells EM estimates it). The rank q and f (1 by maximum likelihood; more is safer) are chosen on the
validation split. Of real data the density is exact. Numbers on a grid are independent given z, so their cells are
integrated, open edges included, and only z is drawn: an importance-weighted lower bound (`solve.factors`)

    log p(x) >= E log 1/K sum_k P(x | z_k) p(z_k) / q(z_k | x),    q the posterior at the cells' middles

Nominals and missing cells have tables beside the normal. Given a label, each label has a normal of its own, and
p(x | y) mixes in all others' a little. What is unknown follows by z given what is known: exactly on reals.

References:
    | Probabilistic principal component analysis (Tipping and Bishop, 1999) | https://doi.org/10.1111/1467-9868.00196
    | Importance weighted autoencoders (Burda et al., 2016) | https://arxiv.org/abs/1509.00519
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from likely.model import Batches
from likely.solve import em
from likely.solve.factors import Factors
from likely.solve.labels import labelled, several
from likely.solve.mixtures import Components, MixtureModel
from likely.solve.observed import Observed
from likely.space import Space

__all__ = ["ProbabilisticPCA"]

_INFLATIONS = (1.0, 1.4, 2.0, 2.8)  # f
_FLOOR = 1e-6  # smallest s^2, of the variance of standardised data
_JUDGES = 512  # validation examples that choose


@dataclass(frozen=True)
class Spectrum:
    """Mean [F], leading eigenvectors [F, Q] and eigenvalues [Q] of a covariance, and its trace."""

    mean: Tensor
    directions: Tensor
    values: Tensor
    trace: float

    @classmethod
    def of(cls, seen: Observed, most: int) -> "Spectrum":
        """scikit-learn finds the eigenvectors; where numbers are missing or examples count more than once, EM the covariance first."""
        if not seen.number.shape[1]:
            return cls(seen.number.new_zeros(0), seen.number.new_zeros(0, 0), seen.number.new_zeros(0), 0.0)
        if not seen.plain:
            found = em.normals(seen, 1, "full")
            values, vectors = torch.linalg.eigh(found.covariance[0])
            return cls(found.mean[0], vectors.flip(1)[:, :most], values.flip(0)[:most], values.sum().item())
        from sklearn.decomposition import PCA
        from threadpoolctl import threadpool_limits

        u = seen.number
        with threadpool_limits(torch.get_num_threads()):
            fit = PCA(min(most, len(u) - 1, u.shape[1]), random_state=int(torch.randint(2**31, ()))).fit(u.numpy())
        mean, directions, values = (torch.from_numpy(v) for v in (fit.mean_, np.asarray(fit.components_).T, fit.explained_variance_))
        return cls(mean, directions, values, u.var(0).sum().item())

    def subspace(self, rank: int, inflation: float, floor: float) -> tuple[Tensor, Tensor]:
        """W [F, rank] and s^2 [1], which is scaled by `inflation`, and at least `floor`."""
        values = self.values[:rank]
        rest = max(self.trace - values.sum().item(), 0.0) / max(1, len(self.mean) - len(values))
        variance = torch.tensor([max(inflation * rest, floor)], dtype=torch.float64)
        axes = self.directions[:, :rank] * (values - variance).clamp_min(0.0).sqrt()
        return pad(axes, (0, rank - axes.shape[1])), variance


class ProbabilisticPCA(MixtureModel):
    """Probabilistic PCA: exact on reals, a lower bound on numbers on a grid.

    Args:
        rank: the highest rank that is tried.
    """

    summary = "probabilistic PCA: one normal of low rank, in closed form"
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"rank": 16, "rows": 1024},
        "small": {"rank": 128, "rows": 8192},
        "base": {"rank": 512, "rows": 65536},
    }

    def __init__(self, space: Space, *, given: Space | None = None, size: str = "small", rank: int | None = None) -> None:
        super().__init__(space, Factors, given=given, size=size)
        self.most = self.options(size, rank=rank)

    @property
    def bound_draws(self) -> int:  # type: ignore[override]
        """One where the density is exact."""
        return 1 if self.mixture.numbers.exact else 64

    @torch.no_grad()
    def solve(self, train: Batches, valid: Batches, weights: Tensor | None = None, judging: Tensor | None = None) -> None:
        """Eigenvectors of each label's covariance; the rank and noise that code the validation split best are kept."""
        x, label, weight = labelled(train, self.given_space, self.most["rows"], weights)
        seen = Observed.of(self.space, x, weight)
        self.choose([self._ladder(seen, label)], seen, valid, _JUDGES, judging)

    def _ladder(self, seen: Observed, label: Tensor) -> Iterator[list[Components]]:
        spectra = {y: Spectrum.of(seen.rows(some), self.most["rank"]) for y, some in several(label).items()}
        owner = torch.tensor(list(spectra))
        share = one_hot(label, self.labels)[:, owner] * seen.weight[:, None]
        mean, states = torch.stack([s.mean for s in spectra.values()]), seen.shrunk(share, 1.0)
        for rank in self._ranks(seen):
            ways = [zip(*(s.subspace(rank, f, _FLOOR) for s in spectra.values()), strict=True) for f in _INFLATIONS]
            numbers = [{"mean": mean, "axes": torch.stack(axes), "variance": torch.cat(variance)} for axes, variance in ways]
            yield [Components(each, share.sum(0), owner, *states) for each in numbers]

    def _ranks(self, seen: Observed) -> list[int]:
        """0, 1, 2, 3, 4, 6, 8, 12, ... and the highest that leaves noise."""
        most = max(0, min(self.most["rank"], seen.number.shape[1] - 1, len(seen.number) - 1))
        steps = {0, 1, *(2**i for i in range(1, 12)), *(3 * 2**i for i in range(11))}
        return sorted({r for r in steps if r <= most} | {most})
