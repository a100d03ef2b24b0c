"""What the compiled passes over numbers have in common: how they are compiled, and an exponential that vectorises."""

from typing import no_type_check

import numpy as np
from numba import njit

__all__ = ["compiled", "exp"]

compiled = njit(cache=True, nogil=True, error_model="numpy", fastmath={"arcp", "contract", "nsz"})


@no_type_check
@compiled
def exp(v: float) -> float:
    """exp(v) for v < 700, to 1e-14; loops over it become vector instructions, which calls of a library do not."""
    v = -700.0 if v < -700.0 else v  # and NaN stays
    shifted = v * 1.4426950408889634 + 6755399441055744.0  # 1.5 * 2^52: the nearest whole number is now in the low bits
    k = shifted - 6755399441055744.0
    r = v - k * 0.6931471803691238 - k * 1.9082149292705877e-10
    q = 1 / 39916800
    for c in (1 / 3628800, 1 / 362880, 1 / 40320, 1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0):
        q = q * r + c
    return q * np.int64((np.float64(shifted).view(np.int64) + 1023) << 52).view(np.float64)
