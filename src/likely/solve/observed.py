"""Examples as classical estimators want them: every entry a column; numbers on one axis, states one-hot."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from likely.solve.labels import shrink
from likely.space import MISSING, Space, Support, to_grid

__all__ = ["Observed", "flattened", "numbers_of", "state_of", "states_of"]


def flattened(space: Space) -> Space:
    """The same examples as rows of a table, one column per entry."""
    each = space.dims // len(space.supports)
    return Space.columns(*(s for s in space.supports for _ in range(each)))


def numbers_of(flat: Space, x: Tensor) -> Tensor:
    """Grid indices of numbers on a grid, reals themselves, NaN where missing [B, numbers], float64."""
    columns = [_number(x[:, i], flat.supports[i]) for i in flat.numbers]
    return torch.stack(columns, 1) if columns else torch.zeros(len(x), 0, dtype=torch.float64, device=x.device)


def _number(x: Tensor, s: Support) -> Tensor:
    if s.kind == "real":
        return x.double()
    lost = torch.isnan(x) | (x == MISSING)
    code = x.masked_fill(lost, 0).long()
    return (to_grid(code) if s.kind == "decimal" else code).double().masked_fill(lost, math.nan)


def states_of(flat: Space) -> list[int]:
    """Number of states of each nominal; a missing cell is one more, the last."""
    return [flat.supports[i].levels + flat.supports[i].missing for i in flat.nominals]


def state_of(x: Tensor, s: Support) -> Tensor:
    """State number of a nominal's values."""
    return torch.where(x < 0, s.levels, x).long()


@dataclass(frozen=True)
class Observed:
    """Training examples as sufficient statistics want them, float64.

    Attributes:
        number: middles of cells, or reals, on the relaxed scale, NaN where missing [n, numbers].
        lost: 1 where a number that may be missing is [n, flags].
        state: one-hot states of each nominal, padded to the most states [n, nominals, states].
        states: number of states of each nominal.
        floor: smallest standard deviation of each number: a tenth of a cell; of a real, a thousandth of its own [numbers].
        weight: how many examples each one stands for [n].
    """

    number: Tensor
    lost: Tensor
    state: Tensor
    states: list[int]
    floor: Tensor
    weight: Tensor

    @classmethod
    def of(cls, space: Space, x: Tensor, weight: Tensor | None = None) -> "Observed":
        """x [n, *shape] in data units."""
        flat, x = flattened(space), x.flatten(1)
        supports, states = [flat.supports[i] for i in flat.numbers], states_of(flat)
        center, scale, half = (
            (
                torch.tensor(v, dtype=torch.float64)
                for v in zip(*((s.center, s.scale, 0.0 if s.kind == "real" else 0.5) for s in supports), strict=True)
            )
            if supports
            else [torch.zeros(0, dtype=torch.float64)] * 3
        )
        number = (numbers_of(flat, x) + half - center) / scale
        lost = torch.isnan(number[:, [flat.numbers.index(i) for i in flat.flags]]).double()
        hot = [one_hot(state_of(x[:, i], flat.supports[i]), max(states)) for i in flat.nominals]
        state = torch.stack(hot, 1).double() if hot else torch.zeros(len(x), 0, 1, dtype=torch.float64)
        floor = torch.tensor([1e-3 if s.kind == "real" else 0.1 / s.scale for s in supports], dtype=torch.float64)
        return cls(number, lost, state, states, floor, torch.ones(len(x), dtype=torch.float64) if weight is None else weight.double())

    def rows(self, index: Tensor) -> "Observed":
        """Some of the examples."""
        return replace(self, **{name: getattr(self, name)[index] for name in ("number", "lost", "state", "weight")})

    @property
    def there(self) -> Tensor:
        """1 where a number is present [n, numbers]."""
        return (~torch.isnan(self.number)).double()

    @property
    def value(self) -> Tensor:
        """Numbers, 0 where missing."""
        return self.number.nan_to_num(0.0)

    @property
    def plain(self) -> bool:
        """Whether nothing is missing and every example counts once."""
        return not bool(torch.isnan(self.number).any()) and bool((self.weight == 1).all())

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of each number that is present [numbers]; the variance is at least the floor's."""
        count = (self.weight @ self.there).clamp_min(1e-9)
        mean = self.weight @ self.value / count
        return mean, self.weight @ ((self.value - mean) * self.there).square() / count + self.floor.square()

    def absent(self) -> Tensor:
        """Smoothed frequency of missing cells [flags]."""
        return (self.weight @ self.lost + 0.5) / (self.weight.sum() + 1)

    def tables(self) -> Tensor:
        """Smoothed frequencies of states [nominals, most states]."""
        seen = torch.einsum("n,njs->js", self.weight, self.state)
        count = torch.tensor(self.states, dtype=torch.float64)[:, None]
        return shrink(seen, (torch.arange(self.state.shape[2]) < count) / count, 1.0) if self.states else seen

    def shrunk(self, r: Tensor, k: float) -> tuple[Tensor, Tensor]:
        """P(missing) and tables of components from shares r [n, C] of examples, shrunk to those of all by k pseudo-examples."""
        absent = (r.T @ self.lost + k * self.absent()) / (r.sum(0)[:, None] + k)
        tables = [shrink(r.T @ self.state[:, j], table, k) for j, table in enumerate(self.tables())]
        return absent, torch.stack(tables, 1) if tables else self.state[:1].expand(r.shape[1], -1, -1)

    def features(self) -> Tensor:
        """Everything as columns of reals, for algorithms that know nothing else [n, features]."""
        return torch.cat([torch.where(self.there > 0, self.value, self.moments()[0]), self.lost, self.state.flatten(1)], 1)
