"""What every model of an invertible map does alike: density, draws, latents.

    log p(u) = log N(f(u); 0, I) + log |det df/du|

u is the example lifted to reals (`Space.relax`), z = f(u) is noise. A family builds f as `self.map`, all else is here. One that sets
`self.dequantizer` learns where in their cells numbers are lifted to.
"""

import math
from abc import ABC
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from likely.abilities import Drawn, Fillable, Filled, Latent, Likelihood, Reparameterised, Starts
from likely.bijections import Bijection, chunks
from likely.completion import REFERENCE, complete
from likely.dequantization import Dequantizer
from likely.errors import UsageError
from likely.logprob import LogProb
from likely.model import Model, evaluating, expand_given
from likely.noise import Noise
from likely.own_order import fill_by_own_order
from likely.space import Relaxed, Space

__all__ = ["Invertible", "log_normal"]

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_PARTICLES = 32
_CHUNK = 2**16  # entries that pass the map at once, so that memory stays bounded


class Invertible(Model, Likelihood, Latent, Reparameterised, Fillable, Starts, ABC):
    """Carries data to standard normal noise by `map`, from the relaxed space's shape to [B, dims], and back."""

    map: Bijection
    as_computed: ClassVar[bool] = True  # whether the log-determinants of the map itself are exact

    def __init__(self, space: Space, *, given: Space | None = None, size: str = "small") -> None:
        super().__init__(space, given=given, size=size)
        self.dequantizer: Dequantizer | None = None
        # dequantizations that evaluation affords: 64 of up to 128 entries, 10 of MNIST's 784, 4 of larger images
        self.bound_draws = max(4, min(64, 2**13 // space.dims)) if space.discrete else 1  # type: ignore[misc]

    # -- density --------------------------------------------------------------------------------

    def _to_noise(self, u: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        """z and log |det dz/du|, in chunks."""
        z, log_det = zip(*(self.map(part, g) for part, g in chunks(u, given)), strict=True)
        return torch.cat(z), torch.cat(log_det)

    def log_density(self, u: Tensor, given: Tensor | None) -> Tensor:
        """log p(u) of relaxed examples, nats [B], float64."""
        z, log_det = self._to_noise(u, given)
        return log_det + log_normal(z)

    def forward(self, x: Tensor, given: Tensor | None = None, *, turn: str = "") -> Tensor:
        relaxed, given = self._lifted(x, given, Noise(x))
        return -relaxed.log_prob(LogProb(self.log_density(relaxed.value, given), "exact")).nats.float()

    def _log_prob(self, x: Tensor, given: Tensor | None, noise: Noise) -> LogProb:
        relaxed, given = self._lifted(x, given, noise)
        return relaxed.log_prob(self.density(relaxed.value, given, noise))

    def _lifted(self, x: Tensor, given: Tensor | None, noise: Noise) -> tuple[Relaxed, Tensor | None]:
        """Examples lifted to reals, and `given` for each of their draws."""
        if self.dequantizer is None:
            relaxed = self.space.relax(x, noise=noise)
            return relaxed, _per_draw(given, relaxed.draws)
        given = _per_draw(given, noise.draws)
        return self.space.relax(x, noise=noise, within=self.dequantizer(x, given, noise)), given

    def density(self, u: Tensor, given: Tensor | None, noise: Noise) -> LogProb:
        """log p(u) of relaxed examples and its kind: exact, but for maps that are solved or estimated (`as_computed` is False)."""
        return LogProb(self.log_density(u, given), "exact")

    def start(self, x: Tensor, given: Tensor | None = None) -> None:
        self.map.start(self.space.relax(x).value, given)

    # -- latent ---------------------------------------------------------------------------------

    @property
    def latent(self) -> Space:
        return Space.reals(self.space.relaxed.dims)

    def encode(self, x: Tensor, given: Tensor | None = None, draws: int = 1, noise: Noise | None = None) -> Relaxed:
        relaxed, given = self._lifted(x, given, noise or Noise(x, draws))
        z, log_det = self._to_noise(relaxed.value, given)
        return replace(relaxed, value=z, nats=relaxed.nats + log_det)

    def decode(self, z: Tensor, given: Tensor | None = None) -> Tensor:
        return self.space.snap(self._from_noise(z, expand_given(given, len(z)))[0])

    def _from_noise(self, z: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        """u and log |det du/dz|."""
        return self.map.inverse(z, given)

    def fill(self, x: Tensor, known: Tensor, given: Tensor | None = None, draws: int = 1, *, particles: int = _PARTICLES) -> Filled:
        """See `Fillable.fill`: by the map's own order where that begins with what is known (`own_order`), else by the joint
        density, for any mask (`completion`).

        Args:
            particles: for each draw, tempered from a normal to the density of what is unknown; more are nearer to it.
        """
        if particles < 2:
            raise UsageError(f"Of {particles} particles none can be preferred to another.", "Ask for many.")
        filled = x.expand(draws, *x.shape).clone()
        effective = torch.full((draws, len(x)), math.inf, dtype=torch.float64, device=x.device)
        left, how = torch.ones(len(x), dtype=torch.bool, device=x.device), {}
        with evaluating(self), torch.no_grad():
            for mask in known.unique(dim=0):
                rows = (known == mask).flatten(1).all(1).nonzero()[:, 0]
                done = self._by_own_order(x[rows], mask, _rows(given, rows), draws, particles)
                if done is not None:
                    filled[:, rows], effective[:, rows] = (v.view(draws, len(rows), *v.shape[1:]) for v in done)
                    left[rows], how["the map's own order" + f", {particles} places in each known cell" * self.space.discrete] = False, None
            if bool(left.any()):
                rest = self._tempered(x[left], known[left], _rows(given, left), draws, particles)
                filled[:, left], effective[:, left], how[rest.how] = rest.x, rest.effective, None
        return Filled(filled, bool(effective.isinf().all()), effective, "; ".join(how))

    def _by_own_order(self, x: Tensor, known: Tensor, given: Tensor | None, draws: int, particles: int) -> tuple[Tensor, Tensor] | None:
        """Rows that have the same gaps, draw-major; see `fill_by_own_order`."""

        def from_noise(z: Tensor, given: Tensor | None) -> Tensor:
            return torch.cat([self._from_noise(part, g)[0] for part, g in chunks(z, given)])

        x, given = x.repeat(draws, *[1] * (x.ndim - 1)), _per_draw(given, draws)
        return fill_by_own_order(self.space, lambda u, given: self._to_noise(u, given)[0], from_noise, x, known, given, particles)

    def _tempered(self, x: Tensor, known: Tensor, given: Tensor | None, draws: int, particles: int) -> Filled:
        z = torch.randn(REFERENCE, self.latent.dims, device=x.device)
        rows = None if given is None else given[torch.arange(len(z)) % len(given)]
        own = torch.cat([self._from_noise(part, g)[0] for part, g in chunks(z, rows)])
        return complete(self.space, self.log_density, own, x, known, given, draws, particles)

    def rsample(self, n: int, given: Tensor | None = None) -> Tensor:
        z = torch.randn(n, self.latent.dims, device=next(self.parameters()).device)
        return self.space.snap(self._from_noise(z, expand_given(given, n))[0])

    @torch.no_grad()
    def sample(self, n: int, given: Tensor | None = None, *, temperature: float = 1.0, with_log_prob: bool = False) -> Any:
        """Draw n examples.

        Args:
            temperature: scales the noise, below 1 for more typical examples.
            with_log_prob: return a `Drawn`. The log-density of reals comes with the pass that drew them; of discrete data
                it is `log_prob`, another pass, for the density of one point says little of its cell.
        """
        given, dims = expand_given(given, n), self.latent.dims
        rows, device = max(1, _CHUNK // dims), next(self.parameters()).device
        parts: list[Tensor] = []
        nats: list[Tensor] = []
        with evaluating(self):
            for first in range(0, n, rows):
                z = temperature * torch.randn(min(rows, n - first), dims, device=device)
                u, log_det = self._from_noise(z, None if given is None else given[first : first + rows])
                parts.append(self.space.snap(u))
                nats.append(log_normal(z) - log_det)
            x = torch.cat(parts)
            if not with_log_prob:
                return x
            if self.space.discrete or self.space.flags or not self.as_computed:
                return self.scored(x, given)
        scale = self.space.relax(x[:1]).nats  # of the standardisation, alike for all
        return Drawn(x, LogProb(torch.cat(nats) + scale, "exact"))


def log_normal(z: Tensor) -> Tensor:
    """Log-density of standard normal noise [B, dims], nats [B], float64."""
    z = z.double()  # before it is squared: the square of 1e20 is beyond float32
    return -0.5 * (z * z).sum(1) - _LOG_SQRT_2PI * z.shape[1]


def _rows(given: Tensor | None, index: Tensor) -> Tensor | None:
    return None if given is None else given[index]


def _per_draw(given: Tensor | None, draws: int) -> Tensor | None:
    return None if given is None else given.repeat(draws, *[1] * (given.ndim - 1))
