"""zuko, nflows and normflows on one data set, as a careful user would train them: prints one JSON line.

Runs in the peers' environment and does not import likely. Adam, batch 256, gradient clip 5, cosine decay over the budget of
process-CPU seconds, the validated best. The architecture is chosen on validation rows by runs of a third of the budget.
Digits: (x + u) / 17 with fresh u, then the logit of 0.05 + 0.9 y, both in the score.
"""

import argparse
import copy
import json
import math
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from arrays import LEVELS, split

BATCH, EDGE = 256, 0.05
RATE = 3e-3  # 1e-3 was worse in every short trial


def zuko(kind, dims, hidden):
    from zuko import flows

    made = {"nsf": flows.NSF, "maf": flows.MAF, "coupling": flows.NSF}[kind]
    extra = {} if kind == "maf" else {"bins": 8}
    extra |= {"passes": 2} if kind == "coupling" and dims > 2 else {}
    flow = made(features=dims, transforms=5, hidden_features=(hidden, hidden), **extra)
    return flow, lambda x: flow().log_prob(x)


def nflows(kind, dims, hidden):
    from nflows import distributions, flows, nn, transforms

    if kind == "maf":
        flow = flows.MaskedAutoregressiveFlow(dims, hidden, 5, 2)
        return flow, flow.log_prob
    parts = []
    for i in range(5):
        mask = torch.zeros(dims)
        mask[i % 2 :: 2] = 1
        parts += [transforms.RandomPermutation(dims)] if dims > 2 else []
        parts += [transforms.LULinear(dims, identity_init=True)] if kind == "rq-lu" else []
        net = partial(nn.nets.ResidualNet, hidden_features=hidden, num_blocks=1)
        spline = transforms.PiecewiseRationalQuadraticCouplingTransform(mask, net, num_bins=8, tails="linear", tail_bound=5.0)
        parts.append(spline)
    flow = flows.Flow(transforms.CompositeTransform(parts), distributions.StandardNormal([dims]))
    return flow, flow.log_prob


def normflows(kind, dims, hidden):
    import normflows as nf

    parts = []
    for _ in range(5):
        if kind == "rq":
            parts += [nf.flows.CoupledRationalQuadraticSpline(dims, 1, hidden, num_bins=8, tail_bound=5.0), nf.flows.LULinearPermute(dims)]
        elif kind == "rq-autoregressive":
            spline = nf.flows.AutoregressiveRationalQuadraticSpline(dims, 1, hidden, num_bins=8, tail_bound=5.0)
            parts += [spline, nf.flows.LULinearPermute(dims)]
        else:
            net = nf.nets.MLP([(dims + 1) // 2, hidden, hidden, 2 * (dims // 2)], init_zeros=True)
            parts += [nf.flows.AffineCouplingBlock(net), nf.flows.Permute(dims, mode="swap" if dims % 2 == 0 else "shuffle")]
    flow = nf.NormalizingFlow(nf.distributions.base.DiagGaussian(dims, trainable=False), parts)
    return flow, flow.log_prob


LIBRARIES = {
    "zuko": (zuko, ("nsf", "coupling", "maf")),
    "nflows": (nflows, ("rq", "rq-lu", "maf")),
    "normflows": (normflows, ("rq", "rq-autoregressive", "realnvp")),
}


def hidden_of(dims):
    return 256 if dims >= 64 else 64


def log_density(log_prob, x, digits, draws=1):
    """Log-density of rows in the units of the array; of digits per pixel of 17 levels, K draws joined."""
    if not digits:
        return log_prob(x)
    y = (x.repeat(draws, 1) + torch.rand(draws * len(x), x.shape[1])) / LEVELS
    p = EDGE + (1 - 2 * EDGE) * y
    nats = log_prob(p.log() - (-p).log1p()) + (math.log(1 - 2 * EDGE) - p.log() - (-p).log1p() - math.log(LEVELS)).sum(1)
    return nats.view(draws, len(x)).logsumexp(0) - math.log(draws)


@torch.no_grad()
def score(log_prob, x, digits, draws=1):
    return torch.cat([log_density(log_prob, part, digits, draws).double() for part in x.split(max(1, 4000 // draws))])


def train(library, kind, seconds, parts, digits, seed):
    torch.manual_seed(seed)
    rows, held, _ = parts
    flow, log_prob = LIBRARIES[library][0](kind, rows.shape[1], hidden_of(rows.shape[1]))
    optimiser = torch.optim.Adam(flow.parameters(), RATE)
    best, kept, steps, apart, turns, start = math.inf, None, 0, 0.0, 0, time.process_time()
    while (share := (time.process_time() - start - apart) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * share))
        loss = -log_density(log_prob, rows[torch.randint(len(rows), (BATCH,))], digits).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
        if loss.isfinite():
            optimiser.step()
        steps += 1
        if share * 20 >= turns:
            began, turns = time.process_time(), turns + 1
            flow.eval()
            now = -score(log_prob, held[:2000], digits).mean().item()
            if now < best:
                best, kept = now, copy.deepcopy(flow.state_dict())
            flow.train()
            apart += time.process_time() - began
    if kept is not None:
        flow.load_state_dict(kept)
    return flow.eval(), log_prob, best, steps


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--library", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    a = parser.parse_args()
    torch.set_num_threads(1)
    digits = a.data == "digits"
    parts = [torch.from_numpy(np.ascontiguousarray(x)) for x in split(a.data)]
    tried = {}
    for kind in LIBRARIES[a.library][1]:
        try:
            tried[kind] = train(a.library, kind, a.seconds / 3, parts, digits, 0)[2]
        except Exception as error:  # a peer that fails at a setting has not found its best there; the reason is printed
            tried[kind] = math.inf
            print(f"{a.library} {kind}: {error!r}", file=sys.stderr)
    kind = min(tried, key=tried.get)
    runs = []
    for seed in range(a.seeds):
        start = time.process_time()
        flow, log_prob, valid, steps = train(a.library, kind, a.seconds, parts, digits, seed)
        cpu = time.process_time() - start
        nll = -score(log_prob, parts[2], digits)
        run = {"seed": seed, "valid": valid, "nll": nll.mean().item(), "stderr": nll.std().item() / len(nll) ** 0.5, "n": len(nll)}
        if digits:
            run["nll_64"] = -score(log_prob, parts[2], digits, 64).mean().item()
        runs.append({**run, "steps": steps, "cpu_seconds": cpu, "parameters": sum(p.numel() for p in flow.parameters())})
    print(json.dumps({"model": kind, "lr": RATE, "tried": tried, "runs": runs}))


if __name__ == "__main__":
    main()
