"""The code of a model of noisy data: bits-back coding of the chain by which it is sampled, as long as the chain's variational bound.

Entries of finitely many values are coded. Numbers that are dequantized would have to be coded to the last bit of their noise, and are not.
"""

import copy
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from likely.abilities import Coded
from likely.coding import Codec, counts
from likely.coding.bits_back import Chain, chained, in_groups, rungs
from likely.errors import UsageError
from likely.model import expand_given
from likely.partly_known import PartlyKnown
from likely.solve.posterior import Posterior

__all__ = ["CodedChain"]

_CHUNK = 2**16  # numbers per call of the net


class CodedChain(PartlyKnown, Coded, ABC):
    """Is drawn from by a chain of noise levels."""

    @property
    @abstractmethod
    def chain_times(self) -> Tensor:
        """From 1 to 0, float64."""

    @property
    def codable(self) -> bool:
        """Whether all entries have at most 256 values, and are no points of a set."""
        return self.lift.rest is None and self.space.layout != "set"

    def codec(self, given: Tensor | None = None) -> Codec:
        """Bits-back coding of the whole chain (`coding.bits_back`), by a float64 copy of the net, called at each level.

        Raises: UsageError where `codable` is False.
        """
        if not self.codable:
            raise UsageError(f"A {self.space} cannot be coded by diffusion.", "Grids and tables whose entries have at most 256 values can.")
        exact = _Exact(copy.deepcopy(self).cpu().double().eval())

        def part(rows: slice) -> Codec:
            return chained(exact.chain(given if given is None or len(given) == 1 else given[rows]), self.lift.space.shape)

        most = max(1, _CHUNK // self.lift.space.dims)
        coded = in_groups(part, self.lift.space.shape, exact.chain(None).bits_taken, most)
        return coded.mapped(exact.levels.code, exact.levels.cell)


class _Exact:
    """What a chain asks of a model in double precision."""

    def __init__(self, model: CodedChain) -> None:
        assert model.lift.levels is not None
        self.model, self.levels = model, model.lift.levels
        self.times = model.chain_times.flip(0)
        with torch.no_grad():
            self.rungs = rungs(model.schedule.log_snr(self.times).tolist())

    def chain(self, given: Tensor | None) -> Chain:
        given = given.double() if given is not None and given.is_floating_point() else given

        def posterior(z: Tensor, k: int) -> Posterior:
            return self.model.posterior(z, self.times[k].expand(len(z)), expand_given(given, len(z)))

        def denoise(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
            said = posterior(z, k)
            return said.mean, said.var

        return Chain(self.rungs, self.levels.value, denoise, lambda z: _entries(self.levels.log_mass(posterior(z, 0))))


def _entries(logits: Tensor) -> Codec:
    """Symbols [n, C, ...] under logits [n, C, K, ...], all in one call."""
    logits = logits.movedim(2, -1)
    table = counts(logits).flatten(0, -2)
    return Codec(lambda stack, x: stack.push(x.flatten(), table), lambda stack, n: stack.pop(table).view(logits.shape[:-1]))
