"""How fast zuko or nflows trains, scores and draws with one architecture: prints one JSON line.

Runs in the peers' environment and does not import likely. `measured` is what both sides are timed with.
"""

import argparse
import json
import statistics
import time

import torch
from torch import nn

TRANSFORMS, BINS, BATCH, BOUND = 5, 8, 256, 5.0
BLOCKS = 5  # of which the median is taken


def mlp(inputs, width, out):
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out))


def zuko_flow(kind, dims, width):
    from functools import partial

    import zuko
    from zuko.transforms import MonotonicRQSTransform

    shape = {"features": dims, "transforms": TRANSFORMS, "hidden_features": (width, width)}
    if kind == "spline coupling":
        flow = zuko.flows.NICE(**shape, univariate=partial(MonotonicRQSTransform, bound=BOUND), shapes=[(BINS,), (BINS,), (BINS - 1,)])
    elif kind == "spline autoregressive":
        flow = zuko.flows.NSF(**shape, bins=BINS)
    else:
        flow = {"affine coupling": zuko.flows.NICE, "affine autoregressive": zuko.flows.MAF}[kind](**shape)
    return flow, lambda x: flow().log_prob(x), lambda n: flow().sample((n,))


class Plain(nn.Module):
    """A net as nflows calls it."""

    def __init__(self, inputs, width, out):
        super().__init__()
        self.body = mlp(inputs, width, out)

    def forward(self, x, context=None):
        return self.body(x)


def nflows_flow(kind, dims, width):
    from nflows import transforms
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow

    made = {"features": dims, "hidden_features": width, "num_blocks": 1, "use_residual_blocks": False}
    spline = {"num_bins": BINS, "tails": "linear", "tail_bound": BOUND}
    parts = []
    for i in range(TRANSFORMS):
        moves = (torch.arange(dims) % 2 != i % 2).long()
        if kind == "spline coupling":
            part = transforms.PiecewiseRationalQuadraticCouplingTransform(moves, lambda a, b: Plain(a, width, b), **spline)
        elif kind == "affine coupling":
            part = transforms.AffineCouplingTransform(moves, lambda a, b: Plain(a, width, b))
        elif kind == "spline autoregressive":
            part = transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(**made, **spline)
        else:
            part = transforms.MaskedAffineAutoregressiveTransform(**made)
        parts += [transforms.ReversePermutation(dims), part] if "autoregressive" in kind and i else [part]
    flow = Flow(transforms.CompositeTransform(parts), StandardNormal([dims]))
    return flow, flow.log_prob, flow.sample


def rate(action, seconds):
    """Times per process-CPU second, the median of blocks, after a warm-up."""
    action()
    start = time.process_time()
    action()
    times = max(1, int(seconds / BLOCKS / max(time.process_time() - start, 1e-6)))
    found = []
    for _ in range(BLOCKS):
        start = time.process_time()
        for _ in range(times):
            action()
        found.append(times / (time.process_time() - start))
    return statistics.median(found)


def measured(flow, log_prob, sample, dims, seconds, fused=False):
    """Rates of a flow that has been trained for a while, so that all bins are in use.

    A step is forward, backward, clip and Adam on a batch of standard normal rows.
    """
    x = torch.randn(BATCH, dims)
    optimiser = torch.optim.Adam(flow.parameters(), lr=1e-3, fused=fused)

    def step():
        optimiser.zero_grad()
        (-log_prob(x).mean()).backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
        optimiser.step()

    flow.train()
    found = {"steps_per_s": rate(step, seconds)}
    flow.eval()
    with torch.no_grad():
        found["log_probs_per_s"] = BATCH * rate(lambda: log_prob(x), seconds)
        found["samples_per_s"] = BATCH * rate(lambda: sample(BATCH), seconds)
    return {**found, "parameters": sum(p.numel() for p in flow.parameters())}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("library", choices=["zuko", "nflows"])
    parser.add_argument("kind")
    parser.add_argument("--dims", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fused", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    build = {"zuko": zuko_flow, "nflows": nflows_flow}[arguments.library]
    flow = build(arguments.kind, arguments.dims, arguments.width)
    print(json.dumps(measured(*flow, arguments.dims, arguments.seconds, arguments.fused)))


if __name__ == "__main__":
    main()
