"""A few examples as plain JSON, for reports that know no torch: a strip of images, points, table rows or text.

{"kind": "images", "png": base64, "columns": c}   {"kind": "points", "xy": [[x, y], ...]}
{"kind": "sets", "sets": [[[x, y], ...], ...]}, of points of more dimensions the first two
{"kind": "table", "columns": [...], "rows": [[...], ...]}   {"kind": "text", "excerpts": [...]}

Images that are conditioned on labels, numbers or texts have those, too: "given": [...].
"""

import base64
import io
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from likely import pointsets
from likely.sources.tokens import decode
from likely.space import MISSING, Space, Support, to_grid

__all__ = ["gallery"]

IMAGES, ROWS, COLUMNS, POINTS, EXCERPTS, SETS = 24, 5, 12, 500, 3, 6
_LARGEST = 64  # pixels of a thumbnail's longer side


def gallery(space: Space, x: Tensor, given_space: Space | None = None, given: Tensor | None = None) -> dict[str, Any]:
    """The first examples of x in a form that can be shown, images with what they are `given`, one row each."""
    if space.layout == "grid":
        told = [] if given_space is None or given is None else _conditions(given_space, given[: images(space)])
        return {"kind": "images", "png": _strip(space, x[: images(space)]), "count": min(len(x), images(space)), "given": told}
    if space.layout == "set":
        return {"kind": "sets", "sets": [_points(row) for row in x[:SETS]]}
    if space.layout == "sequence" and space.nominals:
        return {"kind": "text", "excerpts": [_text(space, row) for row in x[:EXCERPTS]]}
    if space.layout == "columns" and space.dims == 2 and not space.discrete:
        return {"kind": "points", "xy": [[round(v, 3) for v in row] for row in x[:POINTS].tolist()]}
    shown = space.supports[:COLUMNS]
    names = [s.name or f"x{i}" for i, s in enumerate(shown)]
    rows = [[_cell(s, v) for s, v in zip(shown, row)] for row in x[:ROWS].tolist()]
    return {"kind": "table", "columns": names, "rows": rows, "more": len(space.supports) - len(shown)}


def _conditions(space: Space, given: Tensor) -> list[str]:
    """A caption, or the values of each row; images and real series are left out."""
    if space.layout == "sequence" and space.nominals:
        return [_text(space, row) for row in given]
    if space.layout != "columns":
        return []
    return [", ".join(_cell(s, v) for s, v in zip(space.supports, row, strict=True)) for row in given.tolist()]


def _points(x: Tensor) -> list[list[float]]:
    """The points of one set on a plane; those in one dimension side by side in the order of the set."""
    points = x[pointsets.there(x)]
    plane = points[:, :2] if x.shape[1] > 1 else torch.stack([points[:, 0], torch.linspace(0, 1, len(points))], 1)
    return [[round(v, 3) for v in row] for row in plane[:POINTS].tolist()]


def images(space: Space) -> int:
    """How many images make a strip: 24, fewer of large ones, so that a report stays small."""
    side = min(max(space.shape[1:]), _LARGEST)
    return max(6, min(IMAGES, 24 * 32**2 // side**2))


def _strip(space: Space, x: Tensor) -> str:
    """Images side by side in one PNG, with a gutter of one pixel; base64."""
    from PIL import Image

    pixels = _bytes(space, x)
    step = max(1, math.ceil(max(pixels.shape[2:]) / _LARGEST))
    pixels = pixels[:, :, ::step, ::step]
    n, channels, height, width = pixels.shape
    canvas = np.zeros((height, n * (width + 1) - 1, 4), np.uint8)
    for i, image in enumerate(pixels):
        at = slice(i * (width + 1), i * (width + 1) + width)
        canvas[:, at, :3] = (image if channels == 3 else image[:1]).transpose(1, 2, 0)
        canvas[:, at, 3] = 255
    file = io.BytesIO()
    Image.fromarray(canvas).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _bytes(space: Space, x: Tensor) -> np.ndarray:
    """Values to 0..255: levels by their range, reals by three standard deviations about their mean."""
    scaled = []
    for i, s in enumerate(space.supports):
        v = x[:, i].double()
        scaled.append(v / max(s.levels - 1, 1) if s.levels else (v - s.center) / (6 * s.scale) + 0.5)
    return (255 * torch.stack(scaled, 1)).round().clamp(0, 255).to(torch.uint8).numpy()


def _text(space: Space, codes: Tensor) -> str:
    """Bytes, or those that tokens spell, as UTF-8, what is not valid as U+FFFD; symbols beyond bytes as numbers."""
    if space.vocabulary or not bool((codes > 255).any()):
        return decode(codes, space.vocabulary).decode("utf-8", "replace")
    return " ".join(map(str, codes[codes >= 0].tolist()))


def _cell(s: Support, value: float) -> str:
    if (s.missing and value == MISSING) or value != value:
        return "–"
    if s.kind == "nominal":
        return s.categories[int(value)] if int(value) < len(s.categories) else str(int(value))
    if s.kind == "decimal":
        index = int(to_grid(torch.tensor(int(value)))) + s.origin
        return f"{index / 10**s.decimals:.{max(0, s.decimals)}f}"
    return f"{value:.4g}"
