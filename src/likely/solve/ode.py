r"""Ordinary differential equations dy/dt = f(t, y) by fixed steps of the classical Runge-Kutta method, order 4.

    k1 = f(t, y), k2 = f(t + h/2, y + h/2 k1), k3 = f(t + h/2, y + h/2 k2), k4 = f(t + h, y + h k3)
    y(t + h) = y + h/6 (k1 + 2 k2 + 2 k3 + k4) + O(h^5)

All rows have the same steps, through which gradients pass: for training. Where the result counts, see `solve.adaptive`.

References:
    | Solving ordinary differential equations I (Hairer, Norsett and Wanner, 1993) | https://doi.org/10.1007/978-3-540-78862-1
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

__all__ = ["runge_kutta"]

State = tuple[Tensor, ...]


def runge_kutta(f: Callable[[float, State], State], y: State, times: Sequence[float]) -> State:
    """y at the last of some times from y at the first, a step between each two; tensors of any shape, times up or down."""

    def moved(by: float, slope: State) -> State:
        return tuple(a + by * k for a, k in zip(y, slope, strict=True))

    for t, after in pairwise(times):
        h = after - t
        k1 = f(t, y)
        k2 = f(t + h / 2, moved(h / 2, k1))
        k3 = f(t + h / 2, moved(h / 2, k2))
        k4 = f(after, moved(h, k3))
        y = tuple(a + h / 6 * (p + 2 * q + 2 * r + s) for a, p, q, r, s in zip(y, k1, k2, k3, k4, strict=True))
    return y
