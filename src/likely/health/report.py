"""What a health check has measured, and what follows from it."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from likely.model import Model

__all__ = ["Reading", "Report", "Subject", "Verdict", "by_size"]

Verdict = Literal["sound", "doubtful", "broken", "unknown"]
_WORSE: tuple[Verdict, ...] = ("unknown", "sound", "doubtful", "broken")

# What may be believed if all readings of a kind are sound, and what not if one is broken or doubtful.
_MEANING = {
    "round trip": ("encode, decode and sample invert each other", "what is decoded is not what was encoded"),
    "log-determinant": ("the volume is that of the map", "log p is that of another map"),
    "precision": ("float32 is enough for log p", "log p has rounding errors of this size"),
    "onto": ("every noise comes from an example", "noise that comes from no example takes its share of the mass with it"),
    "mass": ("probabilities sum to one (a bound's to at most one)", "what is claimed is no probability, and does not compare"),
    "mass of the map": ("the map keeps all mass of the reals that data are lifted to", "the map loses mass, or makes some"),
    "rows": ("log p of an example is its own", "log p depends on the batch that an example is in"),
    "far probes": ("log p is a number far out, too", "outliers have no usable log p"),
    "samples and density": ("what is drawn is what the density says", "samples are not from the density"),
    "gradients": ("every part can go on learning", "further training may stall or blow up"),
}


@dataclass(frozen=True)
class Subject:
    """What is checked: a model in evaluation mode, some of its data, a seed."""

    model: Model
    x: Tensor
    given: Tensor | None
    seed: int


@dataclass(frozen=True)
class Reading:
    """One measurement: of what, where, what came out, and what it says."""

    what: str
    where: str
    measured: str
    verdict: Verdict


@dataclass(frozen=True)
class Report:
    """All readings of one model, on n examples."""

    model: str
    n: int
    readings: tuple[Reading, ...]

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """Of each kind of reading the worst; "unknown" only if none could be taken."""
        verdicts: dict[str, Verdict] = {}
        for reading in self.readings:
            so_far: Verdict = verdicts.get(reading.what, "unknown")
            verdicts[reading.what] = reading.verdict if _WORSE.index(reading.verdict) > _WORSE.index(so_far) else so_far
        return verdicts

    @property
    def sound(self) -> bool:
        """Whether nothing is broken; doubts and what is not known are told, but let pass."""
        return "broken" not in self.verdicts.values()

    @property
    def lines(self) -> list[tuple[Verdict, str]]:
        """A verdict for each kind of reading, and what it means."""
        return [(verdict, f"{what}: {self._meaning(what, verdict)}") for what, verdict in self.verdicts.items()]

    def _meaning(self, what: str, verdict: Verdict) -> str:
        good, bad = _MEANING[what]
        if verdict == "unknown":
            return "could not be told"
        if verdict == "sound":
            return good
        worst = next(r for r in self.readings if r.what == what and r.verdict == verdict)
        return f"{bad} ({worst.where}: {worst.measured})"

    def to_json(self) -> dict[str, Any]:
        return {"model": self.model, "n": self.n, "sound": self.sound, "readings": [vars(r) for r in self.readings]}


def by_size(error: float, sound: float, broken: float) -> Verdict:
    """The verdict on an error, by the sizes up to which it is sound and from which on it is broken; NaN is broken."""
    if math.isnan(error) or error >= broken:
        return "broken"
    return "sound" if error <= sound else "doubtful"
