"""Charts as SVG that takes the page's own colours: what is black here is `currentColor` there, so that dark pages work."""

import io
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from likely.report.leaderboard import Entry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["claims_chart", "colours", "curves_chart", "points_svg"]

Frame = tuple[float, float, float, float]
PALETTE = ("#4e79a7", "#f28e2b", "#e15759", "#2a9d8f", "#59a14f", "#c9a227", "#b07aa1", "#d37295", "#9c755f", "#7f7f8c")
MARKERS = {"exact": "o", "lower bound": "v", "numerical": "D", "estimate": "*"}  # a bound's true value lies below


def colours(names: Sequence[str]) -> dict[str, str]:
    """One colour per model, the same all over the report."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}


def claims_chart(entries: Sequence[Entry], unit: str, colour: dict[str, str], entropy: float | None = None) -> str:
    """Test claims against seconds of training; thin lines are the validation loss on the way there. "" if nothing has a value."""
    shown = [(e, e.value, max(seconds, 0.01)) for e in entries if e.value is not None and (seconds := e.mean("seconds")) is not None]
    if not shown:
        return ""
    figure, axes = _figure(10.0, 4.6)
    low, high = _range([value for _, value, _ in shown] + ([entropy] if entropy is not None else []))
    for entry, value, seconds in shown:
        _validation_line(axes, entry, colour[entry.name])
        style = {"markersize": 7, "zorder": 3, "clip_on": False, "capsize": 2}
        axes.errorbar(seconds, value, yerr=entry.row.stderr or 0.0, fmt=MARKERS[entry.row.kind or "exact"], c=colour[entry.name], **style)
    if entropy is not None:
        axes.axhline(entropy, color="black", linewidth=1, linestyle=":")
        axes.annotate(
            "known entropy", (0, entropy), xycoords=("axes fraction", "data"), xytext=(4, 3), textcoords="offset points", fontsize=8
        )
    axes.set(xscale="log", ylim=(low, high), xlabel="seconds of training", ylabel=unit)
    axes.xaxis.set_major_formatter("{x:g}")
    _labels(axes, [(e.name, value) for e, value, _ in shown], colour, low, high)
    return _svg(figure)


def curves_chart(entry: Entry, colour: str) -> str:
    """Training (thin) and validation (thick) loss of one model; "" if it left no curve."""
    curve = [p for p in entry.row.curve if p.get("seconds") is not None]
    if len(curve) < 2:
        return ""
    figure, axes = _figure(3.0, 1.9)
    for key, width in (("train", 0.8), ("valid", 1.8)):
        points = [(p["seconds"], p[key]) for p in curve if p.get(key) is not None and math.isfinite(p[key])]
        if points:
            axes.plot(*zip(*points), color=colour, linewidth=width, alpha=1.0 if key == "valid" else 0.55)
    values = sorted(p[k] for p in curve[len(curve) // 10 :] for k in ("train", "valid") if p.get(k) is not None and math.isfinite(p[k]))
    if values:
        axes.set_ylim(*_range([values[0], values[int(0.98 * (len(values) - 1))]]))
    axes.tick_params(labelsize=7)
    axes.locator_params(nbins=4)
    return _svg(figure)


def points_svg(points: Sequence[Sequence[float]], frame: Frame) -> str:
    """A scatter plot as one SVG path; `frame` is x0, x1, y0, y1 of all plots that are compared."""
    x0, x1, y0, y1 = frame
    size = 140
    dots = "".join(
        f"M{size * (x - x0) / (x1 - x0):.1f} {size * (y1 - y) / (y1 - y0):.1f}h0" for x, y in points if x0 <= x <= x1 and y0 <= y <= y1
    )
    return (
        f'<svg viewBox="0 0 {size} {size}" role="img" aria-label="scatter plot"><path d="{dots}" fill="none" stroke="currentColor"/></svg>'
    )


def _figure(width: float, height: float) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="black", alpha=0.12, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _validation_line(axes: "Axes", entry: Entry, colour: str) -> None:
    points = [(p["seconds"], p["valid"]) for p in entry.row.curve if p.get("valid") is not None and p.get("seconds", 0) > 0]
    if points and entry.standing == "ranked":  # what an energy model minimises is no code length
        axes.plot(*zip(*points), color=colour, linewidth=1, alpha=0.6)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Limits with a margin; wide enough for a single value."""
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _labels(axes: "Axes", names: Sequence[tuple[str, float]], colour: dict[str, str], low: float, high: float) -> None:
    """Names at the right edge, pushed apart so that they do not overlap."""
    gap, at = (high - low) / 20, -math.inf
    places = []
    for name, value in sorted(names, key=lambda p: p[1]):
        at = max(value, at + gap)
        places.append((name, value, at))
    excess = max(0.0, places[-1][2] - high)
    for name, value, place in places:
        axes.annotate(
            name,
            (1.0, value),
            xycoords=("axes fraction", "data"),
            xytext=(1.05, place - excess if place > value else place),
            textcoords=("axes fraction", "data"),
            color=colour[name],
            fontsize=9,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour[name], "linewidth": 0.6},
        )


def _svg(figure: "Figure") -> str:
    """The figure as an inline SVG without any name space or metadata, which HTML does not need."""
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "likely", "font.family": "sans-serif"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"| (width|height)="[\d.]+pt"', "", text).replace("xlink:href", "href")
    return text.replace("#000000", "currentColor").replace("stroke: black", "stroke: currentColor")
