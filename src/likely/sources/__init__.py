"""Anything -> `Data`, and samples -> files.

A reader turns one kind of source into `Examples`; the way from there to the splits is common to all
(`examples.into_data`). Nothing is imported before a source needs it.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from likely.errors import DataError, UsageError, nearest

if TYPE_CHECKING:
    from likely.dataset import Data
    from likely.sources.augmenting import augment_batch
    from likely.sources.examples import Examples, Options
    from likely.sources.facts import describe, print_description
    from likely.sources.frames import check_frames_path, default_frames_path, write_frames
    from likely.sources.gaps import GAP, Box, Gapped, gapped
    from likely.sources.newdata import read, read_split
    from likely.sources.output import check_free, check_path, picture, to_8_bit, write, write_images
    from likely.sources.patching import is_csv, patched_csv
    from likely.sources.retouching import Pictures, pictures_of, reduction, retouched, retouched_names
    from likely.sources.tables import OTHER, spelt_columns
    from likely.sources.text import prompt_of
    from likely.sources.tokens import decode
    from likely.sources.values import given_values

__all__ = [
    "GAP",
    "OTHER",
    "Box",
    "Gapped",
    "Pictures",
    "augment_batch",
    "check_frames_path",
    "check_free",
    "check_path",
    "decode",
    "default_frames_path",
    "describe",
    "gapped",
    "given_values",
    "is_builtin",
    "is_csv",
    "load",
    "patched_csv",
    "picture",
    "pictures_of",
    "print_description",
    "prompt_of",
    "read",
    "read_split",
    "rebuild",
    "reduction",
    "retouched",
    "retouched_names",
    "spelt_columns",
    "to_8_bit",
    "write",
    "write_frames",
    "write_images",
]

_LAZY = {
    "GAP": "gaps",
    "OTHER": "tables",
    "Box": "gaps",
    "Gapped": "gaps",
    "Pictures": "retouching",
    "augment_batch": "augmenting",
    "decode": "tokens",
    "describe": "facts",
    "gapped": "gaps",
    "given_values": "values",
    "is_csv": "patching",
    "patched_csv": "patching",
    "spelt_columns": "tables",
    "print_description": "facts",
    "check_free": "output",
    "check_frames_path": "frames",
    "check_path": "output",
    "default_frames_path": "frames",
    "picture": "output",
    "pictures_of": "retouching",
    "reduction": "retouching",
    "retouched": "retouching",
    "retouched_names": "retouching",
    "prompt_of": "text",
    "read": "newdata",
    "read_split": "newdata",
    "to_8_bit": "output",
    "write": "output",
    "write_frames": "frames",
    "write_images": "output",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)


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
    tokens: int | str | None = None,
    weights: str | None = None,
) -> "Data":
    """Read a source and split it.

    Args:
        source: the name of a built-in data set; a path (folder of images, image, text, table, .npz, .npy, .idx);
            bytes or a list of strings; an array or tensor [n, ...], or a pair (examples, labels); a list of point
            sets; a DataFrame of pandas, polars or arrow; a map-style torch dataset.
        levels: number of values 0..levels-1 of integers; for images, what 256 are reduced to.
        given: what the model is conditioned on: "label", "caption", column names of a table, an array with a row per
            example, or a list with a caption per example; None, the default, leaves labels out and columns in.
        seed: of the split (and of generated data).
        layout: "grid", "nhwc", "sequence", "columns" or "set", where the shape of an array does not say enough.
        window: length of the training examples of a text, in bytes (or tokens).
        tokens: size of a vocabulary of byte pairs, or "words", that a text is put together of; bytes by default.
        tile: side of the tiles that images are cut into; resize: side, or (height, width), that they are resized to.
        precision: decimals that the numbers of a table are rounded to, in columns that have more.
        missing: spellings of a missing cell besides "", "?", "NA", "N/A", "nan", "null", "none".
        nominal: columns whose numbers are names.
        header: whether a table's first row names its columns; found out by default.
        augment: "flip" and "shift" alter training images, and nothing else.
        missing_labels: "error", or "drop" to leave out examples without a label.
        count: number of examples of a generated set.
        weights: column of a table that says how many times each row counts; it is not modelled.

    Raises: DataError for what cannot be read; UsageError for a name or option that does not exist.
    """
    from likely.sources.examples import Options

    options = Options(
        levels, given, seed, layout, window, tile, resize, precision, tuple(missing), tuple(nominal), header, tuple(augment),
        missing_labels, count, tokens, weights,
    )  # fmt: skip
    own_name, told = _identity(source)
    if isinstance(source, str | PathLike):
        data = _load_named(str(source), options, name or own_name, told)
    else:
        data = _load_object(source, options, name or own_name, told)
    if weights is not None and not data.weighted:
        raise UsageError(f"Weights are a column of a table, and {data.name} is a {data.space.named}.", "Leave `weights` out.")
    return data


def is_builtin(name: str) -> bool:
    """Whether a built-in data set has this name."""
    return name in import_module("likely.sources.builtin").BUILTIN


def _load_named(source: str, options: "Options", name: str, told: str) -> "Data":
    builtin = import_module("likely.sources.builtin").BUILTIN
    if source in builtin:
        return _into_data(builtin[source](options), options, name, told)
    path = Path(source)
    if not path.exists():
        raise DataError(f"There is no data '{source}': no such file, and no built-in data of that name.", nearest(source, builtin))
    if kind_of(path, options) == "text":
        text = import_module("likely.sources.text")
        return text.text_data(text.text_files(path), options, name, told)
    return _into_data(examples_of(path, options), options, name, told)


def rebuild(card: dict[str, Any]) -> "Data":
    """The data that a card describes, read and split again as they were.

    Raises: DataError if the source was an object in memory, is gone, or has changed since.
    """
    lost = next((what for what in (card["source"], card.get("given", "")) if what.endswith(" in memory")), None)
    if lost is not None:
        raise DataError(f"The data came from {lost}, which a model does not store.", "Pass data: as DATA, or by --data of `likely show`.")
    data = load(card["source"], **card["options"])
    was, now = card["split"]["fingerprint"], data.card["split"]["fingerprint"]
    if was != now:
        raise DataError(
            f"{card['source']} has changed since the model was fitted to it (fingerprint {was}, now {now}).", "Restore the file."
        )
    return data


_SUFFIXES = {".csv": "table", ".tsv": "table", ".tab": "table", ".parquet": "table", ".pq": "table", ".npz": "packed", ".npy": "packed"}


def kind_of(path: Path, options: "Options") -> str:
    """Which reader serves a path; what no other knows is read as text, that is, as bytes."""
    files, images = import_module("likely.sources.files"), import_module("likely.sources.images")
    packed = import_module("likely.sources.packed")
    paths = files.list_files(path) if path.is_dir() else [path]
    if options.layout == "sequence" and not any(files.suffix(p) in (".npy", ".npz") for p in paths):
        return "text"
    if any(images.is_image(p) for p in paths):
        return "images"
    if path.is_dir() and any(packed.is_idx(p) for p in paths):
        return "idx folder"
    kinds = [_SUFFIXES.get(files.suffix(p), "packed" if packed.is_idx(p) else "text") for p in paths]
    if path.is_dir() and set(kinds) != {"text"}:
        other = next(p.name for p, kind in zip(paths, kinds, strict=True) if kind != "text")
        raise DataError(f"{path} holds neither images nor texts alone: {other} is another kind of data.", "Give one file of them.")
    return kinds[0]


def examples_of(path: Path, options: "Options") -> "Examples":
    """The examples of a file or folder that is not read as text."""
    kind = kind_of(path, options)
    if kind == "text":
        raise DataError(f"{path} holds text, not {options.layout or 'images'}.")
    return _READERS[kind](path, options)


def _read_images(path: Path, options: "Options") -> "Examples":
    images, files = import_module("likely.sources.images"), import_module("likely.sources.files")
    if path.is_dir():
        return images.image_examples(files.list_files(path), path, options)
    beside = import_module("likely.sources.captions").files_beside(path)
    return images.image_examples([path, *beside], path.parent, options)


def _read_table(path: Path, options: "Options") -> "Examples":
    columns, tables = import_module("likely.sources.columns"), import_module("likely.sources.tables")
    return tables.table_examples(columns.read_columns(path, options.header), options, str(path))


_READERS: dict[str, Callable[[Path, "Options"], "Examples"]] = {
    "images": _read_images,
    "table": _read_table,
    "packed": lambda path, options: import_module("likely.sources.packed").packed_examples(path, options),
    "idx folder": lambda path, options: import_module("likely.sources.packed").idx_folder_examples(path, options),
}


def _load_object(source: Any, options: "Options", name: str, told: str) -> "Data":
    texts = texts_of(source)
    if texts is not None:
        return import_module("likely.sources.text").text_data(texts, options, name, told)
    return _into_data(examples_in_memory(source, options), options, name, told)


def texts_of(source: Any) -> list[bytes] | None:
    """The texts of bytes, or of a list of bytes or strings; None of anything else."""
    if isinstance(source, bytes):
        return [source]
    if isinstance(source, list | tuple) and source and all(isinstance(t, str | bytes) for t in source):
        return [t.encode() if isinstance(t, str) else t for t in source]
    return None


def examples_in_memory(source: Any, options: "Options") -> "Examples":
    """The examples of an array, a dict or list of arrays, a DataFrame or a torch dataset."""
    arrays = import_module("likely.sources.arrays")
    if hasattr(source, "columns"):
        columns, tables = import_module("likely.sources.columns"), import_module("likely.sources.tables")
        return tables.table_examples(columns.frame_columns(source), options, "The DataFrame")
    if isinstance(source, Mapping):
        return import_module("likely.sources.packed").named_examples(source, options)
    if isinstance(source, tuple) and len(source) == 2:
        return arrays.array_examples(source[0], options, source[1])
    if isinstance(source, list | tuple) or hasattr(source, "__array__"):
        return _read_array(source, options)
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        return arrays.dataset_examples(source, options)
    raise DataError(f"A {type(source).__name__} cannot be read as data.", "Give an array, a DataFrame, a torch dataset, bytes or a path.")


def _read_array(source: Any, options: "Options") -> "Examples":
    """An array; a list of arrays of different shapes is one of point sets."""
    arrays = import_module("likely.sources.arrays")
    if isinstance(source, list | tuple) and len({getattr(item, "shape", None) for item in source}) > 1:
        return arrays.ragged_examples(source, options)
    if isinstance(source, list | tuple):
        source = import_module("numpy").stack([arrays.as_numpy(item) for item in source])
    return arrays.array_examples(source, options)


def _into_data(found: "Examples", options: "Options", name: str, told: str) -> "Data":
    captions = import_module("likely.sources.captions")
    held = [] if found.label_space is None else [s.name for s in found.label_space.supports]
    if captions.are_captions(options.given, held):
        found = captions.captioned(found, options.given)
        options = replace(options, given=found.labels)
    elif hasattr(options.given, "shape"):
        found = import_module("likely.sources.arrays").label_examples(found, options.given)
    return import_module("likely.sources.examples").into_data(found, options, name, told)


def _is_builtin(source: Any) -> bool:
    return str(source) in import_module("likely.sources.builtin").BUILTIN


def _identity(source: Any) -> tuple[str, str]:
    """A short name of a source, and what the card calls it."""
    if isinstance(source, str | PathLike):
        path = Path(source)
        told = str(path.resolve()) if path.exists() and not _is_builtin(source) else str(source)
        return (path.name.split(".")[0] or path.name or "data"), told
    return type(source).__name__.lower(), f"{type(source).__module__}.{type(source).__name__} in memory"
