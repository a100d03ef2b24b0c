r"""Whole numbers drawn by the odds of a normal, p(k) ~ exp(-(k - place)^2 / (2 deviation^2)) for k from 0 to a last one.

Where the normal is narrow, all but the nearest few have odds that single precision does not know from zero: only those are weighed.
"""

from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["gumbel_argmax", "whole_normal"]

_NEAR = 16  # numbers for each deviation of one: those beyond are eight deviations away
_BANDS = (0.0, 1.0, 4.0, torch.inf)  # deviations: of each band as many numbers are weighed as its widest takes


def gumbel_argmax(log_odds: Tensor, dim: int) -> Tensor:
    """Draws of an index by its odds."""
    return (log_odds - torch.empty_like(log_odds).exponential_().log()).argmax(dim)


def whole_normal(place: Tensor, deviation: Tensor, last: Tensor) -> Tensor:
    """One draw for each entry, int64; all of one shape."""
    drawn, most = torch.empty(place.shape, dtype=torch.long, device=place.device), int(last.max()) + 1
    for above, upto in pairwise(_BANDS):
        which = (deviation > above) & (deviation <= upto)
        drawn[which] = _among(place[which], deviation[which], last[which], int(min(_NEAR * upto, most)))
    return drawn


def _among(place: Tensor, deviation: Tensor, last: Tensor, count: int) -> Tensor:
    """Of entries [N], among so many numbers around their places."""
    first = torch.minimum(place.round().long() - count // 2, last + 1 - count).clamp_min(0)
    numbers = first[:, None] + torch.arange(count, device=place.device)
    log_odds = -0.5 * ((numbers - place[:, None]) / deviation[:, None]).square()
    return first + gumbel_argmax(log_odds.masked_fill(numbers > last[:, None], -torch.inf), 1)
