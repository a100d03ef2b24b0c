r"""One layer with a plain perceptron, for a block of rows, on a CPU, and its gradient; compiled by numba for `chain_passes`.

    y = x with f(x_i; raw_i) at the places that move,      raw = perceptron(x at the places that it reads)

    g_raw, g_x  = the transform's
    g_W = g h^T,  g_b = sum g,  g <- (W^T g) where h > 0            through each linear map, backwards
    g_x += g seen'(x)                                              at the entries that the net reads

What is kept of a row for the gradient lies in one piece of memory: x, what is seen and its slope, the hidden units, raw, and what
the transform keeps. `shape` is what all layers of a chain have in common: width and number of hidden layers, whether they are masked;
kind of the transform, raw parameters of a number, bound and least share; whether the inverse is meant.
"""

import math
from typing import no_type_check

import numpy as np

from likely.bijections import affine_passes, rational_quadratic
from likely.bijections.compiled import compiled

__all__ = ["ADDITIVE", "AFFINE", "SPLINE", "WIDE", "backward", "forward", "kept_of", "matrix"]

ADDITIVE, AFFINE, SPLINE = 0, 1, 2
WIDE = 128  # units, from where on a library's products take a matrix [outputs, inputs] as quickly as one that has been turned


@no_type_check
@compiled
def matrix(flat: np.ndarray, begin: int, rows: int, columns: int) -> np.ndarray:
    return flat[begin : begin + rows * columns].reshape(rows, columns)


@no_type_check
@compiled
def kept_of(kind: int, size: int) -> int:
    """Numbers that a transform keeps for the gradient of one: factor and slope; the argument and two softmaxes."""
    return 2 if kind == AFFINE else 1 + 2 * ((size + 1) // 3) if kind == SPLINE else 0


@no_type_check
@compiled
def _linear(h: np.ndarray, weights: np.ndarray, w: int, out: np.ndarray, width: int) -> None:
    """Write W h; W begins at w, [outputs, inputs] in wide nets, in others turned."""
    if width >= WIDE:
        np.dot(h, matrix(weights, w, out.shape[1], h.shape[1]).T, out)
    else:
        np.dot(h, matrix(weights, w, h.shape[1], out.shape[1]), out)


@no_type_check
@compiled
def _slots(
    block: np.ndarray,
    m: int,
    dims: int,
    reads: int,
    moves: int,
    at: int,
    shape: tuple,
) -> tuple[np.ndarray, ...]:
    """What is kept of a layer for a block of rows: x, what is seen, its slope, hidden units, raw, what the transform keeps, and y."""
    width, hidden, _, kind, size, _, _, _ = shape
    n = size * moves
    x, at = matrix(block, at * m, m, dims), at + dims
    h, slope, at = matrix(block, at * m, m, reads), matrix(block, (at + reads) * m, m, reads), at + 2 * reads
    units, at = block[at * m : (at + hidden * width) * m].reshape(hidden, m, width), at + hidden * width
    raw, at = matrix(block, at * m, m, n), at + n
    kept, at = block[at * m : (at + kept_of(kind, size) * moves) * m], at + kept_of(kind, size) * moves
    return x, h, slope, units, raw, kept, matrix(block, at * m, m, dims)


@no_type_check
@compiled
def _add_bias(
    h: np.ndarray,
    bias: np.ndarray,
    rectified: bool,
) -> None:
    """h <- h + bias, or relu(h + bias); NaN stays."""
    for b in range(len(h)):
        for j in range(h.shape[1]):
            v = h[b, j] + bias[j]
            h[b, j] = 0 if rectified and v < 0 else v


@no_type_check
@compiled
def _add_product(g: np.ndarray, h: np.ndarray, first: bool, total: np.ndarray) -> None:
    """total <- g^T h, to which later blocks add."""
    if first:
        np.dot(g.T, h, total)
        return
    product, into = np.dot(g.T, h).reshape(-1), total.reshape(-1)
    for i in range(len(into)):
        into[i] += product[i]


@no_type_check
@compiled
def _add_rows(g: np.ndarray, first: bool, total: np.ndarray) -> None:
    """total <- the sum of the rows, to which later blocks add."""
    if first:
        total[:] = 0
    for b in range(len(g)):
        for j in range(len(total)):
            total[j] += g[b, j]


@no_type_check
@compiled
def _look(x: np.ndarray, reads: np.ndarray, far: float, h: np.ndarray, slope: np.ndarray) -> None:
    """Write what is seen of some entries of x [B, D], h = x / sqrt(1 + (x / far)^2), and dh/dx."""
    one, nearness = x.dtype.type(1), x.dtype.type(1 / far)
    for b in range(len(x)):
        for j in range(len(reads)):
            h[b, j] = x[b, reads[j]]
    values, slopes = h.reshape(-1), slope.reshape(-1)
    for i in range(len(values)):
        near = values[i] * nearness
        r = one / math.sqrt(one + near * near)
        values[i] *= r
        slopes[i] = r * r * r


@no_type_check
@compiled
def _move(
    x: np.ndarray,
    places: np.ndarray,
    raw: np.ndarray,
    kind: int,
    bound: float,
    least: float,
    inverse: bool,
    kept: np.ndarray,
    y: np.ndarray,
    log_det: np.ndarray,
) -> None:
    """Write y of x [B, D] and what the gradient needs, and add to the log-determinants [B]."""
    m, n = len(x), len(places)
    if kind == AFFINE:
        affine_passes.transform(x, raw, places, bound, inverse, y, log_det, matrix(kept, 0, m, n), matrix(kept, m * n, m, n))
        return
    for b in range(m):
        for i in range(x.shape[1]):
            y[b, i] = x[b, i]
    if kind == ADDITIVE:
        for b in range(m):
            for j in range(n):
                y[b, places[j]] += -raw[b, 0, j] if inverse else raw[b, 0, j]
        return
    at, value, log_slope = matrix(kept, 0, m, n), np.empty((m, n), x.dtype), np.empty((m, n), x.dtype)
    for b in range(m):
        for j in range(n):
            at[b, j] = x[b, places[j]]
    bins = (raw.shape[1] + 1) // 3
    rational_quadratic.transform(at, raw, bins, bound, least, inverse, matrix(kept, m * n, 2 * bins, m * n), value, log_slope)
    for b in range(m):
        for j in range(n):
            y[b, places[j]] = value[b, j]
            log_det[b] += log_slope[b, j]
            at[b, j] = value[b, j] if inverse else at[b, j]


@no_type_check
@compiled
def _pull(
    x: np.ndarray,
    y: np.ndarray,
    places: np.ndarray,
    raw: np.ndarray,
    kind: int,
    bound: float,
    least: float,
    inverse: bool,
    kept: np.ndarray,
    grad_log: np.ndarray,
    g: np.ndarray,
    g_raw: np.ndarray,
) -> None:
    """Turn the gradient by y [B, D] to that by x, and write that by raw."""
    m, n = len(x), len(places)
    if kind == AFFINE:
        affine_passes.gradient(x, y, places, inverse, matrix(kept, 0, m, n), matrix(kept, m * n, m, n), grad_log, g, g_raw)
        return
    if kind == ADDITIVE:
        for b in range(m):
            for j in range(n):
                g_raw[b, 0, j] = -g[b, places[j]] if inverse else g[b, places[j]]
        return
    bins, by_value, by_log, by_x = (raw.shape[1] + 1) // 3, np.empty((m, n), x.dtype), np.empty((m, n), x.dtype), np.empty((m, n), x.dtype)
    for b in range(m):
        for j in range(n):
            by_value[b, j], by_log[b, j] = g[b, places[j]], grad_log[b]
    p = matrix(kept, m * n, 2 * bins, m * n)
    rational_quadratic.gradient(matrix(kept, 0, m, n), raw, p, bins, bound, least, inverse, by_value, by_log, by_x, g_raw)
    for b in range(m):
        for j in range(n):
            g[b, places[j]] = by_x[b, j]


@no_type_check
@compiled
def forward(
    block: np.ndarray,
    m: int,
    dims: int,
    weights: np.ndarray,
    known: np.ndarray,
    wiring: np.ndarray,
    layer: np.ndarray,
    far: float,
    shape: tuple,
    log_det: np.ndarray,
) -> None:
    """One layer of a block of rows; `known` [m, 1 or 0, width] is added to its first units."""
    reads, moves, w, q, at = layer
    width, hidden, _, kind, size, bound, least, inverse = shape
    x, h, slope, units, raw, kept, y = _slots(block, m, dims, reads, moves, at, shape)
    _look(x, wiring[q : q + reads], far, h, slope)
    for k in range(hidden):
        inputs = h.shape[1]
        _linear(h, weights, w, units[k], width)
        w, h = w + inputs * width, units[k]
        if k == 0 and len(known):
            for b in range(m):
                for j in range(width):
                    h[b, j] += known[b if len(known) > 1 else 0, j]
        _add_bias(h, weights[w : w + width], True)
        w += width
    _linear(h, weights, w, raw, width)
    _add_bias(raw, weights[w + width * size * moves : w + (width + 1) * size * moves], False)
    _move(x, wiring[q + reads : q + reads + moves], raw.reshape(m, size, moves), kind, bound, least, inverse, kept, y, log_det)


@no_type_check
@compiled
def backward(
    block: np.ndarray,
    m: int,
    dims: int,
    weights: np.ndarray,
    wiring: np.ndarray,
    layer: np.ndarray,
    shape: tuple,
    grad_log: np.ndarray,
    g_x: np.ndarray,
    by_weight: np.ndarray,
    first: bool,
) -> np.ndarray:
    """Turn the gradient by the result of a layer to that by its argument, and add those by its weights to what earlier blocks gave, if
    this is not the first; that by its first units."""
    reads, moves, w, q, at = layer
    width, hidden, _, kind, size, bound, least, inverse = shape
    x, seen, slope, units, raw, kept, y = _slots(block, m, dims, reads, moves, at, shape)
    g = np.empty((m, size * moves), x.dtype)
    places = wiring[q + reads : q + reads + moves]
    shapes = m, size, moves
    _pull(x, y, places, raw.reshape(shapes), kind, bound, least, inverse, kept, grad_log, g_x, g.reshape(shapes))
    w += (reads + 1 + (hidden - 1) * (width + 1)) * width
    for k in range(hidden, -1, -1):
        h = units[k - 1] if k else seen
        inputs, outputs = h.shape[1], g.shape[1]
        _add_product(g, h, first, matrix(by_weight, w, outputs, inputs))
        _add_rows(g, first, by_weight[w + outputs * inputs : w + outputs * (inputs + 1)])
        if k == 0:
            break
        g = np.dot(g, matrix(weights, w, outputs, inputs))
        for b in range(m):
            for j in range(inputs):
                g[b, j] = g[b, j] if h[b, j] > 0 else 0
        w -= ((width if k > 1 else reads) + 1) * width
    by_seen = np.dot(g, matrix(weights, w, width, reads))
    for b in range(m):
        for j in range(reads):
            g_x[b, wiring[q + j]] += by_seen[b, j] * slope[b, j]
    return g
