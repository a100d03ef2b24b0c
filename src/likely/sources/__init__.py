"""Anything -> `Data`, and samples -> files.

A reader turns one kind of source into `Examples`; the way from there to the splits is common to all
(`examples.into_data`). Nothing is imported before a source needs it.
"""

from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from likely.errors import DataError, nearest

if TYPE_CHECKING:
    from likely.dataset import Data
    from likely.sources.examples import Examples, Options

__all__ = ["load", "rebuild"]


def load(
    source: Any,
    *,
    name: str | None = None,
    levels: int | None = None,
    given: Any = None,
    seed: int = 0,
    layout: str | None = None,
    window: int = 128,
    tile: int | None = None,
    resize: int | tuple[int, int] | None = None,
    precision: int | None = None,
    missing: tuple[str, ...] = (),
    nominal: tuple[str, ...] = (),
    header: bool | None = None,
    augment: tuple[str, ...] = (),
    missing_labels: str = "error",
    count: int | None = None,
) -> "Data":
    """Read a source and split it.

    Args:
        source: the name of a built-in data set; a path (folder of images, image, text, table, .npz, .npy, .idx);
            bytes or a list of strings; an array or tensor [n, ...], or a pair (examples, labels); a list of point
            sets; a DataFrame of pandas, polars or arrow; a map-style torch dataset.
        levels: number of values 0..levels-1 of integers; for images, what 256 are reduced to.
        given: what the model is conditioned on: "label", column names of a table, or an array with a row per
            example; None, the default, leaves labels out and columns in.
        seed: of the split (and of generated data).
        layout: "grid", "nhwc", "sequence", "columns" or "set", where the shape of an array does not say enough.
        window: length of the training examples of a text, in bytes.
        tile: side of the tiles that images are cut into; resize: side, or (height, width), that they are resized to.
        precision: decimals that the numbers of a table are rounded to, where their own are too many.
        missing: spellings of a missing cell besides "", "?", "NA", "N/A", "nan", "null", "none".
        nominal: columns whose numbers are names.
        header: whether a table's first row names its columns; found out by default.
        augment: "flip" and "shift" alter training images, and nothing else.
        missing_labels: "error", or "drop" to leave out examples without a label.
        count: number of examples of a generated set.

    Raises: DataError for what cannot be read; UsageError for a name or option that does not exist.
    """
    from likely.sources.examples import Options, into_data

    options = Options(
        levels, given, seed, layout, window, tile, resize, precision, tuple(missing), tuple(nominal), header, tuple(augment),
        missing_labels, count,
    )  # fmt: skip
    label, told = _identity(source)
    return into_data(_read(source, options), options, name or label, told)


def _read(source: Any, options: "Options") -> "Examples":
    if isinstance(source, str | PathLike):
        return _read_named(str(source), options)
    return _read_object(source, options)


def _read_named(source: str, options: "Options") -> "Examples":
    builtin = import_module("likely.sources.builtin").BUILTIN
    if source in builtin:
        return builtin[source](options)
    path = Path(source)
    if not path.exists():
        hint = f"It is neither a file nor a built-in data set. {nearest(source, builtin)}"
        raise DataError(f"There is no data '{source}'.", hint)
    raise DataError(f"{source} cannot be read.")


def _read_object(source: Any, options: "Options") -> "Examples":
    arrays = import_module("likely.sources.arrays")
    if isinstance(source, tuple) and len(source) == 2:
        return arrays.array_examples(source[0], options, source[1])
    if hasattr(source, "__array__") or hasattr(source, "detach"):
        return arrays.array_examples(source, options)
    if isinstance(source, list) and source:
        return _read_list(source, options)
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        return arrays.dataset_examples(source, options)
    raise DataError(f"A {type(source).__name__} cannot be read as data.")


def _read_list(source: list[Any], options: "Options") -> "Examples":
    arrays = import_module("likely.sources.arrays")
    if len({getattr(item, "shape", None) for item in source}) > 1:
        return arrays.ragged_examples(source, options)
    return arrays.array_examples(source, options)


def _identity(source: Any) -> tuple[str, str]:
    """A short name of a source, and what the card calls it."""
    if isinstance(source, str | PathLike):
        path = Path(source)
        return (path.name.split(".")[0] or path.name or "data"), str(source)
    return type(source).__name__.lower(), f"{type(source).__module__}.{type(source).__name__} in memory"
