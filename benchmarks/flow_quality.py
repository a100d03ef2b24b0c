"""Held-out nats of density after the same process-CPU seconds: our flows beside zuko, nflows and normflows; one thread.

Every library gets the float32 arrays of `arrays.py`, a grid of settings, a third of the budget to try each of three once on
validation rows, and then the budget for each seed. Digits are dequantized uniformly: bits/dim with K = 1, and K = 64 beside it.
"""

import math
import time

import torch

from arrays import LEVELS, NAMES, split
from common import emit, options, peer, steps_within

SETTINGS = {  # of ours: a name of the registry and options
    "flow, narrow": ("flow", {"width": 64, "layers": 5, "dropout": 0.0, "lr": 4e-3}),
    "nsf-ar, narrow": ("nsf-ar", {"width": 64, "layers": 4, "dropout": 0.0, "lr": 6e-3}),
    "flow, affine": ("flow", {"transform": "affine", "dropout": 0.4}),
}
PEERS = ("zuko", "nflows", "normflows")


def data_of(name: str):
    from likely import Space
    from likely.dataset import Data, Split

    parts = [torch.from_numpy(x) for x in split(name)]
    if name == "digits":
        space, parts = Space.grid(1, 8, 8, LEVELS), [x.long().view(-1, 1, 8, 8) for x in parts]
    else:
        space = Space.reals(parts[0].shape[1])
    return Data(space.standardised(parts[0]), name=name, **{p: Split(x) for p, x in zip(("train", "valid", "test"), parts, strict=True)})


def nll(model, x, draws: int = 1) -> torch.Tensor:
    with torch.no_grad():
        return -torch.cat([model.log_prob(part, draws=draws).nats.double() for part in x.split(2000)])


def ours(data, seconds: float, seeds: int) -> dict:
    from likely.train import fit

    def trained(setting: str, budget: float, seed: int):
        name, chosen = SETTINGS[setting]
        how = {"threads": 1, "precision": "float32", "batch": 256, **chosen}
        steps = steps_within(data, name, budget, **how)
        start = time.process_time()
        return fit(data, name, steps=steps, seed=seed, progress=False, **how), time.process_time() - start

    tried = {setting: nll(trained(setting, seconds / 3, 0)[0].model, data.valid.x).mean().item() for setting in SETTINGS}
    best, runs = min(tried, key=lambda setting: tried[setting]), []
    for seed in range(seeds):
        run, cpu = trained(best, seconds, seed)
        test = nll(run.model, data.test.x)
        found = {"seed": seed, "valid": nll(run.model, data.valid.x).mean().item(), "nll": test.mean().item(), "n": len(test)}
        if data.space.discrete:
            found["nll_64"] = nll(run.model, data.test.x, 64).mean().item()
        size = sum(p.numel() for p in run.model.parameters())
        runs.append({**found, "stderr": test.std().item() / len(test) ** 0.5, "steps": run.steps, "cpu_seconds": cpu, "parameters": size})
    return {"model": best, "tried": tried, "runs": runs}


def main() -> None:
    parser = options(__doc__ or "", seconds=30)
    parser.add_argument("--data", default=",".join(NAMES))
    parser.add_argument("--libraries", default=",".join(("likely", *PEERS)))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.data.split(","):
        for library in arguments.libraries.split(","):
            if library == "likely":
                found = ours(data_of(name), arguments.seconds, arguments.seeds)
            else:
                words = ("--library", library, "--data", name, "--seconds", str(arguments.seconds), "--seeds", str(arguments.seeds))
                found = peer("flow_quality.py", *words)
            unit, per = ("bits/dim", 64 * math.log(2)) if name == "digits" else ("nats", 1.0)
            values = [run["nll"] / per for run in found["runs"]]
            found |= {"value": sum(values) / len(values), "values": values, "unit": unit}
            emit("flow_quality", {"data": name, "library": library, **found, "budget_cpu_seconds": arguments.seconds, "threads": 1})


if __name__ == "__main__":
    main()
