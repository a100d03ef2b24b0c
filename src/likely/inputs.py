"""What a person has at hand, as verbs take it: a source or a `Data`, a stored model's folder or a `Model`, values by name, options."""

import inspect
from pathlib import Path
from typing import Any

from torch import Tensor

from likely import families, sources, store
from likely.abilities import Combined
from likely.dataset import Data
from likely.errors import UsageError, nearest
from likely.model import Model
from likely.space import Space

__all__ = [
    "READING",
    "as_data",
    "as_given",
    "as_model",
    "built_in_test",
    "card_of",
    "check_options",
    "reading_options",
    "space_of",
    "that_draws",
]

READING = ("layout", "tile", "resize", "precision", "missing", "header")  # options of `load` that new data are read by, too


def as_data(source: Any, **read: Any) -> Data:
    """`source` itself if it is a `Data`, else `likely.load(source, **read)`."""
    if isinstance(source, Data):
        if any(value not in (None, ()) for value in read.values()):
            raise UsageError(f"This data is loaded already; {', '.join(read)} cannot change it.", "Pass options to likely.load.")
        return source
    return sources.load(source, **read)


def as_model(model: Model | str | Path) -> Model:
    """A model, or the one stored in a folder."""
    return model if isinstance(model, Model) else store.open_model(model)


def space_of(model: Model | str | Path) -> Space:
    """The space of a model, or of the one stored in a folder, which is not loaded."""
    return model.space if isinstance(model, Model) else Space.from_json(store.read_config(model)["space"])


def as_given(given: Any, model: Model) -> Tensor | None:
    """Values of what a model is conditioned on as a tensor; a tensor is one already."""
    return given if given is None or isinstance(given, Tensor) else sources.given_values(given, model.given_space)


def built_in_test(source: Any, model: Model | str | Path) -> Any:
    """The test split of a `Data`, or of a built-in set that is named, conditioned as the model is; anything else as it is."""
    if isinstance(source, Data):
        return source.test
    if isinstance(source, str) and sources.is_builtin(source) and not Path(source).exists():
        return sources.load(source, given=card_of(model).get("options", {}).get("given")).test
    return source


def reading_options(model: Model | str | Path, read: dict[str, Any]) -> dict[str, Any]:
    """Options of reading new data: those of a stored model's fit, but for those in `read`."""
    options = {name: value for name, value in card_of(model).get("options", {}).items() if name in READING} | read
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


def card_of(model: Model | str | Path) -> dict[str, Any]:
    """The card of the data that a stored model was fitted to."""
    return {} if isinstance(model, Model) else store.read_config(model)["data"]


def that_draws(model: Model) -> Any:
    """The model whose methods' keywords are options of this one's: itself, or the part that it hands them on to."""
    while isinstance(model, Combined) and model.hands_on:
        model = model.members[-1]  # type: ignore[assignment]
    return model


def check_options(method: Any, how: dict[str, Any], what: str, *, without: tuple[str, ...] = ()) -> None:
    """Raise a UsageError for an option that is no keyword of a model's method, or whose value is of another kind."""
    parameters = inspect.signature(method).parameters.values()
    known = {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in without}
    for option, value in how.items():
        if option not in known:
            raise UsageError(f"This model's {what} has no option '{option}'.", nearest(option, known) if known else "It has none.")
        families.check_kind(f"this model's {what}", option, value, known[option])
