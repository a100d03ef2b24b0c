r"""Log-probability of an interval under a normal, a logistic or a heavy-tailed Student's t, accurate in the tails and for narrow intervals.

Normal, with the interval reflected into the lower half so that nothing near 1 is subtracted:

    log(Phi(b) - Phi(a)) = log Phi(b) + log(1 - exp(log Phi(a) - log Phi(b)))

which cancels where b - a is small; there, with m = (a + b) / 2 and w = b - a, the midpoint rule:

    log phi(m) + log w + (m^2 - 1) w^2 / 24                      (relative error O(w^4 m^4))

Logistic, an identity without cancellation:

    log(sigma(b) - sigma(a)) = log sigma(b) + log sigma(-a) + log(1 - exp(-(b - a)))

Student's t with two degrees of freedom, whose tails fall as |x|^-3, with A = sqrt(2 + a^2), B = sqrt(2 + b^2):

    F(b) - F(a) = (b - a) (b + a) / (A B (b A + a B))            (both on one side of 0: nothing is subtracted)

Edges may be infinite. Where neighbouring intervals share an edge, the masses telescope to 1.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

__all__ = ["log1mexp", "logistic_interval", "normal_interval", "normal_log_density", "student_interval", "student_log_density"]

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_NARROW = 1e-3


def log1mexp(d: Tensor) -> Tensor:
    """log(1 - exp(-d)) for d > 0, by the branch that keeps its digits; gradients are finite on both."""
    small = d < math.log(2)
    near = torch.where(small, d, 1.0)
    far = torch.where(small, 1.0, d)
    return torch.where(small, (-torch.expm1(-near)).log(), torch.log1p(-torch.exp(-far)))


def normal_log_density(u: Tensor) -> Tensor:
    """log N(u; 0, 1)."""
    return -0.5 * u.square() - _LOG_SQRT_2PI


def normal_interval(lower: Tensor, upper: Tensor) -> Tensor:
    """log P(lower < u < upper) for a standard normal u, elementwise, in float64; no gradients at infinite edges."""
    lower, upper = torch.broadcast_tensors(lower.double(), upper.double())
    flip = lower + upper > 0
    a, b = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    middle, width = (a + b) / 2, b - a
    narrow = width * middle.abs().clamp_min(1.0) < _NARROW
    top = torch.special.log_ndtr(b)
    wide = top + log1mexp((top - torch.special.log_ndtr(a)).clamp_min(torch.finfo(torch.float64).tiny))
    thin = normal_log_density(middle) + width.log() + (middle.square() - 1) * width.square() / 24
    return torch.where(narrow, thin, wide)


def logistic_interval(lower: Tensor, upper: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log P(lower < u < upper) for u logistic with `mean` and exp(`log_scale`), elementwise, in the inputs' precision.

    Differentiable in `mean` and `log_scale`, infinite edges included: those are masked before they
    meet the parameters.
    """
    open_below, open_above = torch.isneginf(lower), torch.isposinf(upper)
    a = (torch.where(open_below, 0.0, lower) - mean) * torch.exp(-log_scale)
    b = (torch.where(open_above, 0.0, upper) - mean) * torch.exp(-log_scale)
    width = torch.where(open_below | open_above, 1.0, (upper - lower)) * torch.exp(-log_scale)
    inside = torch.where(open_below | open_above, 0.0, log1mexp(width))
    return torch.where(open_above, 0.0, logsigmoid(b)) + torch.where(open_below, 0.0, logsigmoid(-a)) + inside


def student_log_density(u: Tensor) -> Tensor:
    """log t(u; 2 degrees of freedom) = -1.5 log(2 + u^2)."""
    return -1.5 * torch.log(2 + u.square())


def student_interval(lower: Tensor, upper: Tensor) -> Tensor:
    """log P(lower < u < upper) for u of Student's t with two degrees of freedom, elementwise, in float64."""
    lower, upper = torch.broadcast_tensors(lower.double(), upper.double())
    flip = lower + upper < 0
    a, b = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)  # now b >= |a|
    apart, endless = a < 0, torch.isposinf(b)
    low, high = a.masked_fill(apart, 0.0), b.masked_fill(endless, 1.0)
    below, above = torch.sqrt(2 + low.square()), torch.sqrt(2 + high.square())
    one_side = torch.where(
        endless, 1 / (below * (below + low)), (high - low) * (high + low) / (below * above * (high * below + low * above))
    )
    return torch.where(apart, (_student_half(b) + _student_half(-a)), one_side).log()


def _student_half(u: Tensor) -> Tensor:
    """P(0 < t < u) for u >= 0, which may be infinite."""
    return 0.5 / torch.sqrt(1 + 2 / u.square())
