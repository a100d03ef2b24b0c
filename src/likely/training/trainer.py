"""The loop behind `likely.fit`, and everything that keeps it alive.

Bad steps (a gradient that is NaN or infinite) are skipped; several in a row roll the run back to its
last good state at half the learning rate; if that does not help, it stops with an error and leaves
the best model. Out of memory halves the micro-batch. Signals end the step first.
"""

import math
import signal
import time
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from likely.abilities import Starts
from likely.dataset import Data, Split
from likely.errors import TrainingError
from likely.model import Model, Recipe
from likely.noise import reseed, seeded
from likely.training.budget import Budget
from likely.training.checkpoint import Checkpoints
from likely.training.optimisers import clip_gradients
from likely.training.order import batch_rows, step_seed
from likely.training.pace import Pace, counted_threads, measure_pace
from likely.training.progress import Log, Progress
from likely.training.signals import Signals
from likely.training.weights import Weights, under

__all__ = ["Settings", "Trainer"]

VALIDATIONS = 20  # over the budget
VALID_EXAMPLES, VALID_ENTRIES = 512, 2**16  # most of either, but 64 examples in any case
START_EXAMPLES = 512
SKIPS, ROLLBACKS = 5, 3  # bad steps in a row before a roll-back; roll-backs before giving up
REPORT_SECONDS = 0.5


@dataclass(frozen=True)
class Settings:
    """What the caller of `fit` chose."""

    seed: int
    recipe: Recipe
    precision: str = "auto"
    threads: int | None = None
    checkpoint_seconds: float = 30.0
    folder: Path | None = None


@dataclass
class State:
    """The counters that a checkpoint holds beside tensors."""

    step: int = 0
    elapsed: float = 0.0
    cpu_seconds: float = 0.0
    best: float = math.inf
    best_step: int = 0
    stale: int = 0  # validations since the best
    lr_factor: float = 1.0
    rollbacks: int = 0
    pace: dict[str, Any] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """Trains `model` in place; what is kept is `weights.shadow`, its averaged copy.

    Args:
        ranks: an `accelerate.Accelerator`, or anything with its `device`, `process_index`, `num_processes`,
            `is_main_process`, `prepare_model`, `log`.
        gather: collects a Python object from every rank into a list.
    """

    def __init__(self, model: Model, data: Data, budget: Budget, settings: Settings, ranks: Any, gather: Any) -> None:
        self.data, self.budget, self.settings, self.ranks, self.gather = data, budget, settings, ranks, gather
        self.recipe, self.rank, self.world = settings.recipe, ranks.process_index, ranks.num_processes
        self.train = _on_device(data.train, ranks.device)
        self.model = model.to(ranks.device).train()
        if isinstance(model, Starts):
            with torch.no_grad():
                model.start(*self._rows(batch_rows(len(self.train), min(START_EXAMPLES, len(self.train)), settings.seed, 0)))
        self.weights = Weights(self.model, self.recipe)
        self.checkpoints = Checkpoints(settings.folder / "checkpoints", self.rank) if settings.folder else None
        self.log = Log(settings.folder / "log.jsonl" if settings.folder and self.rank == 0 else None)
        self.state = State()
        self.micro_batches, self.bad = 1, 0
        self.losses: list[float] = []
        self.fastest_step = math.inf

    # -- the loop -------------------------------------------------------------------------------

    def run(self, progress: Progress) -> str:
        """Train to the end of the budget; returns why it stopped."""
        self.budget.start()
        self._resume()
        self.pace = self._choose_pace()
        self.pace.apply(self.model)
        self.pace.apply(self.weights.shadow)
        with warnings.catch_warnings():
            # its successor would still synchronise the buffers that differ by rank
            warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
            self.wrapped = self.ranks.prepare_model(self.model)
        self.snapshot = self.weights.snapshot()
        self._validation = (0.0, 0.0)  # seconds that the last one took, and when it ended
        self._last = {"report": 0.0, "checkpoint": self.budget.elapsed, "step": self.state.step, "time": self.budget.elapsed}
        cpu_start = time.process_time() - self.state.cpu_seconds
        with progress, Signals() as signals:
            while (stopped := self._stopped(signals)) is None:
                fraction = self.budget.fraction(self.state.step, self._elapsed())
                self._step(fraction)
                self.state.step += 1
                self.state.cpu_seconds = time.process_time() - cpu_start
                self._after_step(fraction, progress)
            if stopped in ("terminated", "interrupted"):
                self._checkpoint()
            if stopped == "terminated":
                raise SystemExit(128 + signal.SIGTERM)
        self._keep_best()
        return stopped

    def _stopped(self, signals: Signals) -> str | None:
        if signals.received is not None:
            return "interrupted" if signals.received == signal.SIGINT else "terminated"
        if self.recipe.patience and self.state.stale >= self.recipe.patience:
            return "early stop"
        return "budget" if self.budget.fraction(self.state.step, self._elapsed()) >= 1 else None

    def _after_step(self, fraction: float, progress: Progress) -> None:
        """Validate, report and checkpoint when due."""
        elapsed = self._elapsed()
        now = self.budget.fraction(self.state.step, elapsed)
        due = int(now * VALIDATIONS) > int(fraction * VALIDATIONS)
        valid = self._validate() if due and self._affords_validation(now, elapsed) else None
        if due or elapsed - self._last["report"] > REPORT_SECONDS:
            self._report(valid, now, elapsed, progress)
        if due:
            self._watch_pace(elapsed)
            if self.bad == 0:
                self.snapshot = self.weights.snapshot()
        if elapsed - self._last["checkpoint"] > self.settings.checkpoint_seconds:
            self._checkpoint()
            self._last["checkpoint"] = elapsed

    def _affords_validation(self, now: float, elapsed: float) -> bool:
        """Whether to validate, where the recipe does: in a budget of time at most a tenth of it goes there, but the end is seen."""
        if not self.recipe.patience:
            return False
        cost, last = self._validation
        return self.budget.seconds is None or now >= 1 or elapsed - last >= 9 * cost

    def _elapsed(self) -> float:
        """Seconds so far, rank 0's on every rank, so that all decide alike."""
        elapsed = self.budget.elapsed
        if self.world == 1 or self.budget.seconds is None:
            return elapsed
        shared = torch.tensor([elapsed], dtype=torch.float64, device=self.ranks.device)
        torch.distributed.broadcast(shared, 0)
        return shared.item()

    # -- one step -------------------------------------------------------------------------------

    def _step(self, fraction: float) -> None:
        state, seed = self.state, self.settings.seed
        x, given = self._rows(batch_rows(len(self.train), self.recipe.batch, seed, state.step, self.rank, self.world))
        x = self._augmented(x)
        rate = self.recipe.lr * state.lr_factor * self.budget.learning_rate(state.step, fraction, self.recipe.warmup)
        loss = math.nan
        for turn, optimiser in self.weights.optimisers.items():
            loss = self._gradients(x, given, turn)
            params = [p for group in optimiser.param_groups for p in group["params"]]
            norm = clip_gradients(params, self.recipe.clip)
            if not torch.isfinite(norm):  # the same on all ranks, which hold the same gradient
                self._skip()
                return
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
        self.bad = 0
        self.losses.append(loss)
        self.weights.average(state.step)

    def _gradients(self, x: Tensor, given: Tensor | None, turn: str) -> float:
        """Gradients of the mean loss of one turn, in micro-batches; out of memory halves those and tries again."""
        while True:
            reseed(step_seed(self.settings.seed, self.state.step + 1, self.rank))
            self.weights.optimisers[turn].zero_grad()
            try:
                return self._accumulate(x, given, turn)
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                if self.world > 1 or len(x) < 2 * self.micro_batches:
                    raise TrainingError(f"Out of memory with {len(x)} examples per step.", "Pass a smaller --batch or --size.") from error
            self.micro_batches *= 2
            self.log.write({"step": self.state.step, "event": f"out of memory: {self.micro_batches} micro-batches per step from here"})

    def _accumulate(self, x: Tensor, given: Tensor | None, turn: str) -> float:
        total = 0.0
        parts = zip(x.chunk(self.micro_batches), given.chunk(self.micro_batches) if given is not None else [None] * self.micro_batches)
        for part, part_given in parts:
            with self.pace.autocast(x.device):
                losses = self.wrapped(part, part_given, turn=turn)
            # the sum over all ranks' examples is divided by the global batch; DDP itself divides by the ranks
            loss = losses.float().sum() * (self.world / self.recipe.batch)
            loss.backward()
            total += loss.item()
        return total

    def _skip(self) -> None:
        """Drop a bad step; after several in a row go back to the last good state, slower; give up after a few of those."""
        self.bad += 1
        self.log.write({"step": self.state.step, "event": "gradient is NaN or infinite: step skipped"})
        if self.bad <= SKIPS:
            return
        if self.state.rollbacks == ROLLBACKS:
            self._keep_best()
            raise TrainingError(
                f"The loss stays NaN or infinite at step {self.state.step}, after {ROLLBACKS} roll-backs.",
                "Try a smaller --lr; the best model so far is kept.",
            )
        self.bad = 0
        self.weights.restore(self.snapshot)
        self.state.rollbacks += 1
        self.state.lr_factor *= 0.5
        self.log.write({"step": self.state.step, "event": "rolled back to the last good weights at half the learning rate"})

    # -- data -----------------------------------------------------------------------------------

    def _rows(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        x, given = self.train.rows(index.to(self.train.x.device))
        return x.to(self.ranks.device), given if given is None else given.to(self.ranks.device)

    def _augmented(self, x: Tensor) -> Tensor:
        if not self.data.card.get("augment"):
            return x
        from likely.sources import augment_batch

        seed = step_seed(self.settings.seed, self.state.step + 1, self.rank)
        return augment_batch(x, self.data.card, torch.Generator().manual_seed(seed))

    # -- validation and weights -----------------------------------------------------------------

    @torch.no_grad()
    def _validate(self) -> float:
        """Mean loss of the averaged weights on validation examples, under the same noise each time."""
        start = self._elapsed()
        self.weights.sync()
        split = _spread(self.data.valid, min(VALID_EXAMPLES, max(64, VALID_ENTRIES // self.data.space.dims)))
        with seeded(self.settings.seed), self.pace.autocast(self.ranks.device):
            losses = [self.weights.shadow(*self._to(batch), turn=self.model.turns[0]) for batch in split.batches(4 * self.recipe.batch)]
        value = torch.cat([loss.double() for loss in losses]).mean().item()
        if value < self.state.best:
            self.state.best, self.state.best_step, self.state.stale = value, self.state.step, 0
            self.weights.mark_best()
        else:
            self.state.stale += 1
        end = self._elapsed()
        self._validation = (end - start, end)
        return value

    def _to(self, batch: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
        x, given = batch
        return x.to(self.ranks.device), given if given is None else given.to(self.ranks.device)

    def _keep_best(self) -> None:
        """Leave the validated best in the shadow, or its last state where nothing was validated."""
        if math.isfinite(self.state.best):
            self.weights.keep_best()
        else:
            self.weights.sync()

    # -- reports and pace -----------------------------------------------------------------------

    def _report(self, valid: float | None, fraction: float, elapsed: float, progress: Progress) -> None:
        unit = self.data.nats_per_unit
        record = {
            "step": self.state.step,
            "seconds": round(elapsed, 3),
            "train": sum(self.losses) / len(self.losses) / unit if self.losses else math.nan,
            "valid": None if valid is None else valid / unit,
            "unit": self.data.space.unit,
            "steps_per_s": (self.state.step - self._last["step"]) / max(elapsed - self._last["time"], 1e-9),
            "seconds_left": self.budget.seconds_left(self.state.step, elapsed),
        }
        if valid is not None or not self.recipe.patience:
            self.state.curve.append({name: record[name] for name in ("step", "seconds", "train", "valid")})
        self.log.write(record)
        self.ranks.log({k: v for k, v in record.items() if isinstance(v, float)}, step=self.state.step)
        progress.update(record, fraction)
        self.losses = []
        self._last.update(report=elapsed, step=self.state.step, time=elapsed)

    def _choose_pace(self, *, again: bool = False) -> Pace:
        """Recorded, or measured where the budget is in time; a budget in steps must not depend on a stopwatch."""
        settings = self.settings
        if self.state.pace and not again:
            return Pace(**self.state.pace)
        if self.world > 1 or self.ranks.device.type != "cpu":
            return Pace(settings.threads or 0, settings.precision == "bf16")
        with seeded(settings.seed):
            batch = self._rows(batch_rows(len(self.train), self.recipe.batch, settings.seed, 0))
            try:
                return self._paced(*batch)
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                return Pace(settings.threads or 0, settings.precision == "bf16")  # the first step will halve the batch

    def _paced(self, x: Tensor, given: Tensor | None) -> Pace:
        settings = self.settings
        if self.budget.seconds is None or settings.precision != "auto":
            return Pace(settings.threads or counted_threads(self.model, x, given), settings.precision == "bf16")
        return measure_pace(self.model, x, given, threads=settings.threads, seconds=0.03 * self.budget.seconds)

    def _watch_pace(self, elapsed: float) -> None:
        """Measure again when steps take twice as long as they did (a neighbour took a core)."""
        mark_step, mark_time = getattr(self, "_mark", (0, 0.0))
        self._mark = (self.state.step, elapsed)
        if self.state.step == mark_step:
            return
        taken = (elapsed - mark_time) / (self.state.step - mark_step)
        self.fastest_step = min(self.fastest_step, taken)
        if taken > 2 * self.fastest_step and self.budget.seconds is not None and self.world == 1:
            self.fastest_step = taken
            self.pace = self._choose_pace(again=True)
            self.pace.apply(self.model)

    # -- state ----------------------------------------------------------------------------------

    def _checkpoint(self) -> None:
        """Rank 0 stores everything, other ranks the buffers that are theirs alone."""
        if self.checkpoints is None:
            return
        self.state.elapsed, self.state.pace = self.budget.elapsed, asdict(self.pace)
        if self.rank == 0:
            tensors = self.weights.snapshot() | {f"best/{k}": v for k, v in self.weights.best.items()}
        else:
            tensors = self.weights.of_this_rank()
        self.checkpoints.write(self.state.step, tensors, asdict(self.state))

    def _resume(self) -> None:
        """Go on from the newest checkpoint that is intact on all ranks."""
        if self.checkpoints is None:
            return
        common = set.intersection(*self.gather([self.checkpoints.steps()]))
        if not common:
            return
        tensors, facts = Checkpoints(self.checkpoints.folder, 0).read(max(common))
        if self.rank:
            tensors |= self.checkpoints.read(max(common))[0]
        self.weights.restore(tensors)
        self.weights.best = under("best/", tensors)
        self.state = State(**facts)
        self.budget.spent = self.state.elapsed
        self.log.resume(self.state.step)


def _on_device(split: Split, device: torch.device) -> Split:
    """In-memory examples live where the model does; a text's windows are a view, and stay."""
    if split.stream is not None or split.x.numel() * split.x.element_size() > 2**31:
        return split
    return Split(split.x.to(device), None if split.given is None else split.given.to(device))


def _spread(split: Split, n: int) -> Split:
    """At most n examples, evenly spread (a text's neighbouring windows are nearly the same)."""
    if len(split) <= n:
        return split
    return Split(*split.rows(torch.linspace(0, len(split) - 1, n).long()))


def _out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or "out of memory" in text
        or "can't allocate memory" in text
        or "not enough memory" in text
    )
