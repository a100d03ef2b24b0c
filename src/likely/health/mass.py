"""The total mass of what a model claims: enumerated, by adaptive quadrature, or by importance sampling.

A space of few states is summed. A density of one or two reals is integrated by an adaptive rule over the whole line or plane; a
fixed grid would miss what is narrower than its step. In more dimensions, and of bounds, which are noisy, draws come from a
mixture q of normals about the data, some of them wide, and of Student's t of two degrees of freedom, since a density may have
heavy tails and the weights p / q then no variance. The mass is the mean of p / q; where the effective number of draws is small,
nothing is said. None of these looks at an inverse or at a log-determinant: they see what `log_prob` says.

References:
    | An adaptive algorithm for numerical integration over an N-dimensional rectangular region (Genz and Malik, 1980)
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from likely.abilities import Likelihood
from likely.enumeration import Room, claimed
from likely.errors import DataError
from likely.health.report import Reading, Subject, by_size
from likely.space import Space

__all__ = ["enumerable", "quadrature", "total"]

_STATES = 2**12
_SPLITS = 1500  # of regions, at most
_HINTS = {1: 32, 2: 8}  # by dimensions
_DRAWS = 4096
_NOISES = 8  # of a bound
_FEW = 50  # effective draws, of which fewer say nothing
_BROAD = 0.2  # share of draws about the centre of all data, twice as wide as they are
_HEAVY, _FREEDOM = 0.2, 2.0  # share of draws with heavy tails, of Student's t with so many degrees of freedom in each number
_QUARTILES = 1.633  # from one to the other, of that t


def enumerable(space: Space) -> bool:
    """Whether all states can be gone through."""
    try:
        return space.discrete and len(space.enumerate(_STATES)) > 0
    except DataError:
        return False


def total(subject: Subject) -> Iterator[Reading]:
    model, space = subject.model, subject.model.space
    if not isinstance(model, Likelihood):
        yield Reading("mass", "", "the model has no likelihood", "unknown")
        return
    if enumerable(space):
        claim = claimed(model, space, None if subject.given is None else subject.given[:1], Room(draws=20))
        yield _judged(f"all {len(claim.states)} states", claim.p.sum().item(), claim.mass_error, claim.kind)
        return
    if space.layout not in ("columns", "grid") or any(s.kind != "real" or s.missing for s in space.supports):
        yield Reading("mass", "all states", f"not taken: too many to go through ({space})", "unknown")
        return
    kind = model.log_prob(subject.x[:1], _one(subject, 1)).kind

    def density(u: Tensor) -> Tensor:
        """Of standardised examples, float64 [n]."""
        center, scale = space.affine(u)
        x = (u * scale + center).to(space.dtype)
        return (_nats(model, x, _one(subject, len(x)), kind) + space.dims / len(space.supports) * scale.log().sum()).exp()

    if space.dims <= 2 and kind in ("exact", "numerical"):
        hints = _standardised(subject.x[: _HINTS[space.dims]], space)
        mass, error, points = quadrature(lambda u: density(u.view(-1, *space.shape)), hints)
        yield _judged(f"adaptive quadrature, {points} points", mass, error, kind)
        return
    yield _by_importance(subject, density, kind)


def _nats(model: Likelihood, x: Tensor, given: Tensor | None, kind: str) -> Tensor:
    """log p; of a bound the mean over its noise, less half its variance, by which the mean of exp would exceed the exp of the mean."""
    if kind in ("exact", "numerical"):
        return model.log_prob(x, given).nats
    each = torch.stack([model.log_prob(x, given, seed=seed).nats for seed in range(_NOISES)])
    return each.mean(0) - each.var(0) / (2 * _NOISES)


def _one(subject: Subject, n: int) -> Tensor | None:
    """The first example's `given`, n times: the mass is that of one conditional density."""
    return None if subject.given is None else subject.given[:1].expand(n, *subject.given.shape[1:])


def _judged(where: str, mass: float, error: float, kind: str, effective: str = "") -> Reading:
    excess = mass - 1 if kind == "lower bound" else abs(mass - 1)
    told = f"{mass:.4f} +- {error:.4f} ({kind}){effective}"
    return Reading("mass", where, told, by_size(excess, 0.01 + 3 * error, 0.05 + 5 * error))


def _standardised(x: Tensor, space: Space) -> Tensor:
    """Numbers of examples in standard deviations, float64 [n, dims]."""
    center, scale = space.affine(x)
    return ((x - center) / scale).flatten(1)


def quadrature(density: Callable[[Tensor], Tensor], hints: Tensor) -> tuple[float, float, int]:
    """Integral of a density of points [n, d] over all of R^d, d of 1 or 2, its error, and the number of points; NaN if a value is.

    With u = tan(pi t / 2) the space is a box. It is first cut at `hints` [m, d], where there is mass: a rule that has not met a
    narrow peak believes that there is none.
    """
    from scipy.integrate import cubature

    count, lost, dims = 0, False, hints.shape[1]

    def values(t: np.ndarray) -> np.ndarray:
        nonlocal count, lost
        u = torch.from_numpy(t).mul(math.pi / 2).tan()
        p, volume = density(u).double(), (math.pi / 2 * (1 + u.square())).prod(1)
        count, lost = count + len(t), lost or not bool(p.isfinite().all())
        return torch.where(p.isfinite() & (p > 0), p * volume, 0.0).numpy()

    rule, splits = "gk21" if dims == 1 else "genz-malik", _SPLITS // dims**2
    how: Any = {"rtol": 3e-3, "atol": 3e-3, "points": list(hints.atan().mul(2 / math.pi).numpy())}
    found = cubature(values, np.full(dims, -1.0), np.full(dims, 1.0), rule=rule, max_subdivisions=splits, **how)
    return math.nan if lost else float(found.estimate), float(found.error), count


def _by_importance(subject: Subject, density: Callable[[Tensor], Tensor], kind: str) -> Reading:
    space = subject.model.space
    u = _standardised(subject.x, space)
    dims = u.shape[1]
    deviation = torch.linalg.cholesky(u.T.cov() + 1e-6 * torch.eye(dims, dtype=u.dtype))
    narrow = len(u) ** (-1 / (dims + 4))  # Scott's rule
    heavy, pick = _heavy_tailed(u), torch.rand(_DRAWS)
    wide = pick < _BROAD
    about = torch.where(wide[:, None], u.mean(0), u[torch.randint(len(u), (_DRAWS,))])
    points = about + torch.where(wide, 2.0, narrow)[:, None] * (torch.randn(_DRAWS, dims, dtype=u.dtype) @ deviation.T)
    points = torch.where((pick > 1 - _HEAVY)[:, None], heavy.sample((_DRAWS,)), points)
    near, far = _log_mixture(points, u, narrow * deviation), _log_mixture(points, u.mean(0)[None], 2 * deviation)
    parts = torch.stack([near, far, heavy.log_prob(points).sum(1)])
    log_q = (parts + torch.tensor([[1 - _BROAD - _HEAVY], [_BROAD], [_HEAVY]]).log()).logsumexp(0)
    weight = torch.cat([density(part.view(-1, *space.shape)) for part in points.split(1024)]) / log_q.exp()
    mass, error = weight.mean().item(), weight.std().item() / math.sqrt(len(weight))
    effective = (weight.sum().square() / weight.square().sum()).item()
    where, told = f"importance sampling, {_DRAWS} draws", f", {effective:.0f} effective"
    if not effective >= _FEW:
        return Reading("mass", where, f"{mass:.3g} +- {error:.2g}{told}: too few to tell", "unknown")
    return _judged(where, mass, error, kind, told)


def _heavy_tailed(u: Tensor) -> torch.distributions.StudentT:
    """Of each number on its own, about its median and as wide as it is between its quartiles; u [n, dims] in standard deviations."""
    low, middle, high = u.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=u.dtype), 0)
    return torch.distributions.StudentT(_FREEDOM, middle, ((high - low) / _QUARTILES).clamp_min(0.1))


def _log_mixture(points: Tensor, centers: Tensor, deviation: Tensor) -> Tensor:
    """log of the mean over centers of N(point; center, L L')."""
    white = torch.linalg.solve_triangular(deviation, points.T, upper=False).T
    about = torch.linalg.solve_triangular(deviation, centers.T, upper=False).T
    log_norm = deviation.diagonal().log().sum() + 0.5 * points.shape[1] * math.log(2 * math.pi)
    return (-0.5 * torch.cdist(white, about).square()).logsumexp(1) - math.log(len(centers)) - log_norm
