"""A family that is not ours, as another package would define it: independent categoricals, trained by gradient."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from likely.abilities import Likelihood
from likely.logprob import LogProb
from likely.model import Model, Recipe
from likely.noise import Noise
from likely.space import Space


class Independent(Model, Likelihood):
    """p(x) = prod_i softmax(logits_i)[x_i] over a grid of ordinals."""

    summary = "independent categoricals"
    layouts = frozenset({"grid"})
    recipe = Recipe(lr=0.05, batch=32, ema=0.9, warmup=5, patience=50)
    sizes: ClassVar[dict[str, dict[str, Any]]] = {"tiny": {}, "small": {}, "base": {}}

    def __init__(self, space: Space, *, given: Space | None = None, size: str = "small", spread: float = 0.1) -> None:
        super().__init__(space, given=given, size=size)
        self.logits = nn.Embedding(space.dims, space.levels or 2)
        nn.init.normal_(self.logits.weight, std=spread)
        self.dropout = nn.Dropout(0.1)

    def _nats(self, x: Tensor) -> Tensor:
        log_p = self.dropout(self.logits.weight).log_softmax(-1)
        return log_p[torch.arange(self.space.dims), x.flatten(1)].double().sum(1)

    def forward(self, x: Tensor, given: Tensor | None = None, *, turn: str = "") -> Tensor:
        return -self._nats(x)

    def _log_prob(self, x: Tensor, given: Tensor | None, noise: Noise) -> LogProb:
        return LogProb(self._nats(x), "exact")

    @torch.no_grad()
    def sample(self, n: int, given: Tensor | None = None) -> Tensor:
        return torch.distributions.Categorical(logits=self.logits.weight).sample((n,)).view(n, *self.space.shape)
