r"""Paths between examples through a model's latent space.

Draws of a normal in many dimensions lie near a sphere, so a straight line between two of them runs through the
unlikely middle. The spherical path keeps the norm of a draw: with the angle w between z_a and z_b

    z(t) = [sin((1 - t) w) z_a + sin(t w) z_b] / sin w

Points of two sets have no order: each latent point of one goes to the point of the other with which all together have least to go.

References:
    | Sampling generative networks (White, 2016) | https://arxiv.org/abs/1609.04468
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from likely import pointsets, sources
from likely.abilities import Latent
from likely.errors import UsageError
from likely.inputs import as_given, as_model, card_of
from likely.model import Model, evaluating, expand_given
from likely.noise import seeded
from likely.solve.coupling import assigned
from likely.verbs import families_with

__all__ = ["between", "interpolate", "spherical"]

_NEARLY_STRAIGHT = 1e-4  # sin of an angle, below which the path is the line


def spherical(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Points of the spherical path between rows of a and b [n, ...] at shares t [m] of it, [m, n, ...]."""
    t = t.to(a).view(-1, *[1] * a.ndim)
    norms = a.flatten(1).norm(dim=1) * b.flatten(1).norm(dim=1)
    cosine = (a * b).flatten(1).sum(1) / norms.clamp_min(1e-12)
    angle = cosine.clamp(-1, 1).acos().view(-1, *[1] * (a.ndim - 1))
    sine = angle.sin()
    arc = ((1 - t) * angle).sin() * a + (t * angle).sin() * b
    return torch.where(sine < _NEARLY_STRAIGHT, (1 - t) * a + t * b, arc / sine.clamp_min(_NEARLY_STRAIGHT))


@torch.no_grad()
def interpolate(model: Model | str | Path, a: Tensor, b: Tensor, steps: int = 8, *, given: Any = None, seed: int = 0) -> Tensor:
    """Examples on the spherical path between the latents of a and b, ends included.

    Args:
        model: one with a latent space, or the folder of one.
        a, b: an example each, [*shape] in data units, or as many of both, [n, *shape].
        steps: points of the path, 2 at least.
        given: for a conditional model: a row for each of the n, or one for all.
        seed: of what is random in encoding: the dequantization of discrete data, a VAE's posterior.

    Returns: [steps, *shape], or [steps, n, *shape].

    Raises: UsageError for a model without latents, fewer than 2 steps, or sets of different sizes; DataError where the examples do not fit.
    """
    fitted = as_model(model)
    if not isinstance(fitted, Latent):
        raise UsageError(f"{fitted.called} has no latent space.", f"Those that have: {', '.join(families_with('latent'))}.")
    if steps < 2:
        raise UsageError(f"A path of {steps} steps has no two ends.", "Ask for at least 2.")
    single = a.ndim == len(fitted.space.shape)
    ends = torch.stack([a, b])[:, None] if single else torch.stack([a, b])
    fitted.space.check(ends.flatten(0, 1))
    n = ends.shape[1]
    values = expand_given(as_given(given, fitted), n)
    if fitted.space.layout == "set":
        _check_sizes(*ends)
    with seeded(seed), evaluating(fitted):
        first, last = (fitted.encode(end, values).value for end in ends)
        if fitted.latent.layout == "set" and fitted.space.unordered:
            last = torch.stack([_matched(*pair) for pair in zip(first, last, strict=True)])
        path = spherical(first.nan_to_num(0.0), last.nan_to_num(0.0), torch.linspace(0, 1, steps))
        path = path.masked_fill(first.isnan(), torch.nan)  # of sets
        x = fitted.decode(path.flatten(0, 1), None if values is None else values.repeat(steps, *[1] * (values.ndim - 1)))
    return x if single else x.view(steps, n, *fitted.space.shape)


def _check_sizes(a: Tensor, b: Tensor) -> None:
    """Raise a UsageError for sets of different sizes: their latents differ in dimension, so no path leads from one to the other."""
    sizes = torch.stack([pointsets.counts(a), pointsets.counts(b)], 1)
    if bool((differs := sizes[:, 0] != sizes[:, 1]).any()):
        one, other = sizes[differs][0].tolist()
        raise UsageError(f"A path leads between sets of one size; these have {one} and {other} points.", "Choose two of as many points.")


def _matched(a: Tensor, b: Tensor) -> Tensor:
    """The points of a latent set b [N, D] in the order of those of a, NaN last in both."""
    n = int(pointsets.there(a).sum())
    return torch.cat([b[:n][assigned(a[:n], b[:n])], b[n:]])


def between(folder: str | Path, rows: tuple[int, int], steps: int, *, given: Any = None, seed: int = 0) -> Tensor:
    """The path between two examples of the test split that a stored model was evaluated on, by their row numbers."""
    card = card_of(folder)
    if not card:
        raise UsageError("The model's data are not known.", "Pass the folder of a model that was stored with its data's card.")
    test = sources.rebuild(card).test.apart()
    if not all(0 <= row < len(test) for row in rows):
        raise UsageError(f"There are no examples {rows[0]} and {rows[1]} in a test split of {len(test)}.", "Rows are counted from 0.")
    model = as_model(folder)
    if test.given is not None and given is None and bool((test.given[rows[0]] != test.given[rows[1]]).any()):
        raise UsageError("The two examples are conditioned on different values.", "Say with --given what the path is conditioned on.")
    own = None if test.given is None or model.given_space is None else test.given[rows[0]][None]
    return interpolate(model, test.x[rows[0]], test.x[rows[1]], steps, given=own if given is None else given, seed=seed)
