r"""Autoregressive maps: every entry is moved by a map that the entries before it choose, so the Jacobian is triangular.

    y_i = f(x_i; net(x_<i)_i),      log |det dy/dx| = sum_i log f'(x_i)

All of y comes from x in one pass. The inverse is a sequence, x_i = f^-1(y_i; net(x_<i)_i), for which there are two ways:

    iteration   x <- f^-1(y; net(x)) from x = y. A pass more makes one entry more exact, so that D passes are exact whatever
                the net; and an x that a pass leaves as it is, bit for bit, IS the solution of the equation as computed. Rows that
                have got there leave the batch. Weak dependence needs few passes. `passes` says how many the last inverse took.
    steps       entry by entry, with what the net keeps (`init_state`, `step`): each weight is used once, so that a draw costs
                about one pass, in D small pieces.

Steps are the default: on a CPU they were the faster at every shape from 2 to 256 entries and 1 to 1000 rows but one, a single
draw of many entries by affine maps (measured: docs/families/flow.md).

Gradients of an inverse are those of the implicit function: with J = df/dx, a cotangent v of x becomes w = J^-T v, found
by the same iteration on the transposed system, and then that of y - f(x) at a fixed x. So a flow that is trained through
its inverse (inverse autoregressive, density by maximum likelihood) keeps the graph of two passes, not of D.

References:
    | Masked autoregressive flow for density estimation (Papamakarios et al., 2017) | https://arxiv.org/abs/1705.07057
    | Improving variational inference with inverse autoregressive flow (Kingma et al., 2016) | https://arxiv.org/abs/1606.04934
    | Accelerating feedforward computation via parallel nonlinear equation solving (Song et al., 2021) | https://arxiv.org/abs/2002.03629
"""

from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from likely.bijections.base import Bijection
from likely.bijections.elementwise import Affine, Elementwise, Spline
from likely.bijections.fused import Layer, draw, layer_of, steps_of, through, unrolled_of
from likely.model import evaluating

__all__ = ["Autoregressive", "Ordered"]


class Ordered(Protocol):
    """A net whose parameters of an entry depend on the entries before it alone."""

    def __call__(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        """x [B, n] -> raw parameters [B, size, n]."""
        ...

    def init_state(self, n: int, given: Tensor | None = None) -> Any: ...

    def step(self, state: Any, x_i: Tensor | None) -> Tensor:
        """Take the previous entry [B] (None at first), give the next one's raw parameters [B, size]."""
        ...


class Autoregressive(Bijection):
    """y_i = f(x_i; net(x_<i)_i) on vectors [B, n].

    Args:
        transform: the map f of single numbers.
        net: gives its raw parameters; see `Ordered`.
        by: how the inverse goes.

    Attributes:
        passes: of the net over the whole vector in the last inverse, at most n; 1 where it went by steps.
    """

    net: Any

    def __init__(self, transform: Elementwise, net: nn.Module, by: Literal["steps", "iteration"] = "steps") -> None:
        super().__init__()
        self.transform, self.net, self.by, self.passes = transform, net, by, 0

    def step(self, given: Tensor | None, n: int, *, inverse: bool) -> Layer | None:
        if inverse and (torch.is_grad_enabled() or self.by == "iteration" or not isinstance(self.transform, Affine | Spline)):
            return None
        layer = layer_of(self.net, self.transform, None, given, n)
        self.passes = 1 if inverse and layer else self.passes
        return layer

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        steps = steps_of([self], x, given)
        return through(steps, x) if steps else self.transform.among(x, None, self.net(x, given))

    def inverse(self, y: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x and log |det dx/dy|; dropout is off, for passes must agree."""
        with torch.no_grad():
            x, log_det = self._solved(y, given)
        if not torch.is_grad_enabled() or not (y.requires_grad or any(p.requires_grad for p in self.net.parameters())):
            return x, log_det
        with evaluating(self.net):
            x = self._implicit(x, y, given)
            return x, -self(x, given)[1]

    def _solved(self, y: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        unrolled = unrolled_of(self.net, self.transform, y, given) if self.by == "steps" else None
        if unrolled is not None:
            self.passes = 1
            return draw(self.transform, unrolled, y)
        with evaluating(self.net):
            return self._by_iteration(y, given) if self.by == "iteration" else self._by_steps(y, given)

    def _by_iteration(self, y: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        """See above why it is exact."""
        solution, log_det = torch.empty_like(y), y.new_empty(len(y), dtype=torch.float64)
        left, x, self.passes = torch.arange(len(y), device=y.device), y, 0
        while len(left):
            new, log_new = self.transform.among(y, None, self.net(x, given), inverse=True)
            self.passes += 1
            done = (new == x).all(1) if self.passes < y.shape[1] else torch.ones_like(left, dtype=torch.bool)
            if bool(done.any()):
                solution[left[done]], log_det[left[done]] = new[done], log_new[done]
                left, new, y = left[~done], new[~done], y[~done]
                given = given if given is None or len(given) == 1 else given[~done]
            x = new
        return solution, log_det

    def _by_steps(self, y: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        x, log_det, self.passes = torch.empty_like(y), y.new_zeros(len(y), dtype=torch.float64), 1
        state, last = self.net.init_state(len(y), given), None
        for i in range(y.shape[1]):
            value, log_value = self.transform.among(y[:, i : i + 1], None, self.net.step(state, last)[..., None], inverse=True)
            x[:, i : i + 1], log_det = value, log_det + log_value
            last = x[:, i]
        return x, log_det

    def _implicit(self, x: Tensor, y: Tensor, given: Tensor | None) -> Tensor:
        """x, with the gradient of the implicit function f(x) = y."""
        point = x.detach().requires_grad_()
        image, log_derivative = self.transform(point, self.net(point, given))
        slope, gap = log_derivative.detach().exp(), y - image

        def solved(v: Tensor) -> Tensor:
            """w with J^T w = v: J is triangular, so that as many passes as entries are enough."""
            w = v / slope
            for _ in range(x.shape[1] - 1):
                (pulled,) = torch.autograd.grad(image, point, w, retain_graph=True)
                new = w + (v - pulled) / slope
                change, w = (new - w).abs().amax(), new
                if change <= torch.finfo(w.dtype).eps * w.abs().amax():
                    break
            return w

        attached = x.detach() + (gap - gap.detach())
        attached.register_hook(solved)
        return attached
