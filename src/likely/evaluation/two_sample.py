r"""Do two sets of vectors come from one distribution? Distances and classifiers, without any downloaded weights.

    energy distance   2 E|x - y| - E|x - x'| - E|y - y'|                                    (U-statistic)
    kernel MMD^2      E k(x, x') + E k(y, y') - 2 E k(x, y),  k = exp(-|x - y|^2 / 2 s^2)   (U-statistic)

with s the median distance of the pooled set. Both are 0 in expectation for equal distributions; p
is the share of random relabellings that reach the observed value. A classifier two-sample test
asks how well a classifier tells real from drawn: accuracy and area under the ROC curve, 0.5 at best.

References:
    | A kernel two-sample test (Gretton et al., 2012) | https://jmlr.org/papers/v13/gretton12a.html
    | Energy statistics: a class of statistics based on distances (Szekely and Rizzo, 2013) | https://doi.org/10.1016/j.jspi.2013.03.018
    | Revisiting classifier two-sample tests (Lopez-Paz and Oquab, 2017) | https://arxiv.org/abs/1610.06545
    | The meaning and use of the area under a ROC curve (Hanley and McNeil, 1982) | https://doi.org/10.1148/radiology.143.1.7063747
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["classifier_test", "energy_distance", "kernel_mmd", "pairwise"]

Measure = dict[str, float]
_AT_ONCE = 1024  # rows of a kernel


def pairwise(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances of the pooled set [x; y], [n + m, n + m], with an exact zero diagonal."""
    pooled = torch.cat([x, y])
    return torch.cdist(pooled, pooled, compute_mode="use_mm_for_euclid_dist").fill_diagonal_(0.0)


def energy_distance(distance: Tensor, n: int, *, permutations: int = 200, seed: int = 0) -> Measure:
    """Energy distance of the first n rows to the others, and its permutation p."""
    return _permuted(-distance, n, permutations, seed)


def kernel_mmd(distance: Tensor, n: int, *, permutations: int = 200, seed: int = 0) -> Measure:
    """Squared maximum mean discrepancy with a Gaussian kernel of the median bandwidth, and its permutation p."""
    bandwidth = distance[distance > 0].median().item() if bool((distance > 0).any()) else 1.0
    kernel = torch.exp(-0.5 * (distance / bandwidth).square()).fill_diagonal_(0.0)
    return {**_permuted(kernel, n, permutations, seed), "bandwidth": bandwidth}


def _permuted(kernel: Tensor, n: int, permutations: int, seed: int) -> Measure:
    """The U-statistic mean k(x, x') + mean k(y, y') - 2 mean k(x, y), observed and under relabelling.

    With A the indicator of x in each of P relabellings, all sums come from one product K A.
    """
    total, generator = len(kernel), torch.Generator().manual_seed(seed)
    orders = torch.rand(total, permutations, generator=generator).argsort(0)
    member = torch.cat([(torch.arange(total) < n)[:, None], orders < n], 1).double()
    within, every = zip(
        *(_sums(block, part, member) for block, part in zip(kernel.split(_AT_ONCE), member.split(_AT_ONCE), strict=True)), strict=True
    )
    xx, each = torch.stack(within).sum(0), torch.cat(every)
    x_all = each @ member
    xy, yy = x_all - xx, each.sum() - 2 * x_all + xx
    m = total - n
    values = xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)
    # ties count for the null: relabelling identical points must not look significant
    reached = (values[1:] >= values[0] - 1e-12 * values.abs().max()).sum().item()
    return {"value": values[0].item(), "p": (1 + reached) / (1 + permutations)}


def _sums(rows: Tensor, member: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Of some rows of the kernel: the sum over members of both sides for each relabelling [P], and each row's own.

    In double precision: a sum over the few rows of one set is a small difference of sums over all.
    """
    rows = rows.double()
    return (member * (rows @ members)).sum(0), rows.sum(1)


def classifier_test(real: Tensor, drawn: Tensor, *, folds: int = 5, seed: int = 0) -> dict[str, dict[str, float | str]]:
    """How well cross-validated classifiers tell `drawn` from `real`: accuracy and AUC with their 95 % intervals.

    Two are tried, since each is blind to something: boosted trees and a support vector machine with
    a Gaussian kernel. The one with the larger AUC speaks; its name is in "by". Beyond 64 features
    they see the leading 64 principal components of the pooled set.
    """
    from threadpoolctl import threadpool_limits

    x, y = torch.cat([real, drawn]).numpy(), np.r_[np.zeros(len(real)), np.ones(len(drawn))]
    with threadpool_limits(1):  # so few rows are not worth sharing, and spinning threads slow everyone
        scores = {name: _held_out(make, _compressed(x, seed), y, folds, seed) for name, make in _classifiers().items()}
    by = max(scores, key=lambda name: scores[name][1])
    accuracy, auc = scores[by]
    wide = 1.96 * math.sqrt(accuracy * (1 - accuracy) / len(y))
    spread = 1.96 * _auc_stderr(auc, len(real), len(drawn))
    return {
        "c2st_auc": {"value": auc, "low": auc - spread, "high": min(1.0, auc + spread), "by": by},
        "c2st_accuracy": {"value": accuracy, "low": accuracy - wide, "high": min(1.0, accuracy + wide), "by": by},
    }


def _classifiers() -> dict[str, Callable[[int], Any]]:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    return {
        "boosted trees": lambda seed: HistGradientBoostingClassifier(max_iter=40, max_leaf_nodes=15, max_bins=63, random_state=seed),
        "Gaussian-kernel SVM": lambda seed: make_pipeline(StandardScaler(), SVC(random_state=seed)),
    }


def _held_out(make: Callable[[int], Any], x: np.ndarray, y: np.ndarray, folds: int, seed: int) -> tuple[float, float]:
    """Accuracy and AUC on held-out folds; the mean of each fold's, since scores of different folds share no scale."""
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    accuracy, auc = [], []
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, y):
        decision = make(seed).fit(x[train], y[train]).decision_function(x[test])
        accuracy.append(np.mean((decision > 0) == y[test]))
        auc.append(roc_auc_score(y[test], decision))
    return float(np.mean(accuracy)), float(np.mean(auc))


def _compressed(x: np.ndarray, seed: int, dims: int = 64) -> np.ndarray:
    if x.shape[1] <= dims or len(x) <= dims:
        return x
    from sklearn.decomposition import PCA

    return PCA(dims, svd_solver="randomized", random_state=seed).fit_transform(x)


def _auc_stderr(auc: float, n: int, m: int) -> float:
    """Hanley and McNeil's standard error of an AUC from n and m scores."""
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = (auc * (1 - auc) + (m - 1) * (q1 - auc**2) + (n - 1) * (q2 - auc**2)) / (n * m)
    return math.sqrt(max(variance, 0.0))
