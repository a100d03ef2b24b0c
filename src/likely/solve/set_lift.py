"""The lift of point sets: that of their points, and nothing where a set has none.

Padding is NaN. It stays NaN in what is noised, said and drawn, and counts for nothing; whoever sums over entries sums those that
are there. How many points there are, and in how many orders, is the same for all models (see `pointsets`).
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from likely import pointsets
from likely.noise import Noise
from likely.solve.posterior import Lift, Posterior
from likely.space import Space

__all__ = ["SetLift", "lift_of"]


def lift_of(data: Space, *, few: int | None = None, bins: bool = False) -> Lift:
    """The lift of a space, whatever its layout; `few` and `bins` as of `Levels`."""
    return (SetLift if data.layout == "set" else Lift)(data, few=few, bins=bins)


class SetLift(Lift):
    """Sets [B, N, D] <-> reals [B, N, width]; within, coordinates are the entries (axis 1) that `Lift` knows."""

    def __init__(self, data: Space, *, few: int | None = None, bins: bool = False) -> None:
        count, dims = data.shape
        super().__init__(Space("sequence", (dims, count), data.supports), few=few, bins=bins)
        self.sets, width = data, self.space.shape[0]
        self.space = Space("set", (count, width), self.space.supports, data.variable)
        self.each = self.detail / max(1, count * (width - len(self.finite)))  # detail of one entry

    def forward(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        there, values = pointsets.there(x), []
        if self.levels is not None:
            e = self.levels.value(self.levels.code(_filled(x, 0).mT[:, self.finite])).mT
            values.append(noise.repeat(e.masked_fill(~there[..., None], math.nan)))
        nats = noise.repeat(pointsets.nats(self.sets, x)) + self._absent(noise.repeat(there))
        if self.rest is not None:
            supports = tuple(self.sets.supports[i] for i in self.others)
            own = Space("set", (x.shape[1], len(supports)), supports)
            relaxed = own.relax(x[..., self.others].to(own.dtype), noise=noise)
            again = noise.draws // relaxed.draws
            values.append(relaxed.value.repeat(again, 1, 1))
            nats = nats + relaxed.nats.repeat(again)
        return torch.cat(values, 2).to(self.zero), nats

    def posterior(self, params: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Posterior:
        """From params [B, N, width, D] and z [B, N, D]."""
        return _turned(super().posterior(params.transpose(1, 3), z.mT, alpha, sigma))

    def log_prob(self, posterior: Posterior, e: Tensor, x: Tensor) -> Tensor:
        """log p(points | z), nats [B]; an absent point counts as one that is known up to noise, which `forward` takes back."""
        there = pointsets.there(x)
        nats = super().entry_log_prob(_turned(posterior), e.mT, _filled(x, 0).mT)
        return nats.masked_fill(~there[:, None], 0.0).flatten(1).sum(1) - self._absent(there)

    def draw(self, posterior: Posterior) -> Tensor:
        there = ~posterior.mean.isnan().any(2)
        log_mass = None if posterior.log_mass is None else posterior.log_mass.nan_to_num(0.0)
        known = Posterior(_filled(posterior.mean, 0.0), _filled(posterior.var, 1.0), log_mass)
        return pointsets.padded(super().draw(_turned(known)).mT, there.sum(1))

    def start(self, n: int) -> Tensor:
        z = super().start(n)
        if not self.sets.variable:
            return z
        shares = torch.tensor(self.sets.lengths or (1.0,) * len(z[0]), device=z.device)
        return pointsets.padded(z, torch.multinomial(shares, n, replacement=True) + 1)

    def noised(self, e: Tensor, deviation: float, noise: Noise) -> tuple[Tensor, Tensor]:
        there, count = pointsets.there(e), len(self.finite)
        eps = noise.normal(*e.shape[1:]).masked_fill(~there[..., None], 0.0)
        eps[..., count:] = 0.0
        nats = 0.5 * (eps[..., :count].square() + math.log(2 * math.pi)) + math.log(deviation)
        return e + deviation * eps.to(e), nats.masked_fill(~there[..., None], 0.0).flatten(1).sum(1)

    def log_decoded(self, x: Tensor, e: Tensor, deviation: float) -> Tensor:
        there = pointsets.there(x)
        if self.levels is None:
            return -self._absent(there)
        log_mass = self.levels.decoded(_filled(e, 0.0).mT[:, : len(self.finite)], deviation)
        nats = self.levels.log_prob(log_mass, self.levels.code(_filled(x, 0).mT[:, self.finite])).double()
        return nats.masked_fill(~there[:, None], 0.0).flatten(1).sum(1) - self._absent(there)

    def entries_of(self, known: Tensor) -> Tensor:
        return super().entries_of(known.mT).mT

    def settle(self, e: Tensor, deviation: float) -> Tensor:
        settled = Posterior(e, torch.zeros_like(e))
        if self.levels is not None:
            settled = replace(settled, log_mass=self.levels.decoded(_filled(e, 0.0).mT[:, : len(self.finite)], deviation).log_mass)
        return self.draw(settled)

    def _absent(self, there: Tensor) -> Tensor:
        """Detail of the points that are not there, nats [B]."""
        return self.each * (self.space.shape[1] - len(self.finite)) * (~there).sum(1).double()


def _turned(posterior: Posterior) -> Posterior:
    """With points in place of coordinates, or the other way round; log-masses stay [B, D, K, N]."""
    return replace(posterior, mean=posterior.mean.mT, var=posterior.var.mT)


def _filled(x: Tensor, value: float) -> Tensor:
    """With a value in place of padding."""
    return x.masked_fill(~pointsets.there(x)[..., None], value)
