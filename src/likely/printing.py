"""What the command line prints, with rich."""

import codecs
import csv
import io
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from likely.logprob import format_bits

if TYPE_CHECKING:
    from torch import Tensor

    from likely.filling import Edited
    from likely.health import Report
    from likely.logprob import LogProb
    from likely.space import Space
    from likely.train import Run
    from likely.variational_bound import Terms

__all__ = [
    "default_name",
    "described",
    "edited",
    "families",
    "fitted",
    "health",
    "markdown",
    "progress",
    "sampled",
    "scored",
    "terms",
    "written",
]

console = Console(highlight=False)
_errors = Console(highlight=False, stderr=True)
_FEW = 4  # effective particles; a draw that rests on fewer is little better than a guess
_BARS = 12  # parts of time that are shown
_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\r\t"}


def fitted(run: "Run", folder: Path) -> None:
    """How a run ended, its test likelihood, and what to do next."""
    import json

    test = json.loads((folder / "run.json").read_text())["test"]
    ends = {
        "interrupted": "Stopped by hand: the best model so far is kept; the same command goes on",
        "early stop": "Stopped early: the validation loss no longer fell",
        "closed form": "Fitted in closed form",
    }
    console.print(f"{ends.get(run.stopped, 'Trained')} ({run.steps:,} steps, {run.seconds:.1f} s).")
    if test:
        console.print(
            f"test: [bold]{format_bits(test['value'], test['kind'], test['stderr'])} {test['unit']}[/]  ({_footnote(test)})", soft_wrap=True
        )
    else:
        console.print("This family has no likelihood; compare its samples with `likely compare`.")
    console.print(f"[dim]{folder}  ->  likely show {folder}, likely sample {folder}[/]", soft_wrap=True)


def _footnote(test: dict[str, Any]) -> str:
    return ", ".join(part for part in (test["kind"], test["how"], f"n={test['n']}") if part)


def default_name(space: "Space", stem: str = "samples") -> str:
    """A file for examples of a space in the current folder."""
    if space.layout == "grid":
        return f"{stem}.png" if space.discrete else f"{stem}.npz"
    return stem + {"sequence": ".txt", "columns": ".csv"}.get(space.layout, ".npz")


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on the terminal that shows how much of how much is done; nothing where there is none."""
    from rich.progress import Progress

    with Progress(console=_errors, transient=True, disable=not _errors.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def edited(done: "Edited", out: Path | None) -> None:
    """What was filled and how far to believe it; the texts themselves where they went to no file."""
    written(iter(enumerate(done.texts if out is None else ())), len(done.texts))
    filled, words = done.filled, "exactly" if done.filled.exact else "approximately"
    where = "" if out is None else f" -> [bold]{out}[/]"
    what = f"{done.entries:,} unknown {'entry' if done.entries == 1 else 'entries'} of {done.examples:,} example{'s' * (done.examples > 1)}"
    _errors.print(f"{what}, filled {words}: {filled.how}{where}", soft_wrap=True)
    for note in done.notes:
        _errors.print(note, soft_wrap=True, markup=False)
    least = filled.effective[filled.effective.isfinite()]
    if len(least):
        _errors.print(f"effective number of particles: {least.min():.1f} at least, {least.median():.1f} in the middle")
    if few := int((least < _FEW).sum()):
        _errors.print(
            f"[bold yellow]warning:[/] {few} of {filled.effective.numel()} draws rest on fewer than {_FEW}; try more --particles."
        )


def sampled(x: "Tensor", space: "Space", out: Path, log_prob: "LogProb | None" = None, *, by: str = "") -> None:
    console.print(f"{len(x)} examples of {space}{f' ({by})' if by else ''} -> [bold]{out}[/]", soft_wrap=True)
    if log_prob is not None:
        nats = log_prob.nats
        error = f" +- {nats.std().item() / math.sqrt(len(nats)):.3f}" if len(nats) > 1 else ""
        console.print(f"mean log p {nats.mean().item():.3f}{error} nats an example ({log_prob.kind})", soft_wrap=True)


def written(pieces: Iterator[tuple[int, bytes]], n: int) -> bool:
    """Print n texts as they come, (number of the text, its next bytes) each; False if they were interrupted, which ends them."""
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal may know few characters
    try:
        for which, parts in groupby(pieces, key=itemgetter(0)):
            if n > 1:
                print(f"--- {which + 1} of {n} ---")
            _print_text(part for _, part in parts)
    except KeyboardInterrupt:
        print()
        return False
    return True


def _print_text(pieces: Iterator[bytes]) -> None:
    """Bytes as UTF-8, what is not replaced; control characters reach files, but no terminal."""
    text, kept = "", {} if not sys.stdout.isatty() else _CONTROLS
    for text in codecs.iterdecode(pieces, "utf-8", "replace"):
        sys.stdout.write(text.translate(kept))
        sys.stdout.flush()
    if not text.endswith("\n"):
        print()


def scored(rows: list[dict[str, Any]], top: int, out: Path | None) -> None:
    """The least likely examples as a table; all of them as CSV."""
    table = Table("rank", "example", rows[0]["unit"], "nats", "likelier than it", title=f"Least likely of {len(rows)} ({rows[0]['kind']})")
    for row in rows[:top]:
        value = format_bits(row["bits"], row["kind"])
        table.add_row(str(row["rank"]), str(row["example"]), value, f"{row['nats']:.2f}", f"{row['percentile']:.1%}")
    console.print(table)
    told = [rows[0]["how"]] if rows[0]["how"] else []
    if "bits_by_one_draw" in rows[0]:
        told.append(f"K=1: {_mean_bits(rows, 'bits_by_one_draw')}")
    where = f"  ({'; '.join(told)})" if told else ""
    console.print(f"mean {_mean_bits(rows, 'bits')} {rows[0]['unit']} over {len(rows)} examples{where}", soft_wrap=True)
    if out is not None:
        from likely.store import write_atomically

        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(out, text.getvalue().encode())
        console.print(f"[bold]{out}[/]", soft_wrap=True)


def _mean_bits(rows: list[dict[str, Any]], key: str) -> str:
    """Of examples as of a draw from many, with the standard error of that."""
    values = [row[key] for row in rows]
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return format_bits(math.fsum(values) / len(values), rows[0]["kind"], error)


def markdown(text: str) -> None:
    from rich.markdown import Markdown

    console.print(Markdown(text))


_COLOURS = {"sound": "green", "doubtful": "yellow", "broken": "bold red", "unknown": "dim"}


def health(report: "Report") -> None:
    """All readings of a check as a table, then what they say, a line each."""
    from rich.markup import escape

    table = Table("what", "where", "measured", "", box=None, padding=(0, 2, 0, 0))
    for _, group in groupby(report.readings, key=lambda reading: reading.what):
        for first, r in enumerate(group):
            colour = _COLOURS[r.verdict]
            table.add_row("" if first else f"[bold]{r.what}[/]", escape(r.where), escape(r.measured), f"[{colour}]{r.verdict}[/]")
    console.print(table)
    console.print()
    for verdict, line in report.lines:
        console.print(f"[{_COLOURS[verdict]}]{verdict:>8}[/]  {escape(line)}", soft_wrap=True)
    console.print(f"[dim]{report.model}, on {report.n} examples[/]")


def terms(found: "Terms") -> None:
    """What a bound is made of: a table, the steps in equal parts of time with a bar each."""
    table = Table("term", found.unit, "", box=None, padding=(0, 2, 0, 0))
    parts = [(chunk[0], chunk[-1], found.steps[chunk.start : chunk.stop].sum().item()) for chunk in _equal_parts(len(found.steps))]
    most = max((abs(value) for *_, value in parts), default=0.0) or 1.0
    for first, last, value in reversed(parts):
        where = f"{first + 1}" if first == last else f"{first + 1}..{last + 1}"
        table.add_row(f"L_t  {where}", f"{value:.4f}", "\N{FULL BLOCK}" * round(40 * max(value, 0.0) / most))
    values = (found.prior, found.steps.sum().item(), found.decoder, found.total)
    for name, value, error in zip(("L_T", "sum L_t", "L_0", "[bold]sum[/]"), values, found.errors, strict=True):
        table.add_row(name, f"{value:.4f} +- {error:.4f}", "")
    console.print(table)
    console.print(f"[dim]{found.n} examples, each of {len(found.steps):,} steps once under noise of its own[/]", soft_wrap=True)


def _equal_parts(count: int) -> list[range]:
    """0..count - 1 in up to a dozen parts."""
    edges = sorted({round(i * count / _BARS) for i in range(_BARS + 1)})
    return [range(start, end) for start, end in pairwise(edges)]


def families(records: list[dict[str, Any]], name: str | None) -> None:
    """The table of families, or the options of one."""
    if name is None:
        table = Table("family", "what it is", "data", "can", box=None, padding=(0, 2, 0, 0))
        for record in records:
            mark = "" if record["featured"] else "*"
            table.add_row(
                f"[bold]{record['name']}[/]{mark}",
                record["summary"],
                ", ".join(record["layouts"]),
                ", ".join(["sample", *record["abilities"]]),
            )
        console.print(table)
        if not all(record["featured"] for record in records):
            console.print("\n[dim]* compared where --models names it[/]")
        console.print("\n[dim]Options of one: likely models NAME[/]")
        return
    record = next(r for r in records if r["name"] == name)
    can = ", ".join(["sample", *record["abilities"]])
    console.print(f"[bold]{name}[/]: {record['summary']}\nmodels {', '.join(record['layouts'])} data; can {can}\n")
    table = Table("option", "type and default", *record["sizes"], box=None, padding=(0, 2, 0, 0))
    for option, kind in record["options"].items():
        table.add_row(f"--{option.replace('_', '-')}", kind, *(str(size.get(option, "")) for size in record["sizes"].values()))
    console.print(table)


def described(record: dict[str, Any]) -> None:
    """What `likely data` found."""
    from likely.sources import print_description

    print_description(record, console)
