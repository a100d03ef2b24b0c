r"""A plain perceptron, linear maps with ReLU between them, as a value: what a net hands over that computes nothing else.

    h_0 = seen(x at the entries it reads),      h_i+1 = relu(W_i h_i + b_i),      the last without relu

Whoever holds one can run it as a part of a larger piece of work (`bijections.fused`) instead of calling the net.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["FAR", "Perceptron", "Unrolled", "seen"]

FAR = 10.0  # what an entry is seen as at most: one that is far out would else send those after it still farther, layer by layer


def seen(x: Tensor) -> Tensor:
    """x near zero, and at most `FAR` however far out."""
    return x * (1 + (x / FAR).square()).rsqrt()


class Perceptron(NamedTuple):
    """Vectors [B, D] -> [B, outputs].

    Attributes:
        reads: int64, the entries that it sees.
        weights: [outputs, inputs] each.
        masks: of the weights, 0 or 1; None where all are there.
        biases: [outputs] each; the first [B, outputs] or [1, outputs] where it depends on what is given.
        dropout: of what ReLU gives.
    """

    reads: Tensor
    weights: list[Tensor]
    masks: list[Tensor | None]
    biases: list[Tensor]
    dropout: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        h = seen(x.index_select(1, self.reads))
        for i, (weight, bias) in enumerate(zip(self.masked(), self.biases, strict=True)):
            h = F.dropout(F.relu(h), self.dropout, self.dropout > 0) if i else h
            h = torch.addmm(bias, h, weight.t())
        return h

    def masked(self) -> list[Tensor]:
        """The weights as they are used."""
        return [w if m is None else w * m for w, m in zip(self.weights, self.masks, strict=True)]


class Unrolled(NamedTuple):
    """What a masked net computes entry by entry, for `bijections.draw_passes`.

    Attributes:
        known: what is added to the first layer's units before any entry is known, [n or 1, units].
        first: [units, D]; hidden: [layers, units, units], where `residual` two to a block; last: [outputs, units].
        begins: int64, the first unit that waits for so many entries, [D + 1].
    """

    known: Tensor
    first: Tensor
    hidden: Tensor
    hidden_bias: Tensor
    last: Tensor
    last_bias: Tensor
    begins: Tensor
    residual: bool
