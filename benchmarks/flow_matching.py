"""Flow matching on 2-D toys after the same process-CPU seconds: `flow-matching` beside torchcfm, both couplings; one thread.

A plain MLP of about 64 units and three hidden layers in both. Samples are judged by the energy distance to test points: those of the
default sampler (ours DPM-Solver++ in 16 calls, theirs dopri5), those of 8 calls (theirs by Euler's method) and of 20 Euler steps; training
points beside test points are the floor. Of ours, the mean log-likelihood of test points as well, by the differential equation, which
torchcfm does not offer, beside that of the true law.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arrays import TOYS, split, true_nats
from common import emit, fit_within, options, peer

COUPLINGS = ("independent", "ot")
NET = {"net": "plain", "width": 61, "depth": 3, "batch": 512, "lr": 1e-2}
FEW = 8  # calls
SCORED = 2000  # test points whose likelihood is computed


def data_of(name: str) -> Any:
    from likely import Space
    from likely.dataset import Data, Split

    parts = [torch.from_numpy(x) for x in split(name)]
    space = Space.reals(2).standardised(parts[0])
    return Data(space, name=name, **{p: Split(x) for p, x in zip(("train", "valid", "test"), parts, strict=True)})


def energy(drawn: Tensor, real: Tensor) -> float:
    from likely.evaluation.two_sample import energy_distance, pairwise

    return energy_distance(pairwise(drawn, real), len(drawn), permutations=1)["value"]


def ours(data: Any, coupling: str, seconds: float, seed: int, samples: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    start = time.process_time()
    run = fit_within(data, "flow-matching", seconds, seed=seed, threads=1, precision="float32", coupling=coupling, **NET)
    cpu, model = time.process_time() - start, run.model
    torch.manual_seed(seed)
    start = time.process_time()
    solved = model.sample(samples)
    found = {"calls": model.usual[1], "samples_per_s": samples / (time.process_time() - start)}
    said = model.log_prob(data.test.x[:SCORED])
    nats = -said.nats.double()
    found |= {"nll": nats.mean().item(), "stderr": nats.std().item() / len(nats) ** 0.5, "kind": said.kind, "n": len(nats)}
    size = sum(p.numel() for p in model.parameters())
    found |= {"steps": run.steps, "steps_per_s": run.steps / cpu, "cpu_seconds": cpu, "parameters": size}
    drawn = {
        "solved": solved,
        "few": model.sample(samples, steps=FEW),
        "euler": model.sample(samples, sampler="euler", steps=20, grid="time"),
    }
    return drawn, found


def theirs(name: str, coupling: str, seconds: float, seed: int, samples: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "drawn.npz"
        words = ("--data", name, "--seconds", str(seconds), "--samples", str(samples), "--out", str(out), "--seed", str(seed))
        found = peer("flow_matching.py", coupling, *words)
        with np.load(out) as drawn:
            return {name: torch.from_numpy(x) for name, x in drawn.items()}, found


def main() -> None:
    parser = options(__doc__ or "", seconds=30)
    parser.add_argument("--data", default=",".join(TOYS))
    parser.add_argument("--libraries", default="likely,torchcfm")
    parser.add_argument("--samples", type=int, default=4000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    how = (arguments.seconds, arguments.seed, arguments.samples)
    for name in arguments.data.split(","):
        data = data_of(name)
        truth = true_nats(name, data.test.x[:SCORED].numpy())
        real, seen = (part.x[: arguments.samples] for part in (data.test, data.train))
        for coupling in COUPLINGS:
            for library in arguments.libraries.split(","):
                drawn, found = ours(data, coupling, *how) if library == "likely" else theirs(name, coupling, *how)
                found |= {f"energy_{how}": energy(x, real) for how, x in drawn.items()} | {"floor": energy(seen, real), "truth": truth}
                shared = {"samples": arguments.samples, "seed": arguments.seed, "budget_cpu_seconds": arguments.seconds, "threads": 1}
                emit("flow_matching", {"data": name, "coupling": coupling, "library": library, **found, **shared})


if __name__ == "__main__":
    main()
