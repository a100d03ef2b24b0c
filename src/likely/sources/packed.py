"""Arrays in files: `.npz`, `.npy`, and the IDX format of MNIST (`.idx`, `*-idx3-ubyte`), packed by .gz or .xz or not.

Nothing is unpickled. Names in an `.npz` (or a dict of arrays): examples are x, images or data; labels y, labels or
targets; either with a part before or after them (`x_train`, `test_images`), or the part's name alone (`train`).
"""

import io
import math
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from likely.errors import DataError
from likely.sources.arrays import array_examples, as_numpy
from likely.sources.examples import PARTS, Examples, Options
from likely.sources.files import bare_name, list_files, read_bytes, suffix

__all__ = ["idx_folder_examples", "is_idx", "named_examples", "packed_array", "packed_examples"]

_EXAMPLES, _LABELS = ("x", "images", "image", "data"), ("y", "labels", "label", "targets", "target")
_PART_NAMES = {"train": ("train",), "valid": ("valid", "val", "validation"), "test": ("test",)}
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def is_idx(path: Path) -> bool:
    """Whether a name is one of the IDX format's."""
    return suffix(path) == ".idx" or bare_name(path).endswith("-ubyte")


def packed_examples(path: Path, options: Options) -> Examples:
    """The examples of one file."""
    if is_idx(path):
        labels = _labels_beside(path)
        return array_examples(_read_idx(path), options, None if labels is None else _read_idx(labels))
    with _loading(path) as content:
        if isinstance(content, np.ndarray):
            return array_examples(content, options)
        return named_examples({name: content[name] for name in content.files}, options, str(path))


def packed_array(path: Path) -> np.ndarray:
    """The examples of a `.npy` or `.npz` file as they stand, whatever part they are of."""
    with _loading(path) as content:
        return content if isinstance(content, np.ndarray) else _unsplit({name: content[name] for name in content.files}, str(path))


@contextmanager
def _loading(path: Path) -> Iterator[Any]:
    """What a NumPy file holds; what it cannot be read for is named as it is used, since `.npz` files are read then."""
    try:
        yield np.load(io.BytesIO(read_bytes(path)), allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path} is no NumPy file that can be read without pickle.") from error


def named_examples(arrays: Mapping[str, Any], options: Options, where: str = "The dict") -> Examples:
    """Arrays by name; splits that the names tell are kept."""
    lower = {name.lower(): array if hasattr(array, "shape") else np.asarray(array) for name, array in arrays.items()}
    parts = {part: x for part in PARTS if (x := _find(lower, _EXAMPLES, part)) is not None}
    if "train" in parts and "test" in parts:
        labels = {part: _find(lower, _LABELS, part, alone=False) for part in parts}
        return joined_examples(parts, labels, options)
    x = _unsplit(lower, where)
    return array_examples(x, options, next((lower[name] for name in _LABELS if name in lower), None))


def _unsplit(arrays: Mapping[str, Any], where: str) -> Any:
    """The array that holds the examples."""
    x = next((arrays[name] for name in _EXAMPLES if name in arrays), None)
    if x is None:
        if len(arrays) != 1:
            hint = f"Name one of them 'x', or 'x_train' and 'x_test'; it has {', '.join(arrays) or 'none'}."
            raise DataError(f"{where} does not say which array holds the examples.", hint)
        x = next(iter(arrays.values()))
    return x


def _find(arrays: Mapping[str, np.ndarray], names: tuple[str, ...], part: str, *, alone: bool = True) -> np.ndarray | None:
    spellings = [pair for p in _PART_NAMES[part] for n in names for pair in (f"{n}_{p}", f"{p}_{n}")]
    return next((arrays[s] for s in (*spellings, *(_PART_NAMES[part] if alone else ())) if s in arrays), None)


def joined_examples(parts: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray | None], options: Options) -> Examples:
    """Arrays of the source's own splits as one, which remembers where each row belongs."""
    shapes = {p: x.shape[1:] for p, x in parts.items()}
    if len(set(shapes.values())) > 1:
        raise DataError(f"The splits have examples of different shapes: {shapes}.")
    both = [y for y in labels.values() if y is not None]
    found = array_examples(
        np.concatenate([as_numpy(x) for x in parts.values()]), options, np.concatenate(both) if len(both) == len(parts) else None
    )
    numbers = [torch.full((len(x),), PARTS.index(p)) for p, x in parts.items()]
    return replace(found, part=torch.cat(numbers))


def _read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file: two zero bytes, a type, a rank, the shape and the values, all big-endian."""
    content = read_bytes(path)
    kind, rank = (content[2], content[3]) if len(content) >= 4 else (0, 0)
    start = 4 + 4 * rank
    if content[:2] != b"\0\0" or kind not in _IDX_TYPES or len(content) < start:
        raise DataError(f"{path} is no IDX file: it begins with {content[:4].hex() or 'nothing'}.")
    shape, dtype = struct.unpack(f">{rank}I", content[4:start]), np.dtype(_IDX_TYPES[kind])
    if len(content) - start != math.prod(shape) * dtype.itemsize:
        raise DataError(f"{path} holds {len(content) - start} bytes of values where its header says {math.prod(shape) * dtype.itemsize}.")
    return np.frombuffer(content, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def _labels_beside(path: Path) -> Path | None:
    """The labels' file of an images' file: `train-labels-idx1-ubyte` of `train-images-idx3-ubyte`, however packed."""
    if "images" not in path.name:
        return None
    name = bare_name(path).replace("images", "labels").replace("idx3", "idx1")
    return next((found for packing in ("", ".gz", ".xz") if (found := path.with_name(name + packing)).exists()), None)


def idx_folder_examples(folder: Path, options: Options) -> Examples:
    """A folder of IDX files as MNIST has it: `train-images...` and `t10k-images...`, and their labels."""
    images = [p for p in list_files(folder) if is_idx(p) and "images" in p.name]
    of = {"train": [p for p in images if p.name.startswith("train")], "test": [p for p in images if p.name.startswith(("t10k", "test"))]}
    if any(len(found) != 1 for found in of.values()):
        raise DataError(f"{folder} does not hold one train-images and one t10k-images file.", "Give one file instead.")
    labels = {part: None if (beside := _labels_beside(found[0])) is None else _read_idx(beside) for part, found in of.items()}
    return joined_examples({part: _read_idx(found[0]) for part, found in of.items()}, labels, options)
