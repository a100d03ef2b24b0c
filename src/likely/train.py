"""`fit`: one training loop for every family, on one machine or many. The only importer of `accelerate`.

Every step is a pure function of the state before it: its examples follow from (seed, step), its noise
from (seed, step, rank), and a checkpoint holds weights, optimisers, averages, buffers, the best
weights and the counters. So a run that is killed and repeated goes on as if nothing had happened, bit
for bit on a CPU where the budget is in steps or epochs.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from likely import families, store
from likely.abilities import ClosedForm, Combined, Phase, Tuned, Weighted
from likely.dataset import Data
from likely.errors import TrainingError, UsageError
from likely.model import Model
from likely.noise import row_hash, seeded
from likely.space import Space
from likely.training.budget import Budget
from likely.training.order import step_seed
from likely.training.progress import Progress, ProgressCallback
from likely.training.trainer import Settings, Trainer

__all__ = ["Run", "fit"]

_JOINING = 0.05  # share of a budget of time that fitting what joins the members of a model may take


@dataclass
class Run:
    """A fitted model, and how it got there. `curve` has `step, seconds, train, valid` in the data's unit."""

    model: Model
    seconds: float
    cpu_seconds: float
    steps: int
    seed: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)
    pace: str = ""
    stopped: str = "budget"

    def record(self) -> dict[str, Any]:
        """Everything but the model, as stored in `run.json`."""
        return {name: value for name, value in vars(self).items() if name != "model"}

    def then(self, after: "Run") -> "Run":
        """This run and the one that went on from it, as one."""
        later = [{**r, "step": r["step"] + self.steps, "seconds": r["seconds"] + self.seconds} for r in after.curve]
        totals = {name: getattr(self, name) + getattr(after, name) for name in ("seconds", "cpu_seconds", "steps")}
        return replace(after, **totals, curve=self.curve + later)


def fit(
    data: Data,
    model: str | Model,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    size: str = "small",
    seed: int = 0,
    out: str | Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    precision: str = "auto",
    checkpoint_seconds: float = 30.0,
    progress: bool | ProgressCallback = True,
    track: str | None = None,
    weights: Tensor | None = None,
    **options: Any,
) -> Run:
    """Fit a family to the training split of `data`; the validation split picks the weights that are kept.

    Args:
        model: a registered name, or a model to continue from.
        minutes, steps, epochs: the budget, one of them; 3 minutes by default.
        out: folder for checkpoints, `log.jsonl` and the model. The same call on it goes on where a killed one was.
        device: "auto", "cpu", "cuda" or "mps".
        threads: CPU threads; measured where not given and the budget is in minutes.
        batch, lr: override the family's recipe.
        precision: "float32", "bf16", or "auto": measured for a budget in minutes, float32 for one in steps
            or epochs, whose result must not depend on a stopwatch.
        checkpoint_seconds: time between checkpoints.
        progress: show it, or a function that is called with a record of each report.
        track: an experiment tracker that `accelerate` knows, such as "tensorboard".
        weights: how many times each training example counts [n], of families that weigh; those of `data` by default, whose
            validation split is then weighed, too.
        options: of the family.

    Raises: UsageError for unknown names and options; TrainingError if the loss stays NaN or infinite, with the
        last good model stored in `out`.
    """
    for name, value in (("batch", batch), ("lr", lr), ("threads", threads)):
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"{name}={value} is not possible.", "Give a positive number.")
    if options and not isinstance(model, str):
        raise UsageError(f"A fitted model keeps its options: {', '.join(options)} cannot be changed.", "Leave them out, or fit anew.")
    with seeded(step_seed(seed, 0, 0)):
        model = families.build(model, data.space, given=data.given, size=size, **options) if isinstance(model, str) else model
    weights = _weights(data, model, weights)
    recipe = replace(model.recipe, **{k: v for k, v in (("batch", batch), ("lr", lr)) if v is not None})
    budget = Budget.of(minutes=minutes, steps=steps, epochs=epochs, examples=len(data.train), batch=recipe.batch)
    if precision not in ("auto", "float32", "bf16"):
        raise UsageError(f"Unknown precision '{precision}'.", "Known: auto, float32, bf16.")
    accelerator, gather = _accelerator(device, track, out, turns=len(model.turns))
    folder = _claim(out, _plan(model, data, seed, budget, recipe.batch, recipe.lr, precision, weights), gather)
    if folder and (finished := _finished(folder)):
        return finished
    settings = Settings(seed, recipe, precision, threads, checkpoint_seconds, folder)
    title = model.config.get("model", type(model).__name__)
    shown = Progress(title, progress if callable(progress) else None, bool(progress) and accelerator.is_main_process)
    threads_before = torch.get_num_threads()
    try:
        with seeded(step_seed(seed, 0, 0)):
            how = {"seed": seed, "device": device, "threads": threads, "batch": batch, "lr": lr, "precision": precision}
            part = partial(fit, progress=progress, checkpoint_seconds=checkpoint_seconds, **how)
            if isinstance(model, Combined):
                run = _combine(model, data, partial(_share, budget, epochs), part, settings, accelerator)
            elif isinstance(model, ClosedForm):
                run = _solve(model, data, settings, accelerator.is_main_process, weights)
            else:
                before = _taught(model, data, budget, partial(part, data), settings)
                if before and before.stopped == "interrupted":
                    _store(run := replace(before, model=model), data, folder, accelerator.is_main_process)
                    return run
                left = budget.less(before.steps, before.seconds) if before else budget
                run = _train(Trainer(model, data, left, settings, accelerator, gather), shown, before)
    finally:
        torch.set_num_threads(threads_before)
        for tracker in accelerator.trackers:
            tracker.finish()
    return run


def _weights(data: Data, model: Model, passed: Tensor | None) -> Tensor | None:
    """How many times each training example counts: as passed, or as the data say."""
    if passed is not None and data.weighted:
        raise UsageError(f"{data.name} brings weights of its own.", "Leave one of the two out.")
    weights = data.train.weights if passed is None else passed
    if weights is not None and not isinstance(model, Weighted):
        able = [name for name in families.names() if issubclass(families.family_class(name), Weighted)]
        raise UsageError(f"{model.called} does not weigh examples.", f"Those that do: {', '.join(able)}.")
    return weights


def _taught(model: Model, data: Data, budget: Budget, part: Callable[..., Run], settings: Settings) -> Run | None:
    """The run of a model's own teacher, if it has one, on its share of the budget and in a folder of its own."""
    teacher = model.first() if isinstance(model, Tuned) else None
    if not (isinstance(model, Tuned) and teacher):
        return None
    if budget.seconds is not None:
        share: dict[str, Any] = {"minutes": budget.seconds * model.share / 60}
    elif not (share := {"steps": int((budget.steps or 0) * model.share)})["steps"]:
        return None
    run = part(teacher, out=settings.folder / "teacher" if settings.folder else None, **share)
    model.learn_from(run.model)
    return run


def _train(trainer: Trainer, progress: Progress, before: Run | None = None) -> Run:
    """Run the loop and store what it leaves, also where it fails for good; a teacher's run `before` counts as a part of it."""
    failure = None
    try:
        stopped = trainer.run(progress)
    except TrainingError as error:
        stopped, failure = "failed", error
    state = trainer.state
    model = trainer.weights.shadow.to("cpu").requires_grad_(True)
    run = Run(model, trainer.budget.elapsed, state.cpu_seconds, state.step, trainer.settings.seed, state.curve, str(trainer.pace), stopped)
    run = before.then(run) if before else run
    _store(run, trainer.data, trainer.settings.folder, trainer.ranks.is_main_process)
    if failure:
        raise failure
    if trainer.checkpoints and stopped != "interrupted":
        trainer.checkpoints.clear()
        if before and trainer.ranks.is_main_process:
            store.remove(trainer.checkpoints.folder.parent / "teacher")
    return run


def _solve(model: Model, data: Data, settings: Settings, main: bool, weights: Tensor | None) -> Run:
    """Closed-form families need no steps; every rank solves the same."""
    start, cpu = time.perf_counter(), time.process_time()
    how = {} if weights is None else {"weights": weights, "judging": data.valid.weights}
    model.eval().solve(data.train.pieces(), data.valid.pieces(), **how)  # type: ignore[operator]
    run = Run(model, time.perf_counter() - start, time.process_time() - cpu, 0, settings.seed, stopped="closed form")
    _store(run, data, settings.folder, main)
    return run


def _combine(model: Any, data: Data, share: Callable[..., dict[str, Any]], part: Callable[..., Run], settings: Settings, ranks: Any) -> Run:
    """Fit the members phase by phase, each as if alone and in a folder of its own; between the phases the model fits what joins them."""
    folders = [settings.folder / "members" / str(i) if settings.folder else None for i in range(len(model.members))]
    done: list[tuple[Phase, Run]] = []
    curve: list[dict[str, Any]] = []
    start, cpu, inside, inside_cpu = time.perf_counter(), time.process_time(), 0.0, 0.0
    for phase in _seeded(model.to(ranks.device).eval().phases(data), settings.seed):
        began, began_cpu = time.perf_counter(), time.process_time()
        run = part(phase.data, model.members[phase.member], out=folders[phase.member], **share(data, phase, done))
        model.members[phase.member] = run.model
        model.to(ranks.device).eval()
        done.append((phase, run))
        curve = run.curve if phase.data.space == data.space else curve  # in another space it is in another unit
        inside, inside_cpu = inside + time.perf_counter() - began, inside_cpu + time.process_time() - began_cpu
        if run.stopped == "interrupted":
            break
    runs = [run for _, run in done]
    seconds = sum(run.seconds for run in runs) + time.perf_counter() - start - inside
    cpu_seconds = sum(run.cpu_seconds for run in runs) + time.process_time() - cpu - inside_cpu
    last = runs[-1]
    joined = Run(model.to("cpu"), seconds, cpu_seconds, sum(run.steps for run in runs), settings.seed, curve, last.pace, last.stopped)
    _store(joined, data, settings.folder, ranks.is_main_process)
    if ranks.is_main_process and last.stopped != "interrupted":
        for folder in filter(None, folders):
            store.remove(folder)
    return joined


def _seeded(phases: Iterator[Phase], seed: int) -> Iterator[Phase]:
    """Each phase made ready under the same random state, also where those before it were fitted by an earlier run."""
    while True:
        with seeded(step_seed(seed, 0, 0)):
            phase = next(phases, None)
        if phase is None:
            return
        yield phase


def _share(budget: Budget, epochs: float | None, data: Data, phase: Phase, done: list[tuple[Phase, Run]]) -> dict[str, Any]:
    """What a phase may use: its share of what those before it left; of time some is kept for joining. Closed forms take what they need."""
    if not phase.share:
        return {}
    if epochs is not None:
        left = epochs * math.prod(1 - before.share for before, _ in done)
        return {"epochs": left * phase.share * len(data.train) / len(phase.data.train)}
    if budget.seconds is None:
        return {"steps": max(1, int(((budget.steps or 0) - sum(run.steps for _, run in done)) * phase.share))}
    left = max(0.1 * budget.seconds, (1 - _JOINING) * budget.seconds - sum(run.seconds for _, run in done))
    return {"minutes": left * phase.share / 60}


def _store(run: Run, data: Data, folder: Path | None, main: bool) -> None:
    """The model, then `run.json`, which marks the run complete (or stopped by hand: then it can go on)."""
    if folder and main:
        store.save(run.model, folder, data=data.card, run=run.record())
        if run.stopped != "failed":
            store.write_atomically(folder / "run.json", json.dumps(run.record()).encode())


def _finished(folder: Path) -> Run | None:
    """The stored run, if it is complete."""
    if not ((folder / "manifest.json").exists() and (folder / "run.json").exists()):
        return None
    record = json.loads((folder / "run.json").read_text())
    if record["stopped"] == "interrupted":
        return None
    known = {name: record[name] for name in ("seconds", "cpu_seconds", "steps", "seed", "curve", "pace", "stopped")}
    return Run(store.open_model(folder), **known)


def _claim(out: str | Path | None, plan: dict[str, Any], gather: Any) -> Path | None:
    """The output folder, marked with what is being trained in it.

    Raises: UsageError if it holds a run with other settings; the first that differs is named.
    """
    if out is None:
        return None
    folder = store.claim_folder(out)
    path = folder / "plan.json"
    before = json.loads(path.read_text()) if path.exists() else None
    for name, value in (before or {}).items():
        if value != plan.get(name):
            was, now = _told(value), _told(plan.get(name))
            hint = "Name another --out." if was != now else "They differ in detail. Name another --out."
            raise UsageError(f"{folder} holds a run with {name} {was}, not {now}.", hint)
    gather([True])  # every rank has looked before one writes
    if before is None:
        store.write_atomically(path, json.dumps(plan, indent=1).encode())
    return folder


def _told(value: Any) -> str:
    """A setting in a few words: a space by its summary."""
    return str(Space.from_json(value)) if isinstance(value, dict) and "supports" in value else str(value)


def _plan(
    model: Model, data: Data, seed: int, budget: Budget, batch: int, lr: float, precision: str, weights: Tensor | None
) -> dict[str, Any]:
    """What makes a run the same run, as JSON."""
    sample = data.train.x[:: max(1, len(data.train) // 1024)]
    record = {
        "model": type(model).__name__,
        **model.config,
        "given": model.given_space.to_json() if model.given_space else None,
        "seed": seed,
        "budget": f"{budget.steps} steps" if budget.steps else f"{budget.seconds:g} seconds",
        "batch": batch,
        "lr": lr,
        "precision": precision,
        "data": f"{data.name}: {len(data.train)} examples, {row_hash(sample).sum().item():016x}",
        "augment": data.card.get("augment"),
        "weights": None if weights is None else f"{row_hash(weights[None].double()).item():016x}",
    }
    return json.loads(json.dumps(record))


def _accelerator(device: str, track: str | None, out: str | Path | None, *, turns: int) -> tuple[Any, Any]:
    """An `Accelerator` for the wanted device and its object gatherer.

    Raises: UsageError for a device that this machine has not.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import gather_object

    usable = {"auto": True, "cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not usable.get(device, False):
        raise UsageError(f"Device '{device}' is not there.", f"Usable: {', '.join(name for name, there in usable.items() if there)}.")
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        AcceleratorState._reset_state(reset_partial_state=True)  # an earlier fit may have used another device
    ddp = DistributedDataParallelKwargs(find_unused_parameters=turns > 1, broadcast_buffers=False)
    try:
        accelerator = Accelerator(cpu=device == "cpu", log_with=track, project_dir=str(out) if out else None, kwargs_handlers=[ddp])
    except ValueError as error:
        raise UsageError(f"Unknown tracker '{track}'.", "accelerate knows tensorboard, wandb, mlflow, trackio, ...") from error
    if track:
        if not accelerator.trackers and not accelerator.log_with:
            raise UsageError(f"The tracker '{track}' is not installed.", f"pip install {track}")
        accelerator.init_trackers("likely")
    return accelerator, gather_object if PartialState().num_processes > 1 else list


def is_main_process() -> bool:
    """Whether this is the only process, or rank 0 of several."""
    return int(os.environ.get("RANK", "0")) == 0


def leave() -> None:
    """End the group of a launched run's processes, all together: one that left while another still talked to it could abort that one."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
