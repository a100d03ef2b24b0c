"""The leaderboard on a terminal: it fills as rows come, and what is running shows how far it is."""

from collections.abc import Iterable
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from likely.evaluation.row import Row
from likely.report.leaderboard import Board, Entry, boards, duration, number

__all__ = ["Screen", "table"]

LEGEND = "= exact   <= a bound: the true value is no larger   ~ numerical or estimated (estimates are optimistic: not ranked)"


def table(board: Board, width: int = 120) -> Table:
    """One board as a rich table; a terminal narrower than 110 characters shows the columns that matter most."""
    shown = slice(None, None if width >= 110 else 6)
    out = Table(
        title=f"{board.data}: {board.title}, test {board.unit or 'quality'}", caption=LEGEND, title_style="bold", caption_style="dim"
    )
    out.add_column("", justify="right", style="dim", no_wrap=True)
    out.add_column("model", no_wrap=True)
    for heading in (board.unit or "value", "±", "C2ST AUC", "train", "energy dist.", "samples/s", "parameters")[
        : shown.stop and shown.stop - 2
    ]:
        out.add_column(heading, justify="left" if heading == "±" else "right", no_wrap=True)
    before = None
    for entry in board.entries:
        if before not in (None, entry.standing):
            out.add_section()
        before = entry.standing
        out.add_row(*_cells(board, entry)[shown], style="dim" if entry.standing == "failed" else None)
    return out


def _cells(board: Board, entry: Entry) -> list[str | Text]:
    rank = board.rank(entry)
    if entry.standing == "failed":
        return ["", entry.name, Text("failed", "red"), *[""] * 6]  # why is said below the board
    note = f" ({entry.failed_seeds} of {len(entry.rows)} seeds failed)" if entry.failed_seeds else ""
    return [
        str(rank) if rank else "",
        Text(entry.name + note, "bold" if rank == 1 else ""),
        Text(entry.claim, "bold" if rank == 1 else ""),
        entry.uncertainty.removeprefix("± "),
        _number(entry.measure("c2st_auc"), ".2f"),
        duration(entry.mean("seconds")),
        _number(entry.measure("energy_distance"), ".4f"),
        number(entry.mean("samples_per_s")),
        number(entry.mean("parameters")),
    ]


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


class Screen:
    """The live view of a running comparison; plain lines, one per event, where there is no terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self.rows: list[Row] = []
        self.running: dict[str, dict[str, Any]] = {}
        self.live = Live(console=self.console, refresh_per_second=4, get_renderable=self._view, transient=True)

    def __enter__(self) -> "Screen":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.live.stop()

    def say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False)

    def progress(self, name: str, record: dict[str, Any]) -> None:
        self.running[name] = record

    def finished(self, name: str, row: Row, rows: Iterable[Row]) -> None:
        """A model is done; `rows` are all so far."""
        self.running.pop(name, None)
        self.rows = list(rows)
        entry = Entry((row,))
        claim = f"{entry.claim} {row.unit} {entry.uncertainty}".rstrip() if row.kind else "no likelihood"
        outcome = f"failed: {row.error}" if row.error else f"{claim}, {duration(row.seconds)}"
        if row.error or not self.console.is_terminal:
            self.say(f"{name}: {outcome}")

    def summary(self, rows: Iterable[Row]) -> None:
        """The final boards, and what failed with its reason."""
        rows = list(rows)
        for board in boards(rows):
            self.console.print(table(board, self.console.width))
        for row in rows:
            if row.error:
                self.say(f"{row.model} (seed {row.seed}) failed: {row.error}")

    def _view(self) -> RenderableType:
        shown: list[RenderableType] = [table(board, self.console.width) for board in boards(self.rows)]
        return Group(*shown, *(Text(f"  {name}: {_status(record)}", "cyan") for name, record in sorted(self.running.copy().items())))


def _status(record: dict[str, Any]) -> str:
    """What a running model is at: loss, speed and time left, as far as they are known."""
    if "train" not in record:
        return record.get("phase", "starting")
    valid = f", validation {record['valid']:.3f}" if record.get("valid") is not None else ""
    rest = (
        f", {record['steps_per_s']:.0f} steps/s, {duration(record['seconds_left'])} left" if record.get("steps_per_s") is not None else ""
    )
    return f"step {record.get('step', 0)}, loss {record['train']:.3f} {record.get('unit', '')}{valid}{rest}"
