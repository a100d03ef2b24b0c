"""Measure a fitted model: bits with their kind, two-sample tests, fidelity, memorisation, speed.

`Row` needs no torch; what measures does, and is imported when it is first used.
"""

from typing import TYPE_CHECKING, Any

from likely.evaluation.row import Row, read_rows, write_rows

if TYPE_CHECKING:
    from likely.evaluation.measure import evaluate

__all__ = ["Row", "evaluate", "read_rows", "write_rows"]


def __getattr__(name: str) -> Any:
    if name != "evaluate":
        raise AttributeError(f"module 'likely.evaluation' has no attribute '{name}'")
    from likely.evaluation.measure import evaluate

    return evaluate
