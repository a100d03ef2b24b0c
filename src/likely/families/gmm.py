r"""Gaussian mixtures, fitted by EM; the masses are ours.

    p(x) = sum_c w_c p(x | c),      p(x | y) = sum_c w_{yc} p(x | c)

A component is a normal over the numbers, times a table for each nominal and a Bernoulli for each number that may
be missing (`solve.mixtures`). Its covariance is

    diag       integrated over the cell of each number: an exact mass
    full, tied any, or one for all components: exact on reals; of numbers on a grid a lower bound, by K places in their cells
    low-rank   W W' + s^2 I: exact on reals; on a grid a lower bound, by K draws of the factors, given which cells are integrated

EM is scikit-learn's where nothing is missing and examples count alike, else ours (`solve.em`), which marginalises what
is missing. Then variances and tables shrink to those of all data by k pseudo-examples,

    s^2 = (sum r (u - mu)^2 + k s_0^2) / (n_c + k) + s_min^2,      n_c = sum r

so a component of few examples is not a spike. Covariance, number of components, rank and k are chosen on the
validation split. Given a label, each label has components of its own; its weights shrink to those of all data by a
few pseudo-examples, so rare labels lean on the rest.

References:
    | Maximum likelihood from incomplete data via the EM algorithm (Dempster et al., 1977) | https://www.jstor.org/stable/2984875
    | Bayesian regularization for normal mixture estimation and model-based clustering (Fraley and Raftery, 2007) | https://doi.org/10.1007/s00357-007-0004-5
    | Mixtures of probabilistic principal component analysers (Tipping and Bishop, 1999) | https://doi.org/10.1162/089976699300016728
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from likely.errors import UsageError, nearest
from likely.model import Batches
from likely.solve import em
from likely.solve.factors import Factors
from likely.solve.labels import labelled, several
from likely.solve.mixtures import Components, MixtureModel
from likely.solve.normals import Normals
from likely.solve.numbers import Diagonal
from likely.solve.observed import Observed
from likely.space import Space

__all__ = ["GaussianMixture"]

_KINDS = ("diag", "full", "tied", "low-rank")
_SHRINK = (0.01, 0.1, 1.0, 10.0)  # k, tried on the validation split
_TRACE = 1e-3  # examples by which a component's mean shrinks, so that one without data has a mean
_WORK = 2**30  # multiply-adds of one step of EM that are worth waiting for
_JUDGES = 1024  # validation examples that choose
_RANKS = (1, 4, 16, 32)


class GaussianMixture(MixtureModel):
    """Gaussian mixture: exact on reals and with diagonal covariances, else a lower bound.

    Args:
        covariance: "diag", "full", "tied", "low-rank", or "auto": what is best on the validation split.
        components: the most components that are tried.
        rank: the highest rank of a low-rank covariance that is tried.
    """

    summary = "mixture of Gaussians, fitted by EM"
    words: ClassVar[dict[str, tuple[str, ...]]] = {"covariance": ("auto", *_KINDS)}
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"components": 8, "rank": 2, "rows": 1024},
        "small": {"components": 128, "rank": 16, "rows": 8192},
        "base": {"components": 512, "rank": 32, "rows": 65536},
    }

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        covariance: str = "auto",
        components: int | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__(space, Diagonal, Normals, Factors, given=given, size=size)
        if covariance not in (*_KINDS, "auto"):
            raise UsageError(f"Unknown covariance '{covariance}'.", nearest(covariance, (*_KINDS, "auto")))
        self.most = self.options(size, components=components, rank=rank)
        self.kinds = _KINDS if covariance == "auto" else (covariance,)

    @property
    def bound_draws(self) -> int:  # type: ignore[override]
        """One where the mass is exact."""
        return 1 if self.mixture.numbers.exact else 64

    @torch.no_grad()
    def solve(self, train: Batches, valid: Batches, weights: Tensor | None = None, judging: Tensor | None = None) -> None:
        """EM for each covariance and number of components; what codes the validation split best is kept."""
        x, label, weight = labelled(train, self.given_space, self.most["rows"], weights)
        seen = Observed.of(self.space, x, weight)
        self.choose(self._ladders(seen, label), seen, valid, _JUDGES, judging)

    def _ladders(self, seen: Observed, label: Tensor) -> Iterator[Iterator[Iterator[Components]]]:
        """More and more components of each covariance (and rank); a rung is one fit under each k."""
        n, size = seen.number.shape
        for kind in self.kinds:
            if kind == "diag":
                yield (self._diagonal(seen, label, count) for count in self._counts(max(1, n // 8)))
            elif size < 2 and len(self.kinds) > 1:
                continue  # one number has only a variance
            elif kind == "low-rank":
                for rank in [q for q in _RANKS if q <= self.most["rank"] and q < max(2, size)]:
                    yield (self._low_rank(seen, label, count, rank) for count in self._counts(self._worth(seen, 4 * (rank + 1))))
            else:
                yield (self._dense(seen, label, count, kind) for count in self._counts(self._worth(seen, size)))

    def _counts(self, most: int) -> list[int]:
        """1, 2, 4, ... up to so many components; of a covariance that was asked for, one at least."""
        return [2**i for i in range(max(len(self.kinds) == 1, min(most, self.most["components"])).bit_length())]

    def _worth(self, seen: Observed, each: int) -> int:
        """The most components, of so many examples each, that are worth waiting for."""
        n, size = seen.number.shape
        return min(n // max(1, each), _WORK // (n * max(1, size) ** 2))

    def _diagonal(self, seen: Observed, label: Tensor, count: int) -> Iterator[Components]:
        parts = [(em.shares(seen.rows(rows), c), rows, y) for y, rows, c in _per_label(label, count)]
        share, owner = _joined(parts, len(label))
        for k in _SHRINK:
            yield Components(_smoothed(seen, share, k), share.sum(0), owner, *seen.shrunk(share, k))

    def _dense(self, seen: Observed, label: Tensor, count: int, kind: str) -> Iterator[Components]:
        found, owner = _mixture(seen, label, count, kind)
        for k in _SHRINK[1:]:
            root = torch.linalg.cholesky(_shrunk(seen, found, k))
            yield Components({"mean": found.mean, "root": root}, found.mass, owner, *seen.shrunk(found.share, k), kind=1)

    def _low_rank(self, seen: Observed, label: Tensor, count: int, rank: int) -> Iterator[Components]:
        found, owner = _mixture(seen, label, count, "low-rank", rank)
        for k in _SHRINK[1:]:
            axes, variance = em.low_rank(_shrunk(seen, found, k), rank)
            buffers = {"mean": found.mean, "axes": axes, "variance": variance}
            yield Components(buffers, found.mass, owner, *seen.shrunk(found.share, k), kind=2)


def _per_label(label: Tensor, count: int) -> Iterator[tuple[int, Tensor, int]]:
    """(label, its rows, its share of `count` components); a label of one example leans on the others alone."""
    for y, rows in several(label).items():
        yield y, rows, min(len(rows) // 2, max(1, round(count * len(rows) / len(label))))


def _joined(parts: list[tuple[Tensor, Tensor, int]], n: int) -> tuple[Tensor, Tensor]:
    """Shares within rows of each label -> shares of all examples [n, C], and whose each component is [C]."""
    blocks = [torch.zeros(n, share.shape[1], dtype=torch.float64).index_copy(0, rows, share) for share, rows, _ in parts]
    return torch.cat(blocks, 1), torch.tensor([y for share, _, y in parts for _ in range(share.shape[1])])


def _mixture(seen: Observed, label: Tensor, count: int, kind: str, rank: int = 0) -> tuple[em.Moments, Tensor]:
    """EM within each label -> all components, and whose each is."""
    parts = [(em.normals(seen.rows(rows), c, kind, rank), rows, y) for y, rows, c in _per_label(label, count)]
    share, owner = _joined([(found.share, rows, y) for found, rows, y in parts], len(label))
    mass, mean, covariance = (torch.cat([getattr(found, name) for found, _, _ in parts]) for name in ("mass", "mean", "covariance"))
    return em.Moments(share, mass, mean, covariance), owner


def _smoothed(seen: Observed, r: Tensor, k: float) -> dict[str, Tensor]:
    """Moments of each component from shares r [n, C], the variance shrunk to that of all data by k examples."""
    mean_0, variance_0 = seen.moments()
    n = (r.T @ seen.there).clamp_min(1e-9)
    mean = (r.T @ seen.value + _TRACE * mean_0) / (n + _TRACE)
    spread = (r.T @ seen.value.square() - 2 * mean * (r.T @ seen.value) + mean.square() * n).clamp_min(0.0)
    return {"mean": mean, "sd": ((spread + k * variance_0) / (n + k) + seen.floor.square()).sqrt()}


def _shrunk(seen: Observed, found: em.Moments, k: float) -> Tensor:
    """Covariances [C, N, N], shrunk to the variances of all data by k examples."""
    mass = found.mass[:, None, None]
    return (mass * found.covariance + k * seen.moments()[1].diag()) / (mass + k) + seen.floor.square().diag()
