"""Drawing 28x28 images entry by entry: through the caches of `step`, and by a whole forward pass per entry, with the same net.

Weights are random: time does not depend on them. Of the whole passes a few are timed, spread over the image, since
all cost the same. Process-CPU seconds on one thread.
"""

import time

import torch

from common import emit, options

SIDE = 28
PASSES = 8


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--nets", default="gated-pixelcnn,pixelcnn++,pixelcnn,made")
    parser.add_argument("--levels", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.nets.split(","):
        for batch in (1, 16):
            emit("image_sampling", {"model": name, **measured(name, arguments.levels, batch), "batch": batch, "threads": 1})


def measured(name: str, levels: int, batch: int) -> dict:
    """CPU seconds of a batch of draws, both ways."""
    from likely import Space
    from likely.families.autoregressive import Autoregressive

    space = Space.grid(1, SIDE, SIDE, levels)
    model = Autoregressive(space, net=name).eval()
    cached = cpu(lambda: model.sample(batch))
    x = torch.zeros(batch, 1, SIDE, SIDE, dtype=torch.int64)

    @torch.no_grad()
    def whole() -> None:
        for _ in range(PASSES):
            model.heads.sample_at(0, model.net(x).flatten(1, -2)[:, 0])

    full = cpu(whole) * space.dims / PASSES
    return {
        "cached_seconds": cached,
        "full_seconds": full,
        "ratio": full / cached,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def cpu(action) -> float:
    """The fastest of ten runs, or of as many as take 20 seconds."""
    times = []
    for _ in range(10):
        start = time.process_time()
        action()
        times.append(time.process_time() - start)
        if sum(times) > 20:
            break
    return min(times)


if __name__ == "__main__":
    main()
