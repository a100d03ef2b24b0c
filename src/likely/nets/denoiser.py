"""The denoiser of vectors, a residual MLP; and what denoisers of grids and of sequences share: a sequence is a grid of height 1.

References:
    | Denoising diffusion probabilistic models (Ho et al., 2020) | https://arxiv.org/abs/2006.11239
    | Revisiting deep learning models for tabular data (Gorishniy et al., 2021) | https://arxiv.org/abs/2106.11959
"""

from typing import Any, ClassVar

from torch import Tensor, nn

from likely.errors import UsageError
from likely.nets.known import Knowledge
from likely.nets.mlp import ResMLP
from likely.space import Space

__all__ = ["MLPDenoiser", "as_grid", "grid_shape", "of_size"]


def of_size(sizes: dict[str, dict[str, Any]], size: str, **chosen: Any) -> dict[str, Any]:
    """Options of a size, overridden by those chosen (not None).

    Raises: UsageError for an unknown size.
    """
    if size not in sizes:
        raise UsageError(f"Unknown size '{size}'.", f"Known: {', '.join(sizes)}.")
    return {**sizes[size], **{name: value for name, value in chosen.items() if value is not None}}


def grid_shape(space: Space) -> tuple[int, tuple[int, int]]:
    """C and (H, W) of a grid; of sequences [C, L] they are C and (1, L)."""
    channels, *sides = space.shape
    return channels, (sides[0] if len(sides) > 1 else 1, sides[-1])


def as_grid(u: Tensor) -> Tensor:
    """Reals [B, C, H, W] or [B, C, L] as [B, C, H, W]."""
    return u if u.ndim == 4 else u.unsqueeze(2)


class MLPDenoiser(nn.Module):
    """(u [B, D], t [B]) -> [B, out * D] by a residual MLP; zero at first.

    Options:
        width, depth, dropout: of the residual blocks.
        drop: share of training examples that are shown without what is given.
    """

    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"width": 64, "depth": 2, "dropout": 0.0},
        "small": {"width": 256, "depth": 4, "dropout": 0.1},
        "base": {"width": 1024, "depth": 8, "dropout": 0.1},
    }

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
        drop: float = 0.0,
        times: int = 1,
    ) -> None:
        super().__init__()
        how = of_size(self.sizes, size, width=width, depth=depth, dropout=dropout)
        self.knowledge = Knowledge(given, how["width"], drop=drop, times=times)
        self.body = ResMLP(space.dims, out * space.dims, embedding=how["width"], zero=True, **how)

    def forward(self, u: Tensor, t: Tensor, given: Tensor | None = None) -> Tensor:
        return self.body(u, self.knowledge(t, given).embedding)
