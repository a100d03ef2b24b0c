"""Augmentation of training images: "flip" mirrors half of them, "shift" moves each by up to an eighth of its side.

A model of augmented images is a model of other images; it is scored on the test images as they are.
"""

from typing import Any

import torch
from torch import Tensor

from likely.errors import UsageError, nearest
from likely.space import Space

__all__ = ["AUGMENTATIONS", "augment_batch", "check_augment"]


def _flip(x: Tensor, generator: torch.Generator | None) -> Tensor:
    mirrored = torch.rand(len(x), 1, 1, 1, generator=generator).to(x.device) < 0.5
    return torch.where(mirrored, x.flip(-1), x)


def _shift(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Each image moved by whole pixels; what comes in repeats the edge."""
    for axis in (2, 3):
        side = x.shape[axis]
        reach = max(1, side // 8)
        by = torch.randint(-reach, reach + 1, (len(x), 1), generator=generator)
        place = (torch.arange(side) + by).clamp(0, side - 1).to(x.device)
        shape = [len(x), 1, 1, 1]
        shape[axis] = side
        x = x.gather(axis, place.view(shape).expand_as(x))
    return x


AUGMENTATIONS = {"flip": _flip, "shift": _shift}


def check_augment(names: tuple[str, ...], space: Space) -> None:
    """Raise a `UsageError` for an augmentation that does not exist, or data that are no images."""
    for name in names:
        if name not in AUGMENTATIONS:
            raise UsageError(f"Unknown augmentation '{name}'.", nearest(name, AUGMENTATIONS))
    if names and space.layout != "grid":
        raise UsageError(f"Only images can be augmented, not {space.layout} data.")


def augment_batch(x: Tensor, card: dict[str, Any], generator: torch.Generator | None = None) -> Tensor:
    """A training batch [batch, C, H, W] with what the data's card asks for; `x` itself where that is nothing.

    Args:
        generator: a CPU generator; torch's global one by default.
    """
    for name in card.get("augment", ()):
        x = AUGMENTATIONS[name](x, generator)
    return x
