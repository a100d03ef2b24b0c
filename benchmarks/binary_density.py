"""Test log-likelihood, nats per example, on the binary density sets with their fixed splits; exact.

Each candidate of `autoregressive` trains for the same process-CPU seconds on one thread, or until validation stands
still; the one that is best on the validation split is scored on the test split, once. `gmm` and `histogram` stand beside,
and `ngram`, which reads a row as a string of two symbols.
"""

import time
from pathlib import Path

import torch

from common import emit, log_likelihood, of_test, options, packed_bits, steps_within

FOLDER = Path(__file__).parents[2] / "shared/data/binary_density"
COLUMNS = {"nltcs": 16, "baudio": 100, "bnetflix": 100, "accidents": 111, "mushrooms": 112, "pumsb_star": 163, "dna": 180, "nips": 500}
CANDIDATES = {
    "made": {"net": "made", "width": 512, "depth": 1, "dropout": 0.2},
    "made, shallow, 16 orderings": {"net": "made", "width": 512, "depth": 0, "dropout": 0.5, "orderings": 16, "lr": 4e-3},
    "made, shallow, wide, 8 orderings": {"net": "made", "width": 2048, "depth": 0, "dropout": 0.5, "orderings": 8, "lr": 4e-3},
    "made, shallow, wide, 16 orderings": {"net": "made", "width": 2048, "depth": 0, "dropout": 0.5, "orderings": 16, "lr": 4e-3},
}
CLOSED = ("gmm", "histogram", "ngram")


def binary_set(name: str, *, strings: bool = False):
    """Rows as a table, or as strings."""
    from likely.dataset import Data, Split
    from likely.space import Space, Support

    columns = COLUMNS[name]
    space = Space.sequence(columns, 2) if strings else Space.columns(*[Support("nominal", 2)] * columns)
    return Data(space, name=name, **{part: Split(x) for part, x in packed_bits(FOLDER / f"{name}_packed.npz", columns).items()})


def fitted(data, model: str, seed: int, **how):
    """(model, mean validation nats, CPU seconds)."""
    from likely.train import fit

    start = time.process_time()
    model = fit(data, model, seed=seed, threads=1, progress=False, **how).model
    cpu = time.process_time() - start
    return model, log_likelihood(model, data.valid.x).mean().item(), cpu


def main() -> None:
    parser = options(__doc__ or "", seconds=30)
    parser.add_argument("--sets", default=",".join(COLUMNS))
    parser.add_argument("--closed", default=",".join(CLOSED), help="families that are fitted without steps")
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    closed = [name for name in arguments.closed.split(",") if name]
    for name in arguments.sets.split(","):
        data = binary_set(name)
        tried = {}
        for label, how in ((label, CANDIDATES[label]) for label in arguments.candidates):
            steps = steps_within(data, "autoregressive", arguments.seconds, threads=1, **how)
            tried[label] = fitted(data, "autoregressive", arguments.seed, steps=steps, **how)
        best = max(tried, key=lambda label: tried[label][1])
        others = {other: fitted(binary_set(name, strings=other == "ngram"), other, arguments.seed, minutes=1) for other in closed}
        for label, (model, valid, cpu) in {best: tried[best], **others}.items():
            found = {"set": name, "model": label, "valid": valid, **of_test(log_likelihood(model, data.test.x))}
            found |= {"rows": len(data.train), "columns": COLUMNS[name], "tried": {label: t[1] for label, t in tried.items()}}
            found |= {"cpu_seconds": cpu, "seed": arguments.seed, "budget_cpu_seconds": arguments.seconds, "threads": 1}
            emit("binary_density", found)


if __name__ == "__main__":
    main()
