"""A mixture of logistics in which values that repeat have a mass of their own, as do the round numbers of most tables."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from likely.heads.base import at_least_float32, categorical_draw
from likely.heads.mixtures import LogisticMixture
from likely.space import Support, from_grid

__all__ = ["AtomicMixture"]


@dataclass(frozen=True)
class AtomicMixture(LogisticMixture):
    """log p(x) = log [pi_0 p_mixture(x) + sum_j pi_j 1(x = atom_j)], at least one support with atoms.

    Zero parameters mean the shares that the atoms have in the training split.
    """

    @property
    def atoms(self) -> int:
        """Parameters of atoms: a power of two, so that entries with about as many are computed together."""
        most = max(len(s.atoms) for s in self.supports)
        return 1 << (most - 1).bit_length()

    @property
    def width(self) -> int:
        return super().width + self.atoms

    def _log_present(self, params: Tensor, x: Tensor) -> Tensor:
        log_pi, hit = self._log_pi(params), self._index(x)[..., None] == _table(self.supports, self.atoms, x.device)[0]
        smooth = log_pi[..., 0] + super()._log_present(params, x)
        own = log_pi[..., 1:].masked_fill(~hit, 0.0).sum(-1)  # no more than one atom is hit
        return torch.where(hit.any(-1), torch.logaddexp(smooth, own), smooth)

    def _drawn(self, params: Tensor) -> Tensor:
        which = categorical_draw(self._log_pi(params))
        grid = _table(self.supports, self.atoms, params.device)[0].nan_to_num()
        index = grid.expand(*which.shape, -1).gather(-1, (which - 1).clamp_min(0)[..., None])[..., 0].long()
        atom = torch.where(self._levels(index).isfinite(), index, from_grid(index))
        return torch.where(which > 0, atom, super()._drawn(params))

    def _log_pi(self, params: Tensor) -> Tensor:
        """log pi [..., 1 + atoms], the mixture's own first."""
        begin = 3 * self.components
        offsets = at_least_float32(params[..., begin : begin + self.atoms])
        shares = _table(self.supports, self.atoms, params.device)[1].to(offsets.dtype)
        own = shares[..., 1:] + offsets
        return torch.cat([shares[..., :1].expand(*own.shape[:-1], 1), own], -1).log_softmax(-1)


@lru_cache(maxsize=1024)
def _table(supports: tuple[Support, ...], atoms: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Grid indices [entries, atoms] of atoms, NaN where there is none, and log-shares [entries, 1 + atoms], the others' first; float64.

    One support serves all entries.
    """
    index = [[*s.atoms, *[math.nan] * (atoms - len(s.atoms))] for s in supports]
    share = [[1 - sum(s.shares), *s.shares, *[0.0] * (atoms - len(s.atoms))] for s in supports]
    tables = [torch.tensor(rows, dtype=torch.float64, device=device) for rows in (index, share)]
    values, log_shares = tables[0], tables[1].clamp_min(0.0).log()
    return (values[0], log_shares[0]) if len(supports) == 1 else (values, log_shares)
