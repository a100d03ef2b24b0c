"""A transformer over patches of a vector, whose output at a patch depends on the patches before it.

References:
    | Attention is all you need (Vaswani et al., 2017) | https://arxiv.org/abs/1706.03762
    | Normalizing flows are capable generative models (TarFlow; Zhai et al., 2024) | https://arxiv.org/abs/2412.06329
"""

from torch import Tensor, nn
from torch.nn import functional as F

from likely.nets.causal.attention import Place, SoftmaxAttention
from likely.nets.conditioning import Conditioner
from likely.nets.dropout import dropout
from likely.space import Space

__all__ = ["PatchTransformer"]

_PLAIN = Place(None, None, None)  # causal, and nothing added


class PatchBlock(nn.Module):
    """h + attention(norm(h)), then h + W2 gelu(W1 norm(h))."""

    def __init__(self, width: int, heads: int, patches: int, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention = SoftmaxAttention(width, heads, heads, patches)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = dropout

    def forward(self, h: Tensor) -> Tensor:
        h = h + dropout(self.attention(self.norms[0](h), _PLAIN), self.dropout, self.training)
        return h + dropout(self.down(F.gelu(self.up(self.norms[1](h)))), self.dropout, self.training)


class PatchTransformer(nn.Module):
    """Reals [B, patches * size] -> [B, out, patches * size]: parameters of each entry given the patches before its own; zero at first."""

    def __init__(
        self, patches: int, size: int, *, given: Space | None, out: int, width: int, depth: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.patches, self.size, self.out = patches, size, out
        self.conditioner = Conditioner(given, width)
        self.first = nn.Linear(size, width)
        self.place = nn.Embedding(patches, width)
        nn.init.normal_(self.place.weight, std=0.02)
        self.blocks = nn.ModuleList(PatchBlock(width, heads, patches, dropout) for _ in range(depth))
        self.norm, self.last = nn.LayerNorm(width), nn.Linear(width, out * size)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        before = F.pad(x.unflatten(1, (self.patches, self.size))[:, :-1], (0, 0, 1, 0))
        h, embedding = self.first(before) + self.place.weight, self.conditioner(given, len(x))
        h = h if embedding is None else h + embedding[:, None]
        for block in self.blocks:
            h = block(h)
        raw = self.last(F.silu(self.norm(h))).unflatten(2, (self.out, self.size))
        return raw.transpose(1, 2).flatten(2)
