"""Bijections one after the other; those that follow each other and are of one kind run as one (`fused`)."""

from collections.abc import Iterable, Iterator
from typing import cast

from torch import Tensor, nn

from likely.bijections.base import Bijection, no_volume
from likely.bijections.fused import steps_of, through

__all__ = ["Chain"]


class Chain(Bijection):
    """Bijections one after the other."""

    def __init__(self, parts: Iterable[Bijection]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def __iter__(self) -> Iterator[Bijection]:
        return iter(cast("Iterable[Bijection]", self.parts))

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return _after_each_other(list(self), x, given, inverse=False)

    def inverse(self, y: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return _after_each_other(list(self)[::-1], y, given, inverse=True)

    def start(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        for part in self:
            x = part.start(x, given)
        return x


def _after_each_other(parts: list[Bijection], x: Tensor, given: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
    total, at = None, 0
    while at < len(parts):
        steps = steps_of(parts[at:], x, given, inverse=inverse)
        if steps:
            x, log_det = through(steps, x, inverse=inverse)
        else:
            x, log_det = parts[at].inverse(x, given) if inverse else parts[at](x, given)
        total, at = log_det if total is None else total + log_det, at + max(1, len(steps))
    return x, no_volume(x) if total is None else total
