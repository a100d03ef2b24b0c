r"""Sets of points: their padding, their number, and their order, in which a set and a list differ.

A set of n points in D dimensions is n rows of x [N, D], the others padded with -1, or NaN where real. Points are relaxed each by itself:

    log p(set) = log p(n) + log p(points | n) + log (n! / prod_i m_i!)

p(n) is by counts of the training split, which all models share. The last term is there where sets are `unordered`, with m_i the
number of equal points: so many lists are the same set, and a model for which points are exchangeable holds all equally likely.

References:
    | Exchangeable variable models (Niepert and Domingos, 2014) | https://arxiv.org/abs/1405.0501
    | Deep sets (Zaheer et al., 2017) | https://arxiv.org/abs/1703.06114
"""

import itertools
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from likely import relaxation
from likely.errors import DataError
from likely.noise import Noise
from likely.support import MISSING

if TYPE_CHECKING:
    from likely.space import Space

__all__ = ["check", "counts", "enumerated", "nats", "padded", "relax", "shares", "snap", "sorted_points", "there"]


def there(x: Tensor) -> Tensor:
    """Which points [..., N] of x [..., N, D] are no padding."""
    return ~(x.isnan() if x.is_floating_point() else x == MISSING).all(-1)


def counts(x: Tensor) -> Tensor:
    """Points of each set, [batch]."""
    return there(x).sum(1)


def padded(x: Tensor, counts: Tensor) -> Tensor:
    """x [batch, N, D] with all but the first `counts` points as padding."""
    beyond = torch.arange(x.shape[1], device=x.device) >= counts[:, None]
    return x.masked_fill(beyond[..., None], math.nan if x.is_floating_point() else MISSING)


def check(space: "Space", x: Tensor) -> None:
    """Raise a DataError for padding that is not at the end, for empty sets, and for values outside a space."""
    present, whole = there(x), ~(x.isnan() if x.is_floating_point() else x == MISSING).any(-1)
    if not bool((present == whole).all()):
        raise DataError("Some points of the sets have no value in some dimension.", "Remove or impute them first.")
    if not bool((present[:, :-1] | ~present[:, 1:]).all() & present[:, 0].all()):
        raise DataError("Sets are padded at their end, and have one point at least.", "Pass a list of arrays [points, dimensions].")
    if not space.variable and not bool(present.all()):
        raise DataError(f"Some sets have fewer points than {space.shape[0]}, as all of this space have.", "Load them with the others.")
    for i, s in enumerate(space.supports):
        values = x[..., i][present]
        if s.states is not None and bool((values < 0).any() | (values >= s.levels).any()):
            raise DataError(f"Values {int(values.min())}..{int(values.max())} in dimension {i} are outside 0..{s.levels - 1}.")
        if s.kind == "real" and not bool(values.isfinite().all()):
            raise DataError(f"Infinite values in dimension {i}.", "Remove or impute them first.")


# -- number and order ------------------------------------------------------------------------------------


def shares(space: "Space", x: Tensor) -> tuple[float, ...]:
    """How often sets have 1, 2, ..., N points; half a count is added to each number."""
    often = torch.bincount(counts(x) - 1, minlength=space.shape[0]).double() + 0.5
    return tuple((often / often.sum()).tolist())


def nats(space: "Space", x: Tensor) -> Tensor:
    """log p(n) where n varies, and log (n! / prod m_i!) where sets are unordered; float64 [batch]."""
    number, total = counts(x), torch.zeros(len(x), dtype=torch.float64, device=x.device)
    if space.variable:
        p = space.lengths or (1 / space.shape[0],) * space.shape[0]
        total = total + torch.tensor(p, dtype=torch.float64, device=x.device).log()[number - 1]
    if space.unordered:
        total = total + torch.lgamma(number + 1.0).double() - _equal(space, x)
    return total


def _equal(space: "Space", x: Tensor) -> Tensor:
    """sum_i log m_i! over the distinct points of each set; reals are taken to differ."""
    if not space.discrete:
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)
    same = (x[:, :, None] == x[:, None]).all(-1)
    earlier = (same.tril() & there(x)[:, None]).sum(2)  # of a point, how many equal ones there are up to it
    return earlier.clamp_min(1).double().log().sum(1)


def sorted_points(x: Tensor) -> Tensor:
    """Each set of x [batch, N, D] with its points in lexicographic order, padding last."""
    for i in reversed(range(x.shape[2])):
        key = x[..., i].double()
        key = key.masked_fill(~there(x), math.inf)
        order = key.argsort(dim=1, stable=True)
        x = x.gather(1, order[..., None].expand_as(x))
    return x


def enumerated(space: "Space", values: list[list[int]], limit: int) -> Tensor:
    """Every set of points whose coordinates take `values`, an unordered one once, its points in order."""
    points, (most, dims) = list(itertools.product(*values)), space.shape
    lists = itertools.combinations_with_replacement if space.unordered else _lists
    total = sum(math.comb(len(points) + n - 1, n) if space.unordered else len(points) ** n for n in _numbers(space))
    if total > limit:
        raise DataError(f"This space has more than {limit} states.")
    blank = ((MISSING,) * dims,)
    rows = [chosen + blank * (most - n) for n in _numbers(space) for chosen in lists(points, n)]
    return torch.tensor(rows, dtype=torch.int64).view(-1, most, dims)


def _numbers(space: "Space") -> range:
    return range(1 if space.variable else space.shape[0], space.shape[0] + 1)


def _lists(points: list[tuple[int, ...]], n: int) -> "itertools.product[tuple[tuple[int, ...], ...]]":
    return itertools.product(points, repeat=n)


# -- relaxation ------------------------------------------------------------------------------------------


def point(space: "Space") -> "Space":
    """The space of one point."""
    return replace(space, layout="columns", shape=space.shape[1:], variable=False, unordered=False, lengths=())


def relax(space: "Space", x: Tensor, draws: int, noise: Noise | None) -> relaxation.Relaxed:
    """See `Space.relax`; [draws * batch, N, width], NaN where there is no point."""
    exact = not space.discrete
    noise = Noise(x, 1) if exact else noise or Noise(x, draws)
    x, own = noise.repeat(x), point(space)
    present = there(x)
    rows = x.masked_fill(~present[..., None], 0).flatten(0, 1)
    where = None if exact else relaxation.Within(noise.uniform(*space.shape).flatten(0, 1), rows.new_zeros(len(rows)).double(), "uniform")
    relaxed = own.relax(rows, within=where)
    value = relaxed.value.unflatten(0, x.shape[:2]).masked_fill(~present[..., None], math.nan)
    each = (relaxed.nats.view(x.shape[:2]) * present).sum(1)
    return relaxation.Relaxed(value, each + nats(space, x), exact, noise.draws)


def snap(space: "Space", u: Tensor) -> Tensor:
    """See `Space.snap`; points that are NaN are padding."""
    present = there(u)
    x = point(space).snap(u.masked_fill(~present[..., None], 0.0).flatten(0, 1)).unflatten(0, u.shape[:2])
    return padded(x, present.sum(1))
