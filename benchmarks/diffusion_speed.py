"""The U-Net of `diffusion` beside those of diffusers and denoising-diffusion-pytorch: training images and sampler calls per CPU second.

Each library trains its own model whole: ours the variational bound of 256 levels with size "small" (1.1 M parameters), theirs the
squared error with nets of 1.0 and 0.8 M, as they come but for fused AdamW, which all have. In float32 and in bf16 autocast; ours,
as in a fit, in the faster memory format. Libraries take turns, each in its own process, one thread; ratios are over the better of the two,
the median over rounds.
"""

import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch

from common import emit, options, peer

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from diffusion_speed import BATCH, CALLS, LIBRARIES, measured

RATES, PRECISIONS = ("train_images_per_s", "sampler_calls_per_s"), ("float32", "bf16")
IMAGES = {28: 1, 32: 3}  # side: channels


def ours(side: int, channels: int, seconds: float) -> dict[str, Any]:
    """Rates in each precision, of the memory format that trains faster."""
    from likely.families import build
    from likely.space import Space

    x, found = torch.randint(0, 256, (BATCH, channels, side, side)), {}
    for precision in PRECISIONS:
        tried = []
        for memory in (torch.contiguous_format, torch.channels_last):
            model: Any = build("diffusion", Space.grid(channels, side, side, 256), size="small")
            model.to(memory_format=memory)
            draw = lambda n, model=model: model.sample(n, steps=CALLS)  # noqa: E731
            rates = measured(model, lambda x, model=model: model(x).mean(), draw, x, seconds, precision == "bf16")
            tried.append({**rates, "parameters": sum(p.numel() for p in model.parameters())})
        found[precision] = max(tried, key=lambda rates: rates[RATES[0]])
    counts = [rates.pop("parameters") for rates in found.values()]
    return {**found, "parameters": counts[0]}


def compared(side: int, seed: int, seconds: float) -> dict[str, Any]:
    """Rates of each library."""
    torch.manual_seed(seed)
    words = ["--side", str(side), "--channels", str(IMAGES[side]), "--seconds", str(seconds), "--seed", str(seed)]
    found = {"ours": ours(side, IMAGES[side], seconds)}
    return found | {library: peer("diffusion_speed.py", library, *words) for library in LIBRARIES}


def best(run: dict[str, Any], library: str, rate: str) -> float:
    """Of a library, in whichever precision is faster."""
    return max(run[library][precision][rate] for precision in PRECISIONS)


def main() -> None:
    parser = options(__doc__ or "", seconds=3)
    parser.add_argument("--sides", nargs="+", type=int, choices=IMAGES, default=tuple(IMAGES))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for side in arguments.sides:
        runs = [compared(side, arguments.seed + k, arguments.seconds) for k in range(arguments.rounds)]
        ratios = {rate: [best(r, "ours", rate) / max(best(r, name, rate) for name in LIBRARIES) for r in runs] for rate in RATES}
        plain = {rate: [r["ours"]["float32"][rate] / max(r[name]["float32"][rate] for name in LIBRARIES) for r in runs] for rate in RATES}
        record: dict[str, Any] = {
            "side": side,
            "channels": IMAGES[side],
            "ratios": {rate: median(values) for rate, values in ratios.items()},
            "float32_ratios": {rate: median(values) for rate, values in plain.items()},
            "by_round": ratios,
            "rates": {name: {p: {rate: median(r[name][p][rate] for r in runs) for rate in RATES} for p in PRECISIONS} for name in runs[0]},
            "parameters": {name: runs[0][name]["parameters"] for name in runs[0]},
        }
        emit("diffusion_speed", {**record, "rounds": arguments.rounds, "threads": arguments.threads})


if __name__ == "__main__":
    main()
