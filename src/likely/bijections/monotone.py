r"""More monotone maps of single numbers: a shift, and the distribution functions of mixtures made to reach the whole line.

    Additive     y = x + t: volume is kept
    MixtureCDF   y = G^-1(F(x)),  F(x) = sum_k w_k G((x - m_k) / s_k),  G that of a logistic or of a normal

G^-1 after F makes the tails of y linear, with the slope of the widest component: the map is onto the whole line, so
that a density made with it has mass one. (F alone would end in (0, 1), and what follows it would lose mass.)
Everything is computed from log F and log (1 - F), of which the smaller keeps its digits: nothing saturates at |x| = 1e3.

At raw parameters of zero the components stand in a row, with weights for which the mixture is nearly G itself
(their means have variance 1/2, each has the other half), so that the map is nearly the identity and no two components
have the same gradient.

The inverse needs no gradient and no start: the quantile of a mixture lies between those of its components,

    min_k m_k + s_k y  <=  x  <=  max_k m_k + s_k y,

and Newton steps on y, halved to the bracket where they leave it, shrink that bracket. A last step carries the gradient.
Beyond |x| = 1e4, where the tails have long been linear and logarithms of F would lose digits, the map goes on along its tangents.

References:
    | NICE: Non-linear independent components estimation (Dinh et al., 2014) | https://arxiv.org/abs/1410.8516
    | Flow++ (mixtures of logistics in couplings; Ho et al., 2019) | https://arxiv.org/abs/1902.00275
    | Gaussianization flows (Meng et al., 2020) | https://arxiv.org/abs/2003.01941
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from likely.bijections.base import no_volume
from likely.bijections.elementwise import Compiled, Elementwise
from likely.errors import LikelyError

__all__ = ["Additive", "MixtureCDF", "log_ndtri"]

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_FAR = 1e4
_STEPS = 200  # halving alone takes 64 to the last bit of a float64; Newton far fewer


@dataclass(frozen=True)
class Additive(Compiled):
    """y = x + t (a few operations of torch, compiled enough)."""

    @property
    def size(self) -> int:
        return 1

    def __call__(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return x + raw[:, 0], torch.zeros_like(x)

    def inverse(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return y - raw[:, 0], torch.zeros_like(y)

    def passed(self, x: Tensor, places: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor, Any]:
        return x.index_add(1, places, raw[:, 0], alpha=-1 if inverse else 1), no_volume(x), ()

    def pulled(
        self, x: Tensor, y: Tensor, places: Tensor, raw: Tensor, inverse: bool, kept: Any, grad_y: Tensor, grad_log: Tensor
    ) -> tuple[Tensor, Tensor]:
        by_shift = grad_y.index_select(1, places)[:, None]
        return grad_y.clone(), -by_shift if inverse else by_shift


def _log_normal(z: Tensor) -> Tensor:
    return -0.5 * z.square() - _LOG_SQRT_2PI


def log_ndtri(log_p: Tensor) -> Tensor:
    """The x at which a standard normal's log distribution function is log_p < 0, however small p is; differentiable."""
    with torch.no_grad():
        goal = log_p.detach()
        far = goal < -30  # where p itself would lose digits: log Phi(x) = -x^2 / 2 - log(-x) - log sqrt(2 pi) + O(x^-2)
        x = -(-2 * (goal.clamp_max(-30) + _LOG_SQRT_2PI)).sqrt()
        x = -(-2 * (goal.clamp_max(-30) + _LOG_SQRT_2PI + (-x).log())).sqrt()
        x = torch.where(far, x, torch.special.ndtri(goal.exp()))
        for _ in range(3):
            x = x - (torch.special.log_ndtr(x) - goal) * (torch.special.log_ndtr(x) - _log_normal(x)).exp()
    log_cdf = torch.special.log_ndtr(x)
    return x + (log_p - log_cdf) * (log_cdf - _log_normal(x)).exp()


@dataclass(frozen=True)
class MixtureCDF(Elementwise):
    """G^-1 of a mixture's distribution function.

    Args:
        components: of the mixture.
        base: "logistic" or "normal", the G of every component and of the result.
        reach: log-scales lie within this of where they start.
    """

    components: int = 8
    base: Literal["logistic", "normal"] = "logistic"
    reach: float = 4.0

    @property
    def size(self) -> int:
        return 3 * self.components

    def _mixture(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, means and log-scales [B, components, n], float64."""
        weights, means, scales = raw.double().unflatten(1, (3, self.components)).unbind(1)
        log_weights, places, start = (v.to(raw.device) for v in self._row)
        return (weights + log_weights).log_softmax(1), means + places, start + self.reach * torch.tanh(scales / self.reach)

    @property
    def _row(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights (up to a constant), means and log-scale where raw parameters are zero, float64 [components, 1] or [1]."""
        spread = math.sqrt(0.5) * (math.pi / math.sqrt(3) if self.base == "logistic" else 1.0)
        ends = 0.0 if self.components == 1 else 2.5 * spread
        places = torch.linspace(-ends, ends, self.components, dtype=torch.float64)[:, None]
        start = 0.0 if self.components == 1 else 0.5 * math.log(0.5)
        return -0.5 * (places / spread).square(), places, torch.tensor([start], dtype=torch.float64)

    def raw_of(self, means: Tensor, scales: Tensor) -> Tensor:
        """Raw parameters [size, n] of components of equal weight at `means` [components, n], as wide as `scales`, if that is in reach."""
        log_weights, places, start = (v.to(means.device) for v in self._row)
        far = ((scales.double().log() - start) / self.reach).clamp(-0.99, 0.99)
        return torch.cat([(-log_weights).expand_as(means), means - places, self.reach * far.atanh()])

    def _sides(self, x: Tensor, mixture: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """log F, log (1 - F) and log F' at x [B, n]."""
        weights, means, scales = mixture
        z = (x[:, None] - means) * (-scales).exp()
        if self.base == "logistic":
            below, above = F.logsigmoid(z), F.logsigmoid(-z)
            density = below + above
        else:
            below, above, density = torch.special.log_ndtr(z), torch.special.log_ndtr(-z), _log_normal(z)
        return (weights + below).logsumexp(1), (weights + above).logsumexp(1), (weights - scales + density).logsumexp(1)

    def _apply(self, x: Tensor, mixture: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        below, above, density = self._sides(x, mixture)
        if self.base == "logistic":
            return below - above, density - below - above
        lower = below < above
        y = log_ndtri(torch.where(lower, below, above))
        y = torch.where(lower, y, -y)
        return y, density - _log_normal(y)

    def __call__(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        x64 = x.double()
        near = x64.clamp(-_FAR, _FAR)
        y, log_derivative = self._apply(near, self._mixture(raw))
        y = y + (x64 - near) * log_derivative.exp()
        return y.to(x.dtype), log_derivative.to(x.dtype)

    def inverse(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        mixture, goal = self._mixture(raw), y.double()
        near = self._before_tangents(goal, mixture)
        with torch.no_grad():
            root = self._root(near, mixture)
        value, log_derivative = self._apply(root, mixture)
        x = root + (near - value) * (-log_derivative).exp().detach()  # of no size, but with the gradient of the implicit function
        x = torch.where(near == goal, x, torch.copysign(torch.full_like(x, _FAR), goal - near))
        log_derivative = self._apply(x, mixture)[1]
        x = x + (goal - near) * (-log_derivative).exp()
        return x.to(y.dtype), -log_derivative.to(y.dtype)

    def _before_tangents(self, y: Tensor, mixture: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """y, or the end of a tangent that it lies on."""
        if not bool((_ends(y, mixture).abs() > _FAR).any()):
            return y
        low, high = (self._apply(torch.full_like(y, end), mixture)[0] for end in (-_FAR, _FAR))
        return torch.minimum(torch.maximum(y, low), high)

    def _root(self, y: Tensor, mixture: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """x with y(x) = y to the last bits: a bracketed Newton iteration, in float64.

        Raises: LikelyError if the bracket has not closed, which no finite parameters and values bring about.
        """
        ends = _ends(y, mixture)
        low, high = ends.amin(1), ends.amax(1)
        x = (low + high) / 2
        for _ in range(_STEPS):
            value, log_derivative = self._apply(x, mixture)
            low, high = torch.where(value < y, x, low), torch.where(value < y, high, x)
            tight = 8 * torch.finfo(x.dtype).eps * (1 + x.abs())
            step = (y - value) * (-log_derivative).exp()
            if bool(((high - low <= tight) | (step.abs() <= tight)).all()):
                return x
            newton, middle = x + step, (low + high) / 2
            x = torch.where((newton > low) & (newton < high), newton, middle)
        raise LikelyError(
            "The inverse of a mixture's distribution function was not found.",
            "Parameters or values are not finite: train with a smaller lr.",
        )


def _ends(y: Tensor, mixture: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Quantiles of the components [B, components, n], between which that of the mixture lies."""
    _, means, scales = mixture
    return means + scales.exp() * y[:, None]
