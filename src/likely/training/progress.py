"""What a person sees of a run: a progress bar, or a callback; and the JSONL log that is always written."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Log", "Progress", "ProgressCallback"]

ProgressCallback = Callable[[dict[str, Any]], None]


@dataclass
class Log:
    """`log.jsonl`: one line per report. A resumed run drops the lines of steps that it repeats."""

    path: Path | None

    def resume(self, step: int) -> None:
        if self.path is None or not self.path.exists():
            return
        kept = [line for line in self.path.read_text().splitlines() if _step_of(line) <= step]
        self.path.write_text("".join(f"{line}\n" for line in kept))

    def write(self, record: dict[str, Any]) -> None:
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):  # a line that a kill cut short
        return float("inf")


@dataclass
class Progress:
    """Shows loss, steps/s and time left on the terminal; silent where there is none, or given a callback."""

    title: str
    callback: ProgressCallback | None = None
    show: bool = True
    _bar: Any = field(default=None, repr=False)

    def __enter__(self) -> "Progress":
        if self.show and self.callback is None and sys.stderr.isatty():
            self._bar = _rich_bar()
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=1.0, status="")
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, record: dict[str, Any], fraction: float) -> None:
        if self.callback is not None:
            self.callback({**record, "fraction": fraction})
        if self._bar is not None:
            valid = f", valid {record['valid']:.3f}" if record.get("valid") is not None else ""
            status = (
                f"{record['train']:.3f} {record['unit']}{valid}, {record['steps_per_s']:.0f} steps/s, {_clock(record['seconds_left'])} left"
            )
            self._bar.update(self._task, completed=fraction, status=status)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _rich_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[status]}"),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
