"""What components of a mixture say of the numbers of an example: the protocol, and components of independent entries.

A number on a grid is a cell [a, b) of the relaxed scale, whose mass a component integrates; a real is a point,
which has a density. One that is missing, or unknown, has no factor: it is marginalised.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from likely.noise import Noise
from likely.solve.intervals import normal_interval, normal_log_density, student_interval, student_log_density
from likely.space import Space

__all__ = ["Diagonal", "HeavyTailed", "Numbers"]


class Numbers(nn.Module, ABC):
    """C components over N numbers: grid indices or reals [B, N], float64, NaN where missing or unknown.

    Args:
        flat: the space of the rows, a column per entry; its numbers are all real, or all on a grid.
    """

    center: Tensor
    scale: Tensor
    levels: Tensor

    def __init__(self, flat: Space) -> None:
        super().__init__()
        supports = [flat.supports[i] for i in flat.numbers]
        self.gridded = any(s.kind != "real" for s in supports)
        ends = [s.levels if s.kind == "ordinal" else math.inf for s in supports]
        for name, values in (("center", [s.center for s in supports]), ("scale", [s.scale for s in supports]), ("levels", ends)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64), persistent=False)

    @abstractmethod
    def __len__(self) -> int:
        """Number of components."""

    def take(self, buffers: dict[str, Tensor]) -> None:
        """Become other components; without their buffers, none."""
        for name in self.state_dict():
            setattr(self, name, buffers[name] if buffers else getattr(self, name)[:0])

    @property
    def exact(self) -> bool:
        """Whether `log_prob` needs no noise."""
        return True

    def noise(self, number: Tensor, noise: Noise) -> Tensor:
        """What `log_prob` draws for each example, [K, B, any]; nothing, once, where it is exact."""
        return number.new_zeros(1, len(number), 0)

    @abstractmethod
    def log_prob(self, number: Tensor, noise: Tensor) -> Tensor:
        """log p(known numbers | c) by each draw of `noise`, nats [K, B, C]; unbiased for p, and equal to it where exact."""

    @abstractmethod
    def complete(self, number: Tensor, noise: Tensor, component: Tensor) -> Tensor:
        """A draw of all numbers given those known, on the relaxed scale [B, N]; one draw's `noise` [B, any] and a component of each."""

    def at(self, number: Tensor, which: slice = slice(None)) -> Tensor:
        """Middles of cells, or reals, on the relaxed scale; `which` of the numbers, all by default."""
        return (number + 0.5 * self.gridded - self.center[which]) / self.scale[which]

    def cells(self, number: Tensor, which: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Edges on the relaxed scale; the first and last cell of an ordinal are open, and a missing number's cell is everything."""
        lost, (center, scale, levels) = torch.isnan(number), (v[which] for v in (self.center, self.scale, self.levels))
        lower = torch.where(lost | ((number <= 0) & levels.isfinite()), -math.inf, (number - center) / scale)
        return lower, torch.where(lost | (number >= levels - 1), math.inf, (number + 1 - center) / scale)


class Diagonal(Numbers):
    """Normals of independent numbers, integrated over cells: exact.

    Attributes:
        mean, sd: on the relaxed scale, [C, N]; sd may have one row for all.
    """

    mean: Tensor
    sd: Tensor

    def __init__(self, flat: Space) -> None:
        super().__init__(flat)
        self.register_buffer("mean", torch.zeros(1, len(self.center), dtype=torch.float64))
        self.register_buffer("sd", torch.ones(1, len(self.center), dtype=torch.float64))

    def __len__(self) -> int:
        return len(self.mean)

    def log_prob(self, number: Tensor, noise: Tensor) -> Tensor:
        nats = number.new_zeros(len(number), len(self))
        for n, column in enumerate(number.T):
            value, which = _distinct(column.nan_to_num(0.0))
            nats += torch.where(column.isnan()[:, None], 0.0, self._column(n, value)[which])
        return nats[None]

    def _column(self, n: int, value: Tensor) -> Tensor:
        """log p of values [V] of one number, [V, C]."""
        each = torch.stack([self.mean[:, n], self.sd[:, n].expand(len(self))])
        (mean, sd), pick = each.unique(dim=1, return_inverse=True)  # kernels of equal means and widths are equal
        one = slice(n, n + 1)
        if not self.gridded:
            return (normal_log_density((self.at(value[:, None], one) - mean) / sd) - sd.log() - self.scale[n].log())[:, pick]
        lower, upper = self.cells(value[:, None], one)
        return normal_interval((lower - mean) / sd, (upper - mean) / sd)[:, pick]

    def complete(self, number: Tensor, noise: Tensor, component: Tensor) -> Tensor:
        sd = self.sd[component] if len(self.sd) > 1 else self.sd
        return self.mean[component] + sd * torch.randn_like(self.mean[component])


class HeavyTailed(Numbers):
    """One component of independent numbers, each of Student's t with two degrees of freedom: a far value costs its logarithm.

    Attributes:
        mean, spread: on the relaxed scale [N].
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, flat: Space) -> None:
        super().__init__(flat)
        self.register_buffer("mean", torch.zeros(len(self.center), dtype=torch.float64))
        self.register_buffer("spread", torch.ones(len(self.center), dtype=torch.float64))

    def __len__(self) -> int:
        return 1

    def log_prob(self, number: Tensor, noise: Tensor) -> Tensor:
        if self.gridded:
            lower, upper = self.cells(number)
            each = student_interval((lower - self.mean) / self.spread, (upper - self.mean) / self.spread)
        else:
            each = student_log_density((self.at(number) - self.mean) / self.spread) - (self.spread * self.scale).log()
        return each.masked_fill(number.isnan(), 0.0).sum(1)[None, :, None]

    def complete(self, number: Tensor, noise: Tensor, component: Tensor) -> Tensor:
        u = torch.rand_like(number).clamp_min(1e-12)
        return self.mean + self.spread * (2 * u - 1) / torch.sqrt(2 * u * (1 - u))


def _distinct(column: Tensor) -> tuple[Tensor, Tensor]:
    """Each distinct value once, and which is whose; values that take a gradient stay apart."""
    if column.requires_grad:
        return column, torch.arange(len(column), device=column.device)
    return column.unique(return_inverse=True)
