r"""A pixel's channels together: one mixture component for all, whose later means are linear in the earlier values.

With components k, weights pi_k, and u_c the standardised value of channel c,

    p(x_1 .. x_C) = sum_k pi_k prod_c P(x_c; mu_ck + sum_{b<c} tanh(a_cbk) u_b, s_ck)

where P is a logistic's mass of x's cell. Entry by entry this is a mixture again, whose weights are the
components' probabilities given the channels before:

    p(x_c | x_1 .. x_{c-1}) = sum_k w_ck P(x_c; ..),    w_ck proportional to pi_k prod_{b<c} P(x_b; ..)

So the coupling is a map from a causal net's outputs to the parameters of a `LogisticMixture` for each
channel: sampling, codes and filling go entry by entry as with any other.

References:
    | PixelCNN++: Improving the PixelCNN with discretized logistic mixture likelihood (Salimans et al., 2017) | https://arxiv.org/abs/1701.05517
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from likely.errors import UsageError
from likely.heads.mixtures import LogisticMixture
from likely.nets.causal import CausalNet, OrderFree
from likely.nets.causal.inputs import standard
from likely.space import Space

__all__ = ["Coupled"]


@dataclass
class Pixel:
    """What a channel takes from those before it: component log-weights [..., K], and values."""

    weights: Tensor
    values: list[Tensor] = field(default_factory=list)


@dataclass
class CoupledState:
    """The net's own state, the pixel so far, and the last channel's parameters."""

    net: Any
    pixel: Pixel | None = None
    last: Tensor | None = None
    channel: int = 0


class Coupled(CausalNet):
    """A causal net of a grid whose outputs become parameters of logistic mixtures, coupled over the channels.

    Args:
        net: has `Coupled.width` outputs per entry.
        components: of the mixture.

    Raises: UsageError where the channels are not at least two ordinals without missing values.
    """

    def __init__(self, space: Space, net: CausalNet, components: int) -> None:
        super().__init__()
        channels, pixels = space.shape[0], space.dims // space.shape[0]
        walked = net.order.view(-1, channels) - torch.arange(channels) * pixels
        if net.orderings > 1 or isinstance(net, OrderFree) or bool((walked != walked[:, :1]).any()):
            raise UsageError("Channels are coupled in their own order.", "Use head=mixture with other orders.")
        self.heads, self.components = [LogisticMixture((s,), components) for s in space.supports], components
        self.net, self.order, self.reach = net, net.order, net.reach

    @staticmethod
    def width(space: Space, components: int) -> int:
        """Outputs per entry that the net must have: weights, means, log-scales and coefficients."""
        if space.layout != "grid" or space.shape[0] < 2 or any(s.kind != "ordinal" or s.missing for s in space.supports):
            raise UsageError(f"The coupled head is for colour images, not a {space.named}.", "Use head=mixture, or leave it out.")
        return components * (space.shape[0] + 2)

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        outputs, pixel, parts = self.net(x, given), None, []
        for channel in range(len(self.heads)):
            parameters, pixel = self._coupled(channel, outputs[:, channel], pixel)
            parts.append(parameters)
            self._extend(pixel, channel, parameters, x[:, channel])
        return torch.stack(parts, 1)

    def init_state(self, n: int, given: Tensor | None = None) -> CoupledState:
        return CoupledState(self.net.init_state(n, given))

    def step(self, state: CoupledState, x_i: Tensor | None) -> tuple[CoupledState, Tensor]:
        if x_i is not None and state.pixel is not None and state.last is not None:
            self._extend(state.pixel, state.channel, state.last, x_i)
            state.channel = (state.channel + 1) % len(self.heads)
        state.net, outputs = self.net.step(state.net, x_i)
        state.last, state.pixel = self._coupled(state.channel, outputs, state.pixel if state.channel else None)
        return state, state.last

    def _coupled(self, channel: int, outputs: Tensor, pixel: Pixel | None) -> tuple[Tensor, Pixel]:
        """Parameters [..., 3 K] of a channel's mixture, from the net's outputs and the pixel so far."""
        weights, mean, log_s, *coefficients = outputs.unflatten(-1, (-1, self.components)).unbind(-2)
        pixel = pixel or Pixel(weights)
        for a, u in zip(coefficients, pixel.values, strict=False):
            mean = mean + a.tanh() * u[..., None]
        return torch.cat([pixel.weights, mean, log_s], -1), pixel

    def _extend(self, pixel: Pixel, channel: int, parameters: Tensor, x: Tensor) -> None:
        """Take the value of a channel."""
        head = self.heads[channel]
        pixel.weights = pixel.weights + head.log_components(parameters, x).to(parameters.dtype)
        value, _ = standard(head.supports, x[:, None])
        pixel.values.append(value[:, 0].to(parameters.dtype))
