"""The last tenth of a text in bits per byte, after the rest: `ngram` by each estimator, the mixture, and compressors.

    python benchmarks/text_compression.py tinyshakespeare.txt [--seconds 330] [--estimators ctw]

A compressor's figure is the growth of its output from the first nine tenths to the whole; PPMd has memory for all
of it. --seconds is the mixture's budget of process-CPU time; 0 leaves it out.
"""

import bz2
import lzma
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import common
import likely
from likely.dataset import Data
from likely.evaluation.measure import held_out_bits
from likely.families.ngram import ESTIMATORS


def primed(size: Callable[[bytes], int], text: bytes) -> dict[str, Any]:
    """Bits per byte of the last tenth after the rest."""
    start, cut = time.process_time(), len(text) - len(text) // 10
    bits = 8 * (size(text) - size(text[:cut])) / (len(text) - cut)
    return {"bits": bits, "cpu_seconds": time.process_time() - start}


def compressors(text: bytes) -> dict[str, Any]:
    """The standard library's, xz with a window that holds all of the text."""
    window = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 27}]
    sizes = {
        "bz2 -9": lambda t: len(bz2.compress(t, 9)),
        "xz -9e": lambda t: len(lzma.compress(t, format=lzma.FORMAT_RAW, filters=window)),
    }
    return {name: primed(size, text) for name, size in sizes.items()}


def measured(data: Data, model: str, **how: Any) -> dict[str, Any]:
    """Fit and score one model."""
    start = time.process_time()
    run = likely.fit(data, model, progress=False, **how)
    fitted = time.process_time()
    bits = held_out_bits(run.model, data)
    record = {"bits": bits.value, "stderr": bits.stderr, "how": bits.how, "cpu_seconds": fitted - start, "steps": run.steps}
    return record | {"score_cpu_seconds": time.process_time() - fitted}


def main() -> None:
    parser = common.options(__doc__ or "", seconds=0.0)
    parser.add_argument("text", type=Path)
    parser.add_argument("--estimators", default=",".join(ESTIMATORS), help="of ngram, by name")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = likely.load(options.text)
    record: dict[str, Any] = compressors(options.text.read_bytes()) | {"ppmd": common.peer("ppmd.py", str(options.text.resolve()))}
    for estimator in options.estimators.split(","):
        for adapt in (True, False):
            record[f"ngram {estimator}{'' if adapt else ' static'}"] = measured(data, "ngram", estimator=estimator, adapt=adapt)
    if options.seconds:
        left = options.seconds - record["ngram mixed"]["cpu_seconds"]
        how = {"threads": options.threads, "seed": options.seed, "precision": "bf16"}
        steps = common.steps_within(data, "autoregressive", 0.93 * left, **how)
        record["mixture(ngram, autoregressive)"] = measured(data, "mixture(ngram, autoregressive)", steps=steps, **how)
    common.emit("text_compression", {"text": options.text.name, **record})


if __name__ == "__main__":
    main()
