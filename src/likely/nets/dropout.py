"""Dropout whose draws cost little on a CPU.

torch draws a number of its own for each unit, a tenth of a training step of convolutions, and more in bf16. Whether a unit stays is one bit
of news: here each takes one random byte, and eight of them are drawn at once.

References:
    | Dropout: a simple way to prevent neural networks from overfitting (Srivastava et al., 2014) | https://jmlr.org/papers/v15/srivastava14a.html
"""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["dropout"]

_STATES = 256  # of a byte


def dropout(h: Tensor, share: float, on: bool = True) -> Tensor:
    """h with each unit zeroed with probability `share` and the others larger by 1 / (1 - share); h itself if not `on`.

    On a CPU the share is rounded to 256ths; what the others are multiplied by belongs to the rounded share, so that the mean is h.
    """
    least = round(share * _STATES)
    if h.device.type != "cpu" or not on or not 0 < least < _STATES:
        return F.dropout(h, share, on)
    return h * (_bytes(h) >= least).to(h.dtype).mul_(_STATES / (_STATES - least))


def _bytes(like: Tensor) -> Tensor:
    """Uniform random bytes of the shape of a tensor, laid out in memory as it is."""
    words = torch.empty(-(-like.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.uint8)[: like.numel()].as_strided(like.shape, torch.empty_like(like).stride())
