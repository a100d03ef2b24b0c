"""Test log-likelihood, nats per example, on the binary density sets with their fixed splits; exact.

Each autoregressive candidate trains for the same process-CPU seconds on one thread; the one that is best on the
validation split is scored on the test split, once. `gmm` and `histogram` stand beside.
"""

import time
from pathlib import Path

import numpy as np
import torch

from common import emit, options, steps_within

FOLDER = Path(__file__).parents[2] / "shared/data/binary_density"
COLUMNS = {"nltcs": 16, "baudio": 100, "bnetflix": 100, "accidents": 111, "mushrooms": 112, "pumsb_star": 163, "dna": 180, "nips": 500}
CANDIDATES = {
    "made": {"net": "made", "width": 512, "depth": 1, "dropout": 0.2},
    "made, dropout 0.5": {"net": "made", "width": 512, "depth": 1, "dropout": 0.5},
}


def binary_set(name: str):
    from likely.dataset import Data, Split
    from likely.space import Space, Support

    with np.load(FOLDER / f"{name}_packed.npz") as file:
        bits = {part: np.unpackbits(file[part], axis=1)[:, : COLUMNS[name]] for part in ("train", "valid", "test")}
    parts = {part: Split(torch.from_numpy(b.astype(np.int64))) for part, b in bits.items()}
    return Data(Space.columns(*[Support("nominal", 2)] * COLUMNS[name]), name=name, **parts)


def nats(model, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model.log_prob(part).nats for part in x.split(500)])


def fitted(data, seconds: float, seed: int, chosen: dict):
    """(model, mean validation nats, CPU seconds) of one candidate."""
    from likely.train import fit

    steps = steps_within(data, "autoregressive", seconds, threads=1, **chosen)
    start = time.process_time()
    model = fit(data, "autoregressive", steps=steps, seed=seed, threads=1, progress=False, **chosen).model
    return model, nats(model, data.valid.x).mean().item(), time.process_time() - start


def closed(data, name: str, seed: int):
    from likely.train import fit

    start = time.process_time()
    model = fit(data, name, minutes=1, seed=seed, threads=1, progress=False).model
    return model, nats(model, data.valid.x).mean().item(), time.process_time() - start


def main() -> None:
    parser = options(__doc__ or "", seconds=30)
    parser.add_argument("--sets", default=",".join(COLUMNS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.sets.split(","):
        data = binary_set(name)
        tried = {label: fitted(data, arguments.seconds, arguments.seed, how) for label, how in CANDIDATES.items()}
        best = max(tried, key=lambda label: tried[label][1])
        others = {other: closed(data, other, arguments.seed) for other in ("gmm", "histogram")}
        for label, (model, valid, cpu) in {best: tried[best], **others}.items():
            test = nats(model, data.test.x)
            found = {
                "set": name,
                "model": label,
                "valid": valid,
                "value": test.mean().item(),
                "stderr": test.std().item() / len(test) ** 0.5,
            }
            found |= {"unit": "nats", "kind": "exact", "n": len(test), "rows": len(data.train), "columns": COLUMNS[name]}
            found |= {"cpu_seconds": cpu, "seed": arguments.seed, "budget_cpu_seconds": arguments.seconds, "threads": 1}
            emit("binary_density", found)


if __name__ == "__main__":
    main()
