"""What a report says besides its rows: the data, the floors of quality, the machine, the versions. Written as `about.json`."""

import math
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from likely.dataset import Data

__all__ = ["about"]

PACKAGES = ("likely", "torch", "numpy", "scikit-learn", "accelerate")


def about(data: "Data", given: str | None, **settings: Any) -> dict[str, Any]:
    """Facts of one comparison, as JSON; `settings` are the comparison's own."""
    from likely.evaluation.gallery import gallery
    from likely.evaluation.quality import examples, floors, held_out

    shown = held_out(data, min(500, len(data.test)))
    return {
        "data": data.name,
        "given": given,
        "space": str(data.space),
        "unit": data.space.unit,
        "examples": {name: len(split) for name, split in data.splits.items()},
        "card": data.card,
        "entropy": _entropy(data),
        "uniform": _uniform(data),
        "floors": floors(data, examples(data)),
        "gallery": gallery(data.space, shown.x, data.given, shown.given),
        "settings": settings,
        "machine": machine(),
        "versions": {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _entropy(data: "Data") -> dict[str, float] | None:
    """The known entropy of a toy in the data's unit: no model can do better."""
    if data.truth is None:
        return None
    per = data.nats_per_unit
    return {"value": data.truth.entropy / per, "stderr": data.truth.stderr / per}


def _uniform(data: "Data") -> float | None:
    """Code length under a uniform distribution, where every entry has finitely many values."""
    states = [s.states for s in data.space.supports]
    if any(s is None for s in states):
        return None
    repeats = data.space.dims / len(states)
    return repeats * sum(math.log(s) for s in states if s) / data.nats_per_unit


def machine() -> dict[str, Any]:
    """Processor, cores that may be used, memory, accelerator, system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {"processor": _processor(), "cores": cores, "system": f"{platform.system()} {platform.machine()}"}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        facts["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        facts["accelerator"] = torch.cuda.get_device_name()
    return facts


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
