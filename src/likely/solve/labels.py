"""`given` for estimators that keep one fit per label: its number, and shrinkage of rare labels to the pooled fit."""

import torch
from torch import Tensor

from likely.errors import DataError, UsageError
from likely.model import Batches, expand_given, gather_batches
from likely.space import Space

__all__ = ["component_weights", "label_count", "label_of", "labelled", "several", "shrink"]


def label_count(given: Space | None) -> int:
    """Number of fits: one per label, or one in all where nothing is given.

    Raises: UsageError where `given` is anything but one nominal column.
    """
    if given is None:
        return 1
    states = given.supports[0].states
    if given.layout != "columns" or given.dims != 1 or given.supports[0].kind != "nominal" or states is None:
        raise UsageError(f"A classical estimator takes one nominal label as given, not {given}.", "Use a neural family, such as flow.")
    return states


def label_of(space: Space | None, given: Tensor | None, n: int) -> Tensor:
    """Label number of each of n examples, [n]; a missing label is one more.

    Raises: UsageError if `given` is passed to an unconditional model, or not passed to a conditional one.
    """
    if (space is None) != (given is None):
        raise UsageError(
            "This model is conditional, p(x | given), but no `given` was passed."
            if given is None
            else "This model is unconditional, p(x), but `given` was passed.",
            f"Pass it, for example --given {space.supports[0].name or 'label'}=VALUE."
            if space is not None
            else "Fit it with --given to condition it.",
        )
    rows = expand_given(given, n)
    if space is None or rows is None:
        return torch.zeros(n, dtype=torch.int64)
    code = rows[:, 0]
    return torch.where(code < 0, label_count(space) - 1, code)


def labelled(batches: Batches, space: Space | None, most: int, weights: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """All examples [n, *shape], their labels [n] and weights [n] (1 by default); a random choice if there are more than `most`.

    Raises: DataError for weights that are not one finite number per example, none negative and not all zero.
    """
    x, given = gather_batches(batches)
    weights = torch.ones(len(x)) if weights is None else weights
    if weights.shape != (len(x),) or not bool((torch.isfinite(weights) & (weights >= 0)).all() & (weights > 0).any()):
        raise DataError(f"Got weights of shape {tuple(weights.shape)} for {len(x)} examples.", "Give each a number that is not negative.")
    keep = torch.randperm(len(x))[:most]
    return x[keep], label_of(space, given, len(x))[keep], weights.double()[keep]


def several(label: Tensor) -> dict[int, Tensor]:
    """Rows of each label that has two examples or more: one alone has no variance, and leans on what the others have.

    Raises: DataError where no label has.
    """
    rows = {y: (label == y).nonzero()[:, 0] for y in label.unique().tolist()}
    found = {y: some for y, some in rows.items() if len(some) > 1}
    if not found:
        told = f"of each of {len(rows)} labels there is" if len(rows) > 1 else "there is"
        raise DataError(f"A variance needs two training examples, and {told} 1.", "Give more; `kde` does with one.")
    return found


def shrink(counts: Tensor, prior: Tensor, pseudo: float | Tensor) -> Tensor:
    """Posterior mean of a categorical, (counts + pseudo * prior) / (n + pseudo), along the last axis."""
    total = counts.sum(-1, keepdim=True)
    return (counts + pseudo * prior) / (total + pseudo)


def component_weights(mass: Tensor, label: Tensor, labels: int, pseudo: float = 2.0) -> Tensor:
    """log w [labels, components] of components that each belong to a label.

    Args:
        mass: examples that each component stands for [components].
        label: whose it is [components].
        pseudo: pseudo-examples by which a label's weights shrink to those of all data.
    """
    own = torch.zeros(labels, len(mass), dtype=mass.dtype)
    own[label, torch.arange(len(mass))] = mass
    return shrink(own, mass / mass.sum(), pseudo).log()
