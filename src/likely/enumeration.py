"""Spaces small enough to enumerate: data with a known distribution, and what a model claims about every state."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from likely.abilities import Likelihood
from likely.dataset import Data, Split, Truth
from likely.logprob import LogProb
from likely.space import Space, Support

__all__ = ["Claim", "Room", "claimed", "enumerable_data", "index_of", "shared_error", "tiny_data"]


@dataclass(frozen=True)
class Room:
    """How much a law may spend: steps of training, draws of a bound, samples."""

    steps: int = 100
    draws: int = 40
    samples: int = 2000
    seed: int = 0


def tiny_data() -> dict[str, Data]:
    """Enumerable data sets with a known pmf, and 2-D points with a known density, by name."""
    mixed = Space.columns(
        Support("nominal", 3, "colour", categories=("r", "g", "b")),
        Support("ordinal", 3, "size", missing=True),
        Support("nominal", 2, "flag"),
    )
    spaces = {
        "grid": Space.grid(1, 2, 2, 3),
        "grid-channels": Space.grid(2, 1, 2, 3),
        "columns": mixed,
        "sequence": Space.sequence(4, 3),
        "sequence-variable": Space.sequence(3, 2, variable=True),
        "set": Space.points(3, 1, 3),
        "set-variable": Space.points(2, 2, 2, variable=True),
    }
    sets = {name: enumerable_data(name, space) for name, space in spaces.items()}
    sets["grid-given"] = enumerable_data("grid-given", Space.grid(1, 1, 3, 3), classes=2)
    sets["points"] = _toy("8gaussians")
    return sets


def enumerable_data(name: str, space: Space, *, classes: int = 1, n: int = 2700, seed: int = 0) -> Data:
    """Draws from a random pmf over all states of `space`, one pmf per class where there are several."""
    generator = torch.Generator().manual_seed(seed)
    states = space.enumerate()
    log_p = (1.5 * torch.randn(classes, len(states), generator=generator, dtype=torch.float64)).log_softmax(1)
    label = torch.randint(classes, (n,), generator=generator)
    x = states[torch.multinomial(log_p.exp()[label], 1, generator=generator).squeeze(1)]
    given = label[:, None] if classes > 1 else None
    parts = [Split(x[a:b], None if given is None else given[a:b]) for a, b in ((0, 2000), (2000, 2200), (2200, n))]
    truth = (
        Truth(lambda y: log_p[0][index_of(space.canonical(y), states)], -(log_p[0].exp() * log_p[0]).sum().item()) if classes == 1 else None
    )
    label_space = Space.label(classes) if classes > 1 else None
    return Data(space, *parts, given=label_space, name=name, truth=truth).standardised()


def index_of(x: Tensor, states: Tensor) -> Tensor:
    """Row numbers of examples among the states."""
    return (x[:, None] == states[None]).flatten(2).all(-1).long().argmax(1)


def _toy(name: str) -> Data:
    from likely.sources import load

    return load(name, count=3000)


@dataclass(frozen=True)
class Claim:
    """p of every state of a space, the standard error of each log p, and of the sum."""

    states: Tensor
    p: Tensor
    kind: str
    stderr: Tensor
    mass_error: float


def claimed(model: Likelihood, space: Space, given: Tensor | None, room: Room) -> Claim:
    """p of every state, over draws of the noise.

    A bound's logs are averaged, which exp then cannot push above the truth; of an estimate p itself is.
    """
    states = space.enumerate()
    given = None if given is None else given.expand(len(states), *given.shape[1:])
    with torch.no_grad():
        first = model.log_prob(states, given)
        draws = 1 if first.kind == "exact" else room.draws
        nats = torch.stack([first.nats, *(model.log_prob(states, given, seed=s).nats for s in range(1, draws))])
    p, stderr = (_mean_exp if first.kind == "estimate" else _exp_mean)(nats)
    own = (p * p * stderr.square()).sum().sqrt().item()
    own += (p * stderr.square() / 2).sum().item() if first.kind == "lower bound" else 0.0  # E exp(mean) is above exp(E mean)
    return Claim(states, p, first.kind, stderr, own + shared_error(first) * p.sum().item())


def _exp_mean(nats: Tensor) -> tuple[Tensor, Tensor]:
    """exp of the mean over draws, and the standard error of that mean."""
    return nats.mean(0).exp(), nats.std(0, correction=int(len(nats) > 1)) / math.sqrt(len(nats))


def _mean_exp(nats: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of exp over draws, and the standard error of its log."""
    p = nats.exp()
    return p.mean(0), p.std(0) / p.mean(0) / math.sqrt(len(nats))


def shared_error(claim: LogProb) -> float:
    """Standard error of an estimate's log Z, which all examples share."""
    return claim.stderr.mean().item() if claim.kind == "estimate" and claim.stderr is not None else 0.0
