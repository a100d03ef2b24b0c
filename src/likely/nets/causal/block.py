"""A pre-norm block of a causal transformer: attention, attention to a memory where there is one, and a map of each token.

    u    = h + attention(norm(h))
    u'   = u + cross(norm(u), memory)            where a sequence is attended to
    next = u' + ffn(norm(u'))                    swiglu: W3 (silu(W1 u) * W2 u),  relu2: W2 relu(W1 u)^2,  gelu: W2 gelu(W1 u)

References:
    | On layer normalization in the transformer architecture (pre-norm; Xiong et al., 2020) | https://arxiv.org/abs/2002.04745
    | Root mean square layer normalization (Zhang and Sennrich, 2019) | https://arxiv.org/abs/1910.07467
    | GLU variants improve transformer (SwiGLU; Shazeer, 2020) | https://arxiv.org/abs/2002.05202
    | Primer: searching for efficient transformers (squared ReLU; So et al., 2021) | https://arxiv.org/abs/2109.08668
    | Scalable diffusion models with transformers (adaptive norm; Peebles and Xie, 2023) | https://arxiv.org/abs/2212.09748
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from likely.nets.causal.attention import LinearAttention, Place, Ring, SoftmaxAttention, Sums
from likely.nets.conditioning import FiLM
from likely.nets.dropout import dropout
from likely.nets.reader import CrossAttention

__all__ = ["ACTIVATIONS", "NORMS", "Block", "Context", "FeedForward", "Norm"]

NORMS = ("layer", "rms")


def _swiglu(u: Tensor) -> Tensor:
    gate, value = u.chunk(2, -1)
    return F.silu(gate) * value


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"swiglu": _swiglu, "relu2": lambda u: u.relu().square(), "gelu": F.gelu}


def _in_place(kind: str) -> Callable[[Tensor], Tensor]:
    """The activation as a step takes it, which may use up its input: memory costs more than arithmetic there."""
    return (lambda u: u.mul_(u.relu_())) if kind == "relu2" else ACTIVATIONS[kind]


class FeedForward(nn.Module):
    """The map of each token by itself; swiglu's hidden width is 8/3 of the token's, the others' is 4 times it."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        hidden = 8 * width // 3 if kind == "swiglu" else 4 * width
        self.kind = kind
        self.up = nn.Linear(width, 2 * hidden if kind == "swiglu" else hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        return self.down(ACTIVATIONS[self.kind](self.up(h)))


@dataclass
class Context:
    """What is given, as the net uses it: the start token [n, width], an embedding [n, width] for film, tokens that stand
    ahead [n, ahead, width], and keys and values of a memory for each block [n, 2, heads, S, d] with the places that are filled [n, S]."""

    start: Tensor
    film: Tensor | None = None
    ahead: Tensor | None = None
    memory: list[Tensor] | None = None
    filled: Tensor | None = None


class Norm(nn.Module):
    """A norm of tokens, and with `film` a scale and shift of it by an embedding."""

    def __init__(self, kind: str, width: int, *, film: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if kind == "layer" else None
        self.film = FiLM(width, width) if film else None

    def forward(self, h: Tensor, embedding: Tensor | None) -> Tensor:
        h = self.plain()(h)
        return h if self.film is None else self.film(h.movedim(-1, 1), embedding).movedim(1, -1)

    def plain(self) -> Callable[[Tensor], Tensor]:
        """The norm itself, as a function."""
        shape, weight, bias = self.weight.shape, self.weight, self.bias
        if bias is None:
            return lambda h: F.rms_norm(h, shape, weight)
        return lambda h: torch.layer_norm(h, shape, weight, bias)

    def stepper(self) -> Callable[[Tensor, Tensor | None], Tensor]:
        """As `forward`, for many steps."""
        plain = self.plain()
        return self if self.film is not None else lambda h, _: plain(h)


class Block(nn.Module):
    """Attention, attention to a memory where there is one, and a feed-forward map, each added to its normed input."""

    attention: SoftmaxAttention | LinearAttention

    def __init__(
        self,
        width: int,
        attention: SoftmaxAttention | LinearAttention,
        *,
        heads: int,
        norm: str,
        ffn: str,
        given_by: str | None,
        dropout: float,
    ) -> None:
        super().__init__()
        film = given_by == "film"
        self.norm_1, self.attention = Norm(norm, width, film=film), attention
        self.norm_x, self.cross = (Norm(norm, width, film=False), CrossAttention(width, heads)) if given_by == "cross" else (None, None)
        self.norm_2, self.ffn, self.dropout = Norm(norm, width, film=film), FeedForward(width, ffn), dropout

    def forward(self, h: Tensor, place: Place, context: Context, index: int) -> Tensor:
        """h [B, L, width] -> the same shape."""
        return self._after(h + self._drop(self.attention(self.norm_1(h, context.film), place)), context, index)

    def _after(self, h: Tensor, context: Context, index: int) -> Tensor:
        """What follows attention: h [B, L, width] or [n, width]."""
        if self.cross is not None and self.norm_x is not None and context.memory is not None:
            h = h + self._drop(self.cross(self.norm_x(h, None), context.memory[index], context.filled))
        return h + self._drop(self.ffn(self.norm_2(h, context.film)))

    def stepper(self, index: int) -> Callable[[Tensor, Place, Context, Ring | Sums], Tensor]:
        """A function (h [n, width] of the next token, its place, context, cache) -> the same shape, see `SoftmaxAttention.stepper`."""
        attend = self.attention.stepper()
        if self.cross is not None or self.norm_1.film is not None:
            return lambda h, place, context, cache: self._after(attend(h, self.norm_1(h, context.film), place, cache), context, index)
        norm_1, norm_2, activation = self.norm_1.plain(), self.norm_2.plain(), _in_place(self.ffn.kind)
        up, down = self.ffn.up.weight.T.contiguous(), self.ffn.down.weight.mT

        def step(h: Tensor, place: Place, context: Context, cache: Ring | Sums) -> Tensor:
            h = attend(h, norm_1(h), place, cache)
            return torch.addmm(h, activation(torch.mm(norm_2(h), up)), down)

        return step

    def _drop(self, h: Tensor) -> Tensor:
        return dropout(h, self.dropout, self.training)
