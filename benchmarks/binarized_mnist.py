"""Nats per image on the static binarization of MNIST (Larochelle), 50,000 / 10,000 / 10,000 images of 784 bits, exact.

Each net trains for the same process-CPU seconds on one thread, as a number of steps that a short run is
timed for; averaged weights, the best on validation. Settings were chosen on validation images.
"""

import time
from argparse import BooleanOptionalAction
from pathlib import Path

import torch

from common import emit, log_likelihood, of_test, options, packed_bits, steps_within

FILE = Path(__file__).parents[2] / "shared/data/binarized_mnist/binarized_mnist_packed.npz"
RUNS = {  # options of the model, and of `fit`
    "made": ({"width": 8000, "depth": 0, "dropout": 0.5}, {"batch": 200, "lr": 1.5e-3}),  # in 1000 s, bf16
    "pixelcnn++": ({"width": 16, "depth": 1, "dropout": 0.0}, {"batch": 16, "lr": 2e-3}),
    "gated-pixelcnn": ({"width": 24, "gates": 16, "depth": 5, "dropout": 0.0}, {"batch": 16, "lr": 2e-3}),
}


def binarized_mnist():
    from likely import Space
    from likely.dataset import Data, Split

    parts = {part: Split(bits.view(-1, 1, 28, 28)) for part, bits in packed_bits(FILE, 784).items()}
    return Data(Space.grid(1, 28, 28, 2), name="binarized-mnist", **parts)


def run(name: str, data, arguments) -> dict:
    from likely.train import fit

    chosen, how = RUNS[name]
    how = {**how, "threads": 1, "precision": arguments.precision, **chosen}
    steps = steps_within(data, "autoregressive", arguments.seconds, net=name, **how)
    start = time.process_time()
    done = fit(data, "autoregressive", net=name, steps=steps, seed=arguments.seed, progress=arguments.verbose, **how)
    cpu, valid = time.process_time() - start, -log_likelihood(done.model, data.valid.x)
    found = {"model": name, "valid": valid.mean().item(), "steps": done.steps, "cpu_seconds": cpu, "options": how}
    found["parameters"] = sum(p.numel() for p in done.model.parameters())
    return found | (of_test(-log_likelihood(done.model, data.test.x)) if arguments.test else {})


def main() -> None:
    parser = options(__doc__ or "", seconds=600)
    parser.add_argument("--nets", default=",".join(RUNS))
    parser.add_argument("--precision", default="float32", help="float32 or bf16")
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
