r"""A masked MLP for real numbers: the parameters of each entry's map from the entries before it, all in one pass.

Every hidden unit has a degree m and sees the first m entries alone; the parameters of entry i (from 0) see units of
degrees up to i. Units are sorted by degree, so that a draw can go entry by entry and compute each unit once, for good, when
the last entry that it sees is known: a whole draw then costs as much as one pass (`init_state` and `step`).

References:
    | MADE: masked autoencoder for distribution estimation (Germain et al., 2015) | https://arxiv.org/abs/1502.03509
    | Masked autoregressive flow for density estimation (Papamakarios et al., 2017) | https://arxiv.org/abs/1705.07057
    | Autoregressive energy machines (ResMADE; Nash and Durkan, 2019) | https://arxiv.org/abs/1904.05626
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from likely.nets.conditioning import Conditioner, FiLM
from likely.nets.dropout import dropout
from likely.nets.masked import MaskedLinear
from likely.nets.perceptron import Perceptron, Unrolled, parameters_of, seen
from likely.space import Space

__all__ = ["MaskedMLP", "MaskedState"]


class Block(nn.Module):
    """h + W2 relu(FiLM(W1 relu(h))), both masked."""

    def __init__(self, degree: Tensor, embedding: int | None, dropout: float) -> None:
        super().__init__()
        self.up, self.down = (MaskedLinear(degree, degree, fixed=True) for _ in range(2))
        self.film = FiLM(embedding, len(degree)) if embedding else None
        self.dropout = dropout

    def forward(self, h: Tensor, embedding: Tensor | None) -> Tensor:
        g = self.up(F.relu(h))
        g = self.film(g, embedding) if self.film else g
        return h + self.down(dropout(F.relu(g), self.dropout, self.training))


@dataclass
class MaskedState:
    """Updated in place by `step`. What no entry reaches (units of degree 0) is kept apart: without `given` it is one row for all.

    Attributes:
        n: number of examples.
        known: what the known entries and `given` add up to, for the units to come, [n or 1, units].
        films: scale and shift of each block's inner units, where there is a `given`.
        constant: per layer, units of degree 0 after their nonlinearity, [n or 1, units].
        units: per layer, the others, those of the degrees so far; [n, units] each.
        entry: number of known entries.
    """

    n: int
    known: Tensor
    films: list[tuple[Tensor, Tensor] | None]
    constant: list[Tensor]
    units: list[Tensor]
    entry: int = 0


def _plain(degree: Tensor) -> MaskedLinear:
    return MaskedLinear(degree, degree, fixed=True)


def _stack(parts: list[Tensor], none: Tensor) -> Tensor:
    """Without a copy of one."""
    return none if not parts else parts[0][None] if len(parts) == 1 else torch.stack(parts)


class MaskedMLP(nn.Module):
    """Reals [B, n] -> [B, out, n]: raw parameters of each entry given those before it; zero at first.

    Args:
        width: of the hidden layers; n at least, for a unit of each degree.
        depth: residual blocks; dropout: inside of them.
        residual: else a block is one matrix and a ReLU, and the whole a plain perceptron: half of the matrices,
            and on a CPU several times as fast in affine maps (`bijections.fused`).
    """

    sizes: ClassVar[dict[str, dict[str, int]]] = {
        "tiny": {"width": 32, "depth": 1},
        "small": {"width": 128, "depth": 1},
        "base": {"width": 512, "depth": 2},
    }
    blocks: Sequence[Any]
    entries: Tensor
    begins: Tensor
    degrees: Tensor

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        out: int,
        width: int | None = None,
        depth: int | None = None,
        dropout: float = 0.0,
        residual: bool = True,
    ) -> None:
        super().__init__()
        preset = self.sizes[size]
        width, depth = max(width or preset["width"], space.dims), preset["depth"] if depth is None else depth
        self.dims, self.out, self.width, self.dropout, self.residual = space.dims, out, width, dropout, residual
        self.lowest = 1 if given is None and space.dims > 1 else 0  # units that see nothing are of use where there is a `given`
        degree, entry = self.lowest + torch.arange(width) * (space.dims - self.lowest) // width, torch.arange(space.dims)
        self.given = Conditioner(given, width)
        self.first = MaskedLinear(entry + 1, degree, fixed=True)
        block = partial(Block, embedding=width if given is not None else None, dropout=dropout) if residual else _plain
        self.blocks = nn.ModuleList(block(degree) for _ in range(depth))  # type: ignore[assignment]
        self.register_buffer("entries", entry, persistent=False)
        begins = torch.tensor([self._begin(degree) for degree in range(space.dims + 1)])
        self.register_buffer("begins", begins, persistent=False)
        self.last = MaskedLinear(degree, entry.repeat(out), fixed=True)
        self.register_buffer("degrees", torch.cat([entry + 1, degree, entry.repeat(out)]), persistent=False)
        self.linears = () if residual else (self.first, *self.blocks, self.last)  # a tuple, for it is asked for at each call
        for p in self.last.parameters():
            nn.init.zeros_(p)

    def perceptron(self, given: Tensor | None, n: int) -> Perceptron | None:
        """All that the net computes, if that is a perceptron."""
        if self.residual:
            return None
        known, dropout = self.given(given, n), self.dropout if self.training else 0.0
        return Perceptron(self.entries, parameters_of(self.linears), self.degrees, known, dropout)

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        plain = self.perceptron(given, len(x))
        if plain is not None:
            return plain(x).view(len(x), self.out, self.dims)
        embedding = self.given(given, len(x))
        h = self.first(seen(x))
        h = h if embedding is None else h + embedding
        for block in self.blocks:
            h = block(h, embedding)
        return self.last(F.relu(h)).view(len(x), self.out, self.dims)

    # -- entry by entry ---------------------------------------------------------------------------

    def unrolled(self, given: Tensor | None, n: int) -> Unrolled | None:
        """All that `init_state` and `step` compute, but where a `given` modulates blocks."""
        embedding, first, last = self.given(given, n), self.first, self.last
        if self.residual and embedding is not None:
            return None
        known = first.bias[None] if embedding is None else first.bias + embedding
        linears = [linear for block in self.blocks for linear in ((block.up, block.down) if self.residual else (block,))]
        hidden = _stack([linear.weight for linear in linears], first.weight.new_empty(0, self.width, self.width))
        bias = _stack([linear.bias for linear in linears], known.new_empty(0, self.width))
        return Unrolled(known, first.weight, hidden, bias, last.weight, last.bias, self.begins, self.residual)

    def init_state(self, n: int, given: Tensor | None = None) -> MaskedState:
        embedding, bias = self.given(given, n), self.first.bias
        known = bias[None] if embedding is None else bias + embedding
        films = [block.film.scale_and_shift(embedding) if self.residual and block.film else None for block in self.blocks]
        layers = (1 + self.residual) * len(films) + 1
        return MaskedState(n, known, films, [], [bias.new_empty(n, self.width - self._begin(1)) for _ in range(layers)])

    def _begin(self, degree: int) -> int:
        """The first unit of a degree."""
        return -(-max(0, degree - self.lowest) * self.width // (self.dims - self.lowest))

    def step(self, state: MaskedState, x_i: Tensor | None) -> Tensor:
        """Take the previous entry [n] (None at first); raw parameters [n, out] of the next."""
        begin, end = self._begin(state.entry), self._begin(state.entry + 1)
        if x_i is not None:  # for the units that are still to come; the others are there for good
            known = state.known[:, begin - self._begin(state.entry - 1) :]
            state.known = torch.addcmul(known, seen(x_i)[:, None], self.first.weight[begin:, state.entry - 1])
        parameters = self._grown(state, begin, end)
        state.entry += 1
        return parameters

    def _grown(self, state: MaskedState, begin: int, end: int) -> Tensor:
        """Compute the units begin:end of each layer from those before them, and then what they say of the next entry."""
        new, layer, constants = slice(begin, end), -1, self._begin(1)
        outputs = slice(state.entry, None, self.dims)
        if end == 0:
            return self.last.bias[outputs].expand(state.n, -1)

        def grow(values: Tensor) -> None:
            nonlocal layer
            layer, values = layer + 1, F.relu(values)
            if state.entry == 0:
                state.constant.append(values)
            elif end - begin == self.width:
                state.units[layer] = values
            else:
                state.units[layer][:, begin - constants : end - constants] = values

        def heard(linear: MaskedLinear, rows: slice) -> Tensor:
            fixed = F.linear(state.constant[layer], linear.weight[rows, :constants], linear.bias[rows]) if constants else linear.bias[rows]
            if state.entry == 0:
                return fixed
            varied = state.units[layer][:, : end - constants]
            weight = linear.weight[rows, constants:end]
            return torch.addmm(fixed, varied, weight.T)

        h = state.known[:, : end - begin]
        grow(h)
        for block, film in zip(self.blocks, state.films, strict=True):
            if not self.residual:
                grow(heard(block, new))
                continue
            inner = heard(block.up, new)
            grow(inner if film is None else inner * (1 + film[0][:, new]) + film[1][:, new])
            h = h + heard(block.down, new)
            grow(h)
        return heard(self.last, outputs).expand(state.n, -1)
