"""Others like given examples, from files to files: image to image, row to row."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from likely import sources
from likely.abilities import Varied
from likely.dataset import Split
from likely.errors import UsageError
from likely.evaluation.measure import device_of
from likely.inputs import READING, as_given, as_model, built_in_test, check_options, reading_options, that_draws
from likely.model import Model, expand_given
from likely.noise import seeded
from likely.space import Space
from likely.verbs import families_with

__all__ = ["vary"]

_BATCH = 2**14  # entries of examples that are varied between two ticks


@torch.no_grad()
def vary(
    model: Model | str | Path,
    source: Any,
    strength: float = 0.5,
    *,
    draws: int = 1,
    given: Any = None,
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    **how: Any,
) -> Tensor:
    """Draws like each example, draw-major [draws * n, *shape] in data units; with `out`, also written as samples are.

    Args:
        source: a tensor in the model's codes, a `Data` (its test split), or a file or folder that is read as the data of the fit were.
        strength: how far to go, from 0 (all but the example itself) to 1 (anything).
        given: for a conditional model: a tensor, or values such as {"label": 3}; by default what the source itself holds.
        out: a file, or a folder in which images keep their names, of several draws with the number of the draw.
        progress: called with how many of how many are done.
        how: options of the model's own `vary`, such as `steps`; and of reading, as in `likely.load`.

    Raises: UsageError for a model that cannot vary, and for what it does not know; DataError for data that do not fit.
    """
    fitted = as_model(model)
    if not isinstance(fitted, Varied):
        raise UsageError(f"{fitted.called} cannot vary examples.", f"Those that can: {', '.join(families_with('vary'))}.")
    if draws < 1:
        raise UsageError(f"Cannot draw {draws} times.", "Ask for at least one draw.")
    own = {name: value for name, value in how.items() if name not in READING}
    check_options(that_draws(fitted).vary, own, "vary", without=("strength",))
    if out is not None:
        sources.check_path(out, fitted.space, overwrite=overwrite)
    values = as_given(given, fitted)
    reading = {name: value for name, value in how.items() if name in READING}
    split = _read(model, fitted, source, fitted.given_space if values is None else None, reading)
    values = expand_given(values, len(split.x))
    x = _drawn(fitted, Split(split.x, split.given if values is None else values), strength, draws, seed, progress, own)
    if out is not None:
        _write(x, fitted.space, source, draws, Path(out), overwrite=overwrite)
    return x


def _read(model: Model | str | Path, fitted: Model, source: Any, given: Space | None, reading: dict[str, Any]) -> Split:
    if source is None:
        raise UsageError("Nothing says what to vary.", "Pass a file.")
    source = Split(source) if isinstance(source, Tensor) else built_in_test(source, model)
    if isinstance(source, Split):
        return source.apart()
    return sources.read_split(source, fitted.space, given, **reading_options(model, reading))


def _drawn(
    model: Any, split: Split, strength: float, draws: int, seed: int, progress: Callable[[int, int], None] | None, own: dict[str, Any]
) -> Tensor:
    there, parts = device_of(model), [split.x[:0]]
    rows = torch.arange(len(split.x)).repeat(draws)
    with seeded(seed):
        for some in rows.split(max(1, _BATCH // model.space.dims)):
            x, given = split.rows(some)
            parts.append(model.vary(x.to(there), given if given is None else given.to(there), strength=strength, **own).to(x))
            if progress is not None:
                progress(sum(map(len, parts)), len(rows))
    return torch.cat(parts)


def _write(x: Tensor, space: Space, source: Any, draws: int, out: Path, *, overwrite: bool) -> None:
    """As samples are written, but for images in a folder, which keep their names."""
    pictures = sources.pictures_of(source) if space.layout == "grid" and not out.suffix else {}
    if pictures and len(pictures) * draws == len(x):  # and not cut into tiles
        sources.write_images(sources.to_8_bit(x, space), out, sources.retouched_names(pictures, draws))
    else:
        sources.write(x, space, out, overwrite=overwrite)
