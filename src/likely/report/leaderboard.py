"""Rows -> boards: what is compared with what, in which order, and how a number is printed. No torch.

A board holds one data set, one unit and one `given`: p(x) and p(x | y) never stand on the same one. Within
a board rows are ranked by value; estimates, which may be optimistic, are listed below without a rank, then
models without a likelihood, then what failed. Seeds of one model are one entry: mean and spread.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Any

from likely.evaluation.row import Row, standing

__all__ = ["SYMBOLS", "Board", "Entry", "boards", "duration", "number"]

# As in likely.logprob (which needs torch); a test keeps the two equal.
SYMBOLS = {"exact": "=", "lower bound": "<=", "numerical": "~", "estimate": "~"}
STANDINGS = ("ranked", "estimate", "no likelihood", "failed")


@dataclass(frozen=True)
class Entry:
    """One line of a board: the rows of one model, one per seed."""

    rows: tuple[Row, ...]

    @cached_property
    def sound(self) -> tuple[Row, ...]:
        """Rows without an error; all of them where every one failed."""
        return tuple(r for r in self.rows if not r.error) or self.rows

    @property
    def row(self) -> Row:
        """The row that stands for all: the first sound seed."""
        return self.sound[0]

    @property
    def name(self) -> str:
        options = ", ".join(f"{k}={v}" for k, v in self.row.options.items())
        return f"{self.row.model} ({options})" if options else self.row.model

    @property
    def standing(self) -> str:
        return standing(self.row)

    @property
    def failed_seeds(self) -> int:
        return sum(bool(r.error) for r in self.rows)

    def mean(self, field: str) -> float | None:
        """Mean over seeds of a number of the row."""
        values = [v for r in self.sound if (v := getattr(r, field)) is not None]
        return fmean(values) if values else None

    def measure(self, name: str, which: str = "value") -> float | None:
        """Mean over seeds of a measure of quality, or of one of its floors."""
        values = [v for r in self.sound if (v := r.quality.get(name, {}).get(which)) is not None]
        return fmean(values) if values else None

    @property
    def value(self) -> float | None:
        return self.mean("value")

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None for a single one."""
        values = [r.value for r in self.sound if r.value is not None]
        return stdev(values) if len(values) > 1 else None

    @property
    def symbol(self) -> str:
        return SYMBOLS.get(self.row.kind or "", "")

    @property
    def uncertainty(self) -> str:
        """`± spread over 3 seeds`, or `± standard error` of a single run."""
        if self.spread is not None:
            return f"± {self.spread:.3f} ({len(self.sound)} seeds)"
        return f"± {self.row.stderr:.3f}" if self.row.stderr is not None else ""

    @property
    def claim(self) -> str:
        """`<= 1.987`; a dash without a likelihood."""
        return f"{self.symbol} {self.value:.3f}" if self.value is not None else "–"

    @property
    def order(self) -> tuple[int, float]:
        """Ranked ones by value, those without a value by energy distance."""
        value = self.value if self.value is not None else self.measure("energy_distance")
        return STANDINGS.index(self.standing), math.inf if value is None else value


@dataclass(frozen=True)
class Board:
    """Entries that may be compared, best first."""

    data: str
    given: str | None
    unit: str
    entries: tuple[Entry, ...]

    @property
    def title(self) -> str:
        return f"p(x | {self.given})" if self.given else "p(x)"

    def rank(self, entry: Entry) -> int | None:
        """1 for the best of the ranked; None for all others."""
        return self.entries.index(entry) + 1 if entry.standing == "ranked" else None


def boards(rows: Iterable[Row]) -> list[Board]:
    """Sort rows onto boards. Rows without a unit (failed, or no likelihood) stand on the board of their data and `given`."""
    groups: dict[tuple[str, str | None], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.data, row.given), []).append(row)
    return [board for (data, given), members in groups.items() for board in _by_unit(data, given, members)]


def _by_unit(data: str, given: str | None, rows: list[Row]) -> list[Board]:
    units = list(dict.fromkeys(r.unit for r in rows if r.unit)) or [""]
    return [Board(data, given, unit, _entries(r for r in rows if (r.unit or units[0]) == unit)) for unit in units]


def _entries(rows: Iterable[Row]) -> tuple[Entry, ...]:
    models: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        models.setdefault((row.model, row.size, str(row.options)), []).append(row)
    return tuple(sorted((Entry(tuple(r)) for r in models.values()), key=lambda e: e.order))


def number(value: float | None) -> str:
    """A count or rate for people: 0.0123, 7.25, 431, 12,300, 4.1 M."""
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) >= 1e6:
        return f"{value / 1e6:.1f} M"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """3.2 s, 57 s, 4 min 05 s."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 100 else f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
