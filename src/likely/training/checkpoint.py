"""Training state on disk, so that a killed run goes on where it was.

One safetensors file per checkpoint and rank, whose name holds the step and the sha256 of its
content: it verifies itself, and a damaged one is passed over for the one before. The two newest
are kept. Small facts (step, curve, counters) travel as JSON in the file's metadata.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor

from likely.errors import StoreError
from likely.store import write_atomically

__all__ = ["Checkpoints", "flatten_optimiser", "unflatten_optimiser"]


@dataclass(frozen=True)
class Checkpoints:
    """Checkpoints of one rank in a folder."""

    folder: Path
    rank: int = 0
    keep: int = 2

    def write(self, step: int, tensors: Mapping[str, Tensor], facts: dict[str, Any]) -> None:
        """Store the state after `step` steps; a full disk leaves the earlier checkpoints and warns."""
        body = save({k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}, {"facts": json.dumps(facts)})
        name = f"step-{step:09d}-rank{self.rank}-{hashlib.sha256(body).hexdigest()[:16]}.safetensors"
        try:
            write_atomically(self.folder / name, body)
        except StoreError as error:
            warnings.warn(f"{error.message} Training goes on; the previous checkpoint stays.", RuntimeWarning, stacklevel=2)
            return
        for old in self._files()[: -self.keep]:
            old.unlink(missing_ok=True)

    def steps(self) -> set[int]:
        """Steps that have an intact checkpoint; damaged files are named in a warning and passed over."""
        self._sweep()
        for path in self._files():
            if not _intact(path):
                warnings.warn(f"Checkpoint {path} is damaged; an earlier one is used.", RuntimeWarning, stacklevel=2)
        return {_step(path) for path in self._files() if _intact(path)}

    def read(self, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and facts after `step` steps, which `steps` must hold."""
        path = next(path for path in self._files() if _step(path) == step and _intact(path))
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["facts"])
        return load(path.read_bytes()), facts

    def clear(self) -> None:
        """Remove all: the run is complete."""
        self._sweep()
        for path in self._files():
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob(f"step-*-rank{self.rank}-*.safetensors"))

    def _sweep(self) -> None:
        for orphan in self.folder.glob(f".step-*-rank{self.rank}-*.tmp"):
            orphan.unlink(missing_ok=True)


def _step(path: Path) -> int:
    return int(path.name.split("-")[1])


def _intact(path: Path) -> bool:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] == path.stem.rsplit("-", 1)[1]


def flatten_optimiser(prefix: str, state: dict[str, Any]) -> dict[str, Tensor]:
    """An optimiser's per-parameter tensors under flat names; its hyperparameters come from the recipe."""
    return {f"{prefix}/{i}/{name}": t for i, slots in state["state"].items() for name, t in slots.items()}


def unflatten_optimiser(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The inverse."""
    slots: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith(f"{prefix}/"):
            _, index, name = key.rsplit("/", 2)
            slots.setdefault(int(index), {})[name] = tensor
    return {"state": slots}
