r"""Heads: a net's outputs at one entry -> the distribution of that entry, with its exact mass.

Nets know nothing of probability and families should not each invent their own output layer, so
this stands between them. With params [..., width] of an entry x:

    categorical         log softmax(params)_x; a missing cell is one more state
    bernoulli           log sigmoid(+-params), of two states
    logistic mixture    log sum_k pi_k [ F((b - mu_k) / s_k) - F((a - mu_k) / s_k) ],  F the logistic CDF
                        over the cell [a, b) of x on the standardised scale; the first and last cell of an
                        ordinal are open and the grid of a decimal is unbounded, so masses sum to one:
                        log [F(z + w) - F(z)] = log F(z + w) + log F(-z) + log(1 - exp(-w))
    atomic mixture      log [pi_0 logistic mixture + pi_j of the j-th value that repeats in a column]
    normal mixture      log sum_k pi_k N(u; mu_k, s_k) - log scale: the density of a real; s_k >= 1e-3 of
                        the data's standard deviation
    coupled             a logistic mixture of all channels of a pixel together (`heads.coupled`)
    missing             of a number: a Bernoulli of its own, before the rest

Outputs near zero mean something sensible: a uniform categorical, or a mixture whose components are
spread over the standardised data. `Heads` serves all entries of a space at once, entries of equal
kind together, so that 64 columns are one computation.

References:
    | PixelCNN++: Improving the PixelCNN with discretized logistic mixture likelihood (Salimans et al., 2017) | https://arxiv.org/abs/1701.05517
    | Mixture density networks (Bishop, 1994) | https://publications.aston.ac.uk/id/eprint/373/
"""

import math
from typing import Any

import torch
from torch import Tensor

from likely.heads.atomic import AtomicMixture
from likely.heads.base import Head, missing
from likely.heads.bernoulli import Bernoulli
from likely.heads.categorical import Categorical
from likely.heads.coupled import Coupled
from likely.heads.mixtures import LogisticMixture, NormalMixture
from likely.space import MISSING, Space, Support

__all__ = ["AtomicMixture", "Bernoulli", "Categorical", "Coupled", "Head", "Heads", "LogisticMixture", "NormalMixture", "head_for"]


def head_for(*supports: Support, components: int = 5, categorical_up_to: int = 64, bernoulli: bool = True) -> Head:
    """The head of entries of one kind; ordinals of more than `categorical_up_to` levels get a logistic mixture.

    With `bernoulli`, two states have one logit.
    """
    s = supports[0]
    if s.kind == "real":
        return NormalMixture(supports, components)
    if s.kind == "nominal" or (s.kind == "ordinal" and s.levels <= categorical_up_to):
        return Bernoulli(supports) if bernoulli and s.states == 2 and not s.missing else Categorical(supports)
    return AtomicMixture(supports, components) if any(t.atoms for t in supports) else LogisticMixture(supports, components)


class Heads:
    """The heads of all entries of a space, computed together where they are of one kind.

    Entries are the channels of a grid, the columns of a table, or all places of a sequence. Every
    entry has the same `width`, the largest that one needs; the others ignore what they do not use.

    Args:
        components: of the mixtures.
        categorical_up_to: ordinals of at most so many levels are categorical.
        bernoulli: whether entries of two states have one logit, instead of one for each.
    """

    def __init__(self, space: Space, *, components: int = 5, categorical_up_to: int = 64, bernoulli: bool = True) -> None:
        self.space = space
        self._how: Any = {"components": components, "categorical_up_to": categorical_up_to, "bernoulli": bernoulli}
        self._at: dict[int, Head] = {}
        self._dtype = space.dtype
        kinds: dict[tuple[str, int], list[int]] = {}
        for i in range(len(space.supports)):
            head = self.at(i)
            bucket = head.width.bit_length() if isinstance(head, Categorical) else getattr(head, "atoms", 0)
            kinds.setdefault((type(head).__name__, bucket), []).append(i)
        self.groups = [(which, head_for(*(space.supports[i] for i in which), **self._how)) for which in kinds.values()]
        self.order = torch.tensor([i for which, _ in self.groups for i in which]).argsort()
        self.width = max(head.width for _, head in self.groups)

    def at(self, entry: int) -> Head:
        """The head of one channel or column alone, for models that go entry by entry."""
        if entry not in self._at:
            self._at[entry] = head_for(self.space.supports[entry], **self._how)
        return self._at[entry]

    def sample_at(self, entry: int, params: Tensor) -> Tensor:
        """params [B, at least the entry's width] -> draws [B] of one channel or column, as the space stores them."""
        head = self.at(entry)
        return self._stored(head, head.sample(params[..., : head.width]))

    def logits_at(self, entry: int, params: Tensor) -> Tensor:
        """params [B, at least the entry's width] -> logits [B, states] of one channel or column, a missing one last.

        Raises: UsageError where there is no end of states.
        """
        head = self.at(entry)
        return head.logits(params[..., : head.width])

    def value_at(self, entry: int, state: Tensor) -> Tensor:
        """States [B] of one channel or column, by their place among its logits -> values as the space stores them."""
        s = self.space.supports[entry]
        return self._stored(self.at(entry), torch.where(state == s.levels, MISSING, state) if s.missing else state)

    def state_at(self, entry: int, x: Tensor) -> Tensor:
        """The inverse of `value_at`."""
        return torch.where(missing(x), self.space.supports[entry].levels, x).long()

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
        x = x.to(self._dtype)
        return torch.where(x == MISSING, math.nan, x) if isinstance(head, LogisticMixture) and x.is_floating_point() else x

    def _join(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts, 1).index_select(1, self.order.to(parts[0].device))
