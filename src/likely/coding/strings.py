"""Strings symbol by symbol: codes of a model that steps through them."""

import math

import torch
from torch import Tensor

from likely.coding.codec import Causal, Codec, autoregressive
from likely.space import Space

__all__ = ["codec", "end_stays"]


def end_stays(logits: Tensor, x_i: Tensor | None, space: Space) -> Tensor:
    """Logits [n, symbols] after the symbols x_i [n]: where lengths vary, only the end follows an end."""
    if not space.variable or x_i is None:
        return logits
    end = logits.shape[1] - 1
    certain = torch.where(torch.arange(end + 1, device=logits.device) == end, 0.0, -math.inf).to(logits)
    return torch.where((x_i == end)[:, None], certain, logits)


def codec(steps: Causal, space: Space, given: Tensor | None = None) -> Codec:
    """A codec of strings; `steps` gives logits of the symbols of `space.with_end`."""
    return autoregressive(space.with_end, steps, lambda _, logits: logits.double(), given).mapped(space.ended, space.padded)
