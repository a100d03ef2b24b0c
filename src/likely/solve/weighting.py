r"""Context-tree weighting: the mixture of all prunings of a tree of contexts, one decision at a time; compiled by numba.

A symbol of K is a path of binary decisions in the heap whose leaves are K .. 2K - 1: at b it goes on to
2b or 2b + 1, from 1 to K + s. Each decision has a source of its own, whose bits depend on the symbols before
by a pruning of the full context tree. A node of that tree that has seen a zeros and b ones estimates

    P_e(1) = (b + 1/2) / (a + b + 1)                                                 (Krichevsky and Trofimov)

and every pruning of the tree below it is weighed by 1/2 for each node where it might have stopped:

    P_w = P_e                                   where contexts end
    P_w = 1/2 P_e + 1/2 prod_children P_w       elsewhere

At the root this is the block's probability, exactly. A bit touches the nodes of its own contexts alone; with
l = log P_e / prod_children P_w at each of them, before the bit, from the longest context to the shortest,

    P_w(bit) = sigmoid(l) P_e(bit) + (1 - sigmoid(l)) P_w'(bit),      l <- l + log P_e(bit) / P_w'(bit)

where P_w' is the next-longer context's, and 1/2 beyond all that are known. Decisions are what makes it good
at text: one estimate of 256 symbols at a node pays for each that it has not seen, in every context anew
(0.2 bits/byte more on plays of Shakespeare, whichever way it is escaped).

A context that came to a decision once is that one symbol there, with l = 0. A record is made the second time, so that
contexts that occurred once, which are most, have none.

References:
    | The context-tree weighting method: basic properties (Willems, Shtarkov and Tjalkens, 1995) | https://doi.org/10.1109/18.382012
    | The performance of universal encoding (Krichevsky and Trofimov, 1981) | https://doi.org/10.1109/TIT.1981.1056331
    | Weighting techniques in data compression: theory and algorithms (decisions for text; Volf, 2002) | https://pure.tue.nl/ws/files/2043425/200213835.pdf
"""

import math
from typing import Any, NamedTuple, no_type_check

import numpy as np
from numba import njit

__all__ = ["Decisions", "Heap", "crowded", "grown", "learn", "new_decisions", "predict"]

NOTHING = -1  # in place of a record; -2 - way stands for one symbol, whose decisions to come are the bits of `way`, the next one lowest


class Decisions(NamedTuple):
    """Records of decisions that contexts came to more than once.

    Attributes:
        times: how often each bit was taken, [n, 2].
        below: what stands at the next decision: a record, one symbol, or nothing, [n, 2].
        odds: log P_e / prod_children P_w, [n].
        used: how many records there are, [1].
    """

    times: np.ndarray
    below: np.ndarray
    odds: np.ndarray
    used: np.ndarray


def new_decisions(capacity: int) -> Decisions:
    """No records, and room for some."""
    times = np.zeros((capacity, 2), np.int32)
    return Decisions(times, np.full_like(times, NOTHING), np.zeros(capacity), np.zeros(1, np.int64))


def grown(old: Decisions) -> Decisions:
    """The same records, and room for twice as many."""
    wide = new_decisions(2 * len(old.odds))
    for new, part in zip(wide, old, strict=True):
        new[: len(part)] = part
    return wide


@njit(cache=True)
@no_type_check
def crowded(decisions: Any, contexts: int, symbols: int) -> bool:
    """Whether the records that one more symbol makes after so many contexts might not fit; never where there is no room at all."""
    return 0 < len(decisions.odds) < decisions.used[0] + contexts * _way(symbols - 1, symbols)[1]


class Heap(NamedTuple):
    """Scratch of `predict`.

    Attributes:
        mass: probability of what is below each decision and leaf, [2 K]; symbols' own are the latter half.
        at: what stands at each decision in each context that knows it, [K + 1, order + 1].
        known: how many contexts know each decision, the shortest ones, [K + 1].
    """

    mass: np.ndarray
    at: np.ndarray
    known: np.ndarray


@njit(cache=True)
@no_type_check
def predict(decisions: Any, head: Any, path: Any, match: int, ends: bool, heap: Any) -> None:
    """Leave the probability of every symbol after the nodes path[0 .. match] in the heap; `ends` tells that no context is longer."""
    mass, at, known = heap
    symbols, own = len(mass) // 2, np.zeros((match + 1, 2))
    mass[1], known[1] = 1.0, match + 1
    for k in range(match + 1):
        at[1, k] = head[path[k]]
    for b in range(1, symbols):
        while known[b] > 0 and at[b, known[b] - 1] == NOTHING:
            known[b] -= 1
        one = _mixed(decisions, at[b], known[b], ends and known[b] > match, 1, own)
        mass[2 * b], mass[2 * b + 1] = mass[b] * (1 - one), mass[b] * one
        for child in range(2 * b, min(2 * b + 2, symbols)):
            known[child] = known[b]
            for k in range(known[b]):
                at[child, k] = _next(decisions, at[b, k], child & 1)


@njit(cache=True)
@no_type_check
def learn(decisions: Any, head: Any, path: Any, depth: int, ends: bool, s: int, symbols: int) -> None:
    """Count a symbol after the nodes path[0 .. depth], to the longest of which `ends` tells whether it is the end of its context."""
    way, length = _way(s, symbols)
    steps, own = np.zeros((depth + 1, length)), np.zeros((depth + 1, 2))
    at = np.zeros(depth + 1, np.int64)
    for k in range(depth + 1):
        at[k] = head[path[k]]
    for i in range(length):
        bit = way >> i & 1
        _mixed(decisions, at, depth + 1, ends, bit, own)
        for k in range(depth + 1):
            steps[k, i] = math.log(own[k, 0] / own[k, 1])
            at[k] = _next(decisions, at[k], bit)
    for k in range(depth + 1):
        _count(decisions, head, path[k], way, steps[k])


@njit(cache=True)
@no_type_check
def _way(s: int, symbols: int) -> tuple[int, int]:
    """The decisions of a symbol, the first one in the lowest bit, and how many they are."""
    leaf, way, length = symbols + s, 0, 0
    while leaf > 1:
        way, leaf, length = 2 * way + (leaf & 1), leaf >> 1, length + 1
    return way, length


@njit(cache=True)
@no_type_check
def _mixed(decisions: Any, at: Any, known: int, ends: bool, bit: int, own: Any) -> float:
    """P_w(bit) at the shortest of the known contexts; leaves in `own` [known, 2] P_e(bit) of each and P_w(bit) of the next-longer one."""
    p = 0.5
    for k in range(known - 1, -1, -1):
        taken = missed = odds = 0.0
        if at[k] >= 0:
            taken, missed, odds = decisions.times[at[k], bit], decisions.times[at[k], 1 - bit], decisions.odds[at[k]]
        elif at[k] != NOTHING:
            taken = (-2 - at[k] & 1) == bit
            missed = 1 - taken
        estimate = (taken + 0.5) / (taken + missed + 1)
        if ends and k == known - 1:
            p = estimate
        own[k, 0], own[k, 1] = estimate, p
        p += (estimate - p) / (1 + math.exp(-odds))
    return p


@njit(cache=True)
@no_type_check
def _next(decisions: Any, cursor: int, bit: int) -> int:
    """What stands at the decision after this one if this one is `bit`."""
    if cursor >= 0:
        return decisions.below[cursor, bit]
    way = -2 - cursor
    return -2 - (way >> 1) if cursor != NOTHING and way & 1 == bit else NOTHING


@njit(cache=True)
@no_type_check
def _count(decisions: Any, head: Any, node: int, way: int, steps: Any) -> None:
    """Take the decisions of a symbol at one node."""
    record = before = -1
    for i in range(len(steps)):
        cursor = head[node] if i == 0 else decisions.below[before, way >> i - 1 & 1]
        record = _opened(decisions, cursor) if cursor != NOTHING else -2 - (way >> i)
        if i == 0:
            head[node] = record
        else:
            decisions.below[before, way >> i - 1 & 1] = record
        if cursor == NOTHING:
            return
        decisions.times[record, way >> i & 1] += 1
        decisions.odds[record] += steps[i]
        before = record


@njit(cache=True)
@no_type_check
def _opened(decisions: Any, cursor: int) -> int:
    """A record; made, where one symbol stood."""
    if cursor >= 0:
        return cursor
    record, bit = decisions.used[0], -2 - cursor & 1
    decisions.used[0] += 1
    decisions.times[record, bit], decisions.below[record, bit] = 1, _next(decisions, cursor, bit)
    return record
