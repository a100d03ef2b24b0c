"""Samples -> files: images as one picture or a folder of PNGs, text, tables as CSV or Parquet, anything as `.npz`."""

import math
from collections.abc import Callable
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from likely.errors import DataError, UsageError
from likely.sources.tables import csv_text, frame
from likely.sources.tokens import decode
from likely.space import Space

__all__ = ["check_path", "picture", "to_8_bit", "write"]


def write(x: Tensor, space: Space, path: str | PathLike[str], *, overwrite: bool = False) -> str:
    """Write examples [n, *shape] to a file or, for images and a path without suffix, to a folder of PNGs.

    Returns: what was written, in a sentence.
    Raises: UsageError if the path exists (unless `overwrite`) or its suffix does not fit the data;
        DataError if it cannot be written.
    """
    path = Path(path)
    check_path(path, space, overwrite=overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        what = _WRITERS[space.layout][path.suffix.lower()](x.cpu(), space, path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}.") from error
    return f"Wrote {len(x)} {what} to {path}."


def check_path(path: str | PathLike[str], space: Space, *, overwrite: bool = False) -> None:
    """Whether examples of `space` can go to `path`, before the work of drawing them; raises what `write` would."""
    path, writers = Path(path), _WRITERS[space.layout]
    if path.suffix.lower() not in writers:
        raise UsageError(f"{space.layout.capitalize()} data cannot be written to '{path}'.", f"Use {_known(writers)}.")
    if path.is_dir() and path.suffix:
        raise UsageError(f"{path} is a folder.", "Choose another path.")
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


def _image(array: np.ndarray) -> Image.Image:
    """A pillow image of [C, H, W]."""
    if len(array) not in (1, 3, 4):
        raise UsageError(f"Images of {len(array)} channels cannot be shown.", "Write a .npz file.")
    return Image.fromarray(np.ascontiguousarray(array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)))


def picture(x: Tensor, space: Space, *, gap: int = 1, least: int = 32) -> Image.Image:
    """All images side by side in rows, as near a square as they go, small ones enlarged to `least` pixels."""
    images = to_8_bit(x, space)
    n, channels, height, width = images.shape
    scale = max(1, math.ceil(least / max(height, width)))
    images = images.repeat(scale, 2).repeat(scale, 3)
    height, width, across = height * scale + gap, width * scale + gap, math.ceil(math.sqrt(n))
    sheet = np.full((channels, math.ceil(n / across) * height - gap, across * width - gap), 128, np.uint8)
    for i, image in enumerate(images):
        top, left = i // across * height, i % across * width
        sheet[:, top : top + height - gap, left : left + width - gap] = image
    return _image(sheet)


def _write_picture(x: Tensor, space: Space, path: Path) -> str:
    picture(x, space, least=32 if len(x) > 1 else 1).save(path)  # one alone as it is
    return "images in one picture"


def _write_folder(x: Tensor, space: Space, path: Path) -> str:
    path.mkdir(exist_ok=True)
    for i, array in enumerate(to_8_bit(x, space)):
        _image(array).save(path / f"{i:05d}.png")
    return "PNG images"


def _write_npz(x: Tensor, space: Space, path: Path) -> str:
    np.savez_compressed(path, x=x.numpy())
    return "examples (array `x`)"


def _write_text(x: Tensor, space: Space, path: Path) -> str:
    """Bytes, or those that tokens spell, one example after another, a newline between; other symbols as numbers, a line each."""
    lines = [decode(row, space.vocabulary) if space.textual else " ".join(map(str, row[row >= 0].tolist())).encode() for row in x]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return "texts, separated by newlines,"


def _write_texts(x: Tensor, space: Space, path: Path) -> str:
    if not space.textual:
        raise UsageError(f"A {space} has no texts to write, a file each.", "Write a .txt file.")
    path.mkdir(exist_ok=True)
    for i, row in enumerate(x):
        (path / f"{i:05d}.txt").write_bytes(decode(row, space.vocabulary))
    return "texts"


def _write_csv(x: Tensor, space: Space, path: Path) -> str:
    delimiter = "," if path.suffix.lower() == ".csv" else "\t"
    path.write_text(csv_text(x, space, delimiter), encoding="utf-8", newline="")
    return "rows"


def _write_parquet(x: Tensor, space: Space, path: Path) -> str:
    frame(x, space).write_parquet(path)
    return "rows"


Writer = Callable[[Tensor, Space, Path], str]
_WRITERS: dict[str, dict[str, Writer]] = {
    "grid": {".png": _write_picture, "": _write_folder, ".npz": _write_npz},
    "sequence": {".txt": _write_text, "": _write_texts, ".npz": _write_npz},
    "columns": {".csv": _write_csv, ".tsv": _write_csv, ".parquet": _write_parquet, ".npz": _write_npz},
    "set": {".npz": _write_npz},
}
