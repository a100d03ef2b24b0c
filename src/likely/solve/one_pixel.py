"""Layers of causal convolutions at one pixel of each of a few grids, on a CPU; compiled by numba.

A single pixel's products are so small that to start an operation takes longer than to do it. Here a layer is one function. It puts what
it convolves into a register [n, columns, rows, C] (see `nets.causal.registers`), reads the crop that its kernel covers, and adds to h.
Kernels are [places of the crop, C, target], and `film` is [n, 2, C], factors and summands, or [0, 2, 0] for none.
"""

import math
from typing import Any, no_type_check

import numpy as np
from numba import njit

__all__ = ["block", "gated", "residual"]

_compiled = njit(cache=True, nogil=True, error_model="numpy", fastmath=True)
_inlined = njit(nogil=True, error_model="numpy", fastmath=True)


@no_type_check
@_compiled
def residual(h: np.ndarray, column: int, seen: np.ndarray, at: Any, film: np.ndarray, enter: Any, masked: Any, leave: Any) -> None:
    """h += W silu(film(masked(silu(W silu(h))))) at `column`; seen: the register, `at`: (columns before the first pixel in it, and before
    the first crop, the step between columns of a crop); enter, masked, leave: (weight, bias)."""
    inner, outer = np.empty(enter[1].shape[0], h.dtype), np.empty(masked[1].shape[0], h.dtype)
    for i in range(len(h)):
        inner[:] = enter[1]
        for k in range(h.shape[1]):
            _add(_silu(h[i, k]), enter[0], k, inner)
        _put(inner, seen, i, column + at[0], True)
        outer[:] = masked[1]
        _convolve(seen, i, column, at, masked[0], outer)
        _modulate(outer, film, i)
        for k in range(h.shape[1]):
            h[i, k] += leave[1][k]
        for k in range(len(outer)):
            _add(_silu(outer[k]), leave[0], k, h[i])


@no_type_check
@_compiled
def gated(
    h: np.ndarray, linked: np.ndarray, column: int, seen: np.ndarray, at: Any, film: np.ndarray, weight: np.ndarray, leave: Any
) -> None:
    """h += W gate(film(conv(h) + linked)); linked [n, 2 gates] holds the convolution's bias."""
    a = np.empty(linked.shape[1], h.dtype)
    gates = len(a) // 2
    for i in range(len(h)):
        _put(h[i], seen, i, column + at[0], False)
        a[:] = linked[i]
        _convolve(seen, i, column, at, weight, a)
        _modulate(a, film, i)
        for k in range(h.shape[1]):
            h[i, k] += leave[1][k]
        for k in range(gates):
            _add(a[k] * _sigmoid(a[gates + k]), leave[0], k, h[i])


@no_type_check
@_compiled
def block(h: np.ndarray, read: np.ndarray, column: int, seen: Any, at: Any, film: np.ndarray, first: np.ndarray, second: Any) -> None:
    """h += gate(film(conv(silu(conv(silu(h)) + read)))); read [n, C] holds the first convolution's bias; `seen` and `at` of each of the
    two."""
    width = h.shape[1]
    a, b = np.empty(width, h.dtype), np.empty(2 * width, h.dtype)
    for i in range(len(h)):
        _put(h[i], seen[0], i, column + at[0][0], True)
        a[:] = read[i]
        _convolve(seen[0], i, column, at[0], first, a)
        _put(a, seen[1], i, column + at[1][0], True)
        b[:] = second[1]
        _convolve(seen[1], i, column, at[1], second[0], b)
        _modulate(b, film, i)
        for k in range(width):
            h[i, k] += b[k] * _sigmoid(b[width + k])


@no_type_check
@_inlined
def _put(h: np.ndarray, seen: np.ndarray, i: int, place: int, silu: bool) -> None:
    """A pixel of the newest row."""
    for k in range(len(h)):
        seen[i, place, seen.shape[2] - 1, k] = _silu(h[k]) if silu else h[k]


@no_type_check
@_inlined
def _convolve(seen: np.ndarray, i: int, column: int, at: Any, weight: np.ndarray, out: np.ndarray) -> None:
    """Add a crop's product with a kernel; places of the crop are column by column."""
    rows, channels = seen.shape[2], seen.shape[3]
    for place in range(len(weight)):
        pixel = seen[i, column + at[1] + place // rows * at[2], place % rows]
        for k in range(0, channels - 3, 4):
            a, b, c, d = pixel[k], pixel[k + 1], pixel[k + 2], pixel[k + 3]
            for j in range(len(out)):
                first = a * weight[place, k, j] + b * weight[place, k + 1, j]
                out[j] += first + c * weight[place, k + 2, j] + d * weight[place, k + 3, j]
        for k in range(channels // 4 * 4, channels):
            _add(pixel[k], weight[place], k, out)


@no_type_check
@_inlined
def _add(x: float, weight: np.ndarray, k: int, out: np.ndarray) -> None:
    for j in range(len(out)):
        out[j] += x * weight[k, j]


@no_type_check
@_inlined
def _modulate(a: np.ndarray, film: np.ndarray, i: int) -> None:
    if len(film):
        for k in range(len(a)):
            a[k] = a[k] * film[i, 0, k] + film[i, 1, k]


@no_type_check
@_inlined
def _silu(x: float) -> float:
    return x * _sigmoid(x)


@no_type_check
@_inlined
def _sigmoid(x: Any) -> Any:
    return type(x)(1) / (type(x)(1) + math.exp(-x))
