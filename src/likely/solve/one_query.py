"""Attention of one query per head to the keys known so far, on a CPU; compiled by numba.

A step of many streams does two operations with each number that it reads, so time is that of reading keys and values, and
of a single stream that of starting operations. Here each is read once, in order, and a step starts two functions; the softmax
between them is torch's. For 64 streams on one thread, matrix products of torch took half as long again where both were timed
alone, and its fused kernel nearly three times as long.
"""

from typing import no_type_check

import numpy as np
from numba import njit

__all__ = ["mixed", "scored"]


@njit(cache=True, fastmath=True)
@no_type_check
def scored(every: np.ndarray, turns: np.ndarray, keys: np.ndarray, values: np.ndarray, slot: int, scores: np.ndarray) -> None:
    """Turn queries and keys, take the newest key and value, score the known keys.

    Args:
        every: queries of all heads, then keys, then values, [n, heads + 2 kv_heads, d]; turned in place.
        turns: (cos, sin) of each pair of numbers, [d / 2, 2], or [0, 2] for none.
        keys, values: [n, kv_heads, window, d]; the newest is written to `slot`.
        scores: of the first `known` slots, [n, heads, known], written.
    """
    n, kv_heads, _, d = keys.shape
    heads, known = scores.shape[1:]
    shared = heads // kv_heads
    for i in range(n):
        for head in range(heads + kv_heads):
            for j in range(len(turns)):
                a, b = every[i, head, 2 * j], every[i, head, 2 * j + 1]
                every[i, head, 2 * j] = a * turns[j, 0] - b * turns[j, 1]
                every[i, head, 2 * j + 1] = a * turns[j, 1] + b * turns[j, 0]
        for group in range(kv_heads):
            for j in range(d):
                keys[i, group, slot, j] = every[i, heads + group, j]
                values[i, group, slot, j] = every[i, heads + kv_heads + group, j]
            for head in range(group * shared, (group + 1) * shared):
                for t in range(known):
                    score = every.dtype.type(0)
                    for j in range(d):
                        score += every[i, head, j] * keys[i, group, t, j]
                    scores[i, head, t] = score


@njit(cache=True, fastmath=True)
@no_type_check
def mixed(weights: np.ndarray, values: np.ndarray, out: np.ndarray) -> None:
    """out [n, heads, d] = sum_t weights [n, heads, known] values [n, kv_heads, window, d]."""
    n, heads, known = weights.shape
    shared, d = heads // values.shape[1], values.shape[3]
    for i in range(n):
        for head in range(heads):
            group = head // shared
            for j in range(d):
                out[i, head, j] = 0
            for t in range(known):
                weight = weights[i, head, t]
                for j in range(d):
                    out[i, head, j] += weight * values[i, group, t, j]
