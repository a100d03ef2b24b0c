"""A transformer on tokens that all see each other, under time and `given` by adaLN-Zero.

    h = h + g_1 attention(s_1 norm(h) + b_1)       s, b and the gates g are linear in an embedding of time and `given`;
    h = h + attention(norm(h), text)               where a text is given
    h = h + g_2 mlp(s_2 norm(h) + b_2)             gates are zero at first, so that each block is the identity

Among N tokens attention costs N^2; through m inducing points, which attend to the tokens and which the tokens then attend to, 2 m N.

References:
    | Attention is all you need (Vaswani et al., 2017) | https://arxiv.org/abs/1706.03762
    | Set Transformer: a framework for attention-based permutation-invariant neural networks (Lee et al., 2018) | https://arxiv.org/abs/1810.00825
    | Scalable diffusion models with transformers (adaLN-Zero; Peebles and Xie, 2022) | https://arxiv.org/abs/2212.09748
    | PixArt-alpha: fast training of diffusion transformer for photorealistic text-to-image synthesis (Chen et al., 2023) | https://arxiv.org/abs/2310.00426
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from likely.nets.dropout import dropout
from likely.nets.known import Known
from likely.nets.positions import rotated
from likely.nets.reader import CrossAttention
from likely.nets.split import head_width

__all__ = ["Among", "Tower"]


@dataclass(frozen=True)
class Among:
    """What attention among tokens is told: rotations [L, 1, head width / 2], a bias of scores, and which tokens [B, L] are there."""

    turns: Tensor | None = None
    bias: Tensor | None = None
    there: Tensor | None = None


def _zeroed(linear: nn.Linear) -> nn.Linear:
    """A linear map that starts at zero."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _modulated(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """norm(h) (1 + scale) + shift of tokens [B, L, width], scale and shift [B, 1, width]."""
    return torch.addcmul(shift, F.layer_norm(h, h.shape[-1:]), 1 + scale)


class SelfAttention(nn.Module):
    """Attention of all tokens [B, L, width] to all."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width(width, heads)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, h: Tensor, among: Among) -> Tensor:
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, self.head_width)).unbind(-3)
        q, k, v = (a.transpose(1, 2) for a in (rotated(q, among.turns), rotated(k, among.turns), v))
        mask = among.bias if among.there is None else among.there[:, None, None]
        return self.out(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))


class InducedAttention(nn.Module):
    """Attention of tokens to inducing points, which attend to the tokens that are there."""

    def __init__(self, width: int, heads: int, points: int) -> None:
        super().__init__()
        self.points = nn.Embedding(points, width)
        self.gather, self.spread = CrossAttention(width, heads), CrossAttention(width, heads)

    def forward(self, h: Tensor, among: Among) -> Tensor:
        there = among.there if among.there is not None else h.new_ones(h.shape[:2], dtype=torch.bool)
        points = self.points.weight.to(h.dtype).expand(len(h), -1, -1)
        points = points + self.gather(points, self.gather.read(h), there)
        return self.spread(h, self.spread.read(points), there.new_ones(points.shape[:2]))


class Block(nn.Module):
    """What tokens become by each other, by a text, and each by itself; the identity at first."""

    def __init__(self, width: int, heads: int, *, inducing: int, text: bool, dropout: float) -> None:
        super().__init__()
        self.modulation = _zeroed(nn.Linear(width, 6 * width))
        self.attention = InducedAttention(width, heads, inducing) if inducing else SelfAttention(width, heads)
        self.text = CrossAttention(width, heads) if text else None
        if self.text is not None:
            _zeroed(self.text.out)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = dropout

    def forward(self, h: Tensor, known: Known, among: Among) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(known.embedding)[:, None].chunk(6, -1)
        h = torch.addcmul(h, gate_1, self._drop(self.attention(_modulated(h, shift_1, scale_1), among)))
        if self.text is not None and known.memory is not None and known.filled is not None:
            h = h + self.text(F.layer_norm(h, h.shape[-1:]), self.text.read(known.memory), known.filled)
        return torch.addcmul(h, gate_2, self._drop(self.down(F.gelu(self.up(_modulated(h, shift_2, scale_2))))))

    def _drop(self, g: Tensor) -> Tensor:
        return dropout(g, self.dropout, self.training)


class Tower(nn.Module):
    """Tokens [B, L, inputs] -> [B, L, outputs]; zero at first.

    Args:
        inducing: points that attention goes through; 0 for attention of all to all.
        text: whether `Known` has a memory to attend to.
    """

    def __init__(
        self, inputs: int, outputs: int, *, width: int, depth: int, heads: int, dropout: float, text: bool, inducing: int = 0
    ) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(Block(width, heads, inducing=inducing, text=text, dropout=dropout) for _ in range(depth))
        self.modulation, self.last = _zeroed(nn.Linear(width, 2 * width)), _zeroed(nn.Linear(width, outputs))

    def forward(self, tokens: Tensor, known: Known, among: Among, added: Tensor | None = None) -> Tensor:
        """`added` [L, width] tells tokens where they are."""
        h = self.first(tokens) if added is None else self.first(tokens) + added
        for block in self.blocks:
            h = block(h, known, among)
        return self.last(_modulated(h, *self.modulation(known.embedding)[:, None].chunk(2, -1)))
