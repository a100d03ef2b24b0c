"""Test bits/dim of 8-bit images after so many process-CPU seconds of training, one family after the other; one thread.

MNIST and Fashion-MNIST as they come (54,000 images to train on, 6,000 to validate, 10,000 to test, of which as many are
scored as a minute allows), and 3,000 images of CIFAR-10's training set, split by the loader: too few to be set beside published figures.
Defaults, one seed; of the same run, images drawn per second.
"""

import time
from pathlib import Path

import torch

from common import emit, fit_within, options

SHARED = Path(__file__).parents[2] / "shared/data"
SETS = {"mnist": "mnist", "fashion_mnist": "fashion_mnist", "cifar10_subset": "cifar10_subset/cifar10_train_0000_2999.npz"}


def main() -> None:
    parser = options(__doc__ or "", seconds=300)
    parser.add_argument("--data", default=",".join(SETS))
    parser.add_argument("--models", default="flow,glow,autoregressive,vae,diffusion,vdm,histogram")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.data.split(","):
        for model in arguments.models.split(","):
            emit("images", {"data": name, **measured(name, model, arguments.seconds, arguments.seed), "seed": arguments.seed, "threads": 1})


def measured(name: str, model: str, seconds: float, seed: int) -> dict:
    """One family's test likelihood, with what it took."""
    import likely

    data, start = likely.load(SHARED / SETS[name]), time.process_time()
    run = fit_within(data, model, seconds, seed=seed, threads=1)
    cpu = time.process_time() - start
    row = likely.evaluate(run.model, data, seed=seed)
    found = {k: getattr(row, k) for k in ("value", "unit", "kind", "how", "stderr", "n", "parameters", "samples_per_s")}
    return {"model": model, **found, "cpu_seconds": cpu, "steps": run.steps, "budget_cpu_seconds": seconds}


if __name__ == "__main__":
    main()
