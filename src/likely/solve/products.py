r"""Mixtures of products over the entries of a space, with the exact mass of data as they are stored.

    log p(x | y) = log sum_c w_{yc} prod_e p_e(x_e | c)

    ordinal, decimal   p_e = Phi((b - mu) / s) - Phi((a - mu) / s) over the cell [a, b) of x_e; the first
                       and last cell of an ordinal are open, so nothing leaks past the grid's edges
    real               p_e = N(x_e; mu, s), a density
    nominal            p_e = a table of each component; a missing cell is one more state
    missing number     a Bernoulli of each component, and no factor for the value

What is drawn is the normal, put on the grid by floor and clamp: the distribution whose mass this is.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from likely.solve.intervals import normal_interval, normal_log_density
from likely.solve.labels import shrink
from likely.space import MISSING, Space, Support, to_grid

__all__ = ["Observed", "ProductMixture", "flattened"]

_ELEMENTS = 2**22  # of the largest [batch, components] table


class ProductMixture(nn.Module):
    """Components c over the flattened entries of a space; x [B, *shape] in data units, labels [B].

    Attributes:
        log_weight: log w [labels, components].
        mean, sd: of numbers on the relaxed scale, [components, numbers]; sd may have one row for all.
        absent: P(missing | c) of the numbers that may be missing, [components, flags].
        tables: P(state | c) of nominals, [components, nominals, most states].
    """

    log_weight: Tensor
    mean: Tensor
    sd: Tensor
    absent: Tensor
    tables: Tensor

    def __init__(self, space: Space, labels: int) -> None:
        super().__init__()
        self.space = space
        self.flat = flat = flattened(space)
        self.discrete = flat.discrete
        self.states = [flat.supports[i].levels + flat.supports[i].missing for i in flat.nominals]
        self.cells = [Space.columns(flat.supports[i]) for i in flat.numbers]
        self._set("log_weight", torch.zeros(labels, 1))
        self._set("mean", torch.zeros(1, len(flat.numbers)))
        self._set("sd", torch.ones(1, len(flat.numbers)))
        self._set("absent", torch.full((1, len(flat.flags)), 0.5))
        self._set("tables", torch.stack([uniform(n, max(self.states)) for n in self.states])[None] if self.states else torch.zeros(1, 0, 1))

    def _set(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value.double())

    def put(self, *, log_weight: Tensor, mean: Tensor, sd: Tensor, absent: Tensor, tables: Tensor) -> None:
        """Take other components."""
        self.log_weight, self.mean, self.sd, self.absent, self.tables = log_weight, mean, sd, absent, tables

    def log_prob(self, x: Tensor, label: Tensor) -> Tensor:
        """log p(x | label), nats [B], float64; in blocks, so that memory stays bounded."""
        rows = max(1, _ELEMENTS // self.log_weight.shape[1])
        parts = zip(x.split(rows), label.split(rows), strict=True)
        return torch.cat([(self.log_weight[y] + self.component_log_prob(part)).logsumexp(1) for part, y in parts])

    def component_log_prob(self, x: Tensor) -> Tensor:
        """log p(x | c), nats [B, components]."""
        x = x.flatten(1)
        nats = x.new_zeros(len(x), self.log_weight.shape[1], dtype=torch.float64)
        for n, i in enumerate(self.flat.numbers):
            value, which = x[:, i].unique(return_inverse=True)  # each distinct value once
            nats += self._number(n, value)[which]
        for j, i in enumerate(self.flat.flags):
            nats += torch.where(self._lost(x[:, i, None]), self.absent[:, j].log(), torch.log1p(-self.absent[:, j]))
        for j, i in enumerate(self.flat.nominals):
            nats += self.tables[:, j].log().T[state_of(x[:, i], self.flat.supports[i])]
        return nats

    def _number(self, n: int, value: Tensor) -> Tensor:
        """log p of values [V] of one number, [V, components]; 0 where missing."""
        mean, sd, pick = self.mean[:, n], self.sd[:, n], slice(None)
        if len(sd) == 1:  # one bandwidth: components of equal means are equal
            mean, pick = mean.unique(return_inverse=True)
        cell = self.cells[n]
        if not cell.discrete:
            u = (value.double()[:, None] - cell.supports[0].center) / cell.supports[0].scale
            nats = normal_log_density((u - mean) / sd) - sd.log() - math.log(cell.supports[0].scale)
            return torch.where(self._lost(u), 0.0, nats)[:, pick]
        lower, upper = cell.cells(torch.where(self._lost(value), MISSING, value).long()[:, None])
        return normal_interval((lower - mean) / sd, (upper - mean) / sd)[:, pick]

    def _lost(self, x: Tensor) -> Tensor:
        """Missing numbers: -1 in a table of integers, NaN beside reals."""
        return x == MISSING if self.discrete else torch.isnan(x)

    def sample(self, label: Tensor) -> Tensor:
        """One example for each label, [B, *shape] in data units."""
        c = torch.multinomial(self.log_weight.exp()[label], 1)[:, 0]
        sd = self.sd[c] if len(self.sd) > 1 else self.sd
        number = self.mean[c] + sd * torch.randn(len(c), self.mean.shape[1], dtype=torch.float64)
        lost = torch.where(torch.rand(len(c), self.absent.shape[1]) < self.absent[c], 1.0, -1.0)
        u = torch.cat([number, lost, number.new_zeros(len(c), self.flat.relaxed.shape[0] - number.shape[1] - lost.shape[1])], 1)
        x = self.flat.snap(u)
        for j, i in enumerate(self.flat.nominals):
            state = torch.multinomial(self.tables[c, j], 1)[:, 0]
            x[:, i] = torch.where(state == self.flat.supports[i].levels, MISSING, state).to(x.dtype)
        return x.view(-1, *self.space.shape)


def flattened(space: Space) -> Space:
    """The same examples as rows of a table, one column per entry."""
    each = space.dims // len(space.supports)
    return Space.columns(*(s for s in space.supports for _ in range(each)))


def uniform(states: int, width: int) -> Tensor:
    """1 / states for each state, then zeros up to `width`."""
    return (torch.arange(width) < states).double() / states


def state_of(x: Tensor, s: Support) -> Tensor:
    """State number of a nominal's values; a missing cell is the last."""
    return torch.where(x < 0, s.levels, x).long()


@dataclass(frozen=True)
class Observed:
    """Training examples as sufficient statistics want them, float64.

    Attributes:
        number: middles of cells, or reals, on the relaxed scale, NaN where missing [n, numbers].
        lost: 1 where a number that may be missing is [n, flags].
        state: one-hot states of each nominal, padded to the most states [n, nominals, states].
        floor: smallest standard deviation of each number: a tenth of a cell; of a real, a thousandth of its own [numbers].
    """

    number: Tensor
    lost: Tensor
    state: Tensor
    floor: Tensor

    @classmethod
    def of(cls, space: Space, x: Tensor) -> "Observed":
        """x [n, *shape] in data units."""
        flat, x = flattened(space), x.flatten(1)
        columns = [_middle(x[:, i], flat.supports[i]) for i in flat.numbers]
        number = torch.stack(columns, 1) if columns else torch.zeros(len(x), 0, dtype=torch.float64)
        lost = torch.isnan(number[:, [flat.numbers.index(i) for i in flat.flags]]).double()
        most = max((s.levels + s.missing for s in (flat.supports[i] for i in flat.nominals)), default=1)
        states = [one_hot(state_of(x[:, i], flat.supports[i]), most) for i in flat.nominals]
        state = torch.stack(states, 1).double() if states else torch.zeros(len(x), 0, most, dtype=torch.float64)
        floor = [1e-3 if s.kind == "real" else 0.1 / s.scale for s in (flat.supports[i] for i in flat.numbers)]
        return cls(number, lost, state, torch.tensor(floor, dtype=torch.float64))

    @property
    def there(self) -> Tensor:
        """1 where a number is present [n, numbers]."""
        return (~torch.isnan(self.number)).double()

    @property
    def value(self) -> Tensor:
        """Numbers, 0 where missing."""
        return self.number.nan_to_num(0.0)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of each number that is present [numbers]; the variance is at least the floor's."""
        count = self.there.sum(0).clamp_min(1.0)
        mean = self.value.sum(0) / count
        return mean, ((self.value - mean) * self.there).square().sum(0) / count + self.floor.square()

    def absent(self) -> Tensor:
        """Smoothed frequency of missing cells [flags]."""
        return (self.lost.sum(0) + 0.5) / (len(self.lost) + 1)

    def tables(self, states: list[int]) -> Tensor:
        """Smoothed frequencies of states [nominals, most states]."""
        prior = torch.stack([uniform(n, self.state.shape[2]) for n in states]) if states else self.state[0]
        return shrink(self.state.sum(0), prior, 1.0)

    def features(self) -> Tensor:
        """Everything as columns of reals, for algorithms that know nothing else [n, features]."""
        return torch.cat([torch.where(self.there > 0, self.value, self.moments()[0]), self.lost, self.state.flatten(1)], 1)


def _middle(x: Tensor, s: Support) -> Tensor:
    """Middle of each number's cell (or the real itself), centred and scaled; NaN where missing."""
    if s.kind == "real":
        return (x.double() - s.center) / s.scale
    lost = torch.isnan(x) | (x == MISSING)
    code = x.masked_fill(lost, 0).long()
    index = to_grid(code) if s.kind == "decimal" else code
    return ((index + 0.5 - s.center).double() / s.scale).masked_fill(lost, math.nan)
