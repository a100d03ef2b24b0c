r"""A plain perceptron, linear maps with ReLU between them, as a value: what a net hands over that computes nothing else.

    h_0 = seen(x at the entries it reads),      h_i+1 = relu(W_i h_i + b_i),      the last without relu

Whoever holds one can run it as a part of a larger piece of work (`bijections.fused`) instead of calling the net.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from likely.nets.dropout import dropout

__all__ = ["FAR", "Perceptron", "Unrolled", "parameters_of", "seen"]

FAR = 10.0  # what an entry is seen as at most: one that is far out would else send those after it still farther, layer by layer


def seen(x: Tensor) -> Tensor:
    """x near zero, and at most `FAR` however far out."""
    return x * (1 + (x / FAR).square()).rsqrt()


def parameters_of(layers: Iterable[nn.Module]) -> list[Tensor]:
    """W and b of linear maps, from where modules keep them: asking for each by name takes several times as long."""
    return [p for layer in layers for p in layer._parameters.values() if p is not None]


class Perceptron(NamedTuple):
    """Vectors [B, D] -> [B, outputs].

    Attributes:
        reads: int64, the entries that it sees.
        parameters: W [outputs, inputs] and b [outputs] of each linear map.
        degrees: int64, of what it sees, of the units of any hidden layer, and of the outputs, one after the other: a weight is there
            where the target's degree is at least the source's; None where all are.
        known: what is added to the first b where that depends on what is given, [B or 1, outputs].
        dropout: of what ReLU gives.
    """

    reads: Tensor
    parameters: list[Tensor]
    degrees: Tensor | None = None
    known: Tensor | None = None
    dropout: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        h = seen(x.index_select(1, self.reads))
        for i, (weight, bias) in enumerate(zip(self.weights(), self.parameters[1::2], strict=True)):
            h = dropout(F.relu(h), self.dropout, self.dropout > 0) if i else h
            h = F.linear(h, weight, bias)
            h = h if i or self.known is None else h + self.known
        return h

    def weights(self) -> list[Tensor]:
        """Those that are there, and zeros."""
        weights = self.parameters[::2]
        if self.degrees is None:
            return weights
        inputs, units, outputs = self.degrees.split([len(self.reads), len(weights[0]), len(weights[-1])])
        sources, targets = [inputs, *[units] * (len(weights) - 1)], [*[units] * (len(weights) - 1), outputs]
        return [torch.where(s <= t[:, None], w, 0.0) for w, s, t in zip(weights, sources, targets, strict=True)]


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
