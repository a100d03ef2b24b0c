"""Codes of reals that are rounded to a grid: integers whose masses are those of normals.

An integer is coded by how far it is from its mean. A window of cells about the mean, as wide as it has to be and no wider, leaves
few of the 2^24 counts to integers that hardly ever occur; those beyond it cost 40 bits more, or cannot occur.

Means and deviations are rounded, to a 256th of a cell and to a 256th of their own size, so that numbers that differ in their last bits, as
those of batches of two sizes do, are all but always coded alike.
"""

import torch
from torch import Tensor

from likely.coding.codec import Codec
from likely.coding.stack import Stack
from likely.errors import LikelyError

__all__ = ["normal"]

_PARTS = 256
_LEAST, _MOST = 0.125, 2.0**20  # deviations, in cells
_BEYOND = 40  # bits of the distance of what is outside the window
_FARTHEST = 2.0 ** (_BEYOND - 2)


def normal(mean: Tensor, std: Tensor, reach: int, *, open_ends: bool = True) -> Codec:
    """Integers x [n, ...] of independent normals.

    Args:
        mean, std: [n, ...] float64, in cells, each of which is about an integer.
        reach: how far from its mean an integer is coded by its mass.
        open_ends: whether there may be others; if not, the normal is cut off at its reach.

    Raises: LikelyError for a mean or deviation that is NaN.
    """
    if bool(mean.isnan().any() | std.isnan().any()):
        raise LikelyError("Cannot code with a normal whose mean or deviation is NaN.", "Has the model's training diverged?")
    mean = (mean.clamp(-_FARTHEST, _FARTHEST) * _PARTS).round() / _PARTS
    std = ((std.clamp(_LEAST, _MOST).log() * _PARTS).round() / _PARTS).exp()
    middle = mean.round()
    fine, width, window = (mean - middle).flatten(), std.flatten(), reach + open_ends  # the outermost stand for what is farther, too

    def push(stack: Stack, x: Tensor) -> None:
        away = (x - middle.long()).flatten()
        if open_ends:
            outside = away[away.abs() > reach].abs() - window
            stack.push_uniform(outside, torch.full_like(outside, 2**_BEYOND))
            away = away.clamp(-window, window)
        stack.push_normal(away, fine, width, window)

    def pop(stack: Stack, n: int) -> Tensor:
        away = stack.pop_normal(fine, width, window)
        if open_ends:
            outside = away.abs() > reach
            away[outside] += away[outside].sign() * stack.pop_uniform(torch.full_like(away[outside], 2**_BEYOND))
        return middle.long() + away.view(middle.shape)

    return Codec(push, pop)
