"""Our transformer beside nanoGPT at nanoGPT's own CPU setting: 4 layers, 4 heads, 128 wide, windows of 64 characters, batch 12.

Both train and draw in one process, in turns, timed in process-CPU seconds; ratios are of medians. A
step is: rows, forward, backward, clip, update. nanoGPT itself is not part of this project:

    git clone https://github.com/karpathy/nanoGPT
    python benchmarks/nanogpt.py --nanogpt nanoGPT --text tinyshakespeare.txt [--train]

With --train both go 2000 steps and say their loss on the last tenth in cold windows, nats per
character. x-transformers draws in the peers' environment.
"""

import contextlib
import importlib
import io
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import likely
from common import emit, options, peer
from likely.model import Recipe, in_precision
from likely.training.optimisers import optimiser_of

WINDOW, BATCH, WIDTH, DEPTH, HEADS, STEPS = 64, 12, 128, 4, 4, 2000
PAIRS, STREAMS, LENGTH = 5, 64, 1000


def characters(path: Path) -> tuple[Tensor, Tensor, int]:
    """(first nine tenths, last tenth, number of characters) of a text, as codes."""
    text = path.read_text()
    code = {c: i for i, c in enumerate(sorted(set(text)))}
    stream = torch.tensor([code[c] for c in text])
    return *stream.split([len(stream) * 9 // 10, len(stream) - len(stream) * 9 // 10]), len(code)


def rows(stream: Tensor, length: int) -> Tensor:
    """A batch of windows."""
    return stream[torch.randint(len(stream) - length, (BATCH, 1)) + torch.arange(length)]


class Theirs:
    """nanoGPT's model and optimiser, and the schedule of its CPU example."""

    def __init__(self, folder: Path, levels: int) -> None:
        sys.path.insert(0, str(folder))
        model = importlib.import_module("model")
        with contextlib.redirect_stdout(io.StringIO()):
            shape = {"block_size": WINDOW, "vocab_size": levels, "n_layer": DEPTH, "n_head": HEADS, "n_embd": WIDTH}
            self.net: Any = model.GPT(model.GPTConfig(**shape, dropout=0.0, bias=False))
            self.optimiser = self.net.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")

    def step(self, stream: Tensor, fraction: float = 0.0) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = 1e-3 * min(1.0, 20 * fraction) if fraction < 0.05 else 1e-4 + 4.5e-4 * (1 + math.cos(math.pi * fraction))
        window = rows(stream, WINDOW + 1)
        self.net(window[:, :-1], window[:, 1:].contiguous())[1].backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    @torch.no_grad()
    def loss(self, stream: Tensor) -> float:
        """Nats per character of windows that start cold."""
        self.net.eval()
        windows = stream.unfold(0, WINDOW + 1, WINDOW)
        losses = [(self.net(w[:, :-1], w[:, 1:].contiguous())[1].item(), len(w)) for w in windows.split(128)]
        return sum(a * n for a, n in losses) / len(windows)

    def draw(self, streams: int, length: int) -> None:
        self.net.eval()
        self.net.generate(torch.zeros(streams, 1, dtype=torch.long), length, temperature=0.8, top_k=200)


class Ours:
    """The causal transformer of the same shape, by AdamW as theirs."""

    RECIPE = Recipe(lr=4e-3, clip=100.0)

    def __init__(self, levels: int, *, bf16: bool) -> None:
        shape = {"width": WIDTH, "depth": DEPTH, "heads": HEADS, "ngrams": 1, "dropout": 0.0}
        self.model: Any = likely.build("autoregressive", likely.Space.sequence(WINDOW, levels), net="transformer", **shape)
        self.optimiser, self.bf16 = optimiser_of(self.model, self.RECIPE), bf16

    def step(self, stream: Tensor, fraction: float = 0.0) -> None:
        rate = self.RECIPE.lr * min(1.0, 20 * fraction + 1e-3) * 0.5 * (1 + math.cos(math.pi * fraction))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = self.model(rows(stream, WINDOW)).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.RECIPE.clip)
        self.optimiser.step()

    def loss(self, stream: Tensor) -> float:
        """Nats per character of the same windows; as theirs, without the first character, of which nothing is known."""
        windows = stream.unfold(0, WINDOW + 1, WINDOW)[:, :WINDOW]
        first = torch.full_like(windows[:1], -1)
        with torch.no_grad():
            whole = torch.cat([self.model.log_prob(w).nats for w in windows.split(128)])
            known = {int(c): torch.where(torch.arange(WINDOW) == 0, c, first) for c in windows[:, 0].unique()}
            start = {c: self.model.log_prob(x).nats.item() for c, x in known.items()}
        return (sum(start[int(c)] for c in windows[:, 0]) - whole.sum().item()) / len(windows) / (WINDOW - 1)

    @torch.no_grad()
    def draw(self, streams: int, length: int, *, bf16: bool = False) -> None:
        self.model.eval()
        with in_precision(self.model.net, torch.bfloat16) if bf16 else contextlib.nullcontext():
            self._steps(streams, length)

    def _steps(self, streams: int, length: int) -> None:
        state, last = self.model.net.init_state(streams), None
        for _ in range(length):
            state, parameters = self.model.net.step(state, last)
            last = self.model.heads.sample_at(0, parameters)


def seconds(action: Callable[[], None]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def in_turns(actions: dict[str, Callable[[], None]], pairs: int = PAIRS) -> dict[str, float]:
    """Median CPU seconds of each action, after one run to warm up."""
    for action in actions.values():
        action()
    taken = {name: [] for name in actions}
    for _ in range(pairs):
        for name, action in actions.items():
            taken[name].append(seconds(action))
    return {name: statistics.median(values) for name, values in taken.items()}


def quickest(actions: dict[str, Callable[[], None]]) -> tuple[dict[str, float], dict[str, float]]:
    """CPU seconds of each action and x-transformers' rates, in turns: of each the best that it reached."""
    taken, rates = dict.fromkeys(actions, math.inf), {}
    for _ in range(PAIRS):
        for name, action in actions.items():
            taken[name] = min(taken[name], *(seconds(action) for _ in range(3)))
        rates = {key: max(rate, rates.get(key, 0.0)) for key, rate in peer("xtransformers.py").items()}
    return taken, rates


def trained(learner: Theirs | Ours, train: Tensor, test: Tensor) -> dict[str, float]:
    """Loss and CPU seconds after all steps."""
    torch.manual_seed(0)
    start = time.process_time()
    for step in range(STEPS):
        learner.step(train, step / STEPS)
    return {"cpu_seconds": time.process_time() - start, "nats_per_char": learner.loss(test)}


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--nanogpt", type=Path, required=True, help="a clone of its repository")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--train", action="store_true")
    arguments = parser.parse_args()
    if not (arguments.nanogpt / "model.py").exists():
        sys.exit(f"Skipped: {arguments.nanogpt} has no model.py of nanoGPT.")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    train, test, levels = characters(arguments.text)
    theirs, ours = Theirs(arguments.nanogpt, levels), {name: Ours(levels, bf16=name == "bf16") for name in ("float32", "bf16")}
    both = {"nanogpt": theirs, **ours}
    step = in_turns({name: lambda m=m: [m.step(train) for _ in range(10)] and None for name, m in both.items()})
    single = in_turns({name: lambda m=m: m.draw(1, LENGTH) for name, m in (("nanogpt", theirs), ("ours", ours["float32"]))}, 3)
    lower = {"ours": False, "ours in bf16": True}
    many, other = quickest({name: lambda low=low: ours["float32"].draw(STREAMS, WINDOW, bf16=low) for name, low in lower.items()})
    record: dict[str, Any] = {
        "ms_per_step": {name: 100 * s for name, s in step.items()},
        "step_ratio": step["nanogpt"] / min(step["float32"], step["bf16"]),
        "chars_per_s": {name: LENGTH / s for name, s in single.items()} | {"x-transformers": other["chars_per_s_1"]},
        "draw_ratio": single["nanogpt"] / single["ours"],
        f"chars_per_s_{STREAMS}": {name: STREAMS * WINDOW / s for name, s in many.items()} | {"x-transformers": other["chars_per_s_64"]},
    }
    if arguments.train:
        fresh = {"nanogpt": Theirs(arguments.nanogpt, levels), "ours": Ours(levels, bf16=step["bf16"] < step["float32"])}
        record["trained"] = {name: trained(m, train, test) for name, m in fresh.items()}
    emit("nanogpt", {**record, "threads": arguments.threads, "steps": STEPS})


if __name__ == "__main__":
    main()
