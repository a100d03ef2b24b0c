"""The values that one channel or column can take."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

__all__ = ["MISSING", "Support", "from_grid", "to_grid"]

MISSING = -1  # the code of a missing cell in an integer table; NaN in a real one
_ARGMAX_UP_TO = 16
_ATOMS = 128


@dataclass(frozen=True)
class Support:
    """The values that one channel or column can take.

    `ordinal` and `nominal` have `levels` values 0..levels-1. `decimal` is the unbounded grid
    (origin + i) / 10**decimals, i in Z; its code is `from_grid(i)`, which steps over -1, the code
    of a missing cell. `real` has a density. `center` and `scale` standardise numbers, in grid
    steps for ordinal and decimal; `atoms` are the grid indices of a table's values that repeat, and
    `shares` how often they do, the most frequent first. All are learnt from the training split.
    """

    kind: Literal["ordinal", "nominal", "decimal", "real"]
    levels: int = 0
    name: str = ""
    missing: bool = False
    categories: tuple[str, ...] = ()
    decimals: int = 0
    origin: int = 0
    center: float = 0.0
    scale: float = 1.0
    atoms: tuple[int, ...] = ()
    shares: tuple[float, ...] = ()

    @property
    def numeric(self) -> bool:
        return self.kind != "nominal"

    @property
    def states(self) -> int | None:
        """Number of distinct values, the missing one included; None if there is no end of them."""
        return self.levels + self.missing if self.kind in ("ordinal", "nominal") else None

    @property
    def codes(self) -> int:
        """Real dimensions that a nominal's states are relaxed to."""
        states = self.levels + self.missing
        return states if 2 < states <= _ARGMAX_UP_TO else max(1, (states - 1).bit_length())

    @classmethod
    def number(cls, levels: int | None) -> "Support":
        """An ordinal of `levels`, scaled as if its values were uniform; or a real."""
        if levels is None:
            return cls("real")
        return cls("ordinal", levels, center=levels / 2, scale=levels / math.sqrt(12))

    def standardised(self, x: Tensor) -> "Support":
        """With center and scale learnt from values `x`; half a step and its variance count for a dequantized cell."""
        if not self.numeric:
            return self
        there = torch.isfinite(x) if self.kind == "real" else x != MISSING
        present = x if there.all() else x[there]  # selecting is slow on large images, which miss nothing
        if present.numel() == 0:
            return self
        number = present.double() if self.kind == "real" else (to_grid(present) if self.kind == "decimal" else present).double() + 0.5
        variance = number.var(correction=0).item() + (0.0 if self.kind == "real" else 1 / 12)
        return replace(self, center=number.mean().item(), scale=math.sqrt(variance) or 1.0)

    def with_atoms(self, x: Tensor) -> "Support":
        """With the values that repeat in `x`, of an ordinal or a decimal; half a count of each is left to values that do not."""
        present = x[(x != MISSING) & ~torch.isnan(x)]
        if self.kind not in ("ordinal", "decimal") or present.numel() == 0:
            return self
        values, counts = (to_grid(present) if self.kind == "decimal" else present).unique(return_counts=True)
        often = counts.argsort(descending=True, stable=True)[: min(_ATOMS, int((counts > 1).sum()))]
        shares = (counts[often].double() - 0.5) / len(present)
        return replace(self, atoms=tuple(values[often].long().tolist()), shares=tuple(shares.tolist()))


def to_grid(code: Tensor) -> Tensor:
    """Code of a decimal cell -> grid index; codes step over -1, so that -1 can mean missing."""
    return torch.where(code >= 0, code, code + 1)


def from_grid(index: Tensor) -> Tensor:
    """Grid index -> code of a decimal cell."""
    return torch.where(index >= 0, index, index - 1)
