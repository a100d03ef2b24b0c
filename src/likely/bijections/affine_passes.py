r"""Affine maps of some entries of a vector on a CPU: one pass for map or inverse, and one for its gradient, compiled by numba.

    y_i = x_i exp(s_i) + t_i at the places that move, y_i = x_i at the others,      log |det dy/dx| = sum_i s_i,
    s = c tanh(raw / c)

As tensors this is a dozen operations on few numbers, whose cost is that of calling them: choosing the entries, the scale, the map,
putting them back, the sum, and each one's derivative. With f = exp(s), f = exp(-s) for the inverse x = (y - t) exp(-s), the
gradient needs f and the slope ds/draw = 1 - (s / c)^2 alone, which are kept.
"""

from typing import no_type_check

import numpy as np

from likely.bijections.compiled import compiled, exp

__all__ = ["gradient", "invert", "transform"]

_BLOCK = 512  # numbers that are worked on together


@no_type_check
@compiled
def transform(
    x: np.ndarray,
    raw: np.ndarray,
    places: np.ndarray,
    bound: float,
    inverse: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """y [B, D] and log |det dy/dx| [B] of x, and f and ds/draw [B, n]; raw is [B, 2, n], places [n]."""
    rows, n = len(x), len(places)
    y, log_det, factor = np.empty_like(x), np.empty(rows), np.empty((rows, n), x.dtype)
    slope, step = np.empty_like(factor), max(1, _BLOCK // max(n, 1))
    scale = np.empty(step * n)
    for begin in range(0, rows, step):
        end = min(rows, begin + step)
        for b in range(begin, end):
            for j in range(n):
                scale[(b - begin) * n + j] = raw[b, 0, j]
            for i in range(x.shape[1]):
                y[b, i] = x[b, i]
        low, high = begin * n, end * n
        f, d = factor.reshape(-1)[low:high], slope.reshape(-1)[low:high]
        for i in range(len(f)):
            v = scale[i] / bound
            e = exp(-2 * abs(v))
            t = (1 - e) / (1 + e)
            t = t if v >= 0 else -t
            scale[i] = -bound * t if inverse else bound * t
            f[i] = exp(scale[i])
            d[i] = 1 - t * t
        for b in range(begin, end):
            total = 0.0
            for j in range(n):
                i, at = places[j], (b - begin) * n + j
                y[b, i] = (x[b, i] - raw[b, 1, j]) * f[at] if inverse else x[b, i] * f[at] + raw[b, 1, j]
                total += scale[at]
            log_det[b] = total
    return y, log_det, factor, slope


@no_type_check
@compiled
def gradient(
    x: np.ndarray,
    y: np.ndarray,
    places: np.ndarray,
    inverse: bool,
    factor: np.ndarray,
    slope: np.ndarray,
    grad_y: np.ndarray,
    grad_log: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The gradients by the input and by raw."""
    rows, n = factor.shape
    grad_x, grad_raw = np.empty_like(x), np.empty((rows, 2, n), x.dtype)
    for b in range(rows):
        for i in range(x.shape[1]):
            grad_x[b, i] = grad_y[b, i]
        for j in range(n):
            i = places[j]
            by_x = grad_y[b, i] * factor[b, j]
            grad_x[b, i] = by_x
            if inverse:
                grad_raw[b, 0, j], grad_raw[b, 1, j] = -(grad_y[b, i] * y[b, i] + grad_log[b]) * slope[b, j], -by_x
            else:
                grad_raw[b, 0, j], grad_raw[b, 1, j] = (by_x * x[b, i] + grad_log[b]) * slope[b, j], grad_y[b, i]
    return grad_x, grad_raw


@no_type_check
@compiled
def invert(y: np.ndarray, raw: np.ndarray, bound: float, x: np.ndarray, log_slope: np.ndarray) -> None:
    """Write x [n] = (y - t) exp(-s) and log dx/dy = -s, of one entry in many rows; raw is [2, n]."""
    for i in range(len(y)):
        v = raw[0, i] / bound
        e = exp(-2 * abs(v))
        t = (1 - e) / (1 + e)
        s = bound * (t if v >= 0 else -t)
        x[i], log_slope[i] = (y[i] - raw[1, i]) * exp(-s), -s
