"""Causal nets: parameters of each entry given those before it, all at once or entry by entry."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import Tensor, nn

from likely.errors import UsageError

__all__ = ["CausalNet", "OrderFree", "layers_of"]


def layers_of(depth: int | None, usual: int) -> int:
    """How many a net has that reads nothing without. Raises: UsageError for none."""
    if depth is not None and depth < 1:
        raise UsageError(f"A net of depth {depth} reads nothing.", "Give 1 or more.")
    return depth or usual


class CausalNet(nn.Module, ABC):
    """What every causal net computes, in two ways that agree.

    Attributes:
        words: what each of its options that is a word can be.
        order: places of a flattened example in the order of the entries, [entries].
        reach: an entry depends on at most so many before it, and the net takes sequences of any
            length; None where it looks back on all, up to the length of the space.
        orderings: how many orderings it knows, `orders` [orderings, entries]; `under` chooses one of them.
        room: most entries of a sequence that one state takes; None for any number.
    """

    words: ClassVar[dict[str, tuple[str, ...]]] = {}
    order: Tensor
    reach: int | None = None
    room: int | None = None
    orderings: int = 1
    ordering: int = 0
    orders: Tensor

    @contextmanager
    def under(self, ordering: int) -> Iterator[None]:
        """Use another ordering for a while, which changes `order` and all that is computed."""
        before = self.ordering, self.order
        if self.orderings > 1:
            self.ordering, self.order = ordering, self.orders[ordering]
        try:
            yield
        finally:
            self.ordering, self.order = before

    @abstractmethod
    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        """x [B, *shape] -> parameters [B, *shape, out] of each entry given those before it."""

    @abstractmethod
    def init_state(self, n: int, given: Tensor | None = None) -> Any:
        """State before the first entry of n examples."""

    @abstractmethod
    def step(self, state: Any, x_i: Tensor | None) -> tuple[Any, Tensor]:
        """Take the previous entry's values [n] (None at the first), give the next entry's parameters [n, out].

        The state is used up: it may be updated in place.
        """


class OrderFree(CausalNet, ABC):
    """A causal net that was trained on all orders of the entries, so that it can take any."""

    @abstractmethod
    def lead(self, order: Tensor) -> None:
        """Make this order of places [entries] the first of those it knows."""

    @abstractmethod
    def ordered(self, order: Tensor) -> CausalNet:
        """A net of the same parameters, bound to an order of places [entries]."""
