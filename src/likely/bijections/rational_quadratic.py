r"""The rational-quadratic spline on a CPU: one pass over the parameters each for map, inverse and gradient, compiled by numba.

As tensors the spline is three dozen operations, each over all bins, although a number needs only its own; and
autograd keeps what each of them made. Here a number costs two softmaxes and the formulas of its bin, and what is
kept are the probabilities p of the softmaxes. In the bin of width w and height h, with t = (x - left) / w,
slope s = h / w, slopes a and b at its ends:

    y = low + h N / D,                  N = s t^2 + a t (1 - t)
    log dy/dx = log(A s^2 / D^2),       D = s + (a + b - 2 s) t (1 - t),    A = b t^2 + 2 s t (1 - t) + a (1 - t)^2

The inverse x(y) needs no derivatives of its own: from dy = y_x dx + y_o do for any parameter o, its gradients
are those of the map at x, with -G in place of the gradient of y and G = (grad_x + grad_l l_x) / y_x for y itself,
where l = log dy/dx and grad_l is what falls on it.

Probabilities have the parameters' dtype; the formulas are evaluated in float64, in registers.
"""

import math
from typing import no_type_check

import numpy as np

from likely.bijections.compiled import compiled, exp

__all__ = ["gradient", "transform"]

_BLOCK = 512  # numbers that are worked on together: what they need stays in the nearest cache


@no_type_check
@compiled
def _softmax(raw: np.ndarray, begin: int, end: int, first: int, bins: int, p: np.ndarray, most: np.ndarray, total: np.ndarray) -> None:
    """Write those of the rows begin <= b < end of raw into p[first : first + bins]."""
    n = raw.shape[2]
    low, high = begin * n, end * n
    most[:], total[:] = -np.inf, 0
    for k in range(first, first + bins):
        part = p[k, low:high]
        for b in range(begin, end):
            for j in range(n):
                part[(b - begin) * n + j] = raw[b, k, j]
        for i in range(len(part)):
            most[i] = most[i] if most[i] > part[i] else part[i]
    for k in range(first, first + bins):
        part = p[k, low:high]
        for i in range(len(part)):
            e = exp(part[i] - most[i])
            part[i] = e
            total[i] += e
    for k in range(first, first + bins):
        part = p[k, low:high]
        for i in range(len(part)):
            part[i] /= total[i]


@no_type_check
@compiled
def _find(v: float, p: np.ndarray, i: int, first: int, bins: int, bound: float, least: float) -> tuple[int, float, float]:
    """The bin of v among those of p[first : first + bins, i], where it begins and its size."""
    share, floor = 2 * bound * (1 - least * bins), 2 * bound * least
    edge = -bound
    for k in range(bins - 1):
        size = floor + share * p[first + k, i]
        if v < edge + size:
            return k, edge, size
        edge += size
    return bins - 1, edge, floor + share * p[first + bins - 1, i]


@no_type_check
@compiled
def _edge(k: int, p: np.ndarray, i: int, first: int, bins: int, bound: float, least: float) -> tuple[float, float]:
    """Where bin k begins, and its size: by the sums of `_find`, bit for bit, for steep splines magnify what differs."""
    share, floor = 2 * bound * (1 - least * bins), 2 * bound * least
    edge = -bound
    for other in range(first, first + k):
        edge += floor + share * p[other, i]
    return edge, floor + share * p[first + k, i]


@no_type_check
@compiled
def _slope(raw: np.ndarray, b: int, j: int, knot: int, bins: int, least: float, one: float) -> tuple[float, float]:
    """Slope at a knot, and its derivative by the parameter: one and constant at both ends."""
    if knot == 0 or knot == bins:
        return 1.0, 0.0
    v = raw[b, 2 * bins + knot - 1, j] + one
    e = exp(-abs(v))
    return least + max(v, 0.0) + math.log(1 + e), (1.0 if v > 0 else e) / (1 + e)


@no_type_check
@compiled
def transform(
    x: np.ndarray,
    raw: np.ndarray,
    bins: int,
    bound: float,
    least: float,
    inverse: bool,
    p: np.ndarray,
    y: np.ndarray,
    log_slope: np.ndarray,
) -> None:
    """Write y and log |dy/dx| of x [B, n], and the probabilities p [2 bins, B n]."""
    rows, n = x.shape
    step, one = max(1, _BLOCK // max(n, 1)), math.log(math.expm1(1 - least))
    most, total = np.empty(step * n, p.dtype), np.empty(step * n, p.dtype)
    for begin in range(0, rows, step):
        end = min(rows, begin + step)
        _softmax(raw, begin, end, 0, bins, p, most, total)
        _softmax(raw, begin, end, bins, bins, p, most, total)
        for b in range(begin, end):
            for j in range(n):
                v, i = float(x[b, j]), b * n + j
                if not abs(v) < bound:
                    y[b, j], log_slope[b, j] = v, 0.0
                    continue
                if inverse:
                    k, low, height = _find(v, p, i, bins, bins, bound, least)
                    left, width = _edge(k, p, i, 0, bins, bound, least)
                else:
                    k, left, width = _find(v, p, i, 0, bins, bound, least)
                    low, height = _edge(k, p, i, bins, bins, bound, least)
                a, e = _slope(raw, b, j, k, bins, least, one)[0], _slope(raw, b, j, k + 1, bins, least, one)[0]
                s = height / width
                if inverse:
                    r = (v - low) / height
                    bend = r * (a + e - 2 * s)
                    q, c = a - bend, -s * r
                    root = math.sqrt(max(q * q - 4 * (s - q) * c, 0.0))
                    t = min(max(-2 * c / (q + root), 0.0), 1.0)  # the form of the solution that does not cancel
                else:
                    t = (v - left) / width
                u = 1 - t
                below = s + (a + e - 2 * s) * t * u
                above = e * t * t + 2 * s * t * u + a * u * u
                log_dy = math.log(above * (s / below) ** 2)
                y[b, j] = left + width * t if inverse else low + height * (s * t * t + a * t * u) / below
                log_slope[b, j] = -log_dy if inverse else log_dy


@no_type_check
@compiled
def gradient(
    x: np.ndarray,
    raw: np.ndarray,
    p: np.ndarray,
    bins: int,
    bound: float,
    least: float,
    inverse: bool,
    grad_y: np.ndarray,
    grad_log: np.ndarray,
    grad_x: np.ndarray,
    grad_raw: np.ndarray,
) -> None:
    """Write the gradients by the input and by raw; x is the map's argument: what the inverse gave, where that is meant."""
    rows, n = x.shape
    share, one = 2 * bound * (1 - least * bins), math.log(math.expm1(1 - least))
    step = max(1, _BLOCK // max(n, 1))
    index, by_edge, by_size, mean = np.empty(step * n, np.int64), np.empty((2, step * n)), np.empty((2, step * n)), np.empty(step * n)
    total = np.empty(step * n)
    for begin in range(0, rows, step):
        end = min(rows, begin + step)
        grad_raw[begin:end, 2 * bins :] = 0
        for b in range(begin, end):
            for j in range(n):
                v, gy, gl, i = float(x[b, j]), float(grad_y[b, j]), float(grad_log[b, j]), b * n + j
                at = i - begin * n
                if not abs(v) < bound:
                    grad_x[b, j] = gy
                    index[at], by_edge[:, at], by_size[:, at] = 0, 0, 0
                    continue
                k, left, width = _find(v, p, i, 0, bins, bound, least)
                _, height = _edge(k, p, i, bins, bins, bound, least)
                (a, da), (e, de) = _slope(raw, b, j, k, bins, least, one), _slope(raw, b, j, k + 1, bins, least, one)
                s, t = height / width, (v - left) / width
                u = 1 - t
                tu = t * u
                below = s + (a + e - 2 * s) * tu
                above = e * t * t + 2 * s * tu + a * u * u
                portion = (s * t * t + a * tu) / below
                slope = above * (s / below) ** 2
                log_t = 2 * (e * t + s * (u - t) - a * u) / above - 2 * (a + e - 2 * s) * (u - t) / below
                if inverse:
                    gl = -gl
                    moved = (gy + gl * log_t / width) / slope
                    gy, grad_x[b, j] = -moved, moved
                else:
                    grad_x[b, j] = gy * slope + gl * log_t / width
                gh = gy * height
                by_t = gh * slope / s + gl * log_t
                by_s = gh * (t * t - portion * (1 - 2 * tu)) / below + gl * (2 / s + 2 * tu / above - 2 * (1 - 2 * tu) / below)
                if k > 0:
                    grad_raw[b, 2 * bins + k - 1, j] = da * (gh * tu * (1 - portion) / below + gl * (u * u / above - 2 * tu / below))
                if k < bins - 1:
                    grad_raw[b, 2 * bins + k, j] = de * (gl * (t * t / above - 2 * tu / below) - gh * tu * portion / below)
                index[at] = k
                by_edge[0, at], by_size[0, at] = -share * by_t / width, -share * (by_s * s + by_t * t) / width
                by_edge[1, at], by_size[1, at] = share * gy, share * (gy * portion + by_s / width)
        for side in range(2):
            _softmax_gradient(p, begin, end, side * bins, bins, index, by_edge[side], by_size[side], mean, total, grad_raw)


@no_type_check
@compiled
def _softmax_gradient(
    p: np.ndarray,
    begin: int,
    end: int,
    first: int,
    bins: int,
    index: np.ndarray,
    by_edge: np.ndarray,
    by_size: np.ndarray,
    mean: np.ndarray,
    total: np.ndarray,
    grad_raw: np.ndarray,
) -> None:
    """From the gradients by the sum of the probabilities before the index, and by that at the index."""
    n = grad_raw.shape[2]
    mean[:] = 0
    for k in range(bins):
        part = p[first + k, begin * n : end * n]
        for i in range(len(part)):
            mean[i] += (by_edge[i] if k < index[i] else by_size[i] if k == index[i] else 0.0) * part[i]
    for k in range(bins):
        part = p[first + k, begin * n : end * n]
        for i in range(len(part)):
            total[i] = ((by_edge[i] if k < index[i] else by_size[i] if k == index[i] else 0.0) - mean[i]) * part[i]
        for b in range(begin, end):
            for j in range(n):
                grad_raw[b, first + k, j] = total[(b - begin) * n + j]
