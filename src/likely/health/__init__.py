r"""`check`: what of a fitted model can be trusted, measured on its own weights.

Tests of an architecture hold at its start; training moves the weights. A map may then lose its inverse to rounding, a
density may not integrate to one, a log-determinant may be that of another map. Every likelihood model is asked for

    mass                 of its probabilities: enumerated, by adaptive quadrature, or by importance sampling
    rows                 whether log p of an example depends on the others of its batch
    far probes           whether log p is a number at |x| = 1e3
    samples and density  whether what it draws is what its density says
    gradients            of the loss, part by part

and an invertible map besides for its round trip, its log-determinant, and whether every noise is the image of something (`maps`).

References:
    | Block neural autoregressive flow (De Cao et al., 2019) | https://arxiv.org/abs/1904.04676
    | Understanding and mitigating exploding inverses in invertible neural networks (Behrmann et al., 2021) | https://arxiv.org/abs/2006.09347
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from likely import sources
from likely.dataset import Data, Split
from likely.errors import UsageError
from likely.health import behaviour, maps, mass
from likely.health.report import Reading, Report, Subject
from likely.inputs import as_model, card_of, reading_options
from likely.invertible import Invertible
from likely.model import Model, evaluating
from likely.noise import seeded

__all__ = ["Reading", "Report", "check"]

Probe = Callable[[Subject], Iterator[Reading]]
_EXAMPLES = 256


def check(model: Model | str | Path, data: Any = None, *, seed: int = 0, progress: Callable[[int, int], None] | None = None) -> Report:
    """Measure on the trained weights what of a model is trustworthy.

    Args:
        model: a model, or the folder of a stored one.
        data: a `Data`, whose test split is taken; a tensor in the model's codes; or anything that is read by the model's schema. By
            default the test split that a stored model was evaluated on. Up to 256 examples are looked at.
        seed: of probes and of bounds' noise.
        progress: called with how many of how many probes are done.

    Returns: a `Report`: what was measured, each with a verdict, and whether all is sound.

    Raises: UsageError where no data are known.
    """
    fitted = as_model(model)
    split = _examples(model, fitted, data)
    given = None if fitted.given_space is None else split.given
    if fitted.given_space is not None and given is None:
        raise UsageError("The model is conditional, but the data hold no values of what it is conditioned on.", "Load them with `given`.")
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:_EXAMPLES]
    subject = Subject(fitted, split.x[order], None if given is None else given[order], seed)
    readings: list[Reading] = []
    probes = [*(_of_maps() if isinstance(fitted, Invertible) else ()), *_of_all()]
    with evaluating(fitted):
        for done, probe in enumerate(probes):
            if progress is not None:
                progress(done, len(probes))
            with seeded(seed), torch.no_grad():  # probes ask for gradients where they need them
                readings += probe(subject)
    return Report(fitted.config.get("model", type(fitted).__name__), len(subject.x), tuple(readings))


def _of_maps() -> list[Probe]:
    scales = [partial(maps.round_trip, scale=scale) for scale in maps.SCALES]
    return [*scales, maps.log_determinant, maps.precision, maps.onto, maps.base_mass]


def _of_all() -> list[Probe]:
    return [mass.total, behaviour.rows, behaviour.far, behaviour.samples, behaviour.gradients]


def _examples(model: Model | str | Path, fitted: Model, data: Any) -> Split:
    if isinstance(data, Data):
        return data.test.apart()
    if isinstance(data, torch.Tensor):
        return Split(data)
    if data is not None:
        if isinstance(data, str) and sources.is_builtin(data) and not Path(data).exists():
            return sources.load(data, given=card_of(model).get("options", {}).get("given")).test.apart()
        return sources.read_split(data, fitted.space, fitted.given_space, **reading_options(model, {})).apart()
    if not (card := card_of(model)):
        raise UsageError("Nothing to check the model on.", "Pass data (--data of `likely show`), or a folder that holds its data's card.")
    return sources.rebuild(card).test.apart()
