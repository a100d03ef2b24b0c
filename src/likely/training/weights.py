"""The tensors of a run: the model, its averaged copy, the optimisers, and the best so far."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from likely.model import Model, Recipe
from likely.training.checkpoint import flatten_optimiser, unflatten_optimiser
from likely.training.optimisers import optimiser_of

__all__ = ["Weights", "under"]


class Weights:
    """`model` is trained; `shadow`, its exponential average, is validated and kept.

    Attributes:
        optimisers: of each turn's submodule.
        best: state of the shadow that validated best.
    """

    def __init__(self, model: Model, recipe: Recipe) -> None:
        self.model, self.recipe = model, recipe
        self.shadow: Model = copy.deepcopy(model).eval().requires_grad_(False)
        self.optimisers = {turn: optimiser_of(model.get_submodule(turn), recipe) for turn in model.turns}
        self.best = _clone(self.shadow.state_dict())
        self._params, self._averages = list(model.parameters()), list(self.shadow.parameters())

    @torch.no_grad()
    def average(self, step: int) -> None:
        """Move the averages towards the weights; their memory starts short and grows to the recipe's."""
        if self.recipe.ema:
            decay = min(self.recipe.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(self._averages, self._params, 1 - decay)  # pyright: ignore

    @torch.no_grad()
    def sync(self) -> None:
        """Make the shadow ready to use: its buffers are the model's; so are its weights where they are not averaged."""
        if not self.recipe.ema:
            torch._foreach_copy_(self._averages, self._params)  # pyright: ignore
        for mine, theirs in zip(self.shadow.buffers(), self.model.buffers(), strict=True):
            mine.copy_(theirs)

    def mark_best(self) -> None:
        self.best = _clone(self.shadow.state_dict())

    def keep_best(self) -> None:
        self.shadow.load_state_dict(self.best)

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of everything but the best, under flat names."""
        tensors = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"shadow/{k}": v for k, v in self.shadow.state_dict().items()}
        for turn, optimiser in self.optimisers.items():
            tensors |= flatten_optimiser(f"optimiser:{turn}", optimiser.state_dict())
        return _clone(tensors)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `snapshot`."""
        self.model.load_state_dict(under("model/", tensors))
        self.shadow.load_state_dict(under("shadow/", tensors))
        for turn, optimiser in self.optimisers.items():
            optimiser.load_state_dict(unflatten_optimiser(f"optimiser:{turn}", tensors))

    def of_this_rank(self) -> dict[str, Tensor]:
        """The buffers that differ by rank."""
        return {f"model/{k}": v for k, v in self.model.state_dict().items() if k in self.model.rank_buffers}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with a prefix, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _clone(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in tensors.items()}
