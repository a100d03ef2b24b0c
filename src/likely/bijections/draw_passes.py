r"""The inverse of an autoregressive map on a CPU, entry by entry in one pass over blocks of rows, compiled by numba.

When an entry is known, the units that wait for it alone are computed, once and for good, then the next entry's parameters, then that
entry (`nets.masked_mlp` says which units those are). So a draw costs what one pass of the net does, and half of that, for a unit is
computed from the units before it only. As tensors these are a dozen operations per entry on a few units, whose cost is that of calling
them. Here units are rows of [units, examples] that stay in the cache, and a matrix product adds rows to rows, which become vector
instructions along the examples: 70 billion operations a second on a core, about what a library reaches at this size.
"""

import math
from typing import no_type_check

import numpy as np

from likely.bijections import affine_passes, rational_quadratic
from likely.bijections.chain_passes import laid
from likely.bijections.compiled import compiled
from likely.bijections.layer_passes import SPLINE, matrix

__all__ = ["chain_inverse", "inverse"]

_ROWS = 128  # examples that are worked on together


@no_type_check
@compiled
def _add_product(weight: np.ndarray, values: np.ndarray, out: np.ndarray) -> None:
    """out [J, R] += weight [J, K] values [K, R]: two rows and four terms at a time, so that what is loaded is used."""
    units, terms = weight.shape
    rows, whole = out.shape[1], terms - terms % 4
    for j in range(0, units - 1, 2):
        first, second = out[j], out[j + 1]
        for k in range(0, whole, 4):
            a, b, c, d = weight[j, k], weight[j, k + 1], weight[j, k + 2], weight[j, k + 3]
            e, f, g, h = weight[j + 1, k], weight[j + 1, k + 1], weight[j + 1, k + 2], weight[j + 1, k + 3]
            p, q, s, t = values[k], values[k + 1], values[k + 2], values[k + 3]
            for r in range(rows):
                first[r] += a * p[r] + b * q[r] + c * s[r] + d * t[r]
                second[r] += e * p[r] + f * q[r] + g * s[r] + h * t[r]
    for j in range(units - units % 2, units):
        first = out[j]
        for k in range(0, whole, 4):
            a, b, c, d = weight[j, k], weight[j, k + 1], weight[j, k + 2], weight[j, k + 3]
            p, q, s, t = values[k], values[k + 1], values[k + 2], values[k + 3]
            for r in range(rows):
                first[r] += a * p[r] + b * q[r] + c * s[r] + d * t[r]
    for j in range(units):
        first = out[j]
        for k in range(whole, terms):
            a, p = weight[j, k], values[k]
            for r in range(rows):
                first[r] += a * p[r]


@no_type_check
@compiled
def _linear(weight: np.ndarray, bias: np.ndarray, values: np.ndarray, out: np.ndarray) -> None:
    """out [J, R] = weight values + bias."""
    for j in range(len(out)):
        out[j, :] = bias[j]
    _add_product(weight, values, out)


@no_type_check
@compiled
def _rectified(values: np.ndarray, out: np.ndarray) -> None:
    for j in range(len(values)):
        row, target = values[j], out[j]
        for r in range(len(row)):
            target[r] = row[r] if row[r] > 0 else 0


@no_type_check
@compiled
def _see(value: np.ndarray, weight: np.ndarray, far: float, look: np.ndarray, sums: np.ndarray) -> None:
    """Add a known entry, as it is seen, to what the units to come are told: sums [J, R] += weight [J] seen(value)."""
    for r in range(len(value)):
        v = float(value[r])
        look[r] = v / math.sqrt(1 + (v / far) ** 2)
    for j in range(len(sums)):
        row, w = sums[j], weight[j]
        for r in range(len(row)):
            row[r] += w * look[r]


@no_type_check
@compiled
def inverse(
    y: np.ndarray,
    known: np.ndarray,
    first: np.ndarray,
    hidden: np.ndarray,
    hidden_bias: np.ndarray,
    last: np.ndarray,
    last_bias: np.ndarray,
    begins: np.ndarray,
    residual: bool,
    far: float,
    bins: int,
    bound: float,
    least: float,
) -> tuple[np.ndarray, np.ndarray]:
    """x [n, D] and log |det dx/dy| [n] of y.

    Args:
        known: what is added to the first layer's units before any entry is known, [n or 1, units].
        first: [units, D]; hidden: [layers, units, units], where `residual` two to a block; last: [size D, units].
        begins: the first unit that waits for so many entries, [D + 1].
        bins: of a spline; 0 for an affine map.
    """
    (n, dims), units, layers = y.shape, first.shape[0], len(hidden)
    x, log_det, size = np.empty_like(y), np.zeros(n), len(last) // dims
    block = min(n, _ROWS)
    sums, active = np.empty((layers + 1, units, block), y.dtype), np.empty((layers + 1, units, block), y.dtype)
    raw, look, p = np.empty((1, size, block), y.dtype), np.empty(block, y.dtype), np.empty((2 * bins, block), y.dtype)
    given, value, log_value = np.zeros((1, block), y.dtype), np.empty((1, block), y.dtype), np.empty((1, block), y.dtype)
    for start in range(0, n, block):
        m = min(block, n - start)
        for j in range(units):
            for r in range(block):
                sums[0, j, r] = known[start + r if len(known) > 1 and r < m else 0, j]
        for i in range(dims):
            begin, end = begins[i], begins[i + 1]
            if i > 0:
                _see(value[0], first[begin:, i - 1], far, look, sums[0, begin:])
            _rectified(sums[0, begin:end], active[0, begin:end])
            for k in range(layers):
                new = sums[k + 1, begin:end]
                _linear(hidden[k, begin:end, :end], hidden_bias[k, begin:end], active[k, :end], new)
                if residual and k % 2 == 1:
                    new += sums[k - 1, begin:end]
                _rectified(new, active[k + 1, begin:end])
            _linear(last[i::dims, :end], last_bias[i::dims], active[layers, :end], raw[0])
            for r in range(m):
                given[0, r] = y[start + r, i]
            if bins == 0:
                affine_passes.invert(given[0], raw[0], bound, value[0], log_value[0])
            else:
                shape = bins, bound, least, True
                rational_quadratic.transform(given, raw, *shape, p, value, log_value)
            for r in range(m):
                x[start + r, i] = value[0, r]
                log_det[start + r] += log_value[0, r]
    return x, log_det


@no_type_check
@compiled
def _plain(weights: np.ndarray, w: int, dims: int, known: np.ndarray, degrees: np.ndarray, shape: tuple) -> tuple[np.ndarray, ...]:
    """What `inverse` takes of a plain net: `known` and the weights of the layers, and where the units of each degree begin."""
    width, hidden, _, _, size, _, _, _ = shape
    first, w = matrix(weights, w, width, dims), w + dims * width
    start = np.empty((max(1, len(known)), width), weights.dtype)
    for b in range(len(start)):
        for j in range(width):
            start[b, j] = weights[w + j] + (known[b, j] if len(known) else 0)
    w += width
    inner, bias = np.empty((hidden - 1, width, width), weights.dtype), np.empty((hidden - 1, width), weights.dtype)
    for k in range(hidden - 1):
        inner[k] = matrix(weights, w, width, width)
        bias[k] = weights[w + width * width : w + (width + 1) * width]
        w += (width + 1) * width
    last, last_bias = matrix(weights, w, size * dims, width), weights[w + size * dims * width : w + size * dims * (width + 1)]
    begins = np.zeros(dims + 1, np.int64)
    for i in range(dims + 1):
        for j in range(width):
            begins[i] += degrees[j] < i
    return start, first, inner, bias, last, last_bias, begins


@no_type_check
@compiled
def chain_inverse(
    y: np.ndarray, weights: np.ndarray, known: np.ndarray, wiring: np.ndarray, table: np.ndarray, far: float, shape: tuple
) -> tuple[np.ndarray, np.ndarray]:
    """x [n, D] and log |det dx/dy| [n] of y by autoregressive layers with plain nets, in the order they are met (`chain_passes`)."""
    (n, dims), (width, _, _, kind, size, bound, least, _) = y.shape, shape
    layers, names = laid(table, len(known), wiring, dims, shape)
    x, now, log_det = y.copy(), np.empty_like(y), np.zeros(n)
    for layer in range(len(layers) - 1):
        w, q = layers[layer, 2], layers[layer, 3]
        places, degrees = wiring[q : q + dims], wiring[q + 3 * dims : q + 3 * dims + width]
        for b in range(n):
            for i in range(dims):
                now[b, i] = x[b, places[i]]
        start, first, inner, bias, last, last_bias, begins = _plain(weights, w, dims, known[layer], degrees, shape)
        bins = (size + 1) // 3 if kind == SPLINE else 0
        value, log_value = inverse(now, start, first, inner, bias, last, last_bias, begins, False, far, bins, bound, least)
        for b in range(n):
            log_det[b] += log_value[b]
            for i in range(dims):
                x[b, places[i]] = value[b, i]
    for b in range(n):
        for i in range(dims):
            now[b, i] = x[b, names[i]]
    return now, log_det
