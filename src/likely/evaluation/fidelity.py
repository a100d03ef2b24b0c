"""Are drawn examples good (precision, density), are they varied (recall, coverage), are they copies (nearest training example)?

With a ball around each real example that reaches its k-th nearest real neighbour:

    precision  share of drawn examples inside some real ball          recall    the same with the roles swapped
    density    mean number of real balls around a drawn example / k   coverage  share of real balls that hold a drawn example

Equal distributions do not score 1 in all of them, so each is read beside its floor.

References:
    | Improved precision and recall metric (Kynkaanniemi et al., 2019) | https://arxiv.org/abs/1904.06991
    | Reliable fidelity and diversity metrics (Naeem et al., 2020) | https://arxiv.org/abs/2002.09797
"""

import torch
from torch import Tensor

__all__ = ["memorisation", "nearest", "precision_recall"]

Measure = dict[str, float]


def precision_recall(distance: Tensor, n: int, *, k: int = 5) -> dict[str, Measure]:
    """Precision, recall, density and coverage from the pooled distances, whose first n rows are real."""
    k = max(1, min(k, n - 1, len(distance) - n - 1))
    real, drawn, cross = distance[:n, :n], distance[n:, n:], distance[:n, n:]
    in_real = cross <= _radius(real, k)[:, None]
    in_drawn = cross <= _radius(drawn, k)[None, :]
    values = {
        "precision": in_real.any(0).double().mean(),
        "recall": in_drawn.any(1).double().mean(),
        "density": in_real.double().sum(0).mean() / k,
        "coverage": in_real.any(1).double().mean(),
    }
    return {name: {"value": value.item(), "k": k} for name, value in values.items()}


def _radius(distance: Tensor, k: int) -> Tensor:
    """Distance of each point to its k-th nearest other point."""
    return distance.kthvalue(k + 1, dim=1).values


def nearest(x: Tensor, train: Tensor, chunk: int = 8192) -> Tensor:
    """Distance of each row of x to the nearest row of `train`, [n]; memory is bounded by n x chunk."""
    return torch.stack([torch.cdist(x, part, compute_mode="use_mm_for_euclid_dist").amin(1) for part in train.split(chunk)]).amin(0)


def memorisation(drawn: Tensor, held_out: Tensor) -> dict[str, Measure]:
    """Distances to the nearest training example, of drawn examples against those of held-out real ones.

    "near_copies" is the share of drawn examples nearer to a training example than the nearest
    twentieth of the held-out ones: 0.05 is as it should be, 1 is a model that recites.
    """
    threshold = held_out.quantile(0.05)
    return {
        "nearest_train": {"value": drawn.median().item()},
        "near_copies": {"value": (drawn <= threshold).double().mean().item()},
    }
