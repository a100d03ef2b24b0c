"""Samples -> files: images as one picture or a folder of PNGs, text, tables as CSV or Parquet, anything as `.npz`."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from likely.errors import DataError, UsageError
from likely.sources.tables import csv_text, frame
from likely.sources.tokens import decode
from likely.space import Space

__all__ = ["check_free", "check_path", "image_of", "made", "picture", "sheet", "to_8_bit", "write", "write_images"]


def write(x: Tensor, space: Space, path: str | PathLike[str], *, overwrite: bool = False, log_prob: Tensor | None = None) -> str:
    """Write examples [n, *shape] to a file or, for images and texts and a path without suffix, to a folder of numbered files.

    What else is in a folder stays, but for an older set of such files. A table gets nats `log_prob` [n] as a last column, a `.npz`
    file as an array; pictures and texts have no place for them.

    Returns: what was written, in a sentence.
    Raises: UsageError if the path exists (unless `overwrite`) or its suffix does not fit the data;
        DataError if it cannot be written.
    """
    path = Path(path)
    check_path(path, space, overwrite=overwrite)
    suffix = path.suffix.lower()
    beside = {"log_prob": log_prob.cpu()} if log_prob is not None and suffix in _NUMBERS else {}
    with made(path):
        what = _WRITERS[space.layout][suffix](x.cpu(), space, path, **beside)
    return f"Wrote {len(x)} {what} to {path}."


@contextmanager
def made(path: Path) -> Iterator[None]:
    """The folders above a path, and one error for all that a disk may refuse."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}.") from error


def check_path(path: str | PathLike[str], space: Space, *, overwrite: bool = False) -> None:
    """Whether examples of `space` can go to `path`, before the work of drawing them; raises what `write` would."""
    path, writers = Path(path), _WRITERS[space.layout]
    if path.suffix.lower() not in writers:
        raise UsageError(f"{space.layout.capitalize()} data cannot be written to '{path}'.", f"Use {_known(writers)}.")
    if path.is_dir() and path.suffix:
        raise UsageError(f"{path} is a folder.", "Choose another path.")
    check_free(path, overwrite=overwrite)


def check_free(path: str | PathLike[str], *, overwrite: bool = False) -> None:
    """Raise a UsageError if there is a file, or a folder that is not empty, at `path` (unless `overwrite`)."""
    path = Path(path)
    if not overwrite and (any(path.iterdir()) if path.is_dir() else path.exists()):
        raise UsageError(f"{path} exists.", "Choose another path, or overwrite it (--overwrite).")


def _known(writers: "dict[str, Writer]") -> str:
    return ", ".join(suffix or "a folder" for suffix in writers)


def to_8_bit(x: Tensor, space: Space) -> np.ndarray:
    """Images [n, C, H, W] as uint8; levels spread over 0..255 so that reading with `levels` gives them back.

    Real images are stretched from their smallest to their largest value.
    """
    if space.discrete:
        top = (space.levels or 256) - 1
        if top > 255:
            raise UsageError(f"PNG files cannot hold {top + 1} levels.", "Write a .npz file.")
        return ((x * 255 + top - 1) // top).numpy().astype(np.uint8)  # rounded up: see the reader, v * levels // 256
    low, high = x.min(), x.max()
    return ((x - low) / (high - low).clamp_min(1e-12) * 255).round().numpy().astype(np.uint8)


def image_of(array: np.ndarray) -> Image.Image:
    """A pillow image of [C, H, W]."""
    if len(array) not in (1, 3, 4):
        raise UsageError(f"Images of {len(array)} channels cannot be shown.", "Write a .npz file.")
    return Image.fromarray(np.ascontiguousarray(array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)))


def picture(x: Tensor, space: Space, *, gap: int = 1, least: int = 32) -> Image.Image:
    """All images side by side in rows, as near a square as they go, small ones enlarged to `least` pixels."""
    return sheet(to_8_bit(x, space), gap, least)


def sheet(images: np.ndarray, gap: int, least: int, *, across: int = 0) -> Image.Image:
    """uint8 images [n, C, H, W] in rows of `across`, as near a square as they go if that is 0."""
    n, channels, height, width = images.shape
    scale = max(1, math.ceil(least / max(height, width)))
    images = images.repeat(scale, 2).repeat(scale, 3)
    height, width, across = height * scale + gap, width * scale + gap, across or math.ceil(math.sqrt(n))
    canvas = np.full((channels, math.ceil(n / across) * height - gap, across * width - gap), 128, np.uint8)
    for i, image in enumerate(images):
        top, left = i // across * height, i % across * width
        canvas[:, top : top + height - gap, left : left + width - gap] = image
    return image_of(canvas)


def write_images(images: np.ndarray, path: Path, names: Sequence[str] = ()) -> str:
    """Write uint8 [n, C, H, W] as one picture or, to a path without suffix, as a folder of PNGs: `names`, or numbered by default."""
    with made(path):
        if path.suffix:
            sheet(images, 1, 32 if len(images) > 1 else 1).save(path)  # one alone as it is
            return "images in one picture"
        shown = [image_of(array) for array in images]
        for image, file in zip(shown, [path / name for name in names] or _numbered(path, len(shown), ".png"), strict=True):
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file)
        return "PNG images"


def _numbered(folder: Path, n: int, kind: str) -> list[Path]:
    """Numbered files of a folder, from which those of an older set are removed."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob(f"*{kind}"):
        if re.fullmatch(r"\d{5,}", old.stem):
            old.unlink()
    return [folder / f"{i:05d}{kind}" for i in range(n)]


def _write_images(x: Tensor, space: Space, path: Path) -> str:
    return write_images(to_8_bit(x, space), path)


def _write_npz(x: Tensor, space: Space, path: Path, **beside: Tensor) -> str:
    arrays: dict[str, Any] = {name: values.numpy() for name, values in beside.items()}
    np.savez_compressed(path, x=x.numpy(), **arrays)
    return f"examples (array{'s' if beside else ''} {', '.join(f'`{name}`' for name in ('x', *beside))})"


def _write_text(x: Tensor, space: Space, path: Path) -> str:
    """Bytes, or those that tokens spell, one example after another, a newline between; other symbols as numbers, a line each."""
    lines = [decode(row, space.vocabulary) if space.textual else " ".join(map(str, row[row >= 0].tolist())).encode() for row in x]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return "texts, separated by newlines,"


def _write_texts(x: Tensor, space: Space, path: Path) -> str:
    if not space.textual:
        raise UsageError(f"A {space} has no texts to write, a file each.", "Write a .txt file.")
    for file, row in zip(_numbered(path, len(x), ".txt"), x, strict=True):
        file.write_bytes(decode(row, space.vocabulary))
    return "texts"


def _write_csv(x: Tensor, space: Space, path: Path, log_prob: Tensor | None = None) -> str:
    delimiter = "," if path.suffix.lower() == ".csv" else "\t"
    path.write_text(csv_text(x, space, delimiter, log_prob), encoding="utf-8", newline="")
    return "rows"


def _write_parquet(x: Tensor, space: Space, path: Path, log_prob: Tensor | None = None) -> str:
    frame(x, space, log_prob).write_parquet(path)
    return "rows"


Writer = Callable[..., str]  # of examples, their space and a path
_NUMBERS = (".csv", ".tsv", ".parquet", ".npz")  # files of numbers
_WRITERS: dict[str, dict[str, Writer]] = {
    "grid": {".png": _write_images, "": _write_images, ".npz": _write_npz},
    "sequence": {".txt": _write_text, "": _write_texts, ".npz": _write_npz},
    "columns": {".csv": _write_csv, ".tsv": _write_csv, ".parquet": _write_parquet, ".npz": _write_npz},
    "set": {".npz": _write_npz},
}
