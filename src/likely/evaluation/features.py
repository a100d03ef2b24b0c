"""Numbers that two-sample tests compare: examples of any space -> vectors [n, features].

    grid      ordinals as x / (levels - 1) in [0, 1]; reals standardised
    columns   numbers standardised on the training split, a missing one 0 with a flag; nominals one-hot
    sequence  square roots of the frequencies of 1-, 2- and 3-grams, hashed (Hellinger geometry); of real vectors as a grid
    set       how many points; mean and deviation of each dimension, mean products of pairs of dimensions; the quantiles of each
              dimension, of the distances from the mean point and of those between points, at 0, 1/8, ..., 1 (reals standardised):
              the same in whatever order the points are, as is needed where sets are unordered

References:
    | Pooling by quantiles and moments is one of the maps phi of Deep sets (Zaheer et al., 2017) | https://arxiv.org/abs/1703.06114
    | Feature hashing for large scale multitask learning (Weinberger et al., 2009) | https://arxiv.org/abs/0902.2206
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from likely import pointsets
from likely.space import MISSING, Space, Support, to_grid

__all__ = ["features"]

_QUANTILES = 9
_GRAMS = 512  # hash buckets of each n-gram order
_STATES = 64  # most one-hot columns of a nominal; rarer structure than that is beyond 1000 samples


def features(space: Space, x: Tensor, given_space: Space | None = None, given: Tensor | None = None) -> Tensor:
    """Features of x, float64 [n, f]; of the pairs (x, given) where `given` is passed."""
    if space.layout == "set":
        own = _of_sets(space, x)
    elif space.layout == "sequence" and space.nominals:
        own = _grams(x)
    else:
        own = torch.cat([_entry(s, x[:, i], space) for i, s in enumerate(space.supports)], 1)
    if given_space is None or given is None:
        return own.double().cpu()
    return torch.cat([own.double().cpu(), features(given_space, given)], 1)


def _entry(s: Support, x: Tensor, space: Space) -> Tensor:
    """One channel or column, [n, ...] -> [n, features]."""
    if s.kind == "nominal":
        states = min(s.levels + s.missing, _STATES)
        return F.one_hot(torch.where(x < 0, s.levels, x) % states, states).reshape(len(x), -1)
    lost = torch.isnan(x) if x.is_floating_point() else x == MISSING
    if s.kind == "ordinal" and space.layout == "grid":
        value = x.double() / max(s.levels - 1, 1)
    else:
        value = ((to_grid(x) if s.kind == "decimal" else x).double() - s.center) / s.scale
    value = torch.where(lost, 0.0, value).reshape(len(x), -1)
    return torch.cat([value, lost.double().reshape(len(x), -1)], 1) if s.missing else value


def _grams(x: Tensor) -> Tensor:
    """Square roots of hashed n-gram frequencies; padding (-1) is not counted."""
    parts = []
    for order in range(1, min(3, x.shape[1]) + 1):
        windows = x.long().unfold(1, order, 1)
        powers = torch.tensor([0x9E3779B1**k % 2**31 for k in range(1, order + 1)], device=x.device)
        bucket = ((windows + 1) * powers).sum(2).remainder(2**31 - 1).remainder(_GRAMS)
        whole = (windows >= 0).all(2).double()
        counts = torch.zeros(len(x), _GRAMS, dtype=torch.float64, device=x.device).scatter_add_(1, bucket, whole)
        parts.append((counts / whole.sum(1, keepdim=True).clamp_min(1)).sqrt())
    return torch.cat(parts, 1)


def _of_sets(space: Space, x: Tensor) -> Tensor:
    """What is the same for all orders of the points of sets [n, N, D]."""
    center, scale = (torch.tensor([getattr(s, name) for s in space.supports], dtype=torch.float64) for name in ("center", "scale"))
    there = pointsets.there(x)
    points = ((x.cpu().double() - center) / scale).masked_fill(~there[..., None], math.nan)
    mean = points.nanmean(1, keepdim=True)
    moments = torch.einsum("npi,npj->nij", (points - mean).nan_to_num(0.0), (points - mean).nan_to_num(0.0)) / there.sum(1)[:, None, None]
    pairs = torch.cdist(points, points).flatten(1)  # NaN with padding; a point is at distance 0 of itself
    parts = [*points.unbind(2), (points - mean).norm(dim=2), pairs]
    at = torch.linspace(0, 1, _QUANTILES, dtype=torch.float64)
    quantiles = [torch.nanquantile(values, at, dim=1).T for values in parts]
    count = there.sum(1, keepdim=True).double() / x.shape[1]
    return torch.cat([count, mean.squeeze(1), moments.flatten(1), *quantiles], 1)
