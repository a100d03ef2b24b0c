"""Trains, scores and draws with a flow of zuko or nflows of one architecture, when asked, and says how long it took.

Runs in the peers' environment and does not import likely. `serve` is what both sides are timed with.
"""

import argparse
import sys
import time

import torch
from torch import nn

TRANSFORMS, BINS, BATCH, BOUND = 5, 8, 256, 5.0


def mlp(inputs, width, out):
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out))


def zuko_flow(kind, dims, width):
    from functools import partial

    import zuko
    from zuko.transforms import AdditiveTransform, MonotonicRQSTransform

    shape = {"features": dims, "transforms": TRANSFORMS, "hidden_features": (width, width)}
    if kind == "additive coupling":
        flow = zuko.flows.NICE(**shape, univariate=AdditiveTransform, shapes=[()])
    elif kind == "spline coupling":
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
        elif kind == "additive coupling":
            part = transforms.AdditiveCouplingTransform(moves, lambda a, b: Plain(a, width, b))
        elif kind == "affine coupling":
            part = transforms.AffineCouplingTransform(moves, lambda a, b: Plain(a, width, b))
        elif kind == "spline autoregressive":
            part = transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(**made, **spline)
        else:
            part = transforms.MaskedAffineAutoregressiveTransform(**made)
        parts += [transforms.ReversePermutation(dims), part] if "autoregressive" in kind and i else [part]
    flow = Flow(transforms.CompositeTransform(parts), StandardNormal([dims]))
    return flow, flow.log_prob, flow.sample


def actions(flow, log_prob, sample, dims, clip=nn.utils.clip_grad_norm_, fused=False):
    """What is timed: a step is forward, backward, clip and Adam on a batch of standard normal rows; the others are without a graph."""
    x, parameters = torch.randn(BATCH, dims), list(flow.parameters())
    optimiser = torch.optim.Adam(parameters, lr=1e-3, fused=fused)

    def step():
        optimiser.zero_grad()
        (-log_prob(x).mean()).backward()
        clip(parameters, 5.0)
        optimiser.step()

    return {"steps": step, "log_probs": torch.no_grad()(lambda: log_prob(x)), "samples": torch.no_grad()(lambda: sample(BATCH))}


def seconds(action, times):
    """CPU seconds of one, after one that is not counted."""
    action()
    start = time.process_time()
    for _ in range(times):
        action()
    return (time.process_time() - start) / times


def serve(build, dims, **training):
    """Answers `seed N`, which makes a flow, by its number of parameters, and `ACTION TIMES` by the CPU seconds of one."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        word, number = line.split()
        if word == "seed":
            torch.manual_seed(int(number))
            flow, log_prob, sample = build()
            may = actions(flow, log_prob, sample, dims, **training)
            print(sum(p.numel() for p in flow.parameters()), flush=True)
        else:
            flow.train(word == "steps")
            print(seconds(may[word], int(number)), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("library", choices=["zuko", "nflows"])
    parser.add_argument("kind")
    parser.add_argument("dims", type=int)
    parser.add_argument("width", type=int)
    arguments = parser.parse_args()
    build = {"zuko": zuko_flow, "nflows": nflows_flow}[arguments.library]
    serve(lambda: build(arguments.kind, arguments.dims, arguments.width), arguments.dims)


if __name__ == "__main__":
    main()
