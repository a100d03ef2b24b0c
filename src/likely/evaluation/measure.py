"""`evaluate`: all that is measured of one model on one data set -> `Row`."""

import math
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from likely.dataset import Data, Split
from likely.evaluation.quality import EXAMPLES, Floors, examples, held_out, quality
from likely.evaluation.row import Row
from likely.logprob import Bits, LogProb, bits
from likely.model import Likelihood, Model
from likely.noise import seeded

__all__ = ["draw", "evaluate", "held_out_bits", "log_prob"]

_ENTRIES = 2**18  # entries (rows x draws x dims) that go through a model at once


def evaluate(model: Model, data: Data, *, seed: int = 0, n: int = EXAMPLES, reference: Floors | None = None) -> Row:
    """Measure a fitted model on the test split: bits, speed and the quality of what it draws.

    Args:
        model: any model of `data.space`; conditional ones are scored and sampled under the test examples' `given`.
        seed: of bounds' noise, of the drawn examples and of every test.
        n: most examples that are drawn and compared.
        reference: floors of quality, where they are known already.

    Returns: a `Row` without a training record. Value and kind are None for a model without a likelihood.
    """
    was_training = model.training
    model.eval()
    config = getattr(model, "config", {})
    row = Row(model=config.get("model", type(model).__name__.lower()), size=model.size, seed=seed, options=config.get("options", {}))
    row.data, row.given = data.name, given_name(data) if model.given_space is not None else None
    row.device = _device(model).type
    row.parameters = sum(t.numel() for t in model.parameters()) or sum(t.numel() for t in model.buffers())
    with torch.no_grad():
        if isinstance(model, Likelihood):
            _score(row, model, data, seed)
        test = held_out(data, examples(data, n), seed)
        drawn, seconds = draw(model, test.given if model.given_space is not None else None, len(test), seed)
        row.samples_per_s = len(test) / seconds
        row.quality = quality(data if drawn.given is not None else data.unconditional(), drawn, reference=reference, seed=seed)
    row.peak_memory_mib = peak_memory_mib(_device(model))
    model.train(was_training)
    return row


def given_name(data: Data) -> str | None:
    """What the examples are conditioned on, by name: "label", or the names of its columns."""
    if data.given is None:
        return None
    return ", ".join(s.name for s in data.given.supports if s.name) or str(data.given)


def held_out_bits(model: Likelihood, data: Data, *, draws: int | None = None, seed: int = 0) -> Bits:
    """Test code length; of a text, of the whole test stretch as one sequence."""
    if data.test.stream is not None:
        from likely.evaluation.stretch import stretch_bits

        return stretch_bits(model, data)[0]
    return bits(log_prob(model, data.test, draws=draws or model.bound_draws, seed=seed), model.space)


def log_prob(model: Likelihood, split: Split, *, draws: int = 1, seed: int = 0) -> LogProb:
    """`model.log_prob` of a whole split in chunks of bounded memory; the same numbers as at once."""
    rows = max(1, _ENTRIES // (draws * model.space.dims))
    parts = [model.log_prob(x, given, draws=draws, seed=seed) for x, given in _on(_device(model), split, model, rows)]
    return joined(parts)


def joined(parts: list[LogProb]) -> LogProb:
    """One `LogProb` of consecutive batches."""
    together = {
        name: torch.cat([getattr(p, name).cpu() for p in parts]) if getattr(parts[0], name) is not None else None
        for name in ("nats", "stderr", "lower", "upper")
    }
    return LogProb(kind=parts[0].kind, how=parts[0].how, **together)  # type: ignore[arg-type]


def _on(device: torch.device, split: Split, model: Likelihood, rows: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    for x, given in split.batches(rows):
        yield x.to(device), given.to(device) if given is not None and model.given_space is not None else None


def _score(row: Row, model: Likelihood, data: Data, seed: int) -> None:
    begin = time.perf_counter()
    result = held_out_bits(model, data, seed=seed)
    row.log_prob_per_s = result.n / (time.perf_counter() - begin)
    row.unit, row.kind, row.how, row.n, row.draws = result.unit, result.kind, result.how, result.n, model.bound_draws
    row.value, row.stderr = result.value, result.stderr if math.isfinite(result.stderr) else None
    if not math.isfinite(result.value):
        row.value = None
        row.error = f"log p of the test examples is not finite (mean {result.value} {result.unit}): some have no probability at all."


def draw(model: Model, given: Tensor | None, n: int, seed: int) -> tuple[Split, float]:
    """n examples of the model, on the CPU, and the seconds it took."""
    device = _device(model)
    begin = time.perf_counter()
    with seeded(seed):
        x = model.sample(n, given.to(device) if given is not None else None).cpu()
    return Split(x, given), time.perf_counter() - begin


def _device(model: object) -> torch.device:
    assert isinstance(model, torch.nn.Module)
    tensor = next(iter(model.parameters()), next(iter(model.buffers()), None))
    return torch.device("cpu") if tensor is None else tensor.device


def peak_memory_mib(device: torch.device) -> float:
    """Most memory in use so far: of the accelerator where there is one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the memory of the process that this one was forked from
        return next(int(line.split()[1]) / 2**10 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
