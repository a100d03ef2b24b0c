"""The report stands alone, says what the rows say, and never mixes kinds or conditions silently."""

import base64
import json
import re

import pytest
from rich.console import Console

from likely.evaluation.row import Row
from likely.logprob import SYMBOLS as TRUE_SYMBOLS
from likely.report.html import write_report
from likely.report.leaderboard import SYMBOLS, Entry, boards, duration, number
from likely.report.terminal import Screen
from likely.report.words import closeness, sentence

PIXEL = base64.b64encode(b"not really a picture").decode()


def row(model="flow", value=2.0, kind="lower bound", **rest):
    return Row(model, value, "bits/dim" if value is not None else None, kind, stderr=0.01, n=360, seconds=57.0, data="digits", **rest)


def measured(value, real=0.5, independent=1.0):
    return {"c2st_auc": {"value": value, "real": real, "independent": independent, "n": 360}}


@pytest.fixture
def rows():
    curve = [{"step": i, "seconds": float(i), "train": 3.0 - i / 10, "valid": 3.1 - i / 10} for i in range(1, 9)]
    return [
        row("gan", None, None, quality=measured(0.9), folder="models/gan"),
        row("energy", 1.0, "estimate", quality=measured(0.8)),
        row("autoregressive", 1.9, "exact", quality=measured(0.52), curve=curve, parameters=12345, steps=10),
        row("flow", 2.0, how="uniform dequantization, K=64", quality=measured(0.6)),
        Row("vae", data="digits", error="ValueError: <script>alert('no')</script>"),
    ]


# -- the leaderboard ------------------------------------------------------------------------------


def test_symbols_are_those_of_log_prob():
    assert SYMBOLS == TRUE_SYMBOLS


def test_estimates_never_top_a_board(rows):
    (board,) = boards(rows)
    assert [e.name for e in board.entries] == ["autoregressive", "flow", "energy", "gan", "vae"]
    assert [board.rank(e) for e in board.entries] == [1, 2, None, None, None]
    assert [e.claim for e in board.entries] == ["= 1.900", "<= 2.000", "~ 1.000", "–", "–"]


def test_conditions_and_units_have_boards_of_their_own(rows):
    found = boards([*rows, row(given="label"), Row("kde", 1.0, "nats/row (density)", "exact", data="moons")])
    assert [(b.title, b.unit) for b in found] == [("p(x)", "bits/dim"), ("p(x | label)", "bits/dim"), ("p(x)", "nats/row (density)")]


def test_seeds_show_mean_and_spread():
    entry = Entry((row(value=2.0), row(value=2.2, seed=1), Row("flow", seed=2, error="killed")))
    assert entry.value == pytest.approx(2.1)
    assert entry.spread == pytest.approx(0.1414, abs=1e-3)
    assert entry.uncertainty == "± 0.141 (2 seeds)"
    assert (entry.failed_seeds, entry.standing) == (1, "ranked")


def test_closeness_and_words():
    entry = Entry((row(quality={**measured(0.75), "coverage": {"value": 0.4, "real": 0.9}, "near_copies": {"value": 0.6, "real": 0.05}}),))
    assert closeness(entry, "c2st_auc") == pytest.approx(0.5)
    assert closeness(entry, "coverage") is None
    assert sentence(entry) == (
        "A classifier often tells its examples from real ones (AUC 0.75). They reach 40% of the real examples (real data: 90%). "
        "60% are suspiciously close to training examples."
    )


def test_no_verdict_where_real_examples_are_told_apart_too():
    entry = Entry((row(quality={"c2st_auc": {"value": 1.0, "real": 0.98}}),))
    assert sentence(entry).startswith("A classifier tells even real examples from each other (AUC 0.98)")


def test_numbers_for_people():
    assert [number(v) for v in (None, 0.01234, 7.25, 431, 12300, 4_100_000)] == ["–", "0.0123", "7.25", "431", "12,300", "4.1 M"]
    assert [duration(s) for s in (None, 0.123, 57.4, 245)] == ["–", "0.1 s", "57 s", "4 min 05 s"]


# -- the page -------------------------------------------------------------------------------------


def test_report_is_one_file_that_asks_for_nothing(rows, tmp_path):
    (tmp_path / "models/gan").mkdir(parents=True)
    (tmp_path / "models/gan/gallery.json").write_text(
        json.dumps({"kind": "images", "png": PIXEL, "count": 3, "given": ["a <red> cat", "b"]})
    )
    page = write_report(rows, tmp_path).read_text()
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", page)
    assert set(re.findall(r'(?:src|href)="(.)', page)) <= {"d", "#"}
    assert f"data:image/png;base64,{PIXEL}" in page
    assert "a &lt;red&gt; cat · b" in page
    assert len(page) < 500_000


def test_report_says_what_the_rows_say(rows, tmp_path):
    page = write_report(rows, tmp_path).read_text()
    for text in ("= 1.900", "≤ 2.000", "~ 1.000", "uniform dequantization, K=64", "never ranked", "12,345", "What failed, and why", "0.52"):
        assert text in page
    assert page.index("= 1.900") < page.index("≤ 2.000") < page.index("~ 1.000")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert page.count("<svg") == 2  # the claims, and one model's curves


def test_every_kind_of_example_is_shown(tmp_path):
    shown = {
        "a": {"kind": "text", "excerpts": ["to be <or> not"]},
        "b": {"kind": "table", "columns": ["kg"], "rows": [["1.5"], ["–"]], "more": 3},
        "c": {"kind": "points", "xy": [[0, 0], [1, 1]]},
    }
    for name, gallery in shown.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "gallery.json").write_text(json.dumps(gallery))
        rows = [row("kde", quality=measured(0.5), folder=name)]
        page = write_report(rows, tmp_path, about=facts(gallery)).read_text()
        want = {"a": "to be &lt;or&gt; not", "b": "and 3 more columns", "c": 'aria-label="scatter plot"'}[name]
        assert page.count(want) == 2, name  # the real data and the model


def facts(gallery):
    return {
        "data": "digits",
        "space": "grid 1x8x8 of ordinal(17)",
        "examples": {"train": 1293, "valid": 144, "test": 360},
        "card": {"source": "builtin", "skipped": {}},
        "entropy": {"value": 1.5, "stderr": 0.0},
        "uniform": 4.087,
        "gallery": gallery,
        "settings": {"minutes": 3, "steps": None},
        "machine": {"processor": "a processor", "cores": 2},
        "versions": {"likely": "0.1.0"},
        "date": "2026-01-01 00:00 UTC",
    }


def test_known_entropy_and_the_card_are_shown(tmp_path):
    page = write_report([row()], tmp_path, about=facts({})).read_text()
    for text in ("known entropy is 1.5000", "4.087", "a processor", "builtin", "1,293 training"):
        assert text in page
    assert "skipped" not in page


def test_a_board_of_failures_is_still_a_report(tmp_path):
    page = write_report([Row("flow", data="digits", error="The process was killed by SIGKILL.")], tmp_path).read_text()
    assert "killed by SIGKILL" in page


# -- the terminal ---------------------------------------------------------------------------------


def test_screen_shows_rows_and_what_is_running(rows):
    console = Console(width=140, record=True, force_terminal=True)
    screen = Screen(console)
    screen.progress("vae", {"step": 120, "train": 2.345, "valid": 2.4, "unit": "bits/dim", "steps_per_s": 80.0, "seconds_left": 12.0})
    screen.rows = rows
    console.print(screen._view())
    screen.finished("vae", rows[-1], rows)
    screen.summary(rows)
    text = console.export_text()
    assert "vae: step 120, loss 2.345 bits/dim, validation 2.400, 80 steps/s, 12 s left" in text
    assert "vae: failed: ValueError" in text
    assert "= 1.900" in text
    assert "vae" not in screen.running


def test_a_narrow_terminal_keeps_names_and_claims(rows):
    console = Console(width=80, record=True, force_terminal=True)
    Screen(console).summary(rows)
    text = console.export_text()
    for word in ("autoregressive", "= 1.900", "<= 2.000", "C2ST AUC", "57 s"):
        assert word in text
