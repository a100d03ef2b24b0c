r"""Ordinary differential equations dy/dt = f(t, y) by steps that fit each row: the pair of orders 5 and 4 of Dormand and Prince.

Every row has its own time and step, accepts or rejects on its own error, and leaves the batch when it arrives. So what comes out for a
row does not depend, to the last bit, on which others are beside it, as far as f itself treats rows alike.

A step is accepted where the two orders differ by at most tolerance (1 + |y|) in every entry. The last slope of an accepted step is
the first of the next: six calls of f a step, and one to begin.

`halved` walks twice: by steps that fit at ten times the tolerance, and by the same steps, each cut in two, whose two orders differ by 2^5
times less: within the tolerance. What halving changes is the error of the first walk, some 2^5 times that of the second; less where slopes
are rough.

References:
    | A family of embedded Runge-Kutta formulae (Dormand and Prince, 1980) | https://doi.org/10.1016/0771-050X(80)90013-3
    | Solving ordinary differential equations I (Hairer, Norsett and Wanner, 1993) | https://doi.org/10.1007/978-3-540-78862-1
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from likely.errors import LikelyError

__all__ = ["Halved", "Slope", "dormand_prince", "halved"]

Slope = Callable[[Tensor, Tensor, Tensor], Tensor]  # (t [R], y [R, N], numbers of these rows [R]) -> dy/dt [R, N]

_NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_DIFFERENCE = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)  # of the two orders
_FIRST = 1 / 16  # of the whole way
_LEAST = 2.0**-40
_PER_OCTAVE = 4
_COARSER = 10.0  # than what is asked for, the first of two walks; halving its steps gains 2^5 in the difference of the orders


class Halved(NamedTuple):
    """y(end) by halved steps and by the steps before they were halved, [B, N] each, and calls of f in both walks [B]."""

    fine: Tensor
    coarse: Tensor
    calls: Tensor


def dormand_prince(f: Slope, y: Tensor, begin: float, end: float, tolerance: float) -> tuple[Tensor, Tensor]:
    """y(end) [B, N] from y(begin), float64, and how often f was called for each row [B]; `end` may be before `begin`.

    Raises: LikelyError where steps become too small, since f is not smooth or not finite.
    """
    way = _walked(f, y, begin, end, tolerance)
    return way.arrived, way.calls


def halved(f: Slope, y: Tensor, begin: float, end: float, tolerance: float) -> Halved:
    """y(end) as of `dormand_prince`, and what it was before every step was halved.

    Raises: LikelyError as it does.
    """
    way = _walked(f, y, begin, end, _COARSER * tolerance)
    fine, slope, calls = y.double().clone(), way.slope, way.calls
    t = torch.full((len(y),), begin, dtype=torch.float64, device=y.device)
    for rows, step in way.steps:
        half = step / 2
        for _ in range(2):
            fine[rows], slope[rows], _ = _attempt(f, t[rows], fine[rows], slope[rows], half, rows, tolerance)
            t[rows] += half
            calls[rows] += len(_NODES)
    return Halved(fine, way.arrived, calls)


class _Way(NamedTuple):
    """Where rows came to, their first slopes, calls, and the steps: in turn which rows took one, and how long it was for each."""

    arrived: Tensor
    slope: Tensor
    calls: Tensor
    steps: list[tuple[Tensor, Tensor]]


def _walked(f: Slope, y: Tensor, begin: float, end: float, tolerance: float) -> _Way:
    arrived, calls = y.double().clone(), torch.ones(len(y), dtype=torch.int64, device=y.device)
    rows, y, steps = torch.arange(len(y), device=y.device), arrived.clone(), []
    t, step = (torch.full((len(y),), v, dtype=torch.float64, device=y.device) for v in (begin, (end - begin) * _FIRST))
    first = slope = f(t, y, rows)
    while len(rows):
        left = end - t
        step = torch.where(step.abs() < left.abs(), step, left)
        there, last, ratio = _attempt(f, t, y, slope, step, rows, tolerance)
        accepted = ratio <= 1  # False for NaN
        done = accepted & (step == left)
        if bool(accepted.any()):
            steps.append((rows[accepted], step[accepted]))
        y, slope = (torch.where(accepted[:, None], new, old) for new, old in ((there, y), (last, slope)))
        t = torch.where(accepted, t + step, t)
        step = step * _growth(ratio)
        calls[rows] += len(_NODES)
        arrived[rows[done]] = y[done]
        rows, t, y, slope, step = (v[~done] for v in (rows, t, y, slope, step))
        if bool((step.abs() < _LEAST * abs(end - begin)).any()):
            raise LikelyError(f"A differential equation could not be solved to {tolerance:g}.", "Allow a larger tolerance.")
    return _Way(arrived, first, calls, steps)


def _growth(ratio: Tensor) -> Tensor:
    """By how much to change a step whose error is `ratio` times what is tolerated: quarters of octaves.

    Steps that are rounded are equal to the bit where errors are all but equal. Otherwise a slope that is rough in time turns the
    last bits of its values, which do hang on what is beside a row in a matrix product, into other steps and so into other answers.
    """
    wished = 0.9 * ratio.nan_to_num(torch.inf).clamp_min(1e-10) ** -0.2
    return torch.exp2((_PER_OCTAVE * wished.clamp(0.2, 5.0).log2()).floor() / _PER_OCTAVE)


def _attempt(f: Slope, t: Tensor, y: Tensor, slope: Tensor, step: Tensor, rows: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Where a step leads, the slope there, and the error as a multiple of what is tolerated [R]."""
    slopes, there = [slope], y
    for node, weights in zip(_NODES, _STAGES, strict=True):
        there = y + step[:, None] * _sum(weights, slopes)
        slopes.append(f(t + node * step, there, rows))
    error = step[:, None] * _sum(_DIFFERENCE, slopes)
    scale = tolerance * (1 + torch.maximum(y.abs(), there.abs()))
    return there, slopes[-1], (error / scale).abs().amax(1)


def _sum(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    total = weights[0] * slopes[0]
    for weight, slope in zip(weights[1:], slopes[1:], strict=True):
        total = total + weight * slope if weight else total
    return total
