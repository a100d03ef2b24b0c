"""Nats per image on the static binarization of MNIST (Larochelle), 50,000 / 10,000 / 10,000 images of 784 bits, exact.

Each net trains for the same process-CPU seconds on one thread, as a number of steps that a short run is
timed for; averaged weights, the best on validation. Settings were chosen on validation images.
"""

import time
from argparse import BooleanOptionalAction
from pathlib import Path

import numpy as np
import torch

from common import emit, options, steps_within

FILE = Path(__file__).parents[2] / "shared/data/binarized_mnist/binarized_mnist_packed.npz"
RUNS = {  # options of the model, and of `fit`
    "made": ({"width": 1024, "depth": 1, "dropout": 0.0}, {"batch": 50, "lr": 2e-3}),
    "pixelcnn++": ({"width": 16, "depth": 1, "dropout": 0.0}, {"batch": 16, "lr": 2e-3}),
    "gated-pixelcnn": ({"width": 24, "gates": 16, "depth": 5, "dropout": 0.0}, {"batch": 16, "lr": 2e-3}),
}


def binarized_mnist():
    from likely import Space
    from likely.dataset import Data, Split

    with np.load(FILE) as file:
        bits = {part: np.unpackbits(file[part], axis=1)[:, :784] for part in ("train", "valid", "test")}
    parts = {name: Split(torch.from_numpy(b.astype(np.int64)).view(-1, 1, 28, 28)) for name, b in bits.items()}
    return Data(Space.grid(1, 28, 28, 2), name="binarized-mnist", **parts)


def nats(model, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return -torch.cat([model.log_prob(part).nats for part in x.split(250)])


def run(name: str, data, arguments) -> dict:
    from likely.train import fit

    chosen, how = RUNS[name]
    how = {**how, "threads": 1, "precision": arguments.precision, **chosen}
    steps = steps_within(data, "autoregressive", arguments.seconds, net=name, **how)
    start = time.process_time()
    done = fit(data, "autoregressive", net=name, steps=steps, seed=arguments.seed, progress=arguments.verbose, **how)
    cpu, valid = time.process_time() - start, nats(done.model, data.valid.x)
    found = {"model": name, "valid": valid.mean().item(), "steps": done.steps, "cpu_seconds": cpu, "options": how}
    found["parameters"] = sum(p.numel() for p in done.model.parameters())
    if arguments.test:
        test = nats(done.model, data.test.x)
        found |= {
            "value": test.mean().item(),
            "stderr": test.std().item() / len(test) ** 0.5,
            "unit": "nats",
            "kind": "exact",
            "n": len(test),
        }
    return found


def main() -> None:
    parser = options(__doc__ or "", seconds=600)
    parser.add_argument("--nets", default=",".join(RUNS))
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--test", action=BooleanOptionalAction, default=True, help="score the test images, too")
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = binarized_mnist()
    for name in arguments.nets.split(","):
        found = run(name, data, arguments)
        emit("binarized_mnist", {**found, "seed": arguments.seed, "budget_cpu_seconds": arguments.seconds, "threads": 1})


if __name__ == "__main__":
    main()
