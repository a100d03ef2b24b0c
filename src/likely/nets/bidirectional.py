r"""Nets that see all entries at once, some of them hidden: parameters of each entry by what can be seen of the others.

An entry is a vector between that of its value and that of "hidden", by the share s_i of it that is hidden,

    h_i = (1 - s_i) token(x_i) + s_i veil

so that s_i is 1 where an entry is masked, 0 where it is known, and the level of the noise where all are noisy. A denoiser makes of
the vectors as much again, its time being the mean of s, and a linear map makes parameters of their sum:

    transformer         attention among all entries (`tower`), of which each is a token
    unet, unet1d, mlp   the denoiser of that name, on vectors as the channels of a grid or a sequence, or of columns side by side

References:
    | BERT: pre-training of deep bidirectional transformers (Devlin et al., 2018) | https://arxiv.org/abs/1810.04805
    | MaskGIT: masked generative image transformer (Chang et al., 2022) | https://arxiv.org/abs/2202.04200
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from likely.nets import net as build_net
from likely.nets.causal.inputs import Outputs, Tokens
from likely.nets.denoiser import of_size
from likely.nets.known import Knowledge
from likely.nets.positions import KINDS, Positions
from likely.nets.tower import Among, Tower
from likely.space import Space

__all__ = ["BidirectionalTransformer", "MLPOverVectors", "UNet1dOverVectors", "UNetOverVectors"]


class Bidirectional(nn.Module, ABC):
    """(x [B, *shape], hidden [B, *shape] in [0, 1]) -> parameters [B, *shape, out].

    Args:
        width: of the vectors of entries.
    """

    def __init__(self, space: Space, width: int, out: int) -> None:
        super().__init__()
        self.space, self.kinds = space, len(space.supports)
        self.tokens, self.veil, self.last = Tokens(space, width), nn.Embedding(self.kinds, width), Outputs(self.kinds, width, out)

    def forward(self, x: Tensor, hidden: Tensor, given: Tensor | None = None) -> Tensor:
        grid, time = self.space.layout == "grid", hidden.flatten(1).mean(1)
        entries, hidden = (v.movedim(1, -1) if grid else v for v in (x, hidden))
        seen = self.tokens(entries.reshape(-1, self.kinds)).view(len(x), -1, self.veil.embedding_dim)
        veil = self.veil.weight.repeat(seen.shape[1] // self.kinds, 1).expand_as(seen)
        h = torch.lerp(seen, veil, hidden.flatten(1)[..., None].to(seen))
        parameters = self.last(h + self.said(h, time, given)).unflatten(1, entries.shape[1:])
        return parameters.movedim(-2, 1) if grid else parameters

    @abstractmethod
    def said(self, h: Tensor, time: Tensor, given: Tensor | None) -> Tensor:
        """Vectors [B, entries, width], of a grid by row, column, channel -> what they say of each other, the same shape."""


class BidirectionalTransformer(Bidirectional):
    """A token for each entry; attention among all.

    Options:
        width, depth, heads, dropout: of the transformer.
        positions: "rotary" (on a grid by row and column), "learned", "sinusoidal" or "alibi".
    """

    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"width": 16, "depth": 1, "heads": 2, "dropout": 0.0},
        "small": {"width": 64, "depth": 3, "heads": 4, "dropout": 0.0},  # random masks keep it from overfitting
        "base": {"width": 192, "depth": 6, "heads": 6, "dropout": 0.1},
    }
    of_texts: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"width": 128, "depth": 4},
        "base": {"width": 384, "depth": 8},
    }
    words: ClassVar[dict[str, tuple[str, ...]]] = {"positions": KINDS}

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
        dropout: float | None = None,
        positions: str | None = None,
    ) -> None:
        how = of_size(self.sizes, size, **(self.of_texts.get(size, {}) if space.layout == "sequence" else {}))
        how |= {name: v for name, v in (("width", width), ("depth", depth), ("heads", heads), ("dropout", dropout)) if v is not None}
        super().__init__(space, how["width"], out)
        kind = positions or ("learned" if space.layout == "columns" else "rotary")
        self.positions = Positions(space, kind, width=how["width"], heads=how["heads"])
        self.knowledge = Knowledge(given, how["width"])
        self.tower = Tower(how["width"], how["width"], text=self.knowledge.reads, **how)

    def said(self, h: Tensor, time: Tensor, given: Tensor | None) -> Tensor:
        place = torch.arange(h.shape[1], device=h.device)
        among = Among(self.positions.turns(place, h.dtype), self.positions.bias(place[:, None], place[None], h.dtype))
        return self.tower(h, self.knowledge(time, given), among, self.positions.added(place, h.dtype))


class _OverVectors(Bidirectional):
    """A denoiser over the vectors of entries."""

    denoiser: ClassVar[str]
    vectors: ClassVar[dict[str, int]] = {"tiny": 8, "small": 32, "base": 64}

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
        vector: int | None = None,
    ) -> None:
        each = vector or self.vectors[size]
        super().__init__(space, each, out)
        chosen: dict[str, Any] = {n: v for n, v in (("width", width), ("depth", depth), ("dropout", dropout)) if v is not None}
        reals = _reals(space, self.kinds * each)
        self.body = build_net(reals, "denoiser", size, word=self.denoiser, given=given, out=1, **chosen)

    def said(self, h: Tensor, time: Tensor, given: Tensor | None) -> Tensor:
        if self.space.layout == "columns":
            return self.body(h.flatten(1), time, given).view_as(h)
        sides = self.space.shape[1:] or self.space.shape
        u = h.reshape(len(h), -1, self.kinds * h.shape[2]).mT.contiguous().unflatten(2, sides)  # convolutions in bf16 are faster on it
        return self.body(u, time, given).flatten(2).mT.reshape_as(h)


def _reals(space: Space, width: int) -> Space:
    """The space of the vectors of all entries: of a grid or a sequence as channels, of columns side by side."""
    if space.layout == "columns":
        return Space.reals(space.dims // len(space.supports) * width)
    return Space.grid(width, *space.shape[1:]) if space.layout == "grid" else Space.series(width, space.dims)


class UNetOverVectors(_OverVectors):
    """A U-Net over pixels.

    Options:
        width, depth, dropout: of the U-Net; vector: numbers that an entry is told by.
    """

    denoiser = "unet"


class UNet1dOverVectors(_OverVectors):
    """A U-Net along a sequence.

    Options:
        width, depth, dropout: of the U-Net; vector: numbers that an entry is told by.
    """

    denoiser = "unet1d"


class MLPOverVectors(_OverVectors):
    """A residual MLP of all columns together.

    Options:
        width, depth, dropout: of the MLP; vector: numbers that an entry is told by.
    """

    denoiser = "mlp"
