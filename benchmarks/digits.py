"""Test bits/dim on digits after the same process-CPU seconds: our families and the peers, in one run, one thread.

Same split, same 17 levels, uniform dequantization for densities (K draws named). Our figures are those
of the validated best within the budget; so are the peers'.
"""

import time

import torch

from common import emit, options, peer, steps_within

OURS = ("autoregressive", "flow", "vae", "diffusion", "histogram", "gmm", "kde", "pca")
CLOSED = ("histogram", "gmm", "kde", "pca")
PEERS = ("zuko-nsf", "zuko-maf", "nflows-nsf")


def ours(name: str, seconds: float, seed: int, precision: str) -> dict:
    """One of our families within `seconds` of this process's CPU time, scored on the test split."""
    import likely
    from likely.train import fit

    data, how = likely.load("digits"), {"threads": 1, "precision": precision}
    budget = {"minutes": seconds / 60} if name in CLOSED else {"steps": steps_within(data, name, seconds, **how)}
    start = time.process_time()
    run = fit(data, name, seed=seed, progress=False, **how, **budget)
    cpu = time.process_time() - start
    row = likely.evaluate(run.model, data, seed=seed)
    found = {k: getattr(row, k) for k in ("value", "unit", "kind", "how", "stderr", "n")}
    return {
        "model": f"likely {name}",
        **found,
        "cpu_seconds": cpu,
        "steps": run.steps,
        "precision": precision,
        "parameters": row.parameters,
        "samples_per_s": row.samples_per_s,
    }


def main() -> None:
    parser = options(__doc__ or "", seconds=55)
    parser.add_argument("--models", default=",".join((*OURS, *PEERS)))
    parser.add_argument("--precision", default="float32", help="float32 or bf16, of those that train by steps")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.models.split(","):
        if name in PEERS:
            found = peer("flows.py", name, "--seconds", str(arguments.seconds), "--seed", str(arguments.seed))
        else:
            found = ours(name, arguments.seconds, arguments.seed, arguments.precision)
        emit("digits", {**found, "seed": arguments.seed, "budget_cpu_seconds": arguments.seconds, "threads": 1})


if __name__ == "__main__":
    main()
