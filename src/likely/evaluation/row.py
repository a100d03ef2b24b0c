"""`Row`: everything that is known about one fitted model, as plain values; the boundary between measuring and reporting.

Nothing here imports torch: `rows.json` is read, sorted and reported on any machine.
"""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

__all__ = ["Row", "read_rows", "standing", "write_rows"]


@dataclass
class Row:
    """One model on one data set.

    Attributes:
        model, size, seed, options: what was fitted, by its registered name.
        data: name of the data; given: what it is conditioned on, such as "label"; None for p(x).
        value: test code length (or negative log-density), lower is better; None without a likelihood.
        unit: of `value`, such as "bits/dim"; kind, how: of the `LogProb` it comes from; draws: of its bound.
        stderr: standard error of `value`; n: test examples (or bytes of a text).
        seconds, cpu_seconds: of training; steps: gradient steps; curve: the log of training.
        samples_per_s, log_prob_per_s: examples per second of wall clock.
        parameters: numbers that are learnt; peak_memory_mib: of the process (or accelerator).
        quality: measure -> {"value", "real", "independent", ...}; see `evaluation.quality`.
        error: one line, if anything went wrong; empty if all is well.
        threads, device: what it ran on; folder: of the stored model, relative to the board's.
        settings: a digest of all that the row depends on; an equal one need not be run again.
    """

    model: str
    value: float | None = None
    unit: str | None = None
    kind: str | None = None
    how: str = ""
    stderr: float | None = None
    n: int = 0
    given: str | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None
    samples_per_s: float | None = None
    log_prob_per_s: float | None = None
    parameters: int | None = None
    peak_memory_mib: float | None = None
    quality: dict[str, dict[str, Any]] = field(default_factory=dict)
    error: str = ""
    size: str = "small"
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None
    curve: list[dict[str, Any]] = field(default_factory=list)
    draws: int = 1
    data: str = ""
    threads: int | None = None
    device: str = "cpu"
    folder: str = ""
    settings: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values; numbers that JSON does not have (NaN, infinities) become null."""
        return _finite(asdict(self))

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Row":
        """A row from its JSON; fields of later versions are left out."""
        known = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in record.items() if name in known})


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {k: _finite(v) for k, v in value.items()}
        case list() | tuple():
            return [_finite(v) for v in value]
    return value


def standing(row: Row) -> str:
    """Where a row is listed: "ranked", "estimate" (optimistic, so never ranked), "no likelihood" or "failed"."""
    if row.error:
        return "failed"
    if row.value is None:
        return "no likelihood"
    return "estimate" if row.kind == "estimate" else "ranked"


def read_rows(path: Path) -> list[Row]:
    """Rows of a `rows.json`; none if there is no such file."""
    return [Row.from_json(r) for r in json.loads(path.read_text())] if path.exists() else []


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write `rows.json` whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps([r.to_json() for r in rows], indent=1, allow_nan=False))
    os.replace(part, path)
