"""One model of a board in a process of its own: `python -m likely.worker TASK.json`.

A crash, a kill or an exhausted memory here is one row of the board and no more. The task and the data
come as files (JSON, and tensors read with `weights_only`, so that nothing is unpickled); what goes back
are lines of JSON on standard output: progress records and, last, {"row": ...}. The process ends when its
standard input closes, that is, with the board that started it.
"""

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["describe_error", "main", "receive", "ship"]


def main(task_file: str) -> None:
    """Fit, evaluate, report. Whatever libraries print goes to the log (standard error)."""
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def send(record: dict[str, Any]) -> None:
        lines.write(json.dumps(record, default=str) + "\n")

    threading.Thread(target=_end_with_board, daemon=True).start()
    task = json.loads(Path(task_file).read_text())
    try:
        row = run(task, send)
    except Exception as error:
        traceback.print_exc()
        row = {**task["row"], "error": describe_error(error)}
    send({"row": row})


def run(task: dict[str, Any], send: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Fit one model to the shipped data and measure it: a row's JSON. Its samples are left beside the model.

    Args:
        task: "row" (what to run, as a row's JSON), "data" and "out" (paths), "budget", "threads", "device", "floors".
        send: is handed a record now and then: {"progress": ...}.
    """
    import torch

    from likely.evaluation.gallery import IMAGES, POINTS, gallery
    from likely.evaluation.measure import draw, evaluate
    from likely.train import fit

    torch.set_num_threads(task["threads"])
    row, out = task["row"], Path(task["out"])
    data = receive(Path(task["data"]))
    fitted = fit(
        data,
        row["model"],
        size=row["size"],
        seed=row["seed"],
        out=out,
        device=task["device"],
        threads=task["threads"],
        progress=lambda record: send({"progress": record}),
        **task["budget"],
        **row["options"],
    )
    if fitted.stopped == "interrupted":
        raise SystemExit("stopped by a signal; the same comparison goes on from here")
    send({"progress": {"phase": "evaluating"}})
    measured = evaluate(fitted.model, data, seed=row["seed"], reference=task["floors"])
    measured.seconds, measured.cpu_seconds, measured.steps = fitted.seconds, fitted.cpu_seconds, fitted.steps
    measured.curve, measured.threads = fitted.curve, task["threads"]
    few = IMAGES if data.space.layout == "grid" else POINTS if data.space.dims == 2 else 8
    given = data.test.given[:few] if data.test.given is not None else None
    with torch.no_grad():
        drawn, _ = draw(fitted.model, given, len(given) if given is not None else few, row["seed"] + 1)
    (out / "gallery.json").write_text(json.dumps(gallery(data.space, drawn.x, data.given, drawn.given)))
    (out / "row.json").write_text(json.dumps(measured.to_json(), indent=1))
    fixed = {name: row[name] for name in ("model", "size", "seed", "options", "folder", "settings", "given")}
    return {**measured.to_json(), **fixed}


def describe_error(error: BaseException) -> str:
    """One line: ours as they are, others with their type and where they came from."""
    from likely.errors import LikelyError

    text = " ".join(str(error).split())
    if isinstance(error, LikelyError):
        return text
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text[:300]}{where}"


def ship(data: Any, path: Path) -> None:
    """Write a `Data` to one file; tensors that share memory (a text's windows) still do."""
    import torch

    record = {
        "space": data.space.to_json(),
        "given": data.given.to_json() if data.given else None,
        "name": data.name,
        "card": json.dumps(data.card, default=str),
        "splits": {name: {"x": s.x, "given": s.given, "stream": s.stream} for name, s in data.splits.items()},
    }
    torch.save(record, path)


def receive(path: Path) -> Any:
    """The `Data` that `ship` wrote."""
    import torch

    from likely.dataset import Data, Split
    from likely.space import Space

    record = torch.load(path, weights_only=True)
    train, valid, test = (Split(**record["splits"][name]) for name in ("train", "valid", "test"))
    given = Space.from_json(record["given"]) if record["given"] else None
    return Data(Space.from_json(record["space"]), train, valid, test, given, record["name"], json.loads(record["card"]))


def _end_with_board() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(sys.argv[1])
