"""Errors a user can act on: what was wrong, the value, and the remedy; each with its exit code."""

import difflib
from collections.abc import Iterable

__all__ = ["DataError", "LikelyError", "StoreError", "TrainingError", "UsageError", "nearest"]


class LikelyError(Exception):
    """Base of every error that `likely` raises on purpose: one line, and a hint on what to do."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message} {hint}".strip())
        self.message = message
        self.hint = hint


class UsageError(LikelyError):
    """A name, option or argument that does not exist or does not fit (exit code 2)."""

    exit_code = 2


class DataError(LikelyError):
    """Data that cannot be read, or does not fit the space (exit code 3)."""

    exit_code = 3


class StoreError(LikelyError):
    """A stored model or checkpoint that is missing, damaged or from another format (exit code 4)."""

    exit_code = 4


class TrainingError(LikelyError):
    """Training that cannot go on, such as a loss that stays NaN (exit code 5)."""

    exit_code = 5


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint that names the closest of `names`, and all of them: "Did you mean 'flow'? Known: ..."."""
    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    guess = f"Did you mean '{close[0]}'? " if close else ""
    return f"{guess}Known: {', '.join(names)}."
