"""The parent's side of a worker process: start it, hear it, and make a row of however it ends."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Worker"]

_PATIENCE = 10.0  # seconds that a worker has to save its state when it is told to stop


class Worker:
    """One task in a process of its own, whose log goes to a file."""

    command = (sys.executable, "-m", "likely.worker")

    def __init__(self, task: dict[str, Any], log: Path) -> None:
        self.task, self.log = task, log
        self.process: subprocess.Popen[str] | None = None
        self.stopped = False

    def run(self, progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Wait for the worker to end, passing on its progress. Returns its row, or one that says how it died."""
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file, self.log.open("a") as log:
            json.dump(self.task, file)
            file.flush()
            threads = {name: str(self.task["threads"]) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
            command = [*self.command, file.name]
            with subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # closes with this process, which ends the worker
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **threads},
                start_new_session=True,  # Ctrl-C reaches the parent alone
            ) as self.process:
                if self.stopped:  # while it was being started
                    self.process.terminate()
                row = self._listen(self.process, progress)
            code = self.process.returncode
        return row if row is not None else {**self.task["row"], "error": self._death(code)}

    def _listen(self, process: "subprocess.Popen[str]", progress: Callable[[dict[str, Any]], None]) -> dict[str, Any] | None:
        row = None
        for line in process.stdout or ():
            try:
                record = json.loads(line)
            except ValueError:  # a line that a kill cut short
                continue
            row = record.get("row", row)
            if "progress" in record:
                progress(record["progress"])
        return row

    def _death(self, code: int) -> str:
        """Why there is no row, in one line."""
        if code < 0:
            name = signal.Signals(-code).name
            memory = " (out of memory?)" if name == "SIGKILL" else ""
            return f"The process was killed by {name}{memory}; see logs/{self.log.name}."
        last = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()][-1:]
        return f"The process ended with exit code {code}: {' '.join(last)[:200]}"

    def stop(self) -> None:
        """Ask the worker to save its state and end; insist after a while."""
        self.stopped = True
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
