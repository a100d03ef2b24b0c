"""Examples in the making -> files: images as a strip or an animation, texts line by line, anything as `.npz`.

What is hidden of an example is grey in images and `_` in texts.
"""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from likely.errors import UsageError
from likely.sources.output import check_free, made, sheet, to_8_bit
from likely.sources.tokens import decode
from likely.space import Space

__all__ = ["check_frames_path", "default_frames_path", "write_frames"]

_GREY, _LEAST = 128, 48  # of a hidden pixel; pixels that an image is enlarged to
_MILLISECONDS, _HELD = 120, 1500  # of a frame of an animation, and of its last


def write_frames(x: Tensor, hidden: Tensor, space: Space, path: str | PathLike[str], *, overwrite: bool = False) -> str:
    """Write frames x [frames, n, *shape] of n examples, of which `hidden` entries are not there yet.

    Returns: what was written, in a sentence.
    Raises: UsageError if the path exists (unless `overwrite`) or its suffix does not fit the data.
    """
    path = Path(path)
    check_frames_path(path, space, overwrite=overwrite)
    with made(path):
        _WRITERS[space.layout][path.suffix.lower()](x.cpu(), hidden.cpu(), space, path)
    return f"Wrote {len(x)} frames of {x.shape[1]} to {path}."


def check_frames_path(path: str | PathLike[str], space: Space, *, overwrite: bool = False) -> None:
    """Whether frames of such examples can go to `path`, before the work of drawing them."""
    path, writers = Path(path), _WRITERS[space.layout]
    if path.suffix.lower() not in writers:
        told = f"{space.layout.capitalize()} data in the making cannot be written to '{path}'."
        raise UsageError(told, f"Pass --out with a name that ends in {' or '.join(writers)}; .npz holds the arrays `x` and `hidden`.")
    check_free(path, overwrite=overwrite)


def default_frames_path(space: Space) -> Path:
    """A file for them in the current folder, which shows most of them at a glance where they can be shown."""
    return Path("trace" + next(iter(_WRITERS[space.layout])))


def _pixels(x: Tensor, hidden: Tensor, space: Space) -> np.ndarray:
    """uint8 [frames, n, C, H, W]; real images are stretched as they are at the end."""
    if not space.discrete:
        x = x.clamp(x[-1].min(), x[-1].max())
    shown = to_8_bit(x.flatten(0, 1), space).reshape(x.shape)
    return np.where(hidden.numpy(), np.uint8(_GREY), shown)


def _strip(x: Tensor, hidden: Tensor, space: Space, path: Path) -> None:
    """A row for each example, from noise on the left to the example on the right."""
    pixels = _pixels(x, hidden, space).swapaxes(0, 1)
    sheet(pixels.reshape(-1, *pixels.shape[2:]), 1, _LEAST, across=len(x)).save(path)


def _animation(x: Tensor, hidden: Tensor, space: Space, path: Path) -> None:
    frames = [_opaque(sheet(images, 1, _LEAST)) for images in _pixels(x, hidden, space)]
    held = [_MILLISECONDS] * (len(frames) - 1) + [_HELD]
    how: dict[str, Any] = {"lossless": True} if path.suffix.lower() == ".webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=held, loop=0, **how)


def _opaque(image: Image.Image) -> Image.Image:
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _text(x: Tensor, hidden: Tensor, space: Space, path: Path) -> None:
    blocks = []
    for i, (rows, masked) in enumerate(zip(x, hidden, strict=True), 1):
        lines = [_line(row, mask, space) for row, mask in zip(rows, masked, strict=True)]
        blocks.append(b"--- %d of %d ---\n" % (i, len(x)) + b"\n".join(lines))
    path.write_bytes(b"\n".join(blocks) + b"\n")


def _line(row: Tensor, hidden: Tensor, space: Space) -> bytes:
    """A text with `_` for each symbol that is hidden."""
    if not space.textual:
        return " ".join("_" if h else str(s) for s, h in zip(row.tolist(), hidden.tolist(), strict=True) if s >= 0 or h).encode()
    return b"".join(b"_" if h else decode(s[None], space.vocabulary) for s, h in zip(row, hidden, strict=True))


def _arrays(x: Tensor, hidden: Tensor, space: Space, path: Path) -> None:
    np.savez_compressed(path, x=x.numpy(), hidden=hidden.numpy())


_WRITERS: dict[str, dict[str, Callable[[Tensor, Tensor, Space, Path], None]]] = {
    "grid": {".png": _strip, ".gif": _animation, ".webp": _animation, ".npz": _arrays},
    "sequence": {".txt": _text, ".npz": _arrays},
    "columns": {".npz": _arrays},
    "set": {".npz": _arrays},
}
