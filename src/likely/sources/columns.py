"""CSV, TSV and Parquet files and DataFrames -> columns of text, each spelt as the file spells it.

A `Column` holds each distinct spelling once and a number per row, so that a schema is read from
the spellings and a table is encoded by looking numbers up.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from likely.errors import DataError
from likely.sources.files import read_bytes, suffix

__all__ = ["NUMBER", "Column", "csv_lines", "decoded", "delimiter_of", "encoding_of", "frame_columns", "header_of", "read_columns"]

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|infinity)", re.IGNORECASE)


@dataclass(frozen=True)
class Column:
    """A column of a table: distinct spellings (stripped; "" for none), and the number of each row's, [rows].

    `nominal` says that its values are names even where they look like numbers.
    """

    name: str
    spellings: list[str]
    index: np.ndarray
    nominal: bool = False

    @classmethod
    def of(cls, name: str, cells: Iterable[str], *, nominal: bool = False) -> "Column":
        seen: dict[str, int] = {}
        index = [seen.setdefault(cell.strip(), len(seen)) for cell in cells]
        return cls(name, list(seen), np.array(index, dtype=np.int64), nominal)

    def row_of(self, spelling: str) -> int:
        """The first row (counted from 1) that holds a spelling."""
        return int((self.index == self.spellings.index(spelling)).argmax()) + 1


def read_columns(path: Path, header: bool | None = None) -> list[Column]:
    """The columns of a CSV, TSV or Parquet file.

    Raises: DataError for ragged rows, columns of one name, text that is not UTF-8, or no rows.
    """
    if suffix(path) in (".parquet", ".pq"):
        return _parquet_columns(path)
    lines = csv_lines(decoded(read_bytes(path), path), path)
    first = next(lines, None)
    if first is None:
        raise DataError(f"{path} is empty.")
    names = header_of(first[1], header, path)
    return _gathered(*((names, lines) if names else (_numbered(first[1]), chain([first], lines))), path)


def decoded(content: bytes, path: Path) -> str:
    """Text of a file, without its byte order mark."""
    try:
        return content.decode(encoding_of(content))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}, is not UTF-8.", "Convert it, for example `iconv -f latin1 -t utf-8`.") from error


def encoding_of(content: bytes) -> str:
    """UTF-8, unless a byte order mark says otherwise."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    return "utf-8-sig" if content.startswith(b"\xef\xbb\xbf") else "utf-8"


def csv_lines(text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of each line that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter_of(text, path), skipinitialspace=True, strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}.") from error


def delimiter_of(text: str, path: Path) -> str:
    """A tab in .tsv files; elsewhere whichever of , ; tab and | the first line has most of."""
    if suffix(path) in (".tsv", ".tab"):
        return "\t"
    first = text[: text.find("\n")] if "\n" in text else text
    return max(",;\t|", key=first.count)


def header_of(first: list[str], header: bool | None, path: Path) -> list[str]:
    """Column names in the first row; none if it is data. A row with a number in it is no header."""
    if header is False or (header is None and any(NUMBER.fullmatch(cell.strip()) for cell in first)):
        return []
    names = [cell.strip() or number for cell, number in zip(first, _numbered(first), strict=True)]
    _check_unique(names, str(path))
    return names


def _numbered(first: list[str]) -> list[str]:
    return [f"column{i + 1}" for i in range(len(first))]


def _check_unique(names: list[str], where: str) -> None:
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise DataError(f"{where} has {count} columns named '{name}'.", "Rename them, or pass header=False if this is data.")


def _gathered(names: list[str], rows: Iterator[tuple[int, list[str]]], path: Path) -> list[Column]:
    seen: list[dict[str, int]] = [{} for _ in names]
    index: list[list[int]] = [[] for _ in names]
    for line, row in rows:
        if len(row) != len(names):
            hint = "Quote cells that hold the delimiter."
            raise DataError(f"{path}, line {line}, has {len(row)} cells where {len(names)} are expected.", hint)
        for cell, spellings, numbers in zip(row, seen, index, strict=True):
            numbers.append(spellings.setdefault(cell.strip(), len(spellings)))
    if not index[0]:
        raise DataError(f"{path} has a header and no rows.")
    return [Column(name, list(s), np.array(i, dtype=np.int64)) for name, s, i in zip(names, seen, index, strict=True)]


def _parquet_columns(path: Path) -> list[Column]:
    import polars

    try:
        return frame_columns(polars.read_parquet(io.BytesIO(read_bytes(path))))
    except (polars.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path} is no Parquet file that can be read: {error}.") from error


def frame_columns(frame: Any) -> list[Column]:
    """The columns of a DataFrame of pandas, polars or arrow.

    Raises: DataError if it has no rows or columns, or two of one name.
    """
    import narwhals

    table = narwhals.from_native(frame, eager_only=True)
    names = [str(name) for name in table.columns]
    if not names or not len(table):
        raise DataError(f"The DataFrame has {len(table)} rows and {len(names)} columns.")
    _check_unique(names, "The DataFrame")
    return [_frame_column(name, table[original]) for name, original in zip(names, table.columns, strict=True)]


def _frame_column(name: str, series: Any) -> Column:
    import narwhals

    words = series.dtype in (narwhals.Categorical, narwhals.Boolean) or isinstance(series.dtype, narwhals.Enum)
    single = series.dtype == narwhals.Float32
    return Column.of(name, (_spelt(value, single=single) for value in series.to_list()), nominal=words)


def _spelt(value: Any, *, single: bool) -> str:
    """The shortest text that stands for a value exactly; "" for a missing one."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    return str(np.float32(value)) if single else str(value)
