"""New data of the kind that a model was fitted to, in the model's own space."""

from dataclasses import replace
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from likely.errors import DataError
from likely.sources.columns import Column, frame_columns, read_columns
from likely.sources.examples import Examples, Options
from likely.sources.tables import encode, spelt_columns
from likely.space import Space

__all__ = ["read"]


def read(source: Any, space: Space, **options: Any) -> Tensor:
    """Examples [n, *space.shape] of a file, folder, array or DataFrame, coded as `space` says.

    Args:
        options: of `likely.load` that the space does not hold: `precision`, `missing`, `header`, `tile`, `resize`.

    A text is cut into consecutive windows, the last one padded. An unknown category becomes the `other` state.
    Raises: DataError for what does not fit the space.
    """
    wanted = Options(**{"levels": space.levels if space.layout == "grid" else None, **options})
    x = _table(source, space, wanted) if space.layout == "columns" else _other(source, space, wanted)
    space.check(x)
    return x


def _table(source: Any, space: Space, options: Options) -> Tensor:
    columns = _columns(source, space, options)
    if space.discrete:
        return encode(columns, space, options)[0]
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


def _other(source: Any, space: Space, options: Options) -> Tensor:
    if space.layout == "sequence":
        text = import_module("likely.sources.text")
        texts = import_module("likely.sources").texts_of(source)
        if isinstance(source, str | PathLike):
            texts = text.text_files(_existing(source))
        if texts is not None:
            return torch.cat([text.windows(t, space.shape[0]) for t in texts if t])
    return _examples(source, replace(options, layout=space.layout if space.layout != "grid" else None)).x


def _existing(source: str | PathLike[str]) -> Path:
    if not Path(source).exists():
        raise DataError(f"There is no file or folder '{source}'.")
    return Path(source)


def _examples(source: Any, options: Options) -> Examples:
    sources = import_module("likely.sources")
    if isinstance(source, str | PathLike):
        return sources.examples_of(_existing(source), options)
    return sources.examples_in_memory(source, options)
