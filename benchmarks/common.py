"""What every benchmark shares: its options, the machine it ran on, and one JSON line that is printed and kept."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PEERS = HERE.parent / ".venv-peers/bin/python"


def options(description: str, seconds: float = 30.0) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seconds", type=float, default=seconds, help="budget of each measured part, process-CPU seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser


def emit(name: str, record: dict[str, Any]) -> None:
    """Print one JSON line and append it to `results/NAME.jsonl`."""
    line = json.dumps({"benchmark": name, **rounded(record), **machine()})
    print(line, flush=True)
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.write(line + "\n")


def rounded(value: Any) -> Any:
    """Five significant digits, all the way down."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list | tuple) else value


def machine() -> dict[str, Any]:
    """Date, versions and processor, without which a figure means nothing."""
    import torch

    import likely

    return {
        "date": time.strftime("%Y-%m-%d"),
        "likely": likely.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def cpu_name() -> str:
    """The processor's name, and whether it has matrix units (AMX)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {k.strip(): v.strip() for k, v in facts.items()}
    return facts.get("model name", platform.machine()) + (" with AMX" if "amx_tile" in facts.get("flags", "") else "")


def peer(script: str, *words: str) -> dict[str, Any]:
    """Run one of `peers/` in the peers' environment; its JSON."""
    if not PEERS.exists():
        sys.exit("The peers are not installed: run `make bench-setup` first.")
    command = [str(PEERS), str(HERE / "peers" / script), *words]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if run.returncode != 0:
        sys.exit(f"{script} failed:\n{run.stderr[-2000:]}")
    return json.loads(run.stdout.strip().splitlines()[-1])


def packed_bits(path: Path, columns: int) -> dict[str, Any]:
    """int64 tensors [rows, columns] of the parts of a file of packed bits: train, valid, test."""
    import numpy as np
    import torch

    with np.load(path) as file:
        return {
            part: torch.from_numpy(np.unpackbits(file[part], axis=1)[:, :columns].astype(np.int64)) for part in ("train", "valid", "test")
        }


def log_likelihood(model: Any, x: Any) -> Any:
    """Exact nats of each row, [rows] float64, in pieces of bounded memory."""
    import torch

    with torch.no_grad():
        return torch.cat([model.log_prob(part).nats.double() for part in x.split(250)])


def of_test(nats: Any) -> dict[str, Any]:
    """What is said of test rows by the nats of each."""
    return {"value": nats.mean().item(), "stderr": nats.std().item() / len(nats) ** 0.5, "unit": "nats", "kind": "exact", "n": len(nats)}


def fit_within(data: Any, model: Any, seconds: float, **how: Any) -> Any:
    """The run of a fit whose budget counts process-CPU seconds, so that a busy machine does not matter."""
    from likely.train import fit

    with mock.patch("likely.training.budget.time.perf_counter", time.process_time):
        return fit(data, model, minutes=seconds / 60, progress=False, **how)


def steps_within(data: Any, model: str, seconds: float, **how: Any) -> int:
    """Training steps that take so many process-CPU seconds, by the difference of two short runs; a busy machine does not matter."""
    from likely.train import fit

    def cpu(steps: int) -> float:
        start = time.process_time()
        fit(data, model, steps=steps, progress=False, **how)
        return time.process_time() - start

    cpu(5)
    return max(1, int(seconds / (max(1e-6, cpu(50) - cpu(10)) / 40)))
