"""Every causal net on data of each layout it serves: parameters, what it sees, speed of training and of drawing, test bits.

Each net has its defaults and trains for the same process-CPU seconds on one thread in float32, as a number of steps
that a short run is timed for. What a net sees is found by gradient: the share of the entries before the
last one that its parameters depend on, of a grid of 28x28 and of the data's own space else.
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch

import likely
from common import emit, options, steps_within
from likely.evaluation.measure import held_out_bits
from likely.nets import NETS
from likely.train import fit

SHARED = Path(__file__).parents[2] / "shared/data"
DATA = {  # of each layout; texts are scored in bytes
    "grid": lambda: likely.load("digits"),
    "columns": lambda: likely.load(SHARED / "tables/abalone.csv.gz"),
    "sequence": lambda: likely.load(SHARED / "text/tinyshakespeare.txt.gz"),
}
STREAMS = 64


def seconds(action: Callable[[], object]) -> float:
    """The faster of two runs after a first one, process-CPU seconds."""
    taken = []
    for _ in range(3):
        start = time.process_time()
        action()
        taken.append(time.process_time() - start)
    return min(taken[1:])


def drawn_per_second(model, n: int) -> float:
    """Entries (bytes of a text) that n streams draw side by side."""
    return n * model.space.dims / seconds(lambda: model.sample(n))


def seen(layout: str, word: str, space: likely.Space) -> float | int:
    """The share of the entries before the last one that it depends on; of texts the bytes that the net looks back on."""
    if layout != "grid":
        reach = likely.build("autoregressive", space, net=word).net.reach
        return 1.0 if reach is None else reach
    space = likely.Space.grid(1, 28, 28, 256)
    net = likely.build("autoregressive", space, net=word, head="mixture").net.eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x = (255 * torch.rand(1, *space.shape)).requires_grad_()
    gradient = torch.autograd.grad(net(x).flatten(1, -2)[0, -1].square().sum(), x)[0]
    return (gradient != 0).sum().item() / (space.dims - 1)


def measured(layout: str, word: str, data, budget: float, seed: int) -> dict:
    """One row of the table."""
    how = {"threads": 1, "precision": "float32", "net": word}
    steps = steps_within(data, "autoregressive", budget, **how)
    start = time.process_time()
    run = fit(data, "autoregressive", steps=steps, seed=seed, progress=False, **how)
    cpu, bits = time.process_time() - start, held_out_bits(run.model, data, seed=seed)
    return {
        "data": data.name,
        "layout": layout,
        "net": word,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "sees": seen(layout, word, data.space),
        "batch": run.model.recipe.batch,
        "ms_per_step": 1e3 * budget / steps,
        "entries_per_s": drawn_per_second(run.model, 1),
        f"entries_per_s_{STREAMS}": drawn_per_second(run.model, STREAMS),
        **{name: getattr(bits, name) for name in ("value", "unit", "kind", "stderr", "n")},
        "steps": steps,
        "cpu_seconds": cpu,
    }


def main() -> None:
    parser = options(__doc__ or "", seconds=20)
    parser.add_argument("--layouts", default=",".join(DATA))
    parser.add_argument("--nets", help="some of them, by name")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for layout in arguments.layouts.split(","):
        data = DATA[layout]()
        for word in arguments.nets.split(",") if arguments.nets else NETS["causal", layout]:
            found = measured(layout, word, data, arguments.seconds, arguments.seed)
            emit("nets", {**found, "seed": arguments.seed, "budget_cpu_seconds": arguments.seconds, "threads": 1})


if __name__ == "__main__":
    main()
