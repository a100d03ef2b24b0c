"""Held-out bits per row of real tables: `autoregressive`, `gmm` and `histogram`, each with its defaults; exact.

The loader's own split: a fifth is test, a tenth of the rest validation. `autoregressive` trains for the
budget of process-CPU seconds on one thread, as a number of steps that a short run is timed for; the others are closed forms.
"""

import time
from pathlib import Path

import torch

import likely
from common import emit, options, steps_within
from likely.evaluation.measure import held_out_bits
from likely.train import fit

FOLDER = Path(__file__).parents[2] / "shared/data/tables"
TABLES = {  # options of the loader; some alcohols of wines are thirds, which have no last decimal
    "abalone": {},
    "adult_train": {},
    "california_housing_mixed": {},
    "uci_bike": {},
    "uci_concrete": {},
    "uci_elevators": {},
    "uci_parkinsons": {},
    "uci_pol": {},
    "wine_quality_red": {"precision": 5},
    "wine_quality_white": {"precision": 5},
}
FAMILIES = ("autoregressive", "gmm", "histogram")


def run(table: str, family: str, seconds: float, seed: int) -> dict:
    """Fit one family to one table; what it says of the test rows."""
    data = likely.load(FOLDER / f"{table}.csv.gz", **TABLES[table])
    how = {"threads": 1, "precision": "float32"}
    budget = {"minutes": 1} if family != "autoregressive" else {"steps": steps_within(data, family, seconds, **how)}
    start = time.process_time()
    done = fit(data, family, seed=seed, progress=False, **budget, **how)
    cpu, bits = time.process_time() - start, held_out_bits(done.model, data, seed=seed)
    size = {"rows": len(data.train), "columns": data.space.dims, "steps": done.steps, "cpu_seconds": cpu}
    found = {name: getattr(bits, name) for name in ("value", "unit", "kind", "how", "stderr", "n")}
    return {"table": table, "model": family, **found, **size}


def main() -> None:
    parser = options(__doc__ or "", seconds=20)
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--models", default=",".join(FAMILIES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for table in arguments.tables.split(","):
        for family in arguments.models.split(","):
            found = run(table, family, arguments.seconds, arguments.seed)
            emit("tables", {**found, "seed": arguments.seed, "budget_cpu_seconds": arguments.seconds, "threads": 1})


if __name__ == "__main__":
    main()
