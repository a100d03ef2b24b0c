"""`docs/benchmarks.md`, and the table of nets in `docs/families/autoregressive.md`, from `results/*.jsonl`.

No figure of ours in those places is typed by hand; published ones stand in `published.py` with their source.
"""

import json
from collections import Counter, defaultdict
from math import log
from pathlib import Path
from statistics import mean, stdev

from published import BINARY_SETS, IMAGE_DIFFUSION, IMAGE_FLOWS, IMAGE_FLOWS_HEAD, MNIST_NATS, TABLE_FLOWS, TABLE_FLOWS_HEAD

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
SYMBOLS = {"exact": "=", "lower bound": "<=", "numerical": "~", "estimate": "~"}


# -- records and pages ----------------------------------------------------------------------------


def records(name):
    return [json.loads(line) for line in (HERE / f"results/{name}.jsonl").read_text().splitlines()]


def newest(name, *keys):
    """The latest record of each combination of some of its fields."""
    return list({tuple(r[key] for key in keys): r for r in records(name)}.values())


def by(name, row, column):
    """{row: {column: latest record}}."""
    found = defaultdict(dict)
    for r in records(name):
        found[r[row]][r[column]] = r
    return found


def machine_line(record):
    accelerator = record["accelerator"] or "no accelerator"
    return f"{record['date']}, {record['cpu']}, {record['cores']} cores, {accelerator}, torch {record['torch']}, likely {record['likely']}"


def table(head, rows):
    return "\n".join(["| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows]])


def section(title, text, head, rows, record):
    """A heading, what was measured and how, the table, and the machine."""
    return "\n\n".join([f"## {title}", text, table(head, rows), f"_{machine_line(record)}; {record['threads']} thread._"])


def value_of(r, digits=2):
    return f"{SYMBOLS[r['kind']]} {r['value']:.{digits}f} ± {r['stderr']:.{digits}f}"


def spread_of(values, digits=3):
    """Mean, and spread over seeds where there are several."""
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def replace_between(path, name, text):
    """Write the part of a page that stands between two comments."""
    begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
    before, rest = path.read_text().split(begin)
    path.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")


# -- sections -------------------------------------------------------------------------------------


def loop_overhead():
    found = newest("loop_overhead", "model")
    rows = [
        [r["model"], f"{r['bare_ms_per_step']:.2f}", f"**{r['ratio']:.2f}**", ", ".join(f"{x:.2f}" for x in r["ratios"])] for r in found
    ]
    text = (
        "CPU seconds per step of `likely.fit` over a bare torch loop (index, forward, backward, fused AdamW) with the same tiny model "
        "and batch on digits; median of three alternating pairs of at least 400 steps. "
        "Ours includes clipping, averaging, NaN checks, validation and reports. `make bench-setup && python benchmarks/loop_overhead.py`"
    )
    return section("The loop", text, ["model", "bare ms/step", "ratio", "pairs"], rows, found[0])


def digits():
    groups = defaultdict(dict)
    for r in records("digits"):
        groups[(r["budget_cpu_seconds"], r["model"])][r["seed"]] = r
    sections = [
        "## Digits, same CPU seconds",
        "Test bits/dim (360 images, 17 levels, 8x8), one thread; mean over seeds, spread where there are several. "
        "`python benchmarks/digits.py --seconds S --seed K`",
    ]
    for budget in sorted({b for b, _ in groups}):
        found = {m: list(g.values()) for (b, m), g in groups.items() if b == budget}
        rows = []
        for model, runs in sorted(found.items(), key=lambda kv: mean(r["value"] for r in kv[1])):
            values = [r["value"] for r in runs]
            spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
            cells = [
                model,
                f"{SYMBOLS[runs[0]['kind']]} {mean(values):.3f}{spread}",
                runs[0]["kind"],
                runs[0]["how"] or "-",
                str(len(values)),
            ]
            rows.append([*cells, f"{mean(r['cpu_seconds'] for r in runs):.0f}", f"{runs[0]['parameters']:,}"])
        sections += [f"### {budget:g} CPU seconds", table(["model", "bits/dim", "kind", "rests on", "seeds", "CPU s", "parameters"], rows)]
    sections.append(f"_{machine_line(records('digits')[-1])}._")
    return "\n\n".join(sections)


def binarized_mnist():
    found = newest("binarized_mnist", "model", "budget_cpu_seconds")
    rows = [(nats, [f"{name} ({who})", f"{nats:.2f}", kind, "", "", ""]) for name, who, kind, nats in MNIST_NATS]
    for r in found:
        options = ", ".join(f"{name} {value}" for name, value in r["options"].items() if name != "threads")
        cells = [f"**likely, {r['model']}**", f"**{value_of(r)}**", "static", f"{r['cpu_seconds']:.0f}", f"{r['parameters']:,}", options]
        rows.append((r["value"], cells))
    text = (
        "Test negative log-likelihood in nats per image, lower is better. Ours: the static binarization of Larochelle, 50,000 / 10,000 / "
        "10,000 images, exact, settings chosen on validation images. Others: as published, on the binarization that is named; budgets "
        "not known. `python benchmarks/binarized_mnist.py --nets NET --seconds S`"
    )
    head = ["model", "nats", "binarization", "CPU s", "parameters", "options"]
    return section("Binarized MNIST", text, head, [row for _, row in sorted(rows)], found[-1])


def image_sampling():
    found = sorted(newest("image_sampling", "model", "batch"), key=lambda r: (r["batch"], -r["ratio"]))
    rows = [
        [
            r["model"],
            str(r["batch"]),
            f"{r['full_seconds']:.2f}",
            f"{r['cached_seconds']:.3f}",
            f"**{r['ratio']:.1f}**",
            f"{r['parameters']:,}",
        ]
        for r in found
    ]
    text = (
        "Binary images of 28x28: by a whole forward pass per pixel, and by `step`, which computes what is new alone. "
        "CPU seconds, the same net, size `small`. `python benchmarks/image_sampling.py`"
    )
    return section("Drawing images", text, ["net", "images", "whole passes, s", "steps, s", "ratio", "parameters"], rows, found[-1])


def binary_density():
    families, rows = ["gmm", "ngram", "histogram"], []
    for name, models in by("binary_density", "set", "model").items():
        ours = max((r for label, r in models.items() if label not in families), key=lambda r: r["valid"])
        cells = [f"{r['value']:.2f} ± {r['stderr']:.2f}" if r else "" for r in (ours, *(models.get(f) for f in families))]
        which = f"{ours['model']} ({ours['cpu_seconds']:.0f} s)"
        rows.append([name, f"{ours['rows']:,}", str(ours["columns"]), f"**{cells[0]}**", which, *cells[1:], BINARY_SETS.get(name, "")])
    text = (
        "Mean test log-likelihood in nats, higher is better; fixed splits, exact. Of several candidates of `autoregressive`, each trained "
        "for the same CPU seconds, the best on the validation split is scored on the test split. "
        "Published figures where they could be checked. `python benchmarks/binary_density.py`"
    )
    head = ["set", "rows", "columns", "autoregressive", "which", *families, "published"]
    return section("Binary density sets", text, head, rows, records("binary_density")[-1])


def tables():
    families, rows = ["autoregressive", "gmm", "histogram"], []
    for name, models in by("tables", "table", "model").items():
        if len(models) < len(families):
            continue  # nothing stands beside
        best = min(models.values(), key=lambda r: r["value"])
        cells = [f"{value_of(models[f])} ({models[f]['cpu_seconds']:.0f} s)" for f in families]
        cells[families.index(best["model"])] = f"**{cells[families.index(best['model'])]}**"
        rows.append([name, f"{best['rows']:,}", str(best["columns"]), f"{best['n']:,}", *cells])
    text = (
        "Held-out bits per row, lower is better, and the CPU seconds of training; defaults, the loader's split (a fifth is test). "
        "`autoregressive` and `histogram` give values that repeat masses of their own, and `gmm` does not: where decimals are much finer "
        "than the values that occur (the uci and wine tables) it is far behind. `python benchmarks/tables.py`"
    )
    return section("Tables", text, ["table", "training rows", "columns", "test rows", *families], rows, records("tables")[-1])


def flow_quality():
    found = by("flow_quality", "data", "library")
    libraries = ["likely", "zuko", "nflows", "normflows"]
    complete = {name: row for name, row in found.items() if set(libraries) <= set(row)}
    rows, won = [], []
    for name, row in complete.items():
        best = min(libraries, key=lambda library: row[library]["value"])
        won += [name] if best == "likely" else []
        cells = [f"{spread_of(row[library]['values'])} ({row[library]['model']})" for library in libraries]
        cells[libraries.index(best)] = f"**{cells[libraries.index(best)]}**"
        rows.append([name, row["likely"]["unit"], *cells])
        if name == "digits":
            tightened = [spread_of([run["nll_64"] / (64 * log(2)) for run in row[library]["runs"]]) for library in libraries]
            rows.append(["digits, K = 64", "bits/dim", *tightened])
    one = next(reversed(complete.values()))["likely"]
    text = (
        "Test nats of density per row (digits: bits/dim, one uniform draw, and 64 below), lower is better, after "
        f"{one['budget_cpu_seconds']:g} CPU seconds of training; mean and spread of {len(one['values'])} seeds, in brackets the setting "
        "that validation chose from a grid of each library's in as many seconds again. All get the same float32 arrays; tables are "
        "standardised. Where columns repeat their values a density can grow without bound: the UCI tables say who follows "
        f"repeats fastest. Checkerboard's entropy is 2.0794. **Ours is the lowest on {len(won)} of {len(complete)}.** "
        "`make bench-setup && python benchmarks/flow_quality.py`"
    )
    return section("Flow libraries, same CPU seconds", text, ["data", "unit", *libraries], rows, one)


def flow_speed():
    found = newest("flow_speed", "kind", "dims")
    rows = []
    for r in found:
        ours, peers = r["rates"]["ours"], [r["rates"][name] for name in ("zuko", "nflows")]
        cells = [f"**{r['ratios'][k]:.1f}** ({v:,.0f} / {max(p[k] for p in peers):,.0f})" for k, v in ours.items()]
        rows.append([r["kind"], str(r["dims"]), str(r["width"]), *cells, str(r["seeds"])])
    text = (
        "Ours over the better of zuko 1.6 and nflows 0.14 (medians of turns, then of seeds), and the two rates: training "
        "steps, log-densities and samples per process-CPU second. 5 transforms, 8 bins, batches of 256; plain nets of two hidden layers in "
        "all: the same MLP in couplings, in autoregressive maps each library's own masked one. Ours trains by fused Adam with gradients "
        "clipped as `fit` does, theirs by torch's Adam and clipping as they come. "
        "`python benchmarks/flow_speed.py`"
    )
    return section("Flows, speed", text, ["maps", "dims", "width", "steps", "log-densities", "samples", "seeds"], rows, found[-1])


def diffusion_speed():
    found, rows = newest("diffusion_speed", "side"), []
    for r in found:
        size = f"{r['side']} x {r['side']} x {r['channels']}"
        for name, rates in r["rates"].items():
            cells = [f"{rates[p][k]:,.0f}" for k in ("train_images_per_s", "sampler_calls_per_s") for p in ("float32", "bf16")]
            rows.append([size, name, f"{r['parameters'][name]:,}", *cells])
        cells = [f"**{r[of][k]:.1f}**" for k in ("train_images_per_s", "sampler_calls_per_s") for of in ("float32_ratios", "ratios")]
        rows.append([size, "ours over the better", "", *cells])
    text = (
        "Images trained, and images through the net in sampling, per process-CPU second, batches of 32: `diffusion` in size `small` with "
        "its whole bound of 256 levels; the U-Nets of diffusers 0.42 and denoising-diffusion-pytorch 2.3 of about as many parameters with "
        "the squared error, as they come but for fused AdamW. The ratio under bf16 is of the faster precision of each. Libraries took "
        "turns; medians over rounds. `python benchmarks/diffusion_speed.py`"
    )
    head = ["images", "library", "parameters", "train, float32", "bf16", "sample, float32", "bf16"]
    return section("Diffusion, speed", text, head, rows, found[-1])


def drawn_of(each, samples, sampler):
    """What is said of the samples of one model's runs."""
    quality = [spread_of([r[key] for r in each], digits) for key, digits in (("energy", 4), ("c2st", 3))]
    return [f"{samples:,}", str(len(each)), *quality, f"{sampler}, {each[0]['calls']}", f"{mean(r['samples_per_s'] for r in each):,.0f}"]


def diffusion_quality():
    every = newest("diffusion_quality", "library", "budget_cpu_seconds", "samples", "seed", "cpu")
    budget = max(r["budget_cpu_seconds"] for r in every)
    every = [r for r in every if r["budget_cpu_seconds"] == budget]
    usual = Counter(r["cpu"] for r in every).most_common(1)[0][0]
    runs = defaultdict(list)
    found = [r for r in every if r["cpu"] == usual]  # CPU seconds of another are others
    for r in found:
        runs[r["library"], r["samples"]].append(r)
    rows = []
    for (name, samples), each in sorted(runs.items(), key=lambda item: mean(r["c2st"] for r in item[1])):
        r = each[0]
        likelihood = f"{SYMBOLS[r['kind']]} {mean(r['bits'] for r in each):.3f} ± {r['stderr']:.3f} ({r['n']})" if "bits" in r else ""
        shown, size = f"**{name}**" if "bits" in r else name, f"{r['parameters']:,}"
        trained = f"{mean(r['train_images_per_s'] for r in each):,.0f}"
        rows.append([shown, size, *drawn_of(each, samples, r["sampler"]), trained, likelihood])
        if quick := [r["quick"] for r in each if "quick" in r]:
            rows.append([shown, size, *drawn_of(quick, samples, r["sampler"]), trained, ""])
    one = next(iter(runs.values()))[0]
    floor = one["floor"]
    text = (
        f"8x8 images after {budget:g} CPU seconds of training, batches of 64, samples against 360 test images: energy "
        f"distance (training images instead: {floor['energy']:.4f}) and held-out accuracy of an RBF support vector machine (training "
        f"images instead: {floor['c2st']:.3f}; .5 is best); mean and deviation over seeds. Samples and training images per CPU "
        "second. Bits/dim of test images with the standard error of one run, their number in brackets: bounds, or those of the "
        "differential "
        "equation. `make bench-setup && python benchmarks/diffusion_quality.py --seconds S --seed K`"
    )
    head = [
        "library",
        "parameters",
        "samples",
        "seeds",
        "energy distance",
        "told apart",
        "sampler, calls",
        "samples/s",
        "train/s",
        "test bits/dim",
    ]
    parts = [section("Diffusion, samples of digits", text, head, rows, one)]
    for cpu, s in ((r["cpu"], r["shortcuts"]) for r in every if "shortcuts" in r):
        parts.append(
            f"{cpu}: the same model of `diffusion` by its default sampler in {s['calls']} calls: energy distance {s['few']:.4f}; by DDIM "
            f"in {s['ddim_calls']} steps: {s['many']:.4f}; {s['samples']} samples of each from the same noise. "
            f"The difference is {s['gap']:.4f}, its standard error by a paired bootstrap {s['gap_stderr']:.4f}."
        )
    for cpu in dict.fromkeys(r["cpu"] for r in every):
        leaps = [r["leaps"] for r in every if r["cpu"] == cpu and "leaps" in r]
        if not leaps:
            continue
        said = [f"{word} {spread_of([s[calls] for s in leaps], 4)}" for word, calls in (("in one call", "1"), ("two", "2"), ("four", "4"))]
        parts.append(f"{cpu}: `meanflow`, {leaps[0]['samples']} samples, over seeds ({len(leaps)}): energy distance {', '.join(said)}.")
    return "\n\n".join(parts)


def flow_matching():
    found = sorted(newest("flow_matching", "data", "coupling", "library"), key=lambda r: (r["data"], r["coupling"], r["library"]))
    rows = []
    for r in found:
        nats = f"{SYMBOLS[r['kind']]} {r['nll']:.3f} ± {r['stderr']:.3f}, true {r['truth']:.3f}" if "nll" in r else ""
        cells = [f"{r[key]:.4f}" for key in ("energy_solved", "energy_few", "energy_euler", "floor")]
        cells += [f"{r[key]:,.0f}" for key in ("steps_per_s", "samples_per_s")]
        rows.append([r["data"], r["coupling"], r["library"], f"{r['parameters']:,}", str(r["calls"]), *cells, nats])
    one = found[-1]
    text = (
        f"Energy distance of {one['samples']} samples to as many test points after {one['budget_cpu_seconds']:g} CPU seconds of "
        "training: by the default sampler (ours DPM-Solver++, theirs dopri5 at 1e-4, calls beside), in 8 calls (ours the same, theirs "
        "Euler's), by 20 Euler steps, and of training points. Batches of 512, theirs of 256; one seed; nats of 2,000 test points by the "
        "differential equation, "
        "and under the law that they are drawn from. `make bench-setup && python benchmarks/flow_matching.py --seconds S`"
    )
    head = ["data", "coupling", "library", "parameters", "calls", "energy distance", "8 calls", "20 Euler", "floor"]
    head += ["steps/s", "samples/s", "test nats"]
    return section("Flow matching, 2-D toys", text, head, rows, one)


IMAGE_SETS = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10_subset": "CIFAR-10, 3,000 images"}


def images():
    found = {(r["model"], r["data"]): r for r in records("images")}
    models = sorted({model for model, _ in found}, key=lambda model: found.get((model, "mnist"), {"value": 99})["value"])
    rows = []
    for model in models:
        cells = [found.get((model, data)) for data in IMAGE_SETS]
        shown = [f"{value_of(r, 3)} ({r['cpu_seconds']:.0f} s, n={r['n']:,})" if r else "" for r in cells]
        rows.append([f"**{model}**", *shown, next(f"{r['samples_per_s']:.3g}" for r in cells if r)])
    published = ", ".join(f"{name} {bits:.2f}" for name, bits in IMAGE_DIFFUSION)
    text = (
        "Test bits/dim of 8-bit images, lower is better; in brackets the CPU seconds of training and the test images scored. Defaults, "
        "one seed, one thread. "
        "The subset of CIFAR-10 is split by the loader and far too small to be set beside published figures of the whole "
        f"(bounds of diffusion models, days of GPUs: {published}; flows below). `python benchmarks/images.py --seconds S`"
    )
    return section("Images, bits/dim", text, ["model", *IMAGE_SETS.values(), "MNIST images drawn/s"], rows, records("images")[-1])


def published_flows():
    """Tables of others, so that a reader can place ours; ours are not on these data."""

    def figure(v):
        return "" if v is None else v if isinstance(v, str) else f"{v:.2f}"

    return "\n\n".join(
        [
            "## Published figures of flows",
            "Mean test log-likelihood in nats, higher is better, dimensions in brackets; from a review (Kobyzev et al., 2021, table 3). "
            "These sets are not at hand here, and days of a GPU went into each row: ours above cannot be set beside them.",
            table(TABLE_FLOWS_HEAD, [[figure(v) for v in row] for row in TABLE_FLOWS]),
            "Test bits/dim of 8-bit images, lower is better; the same review (table 5) where nothing else is named. Two different sets are "
            "called ImageNet 32; these figures are of the older one.",
            table(IMAGE_FLOWS_HEAD, [[figure(v) for v in row] for row in IMAGE_FLOWS]),
        ]
    )


def nanogpt():
    r = records("nanogpt")[-1]
    one, many = r["chars_per_s"], r["chars_per_s_64"]
    rows = [[f"ms/step, {name}", f"{ms:.1f}"] for name, ms in r["ms_per_step"].items()]
    rows.append(["steps/s, ours over nanoGPT's", f"**{r['step_ratio']:.2f}**"])
    rows += [[f"characters/s, one stream, {name}", f"{speed:,.0f}"] for name, speed in one.items()]
    rows += [[f"ours over that of {name}", f"**{one['ours'] / one[name]:.2f}**"] for name in one if name != "ours"]
    rows += [[f"characters/s, 64 streams, {name}", f"{speed:,.0f}"] for name, speed in many.items()]
    rows += [[f"{name} over that of x-transformers", f"**{many[name] / many['x-transformers']:.2f}**"] for name in many if "ours" in name]
    trained = next((r["trained"] for r in reversed(records("nanogpt")) if "trained" in r), {})
    for name, t in trained.items():
        rows.append([f"nats/character after {r['steps']} steps, {name} ({t['cpu_seconds']:.0f} CPU s)", f"{t['nats_per_char']:.3f}"])
    text = (
        "4 layers, 4 heads, 128 wide, windows of 64 characters, batches of 12, on tinyshakespeare, tested on its last tenth; CPU seconds, "
        "medians of turns in one process. `python benchmarks/nanogpt.py --nanogpt CLONE --text tinyshakespeare.txt --train`"
    )
    return section("nanoGPT's CPU setting", text, ["what", "measured"], rows, r)


def text_compression():
    parts = [
        "## Text",
        "Bits per byte of the last tenth of a text after the rest. `python benchmarks/text_compression.py TEXT --seconds S`",
    ]
    texts = defaultdict(dict)
    for r in records("text_compression"):
        texts[r["text"]] |= r
    for r in texts.values():
        methods = {name: m for name, m in r.items() if isinstance(m, dict) and "bits" in m}
        rows = [
            [name, f"{m['bits']:.3f}" + (f" ± {m['stderr']:.3f}" if "stderr" in m else ""), f"{m.get('cpu_seconds', 0):.0f}"]
            for name, m in sorted(methods.items(), key=lambda item: item[1]["bits"])
        ]
        parts += [f"### {r['text']}", table(["method", "bits/byte", "CPU s"], rows), f"_{machine_line(r)}._"]
    return "\n\n".join(parts)


def nets():
    """The measured table of nets."""
    rows, entries = [], {"grid": "pixels", "columns": "cells", "sequence": "bytes"}
    for r in newest("nets", "layout", "net"):
        sees = f"{r['sees']:.0%}" if r["sees"] <= 1 else f"{r['sees']:.0f} bytes"
        speeds = [f"{r[key]:,.0f}" for key in ("entries_per_s", "entries_per_s_64")]
        cells = [r["data"], f"`{r['net']}`", f"{r['parameters']:,}", sees, f"{r['ms_per_step']:.1f} ({r['batch']})"]
        rows.append([*cells, f"{speeds[0]} {entries[r['layout']]}", speeds[1], f"{value_of(r, 3)} {r['unit']}", f"{r['cpu_seconds']:.0f}"])
    one = records("nets")[-1]
    head = ["data", "net", "parameters", "sees", "ms/step (batch)", "drawn/s, 1 stream", "64 streams", "test", "after CPU s"]
    return f"{table(head, rows)}\n\n_{machine_line(one)}; {one['threads']} thread._"


SECTIONS = (
    loop_overhead,
    digits,
    binarized_mnist,
    image_sampling,
    binary_density,
    tables,
    flow_quality,
    flow_speed,
    images,
    published_flows,
    diffusion_speed,
    diffusion_quality,
    flow_matching,
    nanogpt,
    text_compression,
)


def measured(part):
    return part is published_flows or (HERE / f"results/{part.__name__}.jsonl").exists()


def main():
    parts = [
        "# Benchmarks",
        "Generated by `make docs-benchmarks` from `benchmarks/results/*.jsonl`. Ratios matter; absolute times depend on the machine.",
        *(part() for part in SECTIONS if measured(part)),
    ]
    (DOCS / "benchmarks.md").write_text("\n\n".join(parts) + "\n")
    if measured(nets):
        replace_between(DOCS / "families/autoregressive.md", "nets", nets())


if __name__ == "__main__":
    main()
