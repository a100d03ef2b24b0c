"""A transformer on sets of points: what it says of each point does not depend on their order.

Points are tokens without positions (see `tower`), so that permuted points have permuted outputs. Points that are NaN are padding: no
point attends to them, and they get zeros. Attention only averages, so where the number of points varies it is told.

References:
    | Set Transformer: a framework for attention-based permutation-invariant neural networks (Lee et al., 2018) | https://arxiv.org/abs/1810.00825
    | Scalable diffusion models with transformers (Peebles and Xie, 2022) | https://arxiv.org/abs/2212.09748
"""

from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor, nn

from likely.nets.denoiser import of_size
from likely.nets.known import Knowledge
from likely.nets.tower import Among, Tower
from likely.space import Space

__all__ = ["SetTransformer"]


class SetTransformer(nn.Module):
    """(u [B, N, D], t [B]) -> [B, N * out, D], the parameters of a point one after another; zero at first.

    Options:
        width, depth, heads, dropout: of the transformer.
        inducing: points that attention goes through, for large sets; 0 for attention of all to all.
        drop: share of training examples that are shown without what is given.
    """

    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"width": 16, "depth": 1, "heads": 2, "dropout": 0.0},
        "small": {"width": 128, "depth": 4, "heads": 4, "dropout": 0.0},
        "base": {"width": 384, "depth": 12, "heads": 6, "dropout": 0.1},
    }

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        out: int,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        inducing: int = 0,
        dropout: float | None = None,
        drop: float = 0.0,
        times: int = 1,
        extra: int = 0,
    ) -> None:
        super().__init__()
        how = of_size(self.sizes, size, width=width, depth=depth, heads=heads, dropout=dropout)
        most, dims = space.shape
        self.knowledge = Knowledge(given, how["width"], drop=drop, times=times)
        self.count = nn.Embedding(most, how["width"]) if space.variable else None
        self.dims, self.tower = dims, Tower(dims + extra, out * dims, text=self.knowledge.reads, inducing=inducing, **how)

    def forward(self, u: Tensor, t: Tensor, given: Tensor | None = None) -> Tensor:
        known, there = self.knowledge(t, given), None
        if self.count is not None:
            there = ~u.isnan().any(2)
            u = u.masked_fill(~there[..., None], 0.0)
            known = replace(known, embedding=known.embedding + self.count(there.sum(1) - 1))
        y = self.tower(u, known, Among(there=there))
        y = y if there is None else y.masked_fill(~there[..., None], 0.0)
        return y.view(len(u), -1, self.dims)
