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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from likely.bijections.base import no_volume
from likely.errors import UsageError

__all__ = ["Affine", "Compiled", "Elementwise", "Spline", "arrays", "compilable", "with_graph"]


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


def compilable(x: Tensor) -> bool:
    """Whether compiled passes can take it."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


class Compiled(Elementwise):
    """A map whose `among` and its gradient are compiled for a CPU, in float32 and float64; elsewhere, tensor operations."""

    @abstractmethod
    def passed(self, x: Tensor, places: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor, Any]:
        """`among` without a graph, and what its gradient needs."""

    @abstractmethod
    def pulled(
        self, x: Tensor, y: Tensor, places: Tensor, raw: Tensor, inverse: bool, kept: Any, grad_y: Tensor, grad_log: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients by x (new, to be written to) and by raw, from those by the results y and log-determinant."""

    def among(self, x: Tensor, places: Tensor | None, raw: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        if not compilable(x):
            return super().among(x, places, raw, inverse=inverse)
        places = torch.arange(x.shape[1]) if places is None else places
        raw = raw.to(x.dtype)
        if torch.is_grad_enabled() and (x.requires_grad or raw.requires_grad):
            return cast("tuple[Tensor, Tensor]", _Among.apply(x, raw, places, self, inverse))
        return self.passed(x.detach().contiguous(), places, raw.detach().contiguous(), inverse)[:2]

    def tensors_among(self, x: Tensor, places: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """`among` as tensor operations, for any order of derivatives."""
        return super().among(x, places, raw, inverse=inverse)


class _Among(torch.autograd.Function):
    """The compiled `among`; where a derivative is itself to be differentiated, tensor operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, raw: Tensor, places: Tensor, transform: Compiled, inverse: bool) -> tuple[Tensor, Tensor]:
        y, log_det, kept = transform.passed(x.detach().contiguous(), places, raw.detach().contiguous(), inverse)
        ctx.transform, ctx.inverse, ctx.kept = transform, inverse, kept
        ctx.save_for_backward(x, raw, places, y)
        return y, log_det

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, raw, places, y = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph
            return *with_graph(ctx.transform.tensors_among(x, places, raw, ctx.inverse), (x, raw), grads), None, None, None
        return *ctx.transform.pulled(x, y, places, raw, ctx.inverse, ctx.kept, *grads), None, None, None


def with_graph(results: tuple[Tensor, ...], inputs: Sequence[Tensor], grads: tuple[Tensor, ...]) -> Iterator[Tensor | None]:
    """The gradients by those of the inputs that ask for one, which can be differentiated again."""
    pairs = [pair for pair in zip(results, grads, strict=True) if pair[0].requires_grad]
    wanted, (values, cotangents) = [t for t in inputs if t.requires_grad], zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(values, wanted, cotangents, create_graph=True))
    return (next(found) if t.requires_grad else None for t in inputs)


def arrays(*tensors: Tensor) -> tuple[Any, ...]:
    """As numba takes them."""
    return tuple(t.detach().contiguous().numpy() for t in tensors)


@dataclass(frozen=True)
class Affine(Compiled):
    """y = x exp(s) + t with |s| < `bound` (compiled: `affine_passes`)."""

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

    def passed(self, x: Tensor, places: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor, Any]:
        from likely.bijections import affine_passes  # numba takes a third of a second to import

        y, log_det, kept = torch.empty_like(x), no_volume(x), [raw.new_empty(len(x), len(places)) for _ in range(2)]
        has = [*arrays(x, raw, places), self.bound, inverse, *arrays(y, log_det, *kept)]
        affine_passes.transform(*has)
        return y, log_det, kept

    def pulled(
        self, x: Tensor, y: Tensor, places: Tensor, raw: Tensor, inverse: bool, kept: Any, grad_y: Tensor, grad_log: Tensor
    ) -> tuple[Tensor, Tensor]:
        from likely.bijections import affine_passes

        grad_x, grad_raw = grad_y.clone(memory_format=torch.contiguous_format), raw.new_empty(raw.shape)
        has = [*arrays(x, y, places), inverse, *arrays(*kept, grad_log, grad_x, grad_raw)]
        affine_passes.gradient(*has)
        return grad_x, grad_raw


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
class Spline(Compiled):
    """Rational-quadratic spline of `bins` bins on [-bound, bound] with linear tails of slope one.

    `least` bounds widths and heights (as a share of the interval) and slopes from below, and so
    the condition of the inverse. Compiled: `rational_quadratic`; as tensor operations: `formula`.

    Raises: UsageError for so many bins of that width that they are wider than the interval.
    """

    bins: int = 8
    bound: float = 4.0
    least: float = 1e-3

    def __post_init__(self) -> None:
        if self.bins < 1 or self.bins * self.least >= 1:
            most = math.ceil(1 / self.least) - 1
            raise UsageError(
                f"A spline cannot have {self.bins} bins.", f"Each has {self.least:g} of the interval at least: give 1 to {most}."
            )

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
        if not compilable(v):
            return self.formula(v, raw, inverse=inverse)
        return cast("tuple[Tensor, Tensor]", _Compiled.apply(v, raw.to(v.dtype), self, inverse))

    def passed(self, x: Tensor, places: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor, Any]:
        v = x.index_select(1, places)
        value, log_slope, p = self.compiled(v, raw, inverse)
        return x.index_copy(1, places, value), log_slope.sum(1, dtype=torch.float64), (value if inverse else v, p)

    def pulled(
        self, x: Tensor, y: Tensor, places: Tensor, raw: Tensor, inverse: bool, kept: Any, grad_y: Tensor, grad_log: Tensor
    ) -> tuple[Tensor, Tensor]:
        at, p = kept
        by_value, by_log = grad_y.index_select(1, places), grad_log.to(at.dtype)[:, None].expand_as(at)
        grad_v, grad_raw = self.compiled_gradient(at, raw, p, inverse, by_value, by_log)
        return grad_y.index_copy(1, places, grad_v), grad_raw

    def tensors_among(self, x: Tensor, places: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        value, log_slope = self.formula(x.index_select(1, places), raw, inverse=inverse)
        return x.index_copy(1, places, value), log_slope.sum(1, dtype=torch.float64)

    def compiled(self, v: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The map or its inverse, the log of its slope, and the probabilities that its gradient needs."""
        from likely.bijections import rational_quadratic  # numba takes a third of a second to import

        value, log_slope, p = torch.empty_like(v), torch.empty_like(v), v.new_empty(2 * self.bins, v.numel())
        has = [*arrays(v, raw), self.bins, self.bound, self.least, inverse, *arrays(p, value, log_slope)]
        rational_quadratic.transform(*has)
        return value, log_slope, p

    def compiled_gradient(
        self, x: Tensor, raw: Tensor, p: Tensor, inverse: bool, grad_value: Tensor, grad_log: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients by the input and by raw; x is the map's argument: what the inverse gave, where that is meant."""
        from likely.bijections import rational_quadratic

        grad_v, grad_raw = torch.empty_like(x), raw.new_empty(raw.shape)
        shape = self.bins, self.bound, self.least, inverse
        has = [*arrays(x, raw, p), *shape, *arrays(grad_value, grad_log, grad_v, grad_raw)]
        rational_quadratic.gradient(*has)
        return grad_v, grad_raw

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
        v, raw = v.contiguous(), raw.contiguous()
        value, log_slope, p = spline.compiled(v, raw, inverse)
        ctx.spline, ctx.inverse = spline, inverse
        ctx.save_for_backward(v, raw, p, value)
        return value, log_slope

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        v, raw, p, value = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph
            return *with_graph(ctx.spline.formula(v, raw, inverse=ctx.inverse), (v, raw), grads), None, None
        return *ctx.spline.compiled_gradient(value if ctx.inverse else v, raw, p, ctx.inverse, *grads), None, None
