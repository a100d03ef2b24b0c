"""What a causal net sees of an entry: the number at order one, and a one-hot code where there are few levels."""

import torch
from torch import Tensor
from torch.nn import functional as F

from likely.space import MISSING, Support, to_grid

__all__ = ["feature_width", "features", "standard"]

_ONE_HOT_UP_TO = 32


def standard(s: Support, x: Tensor) -> tuple[Tensor, Tensor]:
    """(value, lost): the standardised number in float64, 0 where it is missing, and whether it is; x [...]."""
    lost, number = x.isnan(), x.double()
    if s.kind != "real":  # an integer stands for its cell's middle
        lost, number = lost | (x == MISSING), (to_grid(number) if s.kind == "decimal" else number) + 0.5
    return ((number - s.center) / s.scale).masked_fill(lost, 0.0), lost


def _coded(s: Support) -> bool:
    return s.kind == "nominal" or 0 < s.levels <= _ONE_HOT_UP_TO


def feature_width(s: Support) -> int:
    """Features of one entry: a constant one (zeros mean "outside"), the number, a missing flag, the code."""
    return 1 + s.numeric + s.missing + s.levels * _coded(s)


def features(s: Support, x: Tensor, dtype: torch.dtype) -> Tensor:
    """x [B, ...] -> [B, feature_width(s), ...]."""
    value, lost = standard(s, x)
    parts = [torch.ones_like(value)[:, None]]
    if s.numeric:
        parts.append(value[:, None])
    if s.missing:
        parts.append(lost[:, None].to(value))
    if _coded(s):
        code = F.one_hot(x.long().masked_fill(lost, 0), s.levels).movedim(-1, 1)
        parts.append((code * ~lost[:, None]).to(value))
    return torch.cat(parts, 1).to(dtype)
