"""`write_report`: rows -> one self-contained HTML file. No torch, and nothing is loaded from anywhere."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from likely.evaluation.row import Row
from likely.report import charts, words
from likely.report.leaderboard import STANDINGS, Board, Entry, boards, duration, number

__all__ = ["write_report"]

HEADINGS = {
    "ranked": "",
    "estimate": "Estimates: may be optimistic, so they are not ranked",
    "no likelihood": "Without a likelihood: compare the quality of samples",
    "failed": "Failed",
}


def write_report(rows: Iterable[Row], folder: str | Path, *, about: dict[str, Any] | None = None) -> Path:
    """Write `report.html`.

    Args:
        rows: of one or more boards.
        folder: where the report goes; samples are read from the rows' own folders in it.
        about: facts of the comparison; read from `about.json` in the folder by default.

    Returns: the path of the report.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    folder = Path(folder)
    about = about if about is not None else _json(folder / "about.json")
    environment = Environment(
        loader=PackageLoader("likely.report", "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=number, duration=duration, sentence=words.sentence, form=_form)
    views = [_view(board, folder, about) for board in boards(rows)]
    title = ", ".join(dict.fromkeys(view["board"].data for view in views))
    page = environment.get_template("report.html").render(title=title, about=about, boards=views, words=words, headings=HEADINGS)
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _view(board: Board, folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """What the template shows of one board."""
    colour = charts.colours([e.name for e in board.entries])
    entropy = (about.get("entropy") or {}).get("value")
    return {
        "board": board,
        "colour": colour,
        "groups": [(s, entries) for s in STANDINGS if (entries := [e for e in board.entries if e.standing == s])],
        "sampled": [e for e in board.entries if e.row.quality],
        "galleries": _galleries(board, folder, about),
        "claims": charts.claims_chart(board.entries, board.unit, colour, entropy),
        "curves": [(e, svg) for e in board.entries if (svg := charts.curves_chart(e, colour[e.name]))],
        "measures": [m for m in words.MEASURES if any(m.key in e.row.quality for e in board.entries)],
        "failures": [row for e in board.entries for row in e.rows if row.error],
        "best": _best(board.entries),
    }


def _best(entries: Sequence[Entry]) -> dict[str, float]:
    """The smallest value, for the bars of the leaderboard; and the largest."""
    values = [e.value for e in entries if e.value is not None]
    return {"low": min(values), "high": max(values)} if values else {"low": 0.0, "high": 1.0}


def _galleries(board: Board, folder: Path, about: dict[str, Any]) -> list[dict[str, Any]]:
    """Examples of the real data, then of each model, in the board's order."""
    shown = [("real test data", about.get("gallery") or {})]
    shown += [(e.name, _json(folder / e.row.folder / "gallery.json")) for e in board.entries if e.row.folder and e.row.quality]
    shown = [(name, gallery) for name, gallery in shown if gallery]
    points = [p for _, g in shown[:1] for plot in _plots(g) for p in plot]
    frame = _frame(points) if points else None
    return [{"name": n, **g, "svg": "".join(charts.points_svg(plot, frame) for plot in _plots(g)) if frame else ""} for n, g in shown]


def _plots(gallery: dict[str, Any]) -> list[Sequence[Sequence[float]]]:
    """Points of each scatter plot: one of vectors, one for each set."""
    return [gallery["xy"]] if gallery["kind"] == "points" else gallery.get("sets", [])


def _frame(points: Sequence[Sequence[float]]) -> charts.Frame:
    """The window of all scatter plots: that of the real points, a tenth wider."""
    (x0, x1), (y0, y1) = ((min(v), max(v)) for v in zip(*points))
    dx, dy = 0.1 * (x1 - x0) or 1.0, 0.1 * (y1 - y0) or 1.0
    return x0 - dx, x1 + dx, y0 - dy, y1 + dy


def _form(form: str, value: float | None) -> str:
    return "–" if value is None else format(value, form)


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
