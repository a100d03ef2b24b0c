"""How every net takes `given`: an embedding of it, and FiLM to apply the embedding.

Nets that attend read a sequence place by place instead (see `reader`).

References:
    | FiLM: Visual reasoning with a general conditioning layer (Perez et al., 2018) | https://arxiv.org/abs/1709.07871
    | Classifier-free diffusion guidance (Ho and Salimans, 2022) | https://arxiv.org/abs/2207.12598
"""

import torch
from torch import Tensor, nn

from likely.errors import UsageError
from likely.nets.reader import Reader
from likely.space import Space

__all__ = ["Conditioner", "FiLM", "expand_like"]


def expand_like(v: Tensor, like: Tensor) -> Tensor:
    """[B] or [B, C] with trailing ones, to broadcast over `like` [B, C, ...]."""
    return v.view(*v.shape, *[1] * (like.ndim - v.ndim))


class Conditioner(nn.Module):
    """`given` -> embedding [B, width]: labels by lookup, numbers by a linear map, summed over columns;
    a sequence by the mean of what a transformer reads at its places.

    The one place that says what a missing `given` means: the null embedding where the model was
    built with dropout of it, an error otherwise.
    """

    def __init__(self, given: Space | None, width: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        if given is not None and given.layout not in ("columns", "grid", "sequence"):
            raise UsageError(f"Conditioning on {given.layout} data is not there yet.", "Labels, vectors, images and texts are.")
        self.given, self.width, self.dropout = given, width, dropout
        self.reader = Reader(given, width) if given is not None and given.layout == "sequence" else None
        nominals = given.nominals if given is not None and self.reader is None else []
        self.tables = nn.ModuleList(nn.Embedding(given.supports[i].levels + 1, width) for i in nominals) if given else nn.ModuleList()
        numbers = len(given.numbers) * (given.dims // given.shape[0]) if given else 0
        self.linear = nn.Linear(2 * numbers, width) if numbers else None
        self.null = nn.Embedding(1, width) if given is not None and dropout > 0 else None

    def forward(self, given: Tensor | None, batch: int) -> Tensor | None:
        """Embedding [batch, width], or None for an unconditional net."""
        if self.given is None:
            if given is not None:
                raise UsageError("This model is unconditional, p(x), but `given` was passed.", "Fit it with --given to condition it.")
            return None
        if given is None:
            if self.null is None:
                raise UsageError(
                    "This model is conditional, p(x | given), but no `given` was passed.",
                    f"Pass it, for example --given {self.given.supports[0].name or 'label'}=VALUE.",
                )
            return self.null.weight.expand(batch, -1)
        embedding = self._embed(self.given, given)
        if self.null is None or not self.training:
            return embedding
        drop = torch.rand(batch, 1, device=given.device) < self.dropout
        return torch.where(drop, self.null.weight, embedding)

    def _embed(self, space: Space, given: Tensor) -> Tensor:
        if self.reader is not None:
            memory, filled = self.reader(given)
            return (memory * filled[..., None]).sum(1) / filled.sum(1, keepdim=True)
        parts = [table(given[:, i] + 1) for table, i in zip(self.tables, space.nominals, strict=True)]
        if self.linear is not None:
            number = given[:, space.numbers].to(self.linear.weight.dtype)  # a codec's net is in float64
            center, scale = (v.to(number) for v in space.affine(number))
            lost = torch.isnan(number) if not space.discrete else number == -1
            value = torch.where(lost, 0.0, (number - center) / scale)
            parts.append(self.linear(torch.cat([value.flatten(1), lost.to(number).flatten(1)], 1)))
        return torch.stack(parts).sum(0)


class FiLM(nn.Module):
    """h * (1 + scale) + shift, with scale and shift linear in an embedding; the identity at first, and without one."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, h: Tensor, embedding: Tensor | None) -> Tensor:
        """h [B, C, ...], embedding [B, width] or None."""
        if embedding is None:
            return h
        scale, shift = self.scale_and_shift(embedding)
        return h * (1 + expand_like(scale, h)) + expand_like(shift, h)

    def factors(self, embedding: Tensor) -> Tensor:
        """1 + scale and shift, [B, 2, C]."""
        scale, shift = self.scale_and_shift(embedding)
        return torch.stack([1 + scale, shift], 1)

    def scale_and_shift(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C] each."""
        return self.linear(embedding).chunk(2, 1)
