r"""Variational dequantization: where in its cell a number on a grid is lifted to is learnt, not uniform.

    log P(x) >= E_q(w|x) [ log p(u(x, w)) - log q(w | x) ],      w in (0, 1)^numbers the shares of the cells

q is a conditional flow from normal noise, e ~ N(0, I) -> e' = f(e; x) -> w = Phi(e'):

    log q(w | x) = log N(e) - log |det de'/de| - log N(e')

f is two couplings by splines, each of half the numbers, whose nets see the other half, x and what is `given`. They start as the identity,
and then Phi makes w uniform: learning begins at uniform dequantization. The bound holds whatever q, and is tight where q(w | x) is
the model's own p(w | x), so that the flow need not be flat within a cell. A missing number has no cell; its filler is made of
the same w, so that q covers it, too. Flags and categories keep their surjections (see `relaxation`).

References:
    | Flow++: Improving flow-based generative models with variational dequantization (Ho et al., 2019) | https://arxiv.org/abs/1902.00275
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from likely.bijections import Chain, Coupling, Elementwise, chunks, mask
from likely.errors import UsageError
from likely.nets import net
from likely.noise import Noise
from likely.relaxation import Within, context
from likely.space import Space

__all__ = ["Dequantizer"]

_VECTOR_UP_TO = 256  # numbers; larger images have convolutional nets
_COUPLINGS = 2  # each number moves once


class Dequantizer(nn.Module):
    """q(w | x), the shares of their cells that numbers are lifted to.

    Args:
        space: of data with numbers on a grid.
        given: what the model is conditioned on.
        transform: of the couplings, the identity where its raw parameters are zero.
        how: options of the nets, such as width.

    Raises: UsageError if no number of the data lies on a grid.
    """

    def __init__(self, space: Space, transform: Elementwise, *, given: Space | None = None, size: str = "small", **how: Any) -> None:
        super().__init__()
        if not space.discrete or not space.numbers:
            raise UsageError("No number of these data lies on a grid, so none is dequantized.", "Leave out dequantization=variational.")
        self.space = space
        shape, seen = (len(space.numbers), *space.shape[1:]), space.relaxed.shape
        if math.prod(shape) <= _VECTOR_UP_TO or space.layout == "columns":
            shape, seen = (math.prod(shape),), (math.prod(seen),)
        self.shape, self.seen = shape, seen
        both = (seen[0] + shape[0], *shape[1:])
        layout = Space.grid(*both) if len(both) == 3 else Space.reals(*both)
        still = torch.zeros(seen, dtype=torch.bool)  # what is known of x passes every coupling as it is
        moves = [torch.cat([still, mask("alternate", shape, turn)]) for turn in range(_COUPLINGS)]
        self.map = Chain(
            Coupling(m, transform, net(layout, "coupling", size, given=given, out=transform.size, moves=m, **how)) for m in moves
        )

    def forward(self, x: Tensor, given: Tensor | None, noise: Noise) -> Within:
        """Shares for every draw of examples x [batch, *shape], with `given` [draws * batch, ...] already one per draw."""
        numbers = (len(self.space.numbers), *self.space.shape[1:])
        e = noise.normal(*numbers).to(torch.get_default_dtype())
        known = noise.repeat(context(self.space, x))
        joined = torch.cat([known.view(-1, *self.seen), e.view(-1, *self.shape)], 1)
        moved, log_det = zip(*(self.map(part, g) for part, g in chunks(joined, given)), strict=True)
        to = torch.cat(moved)[:, self.seen[0] :].reshape(len(e), *numbers).double()
        log_ratio = 0.5 * (e.double().square() - to.square()).flatten(1).sum(1)  # log N(e') - log N(e)
        return Within(torch.special.ndtr(to), log_ratio + torch.cat(log_det), "variational")
