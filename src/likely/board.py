"""`compare`: every family on one data set, side by side -> rows.json, the models, report.html.

Each model is fitted and measured in a process of its own (`likely.worker`), `jobs` at a time. Families
solved in closed form come first; the wall clock that they leave of `minutes`, half of it at least, is
shared equally by the others. A row is written as soon as it is known, and one that is there with the same settings is kept.

    OUT/rows.json   OUT/about.json   OUT/report.html   OUT/models/NAME[-SEED]   OUT/logs/NAME[-SEED].txt
"""

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from likely import families
from likely.errors import LikelyError, UsageError
from likely.evaluation.row import Row, read_rows, write_rows
from likely.launch import Worker
from likely.report.terminal import Screen

if TYPE_CHECKING:
    from likely.dataset import Data

__all__ = ["compare"]


def compare(
    data: Any,
    models: Iterable[str] | Mapping[str, dict[str, Any]] | None = None,
    *,
    minutes: float = 3.0,
    steps: int | None = None,
    seeds: int = 1,
    seed: int = 0,
    jobs: int | None = None,
    out: str | Path | None = None,
    size: str = "small",
    given: Any = None,
    device: str = "auto",
    screen: Screen | None = None,
) -> list[Row]:
    """Fit and measure many families on one data set.

    Args:
        data: a `Data`, or anything that `likely.load` reads.
        models: registered names, or name -> options; all featured families that model such data by default.
        minutes: wall clock of training over all models; steps: instead, so many steps for each.
        seeds: runs of every model, with seeds seed, seed + 1, ...
        jobs: models trained at a time; 2 on a CPU with two cores or more, 1 on an accelerator.
        out: folder, `likely-runs/NAME` by default. The same call goes on where it was stopped.
        given: condition on what the data carry, by name (such as "label") or True: p(x | given); p(x) by default.
        screen: where progress is shown.

    Returns: a row for each model and seed; one that failed says why in `error`.

    Raises: UsageError for an unknown model, a bad budget or an output folder that is not ours.
    """
    from likely.dataset import Data

    if not math.isfinite(minutes) or minutes <= 0 or seeds < 1 or (jobs is not None and jobs < 1) or (steps is not None and steps < 1):
        raise UsageError(f"minutes={minutes}, steps={steps}, seeds={seeds}, jobs={jobs} is not a budget.", "Give positive numbers.")
    if not isinstance(data, Data):
        from likely.sources import load

        data = load(data, given={True: "label", False: None}[given] if isinstance(given, bool) else given)
    if data.weighted:
        raise UsageError("A comparison does not weigh examples.", "Fit one model: likely fit DATA MODEL --weights COLUMN.")
    chosen = _chosen(models, data.space.layout)
    comparison = _Comparison(_conditioned(data, given), out, size, device, jobs, seeds, minutes, steps, screen or Screen())
    return comparison.run([comparison.task(name, options, s) for name, options in chosen.items() for s in range(seed, seed + seeds)])


def _chosen(models: Iterable[str] | Mapping[str, dict[str, Any]] | None, layout: str) -> dict[str, dict[str, Any]]:
    """Names and options; by default of the featured families that model this layout (a family that cannot be imported fails in its row)."""
    if models is None:
        return {name: {} for name in families.featured() if (cls := _family(name)) is None or layout in cls.layouts}
    chosen = dict(models) if isinstance(models, Mapping) else {name: {} for name in models}
    if not chosen:
        raise UsageError("No models to compare.", f"Known: {', '.join(families.names())}.")
    for name in chosen:
        families.family_class(name)
    return chosen


def _family(name: str) -> Any:
    try:
        return families.family_class(name)
    except (ImportError, AttributeError):
        return None


def _conditioned(data: "Data", given: Any) -> "Data":
    """The data with or without its `given`."""
    from likely.evaluation.measure import given_name

    if given is None or given is False:
        return data.unconditional() if data.given is not None else data
    if data.given is None:
        raise UsageError(f"{data.name} carries nothing to condition on.", "Leave `given` out, or load data with labels.")
    known = (given_name(data) or "").split(", ")
    if isinstance(given, str) and not {name.strip() for name in given.split(",")} <= set(known):
        raise UsageError(f"{data.name} is not conditioned on '{given}'.", f"It carries: {given_name(data)}.")
    return data


class _Comparison:
    """One run of `compare`: the tasks, the workers, and the files they leave."""

    def __init__(
        self,
        data: "Data",
        out: str | Path | None,
        size: str,
        device: str,
        jobs: int | None,
        seeds: int,
        minutes: float,
        steps: int | None,
        screen: Screen,
    ) -> None:
        from likely.evaluation.measure import given_name
        from likely.store import claim_folder

        self.data, self.size, self.device, self.seeds = data, size, device, seeds
        self.minutes, self.steps, self.screen = minutes, steps, screen
        self.out = claim_folder(out or Path("likely-runs") / re.sub(r"[^\w.-]+", "-", data.name).strip("-."))
        self.given, self.fingerprint = given_name(data), _fingerprint(data)
        self.jobs = jobs or _default_jobs(device)
        self.rows: list[Row] = []
        self.lock, self.workers, self.stopping = Lock(), set[Worker](), False

    # -- tasks ----------------------------------------------------------------------------------

    def task(self, name: str, options: dict[str, Any], seed: int) -> Row:
        """The row of a model that is yet to be run."""
        folder = f"models/{families.slug(name)}" + (f"-{seed}" if self.seeds > 1 else "")
        return Row(name, size=self.size, seed=seed, options=options, data=self.data.name, given=self.given, folder=folder)

    def run(self, tasks: list[Row]) -> list[Row]:
        """Run what is not done yet: the closed forms, then the others; report in the end, also when interrupted."""
        from likely.report.about import about

        closed, gradient = self._sorted(tasks)
        for row in tasks:
            row.settings = self._digest(row, None if row in closed else len(gradient))
        wanted = {row.settings for row in tasks}
        self.rows = [row for row in read_rows(self.out / "rows.json") if row.settings in wanted and not row.error]
        self.order = [row.settings for row in tasks]
        write_rows(self.out / "rows.json", self.rows)
        facts = about(self.data, self.given, minutes=self.minutes, steps=self.steps, seeds=self.seeds, jobs=self.jobs, size=self.size)
        _write_json(self.out / "about.json", facts)
        for line in self.data.repeats():
            self.screen.say(f"warning: {line}")
        try:
            with tempfile.TemporaryDirectory(prefix="likely-") as temporary, self.screen:
                self._prepare(Path(temporary), facts["floors"])
                self._phase(closed, {})
                self._phase(gradient, self._share(closed, gradient))
        except KeyboardInterrupt:
            self.screen.say("Interrupted: the same command goes on from here.")
            raise
        finally:
            self._write()
        return self.rows

    def _sorted(self, tasks: list[Row]) -> tuple[list[Row], list[Row]]:
        """Tasks that need no budget, and those that share it."""
        from likely.abilities import ClosedForm

        closed = [row for row in tasks if (cls := _family(row.model)) is not None and issubclass(cls, ClosedForm)]
        return closed, [row for row in tasks if row not in closed]

    def _digest(self, row: Row, sharing: int | None) -> str:
        """What the row depends on; a closed form does not depend on the budget."""
        budget = None if sharing is None else {"steps": self.steps} if self.steps else [self.minutes, self.jobs, sharing]
        what = [row.model, row.size, row.seed, row.options, row.given, self.fingerprint, budget]
        return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def _share(self, closed: list[Row], gradient: list[Row]) -> dict[str, Any]:
        """Each gradient model's equal share of the wall clock that is left, half of it all at least; one half-finished keeps its share."""
        if self.steps:
            return {"steps": self.steps}
        if not gradient:
            return {}
        path, key = self.out / "logs" / "share.json", hashlib.sha256("".join(row.settings for row in gradient).encode()).hexdigest()
        before = json.loads(path.read_text()) if path.exists() else {}
        if before.get("key") != key:
            settings = {row.settings for row in closed}
            used = sum(row.seconds or 0.0 for row in self.rows if row.settings in settings) / self.jobs
            rounds = math.ceil(len(gradient) / self.jobs)
            before = {"key": key, "seconds": round(max(30 * self.minutes, 60 * self.minutes - used) / rounds, 1)}
            _write_json(path, before)
        return {"minutes": before["seconds"] / 60}

    # -- workers --------------------------------------------------------------------------------

    def _prepare(self, temporary: Path, floors: dict[str, Any]) -> None:
        from likely.worker import ship

        (self.out / "logs").mkdir(exist_ok=True)
        ship(self.data, temporary / "data.pt")
        self.common = {"data": str(temporary / "data.pt"), "device": self.device, "floors": floors}

    def _phase(self, tasks: list[Row], budget: dict[str, Any]) -> None:
        """Run tasks, `jobs` at a time, until all have ended."""
        done = {row.settings for row in self.rows}
        tasks = [row for row in tasks if row.settings not in done]
        jobs = max(1, min(self.jobs, len(tasks)))
        threads = max(1, _cores() // jobs)
        pool = ThreadPoolExecutor(jobs)
        try:
            for future in [pool.submit(self._one, row, budget, threads) for row in tasks]:
                future.result()
        finally:
            self.stopping = True
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in list(self.workers):
                worker.stop()
            pool.shutdown()
            self.stopping = False

    def _one(self, row: Row, budget: dict[str, Any], threads: int) -> None:
        """Run one model to its row, whatever happens to its process; a fault of our own (a full disk) stops the others, too."""
        if self.stopping:
            return
        name = Path(row.folder).name
        try:
            result = self._work(name, row, budget, threads)
            if not self.stopping:
                self._finish(name, Row.from_json(result))
        except BaseException:
            self.stopping = True
            raise

    def _work(self, name: str, row: Row, budget: dict[str, Any], threads: int) -> dict[str, Any]:
        task = {**self.common, "row": row.to_json(), "budget": budget, "threads": threads, "out": str(self.out / row.folder)}
        self._clear_stale(name, task)
        worker = Worker(task, self.out / "logs" / f"{name}.txt")
        self.workers.add(worker)
        self.screen.progress(name, {"phase": "starting"})
        try:
            return worker.run(lambda record: self.screen.progress(name, record))
        finally:
            self.workers.discard(worker)

    def _clear_stale(self, name: str, task: dict[str, Any]) -> None:
        """Remove a model of other settings; one of the same settings is taken up where it was stopped."""
        path, what = self.out / "logs" / f"{name}.json", {"settings": task["row"]["settings"], "budget": task["budget"]}
        if (not path.exists() or json.loads(path.read_text()) != what) and (self.out / task["row"]["folder"]).exists():
            self.screen.say(f"{name}: replacing a model of other settings in {task['out']}")
            shutil.rmtree(task["out"])
        _write_json(path, what)

    def _finish(self, name: str, row: Row) -> None:
        with self.lock:
            self.rows.append(row)
            self.rows.sort(key=lambda r: self.order.index(r.settings))
            write_rows(self.out / "rows.json", self.rows)
            self.screen.finished(name, row, self.rows)

    def _write(self) -> None:
        """The boards and the report."""
        from likely.report.html import write_report

        write_rows(self.out / "rows.json", self.rows)
        self.screen.summary(self.rows)
        if self.rows:
            self.screen.say(f"Report: {write_report(self.rows, self.out)}")


def _default_jobs(device: str) -> int:
    import torch

    accelerated = torch.cuda.is_available() or torch.backends.mps.is_available()
    return 1 if device not in ("cpu", "auto") or (device == "auto" and accelerated) else min(2, _cores())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _fingerprint(data: "Data") -> str:
    """A digest of the space and of what is in every split."""
    from likely.noise import row_hash

    parts = [json.dumps(data.space.to_json(), default=str), json.dumps(data.card.get("augment"), default=str)]
    for split in data.splits.values():
        step = max(1, len(split) // 1024)
        for values in (split.x, split.given):
            parts.append("" if values is None else f"{len(values)}:{row_hash(values[::step]).sum().item()}")
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def _write_json(path: Path, record: Any) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1, default=str))
    except OSError as error:
        raise LikelyError(f"Cannot write {path}: {error.strerror}.", "Name another --out.") from error
