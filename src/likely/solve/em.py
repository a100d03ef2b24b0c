r"""Expectation maximisation for mixtures of normals: weighted examples, missing values, states, covariances of low rank.

    E   r_nc ~ w_c p_c(what is known of n),   and of the unknown numbers their mean and covariance given the known ones
    M   w_c, m_c, S_c, tables from the moments that these imply, with S_c brought to its form:

    full       S_c                      tied       sum_c n_c S_c / n
    low-rank   W W' + s^2 I, the nearest in likelihood: leading eigenvectors, and the mean of the eigenvalues left out

k-means starts it. Where nothing is missing, examples count alike and no rank is asked for, scikit-learn runs it.

References:
    | Maximum likelihood from incomplete data via the EM algorithm (Dempster et al., 1977) | https://www.jstor.org/stable/2984875
    | Supervised learning from incomplete data via an EM approach (Ghahramani and Jordan, 1994) | https://dspace.mit.edu/handle/1721.1/7202
    | Mixtures of probabilistic principal component analysers (Tipping and Bishop, 1999) | https://doi.org/10.1162/089976699300016728
"""

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from likely.solve.labels import shrink
from likely.solve.normals import Normals, alike
from likely.solve.observed import Observed
from likely.space import Space

__all__ = ["Moments", "low_rank", "normals", "shares"]

_RIDGE = 1e-5  # added to variances on the relaxed scale
_STEPS, _TOLERANCE = 50, 1e-2  # of scikit-learn's own


@dataclass(frozen=True)
class Moments:
    """Components: their shares of each example [n, C], examples that they stand for [C], mean [C, N], covariance [C, N, N]."""

    share: Tensor
    mass: Tensor
    mean: Tensor
    covariance: Tensor


def shares(seen: Observed, count: int) -> Tensor:
    """Responsibilities [n, count] of components whose entries are independent, times the weight of each example."""
    if seen.plain:
        features = seen.features().numpy()
        return torch.from_numpy(_scikit(seen.features(), count, "diag").predict_proba(features))
    r, before = _start(seen, count), -math.inf
    for _ in range(_STEPS):
        mass = r.sum(0)
        n = (r.T @ seen.there).clamp_min(1e-9)
        mean = r.T @ seen.value / n
        variance = (r.T @ seen.value.square() / n - mean.square()).clamp_min(0.0) + seen.floor.square() + _RIDGE
        nats = seen.value.square() @ (1 / variance).T - 2 * seen.value @ (mean / variance).T
        nats = -0.5 * (nats + seen.there @ (mean.square() / variance + (2 * math.pi * variance).log()).T) + _states(seen, r)
        r, now = _responsibilities(seen, nats + shrink(mass, torch.full_like(mass, 1 / count), 1e-3).log())
        if now - before < _TOLERANCE:
            break
        before = now
    return r


def normals(seen: Observed, count: int, kind: str, rank: int = 0, *, start: Tensor | None = None, steps: int = _STEPS) -> Moments:
    """A mixture of `count` normals whose covariances are "full", "tied" or "low-rank"; `start` are the first shares [n, count]."""
    if seen.plain and not seen.states and kind != "low-rank" and start is None:
        found = _scikit(seen.number, count, kind)
        share = torch.from_numpy(found.predict_proba(seen.number.numpy()))
        mean, covariance = torch.from_numpy(found.means_), torch.from_numpy(found.covariances_)
        return Moments(share, torch.from_numpy(found.weights_) * len(share), mean, covariance.expand(count, -1, -1).clone())
    mean, variance = seen.moments()
    model = Normals(Space.reals(seen.number.shape[1]))
    model.mean, model.root = mean.expand(count, -1), variance.sqrt().diag().expand(count, -1, -1)  # what is missing, before the first step
    r, before, moments = _start(seen, count) if start is None else start, -math.inf, None
    for _ in range(steps):
        moments = _formed(_expected(seen, r, model), kind, rank)
        model.mean, model.root = moments.mean, torch.linalg.cholesky(moments.covariance)
        nats = model.log_density(seen.number) + _states(seen, r)
        r, now = _responsibilities(seen, nats + (moments.mass / moments.mass.sum()).clamp_min(1e-9).log())
        if now - before < _TOLERANCE:
            break
        before = now
    assert moments is not None
    return moments


def low_rank(covariance: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """W [C, N, rank] and s^2 [C] of the likeliest W W' + s^2 I for covariances [C, N, N]."""
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    left = values.shape[1] - rank
    variance = values[:, :left].mean(1) if left else values[:, 0]
    variance = variance.clamp_min(_RIDGE)
    return vectors[:, :, left:] * (values[:, left:] - variance[:, None]).clamp_min(0.0).sqrt()[:, None], variance


def _expected(seen: Observed, r: Tensor, model: Normals) -> Moments:
    """Moments of all numbers, those missing at what `model` expects of them."""
    mass, size = r.sum(0).clamp_min(1e-9), seen.number.shape[1]
    gaps, means, covariances = alike(seen.there.bool()), [], []
    for c in range(len(mass)):
        u, spread = seen.value.clone(), torch.zeros(size, size, dtype=torch.float64)
        for known, rows in gaps:
            if not bool(known.all()):
                gain, left = model.regression(c, known)
                u[rows] = torch.where(known, u[rows], model.mean[c] + (u[rows][:, known] - model.mean[c, known]) @ gain.T)
                spread += r[rows, c].sum() * left
        mean = r[:, c] @ u / mass[c]
        means.append(mean)
        covariances.append((((u - mean) * r[:, c, None]).T @ (u - mean) + spread) / mass[c])
    return Moments(r, mass, torch.stack(means), torch.stack(covariances))


def _formed(moments: Moments, kind: str, rank: int) -> Moments:
    covariance = moments.covariance + _RIDGE * torch.eye(moments.mean.shape[1], dtype=torch.float64)
    if kind == "tied":
        covariance = (torch.einsum("c,cij->ij", moments.mass, covariance) / moments.mass.sum()).expand_as(covariance)
    if kind == "low-rank":
        axes, variance = low_rank(covariance, rank)
        covariance = axes @ axes.mT + variance[:, None, None] * torch.eye(covariance.shape[1], dtype=torch.float64)
    return replace(moments, covariance=covariance)


def _states(seen: Observed, r: Tensor) -> Tensor:
    """log p of states and missing cells under each component's own frequencies, [n, C]."""
    absent, tables = seen.shrunk(r, 1.0)
    nats = seen.lost @ absent.log().T + (1 - seen.lost) @ torch.log1p(-absent).T
    for j in range(len(seen.states)):
        nats = nats + seen.state[:, j] @ tables[:, j].clamp_min(1e-300).log().T
    return nats


def _responsibilities(seen: Observed, nats: Tensor) -> tuple[Tensor, float]:
    """Shares of each example, times its weight, and the mean log-likelihood."""
    total = nats.logsumexp(1, keepdim=True)
    return (nats - total).exp() * seen.weight[:, None], (seen.weight @ total[:, 0] / seen.weight.sum()).item()


def _start(seen: Observed, count: int) -> Tensor:
    """Shares [n, count] of clusters that k-means finds."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(torch.get_num_threads()):
        found = KMeans(count, n_init="auto", random_state=_seed()).fit(seen.features().numpy(), sample_weight=seen.weight.numpy())
    return one_hot(torch.from_numpy(found.labels_).long(), count) * seen.weight[:, None]


def _scikit(u: Tensor, count: int, covariance: str) -> Any:
    """scikit-learn's mixture fitted to u [n, F]; stopping at the limit of steps is no fault here: validation judges."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    with warnings.catch_warnings(), threadpool_limits(torch.get_num_threads()):
        warnings.simplefilter("ignore", ConvergenceWarning)
        how = {"reg_covar": _RIDGE, "max_iter": _STEPS, "tol": _TOLERANCE, "random_state": _seed()}
        return GaussianMixture(count, covariance_type=covariance, **how).fit(u.numpy())


def _seed() -> int:
    return int(torch.randint(2**31, ()))
