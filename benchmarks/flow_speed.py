"""Flows beside zuko and nflows with one architecture: training steps, log-densities and samples per CPU second, and ratios.

5 transforms, 8 bins, batches of 256. The net of a coupling is the same plain MLP of two hidden layers in all three; for
autoregressive maps each has its own masked MLP of that width, ours and zuko's of two hidden layers. Ours are
bijections in a chain, as a family builds them, trained by fused Adam; theirs train by Adam as it comes.
Libraries take turns, each in its own process, one thread; ratios are over the better of the two, the median over seeds.
"""

import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from common import emit, options, peer

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from flow_speed import BINS, BOUND, TRANSFORMS, measured

KINDS = ("spline coupling", "affine coupling", "spline autoregressive", "affine autoregressive")
SHAPES = {2: 64, 30: 64, 64: 256}  # dims: width
RATES = ("steps_per_s", "log_probs_per_s", "samples_per_s")


class Ours(nn.Module):
    """A chain of bijections before standard normal noise."""

    def __init__(self, kind: str, dims: int, width: int) -> None:
        super().__init__()
        from likely.bijections import Affine, Autoregressive, Bijection, Chain, Coupling, Permute, Spline, mask
        from likely.nets import net
        from likely.space import Space

        transform = Spline(BINS, bound=BOUND) if "spline" in kind else Affine()
        shape = {"out": transform.size, "width": width, "depth": 1, "dropout": 0.0, "residual": False}
        parts: list[Bijection] = []
        for i in range(TRANSFORMS):
            if "coupling" in kind:
                moves = mask("alternate", (dims,), i)
                parts.append(Coupling(moves, transform, net(Space.reals(dims), "coupling", moves=moves, **shape)))
                continue
            masked = net(Space.reals(dims), "ordered", **shape)
            parts += [*([Permute(dims, "reverse")] if i else []), Autoregressive(transform, masked)]
        self.dims, self.map = dims, Chain(parts)

    def log_prob(self, x: Tensor) -> Tensor:
        from likely.invertible import log_normal

        z, log_det = self.map(x)
        return log_det + log_normal(z)

    def sample(self, n: int) -> Tensor:
        return self.map.inverse(torch.randn(n, self.dims))[0]


def compared(kind: str, dims: int, seed: int, seconds: float) -> dict[str, dict[str, float]]:
    """Rates of each library."""
    torch.manual_seed(seed)
    flow = Ours(kind, dims, SHAPES[dims])
    found = {"ours": measured(flow, flow.log_prob, flow.sample, dims, seconds, fused=True)}
    words = ["--dims", str(dims), "--width", str(SHAPES[dims]), "--seconds", str(seconds), "--seed", str(seed)]
    return found | {library: peer("flow_speed.py", library, kind, *words) for library in ("zuko", "nflows")}


def main() -> None:
    parser = options(__doc__ or "", seconds=3)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--dims", nargs="+", type=int, choices=SHAPES, default=tuple(SHAPES))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for kind in arguments.kinds:
        for dims in arguments.dims:
            runs = [compared(kind, dims, arguments.seed + k, arguments.seconds) for k in range(arguments.seeds)]
            ratios = {rate: [r["ours"][rate] / max(r["zuko"][rate], r["nflows"][rate]) for r in runs] for rate in RATES}
            record: dict[str, Any] = {
                "kind": kind,
                "dims": dims,
                "width": SHAPES[dims],
                "ratios": {rate: median(values) for rate, values in ratios.items()},
                "by_seed": ratios,
                "rates": {library: {rate: median(r[library][rate] for r in runs) for rate in RATES} for library in runs[0]},
                "parameters": {library: runs[0][library]["parameters"] for library in runs[0]},
            }
            emit("flow_speed", {**record, "seeds": arguments.seeds, "threads": arguments.threads})


if __name__ == "__main__":
    main()
