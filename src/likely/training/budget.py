"""How long to train: steps, epochs or minutes; and the learning rate that follows from it."""

import math
import time
from dataclasses import dataclass

from likely.errors import UsageError

__all__ = ["Budget"]


@dataclass
class Budget:
    """A number of steps, or of seconds. `spent` holds the seconds of earlier parts of a resumed run."""

    steps: int | None = None
    seconds: float | None = None
    spent: float = 0.0
    started: float = 0.0

    @classmethod
    def of(cls, *, minutes: float | None, steps: int | None, epochs: float | None, examples: int, batch: int) -> "Budget":
        """Exactly one of the three (3 minutes if none), as steps or seconds.

        Raises: UsageError for more than one, or one that is not positive.
        """
        chosen = {name: value for name, value in (("minutes", minutes), ("steps", steps), ("epochs", epochs)) if value is not None}
        if len(chosen) > 1:
            raise UsageError(f"Got {' and '.join(chosen)}: give one budget only.")
        name, value = next(iter(chosen.items()), ("minutes", 3.0))
        if not (math.isfinite(value) and value > 0):
            raise UsageError(f"--{name} {value} is not a budget.", "Give a positive number.")
        if name == "minutes":
            return cls(seconds=60.0 * value)
        return cls(steps=int(value) if name == "steps" else math.ceil(value * examples / batch))

    def less(self, steps: int, seconds: float) -> "Budget":
        """What is left of it after so many steps and seconds; one step, or a tenth of the time, in any case."""
        if self.seconds is not None:
            return Budget(seconds=max(0.1 * self.seconds, self.seconds - seconds))
        return Budget(steps=max(1, (self.steps or 0) - steps))

    def start(self) -> None:
        self.started = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, over all parts of the run."""
        return self.spent + time.perf_counter() - self.started

    def fraction(self, step: int, elapsed: float) -> float:
        """How much of the budget is used before step number `step`, in [0, 1]."""
        used = elapsed / self.seconds if self.seconds is not None else step / (self.steps or 1)
        return min(1.0, used)

    def seconds_left(self, step: int, elapsed: float) -> float:
        if self.seconds is not None:
            return max(0.0, self.seconds - elapsed)
        return elapsed / max(step, 1) * ((self.steps or step) - step)

    def learning_rate(self, step: int, fraction: float, warmup: int) -> float:
        """Factor on the recipe's rate: a linear warm-up (at most a tenth of the steps), then a cosine to zero."""
        if self.steps is not None:
            warmup = min(warmup, max(1, self.steps // 10))
        return min(1.0, (step + 1) / max(1, warmup)) * 0.5 * (1 + math.cos(math.pi * fraction))
