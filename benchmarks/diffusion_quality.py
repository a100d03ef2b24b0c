"""Samples of digits after the same CPU seconds: our diffusion families beside diffusers and denoising-diffusion-pytorch; one thread.

Every library gets the digits of `arrays.py`, 8x8. Samples are judged against test images by the energy distance in units of 16 grey levels
and by the accuracy of a support vector machine (Gaussian kernel, 5 folds, as many samples as test images, the mean over disjoint sets of
samples); training images stand beside as the floor. Ours draw by their default sampler, and in 12 calls of it; theirs in 50 DDIM steps.
Beside it stands what ours say of the likelihood of test images. `--shortcuts` sets our default sampler in 10 calls beside 50 DDIM steps
of the same model, both from the same noise, and draws by `meanflow` in one call, two and four.
"""

import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arrays import LEVELS, split
from common import emit, fit_within, options, peer

OURS = ("diffusion", "ddpm", "flow-matching", "meanflow", "vdm", "score")
BOUNDED = ("diffusion", "ddpm", "vdm")  # those whose likelihood is a bound, quick to compute
OF_EQUATION = 16  # test images whose likelihood is that of a differential equation
QUICK = 12  # calls
BOOTSTRAPS = 200
PEERS = ("denoising-diffusion-pytorch", "diffusers", "diffusers, cosine and v")


def data_of(parts: Any):
    from likely import Space
    from likely.dataset import Data, Split

    images = [torch.from_numpy(x).long().view(-1, 1, 8, 8) for x in parts]
    space = Space.grid(1, 8, 8, LEVELS).standardised(images[0])
    return Data(space, name="digits", **{p: Split(x) for p, x in zip(("train", "valid", "test"), images, strict=True)})


# -- how samples are judged -----------------------------------------------------------------------


def energy(drawn: Tensor, real: Tensor) -> float:
    """Energy distance of two sets of images [n, 64], in units of 16 grey levels."""
    from likely.evaluation.two_sample import energy_distance, pairwise

    return energy_distance(pairwise(drawn / 16, real / 16), len(drawn), permutations=1)["value"]


def told_apart(drawn: Tensor, real: Tensor) -> float:
    """Held-out accuracy of a support vector machine with a Gaussian kernel; the mean over disjoint sets of as many samples as images."""
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    n, labels, folds = len(real), np.repeat([0, 1], len(real)), StratifiedKFold(5, shuffle=True, random_state=0)
    sets = [np.concatenate([drawn[i : i + n], real]) for i in range(0, len(drawn) - n + 1, n)]
    return float(np.mean([cross_val_score(make_pipeline(StandardScaler(), SVC()), x, labels, cv=folds).mean() for x in sets]))


def judged(drawn: Tensor, real: Tensor) -> dict[str, float]:
    drawn, real = drawn.flatten(1).float(), real.flatten(1).float()
    return {"energy": energy(drawn, real), "c2st": told_apart(drawn, real)}


# -- ours and theirs ------------------------------------------------------------------------------


def trained(data: Any, name: str, seconds: float, seed: int, **chosen: Any) -> tuple[Any, dict[str, Any]]:
    """A run of so many CPU seconds, and what is to be said of it."""
    # meanflow learns small differences, in float32; a fit in minutes measures bf16 as faster for the others
    how = {"threads": 1, "precision": "float32" if name == "meanflow" else "bf16", **chosen}
    start = time.process_time()
    run = fit_within(data, name, seconds, seed=seed, **how)
    cpu = time.process_time() - start
    size = sum(p.numel() for p in run.model.parameters())
    batch = how.get("batch", run.model.recipe.batch)
    return run.model, {"steps": run.steps, "cpu_seconds": cpu, "train_images_per_s": run.steps * batch / cpu, "parameters": size}


def timed_draw(model: Any, n: int, **how: Any) -> tuple[Tensor, float]:
    """n samples, and how many of them come in a CPU second."""
    start = time.process_time()
    return model.sample(n, **how), n / (time.process_time() - start)


def bits(model: Any, x: Tensor) -> dict[str, Any]:
    """bits/dim of images by what the family says of its likelihood."""
    with torch.no_grad():
        said = [model.log_prob(part) for part in x.split(60)]
    each = -torch.cat([part.nats.double() for part in said]) / (64 * math.log(2))
    return {"bits": each.mean().item(), "stderr": each.std().item() / len(each) ** 0.5, "kind": said[0].kind, "n": len(each)}


def ours(data: Any, name: str, seconds: float, seed: int, samples: int) -> tuple[Any, dict[str, Any]]:
    """A trained model, and its figures."""
    model, found = trained(data, name, seconds, seed)
    torch.manual_seed(seed)
    drawn, rate = timed_draw(model, samples)
    sampler, calls = model.usual
    found |= {"samples_per_s": rate, "sampler": sampler, "calls": calls, **judged(drawn, data.test.x)}
    if calls > QUICK:
        drawn, rate = timed_draw(model, samples, steps=QUICK)
        found["quick"] = {"calls": QUICK, "samples_per_s": rate, **judged(drawn, data.test.x)}
    return model, found | bits(model, data.test.x[: OF_EQUATION if name not in BOUNDED else None])


def theirs(data: Any, name: str, seconds: float, seed: int, samples: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "drawn.npy"
        words = ("--seconds", str(seconds), "--samples", str(samples), "--out", str(out), "--seed", str(seed))
        found = peer("diffusion_quality.py", name, *words)
        return {**found, "sampler": "ddim", "calls": 50, **judged(torch.from_numpy(np.load(out)), data.test.x)}


# -- fewer calls ----------------------------------------------------------------------------------


def compared(few: Tensor, many: Tensor, real: Tensor, seed: int) -> dict[str, float]:
    """Energy distances of two sets of samples to real images, and their difference with its standard error by a paired bootstrap.

    Sample i of one set and of the other came from the same noise, so they are drawn together; real images are shared.
    """
    few, many, real = (x.flatten(1).float() / 16 for x in (few, many, real))
    n, m, generator = len(few), len(real), torch.Generator().manual_seed(seed)

    def counts(k: int) -> Tensor:
        """How often each of k rows is drawn, [k, 1 + bootstraps]: once in the sample itself."""
        again = torch.randint(k, (BOOTSTRAPS, k), generator=generator)
        return torch.stack([torch.ones(k), *(rows.bincount(minlength=k).float() for rows in again)], 1)

    drawn, seen = counts(n), counts(m)

    def partial(x: Tensor) -> Tensor:
        """The energy distance less what is the real images' alone, of the sample and of each bootstrap."""
        across, within = (drawn * (torch.cdist(x, real) @ seen)).sum(0), (drawn * (torch.cdist(x, x) @ drawn)).sum(0)
        return (2 * across / m - within / (n - 1)) / n

    gap = partial(few) - partial(many)
    return {
        "few": energy(few * 16, real * 16),
        "many": energy(many * 16, real * 16),
        "gap": gap[0].item(),
        "gap_stderr": gap[1:].std().item(),
    }


def shortcuts(model: Any, real: Tensor, seed: int, samples: int) -> dict[str, Any]:
    """The default sampler in 10 calls beside 50 of DDIM."""

    def drawn(**how: Any) -> Tensor:
        torch.manual_seed(seed)
        return model.sample(samples, **how)

    return {"calls": 10, "ddim_calls": 50, "samples": samples, **compared(drawn(steps=10), drawn(sampler="ddim", steps=50), real, seed)}


def leaps(model: Any, real: Tensor, seed: int, samples: int) -> dict[str, Any]:
    """Energy distances to real images of examples in one call, two and four."""
    found: dict[str, Any] = {"samples": samples}
    for calls in (1, 2, 4):
        torch.manual_seed(seed)
        found[str(calls)] = energy(model.sample(samples, steps=calls).flatten(1).float(), real.flatten(1).float())
    return found


def main() -> None:
    parser = options(__doc__ or "", seconds=120)
    parser.add_argument("--libraries", default=";".join((*OURS, *PEERS)), help="separated by semicolons")
    parser.add_argument("--samples", type=int, default=360)
    parser.add_argument(
        "--shortcuts", type=int, default=2000, help="samples of `diffusion` by 10 calls and by 50, of `meanflow` by 1; 0 for none"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data, how = data_of(split("digits")), (arguments.seconds, arguments.seed, arguments.samples)
    shared = {"seed": arguments.seed, "samples": arguments.samples, "budget_cpu_seconds": arguments.seconds, "threads": 1}
    shared |= {"floor": judged(data.train.x[: arguments.samples], data.test.x)}
    for name in arguments.libraries.split(";"):
        model, found = (None, theirs(data, name, *how)) if name in PEERS else ours(data, name, *how)
        if model is not None and name == "diffusion" and arguments.shortcuts:
            found["shortcuts"] = shortcuts(model, data.test.x, arguments.seed, arguments.shortcuts)
        if model is not None and name == "meanflow" and arguments.shortcuts:
            found["leaps"] = leaps(model, data.test.x, arguments.seed, arguments.shortcuts)
        emit("diffusion_quality", {"library": name, **found, **shared})


if __name__ == "__main__":
    main()
