"""Images drawn by captions: how often they show what the caption says, of pairs of colour and shape that training saw and never saw.

    python benchmarks/captions.py --seconds 180
    python benchmarks/captions.py --model autoregressive --seconds 60 --guidance   (without guidance)
    python benchmarks/captions.py --write shapes   (the folder alone, for the command line)

3,000 images of 16x16 RGB with captions such as "a small red square at the left" are written as PNGs and a `metadata.csv`, and read
from there. What an image shows is found from its pixels: the colour nearest to their mean, and the shape, size and place whose
drawing overlaps best.
"""

import csv
import itertools
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common import emit, fit_within, options

SIDE, IMAGES, DRAWS, TEST = 16, 3000, 120, 200
COLOURS = {"red": (220, 40, 40), "green": (40, 190, 60), "blue": (50, 70, 230), "yellow": (230, 210, 40)}
SHAPES, SIZES = ("square", "circle", "cross"), {"small": 2, "big": 4}
PLACES = {"at the left": (0, -1), "at the right": (0, 1), "at the top": (-1, 0), "at the bottom": (1, 0), "in the middle": (0, 0)}
UNSEEN = {("green", "circle"), ("blue", "cross")}
GROUND = 20
Scene = tuple[str, str, str, str]  # size, colour, shape, place
SCENES: list[Scene] = list(itertools.product(SIZES, COLOURS, SHAPES, PLACES))
PARTS = ("size", "colour", "shape", "place")


def caption(scene: Scene) -> str:
    size, colour, shape, place = scene
    return f"a {size} {colour} {shape} {place}"


def covered(size: str, shape: str, place: str, shift: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Where a shape is, bool [16, 16]."""
    half = SIZES[size]
    reach = SIDE // 2 - half - 1
    middle = [SIDE // 2 + reach * step + moved for step, moved in zip(PLACES[place], shift, strict=True)]
    rows, columns = (abs(np.arange(SIDE) - at) for at in middle)
    y, x = np.meshgrid(rows, columns, indexing="ij")
    inside = (y <= half) & (x <= half)
    round_, cross = y**2 + x**2 <= (half + 0.4) ** 2, np.minimum(y, x) <= half // 4
    return inside & {"square": inside, "circle": round_, "cross": cross}[shape]


def drawn(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """An image uint8 [16, 16, 3]: moved by up to a pixel, with noise of four levels."""
    size, colour, shape, place = scene
    where = covered(size, shape, place, tuple(rng.integers(-1, 2, 2)))
    image = np.where(where[..., None], COLOURS[colour], GROUND) + rng.normal(0, 4, (SIDE, SIDE, 3))
    return image.round().clip(0, 255).astype(np.uint8)


_SHIFTS = list(itertools.product((-1, 0, 1), repeat=2))
_DRAWINGS = [(size, shape, place) for size, shape, place in itertools.product(SIZES, SHAPES, PLACES) for _ in _SHIFTS]
_MASKS = np.stack([covered(*what, shift) for what, shift in zip(_DRAWINGS, _SHIFTS * (len(_DRAWINGS) // len(_SHIFTS)), strict=True)])


def shown(image: np.ndarray) -> Scene:
    """What an image [3, 16, 16] shows."""
    pixels = np.moveaxis(image, 0, -1).astype(float)
    mask = abs(pixels - GROUND).max(2) > 60
    overlap = (_MASKS & mask).sum((1, 2)) / (_MASKS | mask).sum((1, 2))
    size, shape, place = _DRAWINGS[int(overlap.argmax())]
    mean = pixels[mask].mean(0) if mask.any() else np.zeros(3)
    colour = min(COLOURS, key=lambda name: float(((mean - COLOURS[name]) ** 2).sum()))
    return size, colour, shape, place


def write(folder: Path, rng: np.random.Generator) -> None:
    """Images of all scenes but those of unseen pairs, and their captions."""
    seen = [scene for scene in SCENES if (scene[1], scene[2]) not in UNSEEN]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metadata.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", "text"])
        for i in range(IMAGES):
            scene = seen[rng.integers(len(seen))]
            Image.fromarray(drawn(scene, rng)).save(folder / f"{i:04d}.png")
            rows.writerow([f"{i:04d}.png", caption(scene)])


def obeyed(images: np.ndarray, scenes: list[Scene]) -> dict[str, float]:
    """Share of images that show what their captions say, in each part and in all."""
    right = np.array([[a == b for a, b in zip(shown(image), scene, strict=True)] for image, scene in zip(images, scenes, strict=True)])
    return {"all": float(right.all(1).mean()), **dict(zip(PARTS, right.mean(0).tolist(), strict=True))}


def by_captions(model: Any, scenes: list[Scene], seed: int, **how: Any) -> dict[str, float]:
    import likely

    start = time.process_time()
    images = likely.sample(model, len(scenes), given={"caption": [caption(scene) for scene in scenes]}, seed=seed, **how).numpy()
    return {**obeyed(images, scenes), "n": len(scenes), "cpu_seconds": time.process_time() - start}


def of_test(model: Any, data: Any) -> dict[str, Any]:
    """Bits of the first test images."""
    import torch

    from likely.evaluation.measure import held_out_bits

    with torch.no_grad():
        bits = held_out_bits(model, replace(data, test=data.test.head(TEST)))
    return {key: getattr(bits, key) for key in ("value", "unit", "kind", "how", "stderr", "n")}


def main() -> None:
    parser = options(__doc__ or "", seconds=180)
    parser.add_argument("--model", default="flow-matching(width=16, drop=0.1)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--guidance", type=float, nargs="*", default=[1.0, 3.0])
    parser.add_argument("--out", type=Path, help="keep the model there")
    parser.add_argument("--write", type=Path, help="write the images and captions there, and end")
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    if arguments.write:
        write(arguments.write, rng)
        return
    import likely

    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), rng)
        data = likely.load(folder, given="caption")
    start = time.process_time()
    how = {"seed": arguments.seed, "threads": arguments.threads, "batch": arguments.batch, "out": arguments.out}
    run = fit_within(data, arguments.model, arguments.seconds, precision="float32", **how)
    cpu = time.process_time() - start
    seen = [scene for scene in SCENES if (scene[1], scene[2]) not in UNSEEN]
    unseen = [scene for scene in SCENES if scene not in seen]
    real = [scene for scene in SCENES for _ in range(5)]
    found: dict[str, Any] = {"real": obeyed(np.stack([np.moveaxis(drawn(scene, rng), -1, 0) for scene in real]), real)}
    for how in [{"guidance": scale} for scale in arguments.guidance] or [{}]:
        for name, scenes in (("seen", seen), ("unseen", unseen)):
            scenes = (scenes * (DRAWS // len(scenes) + 1))[:DRAWS]
            found[" ".join([name, *(f"guidance {scale:g}" for scale in how.values())])] = by_captions(
                run.model, scenes, arguments.seed, **how
            )
    settings = {"model": arguments.model, "seed": arguments.seed, "threads": arguments.threads, "steps": run.steps, "fit_cpu_seconds": cpu}
    emit("captions", {**settings, **of_test(run.model, data), "obeyed": found})


if __name__ == "__main__":
    main()
