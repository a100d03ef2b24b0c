"""Attention of one query per head to the keys known so far, on a CPU; compiled by numba.

A step of many streams does two operations with each number that it reads, so time is that of reading keys and values, and of a
single stream that of starting operations. Here each is read once, in order, and a step starts one function. Keys and values may
be bf16, half as much to read, which numba knows as arrays of their bits; arithmetic is in float32 then. What is read next is asked
for in advance: rings of many streams are larger than the caches of a core, and a ring is too short for it to guess the next one.
"""

import math
from typing import Any, no_type_check

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload
from torch import Tensor

__all__ = ["array", "attend"]


def array(x: Tensor) -> np.ndarray:
    """The same memory as an array, of bf16 as its bits."""
    return x.detach().view(torch.uint16).numpy() if x.dtype == torch.bfloat16 else x.detach().numpy()


@njit(cache=True, fastmath=True)
@no_type_check
def attend(
    every: np.ndarray,
    turns: np.ndarray,
    bias: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    slot: int,
    known: int,
    scratch: np.ndarray,
    out: np.ndarray,
) -> None:
    """Turn queries and keys, take the newest key and value, and mix the known values by the softmax of their scores.

    Args:
        every: queries of all heads, then keys, then values, [n, heads + 2 kv_heads, d].
        turns: cosines and sines of each pair of numbers, [2, d / 2], or [2, 0] for none.
        bias: of the scores, [heads, known], or [0, 0] for none.
        keys, values: [n, kv_heads, window, d]; the newest is written to `slot`, and the first `known` are read.
        scratch: [2 d + window] numbers of the type that is computed with.
        out: [n, heads, d], written.
    """
    n, kv_heads, _, d = keys.shape
    heads = out.shape[1]
    query, mixed, weights = scratch[:d], scratch[d : 2 * d], scratch[2 * d : 2 * d + known]
    for i in range(n):
        for group in range(kv_heads):
            _announce(keys, i * kv_heads + group + 1, known)
            _announce(values, i * kv_heads + group + 1, known)
            _turn(every, i, heads + group, turns, query)
            for j in range(d):
                keys[i, group, slot, j] = _stored(query[j], keys)
                values[i, group, slot, j] = every[i, heads + kv_heads + group, j]
            for head in range(group * heads // kv_heads, (group + 1) * heads // kv_heads):
                _turn(every, i, head, turns, query)
                most = _score(query, keys, i, group, weights)
                if len(bias):
                    for t in range(known):
                        weights[t] += bias[head, t]
                    most = weights.max()
                total = _exponentials(weights, most)
                _mix(weights, values, i, group, mixed)
                for j in range(d):
                    out[i, head, j] = _stored(mixed[j] / total, out)


@intrinsic
def _prefetch(_, address):  # noqa: ANN001, ANN202 - numba wants the names alone
    """Have the line of memory at an address brought near; it may lie anywhere."""

    def lowered(context, builder, _, arguments):  # noqa: ANN001, ANN202
        number, pointer = ir.IntType(32), builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
        near = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        builder.call(near, [pointer, *(number(v) for v in (0, 3, 1))])  # to read, to all caches, data
        return context.get_dummy_value()

    return types.void(types.intp), lowered


@njit(inline="always")
@no_type_check
def _announce(ring: np.ndarray, row: int, known: int) -> None:
    """That the first `known` vectors of a row [window, d] of a ring are read next."""
    begin = ring.ctypes.data + row * ring.strides[1]
    for offset in range(0, known * ring.strides[2], 64):
        _prefetch(begin + offset)


@njit(fastmath=True)
@no_type_check
def _turn(every: np.ndarray, i: int, head: int, turns: np.ndarray, out: np.ndarray) -> None:
    """Pairs of numbers, as complex ones, turned."""
    for j in range(turns.shape[1]):
        a, b, c, s = _read(every[i, head, 2 * j]), _read(every[i, head, 2 * j + 1]), turns[0, j], turns[1, j]
        out[2 * j] = a * c - b * s
        out[2 * j + 1] = a * s + b * c
    for j in range(2 * turns.shape[1], len(out)):
        out[j] = _read(every[i, head, j])


@njit(fastmath=True)
@no_type_check
def _score(query: np.ndarray, keys: np.ndarray, i: int, group: int, scores: np.ndarray) -> float:
    """Products of a query with keys; the largest."""
    most = query.dtype.type(-np.inf)
    for t in range(len(scores)):
        score = query.dtype.type(0)
        for j in range(len(query)):
            score += query[j] * _read(keys[i, group, t, j])
        scores[t] = score
        most = max(most, score)
    return most


@njit(fastmath=True)
@no_type_check
def _exponentials(x: np.ndarray, most: float) -> float:
    """exp(x - most), in place; their sum."""
    total = x.dtype.type(0)
    for t in range(len(x)):
        x[t] = _exp(x[t] - most)
        total += x[t]
    return total


@njit(fastmath=True)
@no_type_check
def _mix(weights: np.ndarray, values: np.ndarray, i: int, group: int, out: np.ndarray) -> None:
    """out [d] = sum_t weights_t values_t, four at a time."""
    known = len(weights)
    out[:] = 0
    for t in range(0, known - 3, 4):
        a, b, c, e = weights[t], weights[t + 1], weights[t + 2], weights[t + 3]
        for j in range(len(out)):
            first = a * _read(values[i, group, t, j]) + b * _read(values[i, group, t + 1, j])
            out[j] += first + c * _read(values[i, group, t + 2, j]) + e * _read(values[i, group, t + 3, j])
    for t in range(known // 4 * 4, known):
        for j in range(len(out)):
            out[j] += weights[t] * _read(values[i, group, t, j])


@no_type_check
def _read(x: Any) -> Any:
    """A number as one to compute with; bits of a bf16 become a float32. Compiled, as the next two are."""


@no_type_check
def _stored(x: Any, array: np.ndarray) -> Any:
    """A number as an array stores it: of bf16, the bits of the nearest one, of two the even one."""


@no_type_check
def _exp(x: Any) -> Any:
    """exp(x), x <= 0; of a float32 a polynomial, which runs over many numbers at once."""


@overload(_read, inline="always")
@no_type_check
def _read_of(x):  # noqa: ANN001, ANN202 - numba wants the names alone
    if x == types.uint16:
        return lambda x: np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)
    return lambda x: x


@overload(_stored, inline="always")
@no_type_check
def _stored_of(x, array):  # noqa: ANN001, ANN202 - numba wants the names alone
    return (lambda x, array: _nearest_bf16(x)) if array.dtype == types.uint16 else lambda x, array: x


@overload(_exp, inline="always")
@no_type_check
def _exp_of(x):  # noqa: ANN001, ANN202 - numba wants the names alone
    return (lambda x: _power_of_2(x * np.float32(math.log2(math.e)))) if x == types.float32 else lambda x: math.exp(x)


@njit(inline="always")
@no_type_check
def _nearest_bf16(x: np.float32) -> np.uint16:
    bits = np.float32(x).view(np.uint32)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@njit(inline="always", fastmath=True)
@no_type_check
def _power_of_2(x: np.float32) -> np.float32:
    """2^x, x <= 0, as 2^whole (the exponent's bits) times a minimax polynomial of the rest in [-1/2, 1/2]."""
    x = max(x, np.float32(-126))
    whole = np.int32(x - np.float32(0.5))
    f = x - np.float32(whole)
    p = np.float32(1.5403530e-4) * f + np.float32(1.3333558e-3)
    p = p * f + np.float32(9.6181291e-3)
    p = p * f + np.float32(5.5504109e-2)
    p = p * f + np.float32(2.4022651e-1)
    p = p * f + np.float32(6.9314718e-1)
    p = p * f + np.float32(1)
    return p * np.int32((whole + np.int32(127)) << np.int32(23)).view(np.float32)
