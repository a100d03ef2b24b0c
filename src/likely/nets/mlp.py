"""A residual multilayer perceptron, conditioned by FiLM in every block; and a plain one.

References:
    | Revisiting deep learning models for tabular data (Gorishniy et al., 2021) | https://arxiv.org/abs/2106.11959
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from likely.nets.conditioning import FiLM
from likely.nets.dropout import dropout
from likely.nets.perceptron import Perceptron, parameters_of

__all__ = ["PlainMLP", "ResMLP"]


class Block(nn.Module):
    """h + W2 silu(FiLM(W1 norm(h)))."""

    def __init__(self, width: int, embedding: int | None, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        self.film = FiLM(embedding, width) if embedding else None
        self.dropout = dropout

    def forward(self, h: Tensor, embedding: Tensor | None) -> Tensor:
        g = self.up(self.norm(h))
        g = self.film(g, embedding) if self.film else g
        return h + self.down(dropout(F.silu(g), self.dropout, self.training))


class ResMLP(nn.Module):
    """[B, inputs] -> [B, out] through `depth` residual blocks; starts at zero output if `zero`."""

    def __init__(
        self, inputs: int, out: int, *, width: int, depth: int, embedding: int | None = None, dropout: float = 0.0, zero: bool = False
    ) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(Block(width, embedding, dropout) for _ in range(depth))
        self.norm, self.last = nn.LayerNorm(width), nn.Linear(width, out)
        if zero:
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        h = self.first(x)
        for block in self.blocks:
            h = block(h, embedding)
        return self.last(F.silu(self.norm(h)))


class PlainMLP(nn.Module):
    """[B, D] -> [B, out] from the entries `reads` through `depth` + 1 hidden layers of ReLU; zero at first.

    The embedding of what is given is added to the first.
    """

    layers: Sequence[nn.Linear]
    reads: Tensor

    def __init__(self, reads: Tensor, out: int, *, width: int, depth: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.register_buffer("reads", reads, persistent=False)
        self.layers = nn.ModuleList(  # type: ignore[assignment]
            nn.Linear(*ends) for ends in pairwise([len(reads), *[width] * (depth + 1), out])
        )
        for p in self.layers[-1].parameters():
            nn.init.zeros_(p)

    def perceptron(self, embedding: Tensor | None = None) -> Perceptron:
        return Perceptron(self.reads, parameters_of(self.layers), None, embedding, self.dropout if self.training else 0.0)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        return self.perceptron(embedding)(x)
