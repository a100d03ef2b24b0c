"""zuko and nflows on digits, as a careful user would train them: prints one JSON line.

Runs in the peers' environment and does not import likely. Uniform dequantization to [0, 1), Adam with
cosine decay, gradient clip 5, the validated best; scored with K = 1 and with K = 64 draws.
"""

import argparse
import copy
import json
import math
import time

import numpy as np
import torch
from sklearn.datasets import load_digits

DIMS, LEVELS = 64, 17


def digits():
    x = load_digits().data[np.random.default_rng(0).permutation(1797)]
    x = torch.tensor(x)
    return x[:1293], x[1293:1437], x[1437:]


def dequantized(x):
    return ((x + torch.rand_like(x)) / LEVELS).float()


def zuko_flow(name):
    import zuko

    kind, extra = (zuko.flows.NSF, {"bins": 8}) if name == "zuko-nsf" else (zuko.flows.MAF, {})
    flow = kind(DIMS, transforms=5, hidden_features=[256] * 2, **extra)
    # the spline's domain is [-5, 5]: standardised by the training moments, with the log-det in the score
    return flow, lambda u: flow().log_prob(u)


def nflows_flow(name):
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.nn.nets import ResidualNet
    from nflows.transforms import CompositeTransform, LULinear, PiecewiseRationalQuadraticCouplingTransform, RandomPermutation

    def net(inputs, outputs):
        return ResidualNet(inputs, outputs, hidden_features=256, num_blocks=1)

    steps = []
    for i in range(5):
        mask = torch.arange(DIMS) % 2 if i % 2 else 1 - torch.arange(DIMS) % 2
        coupling = PiecewiseRationalQuadraticCouplingTransform(mask, net, num_bins=8, tails="linear", tail_bound=5.0)
        steps += [RandomPermutation(DIMS), LULinear(DIMS), coupling]
    flow = Flow(CompositeTransform(steps), StandardNormal([DIMS]))
    return flow, flow.log_prob


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=3e-3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    train, valid, test = digits()
    flow, density = (zuko_flow if arguments.name.startswith("zuko") else nflows_flow)(arguments.name)
    u = dequantized(train)
    mean, std = u.mean(0), u.std(0).clamp_min(1e-3)
    volume = std.log().sum()

    def log_prob(x):
        return density((dequantized(x) - mean) / std) - volume

    def bits(nats):
        return ((-nats / DIMS + math.log(LEVELS)) / math.log(2)).item()

    optimiser = torch.optim.Adam(flow.parameters(), lr=arguments.lr)
    best, best_state, step = math.inf, None, 0
    start, check = time.process_time(), 0.0
    while (spent := time.process_time() - start) < arguments.seconds:
        for group in optimiser.param_groups:
            group["lr"] = arguments.lr * 0.5 * (1 + math.cos(math.pi * spent / arguments.seconds))
        loss = -log_prob(train[torch.randint(len(train), (256,))]).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
        optimiser.step()
        step += 1
        if spent > check:
            check += arguments.seconds / 20
            with torch.no_grad():
                value = -log_prob(valid).mean().item()
            if value < best:
                best, best_state = value, copy.deepcopy(flow.state_dict())
    flow.load_state_dict(best_state)
    flow.eval()
    with torch.no_grad():
        draws = torch.stack([log_prob(test) for _ in range(64)]).double()
    tight = draws.logsumexp(0) - math.log(64)
    per_dim = -tight / DIMS / math.log(2) + math.log2(LEVELS)
    print(
        json.dumps(
            {
                "model": arguments.name,
                "value": bits(tight.mean()),
                "value_one_draw": bits(draws.mean()),
                "unit": "bits/dim",
                "kind": "lower bound",
                "how": "uniform dequantization, K=64",
                "stderr": (per_dim.std() / math.sqrt(len(test))).item(),
                "n": len(test),
                "cpu_seconds": time.process_time() - start,
                "steps": step,
                "parameters": sum(p.numel() for p in flow.parameters()),
            }
        )
    )


if __name__ == "__main__":
    main()
