r"""Nearest neighbours: a kernel around every training example, as wide as its k-th neighbour is far.

    p(x) = sum_n w_n prod_e K_e(x_e | x_ne),      K_e = N(x_ne, (h r_n s_e)^2),    r_n = d_k(x_n) / sqrt(D)

with d_k(x_n) the distance of example n to its k-th nearest other one, in standard deviations s_e over D features, so that
kernels are narrow where data are dense and wide where they are sparse. Where examples have weights, d_k(x_n) is the smallest
radius within which those of the others, and what its own exceeds one by, add up to k: an example of weight 2 is two equal
ones, each beside the other; and w_n is its share of all weights. The textbook estimate, k / (n V_k(x)), takes the
distance from x instead: it does not integrate to 1 (its tails fall as 1 / |x|^D), so it is no likelihood. This one is a
mixture: it normalises exactly, and its cells are integrated (`solve.mixtures`), as in `kde`, whose nominals it has, too.

k, h and the blur of nominals are chosen on the validation split. Radii are rounded to quarters of an octave, so that
kernels of equal values are looked up. `outlier_score` is the distance itself: how far the k-th nearest training example is.

References:
    | Variable kernel estimates of multivariate densities (Breiman et al., 1977) | https://doi.org/10.1080/00401706.1977.10489521
    | Efficient algorithms for mining outliers from large data sets (Ramaswamy et al., 2000) | https://doi.org/10.1145/342009.335437
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from likely.model import Batches
from likely.solve.kernels import BLURS, hot_deck, kernels
from likely.solve.labels import labelled
from likely.solve.mixtures import Components, MixtureModel
from likely.solve.numbers import Diagonal
from likely.solve.observed import Observed
from likely.space import Space

__all__ = ["NearestNeighbours"]

_NEIGHBOURS = (1, 2, 4, 8, 16, 32, 64, 128)
_WIDTHS = (0.5, 0.7, 1.0, 1.4, 2.0)  # h
_JUDGES, _FEW_JUDGES = 512, 32  # validation examples that choose: the fewer, the larger they are
_ROWS = 1024  # examples whose neighbours are looked up at once
_ROUNDING = 1e-9  # of sums of weights
_WORK = 2**26  # kernels x entries x judges of one width


class NearestNeighbours(MixtureModel):
    """Kernel density estimate whose bandwidths are distances to neighbours; exact. Its `outlier_score` is such a distance.

    Args:
        kernels: the most training examples that carry a kernel; a random choice if there are more.
        neighbours: k; by default chosen on the validation split.
    """

    summary = "kernels as wide as neighbours are far; distance to them as an outlier score"
    sizes: ClassVar[dict[str, dict[str, Any]]] = {"tiny": {"kernels": 256}, "small": {"kernels": 4096}, "base": {"kernels": 65536}}
    examples: Tensor
    counts: Tensor
    nearest: Tensor

    def __init__(
        self, space: Space, *, given: Space | None = None, size: str = "small", kernels: int | None = None, neighbours: int | None = None
    ) -> None:
        super().__init__(space, Diagonal, given=given, size=size)
        self.kernels = self.options(size, kernels=kernels)["kernels"]
        self.neighbours = _NEIGHBOURS if neighbours is None else (max(1, neighbours),)
        self.register_buffer("examples", torch.zeros(0, 0, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(0, dtype=torch.float64))  # how many examples each one stands for
        self.register_buffer("nearest", torch.ones(1, dtype=torch.int64))

    @torch.no_grad()
    def solve(self, train: Batches, valid: Batches, weights: Tensor | None = None, judging: Tensor | None = None) -> None:
        """Keep the training examples; k, width and blur that code the validation split best are kept."""
        x, label, weight = labelled(train, self.given_space, self.kernels, weights)
        seen = Observed.of(self.space, x, weight)
        self.examples, self.counts = self._features(seen), seen.weight
        tried = [k for k in self.neighbours if k < seen.weight.sum()] or [1]
        own = seen.weight.clamp_max(1.0)[:, None]  # the nearest is the example itself
        far = _distances(self.examples, self.examples, self.counts, own + torch.tensor(tried))
        judges = min(_JUDGES, max(_FEW_JUDGES, _WORK // (len(x) * self.space.dims)))
        found = self.choose(self._ladders(seen, label, far), seen, valid, judges, judging)
        self.nearest = torch.tensor([tried[int(found.how["neighbours"])]])

    def _ladders(self, seen: Observed, label: Tensor, far: Tensor) -> Iterator[Iterator[list[Components]]]:
        """More and more neighbours for each blur; a rung is one radius under each width."""
        number, radius = hot_deck(seen), far / math.sqrt(self.examples.shape[1])
        radius = torch.exp2((4 * radius.clamp_min(1e-6).log2()).round() / 4)
        for blur in BLURS if seen.states or seen.lost.shape[1] else BLURS[:1]:
            yield (
                [replace(kernels(seen, number, label, h * r[:, None], blur), how={"neighbours": i}) for h in _WIDTHS]
                for i, r in enumerate(radius.T)
            )

    def outlier_score(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        """How far the k-th nearest training example is, in standard deviations of an entry, root mean square over entries [batch].

        Args:
            given: a label is not looked at.
        """
        self.space.check(x)
        features = self._features(Observed.of(self.space, x))
        count = self.nearest.double().expand(len(x), 1)
        return _distances(features, self.examples, self.counts, count)[:, 0] / math.sqrt(self.examples.shape[1])

    def _features(self, seen: Observed) -> Tensor:
        """Numbers, missing cells and states in standard deviations that the support has learnt; a missing number is in the middle."""
        return torch.cat([seen.value, seen.lost, seen.state.flatten(1)], 1)


def _distances(x: Tensor, examples: Tensor, counts: Tensor, wanted: Tensor) -> Tensor:
    """The smallest radii around x [B, F] within which `counts` [n] of `examples` [n, F] add up to `wanted` [B, K], ascending; of all
    examples where there are fewer [B, K]."""
    from sklearn.neighbors import NearestNeighbors
    from threadpoolctl import threadpool_limits

    found, most = NearestNeighbors().fit(examples.numpy()), len(examples)
    with threadpool_limits(torch.get_num_threads()):
        return torch.cat([_radii(found, *rows, counts, most) for rows in zip(x.split(_ROWS), wanted.split(_ROWS), strict=True)])


def _radii(found: Any, x: Tensor, wanted: Tensor, counts: Tensor, most: int) -> Tensor:
    """Twice as many neighbours at a time, until they count enough."""
    look = min(most, int(wanted.max().ceil()))
    while True:
        distance, index = map(torch.from_numpy, found.kneighbors(x.numpy(), look))
        within = counts[index].cumsum(1)
        if look == most or bool((within[:, -1] >= wanted[:, -1] - _ROUNDING).all()):
            return distance.gather(1, torch.searchsorted(within, wanted - _ROUNDING).clamp_max(look - 1))
        look = min(most, 2 * look)
