"""Numbers that two-sample tests compare: examples of any space -> vectors [n, features].

    grid      ordinals as x / (levels - 1) in [0, 1]; reals standardised
    columns   numbers standardised on the training split, a missing one 0 with a flag; nominals one-hot
    sequence  square roots of the frequencies of 1-, 2- and 3-grams, hashed (Hellinger geometry)

References:
    | Feature hashing for large scale multitask learning (Weinberger et al., 2009) | https://arxiv.org/abs/0902.2206
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from likely.space import MISSING, Space, Support, to_grid

__all__ = ["features"]

_GRAMS = 512  # hash buckets of each n-gram order
_STATES = 64  # most one-hot columns of a nominal; rarer structure than that is beyond 1000 samples


def features(space: Space, x: Tensor, given_space: Space | None = None, given: Tensor | None = None) -> Tensor:
    """Features of x, float64 [n, f]; of the pairs (x, given) where `given` is passed."""
    own = _grams(x) if space.layout == "sequence" else torch.cat([_entry(s, x[:, i], space) for i, s in enumerate(space.supports)], 1)
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
