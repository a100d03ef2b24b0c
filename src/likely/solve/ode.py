r"""Ordinary differential equations dy/dt = f(t, y) by fixed steps of the classical Runge-Kutta method, order 4.

    k1 = f(t, y), k2 = f(t + h/2, y + h/2 k1), k3 = f(t + h/2, y + h/2 k2), k4 = f(t + h, y + h k3)
    y(t + h) = y + h/6 (k1 + 2 k2 + 2 k3 + k4) + O(h^5)

Steps are fixed so that no row's result depends on which others are in its batch, and so that gradients
pass. How far the result is to be trusted is told by halving the step: of a method of order 4 the halved one is sixteen times
nearer, so the change is an estimate of the error of the coarser.

References:
    | Solving ordinary differential equations I (Hairer, Norsett and Wanner, 1993) | https://doi.org/10.1007/978-3-540-78862-1
"""

from collections.abc import Callable

from torch import Tensor

__all__ = ["runge_kutta"]

State = tuple[Tensor, ...]


def runge_kutta(f: Callable[[float, State], State], y: State, begin: float, end: float, steps: int) -> State:
    """y(end) from y(begin); tensors of any shape, `end` may be before `begin`."""
    h = (end - begin) / steps

    def moved(by: float, slope: State) -> State:
        return tuple(a + by * k for a, k in zip(y, slope, strict=True))

    for step in range(steps):
        t = begin + step * h
        k1 = f(t, y)
        k2 = f(t + h / 2, moved(h / 2, k1))
        k3 = f(t + h / 2, moved(h / 2, k2))
        k4 = f(t + h, moved(h, k3))
        y = tuple(a + h / 6 * (p + 2 * q + 2 * r + s) for a, p, q, r, s in zip(y, k1, k2, k3, k4, strict=True))
    return y
