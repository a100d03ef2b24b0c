"""`evaluate`: all that is measured of one model on one data set -> `Row`."""

import math
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from likely.abilities import Likelihood
from likely.dataset import Data, Split
from likely.evaluation.quality import EXAMPLES, Floors, examples, held_out, quality
from likely.evaluation.row import Row
from likely.logprob import Bits, LogProb, bits, format_bits
from likely.model import Model
from likely.noise import seeded

__all__ = ["draw", "evaluate", "held_out_bits", "log_prob"]

_ENTRIES = 2**18  # entries (rows x draws x dims) that go through a model at once
_SECONDS = 60.0  # of scoring, and of drawing: what is done by then counts
_FEW = 32  # but no fewer test examples than these are scored
_FIRST = 64  # examples that are drawn before it is known how long one takes


def evaluate(
    model: Model, data: Data, *, seed: int = 0, n: int = EXAMPLES, reference: Floors | None = None, seconds: float = _SECONDS
) -> Row:
    """Measure a fitted model on the test split: bits, speed and the quality of what it draws.

    Args:
        model: any model of `data.space`; conditional ones are scored and sampled under the test examples' `given`.
        seed: of bounds' noise, of the drawn examples and of every test.
        n: most examples that are drawn and compared.
        reference: floors of quality for n examples, where they are known already.
        seconds: scoring, and drawing, end after so many; the row says of how many examples its numbers are.

    Returns: a `Row` without a training record. Value and kind are None for a model without a likelihood.
    """
    was_training = model.training
    model.eval()
    config = getattr(model, "config", {})
    row = Row(model=config.get("model", type(model).__name__.lower()), size=model.size, seed=seed, options=config.get("options", {}))
    row.data, row.given = data.name, given_name(data) if model.given_space is not None else None
    row.device = device_of(model).type
    row.parameters = sum(t.numel() for t in model.parameters()) or sum(t.numel() for t in model.buffers())
    with torch.no_grad():
        if isinstance(model, Likelihood):
            _score(row, model, data, seed, seconds)
        test = held_out(data, examples(data, n), seed)
        drawn, taken = draw(model, test.given if model.given_space is not None else None, len(test), seed, seconds)
        row.samples_per_s = len(drawn) / taken
        floors = reference if len(drawn) == len(test) else None
        row.quality = quality(data if drawn.given is not None else data.unconditional(), drawn, reference=floors, seed=seed)
    row.peak_memory_mib = peak_memory_mib(device_of(model))
    model.train(was_training)
    return row


def given_name(data: Data) -> str | None:
    """What the examples are conditioned on, by name: "label", or the names of its columns."""
    if data.given is None:
        return None
    return ", ".join(s.name for s in data.given.supports if s.name) or str(data.given)


def held_out_bits(model: Likelihood, data: Data, *, draws: int | None = None, seed: int = 0, seconds: float = _SECONDS) -> Bits:
    """Test code length; of a text, of the whole test stretch as one sequence.

    Of anything else the test examples are scored in random order until `seconds` are spent: mostly all of them, and
    `how` says so where it is a part. Examples with weights count by them. Of a bound that several draws tighten it also
    says what one draw gives.
    """
    if data.test.stream is not None:
        from likely.evaluation.stretch import stretch_bits

        return stretch_bits(model, data)[0]
    order = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(seed))
    draws = draws or model.bound_draws
    scored = log_prob(model, Split(*data.test.rows(order)), draws=draws, seed=seed, seconds=seconds)
    weights = None if data.test.weights is None else data.test.weights[order[: len(scored)]]
    result, told = bits(scored, model.space, weights=weights), [] if weights is None else ["test examples by their weights"]
    if result.kind == "lower bound" and draws > 1:
        one = bits(log_prob(model, Split(*data.test.rows(order[: result.n])), draws=1, seed=seed), model.space, weights=weights)
        told.append(f"K=1: {format_bits(one.value, one.kind)}")  # what tightening is worth
    if result.n < len(data.test):
        told.append(f"{result.n} of {len(data.test)} test examples, drawn at random")
    return replace(result, how="; ".join(h for h in (result.how, *told) if h))


def log_prob(model: Likelihood, split: Split, *, draws: int = 1, seed: int = 0, seconds: float = math.inf) -> LogProb:
    """`model.log_prob` of a split in chunks of bounded memory, the same numbers as at once: of all its examples,
    or of the first of them, no fewer than 32, if `seconds` are spent before."""
    most, begin, parts, done = max(1, _ENTRIES // (draws * model.space.dims)), time.perf_counter(), [], 0
    rows = most if seconds == math.inf else min(most, _FEW)
    while not parts or done < len(split):
        x, given = _on(device_of(model), split.rows(slice(done, done + rows)), model)
        parts.append(model.log_prob(x, given, draws=draws, seed=seed))
        done += len(x)
        if (spent := time.perf_counter() - begin) > seconds and done >= _FEW:
            break
        rows = min(most, max(1, _FEW - done, int(done * (seconds / spent - 1)))) if seconds < math.inf else most
    return joined(parts)


def joined(parts: list[LogProb]) -> LogProb:
    """One `LogProb` of consecutive batches."""
    together = {
        name: torch.cat([getattr(p, name).cpu() for p in parts]) if getattr(parts[0], name) is not None else None
        for name in ("nats", "stderr", "lower", "upper")
    }
    return LogProb(kind=parts[0].kind, how=parts[0].how, **together)  # type: ignore[arg-type]


def _on(device: torch.device, rows: tuple[Tensor, Tensor | None], model: Likelihood) -> tuple[Tensor, Tensor | None]:
    """Examples on a device, and their `given` if the model takes one."""
    x, given = rows
    return x.to(device), given.to(device) if given is not None and model.given_space is not None else None


def _score(row: Row, model: Likelihood, data: Data, seed: int, seconds: float) -> None:
    begin = time.perf_counter()
    result = held_out_bits(model, data, seed=seed, seconds=seconds)
    row.log_prob_per_s = result.n / (time.perf_counter() - begin)
    row.unit, row.kind, row.how, row.n, row.draws = result.unit, result.kind, result.how, result.n, model.bound_draws
    row.value, row.stderr = result.value, result.stderr if math.isfinite(result.stderr) else None
    if not math.isfinite(result.value):
        row.value = None
        row.error = f"log p of the test examples is not finite (mean {result.value} {result.unit}): some have no probability at all."


def draw(model: Model, given: Tensor | None, n: int, seed: int, seconds: float = math.inf) -> tuple[Split, float]:
    """(n examples of the model, or fewer if they would take more than `seconds`; on the CPU; the seconds they took)."""
    device, begin, parts, count = device_of(model), time.perf_counter(), [], 0
    with seeded(seed):
        while count < n:
            more = slice(count, min(n, count + max(_FIRST, count)))  # as many again as there are
            parts.append(model.sample(more.stop - count, given[more].to(device) if given is not None else None).cpu())
            count, taken = more.stop, time.perf_counter() - begin
            if 2 * taken > seconds:
                break
    return Split(torch.cat(parts), None if given is None else given[:count]), time.perf_counter() - begin


def device_of(model: object) -> torch.device:
    """Where a model's numbers are."""
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
