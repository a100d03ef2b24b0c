"""Images of files with some of their pixels filled in, and all else as it was, under the names that they had."""

from collections import Counter
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from likely.sources.files import list_files
from likely.sources.images import decode_all, is_image, one_colour
from likely.sources.output import to_8_bit
from likely.space import Space

__all__ = ["Pictures", "pictures_of", "reduction", "retouched", "retouched_names"]

Pictures = dict[Path, np.ndarray]  # uint8 [C, H, W], by path below the folder that holds them


def pictures_of(source: Any) -> Pictures:
    """The images of a file, or of a folder in the order in which it is read; none of anything else."""
    if not isinstance(source, str | PathLike) or not Path(source).exists():
        return {}
    source = Path(source)
    folder, paths = (source, list_files(source)) if source.is_dir() else (source.parent, [source])
    if not any(map(is_image, paths)):
        return {}
    found, _ = decode_all([p for p in paths if is_image(p)], Counter())
    return {path.relative_to(folder): array for path, array in zip(found, one_colour(list(found.values())), strict=True)}


def retouched(x: Tensor, known: Tensor, space: Space, pictures: Pictures) -> np.ndarray:
    """Draws [draws, n, C, H, W], known [n, C, H, W] -> uint8 [draws * n, C, H, W].

    What is known of a picture that is as large as the model's images is copied from it, as it has more levels than the model may have.
    """
    images = to_8_bit(x.flatten(0, 1), space).reshape(x.shape)
    for i, picture in enumerate(pictures.values() if space.discrete else ()):
        if picture.shape == space.shape:
            images[:, i] = np.where(known[i].numpy(), picture, images[:, i])
    return images.reshape(-1, *space.shape)


def reduction(space: Space, pictures: Pictures, *, coded: bool) -> str:
    """What of the known pixels is not as it was, in a sentence; `coded` where codes are written, and no picture."""
    levels = f"{space.levels} levels" if space.levels not in (None, 256) else ""
    if any(picture.shape != space.shape for picture in pictures.values()):
        size = f"{space.shape[2]} x {space.shape[1]} pixels"
        return f"Images were resized to {size}{levels and f' of {levels}'}, known pixels with them."
    if not levels or not pictures:
        return ""
    return f"All pixels were reduced to {levels}." if coded else f"What was drawn has {levels}; what was known is as it was."


def retouched_names(pictures: Pictures, draws: int) -> Sequence[str]:
    """A name for each image of each draw: its own as a PNG, of several draws with the number of the draw."""
    paths = list(pictures)
    stems = [path.with_suffix("") for path in paths]
    stems = stems if len(set(stems)) == len(stems) else paths
    return [f"{stem}{f'-{draw + 1}' if draws > 1 else ''}.png" for draw in range(draws) for stem in stems]
