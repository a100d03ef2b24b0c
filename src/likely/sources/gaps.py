"""What of an example is unknown, as a person says it: marks in a text, a mask or boxes of an image, empty cells of a table or set."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from likely.dataset import Split
from likely.errors import DataError, UsageError
from likely.sources.arrays import as_numpy
from likely.sources.files import read_bytes, suffix
from likely.sources.images import is_image, pixels
from likely.sources.newdata import read_split
from likely.sources.packed import packed_array
from likely.sources.tokens import encode
from likely.space import MISSING, Space

__all__ = ["GAP", "Box", "Gapped", "gapped"]

GAP = "_"
Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels; right and bottom are the first ones outside


@dataclass(frozen=True)
class Gapped:
    """Examples with gaps: x [n, *shape], of a text [1, length]; known, bool of that shape; given [n, ...] where the source holds it."""

    x: Tensor
    known: Tensor
    given: Tensor | None = None


def gapped(
    source: Any, known: Any, space: Space, given: Space | None, *, gap: str = GAP, boxes: Sequence[Box] = (), **options: Any
) -> Gapped:
    """Examples of `space`, and which of their entries are known.

    Args:
        source: a text (a string or bytes, or the `Path` of its file) in which, without `known`, every `gap` is one unknown byte; a table
            (path or DataFrame) whose missing cells are unknown; images (path or array); sets of points (path or arrays), whose values that
            are NaN (-1 of integers) before the last one that is not are unknown; or a tensor or `Split` in codes.
        known: where it cannot be told from the source: bool, of a shape that broadcasts to that of the examples; or
            the path of an image, white where unknown.
        boxes: unknown rectangles of images.
        options: of reading, see `likely.load`.

    Raises: DataError or UsageError for what cannot be read, does not fit, or has no gaps.
    """
    if space.layout != "grid" and (boxes or isinstance(known, str | PathLike)):
        raise UsageError(f"Masks and boxes are for images, not for a {space.named}.", _HINTS.get(space.layout, "").format(gap=gap))
    if space.layout == "set" and known is None and not isinstance(source, Split):
        return _some_unknown(_sets(source, space), space, gap)
    source = Split(source) if isinstance(source, Tensor) else source
    if isinstance(source, Split) and space.layout != "grid":
        found = Gapped(source.x, _is_known(known, source.x, space), source.given)
    elif space.layout == "columns" and known is None:
        found = _table(source, space, given, options)
    elif space.textual and isinstance(source, str | bytes | Path):
        found = _text(read_bytes(source) if isinstance(source, Path) else source, gap, known, space)
    else:
        found = _images(source, known, space, given, boxes, options)
    return _some_unknown(found, space, gap)


def _some_unknown(found: Gapped, space: Space, gap: str) -> Gapped:
    if bool(found.known.all()):
        hint = _HINTS.get(space.layout, "").format(gap=gap)
        raise DataError("Nothing is unknown, so there is nothing to fill.", f"{hint[:-1]}; or {_PYTHON}.")
    return found


_PYTHON = "in Python pass known=, a bool tensor that is True where entries are known"
_HINTS = {
    "sequence": "Mark every unknown byte by '{gap}' (--gap), or go on after a prompt: likely sample --prompt.",
    "columns": "Leave unknown cells empty (NaN of real numbers, -1 of codes).",
    "grid": "Pass --mask, white where unknown, or --box x0,y0,x1,y1.",
    "set": "Mark unknown points by NaN (-1 of integers), before the last known one: what follows that is no point.",
}


def _is_known(known: Any, x: Tensor, space: Space) -> Tensor:
    """Bool of the shape of x; of a table without `known`, where a cell is not missing."""
    if known is None and space.layout != "columns":
        grid = space.layout == "grid"
        hint = f"{_HINTS['grid'][:-1]}; or {_PYTHON}." if grid else f"{_PYTHON[0].upper()}{_PYTHON[1:]}."
        raise UsageError("Nothing says which entries are unknown.", hint)
    if known is None:
        coded = torch.tensor([s.kind != "real" for s in space.supports], device=x.device)
        return ~(torch.isnan(x) | (x == MISSING) & coded)
    known = torch.as_tensor(known)
    try:
        if known.dtype == torch.bool:
            return known.expand(x.shape)
    except RuntimeError as error:
        raise UsageError(f"`known` has the shape {tuple(known.shape)}, the examples {tuple(x.shape)}.") from error
    raise UsageError(f"`known` holds {known.dtype}, not bool.", "Pass True where an entry is known.")


# -- tables -------------------------------------------------------------------------------------


def _table(source: Any, space: Space, given: Space | None, options: dict[str, Any]) -> Gapped:
    """Any cell may be unknown, also of a column that missed none when its schema was read."""
    lenient = replace(space, supports=tuple(replace(s, missing=True) for s in space.supports))
    split = read_split(source, lenient, given, **options)
    return Gapped(split.x, _is_known(None, split.x, space), split.given)


# -- sets ---------------------------------------------------------------------------------------


def _sets(source: Any, space: Space) -> Gapped:
    """Sets [n_i, D], or padded ones [n, N, D]: what is lost before the last value of a set is unknown, what follows it is no point."""
    if isinstance(source, str | PathLike):
        path = Path(source)
        if suffix(path) not in (".npy", ".npz"):
            raise DataError(f"{path} holds no sets of points.", "Give a .npy or .npz file of them, [sets, points, dimensions].")
        source = packed_array(path)
    (most, dims), rows = space.shape, [as_numpy(row) for row in source]
    lost = [np.isnan(row) if row.dtype.kind == "f" else row == MISSING for row in rows]
    ends = [int(np.flatnonzero(~gone.all(-1)).max(initial=-1)) + 1 if row.ndim == 2 else 0 for row, gone in zip(rows, lost, strict=True)]
    for i, (row, end) in enumerate(zip(rows, ends, strict=True)):
        if row.ndim != 2 or row.shape[1] != dims or not 1 <= end <= most or (end < most and not space.variable):
            raise DataError(f"Set {i} has {end} points of shape {row.shape}; the model is of a {space.named}.", _HINTS["set"])
    x = torch.full((len(rows), most, dims), MISSING if space.discrete else torch.nan, dtype=space.dtype)
    known = torch.ones(x.shape, dtype=torch.bool)
    for i, (row, gone, end) in enumerate(zip(rows, lost, ends, strict=True)):
        x[i, :end] = torch.from_numpy(np.where(gone, 0, row)[:end]).to(space.dtype)
        known[i, :end] = torch.from_numpy(~gone[:end])
    space.check(x)
    return Gapped(x, known)


# -- texts --------------------------------------------------------------------------------------


def _text(text: str | bytes, gap: str, known: Any, space: Space) -> Gapped:
    if space.vocabulary:
        raise UsageError(
            "A model of tokens cannot fill gaps of so many bytes.", "Fit one to bytes (leave tokens out), or go on after a prompt."
        )
    content = text.encode() if isinstance(text, str) else text
    if known is not None:  # then a mark is a byte like any other
        x = encode(content)[None]
        return Gapped(x, _is_known(known, x, space))
    if not gap:
        raise UsageError("An empty mark cannot show a gap.", f"For example: --gap {GAP}")
    parts = content.split(gap.encode())
    x = encode(b"\0".join(parts))[None]
    there = torch.ones(x.shape, dtype=torch.bool)
    there[:, torch.tensor([len(part) + 1 for part in parts[:-1]], dtype=torch.int64).cumsum(0) - 1] = False
    return Gapped(x, there)


# -- images -------------------------------------------------------------------------------------


def _images(source: Any, known: Any, space: Space, given: Space | None, boxes: Sequence[Box], options: dict[str, Any]) -> Gapped:
    """Examples read as those of the fit were; the mask is as large as the image was, or as an example is."""
    path = Path(source) if isinstance(source, str | PathLike) else None
    if path is not None and options.get("tile") is not None and (path.is_dir() or is_image(path)):
        raise UsageError(
            "The model is of tiles, and what is unknown is said of an image.", f"Cut out a tile, and pass --resize {space.shape[-1]}."
        )
    split = source if isinstance(source, Split) else read_split(source, space, given, **options)
    if space.layout != "grid" or not (boxes or isinstance(known, str | PathLike)):
        return Gapped(split.x, _is_known(known, split.x, space), split.given)
    height, width = pixels(path).shape[1:] if path is not None and path.is_file() and is_image(path) else space.shape[1:]
    unknown = np.zeros((height, width), bool)
    for box in boxes:
        unknown |= _inside(box, height, width)
    unknown = _resized(unknown, space.shape[1:])
    if isinstance(known, str | PathLike):
        unknown |= _masked(Path(known), (height, width), space.shape[1:])
    elif known is not None:
        raise UsageError("Boxes and an array `known` both say what is unknown.", "Pass one of them.")
    return Gapped(split.x, ~torch.from_numpy(unknown).expand(split.x.shape), split.given)


def _inside(box: Box, height: int, width: int) -> np.ndarray:
    left, top, right, bottom = box
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise UsageError(f"The box {','.join(map(str, box))} is not within the image, {width} x {height}.", "A box is x0,y0,x1,y1.")
    inside = np.zeros((height, width), bool)
    inside[top:bottom, left:right] = True
    return inside


def _masked(path: Path, image: tuple[int, ...], example: tuple[int, ...]) -> np.ndarray:
    """Where a mask is white, at the size of an example."""
    if not path.is_file():
        raise DataError(f"There is no mask '{path}'.")
    white = pixels(path).mean(0) >= 128
    if white.shape not in (image, example):
        (height, width), sizes = white.shape, " or ".join(dict.fromkeys(f"{w} x {h}" for h, w in (image, example)))
        raise DataError(f"The mask is {width} x {height}, expected {sizes}.", "A mask is as large as its image.")
    return _resized(white, example)


def _resized(unknown: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """As images are resized (see `images`); a pixel is unknown where any part of it is."""
    if unknown.shape == size:
        return unknown
    shades = Image.fromarray(unknown.astype(np.uint8) * 255)
    return np.asarray(ImageOps.fit(shades, (size[1], size[0]), Image.Resampling.BOX)) > 0
