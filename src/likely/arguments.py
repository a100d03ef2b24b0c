"""Arguments and options that verbs of the command line share, spelt alike everywhere."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "READING",
    "Augment",
    "DataArg",
    "DeviceOption",
    "FolderArg",
    "GivenOption",
    "Levels",
    "Missing",
    "OutOption",
    "Precision",
    "Resize",
    "SeedOption",
    "SizeOption",
    "SplitSeed",
    "Tile",
    "ValuesOption",
    "Window",
]

DataArg = Annotated[str, typer.Argument(metavar="DATA", help="Built-in name, folder or file.", show_default=False)]
FolderArg = Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="Folder of a stored model.", show_default=False)]
OutOption = Annotated[Path | None, typer.Option("--out", help="Where results go.", show_default=False)]
SeedOption = Annotated[int, typer.Option("--seed", help="Of everything random.")]
SizeOption = Annotated[str, typer.Option("--size", help="tiny, small or base: one dial of size.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
GivenOption = Annotated[str | None, typer.Option("--given", help="What to condition on: label, or columns of a table.", show_default=False)]
ValuesOption = Annotated[str | None, typer.Option("--given", help="Values to condition on: label=3.", show_default=False)]

READING = "How DATA is read"
Levels = Annotated[
    int | None, typer.Option("--levels", help="Values 0..levels-1 of integers.", rich_help_panel=READING, show_default=False)
]
Window = Annotated[int, typer.Option("--window", help="Bytes per training example of a text.", rich_help_panel=READING)]
Tile = Annotated[
    int | None,
    typer.Option("--tile", help="Cut images of mixed sizes into tiles of this side.", rich_help_panel=READING, show_default=False),
]
Resize = Annotated[int | None, typer.Option("--resize", help="Resize images to this side.", rich_help_panel=READING, show_default=False)]
Precision = Annotated[
    int | None,
    typer.Option("--precision", help="Decimals that a table's numbers are rounded to.", rich_help_panel=READING, show_default=False),
]
Missing = Annotated[
    list[str] | None,
    typer.Option("--missing", help="A further spelling of a missing cell (repeatable).", rich_help_panel=READING, show_default=False),
]
Augment = Annotated[
    list[str] | None,
    typer.Option("--augment", help="flip or shift, on training images only (repeatable).", rich_help_panel=READING, show_default=False),
]
SplitSeed = Annotated[int, typer.Option("--split-seed", help="Of the split into training, validation and test.", rich_help_panel=READING)]
