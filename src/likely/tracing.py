"""Examples in the making: what a model that draws them bit by bit has of them after its calls of the net."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from likely.abilities import Traced
from likely.errors import UsageError
from likely.inputs import as_given, as_model, check_options
from likely.model import Model
from likely.noise import seeded
from likely.verbs import families_with

__all__ = ["trace"]


@torch.no_grad()
def trace(model: Model | str | Path, n: int = 8, frames: int = 8, *, given: Any = None, seed: int = 0, **how: Any) -> tuple[Tensor, Tensor]:
    """n examples on their way: (x [frames, n, *shape] in data units, which of its entries are hidden), evenly spaced in calls of the net.

    Args:
        model: one that can be traced, or the folder of one.
        given: for a conditional model: a tensor, or values such as {"label": 3}.
        how: options of the model's `trace`, such as steps.

    Raises: UsageError for a model whose examples come all at once, or fewer than 2 frames.
    """
    fitted = as_model(model)
    if not isinstance(fitted, Traced):
        able = ", ".join(families_with("trace"))
        raise UsageError(f"{fitted.called} has nothing to show on the way.", f"Those that have: {able}.")
    if n < 1 or frames < 2:
        raise UsageError(f"{frames} frames of {n} examples show no way.", "Ask for at least 2 of 1.")
    check_options(fitted.trace, how, "sampler")
    with seeded(seed):
        *seen, last = fitted.trace(n, as_given(given, fitted), **how)
    shown = [*(seen[i * len(seen) // (frames - 1)] for i in range(min(frames - 1, len(seen)))), last]
    x, hidden = zip(*shown, strict=True)
    return torch.stack(x), torch.stack(hidden)
