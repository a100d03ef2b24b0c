"""Quality of drawn examples, each number beside its floors, so that it can be read.

Measures are taken three times on equal numbers of examples, always against the same real test examples:

    value         the model's examples
    real          training examples: what a perfect model would score
    independent   training entries shuffled across examples, each entry by itself: what a model of
                  the marginals alone, without any dependence, would score
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from likely.dataset import Data, Split
from likely.evaluation.features import features
from likely.evaluation.fidelity import memorisation, nearest, precision_recall
from likely.evaluation.two_sample import classifier_test, energy_distance, kernel_mmd, pairwise

__all__ = ["EXAMPLES", "Floors", "examples", "floors", "held_out", "quality"]

EXAMPLES = 1000  # at most so many test examples, and as many of every other kind
_FEW = 100
_NEIGHBOURS = 20_000  # at most so many training examples are searched for copies
Floors = dict[str, dict[str, float]]


def quality(data: Data, drawn: Split, *, reference: Floors | None = None, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Measures of drawn examples (with their `given`, if the model is conditional), each with its floors.

    Args:
        reference: what `floors` returned for this data and number of examples; computed if None.

    Returns: measure -> {"value", "real", "independent", and "p", "low", "high", "k", ... where there are such}.
    """
    n = len(drawn)
    reference = reference if reference is not None else floors(data, n, seed=seed)
    test = held_out(data, n, seed)
    measured = {**_measure(data, drawn, test, seed), **memorisation(_to_train(data, drawn, seed), _to_train(data, test, seed))}
    return {name: {**values, **reference.get(name, {}), "n": n} for name, values in measured.items()}


def floors(data: Data, n: int, *, seed: int = 0) -> Floors:
    """What real and independent examples score: measure -> {"real", "independent"}."""
    n = examples(data, n)
    test, train, mixed = held_out(data, n, seed), _pick(data.train, n, seed + 1), _independent(data.train, n, seed)
    gap = _to_train(data, test, seed)  # training examples lie on themselves, so here test examples are the floor
    real = {**_measure(data, train, test, seed), **memorisation(gap, gap)}
    independent = {**_measure(data, mixed, test, seed), **memorisation(_to_train(data, mixed, seed), gap)}
    return {name: {"real": real[name]["value"], "independent": independent[name]["value"]} for name in real}


def examples(data: Data, n: int = EXAMPLES) -> int:
    """Examples that are compared: no more than the smallest split in question has."""
    return min(n, len(_apart(data.test)), len(_apart(data.train)))


def held_out(data: Data, n: int, seed: int = 0) -> Split:
    """The n test examples that drawn ones are compared with; their `given` is what to draw under."""
    return _pick(data.test, n, seed)


def _measure(data: Data, drawn: Split, test: Split, seed: int) -> dict[str, dict[str, Any]]:
    real, other = _vectors(data, test), _vectors(data, drawn)
    distance, n = pairwise(real, other), len(real)
    return {
        "energy_distance": energy_distance(distance, n, seed=seed),
        "kernel_mmd": kernel_mmd(distance, n, seed=seed),
        **classifier_test(real, other, seed=seed),
        **precision_recall(distance, n),
    }


def _vectors(data: Data, split: Split) -> Tensor:
    return features(data.space, split.x, data.given, split.given)


def _to_train(data: Data, split: Split, seed: int) -> Tensor:
    """Distances to the nearest training example, by x alone."""
    train = _pick(data.train, _NEIGHBOURS, seed + 2)
    return nearest(features(data.space, split.x), features(data.space, train.x))


def _pick(split: Split, n: int, seed: int) -> Split:
    """At most n distinct examples, by a seeded draw; no copy of the whole split is made."""
    split = _apart(split)
    index = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:n]
    return Split(*split.rows(index))


def _apart(split: Split) -> Split:
    """Windows of a text that do not overlap, as tests want independent examples; all of them where they would be few."""
    apart = split.apart()
    return apart if len(apart) >= _FEW else split


def _independent(split: Split, n: int, seed: int) -> Split:
    """Examples whose entries come from different training examples."""
    generator = torch.Generator().manual_seed(seed + 3)
    base = _pick(split, 4 * n, seed)
    flat = base.x.flatten(1)
    index = torch.randint(len(flat), (n, flat.shape[1]), generator=generator)
    x = flat.gather(0, index).view(n, *base.x.shape[1:])
    return replace(base, x=x, given=None if base.given is None else base.given[:n])
