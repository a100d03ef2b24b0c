"""The command line: verbs -> functions, no logic. Nothing heavy is imported before a verb needs it."""

import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from likely import __version__
from likely.arguments import (
    DataArg,
    DeviceOption,
    FolderArg,
    GivenOption,
    OutOption,
    OverwriteOption,
    SeedOption,
    SizeOption,
    ValuesOption,
    WeightsOption,
    extra_options,
    family_options,
    idle,
    named_family,
    read_box,
    read_pair,
    reads,
)
from likely.errors import LikelyError

__all__ = ["app", "main"]

app = typer.Typer(
    name="likely",
    help="Fit any data with any family of deep generative model, say in bits how likely the data is under it, and use the model.\n\n"
    "DATA is a built-in name (digits, wine, breast-cancer, moons, checkerboard, ...), a folder of images, a text, a CSV or Parquet "
    "table, or an .npz, .npy or .idx file.",
    epilog="Start with:  likely compare digits\n\nAn error is one line, and a hint; --debug shows where it arose. "
    "Exit codes: 2 usage, 3 data, 4 a stored model, 5 training, 6 a check that found something broken, 1 anything else, 130 interrupted.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

OWN_OPTIONS: Any = {"allow_extra_args": True, "ignore_unknown_options": True}


def _load(data: str, given: str | None, read: dict[str, Any]) -> Any:
    """`likely.load`; comma-separated names of `given` become a tuple."""
    import likely

    return likely.load(data, given=tuple(given.split(",")) if given and "," in given else given, **read)


@app.command(epilog="Example:  likely compare digits --minutes 3   then open likely-runs/digits/report.html")
@reads()
def compare(
    data: DataArg,
    models: Annotated[
        str | None,
        typer.Option(
            "--models",
            help="Comma-separated; by default all that fit the data but for those starred in `likely models`.",
            show_default=False,
        ),
    ] = None,
    minutes: Annotated[float, typer.Option("--minutes", help="Wall-clock training time over all models.")] = 3.0,
    seeds: Annotated[int, typer.Option("--seeds", help="Runs per model, for a ranking with its spread.")] = 1,
    jobs: Annotated[int | None, typer.Option("--jobs", help="Models trained side by side.", show_default="by machine")] = None,
    out: OutOption = None,
    size: SizeOption = "small",
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    given: GivenOption = None,
    *,
    read: dict[str, Any],
) -> None:
    """One model per family on the same data and budget: a leaderboard in bits, and an HTML report.

    Interrupted or killed, the same command goes on where it stopped.
    """
    import likely
    from likely import families

    loaded = _load(data, given, read)
    names = families.split_names(models) if models else None
    likely.compare(loaded, names, minutes=minutes, seeds=seeds, jobs=jobs, out=out, size=size, seed=seed, device=device, given=given)


@app.command(
    context_settings=OWN_OPTIONS,
    epilog="Example:  likely fit digits flow --minutes 1 --out my-flow   Options of a family:  likely models flow",
)
@reads()
def fit(
    context: typer.Context,
    data: DataArg,
    model: Annotated[
        str | None, typer.Argument(help="A family: see `likely models`.", show_default="that of --from, else autoregressive")
    ] = None,
    minutes: Annotated[float | None, typer.Option("--minutes", help="Budget of wall-clock time; 3 by default.", show_default=False)] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Or a budget of steps.", show_default=False)] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", help="Or of passes over the training split.", show_default=False)] = None,
    out: OutOption = None,
    start: Annotated[
        Path | None, typer.Option("--from", help="Go on from a stored model, or begin another family by its weights.", show_default=False)
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", help="tiny, small or base: one dial of size.", show_default="small; that of --from")
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    threads: Annotated[int | None, typer.Option("--threads", help="CPU threads.", show_default="measured")] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="Examples per step.", show_default="the family's")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Peak learning rate.", show_default="the family's")] = None,
    numbers: Annotated[str, typer.Option("--float", help="auto, float32 or bf16.")] = "auto",
    track: Annotated[str | None, typer.Option("--track", help="A tracker, such as tensorboard.", show_default=False)] = None,
    given: GivenOption = None,
    weights: WeightsOption = None,
    *,
    read: dict[str, Any],
) -> None:
    """Fit one model. Leaves the model and `run.json`, with its test likelihood, in --out (default: likely-runs/DATA-MODEL).

    Further options are the family's own, such as --net transformer --width 128. Killed, the same command goes on where it stopped.
    On several processes:  torchrun --nproc-per-node 2 -m likely fit ...
    """
    import likely
    from likely import families, printing, train

    family, args = named_family(model, context.args, start)
    loaded, options = _load(data, given, {**read, **({} if weights is None else {"weights": weights})}), family_options(args, family)
    if "window" in read and "window" not in loaded.card:  # data that are no text have none: it is of the net
        options["window"] = read["window"]
    out = out or Path("likely-runs") / f"{loaded.name}-{families.slug(family)}"
    budget = {"minutes": minutes, "steps": steps, "epochs": epochs}
    how = {
        **({} if size is None else {"size": size}),
        "seed": seed,
        "device": device,
        "threads": threads,
        "batch": batch,
        "lr": lr,
        "precision": numbers,
        "track": track,
    }
    run = likely.fit(loaded, family, out=out, start=start, **budget, **how, **options)
    if train.is_main_process():
        printing.fitted(run, out)
    train.leave()
    if run.stopped == "interrupted":
        raise typer.Exit(130)


@app.command(
    context_settings=OWN_OPTIONS,
    epilog="Examples:\n\nlikely sample my-images -n 100 --out samples.png\n\nlikely sample my-table -n 1000 --out more.csv\n\n"
    "likely sample my-digits --between 3,14 -n 8 --out way.png\n\n"
    'likely sample my-text --prompt "To be" --length 300 --top-p 0.9\n\n'
    "likely sample my-text --prompt 'Q: ' --stop $'\\n' --stop '?'   (ends with the first line or question)",
)
def sample(
    context: typer.Context,
    folder: FolderArg,
    n: Annotated[int | None, typer.Option("-n", "--n", help="How many.", show_default="64; of printed texts 1")] = None,
    out: OutOption = None,
    given: ValuesOption = None,
    seed: SeedOption = 0,
    prompt: Annotated[str | None, typer.Option("--prompt", help="What a text begins with.", show_default=False)] = None,
    length: Annotated[
        int | None, typer.Option("--length", help="Symbols after the prompt.", show_default="500 printed, else a window")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="A text ends with the first of these (repeatable).", show_default=False)
    ] = None,
    between: Annotated[
        Any,
        typer.Option(
            "--between",
            help="Instead of draws, the way between two test examples, by row, through latents.",
            parser=read_pair,
            metavar="I,J",
            show_default=False,
        ),
    ] = None,
    trace: Annotated[
        int | None,
        typer.Option("--trace", min=2, help="Show so many frames of examples in the making: .png, .gif, .webp, .txt.", show_default=False),
    ] = None,
    with_log_prob: Annotated[
        bool, typer.Option("--with-log-prob", help="Also how likely each is, in nats: a column of tables, an array of .npz, else the mean.")
    ] = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Draw from a stored model: a PNG grid or a folder of images, text, CSV or .npz, by the name of --out.

    Without --out a text is printed as it is written; Ctrl-C ends it.

    Further options are the sampler's own, such as --temperature 0.8, --top-k 40, --top-p 0.9, --min-p 0.05, --typical 0.9,
    --greedy, and --beam 8 for the likeliest text that a search of that width finds.
    """
    import likely
    from likely import latents, printing, sources, tracing, verbs

    model = likely.open(folder)
    if between is not None or trace is not None:
        idle(f"--{'trace' if between is None else 'between'} shows a way", **{"with-log-prob": with_log_prob or None})
    if between is not None:
        out = out or Path(printing.default_name(model.space, "between"))
        sources.check_path(out, model.space, overwrite=overwrite)
        x = latents.between(folder, between, 8 if n is None else n, given=given, seed=seed)
        sources.write(x, model.space, out, overwrite=overwrite)
        printing.sampled(x, model.space, out)
        return
    if trace is not None:
        out = out or sources.default_frames_path(model.space)
        sources.check_frames_path(out, model.space, overwrite=overwrite)
        x, hidden = tracing.trace(model, 8 if n is None else n, trace, given=given, seed=seed, **extra_options(context.args))
        typer.echo(sources.write_frames(x, hidden, model.space, out, overwrite=overwrite))
        return
    asked = {name: value for name, value in {"prompt": prompt, "length": length, "stop": stop or None}.items() if value is not None}
    how = {**asked, **extra_options(context.args)}
    if out is None and model.space.textual and not with_log_prob:
        n = 1 if n is None else n
        if not printing.written(verbs.stream(model, n, given=given, seed=seed, **how), n):
            raise typer.Exit(130)
        return
    out = out or Path(printing.default_name(model.space))
    how |= {"given": given, "seed": seed, "out": out, "overwrite": overwrite, "with_log_prob": with_log_prob}
    drawn = likely.sample(model, 64 if n is None else n, **how)
    x, found = drawn if with_log_prob else (drawn, None)
    printing.sampled(x, model.space, out, found, by=getattr(model, "drawn_by", ""))


@app.command(epilog="Example:  likely score my-model new-images/ --out scores.csv")
@reads("layout", "tile", "resize", "precision", "missing", "header")
def score(
    folder: FolderArg,
    data: Annotated[
        str | None, typer.Argument(help="New data of the same kind; the model's own test split by default.", show_default=False)
    ] = None,
    out: OutOption = None,
    given: ValuesOption = None,
    draws: Annotated[int | None, typer.Option("--draws", min=1, help="Draws of a bound.", show_default="the family's")] = None,
    seed: SeedOption = 0,
    top: Annotated[int, typer.Option("--top", min=0, help="Outliers to print.")] = 10,
    overwrite: OverwriteOption = False,
    *,
    read: dict[str, Any],
) -> None:
    """Log-likelihood of each example, the least likely (the outliers) first; all of them as CSV in --out.

    New data are read as those of the fit were, unless told otherwise; what a conditional model needs is taken from them, too.
    """
    import likely
    from likely import printing, sources

    if out is not None:
        sources.check_free(out, overwrite=overwrite)
    rows = likely.score(folder, data, given=given, draws=draws, seed=seed, **read)
    printing.scored(rows, top, out)


@app.command(
    context_settings=OWN_OPTIONS,
    epilog="Examples:\n\nlikely edit my-digits photo.png --box 0,14,28,28 --draws 9 --out halves.png\n\n"
    "likely edit my-faces faces/ --mask white-where-unknown.png --out repaired/\n\n"
    'likely edit my-text --text "To be or ___ to be"\n\n'
    "likely edit my-text draft.txt --gap '#' --out done.txt\n\n"
    "likely edit my-table holes.csv --draws 5 --out imputed.csv\n\n"
    "likely edit my-digits photo.png --strength .5 --draws 9 --out like-it.png   (others like it, by a model that can vary)",
)
@reads("layout", "resize", "precision", "missing", "header")
def edit(
    context: typer.Context,
    folder: FolderArg,
    data: Annotated[
        str | None, typer.Argument(metavar="INPUT", help="Image, folder of them, .npz, text or table.", show_default=False)
    ] = None,
    text: Annotated[str | None, typer.Option("--text", help="A text instead of INPUT.", show_default=False)] = None,
    gap: Annotated[str, typer.Option("--gap", help="Each such mark in a text is one unknown byte.")] = "_",
    mask: Annotated[str | None, typer.Option("--mask", help="A picture, white where images are unknown.", show_default=False)] = None,
    box: Annotated[
        list[Any] | None,
        typer.Option(
            "--box", help="An unknown rectangle of images (repeatable).", parser=read_box, metavar="X0,Y0,X1,Y1", show_default=False
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            "--strength",
            min=0.0,
            max=1.0,
            help="Fill nothing, but draw others like INPUT: 0 gives it back, 1 anything. Of diffusion models.",
            show_default=False,
        ),
    ] = None,
    draws: Annotated[int, typer.Option("--draws", min=1, help="Results of each example, drawn independently.")] = 1,
    particles: Annotated[
        int | None, typer.Option("--particles", help="That walk for each draw where it is not exact.", show_default="64")
    ] = None,
    out: OutOption = None,
    given: ValuesOption = None,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    *,
    read: dict[str, Any],
) -> None:
    """Fill what is unknown, given what is known: holes of an image, gaps of a text, empty cells of a table.

    What is known stays as it is. A text without --out is printed. Of a CSV file only the empty cells change; several --draws of it
    (multiple imputations) stand one after another in one file, told apart by a first column `draw`.

    It says how it was filled: exactly, or by particles (more are better) and how many of them count.
    Further options are the model's own, such as --method repaint and --steps 48 of diffusion.

    With --strength nothing is filled: noise is added to each example, as much as that says, and taken away again, which
    leaves others like it, or, of a conditional model, what --given makes of it.
    """
    from likely import filling, inputs, printing, varying

    space = inputs.space_of(folder)
    if strength is not None:
        idle(f"Nothing is filled with --strength {strength}", mask=mask, box=box, text=text, particles=particles)
        out, how = out or Path(printing.default_name(space, "edited")), {"given": given, "seed": seed, **extra_options(context.args)}
        with printing.progress("varying") as tick:
            x = varying.vary(folder, data, strength, out=out, overwrite=overwrite, draws=draws, progress=tick, **how, **read)
        printing.sampled(x, space, out)
        return
    out = out or (None if space.textual else Path(printing.default_name(space, "edited")))
    how = {"known": mask, "boxes": box or (), "gap": gap, "draws": draws, "given": given, "seed": seed, "overwrite": overwrite}
    how |= {**({} if particles is None else {"particles": particles}), **extra_options(context.args)}
    with printing.progress("filling") as tick:
        done = filling.edit(folder, data, text=text, out=out, progress=tick, **how, **read)
    printing.edited(done, out)


@app.command(epilog="Examples:\n\nlikely show my-flow\n\nlikely show my-flow --check --data new-rows.csv")
def show(
    folder: FolderArg,
    check: Annotated[bool, typer.Option("--check", help="Measure on the trained weights what of the model can be trusted.")] = False,
    terms: Annotated[bool, typer.Option("--terms", help="Each term of a diffusion model's bound, on 64 examples.")] = False,
    data: Annotated[
        str | None, typer.Option("--data", help="What to check on; the model's own test split by default.", show_default=False)
    ] = None,
    seed: SeedOption = 0,
) -> None:
    """The card of a stored model, after its files were verified; or, with --check, its health; or, with --terms, what its bound is made of.

    A check ends with exit code 6 if anything is broken, else with 0; what is doubtful or unknown is told.
    """
    import likely
    from likely import printing
    from likely.errors import UsageError

    if terms:
        from likely.verbs import terms as terms_of

        printing.terms(terms_of(folder, data, seed=seed))
        return
    if not check:
        if data is not None:
            raise UsageError("--data is what a check is made on.", "Add --check or --terms.")
        printing.markdown(likely.show(folder))
        return
    with printing.progress("checking") as tick:
        report = likely.check(folder, data, seed=seed, progress=tick)
    printing.health(report)
    if not report.sound:
        raise typer.Exit(6)


@app.command()
def models(name: Annotated[str | None, typer.Argument(help="A family whose options to list.", show_default=False)] = None) -> None:
    """The families, what each can do, and the options of one."""
    import likely
    from likely import families, printing

    if name is not None:
        name = families.parsed(name).own  # raises, with the nearest name
    printing.families(likely.models(), name)


@app.command(name="data", epilog="Example:  likely data digits")
@reads()
def describe(data: DataArg, given: GivenOption = None, *, read: dict[str, Any]) -> None:
    """What is in DATA: counts, entropy per column, the bits of trivial models, duplicates, what was skipped."""
    import likely
    from likely import printing

    loaded = _load(data, given, read)
    printing.described(likely.data(loaded))


# --- entry -----------------------------------------------------------------------------------------


def _show_version(wanted: bool | None) -> None:
    if wanted:
        typer.echo(f"likely {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool | None, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")] = None,
) -> None:
    pass


def main() -> None:
    """Run the command line: an error is one line and a hint; `--debug` shows where it came from."""
    debug = "--debug" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--debug"]
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    if not debug:
        warnings.showwarning = _print_warning
    try:
        code = app(prog_name="likely", standalone_mode=False)
    except LikelyError as error:
        _fail(error.message, error.hint, error.exit_code, debug)
    except (KeyboardInterrupt, typer.Abort):
        _fail("Interrupted.", "", 130, debug)
    except Exception as error:
        if tell := getattr(error, "format_message", None):  # typer's own: a word that it does not know, a value that is no number
            verb = getattr(getattr(error, "ctx", None), "command_path", "likely")
            _fail(" ".join(tell().split()), f"See: {verb} --help", 2, debug)
        _fail(f"{type(error).__name__}: {error}", "This is not an expected error: run again with --debug to see where it arises.", 1, debug)
    else:
        raise SystemExit(code)


def _fail(message: str, hint: str, code: int, debug: bool) -> NoReturn:
    """Print an error and exit with its code; within `except`, so that `--debug` can raise it again."""
    if debug:
        raise
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"[bold red]error:[/] {escape(message)}")
    if hint:
        console.print(f"[dim]{escape(hint)}[/]")
    raise SystemExit(code)


def _print_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: str | None = None
) -> None:
    print(f"warning: {message}", file=sys.stderr)
