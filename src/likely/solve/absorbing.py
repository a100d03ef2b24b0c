r"""Diffusion by masks: noise hides entries, and leaves the others as they are.

At time t each of D entries is masked with probability t, by itself; a net gives a masked entry a distribution by those that are
seen, p(x_i | x_seen), which never is "masked". In continuous time the bound is an integral over t, and since
int t^(m-1) (1-t)^(D-m) dt = (m-1)! (D-m)! / D! it is, exactly and whatever the schedule of the noise,

    -log p(x) <= int_0^1 1/t E_t [ sum_{i masked} -log p(x_i | x_seen) ] dt
               = mean over m = 1..D of  D/m  E_{m masked of D} [ sum_{i masked} -log p(x_i | x_seen) ]
               = mean over orders s of  sum_k -log p(x_{s(k)} | x_{s(1)} .. x_{s(k-1)})

The second line has less variance than the first, and is what is drawn: a number of masked entries, and which they are. What is
revealed one by one in random order follows p(x) = mean over orders of prod_k p(x_{s(k)} | ...), which the bound is of.

What is seen of a string settles some of the rest: after its end there is nothing, before another symbol no end.

References:
    | A deep and tractable density estimator (the mean over orders; Uria et al., 2014) | https://arxiv.org/abs/1310.1757
    | Autoregressive diffusion models (the same, as diffusion; Hoogeboom et al., 2022) | https://arxiv.org/abs/2110.02037
    | Simple and effective masked diffusion language models (Sahoo et al., 2024) | https://arxiv.org/abs/2406.07524
    | Simplified and generalized masked diffusion for discrete data (Shi et al., 2024) | https://arxiv.org/abs/2406.04329
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from likely.decoding import UNFILTERED, Filter
from likely.heads import Heads
from likely.heads.base import categorical_draw
from likely.space import Space

__all__ = ["AbsorbingNoise", "Predict", "settled"]

# (x, how much of each entry is hidden, [B, *shape] each) -> parameters [B, *shape, width]
Predict = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class AbsorbingNoise:
    """Masks on the symbols of a space, of strings with their ends; `heads` read the net's parameters."""

    space: Space
    heads: Heads

    told = "mean over orders"
    numbers = 1

    @property
    def symbols(self) -> Space:
        """The space of the symbols that are masked."""
        return self.heads.space

    @property
    def terms(self) -> int:
        """Of the bound: numbers of masked entries."""
        return self.space.dims

    # -- the bound ------------------------------------------------------------------------------

    def term(self, x: Tensor, counts: Tensor, u: Tensor, numbers: Tensor, predict: Predict) -> Tensor:
        """The term that u [B] in [0, 1) picks of the bound, times their number, nats [B] float64; numbers: uniform, [B, 1, *shape].

        Entries of x [B, *shape] that do not count (padding) are masked throughout.
        """
        entries = counts.flatten(1).sum(1)
        number = 1 + (u * entries).long().minimum((entries - 1).clamp_min(0))
        hidden = _ranks(numbers[:, 0], counts) >= (entries - number).view(-1, *[1] * (x.ndim - 1))
        return entries / number * self.missed(x, hidden, predict).masked_fill(~counts, 0.0).flatten(1).sum(1)

    def missed(self, x: Tensor, hidden: Tensor, predict: Predict) -> Tensor:
        """-log p of each hidden entry by those that are seen, and 0 of those; nats [B, *shape] float64."""
        return -self.heads.log_mass(self._parameters(x, hidden, predict), x).double().masked_fill(~hidden, 0.0)

    def _parameters(self, x: Tensor, hidden: Tensor, predict: Predict) -> Tensor:
        parameters = predict(x.masked_fill(hidden, 0), hidden.float())
        return settled(parameters, x, hidden, self._end) if self.space.variable else parameters

    @property
    def _end(self) -> int:
        return self.space.supports[0].levels

    # -- draws ----------------------------------------------------------------------------------

    def walk(
        self,
        x: Tensor,
        hidden: Tensor,
        calls: int,
        predict: Predict,
        *,
        keep: Filter = UNFILTERED,
        confident: bool = False,
        present: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(x, hidden) after each call of the net, until nothing of symbols x [B, *shape] is hidden.

        As many entries of each example are revealed at each call: in random order, or first those whose draw is the likeliest.
        `present` entries are not drawn as missing.
        """
        unknown, ranks, done = hidden.flatten(1).sum(1), _ranks(torch.rand_like(x, dtype=torch.float64), hidden), 0
        for call in range(calls):
            due = (unknown * (call + 1) // calls).view(-1, *[1] * (x.ndim - 1))
            pick = hidden if confident else (ranks >= done) & (ranks < due)
            drawn, log_p = self._drawn(x, hidden, pick, self._parameters(x, hidden, predict), keep, present)
            if confident:
                pick = _ranks(-log_p, hidden) < due - done
            x, hidden, done = torch.where(pick, drawn, x), hidden & ~pick, due
            yield x, hidden

    def filling(self, unknown: Tensor, calls: int, *, random: bool) -> tuple[bool, str]:
        """(whether what is `unknown` [B, *shape] is drawn from a conditional that the model has as such, how in words)."""
        each, lossy = unknown.flatten(1).sum(1), torch.tensor([s.missing for s in self.space.supports], device=unknown.device)
        # of several unknown entries one that may be missing is there the more likely or less, by what the others turn out to be
        may_miss = (unknown & lossy.view(-1, *[1] * (len(self.space.shape) - 1))).flatten(1).any(1) & (each > 1)
        if random and not (each > calls).any() and not may_miss.any():
            return True, "one at a time, in random orders that begin with what is known"
        return False, f"{calls} calls of the net, in {'random' if random else 'confident'} order after what is known, none as missing"

    def _drawn(self, x: Tensor, hidden: Tensor, where: Tensor, parameters: Tensor, keep: Filter, present: bool) -> tuple[Tensor, Tensor]:
        """(x with the entries `where` drawn, log p of each of those), [B, *shape]."""
        x, log_p = x.clone(), torch.zeros_like(x, dtype=torch.float64)
        for i in range(len(self.symbols.supports)):
            at, each = self._of(i, where), self._of(i, parameters)[self._of(i, where)]
            values = self._draw(i, each, keep, present)
            self._of(i, x)[at] = values
            self._of(i, log_p)[at] = self.heads.at(i).log_mass(each[:, : self.heads.at(i).width], values).double()
        return (x.masked_fill(_over(x, hidden & ~where, self._end), self._end) if self.space.variable else x), log_p

    def _of(self, support: int, v: Tensor) -> Tensor:
        """What v [B, *shape, ...] holds of one channel or column; a sequence has just one."""
        return v if self.space.layout == "sequence" else v[:, support]

    def _draw(self, support: int, parameters: Tensor, keep: Filter, present: bool) -> Tensor:
        """Values [n] of entries of one support, by their parameters [n, width]."""
        if present and self.symbols.supports[support].missing:  # of a categorical the last state, of a number its own logit
            parameters = parameters.index_fill(1, torch.tensor([self.heads.at(support).width - 1], device=parameters.device), -math.inf)
        if keep == UNFILTERED:
            return self.heads.sample_at(support, parameters)
        return self.heads.value_at(support, categorical_draw(keep(self.heads.logits_at(support, parameters))))


def _ranks(keys: Tensor, first: Tensor) -> Tensor:
    """Ranks [B, *shape] of entries by keys within their example, those that come `first` ahead of all others."""
    keys = torch.where(first, keys, torch.inf).flatten(1)
    return keys.argsort(dim=1, stable=True).argsort(1).view_as(first)


def settled(logits: Tensor, x: Tensor, hidden: Tensor, end: int) -> Tensor:
    """Logits [B, L, symbols] of strings, what is seen of x [B, L] heeded: after an end there are ends, before another symbol none."""
    over, later = _over(x, hidden, end)[..., None], (~hidden & (x != end)).flip(1).cummax(1).values.flip(1)[..., None]
    ends = torch.arange(logits.shape[-1], device=x.device) == end
    return logits.masked_fill((over & ~ends) | (later & ends), -math.inf)


def _over(x: Tensor, hidden: Tensor, end: int) -> Tensor:
    """Which entries of x [B, L] come after an end that is seen."""
    return (~hidden & (x == end)).cummax(1).values
