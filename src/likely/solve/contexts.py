r"""A tree of contexts with counts of what followed them: the memory of an n-gram model, compiled by numba.

A node of depth k stands for the k symbols before a place, the nearest first. It counts what followed:

    at full depth (or at the start of a sequence)   every occurrence
    above                                           in how many of its children a symbol has occurred

The latter are Kneser and Ney's continuation counts, which PPM calls update exclusion: counting goes
up from the deepest node and stops at the first one that knew the symbol already. So one symbol costs
at most `order` look-ups, and usually about two updates. A weighted tree counts every occurrence at every
depth, as binary decisions (`solve/weighting.py`).

A context that has occurred once is a leaf that points into the text, however deep it might go; a
second occurrence pushes the first one down. So a text of n symbols makes at most about 2 n nodes and
entries where it does not repeat itself. What follows a leaf at greater depth is read off the text.

Texts are int32 codes. A symbol s of label y is y (K + 1) + s, and K stands before the first symbol of
a sequence: contexts end there, and those of different labels meet at the root only.

References:
    | Improved backing-off for m-gram language modeling (Kneser and Ney, 1995) | https://doi.org/10.1109/ICASSP.1995.479394
    | Unbounded length contexts for PPM (Cleary and Teahan, 1997) | https://doi.org/10.1093/comjnl/40.2_and_3.67
    | Implementing the PPM data compression scheme (Moffat, 1990) | https://doi.org/10.1109/26.61469
"""

from typing import Any, NamedTuple, no_type_check

import numpy as np
from numba import njit

from likely.solve.weighting import Decisions, crowded, grown, learn, new_decisions

__all__ = ["MOST_CODES", "Tree", "copied", "extended", "follow", "full", "goes_on", "insert", "new_tree", "room", "weighted"]

MOST_CODES = 2**21  # a key packs a node and a code
_COUNTED = 4  # counts up to which it is counted how many entries have them


class Tree(NamedTuple):
    """Arrays of a context tree; numba's view of a class.

    Attributes:
        text: the codes that were counted, and room for more.
        keys, values: a hash table, (node, code) -> child and (node, symbol) -> entry.
        total: sum of the counts of each node.
        variety: number of entries of each node.
        head: first entry of each node, or its first decision, -1 for none.
        place: where the only occurrence of a leaf's context is followed, -1 where the node is no leaf.
        recent: the symbol that followed last.
        symbol, times, after: what followed, how often, and the node's next entry.
        tally: how many entries of each depth have the counts 1 .. 4, [order + 1, 5].
        size: nodes, entries, counted codes, order, symbols.
        decisions: of a weighted tree, in place of entries; without room in others.
    """

    text: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    total: np.ndarray
    variety: np.ndarray
    head: np.ndarray
    place: np.ndarray
    recent: np.ndarray
    symbol: np.ndarray
    times: np.ndarray
    after: np.ndarray
    tally: np.ndarray
    size: np.ndarray
    decisions: Decisions


NODES, ENTRIES, COUNTED, ORDER, SYMBOLS = range(5)


def new_tree(order: int, symbols: int, capacity: int = 2**12, *, weighted: bool = False) -> Tree:
    """An empty tree of contexts up to `order`, over codes of `symbols` symbols and a start; the capacity is a power of two."""

    def blank(n: int, value: int = -1) -> np.ndarray:
        return np.full(n, value, np.int32)

    return Tree(
        text=blank(0),
        keys=np.full(4 * capacity, -1, np.int64),
        values=blank(4 * capacity),
        total=blank(capacity, 0),
        variety=blank(capacity, 0),
        head=blank(capacity),
        place=blank(capacity),
        recent=blank(capacity),
        symbol=blank(capacity),
        times=blank(capacity, 0),
        after=blank(capacity),
        tally=np.zeros((order + 1, _COUNTED + 1), np.int64),
        size=np.array([1, 0, 0, order, symbols]),
        decisions=new_decisions(capacity if weighted else 0),
    )


def extended(tree: Tree, codes: np.ndarray, *, count: bool = True) -> Tree:
    """A tree whose text goes on with `codes`, counted if `count`; the given one must not be used any more."""
    tree = tree._replace(text=np.concatenate([tree.text[: tree.size[COUNTED]], codes.astype(np.int32)]))
    while count and tree.size[COUNTED] < len(tree.text):
        _count(tree)
        tree = room(tree)
    return tree


def copied(tree: Tree) -> Tree:
    """A tree that may grow apart."""
    own = {name: part.copy() for name, part in tree._asdict().items() if name != "decisions"}
    return Tree(**own, decisions=Decisions(*(part.copy() for part in tree.decisions)))


def room(tree: Tree) -> Tree:
    """The tree, with twice the capacity if it is nearly full."""
    if crowded(tree.decisions, tree.size[ORDER] + 1, tree.size[SYMBOLS]):
        tree = tree._replace(decisions=grown(tree.decisions))
    if not _nodes_full(tree):
        return tree
    wide = new_tree(int(tree.size[ORDER]), int(tree.size[SYMBOLS]), 2 * len(tree.total))
    _rehash(tree.keys, tree.values, wide.keys, wide.values)
    for name in ("total", "variety", "head", "place", "recent", "symbol", "times", "after"):
        old = getattr(tree, name)
        getattr(wide, name)[: len(old)] = old
    return wide._replace(text=tree.text, tally=tree.tally, size=tree.size, decisions=tree.decisions)


@njit(cache=True)
@no_type_check
def _rehash(keys: Any, values: Any, new_keys: Any, new_values: Any) -> None:
    for j in range(len(keys)):
        if keys[j] >= 0:
            i = _slot(new_keys, keys[j])
            new_keys[i], new_values[i] = keys[j], values[j]


@njit(cache=True)
@no_type_check
def full(tree: Any) -> bool:
    """Whether one more symbol might not fit."""
    return _nodes_full(tree) or crowded(tree.decisions, tree.size[ORDER] + 1, tree.size[SYMBOLS])


@njit(cache=True)
@no_type_check
def _nodes_full(tree: Any) -> bool:
    return max(tree.size[NODES], tree.size[ENTRIES]) + 2 * tree.size[ORDER] + 4 > len(tree.total)


@njit(cache=True)
@no_type_check
def weighted(tree: Any) -> bool:
    """Whether every occurrence is counted at every depth, by binary decisions."""
    return len(tree.decisions.odds) > 0


@njit(cache=True)
@no_type_check
def _count(tree: Any) -> None:
    path = np.zeros(tree.size[ORDER] + 1, np.int64)
    while tree.size[COUNTED] < len(tree.text) and not full(tree):
        insert(tree, path)


@njit(cache=True)
@no_type_check
def insert(tree: Any, path: Any) -> None:
    """Count the text's next symbol after all of its contexts; `path` [order + 1] is scratch."""
    t, symbols = tree.size[COUNTED], tree.size[SYMBOLS]
    tree.size[COUNTED] += 1
    s = tree.text[t] % (symbols + 1)
    if s == symbols:
        return
    depth = _descend(tree, t, path)
    if weighted(tree):
        learn(tree.decisions, tree.head, path, depth, not goes_on(tree, tree.text, t, depth), s, symbols)
        return
    for k in range(depth + 1):
        tree.recent[path[k]] = s
    while depth >= 0 and _add(tree, path[depth], s, depth):
        depth -= 1


@njit(cache=True)
@no_type_check
def _descend(tree: Any, t: int, path: Any) -> int:
    """Nodes of the contexts of place t, the last one perhaps new; leaves on the way are pushed down."""
    node = depth = 0
    path[0] = 0
    while goes_on(tree, tree.text, t, depth):
        before = tree.place[node]
        if before >= 0:
            child = _grow(tree, node, tree.text[before - 1 - depth], before)
            if weighted(tree):
                tree.head[child] = tree.head[node]
            else:
                _add(tree, child, tree.text[before] % (tree.size[SYMBOLS] + 1), depth + 1)
            tree.recent[child] = tree.recent[node]
            tree.place[node] = -1
        child = _child(tree, node, tree.text[t - 1 - depth])
        depth += 1
        if child < 0:
            path[depth] = _grow(tree, node, tree.text[t - depth], t)
            return depth
        node = path[depth] = child
    return depth


@njit(cache=True)
@no_type_check
def goes_on(tree: Any, text: Any, t: int, depth: int) -> bool:
    """Whether the context of place t has a symbol beyond depth."""
    start = tree.size[SYMBOLS]
    return depth < tree.size[ORDER] and depth < t and (depth == 0 or text[t - depth] % (start + 1) != start)


@njit(cache=True)
@no_type_check
def follow(tree: Any, text: Any, t: int, path: Any) -> tuple[int, int]:
    """The longest known context of place t in `text`: depth of its deepest node, and of its match in the tree's text.

    The nodes are left in `path` [order + 1], the deepest one also where the match goes on beyond it.
    """
    node = depth = 0
    path[0] = 0
    while tree.place[node] < 0 and goes_on(tree, text, t, depth):
        node = _child(tree, node, text[t - 1 - depth])
        if node < 0:
            return depth, depth
        depth += 1
        path[depth] = node
    match, place = depth, tree.place[node]
    while place >= 0 and goes_on(tree, text, t, match) and tree.text[place - 1 - match] == text[t - 1 - match]:
        match += 1
        path[match] = node
    return depth, match


@njit(cache=True)
@no_type_check
def _add(tree: Any, node: int, s: int, depth: int) -> bool:
    """Count a symbol at a node; whether it is new there."""
    i, key = _find(tree, node, s, 1)
    new = tree.keys[i] != key
    if new:
        e = tree.size[ENTRIES]
        tree.size[ENTRIES] += 1
        tree.keys[i], tree.values[i] = key, e
        tree.symbol[e], tree.after[e], tree.head[node] = s, tree.head[node], e
        tree.variety[node] += 1
    e = tree.values[i]
    tree.total[node] += 1
    tree.times[e] += 1
    tree.tally[depth, min(tree.times[e], _COUNTED + 1) % (_COUNTED + 1)] += 1
    tree.tally[depth, min(tree.times[e] - 1, _COUNTED + 1) % (_COUNTED + 1)] -= 1
    return new


@njit(cache=True)
@no_type_check
def _grow(tree: Any, node: int, code: int, place: int) -> int:
    """A new leaf below a node."""
    i, key = _find(tree, node, code, 0)
    tree.keys[i], tree.values[i] = key, tree.size[NODES]
    tree.place[tree.size[NODES]] = place
    tree.size[NODES] += 1
    return tree.values[i]


@njit(cache=True)
@no_type_check
def _child(tree: Any, node: int, code: int) -> int:
    i, key = _find(tree, node, code, 0)
    return tree.values[i] if tree.keys[i] == key else -1


@njit(cache=True)
@no_type_check
def _find(tree: Any, node: int, code: int, kind: int) -> tuple[int, int]:
    """Where in the table a child (kind 0) or an entry (kind 1) is or would be, and its key."""
    key = (np.int64(node) << 22) | (np.int64(code) << 1) | kind
    return _slot(tree.keys, key), key


@njit(cache=True)
@no_type_check
def _slot(keys: Any, key: int) -> int:
    """Linear probing in a table whose size is a power of two."""
    mask = len(keys) - 1
    i = np.int64((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20)) & mask
    while keys[i] >= 0 and keys[i] != key:
        i = (i + 1) & mask
    return i
