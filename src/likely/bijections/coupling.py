"""Coupling: entries that stay choose the map of those that move, so the Jacobian is triangular.

References:
    | NICE: Non-linear independent components estimation (Dinh et al., 2014) | https://arxiv.org/abs/1410.8516
    | Density estimation using Real NVP (checkerboard and channel masks; Dinh et al., 2017) | https://arxiv.org/abs/1605.08803
"""

import math

import torch
from torch import Tensor, nn

from likely.bijections.base import Bijection
from likely.bijections.elementwise import Elementwise
from likely.bijections.fused import Layer, layer_of, steps_of, through
from likely.errors import UsageError, nearest

__all__ = ["MASKS", "Coupling", "mask"]

MASKS = ("alternate", "halves", "checkerboard")


def mask(word: str, shape: tuple[int, ...], turn: int) -> Tensor:
    """bool [*shape], which entries move; the others at the next turn. A single entry always does.

    Args:
        word: "alternate" (every other channel of an image or entry of a vector; places of one channel as on a checkerboard),
            "halves" (the first or the last half of the channels or entries), "checkerboard" (neighbours differ).

    Raises: UsageError for another word.
    """
    if word not in MASKS:
        raise UsageError(f"Unknown mask '{word}'.", nearest(word, MASKS))
    if math.prod(shape) == 1:
        return torch.ones(shape, dtype=torch.bool)
    places = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij"))
    if word == "checkerboard" or shape[0] == 1:
        side = places[-2:].sum(0) if len(shape) > 2 and math.prod(shape[1:]) > 1 else places.sum(0)
    else:
        side = places[0] if word == "alternate" else (2 * places[0] >= shape[0]).long()
    return side % 2 != turn % 2


class Coupling(Bijection):
    """y_moved = f(x_moved; net(x_stay)), y_stay = x_stay.

    Args:
        moves: bool [*shape], the entries that move.
        transform: the map f of single numbers.
        net: (x with zeros for what moves [B, *shape], given) -> raw parameters [B, transform.size, moved],
            in the order of the flattened entries.
    """

    stay: Tensor
    moved: Tensor

    def __init__(self, moves: Tensor, transform: Elementwise, net: nn.Module) -> None:
        super().__init__()
        self.transform, self.net = transform, net
        self.register_buffer("stay", (~moves).float())
        self.register_buffer("moved", moves.flatten().nonzero().squeeze(1))

    def step(self, given: Tensor | None, n: int, *, inverse: bool) -> Layer | None:
        return layer_of(self.net, self.transform, self.moved, given, n)

    def _through(self, x: Tensor, given: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        flat = x.flatten(1)
        if steps := steps_of([self], flat, given, inverse=inverse):
            y, log_det = through(steps, flat, inverse=inverse)
        else:
            y, log_det = self.transform.among(flat, self.moved, self.net(x * self.stay, given), inverse=inverse)
        return y.view_as(x), log_det

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._through(x, given, inverse=False)

    def inverse(self, y: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._through(y, given, inverse=True)
