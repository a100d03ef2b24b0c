r"""Monotone maps of single numbers, whose parameters a net or a table supplies.

    Affine   y = x exp(s) + t, with the log-scale bounded: s = c tanh(raw / c)
    Spline   a monotone rational-quadratic spline on [-B, B], the identity outside: onto the whole line

Each is a value without state: `size` raw parameters per number, zeros being a simple start, and
`(x, raw) -> y, log dy/dx` with raw [*x.shape, size]; `inverse` likewise.

References:
    | Neural spline flows (Durkan et al., 2019) | https://arxiv.org/abs/1906.04032
    | Density estimation using Real NVP (Dinh et al., 2017) | https://arxiv.org/abs/1605.08803
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

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
        """y and log dy/dx of x [...], given raw [..., size]."""

    @abstractmethod
    def inverse(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """x and log dx/dy."""


@dataclass(frozen=True)
class Affine(Elementwise):
    """y = x exp(s) + t with |s| < `bound`."""

    bound: float = 2.0

    @property
    def size(self) -> int:
        return 2

    def _scale_and_shift(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        s, t = raw.unbind(-1)
        return self.bound * torch.tanh(s / self.bound), t

    def __call__(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self._scale_and_shift(raw)
        return x * s.exp() + t, s

    def inverse(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self._scale_and_shift(raw)
        return (y - t) * (-s).exp(), -s


@dataclass(frozen=True)
class Spline(Elementwise):
    """Rational-quadratic spline of `bins` bins on [-bound, bound] with linear tails of slope one.

    `least` bounds widths and heights (as a share of the interval) and slopes from below, and so
    the condition of the inverse.
    """

    bins: int = 8
    bound: float = 4.0
    least: float = 1e-3

    @property
    def size(self) -> int:
        return 3 * self.bins - 1

    def _knots(self, raw: Tensor) -> Tensor:
        """Left edge, width, lower edge, height, left and right slope of each bin, [..., 6, bins]."""
        widths, heights, slopes = raw.split([self.bins, self.bins, self.bins - 1], -1)
        size = torch.stack([widths, heights], -2).softmax(-1) * (1 - self.least * self.bins) + self.least
        size = 2 * self.bound * size
        left = size.cumsum(-1) - size - self.bound
        # softplus(one) + least = 1: slopes start at one, and end at one
        one = math.log(math.expm1(1 - self.least))
        slopes = self.least + F.softplus(F.pad(slopes + one, (1, 1), value=one))
        return torch.cat([left, size, slopes[..., None, :-1], slopes[..., None, 1:]], -2)

    def _bin_of(self, v: Tensor, edges: Tensor, knots: Tensor) -> list[Tensor]:
        index = (v[..., None] >= edges[..., 1:]).sum(-1)
        return list(knots.gather(-1, index[..., None, None].expand(*index.shape, 6, 1)).squeeze(-1).unbind(-1))

    def __call__(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        knots = self._knots(raw)
        inside = x.abs() < self.bound
        v = x.clamp(-self.bound, self.bound)  # before the spline: a gradient through `where` must not meet a NaN
        left, low, width, height, d0, d1 = self._bin_of(v, knots[..., 0, :], knots)
        slope, t = height / width, (v - left) / width
        y, log_slope = _rational_quadratic(t, slope, d0, d1)
        return torch.where(inside, low + height * y, x), log_slope.masked_fill(~inside, 0.0)

    def inverse(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        knots = self._knots(raw)
        inside = y.abs() < self.bound
        v = y.clamp(-self.bound, self.bound)
        left, low, width, height, d0, d1 = self._bin_of(v, knots[..., 1, :], knots)
        slope, r = height / width, (v - low) / height
        bend = r * (d0 + d1 - 2 * slope)
        b, c = d0 - bend, -slope * r
        root = (b.square() - 4 * (slope - b) * c).clamp_min(0).sqrt()
        t = (-2 * c / (b + root)).clamp(0, 1)  # this form of the root does not cancel
        _, log_slope = _rational_quadratic(t, slope, d0, d1)
        return torch.where(inside, left + width * t, y), -log_slope.masked_fill(~inside, 0.0)


def _rational_quadratic(t: Tensor, slope: Tensor, d0: Tensor, d1: Tensor) -> tuple[Tensor, Tensor]:
    """Share of the bin's height at the share t of its width, and the log of the slope there."""
    s, ts = 1 - t, t * (1 - t)
    below = slope + (d0 + d1 - 2 * slope) * ts
    above = d1 * t.square() + 2 * slope * ts + d0 * s.square()
    return (slope * t.square() + d0 * ts) / below, above.log() + 2 * (slope / below).log()
