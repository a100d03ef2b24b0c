"""What `likely.fit`'s loop costs per step over a bare torch loop, for the same tiny model: a ratio.

The bare loop indexes tensors, calls the model, and steps fused AdamW: nothing else. Ours also reseeds,
clips, averages the weights, checks for NaN, validates and reports. Pairs of runs alternate in one
process; times are process-CPU seconds.
"""

import statistics
import sys
import time
from pathlib import Path

import torch

from common import emit, options

sys.path.insert(0, str(Path(__file__).parent))


def bare(data, model, steps, recipe) -> float:
    """CPU seconds of a bare loop."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.lr, fused=True)
    x = data.train.x
    start = time.process_time()
    for _ in range(steps):
        rows = torch.randint(len(x), (recipe.batch,))
        optimiser.zero_grad()
        model(x[rows]).mean().backward()
        optimiser.step()
    return time.process_time() - start


def main() -> None:
    parser = options(__doc__ or "", seconds=20)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    import likely
    from likely.train import fit

    data = likely.load("digits")
    for name in ("autoregressive", "vae", "flow", "diffusion"):
        sample = likely.build(name, data.space, size="tiny").train()
        one = bare(data, sample, 20, sample.recipe) / 20
        steps = max(400, int(arguments.seconds / 10 / one))  # validations are 20 a run: few steps would be all about them
        ratios = []
        for pair in range(3):
            plain = bare(data, likely.build(name, data.space, size="tiny").train(), steps, sample.recipe)
            start = time.process_time()
            run = fit(data, name, size="tiny", steps=steps, seed=pair, progress=False, threads=arguments.threads)
            ratios.append((time.process_time() - start) / run.steps * steps / plain)
        emit(
            "loop_overhead",
            {
                "model": f"{name} (tiny)",
                "data": "digits",
                "batch": sample.recipe.batch,
                "steps": steps,
                "bare_ms_per_step": 1000 * plain / steps,
                "ratio": statistics.median(ratios),
                "ratios": ratios,
                "threads": arguments.threads,
            },
        )


if __name__ == "__main__":
    main()
