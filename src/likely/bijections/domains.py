r"""Bijections between a part of the line and the whole of it, for data that have bounds.

    Softplus   y = log(exp(x - low) - 1),            x > low
    Logit      y = log((x - low) / (high - x)),      low < x < high
    Domains    the one, the other or none, as each entry's bounds ask for

Both are onto the whole line, so that a density made with them has mass one on their domain. (The usual logit of
alpha + (1 - 2 alpha) x keeps away from the ends but is not onto: the mass beyond logit(alpha) is lost.)

References:
    | Density estimation using Real NVP (Dinh et al., 2017) | https://arxiv.org/abs/1605.08803
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from likely.bijections.base import Bijection, per_example
from likely.errors import DataError, UsageError, nearest
from likely.space import Space

__all__ = ["Domains", "Logit", "Softplus", "domains"]

_EDGE = 10.0  # units of rounding: so near to a bound counts as that far from it, what rounding may have put onto one


class Softplus(Bijection):
    """Numbers above `low` -> the whole line, the inverse of a softplus; nearly x - low where that is large.

    Raises: DataError for values that are not above `low`.
    """

    def __init__(self, low: float = 0.0) -> None:
        super().__init__()
        self.low = low

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        above = x - self.low
        if bool((above <= 0).any()):
            raise DataError(
                f"Values of {x.min().item():.6g} are not above {self.low:g}.", "Was the bound that of the training split alone?"
            )
        rest = -torch.expm1(-above)  # log(e^a - 1) = a + log(1 - e^-a)
        return above + rest.log(), -per_example(rest.log())

    def inverse(self, y: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return torch.logaddexp(y, torch.zeros_like(y)) + self.low, per_example(F.logsigmoid(y))  # F.softplus rounds from 20 on


class Logit(Bijection):
    """Numbers between `low` and `high` -> the whole line.

    Args:
        channels: those of axis 1 that it is for; the others pass. All by default.
        edge: values so near to an end (as a share of the width) count as that far from it: what rounding has put onto one.

    Raises: DataError for values outside, by more than rounding.
    """

    def __init__(self, low: float = 0.0, high: float = 1.0, channels: list[int] | None = None, edge: float = 1e-7) -> None:
        super().__init__()
        self.low, self.high, self.channels, self.edge = low, high, channels, edge

    def _mine(self, x: Tensor) -> Tensor:
        return x if self.channels is None else x[:, self.channels]

    def _through(self, x: Tensor, y: Tensor) -> Tensor:
        if self.channels is None:
            return y
        return x.index_copy(1, torch.tensor(self.channels, device=x.device), y)

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        width = self.high - self.low
        share = (self._mine(x) - self.low) / width
        if bool(((share - 0.5).abs() > 0.5 + 1e-5).any()):
            worst = self._mine(x).flatten()[(share - 0.5).abs().flatten().argmax()]
            raise DataError(
                f"A value of {worst.item():.6g} is outside {self.low:g}..{self.high:g}.", "Was the data loaded with other bounds?"
            )
        y = torch.special.logit(share.clamp(self.edge, 1 - self.edge))
        return self._through(x, y), self._log_det(y)

    def _log_det(self, y: Tensor) -> Tensor:
        """Of the way to the line: -log(s (1 - s) width) at s = sigmoid(y)."""
        return per_example(-F.logsigmoid(y) - F.logsigmoid(-y) - math.log(self.high - self.low))

    def inverse(self, y: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mine = self._mine(y)
        return self._through(y, self.low + (self.high - self.low) * mine.sigmoid()), -self._log_det(mine)


class Domains(Bijection):
    """Entries [B, D] between bounds of their own -> the whole line. What lies outside has a density of 0.

    Args:
        low, high: bounds [D], infinite where there is none.
        names: of the first entries, those that may have bounds, for errors.
    """

    low: Tensor
    high: Tensor
    two: Tensor
    one: Tensor

    def __init__(self, low: Tensor, high: Tensor, names: list[str]) -> None:
        super().__init__()
        below, above = low.isfinite(), high.isfinite()
        self.register_buffer("low", low.double())
        self.register_buffer("high", high.double())
        self.register_buffer("two", (below & above).nonzero()[:, 0], persistent=False)
        self.register_buffer("one", (below ^ above).nonzero()[:, 0], persistent=False)
        self.names = names

    @property
    def _side(self) -> tuple[Tensor, Tensor]:
        """The bound of entries that have one, and 1 where it is the lower, -1 where it is the upper."""
        low, high = self.low[self.one], self.high[self.one]
        return torch.where(low.isfinite(), low, high), torch.where(low.isfinite(), 1.0, -1.0).double()

    def _rounded(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """How near to its lower and upper bound a number of this type cannot be told from it."""
        room = _EDGE * torch.finfo(dtype).eps
        return tuple(torch.where(bound.isfinite(), room * (1 + bound.abs()), 0.0) for bound in (self.low, self.high))  # type: ignore[return-value]

    def clamped(self, x: Tensor) -> Tensor:
        """x put back inside, as far from the bounds as rounding reaches."""
        low, high = self._rounded(x.dtype)
        return torch.maximum(torch.minimum(x.double(), self.high - high), self.low + low).to(x.dtype)

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        low, high = self._rounded(x.dtype)
        outside = (x < self.low - low) | (x > self.high + high)
        if self.training and bool(outside.any()):
            counts = outside[:, : len(self.names)].sum(0).tolist()
            name, count = next((name, n) for name, n in zip(self.names, counts, strict=True) if n)
            raise DataError(f"Of {len(x)} values of {name}, {count} are out of its bounds.", "Widen them, or remove these rows.")
        inside, two, one = self.clamped(x).double(), self.two, self.one
        between = (inside[:, two] - self.low[two]).log() - (self.high[two] - inside[:, two]).log()
        bound, side = self._side
        far = side * (inside[:, one] - bound)
        beyond = side * (far + (-torch.expm1(-far)).log())  # log(e^a - 1) = a + log(1 - e^-a)
        y = inside.index_copy(1, two, between).index_copy(1, one, beyond)
        return y.to(x.dtype), torch.where(outside.any(1), -math.inf, self._log_det(y))

    def _log_det(self, y: Tensor) -> Tensor:
        """Of the way to the line, at its end y."""
        between, width = y[:, self.two], self.high[self.two] - self.low[self.two]
        of_two = -F.logsigmoid(between) - F.logsigmoid(-between) - width.log()
        return per_example(of_two) + per_example(-F.logsigmoid(self._side[1] * y[:, self.one]))

    def inverse(self, y: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, two, one = y.double(), self.two, self.one
        between = self.low[two] + (self.high[two] - self.low[two]) * z[:, two].sigmoid()
        bound, side = self._side
        beyond = bound + side * torch.logaddexp(side * z[:, one], z.new_zeros(()))
        x = z.index_copy(1, two, between).index_copy(1, one, beyond)
        return self.clamped(x.to(y.dtype)), -self._log_det(z)


def domains(space: Space, bounds: str) -> list[Bijection]:
    """A layer for the bounds of a table's numbers, such as "0..1" of all of them, or "age=0..120,income=0.." of some; in data units.

    Numbers on a grid lie from one bound to the other, both included.

    Raises: UsageError for bounds that cannot be read, or of what is no column of numbers.
    """
    if not bounds:
        return []
    if space.layout != "columns" or not space.numbers:
        raise UsageError(f"Bounds are of the columns of tables, and this is a {space.named}.", "Leave them out.")
    low, high = (torch.full((space.relaxed.dims,), end, dtype=torch.float64) for end in (-math.inf, math.inf))
    for place, begin, end in _parsed(space, bounds):
        s = space.supports[space.numbers[place]]
        if s.missing or s.kind == "ordinal":
            raise UsageError(f"Column {s.name} has {'missing cells' if s.missing else 'bounds of its own'}.", "Leave it out of bounds.")
        if s.kind == "decimal":  # whole cells, from where the first begins to where the last ends
            begin, end = _whole(math.ceil, begin * 10**s.decimals) - s.origin, _whole(math.floor, end * 10**s.decimals) - s.origin + 1
        low[place], high[place] = (begin - s.center) / s.scale, (end - s.center) / s.scale
    return [Domains(low, high, [space.supports[i].name for i in space.numbers])]


def _whole(rounded: Callable[[float], int], number: float) -> float:
    """A number of grid steps, rounded but for what it owes to rounding itself, such as 100 * .07."""
    return rounded(round(number, 6)) if math.isfinite(number) else number


def _parsed(space: Space, bounds: str) -> Iterator[tuple[int, float, float]]:
    """The place among the numbers, the lower and the upper bound of each column that has any."""
    names = [space.supports[i].name for i in space.numbers]
    for part in bounds.split(","):
        name, named, span = part.strip().rpartition("=")
        if named and name.strip() not in names:
            raise UsageError(f"There is no column '{name.strip()}' of numbers to have bounds.", nearest(name, names))
        begin, dots, end = span.partition("..")
        try:
            low, high = float(begin or -math.inf), float(end or math.inf)
        except ValueError:
            low, high = math.nan, math.nan
        if not (dots and low < high and (begin or end)):
            raise UsageError(f"'{part}' says no bounds.", "Write COLUMN=0..1, or COLUMN=0.. for no upper one; or 0..1 for all columns.")
        for place in [names.index(name.strip())] if named else range(len(names)):
            yield place, low, high
