"""A causal net that takes the entries in an order of the user's choice, by rearranging what goes in and what comes out.

The net inside sees an example in which that order is its own: the columns of a table permuted with their supports, the places of
a sequence permuted, a grid flipped or transposed. A permutation of a grid that is none of these makes a table of its entries.

    x -> inner x -> inner parameters -> parameters,      place j inside is place `places[j]` of a flattened example
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from likely.errors import UsageError, nearest
from likely.nets import NETS
from likely.nets.causal import CausalNet, OrderFree
from likely.nets.causal.inputs import raster
from likely.space import Space

__all__ = ["ORDERS", "Order", "Ordered", "arranged"]

Order = str | list | tuple | None  # of ints and names
Build = Callable[[Space, str | None], Any]  # of a space, by a net's word

_OF_ENTRIES, _ANY = "made", "any-order"  # nets that take any permutation of a grid
_WORDS = {  # of each layout; "transposed" swaps rows and columns, "reverse" of a grid goes by pixel from the last, channels as ever
    "grid": ("raster", "transposed", "columns-first", "reverse"),
    "columns": ("raster", "reverse"),
    "sequence": ("raster", "reverse"),
}
ORDERS = (*_WORDS["grid"], "or a permutation")


class Ordered(CausalNet):
    """A net of a rearranged space as one of the space itself.

    Args:
        shape: of an example inside; places: of a flattened example, by place inside, [entries].
    """

    def __init__(self, net: CausalNet, shape: tuple[int, ...], places: Tensor) -> None:
        super().__init__()
        self.net, self.shape, self.places = net, shape, places
        self.order, self.orderings, self.room = places[net.order], net.orderings, net.room

    @contextmanager
    def under(self, ordering: int) -> Iterator[None]:
        before = self.order
        with self.net.under(ordering):
            self.order = self.places[self.net.order]
            try:
                yield
            finally:
                self.order = before

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        places = self.places.to(x.device)
        inside = self.net(x.flatten(1)[:, places].view(-1, *self.shape), given)
        return inside.flatten(1, -2)[:, places.argsort()].view(*x.shape, -1)

    def init_state(self, n: int, given: Tensor | None = None) -> Any:
        return self.net.init_state(n, given)

    def step(self, state: Any, x_i: Tensor | None) -> tuple[Any, Tensor]:
        return self.net.step(state, x_i)


def arranged(space: Space, order: Order, word: str | None, build: Build) -> CausalNet:
    """The causal net that `build` makes, taking entries in an order: a word, or a permutation (see `places_of`).

    Raises: UsageError for an order that is none of the space's, or that the net cannot take.
    """
    if order is None or order == "raster":
        return build(space, word)
    places = places_of(space, order)
    net = build(space, word) if word == _ANY else None
    if isinstance(net, OrderFree):
        net.lead(places)
        return net
    inner, within = _inside(space, order, places)
    if inner.layout != space.layout:
        word = word or _OF_ENTRIES
        if word not in NETS["causal", inner.layout]:
            raise UsageError(f"'{word}' looks at neighbours, which a permutation parts.", f"Pass net='{_OF_ENTRIES}' or '{_ANY}'.")
    return Ordered(build(inner, word), inner.shape, within)


def places_of(space: Space, order: Order) -> Tensor:
    """Places of a flattened example, in an order that is given in one of these ways: [entries].

    A word; a permutation of the places; of a table also all names of its columns, or one string of them with commas between.

    Raises: UsageError for unknown words and names, and for what is no permutation.
    """
    words = _WORDS[space.layout]
    if isinstance(order, str) and order in words:
        return _by_word(space, order)
    if isinstance(order, str) and (space.layout != "columns" or "," not in order):
        raise UsageError(f"Unknown order '{order}' of {space.layout} data.", f"{nearest(order, words)} Or give a permutation of places.")
    if not isinstance(order, str | list | tuple):
        raise UsageError(f"The order is {type(order).__name__}, not a list.", "Give a list of places, or a word.")
    entries = [name.strip() for name in order.split(",")] if isinstance(order, str) else order
    return _permutation(space, [_place(space, entry) for entry in entries or ()])


def _by_word(space: Space, word: str) -> Tensor:
    natural = raster(space)
    if word == "reverse":
        return natural.view(-1, space.shape[0] if space.layout == "grid" else 1).flip(0).flatten()
    if word == "raster":
        return natural
    channels, height, width = space.shape
    return natural.view(height, width, channels).transpose(0, 1).flatten()


def _place(space: Space, entry: Any) -> int:
    """The place that a number, or a column's name, stands for."""
    names = [s.name for s in space.supports] if space.layout == "columns" else []
    if isinstance(entry, str) and entry in names:
        return names.index(entry)
    if isinstance(entry, str) and entry.isdecimal():
        return int(entry)
    if isinstance(entry, bool) or not isinstance(entry, int):
        raise UsageError(f"No column is named {entry!r}.", nearest(str(entry), names) if names else "Give places, from 0 on, as ints.")
    return entry


def _permutation(space: Space, places: Sequence[int]) -> Tensor:
    if len(places) != space.dims:
        raise UsageError(f"The order has {len(places)} entries, an example {space.dims}.", "Name each once.")
    wrong = sorted(set(range(space.dims)).symmetric_difference(places))
    if wrong:
        raise UsageError(f"The order is no permutation of 0..{space.dims - 1}: {wrong[0]} is missing or too much.", "Name each once.")
    return torch.tensor(places)


def _inside(space: Space, order: Order, places: Tensor) -> tuple[Space, Tensor]:
    """The rearranged space whose own order is the one asked for, and which place each of its places is."""
    if space.layout == "columns":
        return replace(space, supports=tuple(space.supports[i] for i in places.tolist())), places
    if space.layout == "sequence":
        return space, places
    if isinstance(order, str):
        channels, height, width = space.shape
        inner = space if order == "reverse" else replace(space, shape=(channels, width, height))
        return inner, places[raster(inner).argsort()]
    per_channel = space.dims // space.shape[0]
    return Space.columns(*(space.supports[i // per_channel] for i in places.tolist())), places
