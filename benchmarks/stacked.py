"""One model over the latents of another, beside the first alone: bits, energy distance and speed, at equal CPU seconds.

    python benchmarks/stacked.py --data digits --seconds 60
    python benchmarks/stacked.py --data ../shared/data/mnist --take 10000 --models "vae, vae > diffusion" --valid

One thread, float32. Both parts of a stack take from the same seconds. What is evaluated is the test split, or with --valid the validation
split, by which settings are chosen.
"""

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from common import emit, options


def measured(name: str, data: Any, seconds: float, seed: int) -> dict[str, Any]:
    import likely
    from likely.train import fit
    from likely.training import budget

    budget.time = SimpleNamespace(perf_counter=time.process_time)  # a budget of CPU seconds
    start = time.process_time()
    run = fit(data, name, minutes=seconds / 60, seed=seed, threads=1, precision="float32", progress=False)
    cpu = time.process_time() - start
    row = likely.evaluate(run.model, data, seed=seed)
    found = {key: getattr(row, key) for key in ("value", "unit", "kind", "how", "stderr", "n", "samples_per_s", "parameters")}
    quality = {key: row.quality[key]["value"] for key in ("energy_distance", "c2st_auc") if key in row.quality}
    return {"model": name, **found, **quality, "cpu_seconds": cpu, "steps": run.steps, "seed": seed}


def main() -> None:
    parser = options(__doc__ or "", seconds=60)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--take", type=int, default=0, help="training examples, all by default")
    parser.add_argument("--held-out", type=int, default=1000, help="most examples that are evaluated")
    parser.add_argument("--models", default="vae, vae > diffusion, vae > flow, vae > gmm")
    parser.add_argument("--valid", action="store_true", help="evaluate the validation split")
    arguments = parser.parse_args()
    import likely
    from likely.families import split_names

    data = likely.load(arguments.data)
    test = (data.valid if arguments.valid else data.test).head(arguments.held_out)
    data = replace(data, train=data.train.head(arguments.take or len(data.train)), test=test)
    settings = {"data": data.name, "take": arguments.take, "seconds": arguments.seconds, "split": "valid" if arguments.valid else "test"}
    for name in split_names(arguments.models):
        emit("stacked", {**measured(name, data, arguments.seconds, arguments.seed), **settings})


if __name__ == "__main__":
    main()
