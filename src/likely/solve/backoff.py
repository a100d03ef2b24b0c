r"""Probabilities of the next symbol from the counts of its contexts, shortest to longest; compiled by numba.

Interpolated absolute discounting goes up the orders k = 0 .. m of the contexts that are known, from
the uniform p_{-1}, with counts c and their sum n at each context's node:

    p_k(s) = (c(s) - D_k(c(s))) / n + g_k p_{k-1}(s),      g_k = sum_s D_k(c(s)) / n

    kneser-ney   D_k(c) = c - (c + 1) Y n_{c+1} / n_c with Y = n_1 / (n_1 + 2 n_2) for c = 1, 2, 3+, where
                 n_c entries of order k have the count c (Chen and Goodman's modified Kneser-Ney)
    mixed        Kneser-Ney's orders, mixed in the logistic domain by weights that are learnt online:

        log p(s) = sum_k trust[k, kind_k] log(p_k(s) / p_{k-1}(s)) + bias[k, kind_k, class_k(s)] + const

The kind of a context is its number of occurrences and the variety of what followed. The class of a
symbol is its count there, whether it was the last to follow, and whether a longer context knows it;
what has not followed has no bias. With trust 1 and bias 0 this is Kneser-Ney. The gradient of log p
is the feature less its mean under p. Symbols without an entry share log g_k, which the constant
absorbs, so all of it is sparse.

`ppm` goes down the orders instead: a context that has seen u symbols n times in all gives each of them
(c - 1/2) / n and leaves u / 2n (method D's escape) to shorter ones, where they are excluded.

References:
    | An empirical study of smoothing techniques (Chen and Goodman, 1999) | https://doi.org/10.1006/csla.1999.0128
    | The design and analysis of efficient lossless data compression systems (method D; Howard, 1993) | https://cs.brown.edu/research/pubs/techreports/reports/CS-93-28.html
    | Adaptive weighing of context models for lossless data compression (Mahoney, 2005) | https://cs.fit.edu/~mmahoney/compression/cs200516.pdf
"""

import math
from typing import Any, NamedTuple, no_type_check

import numpy as np
from numba import njit

from likely.solve.contexts import COUNTED, ORDER, SYMBOLS, Tree, extended, follow, full, goes_on, insert, room, weighted
from likely.solve.weighting import Heap, predict

__all__ = ["Blend", "adapted", "blend_of", "estimate", "log_probs", "unlearnt"]

KINDS, CLASSES, _COUNTS = 36, 20, 5
_RATES = (0.004, 0.006)  # of trust and bias
_LEARNT = 300_000  # symbols at the end of a text that weights are learnt on, at most


class Blend(NamedTuple):
    """How orders are joined.

    Attributes:
        discount: of counts 0, 1, 2 and more, [order + 1, 4].
        trust, bias: [order + 1, kinds] and [order + 1, kinds, classes].
        rates: steps that trust and bias take up the gradient while a text is counted; 0 for none.
        exclude: whether a longer context's symbols are excluded from shorter ones, as by PPM.
    """

    discount: np.ndarray
    trust: np.ndarray
    bias: np.ndarray
    rates: np.ndarray
    exclude: bool


class _Scratch(NamedTuple):
    """Nodes and kinds of each order, log ratios of the entries on the path; p_k, then p, and the deepest order of each symbol."""

    path: np.ndarray
    kind: np.ndarray
    ratio: np.ndarray
    p: np.ndarray
    deepest: np.ndarray
    heap: Heap


def unlearnt(orders: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """No discount, all orders trusted, no bias."""
    return np.zeros((orders, 4)), np.ones((orders, KINDS)), np.zeros((orders, KINDS, CLASSES))


def blend_of(estimator: str, discount: np.ndarray, trust: np.ndarray, bias: np.ndarray) -> Blend:
    """The blend of an estimator with what it has learnt, in arrays of its own."""
    rates = np.array(_RATES if estimator == "mixed" else (0.0, 0.0))
    return Blend(discount.copy(), trust.copy(), bias.copy(), rates, estimator == "ppm")


def estimate(tree: Tree, codes: np.ndarray, estimator: str) -> tuple[Tree, Blend]:
    """Count all codes in an empty tree; a blend that learns does so on the later ones, each predicted before it is counted."""
    learning = min(len(codes) // 2, _LEARNT) if estimator == "mixed" else 0
    tree = extended(tree, codes[: len(codes) - learning])
    blend = blend_of(estimator, _discounts(tree.tally), *unlearnt(len(tree.tally))[1:])
    tree, _ = adapted(extended(tree, codes[len(codes) - learning :], count=False), blend)
    return tree, blend._replace(discount=_discounts(tree.tally))


def log_probs(tree: Tree, blend: Blend, text: np.ndarray, places: np.ndarray, *, every: bool = False) -> np.ndarray:
    """log p in nats of the symbols at some places of a text of the tree's codes, float64.

    Returns: [places, 1], 0 where a sequence starts; or, of `every` symbol, [places, symbols].
    """
    out = np.zeros((len(places), int(tree.size[SYMBOLS]) if every else 1))
    _run(tree, blend, text.astype(np.int32), places, out, 0, False)
    return out


def adapted(tree: Tree, blend: Blend, *, every: bool = False) -> tuple[Tree, np.ndarray]:
    """log p of what the tree's text holds but the tree has not counted yet, each symbol being counted after it is predicted.

    Trust and bias learn in place.

    Returns: the tree, which replaces the one given, and log p as `log_probs` gives it.
    """
    start = int(tree.size[COUNTED])
    places = np.arange(start, len(tree.text))
    out = np.zeros((len(places), int(tree.size[SYMBOLS]) if every else 1))
    while tree.size[COUNTED] < len(tree.text):
        tree = room(tree)
        _run(tree, blend, tree.text, places, out, int(tree.size[COUNTED]) - start, True)
    return tree, out


def _discounts(tally: np.ndarray) -> np.ndarray:
    """Chen and Goodman's D_k(c) [order + 1, 4] from how many entries have each count; within (0, c) where those are few."""
    n = tally + 1e-3
    c = np.arange(1, 4)
    y = (n[:, 1] / (n[:, 1] + 2 * n[:, 2]))[:, None]
    d = np.clip(c - (c + 1) * y * n[:, 2:5] / n[:, 1:4], 0.02, c - 0.02)
    return np.concatenate([np.zeros((len(d), 1)), d], 1)


@njit(cache=True)
@no_type_check
def _run(tree: Any, blend: Any, text: Any, places: Any, out: Any, begin: int, counting: bool) -> None:
    """Fill rows of `out` from `begin` on; if `counting`, the text is the tree's, which may become full before the end."""
    start, orders = tree.size[SYMBOLS], tree.size[ORDER] + 1
    each, mass = np.zeros(orders, np.int64), np.zeros(2 * start)
    heap = Heap(mass, np.zeros((start + 1 if weighted(tree) else 0, orders), np.int64), np.zeros(start + 1, np.int64))
    scratch = _Scratch(each, each.copy(), np.zeros(orders * start), mass[start:], np.zeros(start, np.int64), heap)
    for i in range(begin, len(places)):
        if counting and full(tree):
            return
        s = text[places[i]] % (start + 1)
        if s < start or out.shape[1] > 1:
            match = _predict(tree, blend, text, places[i], scratch)
            if out.shape[1] > 1:
                out[i] = np.log(scratch.p)
            else:
                out[i, 0] = math.log(scratch.p[s])
            if counting and blend.rates[0] > 0 and s < start:
                _learn(tree, blend, match, s, scratch)
        if counting:
            insert(tree, scratch.path)


@njit(cache=True)
@no_type_check
def _predict(tree: Any, blend: Any, text: Any, t: int, scratch: Any) -> int:
    """Leave p of every symbol at place t in the scratch; returns the depth of its match."""
    if weighted(tree):
        _, match = follow(tree, text, t, scratch.path)
        predict(tree.decisions, tree.head, scratch.path, match, not goes_on(tree, text, t, match), scratch.heap)
        return match
    return _exclude(tree, text, t, scratch) if blend.exclude else _blend(tree, blend, text, t, scratch)


@njit(cache=True)
@no_type_check
def _blend(tree: Any, blend: Any, text: Any, t: int, scratch: Any) -> int:
    """Leave p of every symbol at place t in the scratch; returns the depth of its match."""
    path, kind, ratio, p = scratch.path, scratch.kind, scratch.ratio, scratch.p
    depth, match = follow(tree, text, t, path)
    p[:] = 1.0 / len(p)
    z, used = np.zeros(len(p)), 0
    for k in range(match + 1):
        node = path[k]
        kind[k] = _kind(tree, node, k - depth)
        if tree.total[node] == 0:
            continue
        n, back, discount = tree.total[node], 0.0, blend.discount[k]
        e = tree.head[node]
        while e >= 0:
            back += discount[min(tree.times[e], 3)] / n
            e = tree.after[e]
        p *= back
        e = tree.head[node]
        while e >= 0:
            s, c = tree.symbol[e], tree.times[e]
            q = p[s] + (c - discount[min(c, 3)]) / n
            ratio[used] = math.log(q / p[s])
            p[s] = q
            z[s] += blend.trust[k, kind[k]] * ratio[used]
            scratch.deepest[s] = k
            used += 1
            e = tree.after[e]
    for k in range(match + 1):
        e = tree.head[path[k]]
        while e >= 0:
            z[tree.symbol[e]] += blend.bias[k, kind[k], _class(tree, path[k], e, scratch.deepest[tree.symbol[e]] > k)]
            e = tree.after[e]
    p[:] = np.exp(z - z.max())
    p /= p.sum()
    return match


@njit(cache=True)
@no_type_check
def _exclude(tree: Any, text: Any, t: int, scratch: Any) -> int:
    """Leave PPM's p of every symbol at place t in the scratch; returns the depth of its match."""
    path, p = scratch.path, scratch.p
    _, match = follow(tree, text, t, path)
    p[:] = 0.0
    rest, left = 1.0, len(p)
    for k in range(match, -1, -1):
        n, variety = 0, 0
        e = tree.head[path[k]]
        while e >= 0:
            if p[tree.symbol[e]] == 0:
                n, variety = n + tree.times[e], variety + 1
            e = tree.after[e]
        e = tree.head[path[k]]
        while e >= 0:
            if p[tree.symbol[e]] == 0:
                p[tree.symbol[e]] = rest * (tree.times[e] - (0.5 if variety < left else 0.0)) / n
            e = tree.after[e]
        rest, left = rest * (variety / (2 * n) if n else 1.0), left - variety
    for s in range(len(p)):
        if p[s] == 0:
            p[s] = rest / left
    return match


@njit(cache=True)
@no_type_check
def _learn(tree: Any, blend: Any, match: int, s: int, scratch: Any) -> None:
    """One step up the gradient of log p(s)."""
    path, kind, ratio, p = scratch.path, scratch.kind, scratch.ratio, scratch.p
    used = 0
    for k in range(match + 1):
        slope = 0.0
        e = tree.head[path[k]]
        while e >= 0:
            error = (1.0 if tree.symbol[e] == s else 0.0) - p[tree.symbol[e]]
            slope += error * ratio[used]
            blend.bias[k, kind[k], _class(tree, path[k], e, scratch.deepest[tree.symbol[e]] > k)] += blend.rates[1] * error
            used += 1
            e = tree.after[e]
        blend.trust[k, kind[k]] += blend.rates[0] * slope


@njit(cache=True)
@no_type_check
def _kind(tree: Any, node: int, beyond: int) -> int:
    """Occurrences by powers of two and variety up to four, or how far a match goes beyond its leaf."""
    if beyond > 0:
        return 32 + min(beyond, 3)
    power = 0
    while power < 7 and (1 << power) < tree.total[node]:
        power += 1
    return 4 * power + max(0, min(tree.variety[node], 4) - 1)


@njit(cache=True)
@no_type_check
def _class(tree: Any, node: int, e: int, deeper: bool) -> int:
    """Of an entry: its count, up to five, whether its symbol was the last to follow, and whether a longer context knows it."""
    return min(tree.times[e], _COUNTS) - 1 + _COUNTS * (tree.symbol[e] == tree.recent[node]) + 2 * _COUNTS * deeper
