"""Folders of images, and single images, -> grids.

What pillow decodes becomes 8-bit grey or RGB by these rules, and the card counts where they were used:
the EXIF orientation is applied; palettes, CMYK and other colour models become RGB; 16-bit grey keeps its
upper 8 bits; transparent pixels are laid over white; of an animation the first frame is taken. All images
are grey if every one is, and RGB otherwise. Labels are the names of the sub-folders, or captions (see `captions`).
"""

import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from likely.errors import DataError
from likely.sources.captions import asked_for, caption_files, captioned, captions_of
from likely.sources.examples import Examples, Options
from likely.space import Space

__all__ = ["MOST_PIXELS", "decode_all", "image_examples", "is_image", "one_colour", "pixels"]

MOST_PIXELS = 2**26  # an image of more is refused before it is decoded
_MOST_DAMAGED = 0.05
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
_PART_FOLDERS = {"train": 0, "valid": 1, "val": 1, "validation": 1, "test": 2}


def is_image(path: Path) -> bool:
    """Whether pillow knows the suffix."""
    return path.suffix.lower() in Image.registered_extensions()


def image_examples(paths: Sequence[Path], folder: Path, options: Options) -> Examples:
    """Images [n, C, H, W] of files below a folder; tiles of them if `tile` is given.

    Raises: DataError for images of different sizes (without `tile` or `resize`), ones of more than
        `MOST_PIXELS`, or if more than 5 % of the files are damaged.
    """
    images = [p for p in paths if is_image(p)]
    texts, tables = caption_files(paths, images)
    told = len(set(texts.values())) + len(tables)
    counts: Counter[str] = Counter({"other_files": len(paths) - len(images) - told, "caption_files": told})
    decoded, damaged = decode_all(images, counts)
    if not decoded:
        raise DataError(f"{folder} holds no image that can be read.", f"Damaged: {', '.join(damaged[:3])}." if damaged else "")
    arrays = one_colour(list(decoded.values()))
    groups, stacked = _stacked(list(decoded), arrays, options, counts)
    x, levels = _quantized(stacked, options.levels)
    space = Space.grid(x.shape[1], x.shape[2], x.shape[3], levels)
    notes: dict[str, Any] = {"files": len(decoded), "skipped_damaged": damaged, **counts}
    found = Examples(space, x, group=groups if len(decoded) > 1 else None, notes={k: v for k, v in notes.items() if v})
    found = _placed(found, [p.relative_to(folder).parts for p in decoded], groups)
    return _with_captions(found, captions_of(paths, images), list(decoded), groups, options) if asked_for(options.given) else found


def _with_captions(found: Examples, captions: dict[Path, str], images: Sequence[Path], groups: Tensor, options: Options) -> Examples:
    """The caption of its whole image with each example, in place of labels; nothing where no image has one."""
    bare = replace(found, labels=None, label_space=None, known=None)
    if not captions:
        return bare
    lost = [image for image in images if not captions.get(image, "").strip()]
    if lost and options.missing_labels != "drop":
        hint = "Write them, or fit without these images: --missing-labels drop (missing_labels=)."
        raise DataError(f"{len(lost)} of {len(images)} images have no caption, such as {lost[0]}.", hint)
    return captioned(bare, [captions.get(image) for image in images], groups)


def decode_all(paths: Sequence[Path], counts: Counter[str]) -> tuple[dict[Path, np.ndarray], list[str]]:
    """Arrays [C, H, W] of the images, and the names of the damaged ones."""
    decoded, damaged = {}, []
    for path in paths:
        try:
            decoded[path] = pixels(path, counts)
        except _DAMAGE:
            damaged.append(path.name)
    if len(damaged) > _MOST_DAMAGED * len(paths):
        raise DataError(f"{len(damaged)} of {len(paths)} images are damaged, such as {', '.join(damaged[:3])}.", "Remove or replace them.")
    return decoded, damaged


def pixels(path: Path, counts: Counter[str] | None = None) -> np.ndarray:
    """An image as uint8 [1 or 3, H, W], by the rules above; `counts` counts their use."""
    counts = Counter() if counts is None else counts
    with _opened(path) as image:
        counts["animations_first_frame"] += getattr(image, "n_frames", 1) > 1
        upright = ImageOps.exif_transpose(image)
        counts["turned_by_exif"] += image.getexif().get(0x0112, 1) != 1
        array = np.asarray(_plain(upright, counts))
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


def _opened(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit follows
            image = Image.open(path)
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} is refused: {error}.", "Cut it into smaller images.") from error
    if image.width * image.height > MOST_PIXELS:
        image.close()
        raise DataError(f"{path} has {image.width} x {image.height} pixels; {MOST_PIXELS} are the most.", "Cut it into smaller images.")
    return image


def _plain(image: Image.Image, counts: Counter[str]) -> Image.Image | np.ndarray:
    """An 8-bit grey or RGB image."""
    if image.mode in ("1", "L", "RGB"):
        return image.convert("L") if image.mode == "1" else image
    if image.mode.startswith("I"):
        counts["from_16_bit"] += 1
        return (np.asarray(image).astype(np.int64).clip(0, 2**16 - 1) >> 8).astype(np.uint8)
    if image.mode == "F":
        raise ValueError("32-bit float pixels have no levels")
    counts["from_palette"] += image.mode in ("P", "PA")
    if image.has_transparency_data:
        counts["transparency_over_white"] += 1
        shown = image.convert("RGBA")
        shown = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown)
        return shown.convert("L" if image.mode in ("LA", "La") else "RGB")
    counts["from_other_colours"] += image.mode not in ("P", "PA")
    return image.convert("RGB")


def one_colour(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Grey images among RGB ones repeated thrice."""
    channels = max(len(a) for a in arrays)
    return [np.broadcast_to(a, (channels, *a.shape[1:])) for a in arrays]


def _stacked(paths: Sequence[Path], arrays: list[np.ndarray], options: Options, counts: Counter[str]) -> tuple[Tensor, np.ndarray]:
    """File number of each example, and the examples as one array."""
    if options.resize is not None:
        arrays = [_resized(a, options.resize) for a in arrays]
    if options.tile is not None:
        tiles = [_tiles(a, options.tile) for a in arrays]
        counts["smaller_than_a_tile"] += sum(not len(t) for t in tiles)
        counts["pixels_left_over"] += sum(a[0].size - len(t) * options.tile**2 for a, t in zip(arrays, tiles, strict=True))
        if not any(map(len, tiles)):
            raise DataError(f"No image is as large as a tile of {options.tile} x {options.tile}.")
        numbers = torch.arange(len(tiles)).repeat_interleave(torch.tensor([len(t) for t in tiles]))
        return numbers, np.concatenate(tiles)
    for path, array in zip(paths, arrays, strict=True):
        if array.shape != arrays[0].shape:
            sizes = [f"{p.name} is {a.shape[2]} x {a.shape[1]}" for p, a in ((paths[0], arrays[0]), (path, array))]
            raise DataError(f"The images have different sizes: {', '.join(sizes)}.", "Pass `resize` or `tile` (--resize N, --tile N).")
    return torch.arange(len(arrays)), np.stack(arrays)


def _resized(array: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Cut to the aspect of (height, width) about the centre, and resized by bicubic interpolation."""
    height, width = (size, size) if isinstance(size, int) else size
    image = Image.fromarray(np.ascontiguousarray(np.moveaxis(array, 0, -1).squeeze(-1) if len(array) == 1 else np.moveaxis(array, 0, -1)))
    out = np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC))
    return out[None] if out.ndim == 2 else np.moveaxis(out, -1, 0)


def _tiles(array: np.ndarray, side: int) -> np.ndarray:
    """[C, H, W] -> [tiles, C, side, side], row by row; what is left over at the right and below is cut off."""
    channels, rows, columns = len(array), array.shape[1] // side, array.shape[2] // side
    whole = array[:, : rows * side, : columns * side].reshape(channels, rows, side, columns, side)
    return whole.transpose(1, 3, 0, 2, 4).reshape(-1, channels, side, side)


def _quantized(array: np.ndarray, levels: int | None) -> tuple[Tensor, int]:
    """Values as int64; 256 levels, or as many as asked for, of equal width."""
    x = torch.from_numpy(array.astype(np.int64))
    if levels is None or levels == 256:
        return x, 256
    if not 2 <= levels < 256:
        raise DataError(f"Images of 8 bits cannot have {levels} levels.", "Pass 2 to 256.")
    return x * levels // 256, levels


def _placed(found: Examples, places: list[tuple[str, ...]], groups: Tensor) -> Examples:
    """Labels, and splits, from the folders that the files are in."""
    tops = {place[0].lower() if len(place) > 1 else "" for place in places}
    told = {"train", "test"} <= tops <= set(_PART_FOLDERS)
    if told:
        part = torch.tensor([_PART_FOLDERS[place[0].lower()] for place in places])
        found, places = replace(found, part=part[groups]), [place[1:] for place in places]
    names = [place[0] if len(place) > 1 else "" for place in places]
    classes = tuple(sorted(set(names) - {""}))
    if not classes:
        return found
    codes = torch.tensor([classes.index(name) if name else -1 for name in names])[groups]
    return replace(found, labels=codes[:, None], label_space=Space.label(classes), known=codes >= 0)
