"""One thread and one random state per test; shapes and types are checked at run time, in tests only."""

import os
import re
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from jaxtyping import install_import_hook

# Annotations of the package are checked whenever tests import it; not those of the command line,
# whose contexts are of another class than typer says.
_SOURCE = Path(__file__).parents[1] / "src/likely"
_CHECKED = [f"likely.{path.stem}" for path in _SOURCE.iterdir() if path.stem not in ("cli", "__init__", "__main__", "py", "__pycache__")]
_hook = install_import_hook(_CHECKED, "typecheck.check")


@pytest.fixture(autouse=True)
def _own_random_state():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def run(monkeypatch, capsys):
    """The command line: words -> (exit code, output, errors without colours)."""
    from likely import cli

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["likely", *map(str, words)])
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code if ended.code is not None else 0
        else:
            code = 0
        out, err = capsys.readouterr()
        return code, out, re.sub(r"\x1b\[[0-9;]*m", "", err)

    return call
