"""Kernels around training examples: what kernel density estimates with one bandwidth, or one of each example, have alike."""

import torch
from torch import Tensor

from likely.solve.mixtures import Components
from likely.solve.observed import Observed

__all__ = ["BLURS", "hot_deck", "kernels"]

BLURS = (0.02, 0.1, 0.3)  # l, the share of a nominal's kernel that is not its own state


def kernels(seen: Observed, number: Tensor, label: Tensor, width: Tensor, blur: float) -> Components:
    """One around each example.

    Args:
        number: where their middles are [n, numbers]; label: whose they are [n].
        width: in standard deviations of each entry, [n, 1], or [1, 1] for all.
        blur: share of states and missing cells that have the frequencies of all examples.
    """
    absent, tables = ((1 - blur) * own + blur * every for own, every in ((seen.lost, seen.absent()), (seen.state, seen.tables())))
    sd = (width * seen.moments()[1].sqrt()).clamp_min(seen.floor)
    return Components({"mean": number, "sd": sd}, seen.weight, label, absent, tables)


def hot_deck(seen: Observed) -> Tensor:
    """Numbers of each example, those missing replaced by that of a random example that has one [n, numbers]."""
    number = seen.number.clone()
    for column, there in zip(number.T, seen.there.T.bool(), strict=True):
        donors = column[there] if bool(there.any()) else column.new_zeros(1)
        column[~there] = donors[torch.randint(len(donors), (int((~there).sum()),))]
    return number
