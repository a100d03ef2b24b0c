r"""Heads: a net's outputs at one entry -> the distribution of that entry, with its exact mass.

Nets know nothing of probability and families should not each invent their own output layer, so
this stands between them. With params [..., width] of an entry x:

    categorical         log softmax(params)_x; a missing cell is one more state
    logistic mixture    log sum_k pi_k [ F((b - mu_k) / s_k) - F((a - mu_k) / s_k) ],  F the logistic CDF
                        over the cell [a, b) of x on the standardised scale; the first and last cell of an
                        ordinal are open and the grid of a decimal is unbounded, so masses sum to one:
                        log [F(z + w) - F(z)] = log F(z + w) + log F(-z) + log(1 - exp(-w))
    normal mixture      log sum_k pi_k N(u; mu_k, s_k) - log scale: the density of a real; s_k >= 1e-3 of
                        the data's standard deviation
    missing             of a number: a Bernoulli of its own, before the rest

Outputs near zero mean something sensible: a uniform categorical, or a mixture whose components are
spread over the standardised data. `Heads` serves all entries of a space at once, entries of equal
kind together, so that 64 columns are one computation.

References:
    | PixelCNN++: Improving the PixelCNN with discretized logistic mixture likelihood (Salimans et al., 2017) | https://arxiv.org/abs/1701.05517
    | Mixture density networks (Bishop, 1994) | https://publications.aston.ac.uk/id/eprint/373/
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from likely.solve.intervals import log1mexp
from likely.space import MISSING, Space, Support, from_grid, to_grid

__all__ = ["Categorical", "Head", "Heads", "LogisticMixture", "NormalMixture", "head_for"]

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_REAL_FLOOR = 1e-3  # smallest standard deviation of a real's component, in the data's own
_CELL_FLOOR = 1 / 32  # smallest logistic scale, in cells: narrower ones are a point mass already
_CEILING = 1e3  # largest scale of a component, in the data's standard deviation
_FINE = 1e-3  # cells narrower than this on the standardised scale need float64


@runtime_checkable
class Head(Protocol):
    """The distribution of entries that share a kind; entries are axis 1 of x, or there is just one."""

    @property
    def width(self) -> int:
        """Parameters per entry."""
        ...

    def log_mass(self, params: Tensor, x: Tensor) -> Tensor:
        """params [..., width], x [...] in data units -> log-mass (of a real: log-density), nats [...]."""
        ...

    def sample(self, params: Tensor) -> Tensor:
        """params [..., width] -> one draw of each entry, [...] in data units."""
        ...


@lru_cache(maxsize=1024)
def _constant(values: tuple[float | int, ...], trailing: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One value per entry, shaped to broadcast over axis 1 of `trailing` more axes; one value serves all entries."""
    tensor = torch.tensor(values, dtype=dtype, device=device)
    return tensor[0] if len(values) == 1 else tensor.view(-1, *[1] * trailing)


def _lost(x: Tensor) -> Tensor:
    """Missing cells: -1, or NaN in a table that has real columns, too."""
    return torch.isnan(x) | (x == MISSING)


def _gumbel_argmax(logits: Tensor) -> Tensor:
    """A draw from softmax(logits) over the last axis."""
    return (logits - torch.empty_like(logits).exponential_().log()).argmax(-1)


@dataclass(frozen=True)
class Categorical:
    """Any probabilities over finitely many states; entries with fewer than `width` of them ignore the rest."""

    supports: tuple[Support, ...]

    @cached_property
    def states(self) -> tuple[int, ...]:
        return tuple(s.levels + s.missing for s in self.supports)

    @property
    def width(self) -> int:
        return max(self.states)

    def log_mass(self, params: Tensor, x: Tensor) -> Tensor:
        code = torch.where(_lost(x) | (x < 0), self._per_entry(self.states, x) - 1, x).long()
        return -F.cross_entropy(self._logits(params, x).flatten(0, -2), code.flatten(), reduction="none").view(x.shape)

    def sample(self, params: Tensor) -> Tensor:
        code = _gumbel_argmax(self._logits(params, params[..., 0]))
        if not any(s.missing for s in self.supports):
            return code
        missing = self._per_entry(tuple(s.levels if s.missing else -2 for s in self.supports), code)
        return torch.where(code == missing, MISSING, code)

    def _logits(self, params: Tensor, like: Tensor) -> Tensor:
        """float32 logits, minus infinity for states that an entry lacks."""
        if min(self.states) == self.width:
            return params.float()
        state = torch.arange(self.width, device=params.device)
        return params.float().masked_fill(state >= self._per_entry(self.states, like)[..., None], -math.inf)

    def _per_entry(self, values: tuple[int, ...], like: Tensor) -> Tensor:
        return _constant(values, max(0, like.ndim - 2), torch.int64, like.device)


@dataclass(frozen=True)
class _Mixture:
    """What the mixtures of numbers share: parameters, missing cells, standardisation."""

    supports: tuple[Support, ...]
    components: int = 5

    @cached_property
    def missing(self) -> bool:
        return any(s.missing for s in self.supports)

    @property
    def width(self) -> int:
        return 3 * self.components + self.missing

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of positions: float64 where a cell is so narrow that float32 could not tell it from its neighbour."""
        fine = any(s.kind != "real" and s.scale * _FINE > 1 for s in self.supports)
        return torch.float64 if fine else torch.float32

    def _affine(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Center and scale per entry, float64."""
        return self._per_entry([s.center for s in self.supports], like), self._per_entry([s.scale for s in self.supports], like)

    def _per_entry(self, values: Sequence[float | int], like: Tensor) -> Tensor:
        return _constant(tuple(map(float, values)), max(0, like.ndim - 2), torch.float64, like.device)

    def _mixture(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weight logits, means and log-scales [..., components]; zero parameters spread the components over [-1.5, 1.5]."""
        logits, mean, log_s = params[..., : 3 * self.components].float().unflatten(-1, (3, self.components)).unbind(-2)
        spread = torch.linspace(-1.5, 1.5, self.components, device=params.device) if self.components > 1 else mean.new_zeros(1)
        floor = self._floor(params[..., 0])[..., None].float()
        log_s = torch.minimum(torch.maximum(log_s - math.log(self.components), floor), mean.new_tensor(math.log(_CEILING)))
        return logits, mean + spread, log_s

    def _floor(self, like: Tensor) -> Tensor:
        """Smallest log-scale per entry."""
        return self._per_entry([math.log(_REAL_FLOOR if s.kind == "real" else _CELL_FLOOR / s.scale) for s in self.supports], like)

    def _component(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale of one component of each entry, drawn by its weight; in data units, float64."""
        logits, mean, log_s = self._mixture(params)
        k = _gumbel_argmax(logits)[..., None]
        center, scale = self._affine(params[..., 0])
        pick = [v.gather(-1, k)[..., 0].double() for v in (mean, log_s)]
        return center + scale * pick[0], scale * pick[1].exp()

    def _with_missing(self, nats: Tensor, params: Tensor, lost: Tensor) -> Tensor:
        if not self.missing:
            return nats
        logit = params[..., -1].float()
        can = self._per_entry([s.missing for s in self.supports], lost).bool()
        return torch.where(lost & can, F.logsigmoid(logit), nats + torch.where(can, F.logsigmoid(-logit), 0.0))

    def _lose(self, x: Tensor, params: Tensor, empty: float | int) -> Tensor:
        """Put `empty` where the missing state is drawn."""
        if not self.missing:
            return x
        can = self._per_entry([s.missing for s in self.supports], x).bool()
        return torch.where(can & (torch.rand(x.shape, device=x.device) < params[..., -1].float().sigmoid()), empty, x)


@dataclass(frozen=True)
class LogisticMixture(_Mixture):
    """A mixture of logistics integrated over the cells of an ordinal (open at both ends) or a decimal (unbounded)."""

    def log_mass(self, params: Tensor, x: Tensor) -> Tensor:
        lost, index = _lost(x), self._index(x)
        center, scale = self._affine(x)
        logits, mean, log_s = self._mixture(params)
        lower = ((index - center) / scale).to(self.dtype)[..., None]
        z = ((lower - mean) / log_s.exp()).float()
        w = (1 / scale).float()[..., None] / log_s.exp()
        levels = self._levels(x)
        first, last = ((index <= 0) & levels.isfinite())[..., None], (index >= levels - 1)[..., None]
        nats = (logits.log_softmax(-1) + _log_cell(z, w, first, last)).logsumexp(-1)
        return self._with_missing(nats, params, lost)

    def sample(self, params: Tensor) -> Tensor:
        mean, s = self._component(params)
        index = (mean + s * torch.logit(torch.rand_like(mean).clamp_min(2.0**-54))).floor()
        levels = self._levels(mean)
        finite = levels.isfinite()
        index = torch.where(finite, index.clamp_min(0.0), index).clamp(-(2.0**52), 2.0**52).minimum(levels - 1).long()
        return self._lose(torch.where(finite, index, from_grid(index)), params, MISSING)

    def _index(self, x: Tensor) -> Tensor:
        """Position on the grid of each cell, float64; 0 where missing, whose mass is not asked."""
        x = torch.where(_lost(x), 0, x)
        return torch.where(self._levels(x).isfinite(), x, to_grid(x)).double()

    def _levels(self, like: Tensor) -> Tensor:
        return self._per_entry([s.levels if s.kind == "ordinal" else math.inf for s in self.supports], like)


@dataclass(frozen=True)
class NormalMixture(_Mixture):
    """The density of reals as a mixture of normals."""

    def log_mass(self, params: Tensor, x: Tensor) -> Tensor:
        lost = torch.isnan(x)
        center, scale = self._affine(x)
        logits, mean, log_s = self._mixture(params)
        u = ((torch.where(lost, 0.0, x) - center) / scale).float()[..., None]
        component = -0.5 * ((u - mean) / log_s.exp()).square() - log_s - _LOG_SQRT_2PI
        nats = (logits.log_softmax(-1) + component).logsumexp(-1) - scale.log().float()
        return self._with_missing(nats, params, lost)

    def sample(self, params: Tensor) -> Tensor:
        mean, s = self._component(params)
        return self._lose((mean + s * torch.randn_like(mean)).float(), params, math.nan)


def _log_cell(z: Tensor, w: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """log [F(z + w) - F(z)] of the logistic CDF F; `first` cells reach to -infinity, `last` ones to infinity."""
    below, above = F.logsigmoid(z + w), F.logsigmoid(-z)
    inside = torch.where(first | last, 0.0, log1mexp(w))
    return torch.where(last, 0.0, below) + torch.where(first, 0.0, above) + inside


def head_for(*supports: Support, components: int = 5, categorical_up_to: int = 64) -> Head:
    """The head of entries of one kind; ordinals of more than `categorical_up_to` levels get a logistic mixture."""
    s = supports[0]
    if s.kind == "real":
        return NormalMixture(supports, components)
    if s.kind == "nominal" or (s.kind == "ordinal" and s.levels <= categorical_up_to):
        return Categorical(supports)
    return LogisticMixture(supports, components)


class Heads:
    """The heads of all entries of a space, computed together where they are of one kind.

    Entries are the channels of a grid, the columns of a table, or all places of a sequence. Every
    entry has the same `width`, the largest that one needs; the others ignore what they do not use.

    Args:
        components: of the mixtures.
        categorical_up_to: ordinals of at most so many levels are categorical.
    """

    def __init__(self, space: Space, *, components: int = 5, categorical_up_to: int = 64) -> None:
        self.space, self._how = space, {"components": components, "categorical_up_to": categorical_up_to}
        kinds: dict[tuple[str, int], list[int]] = {}
        for i in range(len(space.supports)):
            head = self.at(i)
            bucket = head.width.bit_length() if isinstance(head, Categorical) else 0
            kinds.setdefault((type(head).__name__, bucket), []).append(i)
        self.groups = [(which, head_for(*(space.supports[i] for i in which), **self._how)) for which in kinds.values()]
        self.order = torch.tensor([i for which, _ in self.groups for i in which]).argsort()
        self.width = max(head.width for _, head in self.groups)

    def at(self, entry: int) -> Head:
        """The head of one channel or column alone, for models that go entry by entry."""
        return head_for(self.space.supports[entry], **self._how)

    def sample_at(self, entry: int, params: Tensor) -> Tensor:
        """params [B, at least the entry's width] -> draws [B] of one channel or column, as the space stores them."""
        head = self.at(entry)
        return self._stored(head, head.sample(params[..., : head.width]))

    def log_mass(self, params: Tensor, x: Tensor) -> Tensor:
        """params [B, *shape, width], x [B, *shape] -> nats of each entry, [B, *shape]."""
        if len(self.groups) == 1:
            return self.groups[0][1].log_mass(params, x)
        return self._join([head.log_mass(params[:, which][..., : head.width], x[:, which]) for which, head in self.groups])

    def sample(self, params: Tensor) -> Tensor:
        """params [B, *shape, width] -> x [B, *shape] in data units."""
        if len(self.groups) == 1:
            return self.groups[0][1].sample(params)
        return self._join([self._stored(head, head.sample(params[:, which][..., : head.width])) for which, head in self.groups])

    def _stored(self, head: Head, x: Tensor) -> Tensor:
        """As the space stores it: in a table with reals, a number that is missing is NaN."""
        x = x.to(self.space.dtype)
        return torch.where(x == MISSING, math.nan, x) if isinstance(head, LogisticMixture) and not self.space.discrete else x

    def _join(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts, 1).index_select(1, self.order.to(parts[0].device))
