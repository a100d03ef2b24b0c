"""Run by torchrun: every family that learns by gradient, on two ranks; prints what differs between them as JSON."""

import json
import os
import sys

import torch

from likely import families, train
from likely.abilities import ClosedForm
from likely.checks import tiny_data


def weights_of(model):
    """All that ranks must agree on: parameters, and buffers that are not declared to differ."""
    return {name: t for name, t in model.state_dict().items() if name not in model.rank_buffers}


def main(names):
    torch.set_num_threads(1)
    sets = tiny_data()
    verdicts = {}
    for name in names:
        data = sets["grid" if "grid" in families.family_class(name).layouts else "sequence"]
        run = train.fit(data, name, size="tiny", steps=6, device="cpu", progress=False)
        everyone = [None, None]
        torch.distributed.all_gather_object(everyone, {k: repr(v.double().sum().item()) for k, v in weights_of(run.model).items()})
        verdicts[name] = [k for k in everyone[0] if everyone[0][k] != everyone[1][k]]
    if os.environ["RANK"] == "0":
        print("VERDICTS " + json.dumps(verdicts))
    train.leave()


if __name__ == "__main__":
    main(sys.argv[1:] or [n for n in families.names() if not issubclass(families.family_class(n), ClosedForm)])
