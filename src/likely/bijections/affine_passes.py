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
def _scale(s: np.ndarray, bound: float, inverse: bool, factor: np.ndarray, slope: np.ndarray) -> None:
    """Turn raw into s (-s for the inverse), and write f and ds/draw."""
    one, most = s.dtype.type(1), s.dtype.type(bound)
    signed = -most if inverse else most
    for i in range(len(s)):
        v = s[i] / most
        u = abs(v)
        e = exp(-u - u)
        t = (one - e) / (one + e)
        t = t if v >= 0 else -t
        s[i] = signed * t
        factor[i] = exp(signed * t)
        slope[i] = one - t * t


@no_type_check
@compiled
def transform(
    x: np.ndarray,
    raw: np.ndarray,
    places: np.ndarray,
    bound: float,
    inverse: bool,
    y: np.ndarray,
    log_det: np.ndarray,
    factor: np.ndarray,
    slope: np.ndarray,
) -> None:
    """Write y [B, D] of x, f and ds/draw [B, n], and add to the log-determinants [B]; raw is [B, 2, n], places [n]."""
    rows, n = len(x), len(places)
    step = max(1, _BLOCK // max(n, 1))
    scale = np.empty((step, n), x.dtype)
    for begin in range(0, rows, step):
        end = min(rows, begin + step)
        for b in range(begin, end):
            for j in range(n):
                scale[b - begin, j] = raw[b, 0, j]
            for i in range(x.shape[1]):
                y[b, i] = x[b, i]
        _scale(scale[: end - begin].reshape(-1), bound, inverse, factor[begin:end].reshape(-1), slope[begin:end].reshape(-1))
        for b in range(begin, end):
            total = 0.0
            for j in range(n):
                i, f, shift = places[j], factor[b, j], raw[b, 1, j]
                y[b, i] = (x[b, i] - shift) * f if inverse else x[b, i] * f + shift
                total += scale[b - begin, j]
            log_det[b] += total


@no_type_check
@compiled
def gradient(
    x: np.ndarray,
    y: np.ndarray,
    places: np.ndarray,
    inverse: bool,
    factor: np.ndarray,
    slope: np.ndarray,
    grad_log: np.ndarray,
    grad: np.ndarray,
    grad_raw: np.ndarray,
) -> None:
    """Turn the gradient by the result [B, D] to that by the input, and write that by raw."""
    rows, n = factor.shape
    for b in range(rows):
        by_log = x.dtype.type(grad_log[b])
        for j in range(n):
            i = places[j]
            by_y = grad[b, i]
            by_x = by_y * factor[b, j]
            grad[b, i] = by_x
            if inverse:
                grad_raw[b, 0, j], grad_raw[b, 1, j] = -(by_y * y[b, i] + by_log) * slope[b, j], -by_x
            else:
                grad_raw[b, 0, j], grad_raw[b, 1, j] = (by_x * x[b, i] + by_log) * slope[b, j], by_y


@no_type_check
@compiled
def invert(y: np.ndarray, raw: np.ndarray, bound: float, x: np.ndarray, log_slope: np.ndarray) -> None:
    """Write x [n] = (y - t) exp(-s) and log dx/dy = -s, of one entry in many rows; raw is [2, n]."""
    factor, slope = np.empty_like(y), np.empty_like(y)
    log_slope[:] = raw[0]
    _scale(log_slope, bound, True, factor, slope)
    for i in range(len(y)):
        x[i] = (y[i] - raw[1, i]) * factor[i]
