r"""p(unknown | known) from a joint density p(u) over relaxed data, for any mask, numbers and categories alike.

What is known of a real entry is its value; of a discrete one, the cell or region of reals that its value is relaxed to, within which its
noise is as unknown as the gaps are. A standard normal v is mapped onto all u that agree with what is known,

    a known level        u = its cell's lower edge + width Phi(v)                       uniform in the cell
    a known category     its code's u the largest of K normals, the others truncated below it
    missing or there     u = +- Phi^-1(1 - Phi(-v) / 2)                                 a half-normal of known sign
    an unknown number    u = m + L v, a normal fitted to the model's own samples, given the known numbers;
                         of an ordinal on the probit scale of its range
    an unknown category  u = v

so v ~ N(0, I) has the density q(u), known in closed form, and p(u) restricted to what is known is N(v; 0, I) p(u) / q(u). Particles
are tempered from the one to the other (`solve.tempering`). A gap is never filled with "missing".
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from likely.abilities import Filled
from likely.solve.tempering import temper_particles
from likely.space import MISSING, Space, Support, to_grid

__all__ = ["REFERENCE", "complete"]

REFERENCE = 1024  # samples that the normal is fitted to
_WIDER = 1.5  # the normal's deviations than theirs
_RIDGE = 0.05  # share of the diagonal in the covariance
_FARTHEST = 8.0  # that the normal's mean goes, in deviations of the data
_FORBIDDEN = 1e9  # energy
_EPS = 1e-12
_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)

LogDensity = Callable[[Tensor, Tensor | None], Tensor]


class _Lifted(NamedTuple):
    """Coordinates u of the relaxed space, and -log q(u) [n]."""

    u: Tensor
    nats: Tensor


@dataclass(frozen=True)
class Reference:
    """Mean [numbers] and covariance of a model's numbers on the free scale."""

    mean: Tensor
    cov: Tensor

    @classmethod
    def of(cls, u: Tensor, numbers: "Numbers") -> "Reference":
        """From relaxed samples u."""
        free = numbers.freed(u.double()[:, : len(numbers.space.numbers)].flatten(1)).nan_to_num(0.0, 6.0, -6.0).clamp(-6 * 4, 6 * 4)
        cov = free.T.cov().view(free.shape[1], -1)
        return cls(free.mean(0), (1 - _RIDGE) * cov + _RIDGE * torch.diag(cov.diagonal() + 1e-3))

    def given(self, value: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
        """Means [n, free] and Cholesky factor of the free numbers (bool [numbers]) given the others' values [n, numbers]."""
        there, cov = ~free, self.cov
        gain = torch.linalg.solve(cov[there][:, there], cov[there][:, free]).T if bool(there.any()) else cov.new_zeros(int(free.sum()), 0)
        mean = (self.mean[free] + (value[:, there] - self.mean[there]) @ gain.T).clamp(-_FARTHEST, _FARTHEST)
        rest = cov[free][:, free] - gain @ cov[there][:, free]
        return mean, _WIDER * torch.linalg.cholesky(rest + 1e-6 * torch.eye(len(rest), dtype=rest.dtype, device=rest.device))


class Numbers:
    """The numeric entries of a space, flattened: cells, and the free scale, which is probit for ordinals."""

    def __init__(self, space: Space, device: torch.device) -> None:
        self.space = space
        per = math.prod(space.shape[1:])
        supports = [space.supports[i] for i in space.numbers]

        def each(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device=device).repeat_interleave(per)

        self.center, self.scale = each([s.center for s in supports]), each([s.scale for s in supports])
        self.ordinal = each([s.kind == "ordinal" for s in supports]).bool()
        self.decimal, self.real = each([s.kind == "decimal" for s in supports]).bool(), each([s.kind == "real" for s in supports]).bool()
        self.low = -self.center / self.scale
        self.width = each([float(s.levels or 1) for s in supports]) / self.scale

    def cell(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Lower edge and width of the cells of values x [n, numbers]; a real has no width."""
        index = torch.where(self.decimal, to_grid(x.long() if not x.is_floating_point() else x.nan_to_num().long()).to(x.dtype), x).double()
        return (index - self.center) / self.scale, (~self.real).double() / self.scale

    def freed(self, u: Tensor) -> Tensor:
        share = ((u - self.low) / self.width).clamp(1e-4, 1 - 1e-4)
        return torch.where(self.ordinal, torch.special.ndtri(share), u)

    def bound(self, t: Tensor) -> _Lifted:
        """The way back from the free scale, and log |du/dt| of each number."""
        inside = self.low + self.width * torch.special.ndtr(t)
        log_slope = self.width.log() - 0.5 * t.square() - _LOG_SQRT_2PI
        return _Lifted(torch.where(self.ordinal, inside, t), torch.where(self.ordinal, log_slope, 0.0))


class Region:
    """All u that agree with what is known of examples x [n, *shape], as the image of v ~ N(0, I)."""

    def __init__(self, space: Space, x: Tensor, known: Tensor, reference: Reference, numbers: Numbers, free: Tensor) -> None:
        self.space, self.numbers, self.free = space, numbers, free
        self.x, self.known = x, known
        if space.numbers:
            value = x[:, space.numbers].flatten(1)
            self.edge, self.cell_width = numbers.cell(value.nan_to_num() if value.is_floating_point() else value)
            middle = numbers.freed(self.edge + 0.5 * self.cell_width)
            self.mean, self.deviation = reference.given(middle, free) if bool(free.any()) else (middle[:, :0], middle.new_zeros(0, 0))

    def lift(self, v: Tensor) -> _Lifted:
        """v [n, relaxed dims] -> relaxed examples [n, *relaxed shape]."""
        parts, nats, at = [], v.new_zeros(len(v)), 0
        for width, lifted in self._blocks():
            u, more = lifted(v[:, at : at + width])
            parts, nats, at = [*parts, u], nats + more, at + width
        return _Lifted(torch.cat(parts, 1).view(len(v), *self.space.relaxed.shape), nats)

    def _blocks(self) -> list[tuple[int, Callable[[Tensor], _Lifted]]]:
        space = self.space
        blocks: list[tuple[int, Callable[[Tensor], _Lifted]]] = []
        if space.numbers:
            blocks.append((len(self.free), self._numbers))
        if space.flags:
            blocks.append((len(space.flags), self._flags))
        blocks += [(space.supports[i].codes, lambda v, i=i: self._nominal(v, i)) for i in space.nominals]
        return blocks

    def _numbers(self, v: Tensor) -> _Lifted:
        u = self.edge + self.cell_width * torch.special.ndtr(v)
        if not bool(self.free.any()):
            return _Lifted(u, v.new_zeros(len(v)))
        t = self.mean + v[:, self.free] @ self.deviation.T
        whole = torch.zeros_like(v).index_copy(1, self.free.nonzero().squeeze(1), t)
        bound, log_slope = self.numbers.bound(whole)
        # the normal's own density of v, and the slope from v to u, but for a constant
        nats = (0.5 * v.square() * self.free).sum(1) + (log_slope * self.free).sum(1)
        return _Lifted(torch.where(self.free, bound, u), nats)

    def _flags(self, v: Tensor) -> _Lifted:
        """Of a gap, there; of what is known, as it is."""
        flagged = self.x[:, self.space.flags]
        lost = (flagged.isnan() if flagged.is_floating_point() else flagged == MISSING) & self.known[:, self.space.flags]
        return _signed(v, lost)

    def _nominal(self, v: Tensor, i: int) -> _Lifted:
        s, known = self.space.supports[i], self.known[:, i]
        states = s.levels + s.missing
        code = torch.where(self.x[:, i] < 0, states - 1, self.x[:, i]).long().clamp(0, states - 1)
        if s.codes != states:
            digits = torch.stack([(code >> b) & 1 for b in range(s.codes)], 1).bool()
            held, free = _signed(v, digits), _Lifted(v, _normal_nats(v).sum(1))
            if s.missing or states < 2**s.codes:
                place = torch.tensor([1 << b for b in range(s.codes)], device=v.device)
                bad = ((v > 0) * place).sum(1) >= states - s.missing
                free = _Lifted(v, free.nats.masked_fill(bad, -_FORBIDDEN))
        else:
            held, free = _topped(v, code), _unmissed(v) if s.missing else _Lifted(v, _normal_nats(v).sum(1))
        return _Lifted(torch.where(known[:, None], held.u, free.u), torch.where(known, held.nats, free.nats))


def _normal_nats(u: Tensor) -> Tensor:
    """-log N(u; 0, 1)."""
    return 0.5 * u.square() + _LOG_SQRT_2PI


def _signed(v: Tensor, positive: Tensor) -> _Lifted:
    """Half-normals of a given sign."""
    size = -torch.special.ndtri((torch.special.ndtr(-v) / 2).clamp_min(1e-300))
    return _Lifted(torch.where(positive, size, -size), _normal_nats(size).sum(1) - v.shape[1] * math.log(2))


def _below(v: Tensor, most: Tensor) -> Tensor:
    """Normals truncated to lie below `most`."""
    return torch.special.ndtri((torch.special.ndtr(v) * torch.special.ndtr(most)).clamp(1e-300, 1 - _EPS))


def _topped(v: Tensor, code: Tensor) -> _Lifted:
    """K normals of which that at `code` is the largest, [n, K]."""
    place, count = code[:, None], v.shape[1]
    share = (torch.special.log_ndtr(v.gather(1, place)) / count).exp()
    top = torch.special.ndtri(share.clamp(1e-300, 1 - _EPS))
    u = torch.minimum(_below(v, top), top - 1e-6).scatter(1, place, top)  # in float32, too, no other is as large
    return _Lifted(u, _normal_nats(u).sum(1) - math.log(count))


def _unmissed(v: Tensor) -> _Lifted:
    """Normals of which the last is not the largest."""
    others = v[:, :-1]
    top = others.amax(1, keepdim=True)
    u = torch.cat([others, torch.minimum(_below(v[:, -1:], top), top - 1e-6)], 1)
    return _Lifted(u, _normal_nats(u).sum(1) + torch.special.log_ndtr(top[:, 0]))


def complete(
    space: Space, log_density: LogDensity, reference: Tensor, x: Tensor, known: Tensor, given: Tensor | None, draws: int, particles: int
) -> Filled:
    """Draw the unknown entries of examples.

    Args:
        log_density: of relaxed examples [n, *relaxed shape] and their `given`, nats [n], differentiable.
        reference: relaxed samples of the model, from which the particles' start is made.
        x, known: [batch, *shape]; what x holds where it is unknown is not looked at.
        particles: for each draw of each example.
    """
    known, given = known.repeat(draws, *[1] * (known.ndim - 1)), None if given is None else given.repeat(draws, *[1] * (given.ndim - 1))
    batch, x = len(x), torch.where(known, x.repeat(draws, *[1] * (x.ndim - 1)), torch.zeros((), dtype=x.dtype, device=x.device))
    numbers = Numbers(space, x.device)
    normal = Reference.of(reference, numbers) if space.numbers else Reference(x.new_zeros(0).double(), x.new_zeros(0, 0).double())
    value, there = x[:, space.numbers].flatten(1), known[:, space.numbers].flatten(1)
    lost = value.isnan() if value.is_floating_point() else (value == MISSING) & _may_miss(space, value)
    free, filled = ~there | lost, x.clone()
    effective, told = torch.full((len(x),), math.inf, dtype=torch.float64, device=x.device), []
    patterns, which = free.unique(dim=0, return_inverse=True)
    for k, pattern in enumerate(patterns):
        rows = ((which == k) & ~known.flatten(1).all(1)).nonzero().squeeze(1)
        if not len(rows):
            continue
        some = rows.repeat_interleave(particles)
        region, condition = Region(space, x[some], known[some], normal, numbers, pattern), None if given is None else given[some]

        def energy(v: Tensor, region: Region = region, condition: Tensor | None = condition) -> Tensor:
            u, nats = region.lift(v)
            return -(log_density(u.to(torch.get_default_dtype()), condition) + nats)

        done = temper_particles(energy, len(rows), particles, space.relaxed.dims, x)
        chosen = torch.multinomial(done.log_weight.exp(), 1) + particles * torch.arange(len(rows), device=x.device)[:, None]
        u = region.lift(done.v.flatten(0, 1)).u[chosen.squeeze(1)]
        filled[rows], effective[rows] = torch.where(known[rows], x[rows], space.snap(u.to(torch.get_default_dtype()))), done.effective
        told.append((done.acceptance, done.stages))
    accepted = sum(a for a, _ in told) / max(1, len(told))
    how = f"{particles} particles tempered by Hamiltonian proposals, {accepted:.0%} accepted"
    return Filled(filled.view(draws, batch, *x.shape[1:]), False, effective.view(draws, batch), how)


def _may_miss(space: Space, value: Tensor) -> Tensor:
    supports: list[Support] = [space.supports[i] for i in space.numbers]
    each = torch.tensor([s.missing for s in supports], device=value.device)
    return each.repeat_interleave(value.shape[1] // max(1, len(supports)))
