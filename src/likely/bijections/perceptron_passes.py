r"""What a perceptron does besides matrix products, on a CPU: how it sees its input (`nets.perceptron`), compiled by numba."""

import math
from typing import no_type_check

import numpy as np

from likely.bijections.compiled import compiled

__all__ = ["look", "look_back"]


@no_type_check
@compiled
def look(x: np.ndarray, reads: np.ndarray, far: float) -> tuple[np.ndarray, np.ndarray]:
    """What is seen of the entries `reads` of x [B, D], h = x / sqrt(1 + (x / far)^2), and dh/dx."""
    h = np.empty((len(x), len(reads)), x.dtype)
    slope = np.empty_like(h)
    for b in range(len(x)):
        for j in range(len(reads)):
            v = float(x[b, reads[j]])
            r = 1 / math.sqrt(1 + (v / far) ** 2)
            h[b, j], slope[b, j] = v * r, r * r * r
    return h, slope


@no_type_check
@compiled
def look_back(g: np.ndarray, reads: np.ndarray, slope: np.ndarray, grad_x: np.ndarray) -> None:
    """Add the gradient by x, from that by what is seen."""
    for b in range(len(g)):
        for j in range(len(reads)):
            grad_x[b, reads[j]] += g[b, j] * slope[b, j]
