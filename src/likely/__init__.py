"""Fit any data with any family of deep generative model, say in bits how likely the data is under it, and use the model.

Names are imported when they are first used, so that `import likely` is instant and does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Data": "likely.dataset",
    "LikelyError": "likely.errors",
    "LogProb": "likely.logprob",
    "Model": "likely.model",
    "Row": "likely.evaluation",
    "Run": "likely.train",
    "Space": "likely.space",
    "bits": "likely.logprob",
    "build": "likely.families",
    "check": "likely.health",
    "check_model": "likely.checks",
    "compare": "likely.board",
    "data": "likely.verbs",
    "evaluate": "likely.evaluation",
    "fill": "likely.filling",
    "fit": "likely.verbs",
    "fit_target": "likely.target",
    "interpolate": "likely.latents",
    "load": "likely.sources",
    "models": "likely.verbs",
    "open": "likely.verbs",
    "sample": "likely.verbs",
    "save": "likely.store",
    "score": "likely.verbs",
    "show": "likely.verbs",
}

__all__ = [*_HOMES, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'likely' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:  # what type checkers and editors see
    from likely.board import compare as compare
    from likely.checks import check_model as check_model
    from likely.dataset import Data as Data
    from likely.errors import LikelyError as LikelyError
    from likely.evaluation import Row as Row
    from likely.evaluation import evaluate as evaluate
    from likely.families import build as build
    from likely.filling import fill as fill
    from likely.health import check as check
    from likely.latents import interpolate as interpolate
    from likely.logprob import LogProb as LogProb
    from likely.logprob import bits as bits
    from likely.model import Model as Model
    from likely.sources import load as load
    from likely.space import Space as Space
    from likely.store import save as save
    from likely.target import fit_target as fit_target
    from likely.train import Run as Run
    from likely.verbs import data as data
    from likely.verbs import fit as fit
    from likely.verbs import models as models
    from likely.verbs import open as open
    from likely.verbs import sample as sample
    from likely.verbs import score as score
    from likely.verbs import show as show
