r"""Gaussian mixtures, fitted by scikit-learn's EM; the masses are ours.

    p(x) = sum_c w_c p(x | c),      p(x | y) = sum_c w_{yc} p(x | c)

diag: a component is a product over entries, integrated over the cell of each number, exactly
    (`solve.products`); a nominal has a table per component. After EM, with responsibilities r,

        mu = sum r u / n_c,    s^2 = (sum r (u - mu)^2 + k s_0^2) / (n_c + k) + s_min^2,    n_c = sum r

    variances and tables shrink to those of all data by k pseudo-examples, so a component of few
    examples is not a spike.
full, tied: a component is a normal on the relaxed scale with any covariance; of discrete data a
    lower bound, by dequantization in K draws.

Covariance, number of components and k are chosen on the validation split. Given a label, each
label has components of its own; its weights shrink to those of all data by a few pseudo-examples,
so rare labels lean on the rest.

References:
    | Maximum likelihood from incomplete data via the EM algorithm (Dempster et al., 1977) | https://www.jstor.org/stable/2984875
    | Bayesian regularization for normal mixture estimation and model-based clustering (Fraley and Raftery, 2007) | https://doi.org/10.1007/s00357-007-0004-5
"""

import math
import warnings
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from likely.errors import UsageError, nearest
from likely.logprob import LogProb
from likely.model import Batches, ClosedForm, Likelihood, Model
from likely.noise import Noise
from likely.solve.intervals import normal_log_density
from likely.solve.labels import component_weights, label_count, label_of, labelled, shrink
from likely.solve.products import Observed, ProductMixture
from likely.space import Space

__all__ = ["GaussianMixture"]

_KINDS = ("diag", "full", "tied")
_SHRINK = (0.01, 0.1, 1.0, 3.0, 10.0)  # k, tried on the validation split
_RIDGE = 1e-5  # added to variances on the relaxed scale
_TRACE = 1e-3  # examples by which a component's mean shrinks, so that one without data has a mean
_WORK = 2**31  # multiply-adds of one step of EM that are worth waiting for
_JUDGES = 1024  # validation examples that choose
_DRAWS = 4  # dequantizations of a validation example when covariances are compared


class Dense(nn.Module):
    """Normals with any covariance: means [C, F], and roots R [C, F, F] with R R' the precision."""

    log_weight: Tensor
    mean: Tensor
    root: Tensor

    def __init__(self, labels: int, dims: int) -> None:
        super().__init__()
        self.register_buffer("log_weight", torch.zeros(labels, 0, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(0, dims, dtype=torch.float64))
        self.register_buffer("root", torch.zeros(0, dims, dims, dtype=torch.float64))

    def log_density(self, u: Tensor, label: Tensor) -> Tensor:
        """u [B, F] -> log p(u | label), nats [B], float64."""
        terms = [self._component(u.double(), c) for c in range(len(self.mean))]
        return (torch.stack(terms, 1) + self.log_weight[label]).logsumexp(1)

    def _component(self, u: Tensor, c: int) -> Tensor:
        z = (u - self.mean[c]) @ self.root[c]
        return normal_log_density(z).sum(1) + self.root[c].diagonal().log().sum()

    def sample(self, label: Tensor) -> Tensor:
        """u [B, F] for each label: mean + R^-T noise."""
        c = torch.multinomial(self.log_weight.exp()[label], 1)[:, 0]
        u = torch.empty(len(c), self.mean.shape[1], dtype=torch.float64)
        for k in c.unique().tolist():
            noise = torch.randn(int((c == k).sum()), u.shape[1], dtype=torch.float64)
            u[c == k] = self.mean[k] + torch.linalg.solve_triangular(self.root[k].T, noise.T, upper=False).T
        return u


class GaussianMixture(Model, Likelihood, ClosedForm):
    """Gaussian mixture: exact with diagonal covariances, a lower bound on discrete data with others.

    Args:
        covariance: "diag", "full", "tied", or "auto": what is best on the validation split.
        components: the most components that are tried.
    """

    summary = "mixture of Gaussians, fitted by EM"
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"components": 8, "rows": 1024},
        "small": {"components": 128, "rows": 8192},
        "base": {"components": 512, "rows": 65536},
    }

    def __init__(
        self, space: Space, *, given: Space | None = None, size: str = "small", covariance: str = "auto", components: int | None = None
    ) -> None:
        super().__init__(space, given=given, size=size)
        if covariance not in (*_KINDS, "auto"):
            raise UsageError(f"Unknown covariance '{covariance}'.", nearest(covariance, (*_KINDS, "auto")))
        self.most = self.options(size, components=components)
        self.kinds = _KINDS if covariance == "auto" else (covariance,)
        self.labels = label_count(given)
        self.products, self.dense = ProductMixture(space, self.labels), Dense(self.labels, space.relaxed.dims)

    @property
    def bound_draws(self) -> int:  # type: ignore[override]
        """One where the mass is exact."""
        return 64 if len(self.dense.mean) and self.space.discrete else 1

    def forward(self, x: Tensor, given: Tensor | None = None, *, turn: str = "") -> Tensor:
        """-log p(x | given), nats [batch]; of one dequantization where the covariance is not diagonal."""
        return -self._log_prob(x, given, Noise(x)).nats

    def _log_prob(self, x: Tensor, given: Tensor | None, noise: Noise) -> LogProb:
        return self._given_label(x, label_of(self.given_space, given, len(x)), noise)

    def _given_label(self, x: Tensor, label: Tensor, noise: Noise) -> LogProb:
        if not len(self.dense.mean):
            return LogProb(self.products.log_prob(x, label), "exact", how="interval masses" if self.space.discrete else "")
        lifted = self.space.relax(x, noise=noise)
        return lifted.log_prob(self.dense.log_density(lifted.value.flatten(1), label.repeat(lifted.draws)))

    @torch.no_grad()
    def sample(self, n: int, given: Tensor | None = None) -> Tensor:
        """Draw n examples, [n, *shape]."""
        label = label_of(self.given_space, given, n)
        if not len(self.dense.mean):
            return self.products.sample(label)
        return self.space.snap(self.dense.sample(label).view(n, *self.space.relaxed.shape))

    @torch.no_grad()
    def solve(self, train: Batches, valid: Batches) -> None:
        """EM for each covariance and number of components; what codes the validation split best is kept."""
        x, label = labelled(train, self.given_space, self.most["rows"])
        held_out, y = labelled(valid, self.given_space, _JUDGES)
        best, kept = -math.inf, {}
        for candidate in self._candidates(x, label):
            self._take(candidate)
            score = self._given_label(held_out, y, Noise(held_out, _DRAWS)).nats.mean().item()
            if score > best:
                best, kept = score, candidate
        self._take(kept)

    def _take(self, buffers: dict[str, Tensor]) -> None:
        """Become what a candidate's buffers say; the other kind of component is emptied."""
        is_dense = "root" in buffers
        for name, value in buffers.items():
            setattr(self.dense if is_dense else self.products, name, value)
        if not is_dense:
            self.dense.mean, self.dense.root = self.dense.mean[:0], self.dense.root[:0]

    def _candidates(self, x: Tensor, label: Tensor) -> Iterator[dict[str, Tensor]]:
        """Buffers of fitted mixtures: of `products` where diagonal, of `dense` else."""
        for kind in self.kinds:
            yield from self._diagonal(x, label) if kind == "diag" else self._with_covariances(x, label, kind)

    def _diagonal(self, x: Tensor, label: Tensor) -> Iterator[dict[str, Tensor]]:
        seen = Observed.of(self.space, x)
        features = seen.features()
        for count in _ladder(max(1, min(self.most["components"], len(x) // 8))):
            owner, share = _responsibilities(features, label, count)
            log_weight = component_weights(share.sum(0), owner, self.labels)
            for k in _SHRINK:
                yield {"log_weight": log_weight, **_smoothed(seen, share, self.products.states, k)}

    def _with_covariances(self, x: Tensor, label: Tensor, kind: str) -> Iterator[dict[str, Tensor]]:
        u = self.space.relax(x).value.flatten(1).double()
        most = min(self.most["components"], len(u) // u.shape[1], _WORK // (len(u) * u.shape[1] ** 2))
        for count in _ladder(max(most, len(self.kinds) == 1)):
            parts = [(_em(u[rows], c, kind), rows, y) for y, rows, c in _per_label(label, count)]
            mass = [torch.from_numpy(em.weights_) * len(rows) for em, rows, _ in parts]
            owner = torch.cat([torch.full((len(m),), y) for m, (_, _, y) in zip(mass, parts, strict=True)])
            yield {
                "log_weight": component_weights(torch.cat(mass), owner, self.labels),
                "mean": torch.cat([torch.from_numpy(em.means_) for em, _, _ in parts]),
                "root": torch.cat([torch.from_numpy(em.precisions_cholesky_).expand(len(em.means_), -1, -1) for em, _, _ in parts]),
            }


def _ladder(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`."""
    return [2**i for i in range(max(0, most).bit_length())]


def _per_label(label: Tensor, count: int) -> Iterator[tuple[int, Tensor, int]]:
    """(label, its rows, its share of `count` components); a label of one example leans on the others alone."""
    for y in label.unique().tolist():
        rows = (label == y).nonzero()[:, 0]
        if len(rows) > 1:
            yield y, rows, min(len(rows) // 2, max(1, round(count * len(rows) / len(label))))


def _em(u: Tensor, components: int, covariance: str) -> Any:
    """scikit-learn's mixture fitted to u [n, F]; stopping at the limit of iterations is no fault here: validation judges."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture as EM
    from threadpoolctl import threadpool_limits

    seed = int(torch.randint(2**31, ()))
    with warnings.catch_warnings(), threadpool_limits(torch.get_num_threads()):
        warnings.simplefilter("ignore", ConvergenceWarning)
        return EM(components, covariance_type=covariance, reg_covar=_RIDGE, max_iter=50, tol=1e-2, random_state=seed).fit(u.numpy())


def _responsibilities(features: Tensor, label: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """EM within each label -> whose each component is [C], and r [n, C], zero for others' examples."""
    owner, blocks = [], []
    for y, rows, c in _per_label(label, count):
        block = torch.zeros(len(label), c, dtype=torch.float64)
        block[rows] = torch.from_numpy(_em(features[rows], c, "diag").predict_proba(features[rows].numpy()))
        owner += [y] * c
        blocks.append(block)
    return torch.tensor(owner), torch.cat(blocks, 1)


def _smoothed(seen: Observed, r: Tensor, states: list[int], k: float) -> dict[str, Tensor]:
    """Moments and tables of each component from responsibilities r [n, C], shrunk to those of all data by k examples."""
    mean_0, variance_0 = seen.moments()
    n = (r.T @ seen.there).clamp_min(1e-9)
    mean = (r.T @ seen.value + _TRACE * mean_0) / (n + _TRACE)
    spread = (r.T @ seen.value.square() - 2 * mean * (r.T @ seen.value) + mean.square() * n).clamp_min(0.0)
    tables = torch.stack([shrink(r.T @ seen.state[:, j], q, k) for j, q in enumerate(seen.tables(states))], 1) if states else seen.state[:1]
    return {
        "mean": mean,
        "sd": ((spread + k * variance_0) / (n + k) + seen.floor.square()).sqrt(),
        "absent": (r.T @ seen.lost + k * seen.absent()) / (r.sum(0)[:, None] + k),
        "tables": tables,
    }
