"""What the compiled passes over numbers have in common: how they are compiled, and an exponential that vectorises."""

import math
from collections.abc import Callable
from typing import no_type_check

import numpy as np
from numba import njit, types
from numba.extending import overload

__all__ = ["compiled", "exp"]

_FAST = {"arcp", "contract", "nsz"}

compiled = njit(cache=True, nogil=True, error_model="numpy", fastmath=_FAST)


def exp(v: float) -> float:
    """exp(v) for v < 700 (87 in float32) to 1e-14 (1e-7); loops over it become vector instructions, which calls of a library do not."""
    return math.exp(v)


@no_type_check
def _double(v: float) -> float:
    v = -700.0 if v < -700.0 else v  # and NaN stays
    shifted = v * 1.4426950408889634 + 6755399441055744.0  # 1.5 * 2^52: the nearest whole number is now in the low bits
    k = shifted - 6755399441055744.0
    r = v - k * 0.6931471803691238 - k * 1.9082149292705877e-10
    q = 1 / 39916800
    for c in (1 / 3628800, 1 / 362880, 1 / 40320, 1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0):
        q = q * r + c
    return q * np.int64((np.float64(shifted).view(np.int64) + 1023) << 52).view(np.float64)


@no_type_check
def _single(v: float) -> float:
    f = np.float32
    v = f(-87) if v < f(-87) else v
    shifted = v * f(1.4426950408889634) + f(12582912)  # 1.5 * 2^23
    k = shifted - f(12582912)
    r = v - k * f(0.693359375) + k * f(2.12194440e-4)
    q = f(1 / 5040)
    for c in (f(1 / 720), f(1 / 120), f(1 / 24), f(1 / 6), f(0.5), f(1), f(1)):
        q = q * r + c
    return q * np.uint32((np.uint32(f(shifted).view(np.uint32)) + np.uint32(127)) << np.uint32(23)).view(np.float32)


@overload(exp, jit_options={"error_model": "numpy", "fastmath": _FAST})
@no_type_check
def _by_type(v: float) -> Callable[[float], float]:
    return _single if v == types.float32 else _double
