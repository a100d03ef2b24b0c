"""Arguments and options that verbs of the command line share, spelt alike everywhere."""

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from likely.errors import UsageError

__all__ = [
    "DataArg",
    "DeviceOption",
    "FolderArg",
    "GivenOption",
    "OutOption",
    "OverwriteOption",
    "SeedOption",
    "SizeOption",
    "ValuesOption",
    "WeightsOption",
    "extra_options",
    "family_options",
    "idle",
    "named_family",
    "read_box",
    "read_pair",
    "reads",
]

DataArg = Annotated[str, typer.Argument(metavar="DATA", help="Built-in name, folder or file.", show_default=False)]
FolderArg = Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="Folder of a stored model.", show_default=False)]
OutOption = Annotated[Path | None, typer.Option("--out", help="Where results go.", show_default=False)]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what is at --out.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Of everything random.")]
SizeOption = Annotated[str, typer.Option("--size", help="tiny, small or base: one dial of size.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
_CONDITIONS = "What to condition on: label, caption, or columns of a table."
GivenOption = Annotated[str | None, typer.Option("--given", help=_CONDITIONS, show_default=False)]
_VALUES = "Values to condition on: label=3, or 'caption=a red square'."
ValuesOption = Annotated[str | None, typer.Option("--given", help=_VALUES, show_default=False)]

_READING = "How DATA is read"
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="COLUMN",
        help="Column of a table that says how many times each row counts.",
        rich_help_panel=_READING,
        show_default=False,
    ),
]


def _option(kind: Any, name: str, told: str, **more: Any) -> Any:
    return Annotated[kind, typer.Option(f"--{name}", help=told, rich_help_panel=_READING, show_default=False, **more)]


def _number_or_word(value: str) -> int | str:
    return int(value) if value.isdecimal() else value


# Options of `likely.load`, by its argument. None, the default of each, leaves it to `load`.
_OF_READING: dict[str, Any] = {
    "levels": _option(int | None, "levels", "Values 0..levels-1 of integers; of images, what 256 are reduced to."),
    "layout": _option(str | None, "layout", "grid, nhwc, sequence or columns, where an array's shape does not say enough."),
    "window": _option(int | None, "window", "Bytes (or tokens) per training example of a text; 128 by default."),
    "tokens": _option(
        Any, "tokens", "Tokens of a text: so many byte pairs, or `words`; bytes by default.", parser=_number_or_word, metavar="N|words"
    ),
    "tile": _option(int | None, "tile", "Cut images of mixed sizes into tiles of this side."),
    "resize": _option(int | None, "resize", "Resize images to this side."),
    "precision": _option(int | None, "precision", "Most decimals of a table's numbers; those that have more are rounded."),
    "missing": _option(list[str] | None, "missing", "A further spelling of a missing cell (repeatable)."),
    "nominal": _option(list[str] | None, "nominal", "A column whose numbers are names (repeatable)."),
    "header": _option(bool | None, "header/--no-header", "Whether a table's first row names its columns; found out by default."),
    "missing_labels": _option(str | None, "missing-labels", "error, or drop to leave out examples without a label."),
    "augment": _option(list[str] | None, "augment", "flip or shift, on training images only (repeatable)."),
    "split_seed": _option(int | None, "split-seed", "Of the split into training, validation and test; 0 by default."),
}


def reads(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb options of reading, all or those named; it gets those that were used as a dict, `read`."""
    chosen = {name: kind for name, kind in _OF_READING.items() if not names or name in names}

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(verb)
        own = [p for p in signature.parameters.values() if p.name != "read"]
        more = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind) for name, kind in chosen.items()]

        @wraps(verb)
        def wrapped(*args: Any, **options: Any) -> None:
            read = {name: value for name in chosen if (value := options.pop(name)) is not None}
            if "split_seed" in read:
                read["seed"] = read.pop("split_seed")
            verb(*args, read={name: tuple(value) if isinstance(value, list) else value for name, value in read.items()}, **options)

        wrapped.__signature__ = signature.replace(parameters=own + more)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {p.name: p.annotation for p in own + more}
        return wrapped

    return decorate


def read_box(text: str) -> tuple[int, ...]:
    """x0,y0,x1,y1 in pixels."""
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isdecimal() for part in parts):
        raise typer.BadParameter(f"'{text}' is not x0,y0,x1,y1.")
    return tuple(map(int, parts))


def read_pair(text: str) -> tuple[int, int]:
    """I,J: two row numbers."""
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise typer.BadParameter(f"'{text}' is not I,J.")
    return int(parts[0]), int(parts[1])


def extra_options(args: list[str]) -> dict[str, Any]:
    """`--name value`, `--name=value` and bare `--flag` of options that typer does not know, as Python values."""
    from likely.names import plain_value

    found: dict[str, Any] = {}
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise UsageError(f"Unexpected argument '{word}'.", "The family comes right after DATA, its options are written --name value.")
        name, sign, text = word[2:].partition("=")
        if not sign:
            text = rest.pop(0) if rest and not rest[0].startswith("--") else "True"
        found[name.replace("-", "_")] = plain_value(text)
    return found


def idle(why: str, **options: Any) -> None:
    """Raise a UsageError for the first option that was used, since it means nothing."""
    for name, value in options.items():
        if value is not None:
            raise UsageError(f"{why}, so --{name} means nothing.", "Leave one of the two out.")


def named_family(model: str | None, args: list[str], start: Path | None) -> tuple[str, list[str]]:
    """The family, and its options. Where none was named, the first option may stand in its place, and the family is that of `start`,
    the folder of a model to go on from, or the default."""
    if model is not None and not model.startswith("--"):
        return model, args
    from likely import store

    return store.read_config(start)["model"] if start else "autoregressive", args if model is None else [model, *args]


def family_options(args: list[str], model: str) -> dict[str, Any]:
    """Further options, checked against those of the verb and the family, so that a misspelt one is named."""
    from likely import families

    options = extra_options(args)
    known = set(families.option_names(families.family_class(model)))
    verb = {"minutes", "steps", "epochs", "out", "from", "size", "seed", "device", "threads", "batch", "lr", "given", "levels", "augment"}
    for name in options:
        if name not in known:
            hint = families.option_hint(name, known | verb, families.parsed(model).members)
            raise UsageError(f"Neither `fit` nor the family '{model}' has an option --{name}.", hint)
    return options
