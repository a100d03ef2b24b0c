r"""What is in a data set, before any model: counts, entropies, duplicates, and the trivial code lengths to beat.

uniform     log2 of the number of values (of a number without bounds: of those between the smallest and the
            largest in the data); a density's in nats
histogram   every entry on its own, counted on the training split and scored on the test split:
            levels and categories with one added to each count; numbers without levels by

            p(v) = (1 - m) c_v / n + m a(v),    m = (values seen once + 1) / (n + 2)   (Good-Turing)

            with a(v) uniform inside each of ~ 2 n^(1/3) bins of equal mass and exponential tails outside
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from likely.dataset import Data, Split
from likely.space import MISSING, Support, to_grid

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["describe", "print_description"]


def describe(data: Data) -> dict[str, Any]:
    """Facts of a data set, plain values only; entropies are in bits, `trivial` in `unit`."""
    counted = ("tokens" if data.space.vocabulary else "bytes") if data.space.layout == "sequence" else "examples"
    return {
        "name": data.name,
        "space": str(data.space),
        "given": None if data.given is None else str(data.given),
        "unit": data.space.unit,
        "sizes": data.card.get("split", {}).get("sizes", {part: len(s) for part, s in data.splits.items()}),
        "counted_in": counted,
        "entropy": _entropies(data),
        "trivial": _trivial(data),
        "true_entropy": None if data.truth is None else data.truth.entropy / data.nats_per_unit,
        "repeats": data.repeats(),
        "card": data.card,
    }


def _entries(data: Data, split: Split) -> np.ndarray:
    """Values as [examples, entries]; a text has one entry."""
    if split.stream is not None:
        return split.stream.numpy()[:, None]
    x = split.x.flatten(1).numpy()
    return x.reshape(-1, 1) if data.space.layout == "sequence" else x


def _supports(data: Data) -> list[Support]:
    """The support of each entry, as `_entries` orders them."""
    supports, dims = list(data.space.supports), data.space.dims
    if data.space.layout == "sequence":
        return supports
    return supports * data.space.shape[0] if data.space.layout == "set" else [s for s in supports for _ in range(dims // len(supports))]


def _entropies(data: Data) -> list[dict[str, Any]]:
    """Empirical entropy of each column; of each channel's pixels the mean, least and most. Densities have none here."""
    if data.space.layout == "set" or not data.space.discrete:
        return []
    bits = [_entropy(column) for column in _entries(data, data.train).T]
    if data.space.layout != "grid":
        return [{"name": s.name or "byte", "bits": b, "values": _states(s)} for s, b in zip(_supports(data), bits, strict=True)]
    by_channel = np.array(bits).reshape(data.space.shape[0], -1)
    return [
        {"name": f"channel {i}", "bits": float(b.mean()), "least": float(b.min()), "most": float(b.max()), "constant": int((b == 0).sum())}
        for i, b in enumerate(by_channel)
    ]


def _states(s: Support) -> str:
    return str(s.states) if s.states else f"grid of {s.decimals} decimals" + (", missing" if s.missing else "")


def _entropy(column: np.ndarray) -> float:
    counts = np.unique(column, return_counts=True)[1]
    p = counts / counts.sum()
    return float(max(0.0, -(p * np.log2(p)).sum()))


def _trivial(data: Data) -> dict[str, float] | None:
    """Code lengths of the test split in the data's unit; None for sets."""
    if data.space.layout == "set":
        return None
    train, test, every = (_entries(data, s) for s in (data.train, data.test, data.valid))
    every = np.concatenate([train, every, test])
    per = data.nats_per_unit if data.space.layout != "sequence" else math.log(2) * _mean_size(data)
    columns = list(zip(_supports(data), train.T, test.T, every.T, strict=True))
    uniform = sum(_uniform_nats(s, all_) for s, _, _, all_ in columns)
    histogram = sum(_histogram_nats(s, fit, score) for s, fit, score, _ in columns)
    return {"uniform": uniform / per, "histogram": histogram / per}


def _mean_size(data: Data) -> float:
    """Mean of what a symbol of the test text counts for: bytes of a token, 1 of a byte."""
    x = data.test.x if data.test.stream is None else data.test.stream
    return float(data.space.sizes(x[x >= 0]).double().mean())


def _uniform_nats(s: Support, values: np.ndarray) -> float:
    if s.states is not None:
        return math.log(s.states)
    present = _present(s, values)
    if not len(present):
        return 0.0
    width = float(present.max() - present.min()) + (s.kind != "real")
    flag = math.log(2) if s.missing else 0.0
    return flag + math.log(max(width, 1e-12)) * len(present) / len(values)


def _histogram_nats(s: Support, train: np.ndarray, test: np.ndarray) -> float:
    """Mean -log p of a column's test values."""
    if s.states is not None:
        counts = np.bincount(train + s.missing, minlength=s.states)
        return float(-np.log((counts + 1) / (len(train) + s.states))[test + s.missing].mean())
    fit, score = _present(s, train), _present(s, test)
    total = -_log_numbers(fit, score, real=s.kind == "real").sum() if len(score) else 0.0
    if s.missing:
        lost = (len(train) - len(fit) + 1) / (len(train) + 2)
        total -= len(score) * math.log1p(-lost) + (len(test) - len(score)) * math.log(lost)
    return float(total / len(test))


def _present(s: Support, column: np.ndarray) -> np.ndarray:
    """Numbers that are not missing, decimals as grid indices."""
    if s.kind == "real":
        return column[np.isfinite(column)].astype(np.float64)
    import torch

    return to_grid(torch.from_numpy(column[column != MISSING])).numpy().astype(np.float64)


def _log_numbers(train: np.ndarray, test: np.ndarray, *, real: bool) -> np.ndarray:
    """log p of numbers: the mixture of the header for integers, its smooth part for reals."""
    smooth = _log_smooth(train, test, real=real)
    if real:
        return smooth
    values, counts = np.unique(train, return_counts=True)
    unseen = (float((counts == 1).sum()) + 1) / (len(train) + 2)
    place = np.searchsorted(values, test).clip(0, len(values) - 1)
    spikes = np.where(values[place] == test, counts[place], 0) / len(train)
    with np.errstate(divide="ignore"):  # no spike is a log of zero
        return np.logaddexp(np.log((1 - unseen) * spikes), math.log(unseen) + smooth)


def _log_smooth(train: np.ndarray, test: np.ndarray, *, real: bool) -> np.ndarray:
    """log a(v): uniform in bins of equal mass, with tails of mass 1 / (n + 2) each and the width of the range."""
    bins = math.ceil(2 * len(train) ** (1 / 3))
    edges = np.unique(np.quantile(train, np.linspace(0, 1, bins + 1), method="lower"))
    edges = np.append(edges[:-1], np.nextafter(edges[-1], math.inf)) if real and len(edges) > 1 else np.append(edges, edges[-1] + 1)
    counts = np.histogram(train, edges)[0]
    inside = np.log(counts / len(train) * len(train) / (len(train) + 2)) - np.log(np.diff(edges))
    place = np.searchsorted(edges, test, side="right") - 1
    scale = float(edges[-1] - edges[0])
    outside = np.maximum(edges[0] - (0 if real else 1) - test, test - edges[-1])
    rate = 1 / scale if real else -math.expm1(-1 / scale)
    tail = -math.log(len(train) + 2) + math.log(rate) - outside / scale
    return np.where((place >= 0) & (place < len(counts)), inside[place.clip(0, len(counts) - 1)], tail)


def print_description(facts: dict[str, Any], console: "Console | None" = None) -> None:
    """Print what `describe` found."""
    from rich.console import Console

    (console or Console()).print(_rendered(facts))


def _rendered(facts: dict[str, Any]) -> "RenderableType":
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    head = Table.grid(padding=(0, 2))
    for name, value in _lines(facts):
        head.add_row(f"[bold]{name}", escape(value))
    if not facts["entropy"]:
        return head
    table = Table("entry", "bits", "of values", title="empirical entropy, training split", title_justify="left", box=None)
    for row in facts["entropy"]:
        span = row.get("values", f"{row.get('least', 0):.2f} to {row.get('most', 0):.2f} a pixel, {row.get('constant')} constant")
        table.add_row(escape(row["name"]), f"{row['bits']:.3f}", span)
    return Group(head, table)


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    sizes = ", ".join(f"{n} {part}" for part, n in facts["sizes"].items())
    lines = [("data", facts["name"]), ("space", facts["space"]), (facts["counted_in"], sizes)]
    if facts["given"]:
        lines.append(("given", facts["given"]))
    if facts["trivial"]:
        trivial = facts["trivial"]
        lines.append(("trivial", f"{trivial['uniform']:.3f} uniform, {trivial['histogram']:.3f} histogram, {facts['unit']}"))
    if facts["true_entropy"] is not None:
        lines.append(("true entropy", f"{facts['true_entropy']:.4f} {facts['unit']}"))
    lines += [("repeats", line) for line in facts["repeats"]]
    shown = {k: v for k, v in facts["card"].items() if k not in ("source", "options", "split")}
    return lines + [(name.replace("_", " "), _listed(value, ours=name == "duplicates")) for name, value in shown.items()]


def _listed(value: Any, *, ours: bool = False) -> str:
    """Counts by name: names of `ours` are put in words, those of the data are left as they are."""
    if isinstance(value, dict):
        return ", ".join(f"{k.replace('_', ' ') if ours else k} {v}" for k, v in value.items() if v) or "none"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
