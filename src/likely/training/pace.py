"""How to compute on this machine, measured and not hoped: threads, precision, memory format.

These matter by factors, in either direction: bf16 convolutions run several times faster where the
processor has matrix units and slower where it has not, and a second thread may cost more than it gives.
"""

import copy
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from likely.model import Model

__all__ = ["Pace", "counted_threads", "measure_pace"]

SHARED_OPERATIONS = 1e9  # of a forward pass: some 10 ms of one core, against which handing out work is little


@dataclass(frozen=True)
class Pace:
    """Intra-op threads (0: leave them alone), bf16 autocast, and channels-last convolutions."""

    threads: int = 0
    bf16: bool = False
    channels_last: bool = False

    def apply(self, model: nn.Module) -> None:
        """Set the threads, and the memory format of the weights."""
        if self.threads and self.threads != torch.get_num_threads():
            torch.set_num_threads(self.threads)
        if self.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16)

    def __str__(self) -> str:
        threads = f"{self.threads or torch.get_num_threads()} thread{'s' if self.threads != 1 else ''}"
        return f"{threads}, {'bf16' if self.bf16 else 'float32'}{', channels last' if self.channels_last else ''}"


def measure_pace(model: Model, x: Tensor, given: Tensor | None, *, threads: int | None, seconds: float) -> Pace:
    """Time training steps of a copy of the model under each choice and keep the fastest, within about `seconds`.

    A choice must win by 5 % (threads, memory format) or 25 % (bf16, which costs accuracy) to replace the plain one.
    """
    deadline = time.perf_counter() + seconds
    best = Pace(threads or 1)
    best_time = _step_seconds(model, x, given, best)

    def challenge(candidate: Pace, margin: float) -> None:
        nonlocal best, best_time
        if time.perf_counter() + 3 * best_time > deadline:
            return
        taken = _step_seconds(model, x, given, candidate)
        if taken * margin < best_time:
            best, best_time = candidate, taken

    if threads is None and torch.get_num_threads() > 1:
        challenge(replace(best, threads=torch.get_num_threads()), 1.05)
    convolves = any(isinstance(m, nn.Conv2d) for m in model.modules())
    if convolves:
        challenge(replace(best, channels_last=True), 1.05)
    if model.recipe.bf16:
        challenge(replace(best, bf16=True), 1.25)
        if convolves:
            challenge(replace(best, bf16=True, channels_last=not best.channels_last), 1.05 if best.bf16 else 1.25)
    return best


def counted_threads(model: Model, x: Tensor, given: Tensor | None) -> int:
    """One thread for steps too small to share, else all: by counting operations, so that it is the same each time."""
    trial, operations = copy.deepcopy(model).train(), 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal operations
        operations += 2 * output.numel() * layer.weight[0].numel()  # type: ignore[index, operator]

    for layer in trial.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
            layer.register_forward_hook(count)
    trial(x, given, turn=model.turns[0])
    return torch.get_num_threads() if operations > SHARED_OPERATIONS else 1


def _step_seconds(model: Model, x: Tensor, given: Tensor | None, pace: Pace) -> float:
    """Seconds of one forward and backward pass of all turns: the fastest of two, after one to warm up."""
    before = torch.get_num_threads()
    trial = copy.deepcopy(model).train()
    pace.apply(trial)
    try:
        return min(_timed(lambda: _turns(trial, x, given, pace)) for _ in range(3))
    finally:
        torch.set_num_threads(before)


def _turns(model: Model, x: Tensor, given: Tensor | None, pace: Pace) -> None:
    for turn in model.turns:
        with pace.autocast(x.device):
            loss = model(x, given, turn=turn)
        loss.float().mean().backward()


def _timed(action: Callable[[], None]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
