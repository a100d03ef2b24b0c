r"""A chain of layers with plain perceptrons on a CPU: one pass for map or inverse, and one for its gradient, compiled by numba.

With a few dozen entries and units a layer (`layer_passes`) is some ten small operations, and twice as many to differentiate it; what they
cost is that each is called, recorded and put away. Here blocks of rows go through all layers at once, so that what a layer makes is in
the cache when the next needs it, and the matrix products are those of a library, called without a detour.
"""

from typing import no_type_check

import numpy as np

from likely.bijections import layer_passes
from likely.bijections.compiled import compiled
from likely.bijections.layer_passes import WIDE, kept_of, matrix

__all__ = ["backward", "forward", "laid"]


@no_type_check
@compiled
def _together(width: int) -> int:
    """Rows that go through together: what they make fits a core's memory, and each block of them reads all weights again."""
    return 256 if width >= WIDE else 128


@no_type_check
@compiled
def _write(
    row: np.ndarray,
    reads: int,
    moves: int,
    w: int,
    q: int,
    at: int,
) -> None:
    row[0], row[1], row[2], row[3], row[4] = reads, moves, w, q, at


@no_type_check
@compiled
def laid(
    table: np.ndarray,
    count: int,
    wiring: np.ndarray,
    dims: int,
    shape: tuple,
) -> tuple[np.ndarray, np.ndarray]:
    """How everything lies in memory.

    Returns (layers, names): of each layer how many entries it reads and moves, and where it begins in the weights, in the wiring and in
    what is kept of a row [layers + 1, 5], the last being where all end; and which entry each of the result is. In the wiring entries get
    the names that they have at the beginning.
    """
    width, hidden, masked, kind, size, _, _, inverse = shape
    layers, names, before = np.empty((count + 1, 5), np.int64), np.arange(dims), np.arange(dims)
    layer = w = q = at = 0
    for s in range(len(table)):
        permuted, reads, moves = table[s]
        if permuted:
            order = wiring[q : q + dims]
            for i in range(dims):
                before[i] = names[i]
            for i in range(dims):
                names[order[i] if inverse else i] = before[i if inverse else order[i]]
            q += dims
            continue
        _write(layers[layer], reads, moves, w, q, at)
        for i in range(q, q + reads + moves):
            wiring[i] = names[wiring[i]]
        w += (reads + 1 + (hidden - 1) * (width + 1)) * width + (width + 1) * size * moves
        q += reads + moves + (reads + width + size * moves if masked else 0)
        at += dims + 2 * reads + hidden * width + (size + kept_of(kind, size)) * moves
        layer += 1
    _write(layers[layer], 0, 0, w, q, at)
    return layers, names


@no_type_check
@compiled
def _mask(
    weights: np.ndarray,
    layers: np.ndarray,
    wiring: np.ndarray,
    shape: tuple,
) -> None:
    """Zero the weights whose target's degree is below the source's."""
    width, hidden, masked, _, size, _, _, _ = shape
    if not masked:
        return
    for layer in range(len(layers) - 1):
        reads, moves, w, q, _ = layers[layer]
        q += reads + moves
        for k in range(hidden + 1):
            inputs, outputs = width if k else reads, width if k < hidden else size * moves
            source = wiring[q : q + inputs]
            target = wiring[q + inputs : q + inputs + outputs] if k in (0, hidden) else source
            weight = matrix(weights, w, outputs, inputs)
            for j in range(outputs):
                row, most = weight[j], target[j]
                for i in range(inputs):
                    row[i] = row[i] if source[i] <= most else 0
            w, q = w + (inputs + 1) * outputs, q + (0 if k else reads)


@no_type_check
@compiled
def _turned(
    weights: np.ndarray,
    layers: np.ndarray,
    shape: tuple,
) -> np.ndarray:
    """The same with each matrix [outputs, inputs] turned to [inputs, outputs], which products take faster from the right."""
    width, hidden, _, _, size, _, _, _ = shape
    turned = np.empty_like(weights)
    for layer in range(len(layers) - 1):
        reads, moves, w, _, _ = layers[layer]
        for k in range(hidden + 1):
            inputs, outputs = width if k else reads, width if k < hidden else size * moves
            weight, other = matrix(weights, w, outputs, inputs), matrix(turned, w, inputs, outputs)
            for i in range(inputs):
                for j in range(outputs):
                    other[i, j] = weight[j, i]
            for j in range(outputs):
                turned[w + inputs * outputs + j] = weights[w + inputs * outputs + j]
            w += (inputs + 1) * outputs
    return turned


@no_type_check
@compiled
def forward(
    x: np.ndarray,
    weights: np.ndarray,
    known: np.ndarray,
    wiring: np.ndarray,
    table: np.ndarray,
    far: float,
    keep: bool,
    shape: tuple,
) -> tuple[np.ndarray, ...]:
    """z [B, D], the log-determinants [B], and what the gradient needs.

    Args:
        weights: of each layer W [outputs, inputs] and bias [outputs] of each linear map, one after the other; masked in place.
        known: what is added to each layer's first units, [layers, B, 1 or 0, width].
        wiring: of each step the order of a permutation, or the entries that a layer reads, those that it moves and, where its
            net is masked, the degrees of inputs, units and outputs; renamed in place.
        table: of each step how many entries it permutes, reads and moves.
        keep: for a gradient.
        shape: width and number of hidden layers, whether they are masked; kind of the transform, raw parameters of a number, bound and
            least share; whether the inverse is meant.
    """
    rows, dims = x.shape
    layers, names = laid(table, len(known), wiring, dims, shape)
    _mask(weights, layers, wiring, shape)
    each, turned, step = layers[-1, 4] + dims, weights if shape[0] >= WIDE else _turned(weights, layers, shape), _together(shape[0])
    work, z, log_det = np.empty(each * (rows if keep else min(rows, step)), x.dtype), np.empty_like(x), np.zeros(rows)
    for begin in range(0, rows, step):
        end = min(rows, begin + step)
        m = end - begin
        block = work[begin * each : end * each] if keep else work[: m * each]
        first = matrix(block, 0, m, dims)
        for b in range(m):
            for i in range(dims):
                first[b, i] = x[begin + b, i]
        for layer in range(len(layers) - 1):
            mine = known[layer, begin:end] if known.shape[1] > 1 else known[layer]
            layer_passes.forward(block, m, dims, turned, mine, wiring, layers[layer], far, shape, log_det[begin:end])
        last = matrix(block, layers[-1, 4] * m, m, dims)
        for b in range(m):
            for i in range(dims):
                z[begin + b, i] = last[b, names[i]]
    return z, log_det, work, weights, wiring, layers, names


@no_type_check
@compiled
def backward(
    work: np.ndarray,
    weights: np.ndarray,
    wiring: np.ndarray,
    layers: np.ndarray,
    names: np.ndarray,
    known_rows: int,
    shape: tuple,
    grad_z: np.ndarray,
    grad_log: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradients by x, by the weights and by what is known, from those by z [B, D] and the log-determinants [B]; see `forward`."""
    (rows, dims), each, width, step = grad_z.shape, layers[-1, 4] + grad_z.shape[1], shape[0], _together(shape[0])
    grad_x, by_weight = np.empty_like(grad_z), np.empty_like(weights) if rows else np.zeros_like(weights)
    by_known = np.zeros((len(layers) - 1, known_rows, width), weights.dtype)
    for begin in range(0, rows, step):
        end = min(rows, begin + step)
        m = end - begin
        g_x = np.empty((m, dims), work.dtype)
        for b in range(m):
            for i in range(dims):
                g_x[b, names[i]] = grad_z[begin + b, i]
        for layer in range(len(layers) - 2, -1, -1):
            block = work[begin * each : end * each]
            at = layers[layer]
            g = layer_passes.backward(block, m, dims, weights, wiring, at, shape, grad_log[begin:end], g_x, by_weight, begin == 0)
            if known_rows:
                for b in range(m):
                    for j in range(width):
                        by_known[layer, begin + b if known_rows > 1 else 0, j] += g[b, j]
        for b in range(m):
            for i in range(dims):
                grad_x[begin + b, i] = g_x[b, i]
    _mask(by_weight, layers, wiring, shape)
    return grad_x, by_weight, by_known
