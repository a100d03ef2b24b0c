r"""Probes of an invertible map f from relaxed data u to noise z, on trained weights.

Round trip: the largest |f^-1(f(s u)) - s u| at data u scaled by s, in float32 and on a copy in float64: what is lost only in
float32 is rounding, what is lost in both is no inverse.

Log-determinant: against log |det J| of autograd's Jacobian in float64, of both directions.

Onto: z ~ N(0, I), and z far out, must return from f(f^-1(z)). A strictly monotone map that saturates passes every test of
Jacobians and round trips of data, and its density integrates to less than one. By the change of variables

    int p(u) du = int over f(R^d) of N(z; 0, I) dz = E_z [ 1(z returns) |det f'| |det (f^-1)'| ]

where the determinants cancel if both are right: the mass is the mean of these weights, at an effective sample size near their number.
"""

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from likely.bijections import Bijection, Domains
from likely.health.report import Reading, Subject, by_size
from likely.invertible import Invertible

__all__ = ["SCALES", "base_mass", "log_determinant", "onto", "precision", "round_trip", "within"]

SCALES = (1, 3, 10, 100)
_ROWS, _DRAWS = 64, 512
_BARELY = 0.1  # of what counts as returned
_MOST_DIMS = 1024  # for a Jacobian
_RETURNED, _ROUGHLY = 1e-3, 0.05  # from itself, relative to its size, a noise counts as returned: in float64; in float32, or solved for


def _double(model: Invertible) -> Bijection:
    return copy.deepcopy(model.map).double()


def _given(subject: Subject, n: int, dtype: torch.dtype) -> Tensor | None:
    """Rows of `given` for n probes, repeated as needed."""
    if subject.given is None:
        return None
    given = subject.given[torch.arange(n) % len(subject.given)]
    return given.to(dtype) if given.is_floating_point() else given


def _relaxed(subject: Subject, n: int) -> tuple[Tensor, Tensor | None]:
    x = subject.x[:n]
    return subject.model.space.relax(x).value, None if subject.given is None else subject.given[:n]


def within(model: Invertible, u: Tensor) -> Tensor:
    """Relaxed examples with ordinals put back into their range, half a level from its ends, and numbers between their bounds; there the
    map is not defined beyond."""
    space, u = model.space, u.clone()
    for part in model.map.modules():
        u = part.clamped(u) if isinstance(part, Domains) else u
    for place, i in enumerate(space.numbers):
        s = space.supports[i]
        if s.kind == "ordinal":
            u[:, place] = u[:, place].clamp((0.5 - s.center) / s.scale, (s.levels - 0.5 - s.center) / s.scale)
    return u


def bounded(model: Invertible) -> bool:
    """Whether some entry ends somewhere."""
    return any(s.kind == "ordinal" for s in model.space.supports) or any(isinstance(part, Domains) for part in model.map.modules())


def _error(back: Tensor, there: Tensor) -> tuple[float, float]:
    """Largest difference, and the largest relative to the size of what it is a difference from; NaN if any is."""
    gap = (back - there).abs()
    relative = gap / there.abs().clamp_min(1)
    return gap.nan_to_num(math.inf).max().item(), relative.nan_to_num(math.inf).max().item()


def round_trip(subject: Subject, scale: int) -> Iterator[Reading]:
    model = subject.model
    assert isinstance(model, Invertible)
    u, _ = _relaxed(subject, _ROWS)
    u = within(model, u * scale)
    for dtype, mapping in ((torch.float32, model.map), (torch.float64, _double(model))):
        there, given = u.to(dtype), _given(subject, len(u), dtype)
        back = mapping.inverse(mapping(there, given)[0], given)[0]
        error, relative = _error(back, there)
        verdict = by_size(relative, 1e-3, 0.1 if dtype == torch.float32 else 0.01)
        if scale > 3 and verdict == "broken" and math.isfinite(error):
            verdict = "doubtful"  # there are no data
        yield Reading("round trip", f"{str(dtype)[6:]}, data x {scale}", f"largest error {error:.1e}", verdict)


def _jacobian_log_det(mapping: Bijection, u: Tensor, given: Tensor | None) -> Tensor:
    """log |det df/du| at one example u [1, ...] from autograd: a copy for each row of the Jacobian, so one pass back."""
    dims = u.numel()
    copies = u.expand(dims, *u.shape[1:]).clone().requires_grad_()
    with torch.enable_grad():
        z = mapping(copies, None if given is None else given.expand(dims, *given.shape[1:]))[0]
    (rows,) = torch.autograd.grad(z, copies, torch.eye(dims, dtype=z.dtype))
    return torch.linalg.slogdet(rows.flatten(1)).logabsdet


def log_determinant(subject: Subject) -> Iterator[Reading]:
    model = subject.model
    assert isinstance(model, Invertible)
    dims = model.latent.dims
    if dims > _MOST_DIMS:
        yield Reading("log-determinant", "at data points", f"not taken: a Jacobian of {dims} x {dims}", "unknown")
        return
    mapping = _double(model)
    points = 8 if dims <= 16 else 4 if dims <= 128 else 1
    u = within(model, _relaxed(subject, points)[0]).double()
    given = _given(subject, len(u), torch.float64)
    z, claimed = mapping(u, given)
    back, inverse = mapping.inverse(z, given)
    rows = [None] * len(u) if given is None else list(given.split(1))
    true = torch.stack([_jacobian_log_det(mapping, row[None], g) for row, g in zip(u, rows, strict=True)])
    there = torch.stack([_jacobian_log_det(mapping, row[None], g) for row, g in zip(back, rows, strict=True)])
    sound, broken = (1e-3, 0.1) if model.log_prob(subject.x[:1], _head(subject)).kind != "numerical" else (0.05, 0.5)
    for where, gap in (("data to noise", claimed - true), ("noise to data", inverse + there)):
        error = gap.abs().max().item()
        yield Reading("log-determinant", f"{where}, {len(u)} points", f"{error:.1e} nats from autograd", by_size(error, sound, broken))


def _head(subject: Subject) -> Tensor | None:
    return None if subject.given is None else subject.given[:1]


def precision(subject: Subject) -> Iterator[Reading]:
    """log p of the same relaxed data in float32 and float64."""
    model = subject.model
    assert isinstance(model, Invertible)
    u, given = _relaxed(subject, _ROWS)
    single = model.log_density(u, given)
    z, log_det = _double(model)(u.double(), _given(subject, len(u), torch.float64))
    double = log_det - 0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
    error = (single - double).abs().max().item()
    yield Reading("precision", "float32 from float64, data", f"log p differs by {error:.1e} nats", by_size(error, 0.01, 1.0))


def _returned(subject: Subject, mapping: Bijection, z: Tensor) -> tuple[Tensor, Tensor]:
    """How far noise is from itself when it comes back, in shares of what counts as returned, [n]; the sum of both log-determinants."""
    assert isinstance(subject.model, Invertible)
    given, solved = _given(subject, len(z), z.dtype), subject.model.log_prob(subject.x[:1], _head(subject)).kind == "numerical"
    u, inverse = mapping.inverse(z, given)
    there, forward = mapping(u, given)
    gap = ((there - z).abs() / z.abs().clamp_min(1)).amax(1)
    return gap / (_ROUGHLY if solved or z.dtype == torch.float32 else _RETURNED), forward + inverse


def onto(subject: Subject) -> Iterator[Reading]:
    model = subject.model
    assert isinstance(model, Invertible)
    mapping = _double(model)
    z = torch.randn(_DRAWS, model.latent.dims, dtype=torch.float64)
    for dtype, there in ((torch.float32, model.map), (torch.float64, mapping)):
        gap, _ = _returned(subject, there, z.to(dtype))
        lost = 1 - (gap < 1).double().mean().item()  # NaN is lost
        yield Reading("onto", f"{str(dtype)[6:]}, {len(z)} draws of noise", f"{lost:.1%} do not return", by_size(lost, 0.002, 0.02))
    if bounded(model):
        return  # far noise is mapped within rounding of the ends of the range, by right
    for radius in (10.0, 100.0, 1000.0):
        far = (z * radius / z.norm(dim=1, keepdim=True))[:_ROWS]
        gap, _ = _returned(subject, mapping, far)
        lost = 1 - (gap < 1).double().mean().item()
        yield Reading("onto", f"float64, noise at |z| = {radius:g}", f"{lost:.1%} do not return", "sound" if lost == 0 else "doubtful")


def base_mass(subject: Subject) -> Iterator[Reading]:
    """The error joins that of the mean, that a loss of less than one draw is not seen, and what returns by a hair."""
    model = subject.model
    assert isinstance(model, Invertible)
    z = torch.randn(4 * _DRAWS, model.latent.dims, dtype=torch.float64)
    gap, log_weight = _returned(subject, _double(model), z)
    weight = torch.where(gap < 1, log_weight, -math.inf).exp()
    barely = weight[gap > _BARELY].sum().item() / len(weight)
    mean, error = weight.mean().item(), math.hypot(weight.std().item() / math.sqrt(len(weight)), 1 / len(weight), barely)
    effective = (weight.sum().square() / weight.square().sum()).item() if mean else 0.0
    told = f"{mean:.4f} +- {error:.4f}, {effective:.0f} effective of {len(z)}"
    yield Reading("mass of the map", "in the space of noise", told, by_size(abs(mean - 1), max(0.005, 3 * error), max(0.05, 5 * error)))
