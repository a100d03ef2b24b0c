"""What all heads are, and share."""

from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from likely.space import MISSING

__all__ = ["Head", "at_least_float32", "categorical_draw", "constant", "missing"]

_BELOW_ONE = 1 - 2.0**-52  # times a number, less than it, however that is rounded


@runtime_checkable
class Head(Protocol):
    """The distribution of entries that share a kind; entries are axis 1 of x, or there is just one."""

    @property
    def width(self) -> int:
        """Parameters per entry."""
        ...

    def log_mass(self, params: Tensor, x: Tensor) -> Tensor:
        """params [..., width], x [...] in data units -> log-mass (of a real: log-density), nats [...]."""
        ...

    def sample(self, params: Tensor) -> Tensor:
        """params [..., width] -> one draw of each entry, [...] in data units."""
        ...

    def logits(self, params: Tensor) -> Tensor:
        """params [..., width] of one kind of entry -> logits of its states, a missing one last, [..., states].

        Raises: UsageError where there is no end of states.
        """
        ...


@lru_cache(maxsize=1024)
def constant(values: tuple[float | int, ...], trailing: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One value per entry, shaped to broadcast over axis 1 of `trailing` more axes; one value serves all entries."""
    tensor = torch.tensor(values, dtype=dtype, device=device)
    return tensor[0] if len(values) == 1 else tensor.view(-1, *[1] * trailing)


def missing(x: Tensor) -> Tensor:
    """Missing cells: -1, or NaN in a table that has real columns, too."""
    return torch.isnan(x) | (x == MISSING)


def categorical_draw(logits: Tensor) -> Tensor:
    """A draw from softmax(logits) over the last axis: where a uniform number falls in the cumulative masses, in float64.

    One number for each draw; a state of mass 0 is an empty interval, which nothing falls in.
    """
    masses = logits.softmax(-1, dtype=torch.float64).cumsum(-1)
    total = masses.narrow(-1, -1, 1)  # 1, but for rounding
    below = torch.empty_like(total).uniform_(to=_BELOW_ONE).mul_(total)
    return torch.searchsorted(masses, below, right=True).squeeze(-1)


def at_least_float32(v: Tensor) -> Tensor:
    """Half precision is too coarse for likelihoods."""
    return v if v.dtype == torch.float64 else v.float()
