"""MADE: a residual multilayer perceptron whose masked weights keep each output from its own and later entries.

Every hidden unit has a degree m and sees the entries before m alone: weights lead from the entries
j < m to it, to units of no smaller degree, and to the parameters of the entries i >= m.

References:
    | MADE: masked autoencoder for distribution estimation (Germain et al., 2015) | https://arxiv.org/abs/1502.03509
    | Autoregressive energy machines (ResMADE; Nash and Durkan, 2019) | https://arxiv.org/abs/1904.05626
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from likely.nets.causal import CausalNet
from likely.nets.causal.inputs import Tokens
from likely.nets.conditioning import Conditioner
from likely.space import Space

__all__ = ["MADE", "MADEState"]

_SIZES = {  # width, depth, dropout
    "tiny": (64, 1, 0.0),
    "small": (512, 2, 0.1),
    "base": (1024, 3, 0.1),
}
_TOKEN = 16


class MaskedLinear(nn.Linear):
    """A linear map whose weights are zero where the target's degree does not allow the source's."""

    mask: Tensor

    def __init__(self, allowed: Tensor) -> None:
        super().__init__(allowed.shape[1], allowed.shape[0])
        self.register_buffer("mask", allowed, persistent=False)
        with torch.no_grad():  # as many terms as sources, not as columns of the matrix
            self.weight.mul_((allowed.shape[1] / allowed.sum(1, keepdim=True).clamp_min(1)).sqrt())

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight * self.mask, self.bias)


class Block(nn.Module):
    """h + W2 silu(W1 silu(h)), all masked alike."""

    def __init__(self, allowed: Tensor, dropout: float) -> None:
        super().__init__()
        self.up, self.down, self.dropout = MaskedLinear(allowed), MaskedLinear(allowed), dropout

    def forward(self, h: Tensor) -> Tensor:
        return h + self.down(F.dropout(F.silu(self.up(F.silu(h))), self.dropout, self.training))


@dataclass
class MADEState:
    """What is known so far, [n, columns]; updated in place by `step`."""

    given: Tensor | None
    x: Tensor
    entry: int = 0


class MADE(CausalNet):
    """Causal net of a table: x [B, D] -> parameters [B, D, out]."""

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        out: int,
        width: int | None = None,
        depth: int | None = None,
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        preset = _SIZES[size]
        width, depth, dropout = width or preset[0], depth or preset[1], preset[2] if dropout is None else dropout
        self.space, self.out = space, out
        entry = torch.arange(space.dims)
        degree = torch.arange(width) % space.dims  # degree 0 sees nothing
        self.tokens, self.given = Tokens(space, _TOKEN), Conditioner(given, width)
        self.first = MaskedLinear(entry.repeat_interleave(_TOKEN) < degree[:, None])
        self.blocks = nn.ModuleList(Block(degree <= degree[:, None], dropout) for _ in range(depth))
        self.last = MaskedLinear(degree <= entry.repeat_interleave(out)[:, None])
        self.order = entry

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        h, embedding = self.first(self.tokens(x).flatten(1)), self.given(given, len(x))
        h = h if embedding is None else h + embedding
        for block in self.blocks:
            h = block(h)
        return self.last(F.silu(h)).view(len(x), -1, self.out)

    def init_state(self, n: int, given: Tensor | None = None) -> MADEState:
        return MADEState(given, torch.zeros(n, self.space.dims, dtype=self.space.dtype, device=self.first.weight.device))

    def step(self, state: MADEState, x_i: Tensor | None) -> tuple[MADEState, Tensor]:
        if x_i is not None:
            state.x[:, state.entry - 1] = x_i
        state.entry += 1
        return state, self(state.x, state.given)[:, state.entry - 1]
