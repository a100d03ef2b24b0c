"""What fills of a part are worth, method by method: learnt (`--inpaint`), and by walks held to what is known; one thread.

A correlated Gaussian in 3-D, whose conditional law is known: how far the means of the unknown entries are from it, in its standard
deviations, and their variances over the true ones. Digits whose lower half is unknown: the energy distance between filled images and
others that were held out, beside that of the same images as they are; and how many bits per unknown pixel an `autoregressive` model, which
was fitted apart, finds the fill dearer than what was there. Of fills by the true law it finds none dearer on average but for its own error.
"""

import time
from typing import Any

import torch
from torch import Tensor

from common import emit, fit_within, options

FAMILIES = ("diffusion", "score", "flow-matching")
METHODS = ("conditional", "posterior", "repaint", "replacement")
CORRELATION = torch.tensor([[1.0, 0.8, 0.5], [0.8, 1.0, 0.3], [0.5, 0.3, 1.0]], dtype=torch.float64)
KNOWN = 1.2  # of the first entry
ROWS = 20_000  # of the Gaussian, to learn from
LEVELS = 24


def gaussian() -> Any:
    from likely import Space
    from likely.dataset import Data, Split

    x = (torch.randn(ROWS, 3, dtype=torch.float64) @ torch.linalg.cholesky(CORRELATION).T).float()
    parts = x.split([ROWS - 2000, 1000, 1000])
    return Data(Space.reals(3).standardised(parts[0]), *map(Split, parts), name="gaussian")


def fitted(data: Any, family: str, seconds: float, seed: int) -> tuple[Any, dict[str, Any]]:
    start = time.process_time()
    run = fit_within(data, family, seconds, seed=seed, threads=1, precision="float32", inpaint=True)
    return run.model.eval(), {"steps": run.steps, "cpu_seconds": time.process_time() - start}


def timed(model: Any, x: Tensor, known: Tensor, given: Tensor | None, method: str, seed: int, draws: int = 1) -> tuple[Tensor, float]:
    torch.manual_seed(seed)
    start = time.process_time()
    filled = model.fill(x, known, given, draws, method=method, steps=LEVELS).x
    return filled, time.process_time() - start


def of_moments(drawn: Tensor) -> dict[str, Any]:
    """Of draws [n, 2] of the unknown entries."""
    slope = CORRELATION[1:, 0]
    variance = CORRELATION.diagonal()[1:] - slope.square()
    off = (drawn.double().mean(0) - KNOWN * slope).abs() / variance.sqrt()
    return {"mean_off": off.tolist(), "variance_ratio": (drawn.double().var(0) / variance).tolist(), "stderr": len(drawn) ** -0.5}


def on_the_gaussian(seconds: float, seed: int, draws: int) -> None:
    data, x, known = gaussian(), torch.tensor([[KNOWN, 0.0, 0.0]]), torch.tensor([[True, False, False]])
    for family in FAMILIES:
        model, record = fitted(data, family, seconds, seed)
        for method in METHODS:
            drawn, cpu = timed(model, x, known, None, method, seed, draws)
            of = {"data": "gaussian", "family": family, "method": method, "draws": draws, "fill_cpu_seconds": cpu}
            emit("inpainting", {**of, **of_moments(drawn[:, 0, 1:]), **record, "levels": LEVELS, "seed": seed})


def on_digits(seconds: float, seed: int, given: str | None) -> None:
    import likely
    from likely.evaluation.features import features
    from likely.evaluation.two_sample import energy_distance, pairwise

    data = likely.load("digits", given=given)
    half = len(data.test) // 2
    x, others, told = data.test.x[:half], data.test.x[half:], None if given is None else data.test.given[:half]
    known = torch.ones_like(x, dtype=torch.bool)
    known[..., x.shape[-2] // 2 :, :] = False
    judge = fit_within(likely.load("digits"), "autoregressive", seconds, seed=seed, threads=1, precision="float32").model.eval()

    def nats(y: Tensor) -> Tensor:
        with torch.no_grad():
            return judge.log_prob(y).nats.double()

    def apart(y: Tensor) -> float:
        vectors = [features(data.space, v) for v in (y, others[:half])]
        return energy_distance(pairwise(*vectors), half, permutations=1)["value"]

    unknown = int((~known[0]).sum()) * torch.log(torch.tensor(2.0)).item()
    for family in FAMILIES:
        model, record = fitted(data, family, seconds, seed)
        for method in METHODS:
            drawn, cpu = timed(model, x, known, told, method, seed)
            dearer = (nats(x) - nats(drawn[0])) / unknown
            found = {"energy": apart(drawn[0]), "floor": apart(x), "dearer": dearer.mean().item()}
            found |= {"stderr": (dearer.std() / half**0.5).item(), "n": half, "fill_cpu_seconds": cpu, "levels": LEVELS, "seed": seed}
            emit("inpainting", {"data": "digits", "given": given, "family": family, "method": method, **found, **record})


def main() -> None:
    parser = options(__doc__ or "", seconds=60)
    parser.add_argument("--data", default="gaussian,digits")
    parser.add_argument("--given", default=None, help="of digits: label")
    parser.add_argument("--draws", type=int, default=4000, help="of the Gaussian")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    if "gaussian" in arguments.data:
        on_the_gaussian(arguments.seconds, arguments.seed, arguments.draws)
    if "digits" in arguments.data:
        on_digits(arguments.seconds, arguments.seed, arguments.given)


if __name__ == "__main__":
    main()
