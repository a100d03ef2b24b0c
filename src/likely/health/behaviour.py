r"""Probes of any model with a likelihood: rows, far probes, samples against the density, gradients.

Samples of a density p on the whole space keep Stein's identities, whatever p is:

    E[ d log p / dx_i ] = 0,      E[ x_i d log p / dx_i ] = -1

Their means over drawn examples, in standard errors, say whether sampler and density are of one model, in any dimension.

References:
    | A kernelized Stein discrepancy for goodness-of-fit tests (Liu et al., 2016) | https://arxiv.org/abs/1602.03253
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from likely.abilities import ClosedForm, Likelihood
from likely.bijections import Chain
from likely.dataset import Data, Split
from likely.enumeration import Room
from likely.health.maps import bounded, within
from likely.health.mass import enumerable
from likely.health.report import Reading, Subject, Verdict
from likely.invertible import Invertible
from likely.laws import LawBroken, Trial, rows_are_independent, samples_follow
from likely.space import MISSING, Space

__all__ = ["far", "gradients", "rows", "samples"]

_FAR = 1e3
_SAMPLES = 2000
_LOSSES = 64
_SPREAD = 1e5  # between norms of gradients


def _trial(subject: Subject) -> Trial:
    split = Split(subject.x, subject.given)
    data = Data(subject.model.space, split, split, split, subject.model.given_space)
    return Trial(subject.model, data, Room(draws=20, samples=_SAMPLES))


def _by_law(what: str, where: str, told: str | None, broken: str = "") -> Reading:
    if told is None:
        return Reading(what, where, broken or "not taken", "broken" if broken else "unknown")
    return Reading(what, where, told, "sound")


def rows(subject: Subject) -> Iterator[Reading]:
    if not isinstance(subject.model, Likelihood):
        return
    where = "alone, together, turned round"
    try:
        yield _by_law("rows", where, rows_are_independent(_trial(subject)))
    except LawBroken as broken:
        yield _by_law("rows", where, None, broken.message.partition(": ")[2].rstrip("."))


def _extremes(space: Space, like: Tensor) -> Tensor:
    """Two examples whose numbers are as far out as they can be, up to 1e3 standard deviations; strings of the first and last symbol."""
    if space.layout == "sequence":
        return torch.stack([torch.zeros_like(like[0]), torch.full_like(like[0], space.supports[0].levels - 1)])
    x = like[:1].repeat(2, *[1] * (like.ndim - 1))
    for i, s in enumerate(space.supports):
        if s.numeric:
            ends = torch.tensor([s.center - _FAR * s.scale, s.center + _FAR * s.scale], dtype=torch.float64)
            if s.kind == "ordinal":
                ends = torch.tensor([0.0, s.levels - 1.0])
            elif s.kind == "decimal":
                ends = ends.floor() - (ends.floor() < 0).double()  # the code steps over -1
            x[:, i] = ends.to(x.dtype).view(2, *[1] * (x.ndim - 2))
    assert not bool((x == MISSING).any()) or space.flags
    return x


def far(subject: Subject) -> Iterator[Reading]:
    model, space = subject.model, subject.model.space
    if not isinstance(model, Likelihood) or space.layout == "set":
        return
    x, given = _extremes(space, subject.x), None if subject.given is None else subject.given[:1].expand(2, *subject.given.shape[1:])
    if isinstance(model, Invertible) and bounded(model):
        x = space.snap(within(model, space.relax(x).value))
    where = "all numbers at |x| = 1e3 or their ends" if space.layout != "sequence" else "one symbol repeated"
    nats = model.log_prob(x, given).nats
    told = f"log p {nats[0].item():.4g} and {nats[1].item():.4g}"
    verdict: Verdict = "sound" if bool(nats.isfinite().all()) else "broken" if bool(nats.isnan().any()) else "doubtful"
    slopes = None if space.discrete else _slopes(model, x, given)
    if slopes is not None:
        finite = bool(slopes.isfinite().all())
        told, verdict = f"{told}, gradients {'' if finite else 'not '}finite", verdict if finite else "broken"
    yield Reading("far probes", where, told, verdict)


def samples(subject: Subject) -> Iterator[Reading]:
    model, space = subject.model, subject.model.space
    if not isinstance(model, Likelihood):
        return
    if enumerable(space):
        one = replace(subject, x=subject.x[:1], given=None if subject.given is None else subject.given[:1])
        where = f"{_SAMPLES} draws, all states"
        try:
            yield _by_law("samples and density", where, samples_follow(_trial(one)))
        except LawBroken as broken:
            yield _by_law("samples and density", where, None, broken.message.partition(": ")[2].rstrip("."))
        return
    given = None if subject.given is None else subject.given[torch.arange(_SAMPLES) % len(subject.given)]
    kind = model.log_prob(subject.x[:1], None if given is None else given[:1]).kind
    ends = isinstance(model, Invertible) and bounded(model)  # where a density need not vanish, as the identities ask
    if space.discrete or space.flags or kind != "exact" or ends:
        reason = f"not taken: {'too many states' if space.discrete else 'numbers have bounds' if ends else f'log p is a {kind}'}"
        yield Reading("samples and density", "", reason, "unknown")
        return
    x = model.sample(_SAMPLES, given)
    if lost := int((~x.isfinite()).flatten(1).any(1).sum()):
        yield Reading("samples and density", f"{_SAMPLES} draws", f"{lost} hold NaN or infinite values", "broken")
        return
    slopes = _slopes(model, x, given)
    if slopes is None:
        yield Reading("samples and density", "", "not taken: log p has no gradient", "unknown")
        return
    center, scale = space.affine(x)
    worst = _stein(((x - center) / scale).flatten(1), (slopes * scale).flatten(1))
    verdict: Verdict = "sound" if worst < 5 else "doubtful" if worst < 8 else "broken"
    yield Reading("samples and density", f"Stein's identities, {_SAMPLES} draws", f"worst {worst:.1f} standard errors off", verdict)


def _slopes(model: Likelihood, x: Tensor, given: Tensor | None) -> Tensor | None:
    """d log p / dx, float64; None where log p is not differentiated."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        total = model.log_prob(x, given).nats.sum()
    if not total.requires_grad:
        return None
    try:
        return torch.autograd.grad(total, x)[0].double()
    except NotImplementedError:  # an operation without a derivative
        return None


def _stein(u: Tensor, slope: Tensor) -> float:
    """Largest deviation of the means from what they have to be, in standard errors."""
    terms = torch.cat([slope, u * slope + 1], 1)
    return (terms.mean(0).abs() / (terms.std(0) / math.sqrt(len(terms))).clamp_min(1e-12)).max().item()


def _parts(model: nn.Module) -> dict[str, nn.Module]:
    """The chain's parts, of a model that is one; else its children; those with parameters."""
    chain = next((m for m in model.children() if isinstance(m, Chain)), None)
    named = chain.parts.named_children() if chain is not None else model.named_children()
    found = {f"{name} {type(part).__name__}": part for name, part in named}
    return {name: part for name, part in found.items() if any(True for _ in part.parameters())}


def gradients(subject: Subject) -> Iterator[Reading]:
    model, given = subject.model, None if subject.given is None else subject.given[:_LOSSES]
    if isinstance(model, ClosedForm) or not (parts := _parts(model)):
        return
    model.zero_grad()
    for turn in model.turns:
        with torch.enable_grad():
            loss = model(subject.x[:_LOSSES], given, turn=turn).float().mean()
        if loss.requires_grad:
            loss.backward()
    norms = {name: _norm(part) for name, part in parts.items()}
    model.zero_grad()
    largest = max(norms.values())
    for name, norm in norms.items():
        verdict: Verdict = "broken" if not math.isfinite(norm) else "sound" if norm * _SPREAD >= largest and norm > 0 else "doubtful"
        yield Reading("gradients", name, f"norm {norm:.2g}", verdict)


def _norm(part: nn.Module) -> float:
    return math.sqrt(sum(p.grad.square().sum().item() for p in part.parameters() if p.grad is not None))
