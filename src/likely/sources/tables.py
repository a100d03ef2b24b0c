"""Tables: columns of text <-> integer codes, by a schema that is read from the whole file.

A column whose cells are all numbers is `decimal`: the unbounded grid with the fewest decimals that
hold every value exactly, counted from the smallest value. Words are `nominal`, sorted, with one
more state, `other`, for values that the file does not have. The codes are the file's values, so
writing what was read gives the same table.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import numpy as np
import torch
from torch import Tensor

from likely.errors import DataError, UsageError, nearest
from likely.sources.columns import NUMBER, Column
from likely.sources.counted import counted
from likely.sources.examples import Examples, Options
from likely.space import MISSING, Space, Support, to_grid

__all__ = ["OTHER", "csv_text", "encode", "frame", "spelt_columns", "table_examples"]

OTHER = "(other)"
_MISSING = frozenset({"", "?", "NA", "NaN", "nan", "NULL", "null"})
_MOST_DIGITS = 15  # what a float64 holds exactly


@dataclass(frozen=True)
class Number:
    """The exact value digits * 10**exponent; zeros at the end of `digits` are in the exponent."""

    digits: int
    exponent: int

    @classmethod
    def of(cls, spelling: str) -> "Number":
        sign, figures, exponent = Decimal(spelling).as_tuple()
        text = "".join(map(str, figures)).rstrip("0")
        digits = int(text or 0) * (-1 if sign else 1)
        return cls(digits, int(exponent) + len(figures) - len(text) if digits else 0)

    def width(self, decimals: int) -> int:
        """Number of digits of this value in units of 10**-decimals."""
        return len(str(abs(self.digits))) + self.exponent + decimals if self.digits else 1

    def in_units(self, decimals: int) -> int:
        """This value in units of 10**-decimals, rounded half to even."""
        shift = self.exponent + decimals
        if shift >= 0:
            return self.digits * 10**shift
        # more places than this value has digits: it rounds to nothing
        return round(Decimal(self.digits).scaleb(shift)) if -shift <= len(str(abs(self.digits))) else 0


# -- the schema ---------------------------------------------------------------------------------


def table_examples(columns: Sequence[Column], options: Options, where: str = "The table") -> Examples:
    """Rows of a table as codes; the columns named by `given` leave x and become labels.

    The column named by `weights` leaves the table; rows of weight 0 do so once the schema is read, and are counted. `where` is the table's
    name in what is said of its weights.
    """
    if options.weights is None:
        return _coded(columns, options)
    columns, weights = counted(columns, options.weights, where)
    found, there = replace(_coded(columns, options), weights=weights), weights > 0
    lost = int((~there).sum())
    return replace(found.rows(there), notes={**found.notes, "dropped_of_weight_0": lost}) if lost else found


def _coded(columns: Sequence[Column], options: Options) -> Examples:
    for name in options.nominal:
        if name not in (names := [c.name for c in columns]):
            raise UsageError(f"There is no column '{name}' to be nominal.", nearest(name, names))
    columns = [replace(c, nominal=c.nominal or c.name in options.nominal) for c in columns]
    supports = {c.name: _support(c, options) for c in columns}
    empty = [name for name, support in supports.items() if support is None]
    columns = [c for c in columns if supports[c.name] is not None]
    if not columns:
        raise DataError("Every cell of the table is missing.", "Is the delimiter, or `missing`, right?")
    given = _given_names(columns, options.given)
    x_columns, given_columns = [c for c in columns if c.name not in given], [c for c in columns if c.name in given]
    if not x_columns:
        raise DataError("`given` names every column, so none is left to model.")
    space = Space.columns(*(s for c in x_columns if (s := supports[c.name]) is not None))
    x, rounded = encode(x_columns, space, options)
    found = Examples(space, x, notes=_notes(x, space, empty, rounded))
    if not given_columns:
        return found
    given_space = Space.columns(*(s for c in given_columns if (s := supports[c.name]) is not None))
    labels, _ = encode(given_columns, given_space, options)
    return replace(found, labels=labels, label_space=_as_given(given_space), known=(labels != MISSING).all(1))


def _given_names(columns: Sequence[Column], given: Any) -> list[str]:
    if given is None or hasattr(given, "shape"):  # an array of labels comes from outside the table
        return []
    asked, names = [given] if isinstance(given, str) else list(given), [c.name for c in columns]
    for name in asked:
        if name not in names:
            raise DataError(f"There is no column '{name}' to condition on.", nearest(str(name), names))
    return asked


def _as_given(space: Space) -> Space:
    """The space of what is conditioned on: no missing cells, and no categories that were never seen."""
    seen = (replace(s, missing=False, levels=max(s.levels - 1, 0), categories=s.categories[:-1]) for s in space.supports)
    return replace(space, supports=tuple(seen))


def _notes(x: Tensor, space: Space, empty: list[str], rounded: int) -> dict[str, Any]:
    constant = [s.name for i, s in enumerate(space.supports) if bool((x[:, i] == x[0, i]).all())]
    lost = {s.name: int((x[:, i] == MISSING).sum()) for i, s in enumerate(space.supports) if s.missing}
    names = {s.name: s.levels - 1 for s in space.supports if s.kind == "nominal" and 2 * s.levels > len(x) > 100}
    counts = {
        "nearly_unique_names": names,
        "dropped_empty_columns": empty,
        "constant_columns": constant,
        "missing_cells": lost,
        "rounded_cells": rounded,
    }
    return {name: count for name, count in counts.items() if count}


def _support(column: Column, options: Options) -> Support | None:
    """The support of a column; None if all its cells are missing."""
    lost = _MISSING | set(options.missing)
    present = [s for s in column.spellings if s not in lost]
    missing = len(present) < len(column.spellings)
    if not present:
        return None
    if _is_nominal(column, present):
        categories = (*sorted(set(present) - {OTHER}), OTHER)
        return Support("nominal", len(categories), column.name, missing, categories)
    numbers = _numbers(column, present).values()
    decimals = max(0, *(-n.exponent for n in numbers))
    decimals = decimals if options.precision is None else min(decimals, options.precision)  # whole numbers stay whole
    if (width := max(n.width(decimals) for n in numbers)) > _MOST_DIGITS:
        finest = min(present, key=lambda s: Number.of(s).exponent)
        raise DataError(
            f"Column '{column.name}' needs {width} digits at {decimals} decimals (as {finest} has); {_MOST_DIGITS} are the most.",
            "Round the table by `precision` (--precision DECIMALS), or load it as a float array for a density.",
        )
    origin = min(n.in_units(decimals) for n in numbers)
    return Support("decimal", name=column.name, missing=missing, decimals=decimals, origin=origin)


def _is_nominal(column: Column, present: list[str]) -> bool:
    """Whether cells are names; a minority of names among numbers is an error, as it may be a slip or mean missing.

    Numbers with leading zeros (007) are names: their zeros would be lost.
    """
    codes = any(len(s) > 1 and s.lstrip("+-")[:1] == "0" and s.lstrip("+-")[1:2].isdigit() for s in present)
    if column.nominal or codes:
        return True
    words = [s for s in present if not NUMBER.fullmatch(s)]
    if not words:
        return False
    counts = np.bincount(column.index, minlength=len(column.spellings))
    count = {s: int(n) for s, n in zip(column.spellings, counts, strict=True)}
    word_cells = sum(count[s] for s in words)
    number_cells = sum(count[s] for s in present) - word_cells
    if number_cells > word_cells:
        where = f"'{words[0]}' in row {column.row_of(words[0])}"
        raise DataError(
            f"Column '{column.name}' mixes {number_cells} numbers with {word_cells} other values, such as {where}.",
            f"If it means missing, pass --missing '{words[0]}' (missing=); if all are names, --nominal '{column.name}' (nominal=).",
        )
    return True


def _numbers(column: Column, present: list[str]) -> dict[str, Number]:
    for spelling in present:
        if "inf" in spelling.lower():
            raise DataError(
                f"Column '{column.name}' is infinite ({spelling}) in row {column.row_of(spelling)}.",
                "Remove the row, or mean missing by `missing`.",
            )
    return {spelling: Number.of(spelling) for spelling in present}


# -- there and back -----------------------------------------------------------------------------


def encode(columns: Sequence[Column], space: Space, options: Options) -> tuple[Tensor, int]:
    """Codes [rows, columns] of a table in a space, and how many cells `precision` rounded.

    Raises: DataError for a value that has no code: missing where the schema has none, a word among
        numbers, or more decimals than the schema's. An unknown category is the `other` state.
    """
    by_name = {c.name: c for c in columns}
    for support in space.supports:
        if support.name not in by_name:
            raise DataError(f"The table lacks the column '{support.name}'.", nearest(support.name, by_name))
    coded, rounded = zip(*(_encode_column(by_name[s.name], s, options) for s in space.supports), strict=True)
    return torch.from_numpy(np.stack(coded, 1)), sum(rounded)


def _encode_column(column: Column, s: Support, options: Options) -> tuple[np.ndarray, int]:
    place = {category: i for i, category in enumerate(s.categories)}
    codes, rounds = [], []
    for spelling in column.spellings:
        code, is_rounded = _code(spelling, column, s, place, options)
        codes.append(code)
        rounds.append(is_rounded)
    return np.array(codes, dtype=np.int64)[column.index], int(np.array(rounds)[column.index].sum())


def _code(spelling: str, column: Column, s: Support, place: dict[str, int], options: Options) -> tuple[int, bool]:
    """The code of one spelling, and whether it was rounded."""
    if spelling in _MISSING or spelling in options.missing:
        if not s.missing:
            raise DataError(
                f"Column '{s.name}' is missing in row {column.row_of(spelling)}; it had no missing cells when its schema was read.",
                "Leave such rows out, fill them first with `likely edit`, or fit to a table that misses cells there, too.",
            )
        return MISSING, False
    if s.kind == "nominal":
        return _category(spelling, column, s, place), False
    if not NUMBER.fullmatch(spelling):
        raise DataError(f"'{spelling}' in column '{s.name}', row {column.row_of(spelling)}, is not a number.")
    number = _numbers(column, [spelling])[spelling]
    if number.width(s.decimals) > _MOST_DIGITS:
        raise DataError(f"{spelling} in column '{s.name}', row {column.row_of(spelling)}, has more than {_MOST_DIGITS} digits.")
    finer = -number.exponent > s.decimals
    if finer and options.precision is None:
        raise DataError(
            f"{spelling} in column '{s.name}', row {column.row_of(spelling)}, has more than the {s.decimals} decimals of the schema.",
            f"Round it: --precision {s.decimals} (precision=).",
        )
    index = number.in_units(s.decimals) - s.origin
    return index if index >= 0 else index - 1, finer


def _category(spelling: str, column: Column, s: Support, place: dict[str, int]) -> int:
    if spelling in place:
        return place[spelling]
    if OTHER not in place:
        raise DataError(f"'{spelling}' in column '{s.name}', row {column.row_of(spelling)}, is unknown.", nearest(spelling, place))
    return place[OTHER]


def spelt_columns(x: Tensor, space: Space, log_prob: Tensor | None = None) -> dict[str, list[str]]:
    """Codes [rows, columns] as text, name by name, with exactly the schema's decimals; "" for missing; and nats [rows] as `log_prob`."""
    columns = {s.name or f"x{i}": _spelt(x[:, i], s) for i, s in enumerate(space.supports)}
    if log_prob is None:
        return columns
    if "log_prob" in columns:
        raise UsageError("The table has a column `log_prob` of its own.", "Write a .npz file, or leave out the log-probabilities.")
    return {**columns, "log_prob": [repr(nats) for nats in log_prob.tolist()]}


def _spelt(codes: Tensor, s: Support) -> list[str]:
    if s.kind == "nominal" and s.categories:
        return [s.categories[code] if code >= 0 else "" for code in codes.tolist()]
    if s.kind == "real":
        return [repr(value) if value == value else "" for value in codes.tolist()]
    units = to_grid(codes) + s.origin if s.kind == "decimal" else codes
    lost = (codes == MISSING).tolist()
    return ["" if gone else _with_point(unit, s.decimals) for unit, gone in zip(units.tolist(), lost, strict=True)]


def _with_point(units: int, decimals: int) -> str:
    if decimals == 0:
        return str(units)
    figures = str(abs(units)).zfill(decimals + 1)
    return f"{'-' if units < 0 else ''}{figures[:-decimals]}.{figures[-decimals:]}"


def csv_text(x: Tensor, space: Space, delimiter: str = ",", log_prob: Tensor | None = None) -> str:
    """A table as CSV with a header, and a last column of nats where there are."""
    columns, out = spelt_columns(x, space, log_prob), io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return out.getvalue()


def frame(x: Tensor, space: Space, log_prob: Tensor | None = None) -> Any:
    """A table as a polars DataFrame: integers, floats and words, missing cells null; a last column of nats where there are."""
    import polars

    made = []
    supports = space.supports if log_prob is None else (*space.supports, Support("real"))
    for (name, cells), s in zip(spelt_columns(x, space, log_prob).items(), supports, strict=True):
        kind = (
            polars.String
            if s.kind == "nominal" and s.categories
            else polars.Int64
            if s.kind != "real" and not s.decimals
            else polars.Float64
        )
        made.append(polars.Series(name, [cell or None for cell in cells], dtype=polars.String).cast(kind))
    return polars.DataFrame(made)
