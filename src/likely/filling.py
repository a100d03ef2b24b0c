"""Fill what is unknown of examples: `likely.fill`, and `likely edit`, which also writes what was filled in the source's own form.

A text may be longer than the window that its model was fitted to. Its gaps are then filled window by window from the left,
each window centred on the first gap that is left; what it draws in its last quarter, near the end of its view, is
drawn again by the next one. A shorter text is filled as the beginning of a window, whose rest is drawn, too, and dropped.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from likely import sources, store
from likely.abilities import Fillable, Filled
from likely.errors import UsageError
from likely.evaluation.measure import device_of
from likely.inputs import READING, as_given, as_model, built_in_test, check_options, reading_options, space_of
from likely.model import Model, expand_given
from likely.noise import seeded
from likely.sources.files import suffix
from likely.space import MISSING, Space
from likely.verbs import families_with

__all__ = ["Edited", "edit", "fill"]

Tick = Callable[[int, int], None]  # how much of how much is done
_BATCH = 2**12  # entries of examples that are filled between two ticks


def fill(
    model: Model | str | Path,
    x: Any,
    known: Any = None,
    *,
    draws: int = 1,
    given: Any = None,
    seed: int = 0,
    gap: str = sources.GAP,
    boxes: Sequence[sources.Box] = (),
    progress: Tick | None = None,
    **how: Any,
) -> Filled:
    """Draw what is unknown of examples given what is known of them: paint in images, complete texts, impute tables.

    Args:
        x: a tensor in the model's codes; a table (path or DataFrame), whose missing cells are unknown; a text (a string or bytes,
            or the `Path` of its file), each `gap` in which is one unknown byte; or images (path or array).
        known: bool, True where an entry is known, of a shape that broadcasts to that of x; or the path of an image that is
            white where it is unknown. Left out, a table or a text says itself what is unknown.
        draws: of each example, independent of each other.
        given: for a conditional model: a tensor, or values such as {"label": 3}; by default what the source itself holds.
        boxes: unknown rectangles of images, (left, top, right, bottom) in pixels.
        progress: called with how much of how much is done.
        how: options of the model's own `fill`, such as `particles`; and of reading, as in `likely.load`.

    Returns: a `Filled`, whose x is [draws, batch, *shape], of a text [draws, 1, its length].

    Raises: UsageError for a model that cannot fill; DataError where nothing is unknown, or the data do not fit.
    """
    return _drawn(_read(model, x, known, given, gap, boxes, how), draws, seed, progress)


@dataclass(frozen=True)
class Edited:
    """What `edit` has done: the draws, how many entries of how many examples were unknown, the texts, where they are texts,
    and in a sentence each what of the source the model does not tell apart."""

    filled: Filled
    entries: int
    examples: int
    texts: tuple[bytes, ...] = ()
    notes: tuple[str, ...] = ()


def edit(
    model: Model | str | Path,
    source: Any = None,
    known: Any = None,
    *,
    text: str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    draws: int = 1,
    seed: int = 0,
    progress: Tick | None = None,
    given: Any = None,
    gap: str = sources.GAP,
    boxes: Sequence[sources.Box] = (),
    **how: Any,
) -> Edited:
    """`fill` examples of a file, or a `text`, and write them to `out`.

    A CSV file stays as it is but for the cells that were empty; several draws of it stand one after another, with their number in a
    first column. A text stays as it is but for its gaps. Images are written as they are sampled: one as a picture of its own,
    several side by side, or in a folder, under the names that they had. Known pixels stay as they are, unless an image was resized.
    """
    space = space_of(model)
    if (source is None) == (text is None):
        raise UsageError("Nothing says what to edit." if text is None else "Both a file and a text were passed.", "Pass a file, or --text.")
    if text is not None and not space.textual:
        raise UsageError(f"The model is of a {space.named}, and so cannot edit a text.", "Pass a file of such data.")
    _check_concerned(space, gap, how)
    if out is not None:
        sources.check_path(out, space, overwrite=overwrite)
    source = Path(source) if space.textual and isinstance(source, str) else source
    case = _read(model, source if text is None else text, known, given, gap, boxes, how)
    filled = _drawn(case, draws, seed, progress)
    texts = tuple(sources.decode(row) for row in filled.x[:, 0]) if space.textual else ()
    pictures = sources.pictures_of(source) if space.layout == "grid" else {}
    if out is not None:
        _write(filled, case, source, Path(out), texts, pictures, overwrite=overwrite)
    unknown = ~case.gapped.known.flatten(1)
    notes = _unseen(case) if space.layout == "columns" else [sources.reduction(space, pictures, coded=_coded(out))]
    return Edited(filled, int(unknown.sum()), int(unknown.any(1).sum()), texts, tuple(filter(None, notes)))


# -- what is asked ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Case:
    """A model that fills, examples with gaps, what is given with them, and options: of the model's `fill`, and of reading."""

    model: Any
    gapped: sources.Gapped
    given: Tensor | None
    how: dict[str, Any]
    reading: dict[str, Any]

    def fill(self, x: Tensor, known: Tensor, given: Tensor | None) -> Filled:
        """One draw of rows, where the model is; what comes back is where x is."""
        there = device_of(self.model)
        part = self.model.fill(x.to(there), known.to(there), None if given is None else given.to(there), **self.how)
        return replace(part, x=part.x.to(x), effective=part.effective.to(x.device))


def _read(
    model: Model | str | Path, source: Any, known: Any, given: Any, gap: str, boxes: Sequence[sources.Box], how: dict[str, Any]
) -> _Case:
    fitted = as_model(model)
    if not isinstance(fitted, Fillable):
        raise UsageError(f"{fitted.called} cannot fill what is unknown.", f"Those that can: {', '.join(families_with('fill'))}.")
    own = {name: value for name, value in how.items() if name not in READING}
    check_options(fitted.fill, own, "fill")
    reading = reading_options(model, {name: value for name, value in how.items() if name in READING})
    literal = fitted.space.textual and isinstance(source, str)  # a text, also where it reads like a built-in set's name
    source = source if literal else built_in_test(source, model)
    values = as_given(given, fitted)
    wanted = fitted.given_space if values is None else None
    gapped = sources.gapped(source, known, fitted.space, wanted, gap=gap, boxes=boxes, **reading)
    values = expand_given(values, len(gapped.x))
    return _Case(fitted, gapped, gapped.given if values is None else values, own, reading)


_CONCERN = {"grid": ("layout", "resize"), "columns": ("layout", "precision", "missing", "header")}


def _check_concerned(space: Space, gap: str, how: dict[str, Any]) -> None:
    """Raise a UsageError for an option of reading that does not concern data of a space."""
    concern = () if space.textual else _CONCERN.get(space.layout, ("layout",))
    idle = [name for name in how if name in READING and name not in concern] + ["gap"] * (gap != sources.GAP and not space.textual)
    if idle:
        raise UsageError(f"--{idle[0]} does not concern a {space.named}.", "Leave it out.")


# -- draws --------------------------------------------------------------------------------------


def _drawn(case: _Case, draws: int, seed: int, tick: Tick | None) -> Filled:
    if draws < 1:
        raise UsageError(f"Cannot draw {draws} times.", "Ask for at least one draw.")
    space, tick = case.model.space, tick or (lambda done, total: None)
    with seeded(seed), torch.no_grad():
        if space.textual and len(case.gapped.x) == 1 and case.gapped.x.shape[1:] != space.shape:
            return _filled_text(case, draws, tick)
        return _filled_rows(case, draws, tick)


def _filled_rows(case: _Case, draws: int, tick: Tick) -> Filled:
    """All examples of all draws that have gaps, those with like gaps together."""
    x, known, given = (None if v is None else v.repeat(draws, *[1] * (v.ndim - 1)) for v in (case.gapped.x, case.gapped.known, case.given))
    assert x is not None
    assert known is not None
    effective, done, parts = torch.full((len(x),), math.inf, dtype=torch.float64, device=x.device), 0, []
    _, mask = known.flatten(1).unique(dim=0, return_inverse=True)
    rows = mask.argsort(stable=True)
    rows = rows[~known.flatten(1).all(1)[rows]]
    filled = x.clone()
    for some in rows.split(max(1, _BATCH // case.model.space.dims)):
        part = case.fill(x[some], known[some], None if given is None else given[some])
        filled[some], effective[some] = part.x[0], part.effective[0]
        parts, done = [*parts, part], done + len(some)
        tick(done, len(rows))
    return _as_one(filled.view(draws, -1, *x.shape[1:]), effective.view(draws, -1), parts)


def _as_one(x: Tensor, effective: Tensor, parts: Sequence[Filled]) -> Filled:
    how = next((part.how for part in parts if not part.exact), parts[0].how)
    return Filled(x, all(part.exact for part in parts), effective, how)


def _filled_text(case: _Case, draws: int, tick: Tick) -> Filled:
    """One text of another length than a window; see above."""
    (text,), (known,) = case.gapped.x, case.gapped.known
    length, window = len(text), case.model.space.shape[0]
    if case.model.space.variable and length > window:
        raise UsageError(f"The text has {length} symbols, {window} are the most.", "Shorten it.")
    given = None if case.given is None else case.given.expand(draws, *case.given.shape[1:])
    x, left, parts = text.expand(draws, -1).clone(), (~known).nonzero()[:, 0].tolist(), []
    effective, total = torch.full((draws,), math.inf, dtype=torch.float64, device=text.device), len(left)
    while left:
        begin = max(0, min(left[0] - window // 2, length - window))
        end = length if begin + window >= length else max(left[0] + 1, begin + window - window // 4)
        seen = slice(begin, min(begin + window, length))
        settled = torch.ones(length, dtype=torch.bool, device=text.device).index_fill(0, torch.tensor(left, device=text.device), False)
        part = case.fill(*_windowed(case, x[:, seen], settled[seen]), given)
        now = [place for place in left if place < end]
        x[:, now] = part.x[0][:, [place - begin for place in now]]
        effective, parts, left = torch.minimum(effective, part.effective[0]), [*parts, part], left[len(now) :]
        tick(total - len(left), total)
    filled = _as_one(x[:, None], effective[:, None], parts)
    return filled if length <= window else replace(filled, exact=False, how=f"{filled.how}, in windows of {window} symbols")


def _windowed(case: _Case, x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Texts [draws, at most a window] and what is known of them as whole windows: what follows is unknown, or known to be nothing."""
    space = case.model.space
    beyond = space.shape[0] - x.shape[1]
    return F.pad(x, (0, beyond), value=MISSING), F.pad(known, (0, beyond), value=space.variable).expand(len(x), -1)


# -- files --------------------------------------------------------------------------------------


def _write(
    filled: Filled, case: _Case, source: Any, out: Path, texts: tuple[bytes, ...], pictures: sources.Pictures, *, overwrite: bool
) -> None:
    space = case.model.space
    if space.layout == "columns" and sources.is_csv(source) and suffix(Path(source)) == out.suffix.lower():
        draws = [_cells(x.cpu(), case) for x in filled.x]
        store.write_atomically(out, sources.patched_csv(Path(source), draws, case.reading.get("header")))
    elif len(texts) == 1 and out.suffix.lower() == ".txt":
        store.write_atomically(out, texts[0])
    elif pictures and not _coded(out):
        images = sources.retouched(filled.x.cpu(), case.gapped.known.cpu(), space, pictures)
        sources.write_images(images, out, () if out.suffix else sources.retouched_names(pictures, len(filled.x)))
    else:
        sources.write(filled.x.flatten(0, 1), space, out, overwrite=overwrite)


def _coded(out: str | Path | None) -> bool:
    """Whether what is written are a model's codes."""
    return out is None or Path(out).suffix.lower() == ".npz"


def _cells(x: Tensor, case: _Case) -> dict[tuple[int, str], str]:
    """What was unknown of a table, as text, by row and column."""
    spelt = list(sources.spelt_columns(x, case.model.space).items())
    return {(i, spelt[j][0]): spelt[j][1][i] for i, j in (~case.gapped.known).nonzero().tolist()}


def _unseen(case: _Case) -> list[str]:
    """Of each column how many of its known cells hold a category that the model does not know."""
    x, known, told = case.gapped.x, case.gapped.known, []
    for j, s in enumerate(case.model.space.supports):
        others = (x[:, j] == s.categories.index(sources.OTHER)) & known[:, j] if sources.OTHER in s.categories else known[:0, j]
        if rows := (others.nonzero()[:, 0] + 1).tolist():
            more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
            told.append(f"Column '{s.name}', row {rows[0]}{more}: a category unknown to the model, which takes it for {sources.OTHER}.")
    return told
