"""Flows beside zuko and nflows with one architecture: training steps, log-densities and samples per CPU second, and ratios.

5 transforms, 8 bins, batches of 256. The net of a coupling is the same plain MLP of two hidden layers in all three; for
autoregressive maps each has its own masked MLP of that width and two hidden layers. Ours are bijections in a chain, as a family
builds them, trained by fused Adam with gradients clipped as `fit` does; theirs train by torch's Adam and clipping as they come.
Each library has a process of one thread, and they take turns, a fraction of a second each, so that a busy machine slows all alike;
a ratio is over the better of the two, the median of the turns.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from common import PEERS, emit, options

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from flow_speed import BATCH, BINS, BOUND, TRANSFORMS, serve

KINDS = ("spline coupling", "affine coupling", "additive coupling", "spline autoregressive", "affine autoregressive")
SHAPES = {2: 64, 30: 64, 64: 256}  # dims: width
RATES = {"steps": 1, "log_probs": BATCH, "samples": BATCH}  # of one action
TURNS = 5


class Ours(nn.Module):
    """A chain of bijections before standard normal noise."""

    def __init__(self, kind: str, dims: int, width: int) -> None:
        super().__init__()
        from likely.bijections import Additive, Affine, Autoregressive, Bijection, Chain, Coupling, Permute, Spline, mask
        from likely.nets import net
        from likely.space import Space

        transform = {"spline": Spline(BINS, bound=BOUND), "affine": Affine(), "additive": Additive()}[kind.split()[0]]
        shape = {"out": transform.size, "width": width, "depth": 1, "dropout": 0.0, "residual": False}
        parts: list[Bijection] = []
        for i in range(TRANSFORMS):
            if "coupling" in kind:
                moves = mask("alternate", (dims,), i)
                parts.append(Coupling(moves, transform, net(Space.reals(dims), "coupling", moves=moves, **shape)))
                continue
            masked = net(Space.reals(dims), "ordered", **shape)
            parts += [*([Permute(dims, "reverse")] if i else []), Autoregressive(transform, masked)]
        self.dims, self.map = dims, Chain(parts)

    def log_prob(self, x: Tensor) -> Tensor:
        from likely.invertible import log_normal

        z, log_det = self.map(x)
        return log_det + log_normal(z)

    def sample(self, n: int) -> Tensor:
        return self.map.inverse(torch.randn(n, self.dims))[0]


class Worker:
    """A library in a process of its own, which is asked and answers; see `serve`."""

    def __init__(self, library: str, kind: str, dims: int) -> None:
        python, script = (
            (sys.executable, __file__) if library == "ours" else (str(PEERS), str(Path(__file__).parent / "peers/flow_speed.py"))
        )
        words = ["--serve", kind, str(dims)] if library == "ours" else [library, kind, str(dims), str(SHAPES[dims])]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.run = subprocess.Popen([python, script, *words], env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes)

    def ask(self, word: str, number: int) -> float:
        self.run.stdin.write(f"{word} {number}\n")
        self.run.stdin.flush()
        return float(self.run.stdout.readline())


def compared(workers: dict[str, Worker], seed: int, seconds: float) -> dict[str, Any]:
    """Parameters, rates, and the ratio of each rate."""
    parameters = {library: int(worker.ask("seed", seed)) for library, worker in workers.items()}
    rates: dict[str, dict[str, float]] = {library: {} for library in workers}
    ratios = {}
    for action, count in RATES.items():
        times = {library: max(1, int(seconds / TURNS / worker.ask(action, 1))) for library, worker in workers.items()}
        turns = [{library: count / worker.ask(action, times[library]) for library, worker in workers.items()} for _ in range(TURNS)]
        ratios[f"{action}_per_s"] = median(turn["ours"] / max(turn["zuko"], turn["nflows"]) for turn in turns)
        for library in workers:
            rates[library][f"{action}_per_s"] = median(turn[library] for turn in turns)
    return {"parameters": parameters, "rates": rates, "ratios": ratios}


def of_row(kind: str, dims: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Medians over seeds."""
    workers = {library: Worker(library, kind, dims) for library in ("ours", "zuko", "nflows")}
    runs = [compared(workers, arguments.seed + k, arguments.seconds) for k in range(arguments.seeds)]
    for worker in workers.values():
        worker.run.communicate()
    by_seed = {rate: [run["ratios"][rate] for run in runs] for rate in runs[0]["ratios"]}
    return {
        "kind": kind,
        "dims": dims,
        "width": SHAPES[dims],
        "ratios": {rate: median(values) for rate, values in by_seed.items()},
        "by_seed": by_seed,
        "rates": {library: {rate: median(run["rates"][library][rate] for run in runs) for rate in by_seed} for library in workers},
        "parameters": runs[0]["parameters"],
        "seeds": arguments.seeds,
        "threads": 1,
    }


def ours(kind: str, dims: int) -> tuple[nn.Module, Any, Any]:
    flow = Ours(kind, dims, SHAPES[dims])
    return flow, flow.log_prob, flow.sample


def main() -> None:
    parser = options(__doc__ or "", seconds=1)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--dims", nargs="+", type=int, choices=SHAPES, default=tuple(SHAPES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--serve", nargs=2, metavar=("KIND", "DIMS"), help="be the process of our side")
    arguments = parser.parse_args()
    if arguments.serve:
        kind, dims = arguments.serve[0], int(arguments.serve[1])
        from likely.training.optimisers import clip_gradients

        serve(lambda: ours(kind, dims), dims, clip=clip_gradients, fused=True)
        return
    for kind in arguments.kinds:
        for dims in arguments.dims:
            emit("flow_speed", of_row(kind, dims, arguments))


if __name__ == "__main__":
    main()
