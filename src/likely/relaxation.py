r"""How discrete data are lifted to the reals and put back: dequantization, its log-volumes, and cells.

    log p(x) >= E_q(u|x) [ log p(u) - log q(u|x) ]        (an equality where u is a function of x)

`relax` draws u ~ q(u|x) and returns -log q(u|x) in nats; `snap` is the way back. Per support:

    real      u = (x - center) / scale,                    nats = -log scale          (exact)
    ordinal,  u = (i + w - center) / scale, w ~ U[0, 1),   nats = -log scale          (a bound)
    decimal   where x is the integer i on the data's grid; w ~ q(w | x) may be learnt (`dequantization`): -log q(w | x) is added
    nominal   K <= 16: K normals whose largest is swapped into place x,
              nats = -log K - sum log N(u_k)               (argmax surjection, a bound)
              K = 2 or K > 16: one half-normal per binary digit of x, its sign the digit,
              nats = -sum log 2 N(u_b)
    missing   of a number: a half-normal flag as above and a filler, u ~ N(0, 1) where numbers are unbounded
              and uniform over the range of an ordinal (so that no mass lies outside it), nats = -log density;
              of a nominal: one more category

Everything here is reached through the methods of `Space`.

References:
    | RNADE: The real-valued neural autoregressive density-estimator (Uria et al., 2013) | https://arxiv.org/abs/1306.0186
    | Argmax flows and multinomial diffusion (Hoogeboom et al., 2021) | https://arxiv.org/abs/2102.05379
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from likely.logprob import LogProb, compose
from likely.noise import Noise, log_mean_exp
from likely.support import MISSING, Support, from_grid, to_grid

if TYPE_CHECKING:
    from likely.space import Space

__all__ = ["Relaxed", "Within", "affine", "cells", "context", "per_number", "relax", "snap"]

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class Relaxed:
    """Discrete data lifted to the reals: `value` [draws * batch, ...], draw-major, and -log q(u|x) in `nats`."""

    value: Float[Tensor, "rows ..."]
    nats: Float[Tensor, " rows"]
    exact: bool
    draws: int = 1
    how: str = "uniform dequantization"

    def log_prob(self, density: LogProb) -> LogProb:
        """log p(x) from the model's log-density at `value`, the draws joined by log mean exp, their errors by their shares in it."""
        log_w = density.nats.double() + self.nats
        nats, stderr = log_mean_exp(log_w, self.draws), None
        if density.stderr is not None:
            share = log_w.view(self.draws, -1).softmax(0)
            stderr = (share * density.stderr.view(self.draws, -1)).square().sum(0).sqrt()
        kind = density.kind if self.exact else compose("lower bound", density.kind)
        return LogProb(nats, kind, stderr=stderr, how="; ".join(h for h in (density.how, self.told) if h))

    @property
    def told(self) -> str:
        """What a bound by these draws rests on; nothing where they are exact."""
        return "" if self.exact else f"{self.how}, K={self.draws}"


@dataclass(frozen=True)
class Within:
    """Shares w [draws * batch, numbers, ...] of their cells that numbers are lifted to, -log q(w|x) in `nats`, and what q is called."""

    share: Float[Tensor, "rows ..."]
    nats: Float[Tensor, " rows"]
    law: str


# --- numbers ------------------------------------------------------------------------------------------


def per_number(values: Sequence[float], like: Tensor) -> Tensor:
    """One value per numeric entry, float64, shaped to broadcast over `like` [batch, numbers, ...]."""
    return torch.tensor(values, dtype=torch.float64, device=like.device).view(-1, *[1] * (like.ndim - 2))


def affine(space: "Space", like: Tensor) -> tuple[Tensor, Tensor]:
    """Center and scale of the numeric entries, broadcast over `like`."""
    supports = _numeric(space)
    return per_number([s.center for s in supports], like), per_number([s.scale for s in supports], like)


def _numeric(space: "Space") -> list[Support]:
    return [space.supports[i] for i in space.numbers]


def _grid_index(space: "Space", x: Tensor) -> Tensor:
    """Codes of the numeric entries -> grid indices (only decimals step over -1)."""
    decimal = per_number([s.kind == "decimal" for s in _numeric(space)], x)
    return torch.where(decimal.bool(), to_grid(x), x)


# --- there --------------------------------------------------------------------------------------------


def relax(space: "Space", x: Tensor, draws: int, noise: Noise | None, within: Within | None = None) -> Relaxed:
    """See `Space.relax`."""
    exact = not space.discrete and not space.flags
    noise = Noise(x, 1) if exact else noise or Noise(x, draws)
    x = noise.repeat(x)
    parts = [_relax_numbers(space, x[:, space.numbers] if space.nominals else x, noise, within)] if space.numbers else []
    parts += [_relax_nominal(x[:, i], space.supports[i], noise) for i in space.nominals]
    values, nats = zip(*parts, strict=True)
    value, total = torch.cat(values, 1).to(torch.get_default_dtype()), torch.stack(nats).sum(0)
    return Relaxed(value, total, exact, noise.draws, f"{within.law if within else 'uniform'} dequantization")


def _relax_numbers(space: "Space", x: Tensor, noise: Noise, within: Within | None) -> tuple[Tensor, Tensor]:
    """Numeric entries -> (values and missing flags, nats)."""

    def share() -> Tensor:
        return noise.uniform(*x.shape[1:]) if within is None else within.share

    more = 0.0 if within is None else within.nats
    number = _grid_index(space, x).double() + share() if space.discrete else x.double()
    center, scale = affine(space, x)
    value, nats = (number - center) / scale, -scale.log().expand_as(number)
    if not space.flags:
        return value, _flat_sum(nats) + more
    may_miss = per_number([s.missing for s in _numeric(space)], x).bool()
    lost = may_miss & (x == MISSING if space.discrete else x.isnan())
    filler, filler_nats = _filler(space, x, share())
    value, nats = torch.where(lost, filler, value), torch.where(lost, filler_nats, nats)
    flag, flag_nats = _relax_sign(lost[:, [s.missing for s in _numeric(space)]], noise)
    return torch.cat([value, flag], 1), _flat_sum(nats) + flag_nats + more


def _filler(space: "Space", x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """What stands for a missing number, from its share w in (0, 1), and minus its log-density where that is uniform."""
    center, scale = affine(space, x)
    levels = per_number([s.levels for s in _numeric(space)], x)
    u = torch.special.ndtri(w)
    value = torch.where(levels > 0, (levels * w - center) / scale, u)
    return value, torch.where(levels > 0, (levels.clamp_min(1) / scale).log(), _normal_nats(u))


def _relax_sign(positive: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """One half-normal per bit, its sign the bit, and the nats of the density 2 N(u)."""
    u = noise.normal(*positive.shape[1:]).abs()
    return torch.where(positive, u, -u), _flat_sum(_normal_nats(u) - math.log(2))


def _relax_nominal(code: Tensor, s: Support, noise: Noise) -> tuple[Tensor, Tensor]:
    """Codes [batch, ...] -> reals [batch, s.codes, ...] and nats; a missing cell is the last state."""
    states = s.levels + s.missing
    code = torch.where(code < 0, states - 1, code).long()  # floats in a table that has reals, too
    if s.codes != states:
        digits = torch.stack([(code >> b) & 1 for b in range(s.codes)], 1)
        return _relax_sign(digits.bool(), noise)
    u = noise.normal(states, *code.shape[1:])
    place, top = code[:, None], u.argmax(1, keepdim=True)
    largest, displaced = u.gather(1, top), u.gather(1, place)
    u = u.scatter(1, top, displaced).scatter(1, place, largest)
    return u, _flat_sum(_normal_nats(u).sum(1, keepdim=True) - math.log(states))


def _normal_nats(u: Tensor) -> Tensor:
    """-log N(u; 0, 1)."""
    return 0.5 * u.square() + _LOG_SQRT_2PI


def _flat_sum(nats: Tensor) -> Tensor:
    return nats.double().flatten(1).sum(1)


def context(space: "Space", x: Tensor) -> Tensor:
    """What a net is told of discrete examples [batch, *shape], laid out as by `relax` but without noise.

    Numbers are the middles of their cells, 0 where missing; flags, and the codes of categories, are 0 or 1.
    """
    parts: list[Tensor] = []
    if space.numbers:
        codes, may_miss = x[:, space.numbers], [s.missing for s in _numeric(space)]
        center, scale = affine(space, codes)
        lost = (codes == MISSING) & per_number(may_miss, codes).bool()
        parts += [((_grid_index(space, codes) + 0.5 - center) / scale).masked_fill(lost, 0.0), lost[:, may_miss]]
    for i in space.nominals:
        s = space.supports[i]
        states = s.levels + s.missing
        code = torch.where(x[:, i] < 0, states - 1, x[:, i])
        parts.append(torch.stack([code == k if s.codes == states else (code >> k) & 1 for k in range(s.codes)], 1))
    return torch.cat([part.to(torch.get_default_dtype()) for part in parts], 1)


# --- and back -----------------------------------------------------------------------------------------


def snap(space: "Space", u: Tensor) -> Tensor:
    """See `Space.snap`."""
    count, flags = len(space.numbers), len(space.flags)
    rest = u[:, count + flags :]
    out = torch.empty(len(u), *space.shape, dtype=space.dtype, device=u.device)
    if count:
        out[:, space.numbers] = _snap_numbers(space, u[:, :count].double(), u[:, count : count + flags] > 0)
    for i in space.nominals:
        block, rest = rest[:, : space.supports[i].codes], rest[:, space.supports[i].codes :]
        out[:, i] = _snap_nominal(block, space.supports[i])
    return out


def _snap_numbers(space: "Space", u: Tensor, lost: Tensor) -> Tensor:
    supports = _numeric(space)
    center, scale = affine(space, u)
    value = u * scale + center
    if not space.discrete:
        out, empty = value.to(space.dtype), math.nan
    else:
        top = per_number([s.levels - 1 if s.kind == "ordinal" else 2.0**52 for s in supports], value)
        bottom = per_number([0.0 if s.kind == "ordinal" else -(2.0**52) for s in supports], value)
        out, empty = from_grid(value.floor().clamp(bottom, top).long()), MISSING
    for j, k in enumerate(k for k, s in enumerate(supports) if s.missing):
        out[:, k] = out[:, k].masked_fill(lost[:, j], empty)
    return out


def _snap_nominal(u: Tensor, s: Support) -> Tensor:
    states = s.levels + s.missing
    if s.codes == states:
        code = u.argmax(1)
    else:
        place = torch.tensor([1 << b for b in range(s.codes)], device=u.device).view(-1, *[1] * (u.ndim - 2))
        code = ((u > 0) * place).sum(1).clamp_max(states - 1)
    return torch.where(code == states - 1, MISSING, code) if s.missing else code


def cells(space: "Space", x: Tensor) -> tuple[Tensor, Tensor]:
    """See `Space.cells`."""
    codes = x[:, space.numbers]
    index, (center, scale) = _grid_index(space, codes).double(), affine(space, codes)
    levels = per_number([s.levels if s.kind == "ordinal" else math.inf for s in _numeric(space)], codes)
    lost = codes == MISSING
    lower = torch.where(lost | ((index <= 0) & levels.isfinite()), -math.inf, (index - center) / scale)
    upper = torch.where(lost | (index >= levels - 1), math.inf, (index + 1 - center) / scale)
    return lower, upper
