"""Captions that images are conditioned on: texts beside them (`photo.txt` of `photo.png`), or a table in their folder.

The table is `metadata` or `captions`, as `.csv` or `.jsonl`, with a column `file_name` or `file`, of paths below the table's folder,
and one `text` or `caption`. A caption is a string of UTF-8 bytes, its blanks and line breaks made single blanks, padded with -1.
"""

import io
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from likely.errors import DataError, UsageError
from likely.sources.columns import Column, decoded, frame_columns, read_columns
from likely.sources.examples import Examples
from likely.sources.files import read_bytes
from likely.space import MISSING, Space

__all__ = [
    "CAPTION",
    "are_captions",
    "asked_for",
    "caption_bytes",
    "caption_files",
    "captioned",
    "captions_of",
    "files_beside",
    "fitting",
    "padded",
]

CAPTION = "caption"
_MOST_BYTES = 256  # of a caption; what is beyond is cut off at a character
_TABLES = tuple(f"{stem}{suffix}" for stem in ("metadata", "captions") for suffix in (".csv", ".jsonl"))
_FILE_COLUMNS, _TEXT_COLUMNS = ("file_name", "file"), ("text", CAPTION)


def asked_for(given: Any) -> bool:
    """Whether `given` names captions.

    Raises: UsageError if it names something else, too.
    """
    names = [given] if isinstance(given, str) else list(given) if isinstance(given, list | tuple) else []
    if CAPTION in names and len(names) > 1 and not are_captions(given):
        raise UsageError(f"Captions cannot be joined with {', '.join(n for n in names if n != CAPTION)}.", f"Pass given='{CAPTION}' alone.")
    return names == [CAPTION]


def are_captions(given: Any, held: Sequence[str] = ()) -> bool:
    """Whether `given` is a list of captions, and not of names of what a source holds."""
    if not isinstance(given, list) or not given or not all(caption is None or isinstance(caption, str) for caption in given):
        return False
    return not {*given} <= {"label", CAPTION, *held}


# -- strings ------------------------------------------------------------------------------------


def caption_bytes(caption: str) -> bytes:
    """A caption as it is modelled."""
    return " ".join(caption.split()).encode()


def captioned(examples: Examples, captions: Sequence[Any], rows: Tensor | None = None) -> Examples:
    """`examples` with a caption each, that of number `rows` [n] where several share one; None and "" are missing."""
    if other := next((c for c in captions if not isinstance(c, str | None)), None):
        raise DataError(f"Captions are strings, and '{other}' is none.", "Condition on labels by given='label'.")
    rows = torch.arange(len(captions)) if rows is None else rows
    if len(rows) != len(examples.x):
        raise DataError(f"Got {len(captions)} captions for {len(examples.x)} examples.", "Give one for each, None where there is none.")
    whole = [caption_bytes(caption or "") for caption in captions]
    if not any(whole):
        raise DataError("Not one example has a caption.")
    kept = [text[:_MOST_BYTES].decode(errors="ignore").encode() for text in whole]
    codes = padded(kept, max(map(len, kept)))
    cut = sum(len(text) > _MOST_BYTES for text in whole)
    notes = {**examples.notes, **({"captions_cut": cut} if cut else {})}
    return replace(examples, labels=codes[rows], label_space=_space(codes.shape[1]), known=(codes[:, 0] >= 0)[rows], notes=notes)


def padded(texts: Sequence[bytes], length: int) -> Tensor:
    """Codes [n, length] of strings."""
    codes = torch.full((len(texts), length), MISSING)
    for row, text in zip(codes, texts, strict=True):
        row[: len(text)] = torch.tensor(list(text))
    return codes


def fitting(codes: Tensor, space: Space) -> Tensor:
    """Codes of captions, padded to the length of `space`.

    Raises: DataError if one is longer.
    """
    longest, most = int((codes >= 0).sum(1).max()), space.dims
    if longest > most:
        text = bytes(codes[(codes >= 0).sum(1).argmax(), :longest].tolist()).decode()
        raise DataError(f"The caption '{text}' has {longest} bytes, those of the model have at most {most}.", "Shorten it.")
    return torch.nn.functional.pad(codes[:, :most], (0, max(0, most - codes.shape[1])), value=MISSING)


def _space(longest: int) -> Space:
    space = Space.sequence(longest, 256, variable=True)
    return replace(space, supports=(replace(space.supports[0], name=CAPTION),))


# -- files --------------------------------------------------------------------------------------


def caption_files(files: Sequence[Path], images: Sequence[Path]) -> tuple[dict[Path, Path], list[Path]]:
    """Of the files of a folder: the texts beside images, by image, and the tables that may hold captions."""
    there = set(files)
    return {image: text for image in images if (text := image.with_suffix(".txt")) in there}, [p for p in files if p.name in _TABLES]


def files_beside(image: Path) -> list[Path]:
    """The files that may hold the caption of a single image."""
    return [path for path in (image.with_suffix(".txt"), *(image.parent / name for name in _TABLES)) if path.is_file()]


def captions_of(files: Sequence[Path], images: Sequence[Path]) -> dict[Path, str]:
    """Captions by image, from whatever of `files` holds them; none where nothing does.

    Raises: DataError for a row that names no image, for two captions of one image, and for captions in texts and tables at once.
    """
    texts, paths = caption_files(files, images)
    tables = {path: columns for path in paths if _column(columns := _columns(path), _TEXT_COLUMNS) or not texts}
    if texts and tables:
        text, table = next(iter(texts.values())), next(iter(tables))
        raise DataError(f"There are captions of both kinds: {text} beside its image, and the table {table}.", "Keep one of the two.")
    if texts:
        return {image: decoded(read_bytes(text), text) for image, text in texts.items()}
    found: dict[Path, str] = {}
    for path, columns in tables.items():
        _add_rows(found, path, columns, set(files), set(images))
    return found


def _add_rows(found: dict[Path, str], path: Path, columns: list[Column], files: set[Path], images: set[Path]) -> None:
    names, captions = (_wanted(path, columns, wanted) for wanted in (_FILE_COLUMNS, _TEXT_COLUMNS))
    for row, (name, caption) in enumerate(zip(names, captions, strict=True), 1):
        image = Path(os.path.normpath(path.parent / name))
        if image in found:
            raise DataError(f"{path}, row {row}: {name} has a caption already.", "Keep one row of each image.")
        if image in images:
            found[image] = caption
        elif image in files or not image.is_file():  # one that is there and was not asked for does not matter
            raise DataError(f"{path}, row {row}: there is no image '{name}'.", f"Names are paths below {path.parent}; remove the row.")


def _columns(path: Path) -> list[Column]:
    if path.suffix == ".csv":
        return read_columns(path, header=True)
    import polars

    try:
        return frame_columns(polars.read_ndjson(io.BytesIO(read_bytes(path)), infer_schema_length=None))
    except polars.exceptions.PolarsError as error:
        raise DataError(f"{path} has lines that are no JSON objects of one kind: {error}.") from error


def _column(columns: list[Column], wanted: Sequence[str]) -> Column | None:
    return next((column for column in columns if column.name in wanted), None)


def _wanted(path: Path, columns: list[Column], wanted: Sequence[str]) -> list[str]:
    column = _column(columns, wanted)
    if column is None:
        told = f"{path} has no column {' or '.join(map(repr, wanted))}."
        raise DataError(told, f"It has: {', '.join(c.name for c in columns)}. Rename one.")
    return [column.spellings[i] for i in column.index]
