"""Masked diffusion against the any-order transformer after the same process-CPU seconds: test bits, of one hidden entry, and draws.

The validated best within the budget is scored. The bits of one hidden entry are those that fill a gap of one: -log2 p of an
entry at random given all others, once for each test example.
"""

import time

import torch

from common import emit, options, steps_within

DATA = {"digits": "digits", "tinyshakespeare": "../shared/data/text/tinyshakespeare.txt.gz"}
MODELS = {
    "absorbing": ("masked-diffusion", {}),
    "uniform": ("masked-diffusion", {"noise": "uniform"}),
    "any-order": ("autoregressive", {"net": "any-order", "adapt": False}),
}
ROWS = 360  # test examples that are scored: of a text 120 windows one after another


def test_rows(data) -> torch.Tensor:
    if data.test.stream is None:
        return data.test.x[:ROWS]
    length = data.space.dims
    return data.test.stream[: ROWS // 3 * length].long().view(-1, length)


def one_hidden(model, x: torch.Tensor) -> float:
    """Bits of one entry at random of each example given all others."""
    torch.manual_seed(0)
    order = torch.rand(len(x), x[0].numel()).argsort(1)
    place, parts = order[:, -1], []
    for rows in torch.arange(len(x)).split(50):
        at = place[rows, None]
        if model.config["model"] == "autoregressive":
            parameters = model.net.along(x[rows], None, order[rows])
            nats = -model.heads.log_mass(parameters, x[rows]).flatten(1)
        else:
            hidden = torch.zeros_like(x[rows].flatten(1), dtype=torch.bool).scatter(1, at, True).view_as(x[rows])
            nats = model.noise.missed(x[rows], hidden, lambda v, s: model.net(v, s)).flatten(1)
        parts.append(nats.gather(1, at)[:, 0].double())
    return (torch.cat(parts).mean() / torch.log(torch.tensor(2.0))).item()


def drawn(model, data, n: int, seed: int) -> list[dict]:
    """CPU seconds of n draws, and, of images, their energy distance to the test examples, by calls of the net."""
    from likely.evaluation.two_sample import classifier_test, energy_distance, pairwise

    found, diffuses = [], model.config["model"] != "autoregressive"
    for how in [{"steps": k} for k in (8, 16, 32, 64)] + [{"steps": 16, "order": "confident"}] if diffuses else [{}]:
        if "order" in how and model.config["options"].get("noise") == "uniform":
            continue
        torch.manual_seed(seed)
        start = time.process_time()
        x = model.sample(n, **how)
        record = {**how, "cpu_seconds_per_1000": 1000 / n * (time.process_time() - start)}
        if data.test.stream is None:
            real, fake = data.test.x.flatten(1).float() / 16, x.flatten(1).float() / 16
            record["energy_distance"] = energy_distance(pairwise(real, fake), len(real))["value"]
            record["c2st_accuracy"] = classifier_test(real, fake)["c2st_accuracy"]["value"]
        found.append(record)
    return found


def main() -> None:
    parser = options(__doc__ or "", seconds=60)
    parser.add_argument("--data", default=",".join(DATA))
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--samples", type=int, default=360)
    arguments = parser.parse_args()
    import likely
    from likely.train import fit

    torch.set_num_threads(1)
    for source in arguments.data.split(","):
        data = likely.load(DATA[source])
        for word in arguments.models.split(","):
            name, how = MODELS[word]
            steps = steps_within(data, name, arguments.seconds, threads=1, **how)
            start = time.process_time()
            run = fit(data, name, steps=steps, seed=arguments.seed, threads=1, progress=False, **how)
            cpu, model, x = time.process_time() - start, run.model.eval(), test_rows(data)
            with torch.no_grad():
                scored = likely.bits(model.log_prob(x), data.space)
                hidden = one_hidden(model, x) if word != "uniform" else None
                samples = drawn(model, data, arguments.samples if source == "digits" else 16, arguments.seed)
            told = {"value": scored.value, "stderr": scored.stderr, "kind": scored.kind, "unit": scored.unit, "n": scored.n}
            record = {"data": source, "model": word, **told, "one_hidden_bits": hidden, "samples": samples, "cpu_seconds": cpu}
            record |= {"steps": run.steps, "parameters": sum(p.numel() for p in model.parameters())}
            emit("masked_diffusion", {**record, "seed": arguments.seed, "budget_cpu_seconds": arguments.seconds})


if __name__ == "__main__":
    main()
