"""Velocities of a flow in time, with their derivatives along given directions from the same pass (forward mode).

References:
    | FFJORD: free-form continuous dynamics for scalable reversible generative models (Grathwohl et al., 2019) | https://arxiv.org/abs/1810.01367
"""

import torch
from torch import Tensor, nn

from likely.nets.conditioning import Conditioner
from likely.space import Space

__all__ = ["VelocityMLP"]

_FREQUENCIES = 4


class VelocityMLP(nn.Module):
    """f(z, t, given) of z [B, dims] by layers of tanh(W h) whose units are scaled and shifted by time and `given`; zero at first."""

    def __init__(self, dims: int, *, given: Space | None = None, width: int = 64, depth: int = 3) -> None:
        super().__init__()
        self.depth = depth
        self.conditioner = Conditioner(given, width)
        self.layers = nn.ModuleList(nn.Linear(dims if i == 0 else width, width) for i in range(depth))
        self.film = nn.Linear(2 * _FREQUENCIES + 1 + (width if given is not None else 0), 2 * width * depth)
        self.last = nn.Linear(width, dims)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, z: Tensor, t: Tensor, embedding: Tensor | None, along: Tensor) -> tuple[Tensor, Tensor]:
        """f [B, dims] at times t [B or 1], and (df/dz) v of directions v = `along` [B or 1, n, dims], [B, n, dims]."""
        angle = t[:, None] * torch.pi * torch.arange(1, _FREQUENCIES + 1, device=z.device, dtype=z.dtype)
        time = torch.cat([t[:, None], angle.sin(), angle.cos()], 1)
        condition = time if embedding is None else torch.cat([time.expand(len(z), -1), embedding], 1)
        film = self.film(condition).unflatten(1, (self.depth, 2, -1))
        h, v = z, along
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Linear)
            scale, shift = 1 + film[:, i, 0], film[:, i, 1]
            h = torch.tanh(layer(h) * scale + shift)
            v = (v @ layer.weight.T) * ((1 - h.square()) * scale)[:, None]
        return self.last(h), v @ self.last.weight.T
