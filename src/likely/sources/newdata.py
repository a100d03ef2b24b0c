"""New data of the kind that a model was fitted to, in the model's own space."""

from dataclasses import replace
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from likely.dataset import Split
from likely.errors import DataError, nearest
from likely.sources.captions import CAPTION, fitting
from likely.sources.columns import Column, frame_columns, read_columns
from likely.sources.examples import Examples, Options
from likely.sources.tables import encode, spelt_columns
from likely.space import Space

__all__ = ["read", "read_split"]


def read(source: Any, space: Space, **options: Any) -> Tensor:
    """Examples [n, *space.shape] of a file, folder, array or DataFrame, coded as `space` says.

    Args:
        options: of `likely.load` that the space does not hold: `precision`, `missing`, `header`, `tile`, `resize`.

    A text is cut into consecutive windows, the last one padded. An unknown category becomes the `other` state.
    Raises: DataError for what does not fit the space.
    """
    return read_split(source, space, None, **options).x


def read_split(source: Any, space: Space, given: Space | None, **options: Any) -> Split:
    """The same with the values of `given` that the source itself holds: columns of a table, labels, sub-folders or captions of images."""
    captions = CAPTION if given is not None and given.layout == "sequence" else None
    wanted = Options(**{"levels": space.levels if space.layout == "grid" else None, "given": captions, **options})
    split = _table(source, space, given, wanted) if space.layout == "columns" else _other(source, space, given, wanted)
    if space.layout == "grid" and isinstance(source, str | PathLike):
        _check_size(split.x, space)
    space.check(split.x)
    return split


def _check_size(x: Tensor, space: Space) -> None:
    """Images of a file can be resized, so say how."""
    height, width = space.shape[1:]
    if x.ndim == 4 and x.shape[2:] != (height, width):
        told = f"The images are {x.shape[3]} x {x.shape[2]} pixels, those of the model {width} x {height}."
        raise DataError(told, f"Pass resize={height} (--resize {height})." if height == width else "Resize them first.")


def _table(source: Any, space: Space, given: Space | None, options: Options) -> Split:
    columns = _columns(source, space, options)
    x = encode(columns, space, options)[0] if space.discrete else _all_reals(columns, space)
    held = given is not None and {s.name for s in given.supports} <= {c.name for c in columns}
    return Split(x, encode(columns, given, options)[0] if given is not None and held else None)


def _all_reals(columns: list[Column], space: Space) -> Tensor:
    named = {c.name: c for c in columns}
    lost = [s.name for s in space.supports if s.name not in named]
    if lost:
        raise DataError(f"The table lacks the column '{lost[0]}'.")
    return torch.stack([_reals(named[s.name]) for s in space.supports], 1)


def _reals(column: Column) -> Tensor:
    try:
        values = torch.tensor([float(s or "nan") for s in column.spellings])
    except ValueError as error:
        raise DataError(f"Column '{column.name}' holds what is not a number: {error}.") from error
    return values[torch.from_numpy(column.index)]


def _columns(source: Any, space: Space, options: Options) -> list[Column]:
    """Columns of a table, by name; those of an array by place."""
    sources = import_module("likely.sources")
    if hasattr(source, "columns"):
        return frame_columns(source)
    if isinstance(source, str | PathLike) and sources.kind_of(path := _existing(source), options) == "table":
        return read_columns(path, options.header)
    found = _examples(source, replace(options, layout="columns"))
    if found.x.shape[1] != space.shape[0]:
        raise DataError(f"Got {found.x.shape[1]} columns, expected {space.shape[0]}.")
    cells = spelt_columns(found.x, found.space).values()
    return [Column.of(s.name, spelt) for s, spelt in zip(space.supports, cells, strict=True)]


def _other(source: Any, space: Space, given: Space | None, options: Options) -> Split:
    if space.layout == "sequence":
        text = import_module("likely.sources.text")
        texts = import_module("likely.sources").texts_of(source)
        if isinstance(source, str | PathLike):
            texts = text.text_files(_existing(source))
        if texts is not None:
            if not any(texts):
                raise DataError("The text is empty.", "Give one of a byte or more.")
            return Split(torch.cat([text.windows(t, space) for t in texts if t]))
    found = _examples(source, replace(options, layout=space.layout if space.layout != "grid" else options.layout))
    return Split(found.x, None if given is None else _labels(found, given))


def _labels(found: Examples, given: Space) -> Tensor | None:
    """The labels of examples as codes of `given`; None where there are none, or of some other kind."""
    if given.layout == "sequence" and found.labels is not None:
        return fitting(found.labels, given)
    if found.labels is None or found.label_space is None or len(given.supports) != 1 or given.supports[0].kind != "nominal":
        return None
    if found.known is not None and not bool(found.known.all()):
        return None
    own, wanted = found.label_space.supports[0].categories, given.supports[0].categories
    if own == wanted:
        return found.labels
    if unknown := [name for name in own if name not in wanted]:
        raise DataError(f"The model was not fitted to the label '{unknown[0]}'.", nearest(unknown[0], wanted))
    return torch.tensor([wanted.index(name) for name in own])[found.labels]


def _existing(source: str | PathLike[str]) -> Path:
    if not Path(source).exists():
        raise DataError(f"There is no file or folder '{source}'.")
    return Path(source)


def _examples(source: Any, options: Options) -> Examples:
    sources = import_module("likely.sources")
    if isinstance(source, str | PathLike):
        return sources.examples_of(_existing(source), options)
    return sources.examples_in_memory(source, options)
