"""Comparisons: budgets, failures, resuming; and what a worker's death leaves."""

import io
import json
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch
from rich.console import Console

from likely import board, families, worker
from likely.abilities import ClosedForm, Likelihood
from likely.board import compare
from likely.dataset import Data, Split
from likely.errors import UsageError
from likely.evaluation.row import Row, read_rows
from likely.families import Family
from likely.launch import Worker
from likely.model import Model
from likely.report.terminal import Screen
from likely.space import Space


@pytest.fixture
def data():
    """Three equal entries, and which: 200 rows."""
    value = torch.randint(3, (200, 1), generator=torch.Generator().manual_seed(0))
    x = value.expand(200, 4).reshape(200, 1, 2, 2).contiguous()
    split = [Split(x[a:b], value[a:b]) for a, b in ((0, 120), (120, 140), (140, 200))]
    return Data(Space.grid(1, 2, 2, 3), *split, given=Space.label(3), name="equal entries", card={"source": "test"})


@pytest.fixture
def screen():
    return Screen(Console(file=io.StringIO(), width=160))


class Solved(Model, Likelihood, ClosedForm):
    summary = "solved"

    def forward(self, x, given=None, *, turn=""): ...
    def sample(self, n, given=None, **how): ...
    def solve(self, train, valid): ...
    def _log_prob(self, x, given, noise): ...


class Trained(Model):
    summary = "trained"

    def forward(self, x, given=None, *, turn=""): ...
    def sample(self, n, given=None, **how): ...


CLASSES = {"a": Solved, "b": Solved, "c": Trained, "d": Trained, "e": Trained}


@pytest.fixture
def canned(monkeypatch):
    """Workers that answer at once: closed forms take 10 s, others what they were given. Returns the tasks they got."""
    tasks = []
    outcomes = {}

    class Canned:
        def __init__(self, task, log):
            self.task = task
            tasks.append(task)

        def run(self, progress):
            row = self.task["row"]
            if "raise" in outcomes.get(row["model"], ""):
                raise KeyboardInterrupt
            progress({"phase": "evaluating"})
            seconds = 10.0 if not self.task["budget"] else 60 * self.task["budget"].get("minutes", 0)
            done = {"value": 1.0 + row["seed"], "unit": "bits/dim", "kind": "exact", "seconds": seconds}
            Path(self.task["out"]).mkdir(parents=True, exist_ok=True)
            return {**row, **done, "error": outcomes.get(row["model"], "")}

        def stop(self): ...

    monkeypatch.setattr(board, "Worker", Canned)
    monkeypatch.setattr(board, "_cores", lambda: 2)
    monkeypatch.setattr("likely.evaluation.quality.floors", lambda data, n: {})
    monkeypatch.setattr(board.families, "family_class", CLASSES.__getitem__)
    monkeypatch.setattr(board.families, "featured", lambda: list(CLASSES))
    return tasks, outcomes


def ran(tasks):
    return [t["row"]["model"] for t in tasks]


def test_what_is_not_featured_is_compared_only_where_it_is_named(monkeypatch):
    monkeypatch.setattr(families, "registry", lambda: {"vae": Family("x:A"), "gan": Family("x:B", featured=False)})
    monkeypatch.setattr(board.families, "family_class", lambda name: Trained)
    assert list(board._chosen(None, "grid")) == ["vae"]
    assert list(board._chosen(["gan"], "grid")) == ["gan"]


# -- budgets --------------------------------------------------------------------------------------


def test_what_closed_forms_leave_goes_to_the_others_in_equal_shares(data, screen, canned, tmp_path):
    rows = compare(data, minutes=2, jobs=2, out=tmp_path, screen=screen)
    tasks, _ = canned
    assert set(ran(tasks)[:2]) == {"a", "b"}
    assert [t["budget"] for t in tasks[:2]] == [{}, {}]
    # 2 min of wall clock less 20 s of closed forms on two jobs, in two rounds: 55 s each
    assert [t["budget"] for t in tasks[2:]] == [{"minutes": pytest.approx(55 / 60)}] * 3
    assert [t["threads"] for t in tasks] == [1] * 5
    assert [r.model for r in rows] == list("abcde")
    assert (tmp_path / "report.html").exists()


def test_a_single_model_has_the_whole_budget_and_all_threads(data, screen, canned, tmp_path):
    compare(data, ["c"], minutes=2, out=tmp_path, screen=screen)
    (task,) = canned[0]
    assert task["budget"] == {"minutes": 2.0}
    assert task["threads"] == 2


def test_seeds_share_too_and_have_folders_of_their_own(data, screen, canned, tmp_path):
    rows = compare(data, ["c"], seeds=2, seed=5, minutes=1, jobs=1, out=tmp_path, screen=screen)
    assert [t["budget"] for t in canned[0]] == [{"minutes": 0.5}] * 2
    assert [(r.seed, r.folder) for r in rows] == [(5, "models/c-5"), (6, "models/c-6")]


# -- failures and resuming ------------------------------------------------------------------------


def test_a_failure_is_a_row_and_is_tried_again(data, screen, canned, tmp_path):
    tasks, outcomes = canned
    outcomes["c"] = "ValueError: no"
    rows = compare(data, out=tmp_path, screen=screen)
    assert [r.error for r in rows] == ["", "", "ValueError: no", "", ""]
    assert "no" in (tmp_path / "report.html").read_text()
    share = tasks[-1]["budget"]
    tasks.clear(), outcomes.clear()
    rows = compare(data, out=tmp_path, screen=screen)
    assert ran(tasks) == ["c"]
    assert tasks[0]["budget"] == share
    assert not any(r.error for r in rows)
    assert [r.model for r in read_rows(tmp_path / "rows.json")] == list("abcde")


def test_a_stopped_comparison_goes_on_where_it_was(data, screen, canned, tmp_path):
    tasks, outcomes = canned
    outcomes["d"] = "raise"
    with pytest.raises(KeyboardInterrupt):
        compare(data, jobs=1, out=tmp_path, screen=screen)
    assert [r.model for r in read_rows(tmp_path / "rows.json")] == ["a", "b", "c"]
    assert (tmp_path / "report.html").exists()
    tasks.clear(), outcomes.clear()
    (tmp_path / "models/d").mkdir()
    (tmp_path / "models/d/half trained").touch()
    compare(data, jobs=1, out=tmp_path, screen=screen)
    assert ran(tasks) == ["d", "e"]
    assert (tmp_path / "models/d/half trained").exists()


def test_other_settings_replace_what_depends_on_them(data, screen, canned, tmp_path):
    tasks, _ = canned
    compare(data, ["a", "c"], minutes=1, out=tmp_path, screen=screen)
    (tmp_path / "models/c/weights").touch()
    tasks.clear()
    compare(data, ["a", "c"], minutes=2, out=tmp_path, screen=screen)
    assert ran(tasks) == ["c"]  # a closed form has no budget
    assert not (tmp_path / "models/c/weights").exists()
    tasks.clear()
    other = Data(data.space, data.train, data.valid, Split(data.test.x.flip(0)[:50]), name=data.name)
    compare(other, ["a", "c"], minutes=2, out=tmp_path, screen=screen)
    assert set(ran(tasks)) == {"a", "c"}


def test_repeats_of_real_columns_are_told_before_anything_runs(screen, canned, tmp_path):
    half = torch.randn(200, 1, generator=torch.Generator().manual_seed(0)).relu()
    split = [Split(half[a:b]) for a, b in ((0, 120), (120, 140), (140, 200))]
    compare(Data(Space.reals(1), *split, name="half"), ["c"], out=tmp_path / "run", screen=screen)
    told = screen.console.file.getvalue()
    assert 0 <= told.find("warning: Column x0") < told.find("c:")


def test_conditional_rows_say_so(data, screen, canned, tmp_path):
    assert [r.given for r in compare(data, ["c"], out=tmp_path / "1", given="label", screen=screen)] == ["label"]
    assert [r.given for r in compare(data, ["c"], out=tmp_path / "2", screen=screen)] == [None]
    with pytest.raises(UsageError, match="not conditioned on 'caption'"):
        compare(data, ["c"], out=tmp_path / "3", given="caption", screen=screen)
    with pytest.raises(UsageError, match="nothing to condition on"):
        compare(data.unconditional(), ["c"], out=tmp_path / "3", given=True, screen=screen)


def test_bad_arguments_stop_before_anything_runs(data, tmp_path):
    with pytest.raises(UsageError, match="Did you mean 'flow'"):
        compare(data, ["flwo"], out=tmp_path)
    with pytest.raises(UsageError, match="not a budget"):
        compare(data, ["flow"], minutes=0, out=tmp_path)
    with pytest.raises(UsageError, match="No models"):
        compare(data, [], out=tmp_path)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UsageError, match="not a folder of likely"):
        compare(data, ["histogram"], out=tmp_path)


# -- workers --------------------------------------------------------------------------------------


def started(tmp_path, monkeypatch, code):
    """A worker that runs `code` in place of ours."""
    monkeypatch.setattr(Worker, "command", (sys.executable, "-S", "-c", code))
    return Worker({"row": {"model": "flow", "error": ""}, "threads": 1}, tmp_path / "flow.txt")


def test_worker_passes_progress_on_and_returns_its_row(tmp_path, monkeypatch):
    code = """print('{"progress": {"step": 1}}\\nnoise\\n{"row": {"model": "flow", "value": 2}}')"""
    heard = []
    assert started(tmp_path, monkeypatch, code).run(heard.append) == {"model": "flow", "value": 2}
    assert heard == [{"step": 1}]


def test_a_killed_worker_is_a_row_with_its_signal(tmp_path, monkeypatch):
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    row = started(tmp_path, monkeypatch, code).run(print)
    assert row == {"model": "flow", "error": "The process was killed by SIGKILL (out of memory?); see logs/flow.txt."}


def test_a_crashed_worker_is_a_row_with_its_last_words(tmp_path, monkeypatch):
    row = started(tmp_path, monkeypatch, "import sys; print('bang', file=sys.stderr); sys.exit(3)").run(print)
    assert row["error"] == "The process ended with exit code 3: bang"


def test_a_stopped_worker_ends(tmp_path, monkeypatch):
    process = started(tmp_path, monkeypatch, """import time; print('{"progress": {}}', flush=True); time.sleep(60)""")
    running = threading.Event()
    threading.Thread(target=lambda: (running.wait(), process.stop())).start()
    assert "SIGTERM" in process.run(lambda record: running.set())["error"]


def test_shipped_data_arrives_whole(data, tmp_path):
    worker.ship(data, tmp_path / "data.pt")
    back = worker.receive(tmp_path / "data.pt")
    assert (back.space, back.given, back.name, back.card) == (data.space, data.given, data.name, data.card)
    assert all(
        torch.equal(back.splits[s].x, data.splits[s].x) and torch.equal(back.splits[s].given, data.splits[s].given) for s in data.splits
    )


def test_windows_of_a_text_are_shipped_once(tmp_path):
    stream = torch.arange(10_000) % 256
    split = Split(stream.unfold(0, 256, 1), stream=stream)
    worker.ship(Data(Space.sequence(256), split, split, split), tmp_path / "data.pt")
    assert (tmp_path / "data.pt").stat().st_size < 200_000
    assert torch.equal(worker.receive(tmp_path / "data.pt").train.x[9], stream[9 : 9 + 256])


def test_errors_are_one_line():
    assert worker.describe_error(UsageError("No such thing.", "Try another.")) == "No such thing. Try another."
    try:
        json.loads("{\n")
    except ValueError as error:
        line = worker.describe_error(error)
    assert line.startswith("JSONDecodeError: Expecting property name")
    assert "\n" not in line


def test_work_fits_and_measures_in_process(data, tmp_path):
    worker.ship(data.unconditional(), tmp_path / "data.pt")
    row = Row("histogram", size="tiny", data=data.name, folder="models/histogram", settings="s").to_json()
    common = {"device": "cpu", "threads": 1, "floors": None, "data": str(tmp_path / "data.pt"), "out": str(tmp_path / "models/histogram")}
    sent = []
    result = worker.run({**common, "row": row, "budget": {}}, sent.append)
    assert sent[-1] == {"progress": {"phase": "evaluating"}}
    assert 0 < result["value"] <= 1.7
    assert (result["kind"], result["unit"], result["n"], result["settings"]) == ("exact", "bits/dim", 60, "s")
    assert result["quality"]["coverage"]["n"] == 60
    for name in ("config.json", "model.safetensors", "gallery.json", "row.json"):
        assert (tmp_path / "models/histogram" / name).exists()


@pytest.mark.slow
def test_compare_end_to_end_in_processes(data, tmp_path, screen):
    """Real workers: one good model, one that is killed while it trains, one option that does not exist."""
    killed = {"done": False}

    class Killer(Screen):
        def progress(self, name, record):
            if name == "autoregressive" and "train" in record and not killed["done"]:
                killed["done"] = True
                for process in Path("/proc").glob("[0-9]*/cmdline"):
                    if b"likely.worker" in process.read_bytes() and int(process.parent.name) in children():
                        os.kill(int(process.parent.name), signal.SIGKILL)

    def children():
        return {
            int(p.parent.name) for p in Path("/proc").glob("[0-9]*/stat") if int(p.read_text().rsplit(")", 1)[1].split()[1]) == os.getpid()
        }

    models = {"histogram": {}, "flow": {"no_such": 1}, "autoregressive": {}}
    rows = compare(data, models, steps=5, size="tiny", jobs=1, out=tmp_path, screen=Killer(screen.console))
    outcome = {r.model: r.error for r in rows}
    assert outcome["histogram"] == ""
    assert "no option 'no_such'" in outcome["flow"]
    assert "SIGKILL" in outcome["autoregressive"] or not killed["done"]
    again = compare(data, ["histogram", "autoregressive"], steps=5, size="tiny", jobs=1, out=tmp_path, screen=screen)
    assert [r.error for r in again] == ["", ""]
