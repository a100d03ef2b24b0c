"""Arrays, tensors and torch datasets -> examples.

Layout, unless `layout` says otherwise: [N] and [N, D] are tables, [N, H, W] grey images, [N, H, W, C] with C of 1, 3 or 4
and [N, C, H, W] images, a list of arrays [n_i, D] point sets (arrays of sets [N, n, D] are padded with NaN, or -1 where integer).
Values: bool has 2 levels, uint8 256, other integers of images and sequences 0..max; integers of tables lie on an unbounded
grid unless `levels` is given; floats have a density.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from likely.errors import DataError, UsageError, nearest
from likely.sources.captions import asked_for, captioned
from likely.sources.examples import Examples, Options
from likely.space import Space, Support, from_grid

__all__ = ["LAYOUTS", "array_examples", "as_numpy", "dataset_examples", "label_examples", "ragged_examples"]

LAYOUTS = ("grid", "nhwc", "sequence", "columns", "set")
_MOST_LEVELS = 2**16


def as_numpy(array: Any) -> np.ndarray:
    """A numpy array of a tensor or of anything array-like.

    Raises: DataError for types that are not bool, integer or float.
    """
    array = array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)
    if array.dtype.kind not in "biuf":
        raise DataError(f"Arrays of type {array.dtype} cannot be read.", "Use bool, integer or float values.")
    return array


def array_examples(array: Any, options: Options, labels: Any = None) -> Examples:
    """One array of examples, and their labels if there are any."""
    array = as_numpy(array)
    if array.ndim == 0 or array.size == 0:
        raise DataError(f"Got an empty array of shape {array.shape}.")
    layout = _layout(array, options.layout)
    if layout == "set" and (missing := np.isnan(array) if array.dtype.kind == "f" else array == -1).any():
        present = ~missing.all(2)
        return _labelled(ragged_examples([row[there] for row, there in zip(array, present, strict=True)], options), labels, options)
    _check_finite(array)
    array = _arranged(array, layout)
    space, x, notes = _typed(array, layout, options)
    return _labelled(Examples(space, x, notes=notes), labels, options)


def _labelled(found: Examples, labels: Any, options: Options) -> Examples:
    """With labels if there are any, as captions where those are asked for."""
    if labels is None:
        return found
    return captioned(found, list(labels)) if asked_for(options.given) else label_examples(found, labels)


def label_examples(examples: Examples, labels: Any) -> Examples:
    """`examples` with class labels (integers or strings [N]) or vectors (floats [N, D]); NaN, None, "" and -1 are missing."""
    values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if len(values) != len(examples.x):
        raise DataError(f"Got {len(values)} labels for {len(examples.x)} examples.")
    _check_range(values)
    if values.dtype.kind == "f" and values.ndim > 1:
        known = torch.from_numpy(np.isfinite(values).all(1))
        given, space = torch.from_numpy(values).float(), Space.reals(values.shape[1])
    else:
        given, space, known = _classes(values.reshape(-1) if values.size == len(values) else values)
    return replace(examples, labels=given, label_space=space, known=known)


def _classes(values: np.ndarray) -> tuple[Tensor, Space, Tensor]:
    """Codes [N, 1] of the sorted distinct labels, their space, and which are known."""
    if values.ndim != 1:
        raise DataError(f"Got labels of shape {values.shape}, expected one per example.")
    if values.dtype.kind == "f":
        known = np.isfinite(values) & (values != -1)
        if not (values[known] == np.floor(values[known])).all():
            return torch.from_numpy(values).float()[:, None], Space.reals(1), torch.from_numpy(known)
        values = np.where(known, values, -1).astype(np.int64)
    known = values != -1 if values.dtype.kind in "iu" else np.array([v is not None and str(v) != "" for v in values.tolist()])
    names, codes = np.unique(values[known], return_inverse=True) if values.dtype.kind != "O" else _unique_names(values[known])
    if not len(names):
        raise DataError("Not one example has a label.")
    given = torch.full((len(values), 1), -1)
    given[torch.from_numpy(known), 0] = torch.from_numpy(codes).long()
    return given, Space.label(tuple(map(str, names.tolist()))), torch.from_numpy(known)


def _unique_names(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.unique(np.array([str(v) for v in values.tolist()]), return_inverse=True)


def _check_finite(array: np.ndarray) -> None:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(array))
        raise DataError(
            f"{len(bad)} values are NaN or infinite (the first at {tuple(bad[0].tolist())}).",
            "Remove or impute them; a DataFrame or CSV may have missing cells.",
        )
    _check_range(array)


def _check_range(array: np.ndarray) -> None:
    """Whether floats stay finite as the float32 they are kept as."""
    if array.dtype.kind != "f" or array.dtype.itemsize <= 4:
        return
    over = np.argwhere(np.isfinite(array) & (np.abs(array) > np.finfo(np.float32).max))
    if len(over):
        where, column = tuple(over[0].tolist()), f"Column {over[0, 1]}" if array.ndim == 2 else "The array"
        raise DataError(f"{column} has the value {array[where]:.3g} (at {where}), beyond the 3.4e38 of float32.", "Rescale it.")


def _layout(array: np.ndarray, asked: str | None) -> str:
    if asked is not None and asked not in LAYOUTS:
        raise UsageError(f"Unknown layout '{asked}'.", nearest(asked, LAYOUTS))
    layout = asked or ("columns" if array.ndim <= 2 else "grid")
    ranks = {"grid": (3, 4), "nhwc": (4,), "sequence": (2,), "columns": (1, 2), "set": (3,)}[layout]
    if array.ndim not in ranks:
        raise DataError(f"An array of shape {array.shape} cannot be read as {layout} data.", "Say what it is by `layout`, or reshape it.")
    if layout == "sequence" and array.dtype.kind == "f":
        raise DataError("Real-valued sequences (time series, audio) cannot be modelled yet.", "Use layout='columns' for vectors.")
    last_is_channels = array.ndim == 4 and array.shape[-1] in (1, 3, 4) and array.shape[1] not in (1, 3, 4)
    return "nhwc" if layout == "grid" and asked is None and last_is_channels else layout


def _arranged(array: np.ndarray, layout: str) -> np.ndarray:
    if layout == "nhwc":
        return np.moveaxis(array, -1, 1)
    if layout == "grid" and array.ndim == 3:
        return array[:, None]
    return array[:, None] if layout == "columns" and array.ndim == 1 else array


def _typed(array: np.ndarray, layout: str, options: Options) -> tuple[Space, Tensor, dict[str, Any]]:
    """The space of an arranged array, and its values as tensor."""
    whole = array.dtype.kind != "f" or bool((array == np.floor(array)).all())
    if array.dtype.kind == "f" and (options.levels is None or not whole):
        if options.levels is not None:
            raise DataError(f"Got levels={options.levels}, but values such as {array[array != np.floor(array)][0]:.6g} are not whole.")
        warning = "all values are whole numbers, so a density of them has no limit: pass `levels`"
        return _real_space(array, layout), torch.from_numpy(array.astype(np.float32)), {"warning": warning} if whole else {}
    x = torch.from_numpy(array.astype(np.int64))
    levels = _levels(array, layout, options.levels)
    if levels is None:
        return *_integer_table(x), {}
    _check_levels(x, levels)
    return _integer_space(array.shape[1:], layout, levels), x, {}


def _levels(array: np.ndarray, layout: str, asked: int | None) -> int | None:
    """Number of levels by the rules above; None for the unbounded grid of a table."""
    if asked is not None:
        return asked
    if array.dtype.kind == "b":
        return 2
    if layout == "columns":
        return None
    return 256 if array.dtype == np.uint8 else int(array.max()) + 1


def _check_levels(x: Tensor, levels: int) -> None:
    low, high = int(x.min()), int(x.max())
    if low < 0 or high >= levels:
        raise DataError(f"Values {low}..{high} are outside 0..{levels - 1}.", "Shift them, or pass larger `levels`.")
    if not 2 <= levels <= _MOST_LEVELS:
        raise DataError(f"{levels} levels are outside 2..{_MOST_LEVELS}.", "Rescale the values, or convert them to floats for a density.")


def _real_space(array: np.ndarray, layout: str) -> Space:
    if layout == "columns":
        return Space.reals(array.shape[1])
    return Space.points(array.shape[1], array.shape[2]) if layout == "set" else Space.grid(array.shape[1], array.shape[2], array.shape[3])


def _integer_space(shape: tuple[int, ...], layout: str, levels: int) -> Space:
    if layout == "sequence":
        return Space.sequence(shape[0], levels)
    if layout == "set":
        return Space.points(shape[0], shape[1], levels)
    if layout == "columns":
        return Space.columns(*(Support("ordinal", levels, f"x{i}", center=levels / 2, scale=levels / 12**0.5) for i in range(shape[0])))
    return Space.grid(shape[0], shape[1], shape[2], levels)


def _integer_table(x: Tensor) -> tuple[Space, Tensor]:
    """Each column on the grid of the integers, counted from its smallest value."""
    origins = x.amin(0)
    supports = (Support("decimal", name=f"x{i}", origin=int(origin)) for i, origin in enumerate(origins))
    return Space.columns(*supports), from_grid(x - origins)


def ragged_examples(arrays: Sequence[Any], options: Options) -> Examples:
    """A list of point sets [n_i, D] -> sets of at most max n_i points, padded with -1 (NaN where real)."""
    points = [as_numpy(a) for a in arrays]
    if options.layout not in (None, "set") or any(p.ndim != 2 or not len(p) or p.shape[1] != points[0].shape[1] for p in points):
        raise DataError("A list of arrays of different shapes is read as point sets: each must be [points >= 1, dimensions].")
    for p in points:
        _check_finite(p)
    longest, real = max(map(len, points)), any(p.dtype.kind == "f" for p in points)
    x = np.full((len(points), longest, points[0].shape[1]), np.nan if real else -1)
    for row, p in zip(x, points, strict=True):
        row[: len(p)] = p
    if real:
        return Examples(Space.points(longest, x.shape[2], variable=True), torch.from_numpy(x).float())
    levels = options.levels or int(x.max()) + 1
    _check_levels(torch.from_numpy(np.concatenate(points)), levels)
    return Examples(Space.points(longest, x.shape[2], levels, variable=True), torch.from_numpy(x).long())


def dataset_examples(dataset: Any, options: Options) -> Examples:
    """A map-style torch dataset of tensors (or images), or of (tensor, label) pairs."""
    items = [dataset[i] for i in range(len(dataset))]
    if not items:
        raise DataError("The dataset is empty.")
    pairs = isinstance(items[0], tuple | list)
    if pairs and len(items[0]) > 2:
        raise DataError(f"The dataset's items have {len(items[0])} parts, expected a tensor, or a tensor and its label.")
    values = [as_numpy(item[0] if pairs else item) for item in items]
    if len({v.shape for v in values}) > 1:
        return ragged_examples(values, options)
    labels = [as_numpy(item[1]) if isinstance(item[1], Tensor) else item[1] for item in items] if pairs and len(items[0]) == 2 else None
    return array_examples(np.stack(values), options, labels)
