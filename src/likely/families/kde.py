r"""Kernel density estimation: every training example is a component, blurred by a bandwidth.

    p(x) = 1/n sum_n prod_e K_e(x_e | x_ne)

    number    K = N(x_ne, (h s_e)^2) with s_e the standard deviation of entry e over the training
              split, integrated over the cell of x_e (`solve.products`); of a real, the density
    nominal   K = (1 - l) [x_e = x_ne] + l q_e(x_e), with q_e the frequencies over the training split
              (Aitchison and Aitken's kernel, shrunk to q instead of uniform); missing cells likewise

h and l are chosen on the validation split. A number that is
missing in a training example is put at that of another one. Given a label, its own examples weigh
most; all others share a few pseudo-examples.

References:
    | On estimation of a probability density function and mode (Parzen, 1962) | https://doi.org/10.1214/aoms/1177704472
    | Multivariate binary discrimination by the kernel method (Aitchison and Aitken, 1976) | https://doi.org/10.1093/biomet/63.3.413
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from likely.logprob import LogProb
from likely.model import Batches, ClosedForm, Likelihood, Model
from likely.noise import Noise
from likely.solve.labels import component_weights, label_count, label_of, labelled
from likely.solve.products import Observed, ProductMixture
from likely.space import Space

__all__ = ["KernelDensity"]

_BANDWIDTHS = tuple(2.0 ** (-k / 2) for k in range(-1, 17))  # in standard deviations, from 1.4 to 0.004
_JUDGES, _FEW_JUDGES = 512, 32  # validation examples that choose: the fewer, the larger they are
_WORK = 2**28  # kernels x entries x judges of one bandwidth
_BLUR = (0.02, 0.1, 0.3)  # l, the share of a nominal's kernel that is not its own state


class KernelDensity(Model, Likelihood, ClosedForm):
    """Kernel density estimate with one bandwidth, in standard deviations of each entry; exact.

    Args:
        kernels: the most training examples that carry a kernel; a random choice if there are more.
    """

    summary = "kernel density estimate, bandwidth chosen on validation data"
    sizes: ClassVar[dict[str, dict[str, Any]]] = {"tiny": {"kernels": 256}, "small": {"kernels": 4096}, "base": {"kernels": 65536}}

    def __init__(self, space: Space, *, given: Space | None = None, size: str = "small", kernels: int | None = None) -> None:
        super().__init__(space, given=given, size=size)
        self.kernels = self.options(size, kernels=kernels)["kernels"]
        self.labels = label_count(given)
        self.products = ProductMixture(space, self.labels)

    def forward(self, x: Tensor, given: Tensor | None = None, *, turn: str = "") -> Tensor:
        """-log p(x | given), nats [batch]."""
        return -self._log_prob(x, given, Noise(x)).nats

    def _log_prob(self, x: Tensor, given: Tensor | None, noise: Noise) -> LogProb:
        how = "interval masses" if self.space.discrete else ""
        return LogProb(self.products.log_prob(x, label_of(self.given_space, given, len(x))), "exact", how=how)

    @torch.no_grad()
    def sample(self, n: int, given: Tensor | None = None) -> Tensor:
        """Draw n examples, [n, *shape]: a training example each, blurred."""
        return self.products.sample(label_of(self.given_space, given, n))

    @torch.no_grad()
    def solve(self, train: Batches, valid: Batches) -> None:
        """Keep the training examples; the bandwidth and blur that code the validation split best are kept."""
        x, label = labelled(train, self.given_space, self.kernels)
        judges = min(_JUDGES, max(_FEW_JUDGES, _WORK // (len(x) * self.space.dims)))
        held_out, y = labelled(valid, self.given_space, judges)
        seen = Observed.of(self.space, x)
        self.products.log_weight = component_weights(torch.ones(len(x), dtype=torch.float64), label, self.labels)
        self.products.mean = _hot_deck(seen)
        tried: dict[tuple[float, float], float] = {}
        for blur in _BLUR if self.products.states or seen.lost.shape[1] else _BLUR[:1]:
            before = -math.inf
            for h in _BANDWIDTHS:
                self._blur(seen, h, blur)
                tried[h, blur] = self.products.log_prob(held_out, y).mean().item()
                if tried[h, blur] < before:  # from wide to narrow there is one peak
                    break
                before = tried[h, blur]
        self._blur(seen, *max(tried, key=lambda way: tried[way]))

    def _blur(self, seen: Observed, h: float, blur: float) -> None:
        """Set the width of every kernel."""
        absent, tables = seen.absent(), seen.tables(self.products.states)
        self.products.sd = h * seen.moments()[1].sqrt()[None]
        self.products.absent = (1 - blur) * seen.lost + blur * absent
        self.products.tables = (1 - blur) * seen.state + blur * tables


def _hot_deck(seen: Observed) -> Tensor:
    """Numbers of each example, those missing replaced by that of a random example that has one [n, numbers]."""
    number = seen.number.clone()
    for column, there in zip(number.T, seen.there.T.bool(), strict=True):
        donors = column[there] if bool(there.any()) else column.new_zeros(1)
        column[~there] = donors[torch.randint(len(donors), (int((~there).sum()),))]
    return number
