r"""Kernel density estimation: every training example is a component, blurred by a bandwidth.

    p(x) = sum_n w_n prod_e K_e(x_e | x_ne),      w_n = 1 / n, or the share of the example's weight

    number    K = N(x_ne, (h s_e)^2) with s_e the standard deviation of entry e over the training
              split, integrated over the cell of x_e (`solve.numbers`); of a real, the density
    nominal   K = (1 - l) [x_e = x_ne] + l q_e(x_e), with q_e the frequencies over the training split
              (Aitchison and Aitken's kernel, shrunk to q instead of uniform); missing cells likewise

h and l are chosen on the validation split. A number that is missing in a training example is put at
that of another one. Given a label, its own examples weigh most; all others share a few pseudo-examples.
An example far from all kernels has the mass of one that is unlike all (`solve.mixtures`). Given some
entries, the others follow from the kernels, weighed by how well they fit: in closed form.

References:
    | On estimation of a probability density function and mode (Parzen, 1962) | https://doi.org/10.1214/aoms/1177704472
    | Multivariate binary discrimination by the kernel method (Aitchison and Aitken, 1976) | https://doi.org/10.1093/biomet/63.3.413
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from likely.model import Batches
from likely.solve.kernels import BLURS, hot_deck, kernels
from likely.solve.labels import labelled
from likely.solve.mixtures import MixtureModel
from likely.solve.numbers import Diagonal
from likely.solve.observed import Observed
from likely.space import Space

__all__ = ["KernelDensity"]

_BANDWIDTHS = tuple(2.0 ** (-k / 2) for k in range(-1, 17))  # in standard deviations, from 1.4 to 0.004
_JUDGES, _FEW_JUDGES = 512, 32  # validation examples that choose: the fewer, the larger they are
_WORK = 2**28  # kernels x entries x judges of one bandwidth


class KernelDensity(MixtureModel):
    """Kernel density estimate with one bandwidth, in standard deviations of each entry; exact.

    Args:
        kernels: the most training examples that carry a kernel; a random choice if there are more.
    """

    summary = "kernel density estimate, bandwidth chosen on validation data"
    sizes: ClassVar[dict[str, dict[str, Any]]] = {"tiny": {"kernels": 256}, "small": {"kernels": 4096}, "base": {"kernels": 65536}}

    def __init__(self, space: Space, *, given: Space | None = None, size: str = "small", kernels: int | None = None) -> None:
        super().__init__(space, Diagonal, given=given, size=size)
        self.kernels = self.options(size, kernels=kernels)["kernels"]

    @torch.no_grad()
    def solve(self, train: Batches, valid: Batches, weights: Tensor | None = None, judging: Tensor | None = None) -> None:
        """Keep the training examples; the bandwidth and blur that code the validation split best are kept."""
        x, label, weight = labelled(train, self.given_space, self.kernels, weights)
        seen = Observed.of(self.space, x, weight)
        number = hot_deck(seen)
        ladders = (
            ([kernels(seen, number, label, torch.tensor([[h]]), blur)] for h in _BANDWIDTHS)
            for blur in (BLURS if seen.states or seen.lost.shape[1] else BLURS[:1])
        )
        self.choose(ladders, seen, valid, min(_JUDGES, max(_FEW_JUDGES, _WORK // (len(x) * self.space.dims))), judging)
