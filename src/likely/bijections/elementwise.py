r"""Monotone maps of single numbers, whose parameters a net or a table supplies.

    Affine   y = x exp(s) + t, with the log-scale bounded: s = c tanh(raw / c)
    Spline   a monotone rational-quadratic spline on [-B, B], the identity outside: onto the whole line

Each is a value without state: `size` raw parameters per number, zeros being a simple start, and
`(x, raw) -> y, log dy/dx` with x [B, n] and raw [B, size, n]; `inverse` likewise. The parameters have
axis 1 to themselves, because sums over it then run along whole rows of numbers: 2 to 3 times as fast.
`among` moves some entries of vectors and leaves the others, which is what couplings ask for.

References:
    | Neural spline flows (Durkan et al., 2019) | https://arxiv.org/abs/1906.04032
    | Density estimation using Real NVP (Dinh et al., 2017) | https://arxiv.org/abs/1605.08803
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Affine", "Elementwise", "Spline"]


class Elementwise(ABC):
    """A monotone map of numbers; `size` raw parameters each."""

    @property
    @abstractmethod
    def size(self) -> int: ...

    @abstractmethod
    def __call__(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """y and log dy/dx of x [B, n], given raw [B, size, n]."""

    @abstractmethod
    def inverse(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """x and log dx/dy."""

    def among(self, x: Tensor, places: Tensor | None, raw: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """Vectors x [B, D] with the entries at `places` [n] (None: all) moved, and the sum of their log-derivatives [B] in float64."""
        go = self.inverse if inverse else self
        if places is None:
            y, log_derivative = go(x, raw)
        else:
            value, log_derivative = go(x.index_select(1, places), raw)
            y = x.index_copy(1, places, value)
        return y, log_derivative.sum(1, dtype=torch.float64)


def _compilable(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


@dataclass(frozen=True)
class Affine(Elementwise):
    """y = x exp(s) + t with |s| < `bound`. `among` is compiled on a CPU, in float32 and float64 (`affine_passes`)."""

    bound: float = 2.0

    @property
    def size(self) -> int:
        return 2

    def _scale_and_shift(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        s, t = raw.unbind(1)
        return self.bound * torch.tanh(s / self.bound), t

    def __call__(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self._scale_and_shift(raw)
        return x * s.exp() + t, s

    def inverse(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self._scale_and_shift(raw)
        return (y - t) * (-s).exp(), -s

    def among(self, x: Tensor, places: Tensor | None, raw: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        if not _compilable(x):
            return super().among(x, places, raw, inverse=inverse)
        places = torch.arange(x.shape[1]) if places is None else places
        raw = raw.to(x.dtype)
        if torch.is_grad_enabled() and (x.requires_grad or raw.requires_grad):
            return cast("tuple[Tensor, Tensor]", _CompiledAffine.apply(x, raw, places, self, inverse))
        return self.compiled_among(x, places, raw, inverse)[:2]

    def compiled_among(self, x: Tensor, places: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor, Tensor]:
        """`among`, and what its gradient needs."""
        from likely.bijections import affine_passes  # numba takes a third of a second to import

        x, raw = x.detach().contiguous(), raw.detach().contiguous()
        y, log_det, kept = torch.empty_like(x), x.new_empty(len(x), dtype=torch.float64), x.new_empty(2, len(x), len(places))
        arrays = y.numpy(), log_det.numpy(), *kept.numpy()
        affine_passes.transform(x.numpy(), raw.numpy(), places.numpy(), self.bound, inverse, *arrays)
        return y, log_det, kept

    def tensors_among(self, x: Tensor, places: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """`among` as tensor operations, for any order of derivatives."""
        return super().among(x, places, raw, inverse=inverse)


class _CompiledAffine(torch.autograd.Function):
    """The affine map by the passes of `affine_passes`; where a derivative is itself to be differentiated, by tensor operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, raw: Tensor, places: Tensor, affine: Affine, inverse: bool) -> tuple[Tensor, Tensor]:
        y, log_det, kept = affine.compiled_among(x, places, raw, inverse)
        ctx.affine, ctx.inverse = affine, inverse
        ctx.save_for_backward(x, raw, places, y, kept)
        return y, log_det

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from likely.bijections import affine_passes

        x, raw, places, y, kept = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph
            wanted = [t for t in (x, raw) if t.requires_grad]
            found = iter(torch.autograd.grad(ctx.affine.tensors_among(x, places, raw, ctx.inverse), wanted, grads, create_graph=True))
            return *(next(found) if t.requires_grad else None for t in (x, raw)), None, None, None
        grad_x, grad_raw = x.new_empty(x.shape), raw.new_empty(raw.shape)  # contiguous
        arrays = (t.detach().contiguous().numpy() for t in (*grads, grad_x, grad_raw))
        affine_passes.gradient(x.detach().contiguous().numpy(), y.detach().numpy(), places.numpy(), ctx.inverse, *kept.numpy(), *arrays)
        return grad_x, grad_raw, None, None, None


class _Bins(NamedTuple):
    """Of the bin that each number is in: left and lower edge, width, height, slopes at its ends."""

    left: Tensor
    low: Tensor
    width: Tensor
    height: Tensor
    start: Tensor
    end: Tensor

    def rise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Share of the height at the share t of the width, and the log of the slope there."""
        slope, s = self.height / self.width, 1 - t
        ts = t * s
        below = slope + (self.start + self.end - 2 * slope) * ts
        above = self.end * t.square() + 2 * slope * ts + self.start * s.square()
        return (slope * t.square() + self.start * ts) / below, (above * (slope / below).square()).log()

    def run(self, r: Tensor) -> Tensor:
        """Share t of the width at the share r of the height: the root of a quadratic in t."""
        slope = self.height / self.width
        bend = r * (self.start + self.end - 2 * slope)
        b, c = self.start - bend, -slope * r
        root = (b.square() - 4 * (slope - b) * c).clamp_min(0).sqrt()
        return (-2 * c / (b + root)).clamp(0, 1)  # the form of the solution that does not cancel


@dataclass(frozen=True)
class Spline(Elementwise):
    """Rational-quadratic spline of `bins` bins on [-bound, bound] with linear tails of slope one.

    `least` bounds widths and heights (as a share of the interval) and slopes from below, and so
    the condition of the inverse. On a CPU, in float32 and float64, it is compiled (`rational_quadratic`); elsewhere, `formula`.
    """

    bins: int = 8
    bound: float = 4.0
    least: float = 1e-3

    @property
    def size(self) -> int:
        return 3 * self.bins - 1

    def _knots(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Edges and sizes of the bins, [B, 2 (x, y), bins, n], and slopes at the knots, [B, bins + 1, n]."""
        sizes, slopes = raw[:, : 2 * self.bins].unflatten(1, (2, self.bins)), raw[:, 2 * self.bins :]
        span = 2 * self.bound
        sizes = span * (1 - self.least * self.bins) * sizes.softmax(2) + span * self.least
        one = math.log(math.expm1(1 - self.least))  # softplus(one) + least = 1: slopes start at one, and end at one
        slopes = self.least + F.softplus(F.pad(slopes + one, (0, 0, 1, 1), value=one))
        return sizes.cumsum(2) - sizes - self.bound, sizes, slopes

    def _find(self, v: Tensor, raw: Tensor, side: int) -> _Bins:
        """The bin of each v, an x (side 0) or a y (side 1)."""
        edges, sizes, slopes = self._knots(raw)
        index = (v[:, None] >= edges[:, side, 1:]).sum(1, keepdim=True)
        both = index[:, None].expand(-1, 2, -1, -1)
        (left, low), (width, height) = (of.gather(2, both).squeeze(2).unbind(1) for of in (edges, sizes))
        return _Bins(left, low, width, height, slopes.gather(1, index).squeeze(1), slopes.gather(1, index + 1).squeeze(1))

    def __call__(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return self._through(x, raw, inverse=False)

    def inverse(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return self._through(y, raw, inverse=True)

    def _through(self, v: Tensor, raw: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        if not _compilable(v):
            return self.formula(v, raw, inverse=inverse)
        return cast("tuple[Tensor, Tensor]", _Compiled.apply(v, raw.to(v.dtype), self, inverse))

    def formula(self, v: Tensor, raw: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """The map or its inverse as tensor operations, for any device and any order of derivatives."""
        inside = v.abs() < self.bound
        held = v.clamp(-self.bound, self.bound)  # before the spline: a gradient through `where` must not meet a NaN
        bins = self._find(held, raw, int(inverse))
        if inverse:
            t = bins.run((held - bins.low) / bins.height)
            value, log_slope = bins.left + bins.width * t, -bins.rise(t)[1]
        else:
            share, log_slope = bins.rise((held - bins.left) / bins.width)
            value = bins.low + bins.height * share
        return torch.where(inside, value, v), log_slope.masked_fill(~inside, 0.0)


class _Compiled(torch.autograd.Function):
    """The spline by the passes of `rational_quadratic`; where a derivative is itself to be differentiated, by the formula."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, raw: Tensor, spline: Spline, inverse: bool) -> tuple[Tensor, Tensor]:
        from likely.bijections import rational_quadratic  # numba takes a third of a second to import

        v, raw = v.contiguous(), raw.contiguous()
        value, log_slope, p = torch.empty_like(v), torch.empty_like(v), v.new_empty(2 * spline.bins, v.numel())
        shape = spline.bins, spline.bound, spline.least, inverse
        rational_quadratic.transform(v.detach().numpy(), raw.detach().numpy(), *shape, p.numpy(), value.numpy(), log_slope.numpy())
        ctx.spline, ctx.shape = spline, shape
        ctx.save_for_backward(v, raw, p, value)
        return value, log_slope

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from likely.bijections import rational_quadratic

        v, raw, p, value = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph
            wanted = [t for t in (v, raw) if t.requires_grad]
            found = iter(torch.autograd.grad(ctx.spline.formula(v, raw, inverse=ctx.shape[-1]), wanted, grads, create_graph=True))
            return *(next(found) if t.requires_grad else None for t in (v, raw)), None, None
        grad_v, grad_raw = torch.empty_like(v), torch.empty_like(raw)
        arrays = (t.detach().contiguous().numpy() for t in (*grads, grad_v, grad_raw))
        x = value if ctx.shape[-1] else v
        rational_quadratic.gradient(x.detach().numpy(), raw.detach().numpy(), p.numpy(), *ctx.shape, *arrays)
        return grad_v, grad_raw, None, None
