"""How many times each row of a table counts: a column of weights leaves the table before its schema is read."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from likely.errors import DataError, nearest
from likely.sources.columns import Column

__all__ = ["counted"]


def counted(columns: Sequence[Column], name: str, where: str) -> tuple[list[Column], Tensor]:
    """The other columns, and the weights [rows], float64.

    Args:
        where: what errors call the table.

    Raises: DataError for a column that is not there, or is the only one, and for weights that are no finite numbers, negative or all 0.
    """
    by_name = {c.name: c for c in columns}
    if name not in by_name:
        raise DataError(f"{where} has no column '{name}' of weights.", nearest(name, by_name))
    if len(columns) == 1:
        raise DataError(f"{where} has no column but its weights, '{name}', so none is left to model.")
    found = by_name[name]
    each = torch.tensor([_weight(spelling, found, where) for spelling in found.spellings], dtype=torch.float64)
    weights = each[torch.from_numpy(found.index)]
    if not bool((weights > 0).any()):
        raise DataError(f"{where}, column '{name}': all weights are 0.", "They say how many times each row counts.")
    return [c for c in columns if c.name != name], weights


def _weight(spelling: str, column: Column, where: str) -> float:
    try:
        value = float(spelling)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise DataError(
            f"{where}, column '{column.name}', row {column.row_of(spelling)}: '{spelling}' is no weight.",
            "It says how many times a row counts: a finite number, 0 or more.",
        )
    return value
