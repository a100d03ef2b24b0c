"""A CSV file with some of its cells filled in, and all else as it was, byte for byte: quotes, blanks, order, line ends, encoding."""

import codecs
import re
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path

from likely.errors import UsageError
from likely.sources.columns import csv_lines, decoded, delimiter_of, encoding_of, header_of
from likely.sources.files import read_bytes, suffix

__all__ = ["is_csv", "patched_csv"]

Cells = Mapping[tuple[int, str], str]  # values by row, counted from 0, and name of the column
DRAW = "draw"


def is_csv(path: object) -> bool:
    """Whether a name is one of text in columns."""
    return isinstance(path, str | PathLike) and suffix(Path(path)) in (".csv", ".tsv", ".tab")


def patched_csv(path: Path, draws: Sequence[Cells], header: bool | None = None) -> bytes:
    """The file with cells of each draw filled in; of several draws all rows of one after those of another, their number in a first column.

    Raises: UsageError if the table has a column of the name that the number's would have.
    """
    content = read_bytes(path)
    text = decoded(content, path)
    delimiter, (_, first) = delimiter_of(text, path), next(csv_lines(text, path))
    titled = bool(names := header_of(first, header, path))
    names = names or [f"column{i + 1}" for i in range(len(first))]
    if len(draws) > 1 and DRAW in names:
        raise UsageError(f"The table has a column '{DRAW}' of its own, which the number of the draw cannot have.", "Rename it.")
    records = list(_records(text, delimiter))
    title = records.index(next(r for r in records if not _blank(r))) if titled else -1
    out: list[str] = ["".join(_numbered(records[title], DRAW, delimiter, len(draws)))] if titled else []
    for number, cells in enumerate(draws):
        rows = _patched([r for i, r in enumerate(records) if i != title], names, cells, delimiter)
        out += ["".join(_numbered(row, str(number + 1), delimiter, len(draws))) for row in rows]
        if number + 1 < len(draws) and not out[-1].endswith(("\n", "\r")):
            out.append("\n")
    return _encoded("".join(out), content)


def _encoded(text: str, like: bytes) -> bytes:
    """Bytes in the encoding, the byte order and with the mark of others; `utf-16` alone would write the machine's own order."""
    for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        if like.startswith(mark):
            return mark + text.encode(encoding)
    return text.encode(encoding_of(like))


Record = list[str]  # raw cells, each but the last followed by its delimiter, the last by the end of the line


def _records(text: str, delimiter: str) -> Iterator[Record]:
    """Lines as they stand; a quoted cell may hold line ends and delimiters."""
    d = re.escape(delimiter)
    cell = re.compile(rf'( *"(?:[^"]|"")*"[^{d}\r\n]*|[^{d}\r\n]*)({d}|\r\n|\n|\r|\Z)')
    record: Record = []
    place = 0
    while place < len(text):
        found = cell.match(text, place)
        assert found is not None  # the second way matches anything
        record += [found[1], found[2]]
        place = found.end()
        if found[2] != delimiter or place == len(text):
            yield [*record, "", ""] if found[2] == delimiter else record
            record = []


def _blank(record: Record) -> bool:
    return len(record) == 2 and not record[0]


def _patched(records: list[Record], names: Sequence[str], cells: Cells, delimiter: str) -> Iterator[Record]:
    row = 0
    for record in records:
        new = list(record)
        if not _blank(record):
            for i, name in enumerate(names):
                if (row, name) in cells:
                    new[2 * i] = _in_place(record[2 * i], cells[row, name], delimiter)
            row += 1
        yield new


def _in_place(raw: str, value: str, delimiter: str) -> str:
    """A value between the blanks around what means missing; quoted where it must be, and then only spaces may come before the quote."""
    core = raw.strip()
    before, _, after = raw.partition(core) if core else (raw, "", "")
    if any(mark in value for mark in (delimiter, '"', "\n", "\r")):
        return " " * (len(raw) - len(raw.lstrip(" "))) + '"' + value.replace('"', '""') + '"'
    return before + value + after


def _numbered(record: Record, number: str, delimiter: str, draws: int) -> Record:
    return record if draws == 1 or _blank(record) else [number, delimiter, *record]
