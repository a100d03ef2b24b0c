r"""p(unknown | known) of a flow by its own order, where that begins with what is known: exact, and as quick as a draw.

    z_S = f_S(u_K)   for as many entries S of z = f(u) as are known, K        then        z_R ~ N(0, I),   u = f^-1(z_S, z_R)

Whether there is such an S is seen from the map itself: those entries of z that stay as they are, bit for bit, whatever stands where
u is unknown. Autoregressive maps that nothing permutes have one for each mask that leaves only later entries open, and so
does a single coupling for the half that it does not move.

A known number on a grid is a cell, in which its noise is as unknown as the gaps are: of `particles` places in it one is chosen in
proportion to p(u_K) = N(f_S(u_K); 0, I) |det df_S/du_K|, the determinant by automatic differentiation.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from likely.bijections import chunks
from likely.space import Space

__all__ = ["fill_by_own_order"]

_PROBES, _PROBED = 4, 8  # values of what is unknown, in how many examples
_MOST_KNOWN = 64  # cells, for each of which the determinant takes a pass
_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)

ToNoise = Callable[[Tensor, Tensor | None], Tensor]


def fill_by_own_order(
    space: Space, to_noise: ToNoise, from_noise: ToNoise, x: Tensor, known: Tensor, given: Tensor | None, particles: int
) -> tuple[Tensor, Tensor] | None:
    """Fill the gaps of examples that all have the same.

    Args:
        to_noise: relaxed examples [n, *relaxed shape] and their `given` -> z [n, dims], differentiable; `from_noise` the way back.
        x: [batch, *shape]; known: bool [*shape].
        particles: places in the cells of what is known, for each example.

    Returns: examples and the effective number of places each rests on, infinite for reals; None where the order does not allow it, or where
    categories are known or something may be missing.
    """
    if bool(known.all()):
        return x, torch.full((len(x),), math.inf, dtype=torch.float64, device=x.device)
    there = _coordinates(space, known)
    if there is None or (space.discrete and int(there.sum()) > _MOST_KNOWN):
        return None
    x = torch.where(known, x, torch.zeros((), dtype=x.dtype, device=x.device))
    kept = _kept(space, to_noise, from_noise, x[:_PROBED], there, None if given is None else given[:_PROBED])
    if int(kept.sum()) != int(there.sum()):
        return None
    u, effective = _placed(space, to_noise, x, there, kept, given, particles if space.discrete else 1)
    z = to_noise(u, given)
    z = torch.where(kept, z, torch.randn_like(z))
    return torch.where(known, x, space.snap(from_noise(z, given))), effective


def _coordinates(space: Space, known: Tensor) -> Tensor | None:
    """Which relaxed entries known numbers are, bool [*relaxed shape]; None where categories are known or cells may be missing."""
    if any(s.missing for s in space.supports) or bool(known[space.nominals].any()):
        return None
    codes = sum(space.supports[i].codes for i in space.nominals)
    return torch.cat([known[space.numbers], known.new_zeros(codes, *known.shape[1:])])


def _kept(space: Space, to_noise: ToNoise, from_noise: ToNoise, x: Tensor, there: Tensor, given: Tensor | None) -> Tensor:
    """Entries of z that do not change with what is unknown, for which draws of the flow stand in; bool [dims]."""
    u = space.relax(x).value
    z = to_noise(u, given)
    others = (from_noise(torch.randn_like(z), given) for _ in range(_PROBES))
    images = [to_noise(torch.where(there, u, other), given) for other in others]
    return torch.cat([image == z for image in images]).all(0)


def _placed(
    space: Space, to_noise: ToNoise, x: Tensor, there: Tensor, kept: Tensor, given: Tensor | None, particles: int
) -> tuple[Tensor, Tensor]:
    """Relaxed examples whose known entries follow p(u_K) in their cells, and how many places that rests on."""
    u = space.relax(x, draws=particles).value
    if not space.discrete or not bool(there.any()):
        return u[: len(x)], torch.full((len(x),), math.inf, dtype=torch.float64, device=x.device)
    rows = None if given is None else given.repeat(particles, *[1] * (given.ndim - 1))
    log_w = torch.cat([_log_density(to_noise, part, there, kept, g) for part, g in chunks(u, rows)]).view(particles, -1)
    weight = log_w.softmax(0)
    chosen = torch.multinomial(weight.T, 1)[:, 0] * len(x) + torch.arange(len(x), device=x.device)
    return u[chosen], 1 / weight.square().sum(0)


def _log_density(to_noise: ToNoise, u: Tensor, there: Tensor, kept: Tensor, given: Tensor | None) -> Tensor:
    """log p(u_K) [n], float64."""
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        z = to_noise(u, given)[:, kept]
        rows = [torch.autograd.grad(z[:, i].sum(), u, retain_graph=True)[0][:, there] for i in range(z.shape[1])]
    jacobian = torch.stack(rows, 1).double()
    return torch.linalg.slogdet(jacobian).logabsdet - (0.5 * z.detach().double().square() + _LOG_SQRT_2PI).sum(1)
