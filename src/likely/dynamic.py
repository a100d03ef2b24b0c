r"""The conditionals of a long stretch of symbols, window by window, of a net that may go on learning as it goes.

Windows overlap: the first part of each is context, the rest is predicted. In dynamic evaluation each
part is learnt after it has been predicted,

    v     <- beta v + (1 - beta) g^2,       g = grad log p(part | what is before it; theta),
    theta <- theta + rate * g / sqrt(v / (1 - beta^t))        (elementwise, in step t)

so that parameters whose gradients are rare, such as embeddings of rare n-grams, move far when they
move. What is predicted rests on what is before it alone: the likelihood is exact, and a decoder that
learns alike can follow.

References:
    | Dynamic evaluation of neural sequence models (Krause et al., 2018) | https://arxiv.org/abs/1709.07432
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from likely.errors import UsageError
from likely.heads import Heads
from likely.nets.causal import CausalNet

__all__ = ["Turned", "adapting", "along"]

_ROWS = 32  # windows that are predicted at once
_RATE, _BETA = 2e-4, 0.999
_MEASURED = 32  # parts of what is before the stretch, by which the size of gradients is known
_STEPS = 2048  # of learning; in a longer stretch each learns several parts, up to _ROWS

Blocks = Iterator[tuple[Tensor, Tensor]]


class Turned(nn.Module):
    """A net that reads from the end on, as one that reads what is turned round from its beginning."""

    def __init__(self, net: CausalNet) -> None:
        super().__init__()
        self.net, self.reach = net, net.reach

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.flip(1)).flip(1)


@torch.no_grad()
def along(net: CausalNet | Turned, stretch: Tensor, prefix: Tensor, length: int) -> Blocks:
    """Blocks of (parameters [n, out], symbols [n]) of a stretch given what is before it, `prefix` first.

    Context is all that the net looks back on where that is bounded (then windows may be longer than
    `length`, in which it was trained), half a window else.
    """
    length, context = (length, length // 2) if net.reach is None else (4 * net.reach, net.reach)
    for x, place in _windows(stretch, prefix, length, context, _ROWS):
        yield _predicted(net, x, place)


@torch.no_grad()
def adapting(net: CausalNet | Turned, heads: Heads, stretch: Tensor, prefix: Tensor, length: int) -> Blocks:
    """As `along`, by a copy of the net that learns; by windows that are half context.

    Raises: UsageError in torch's inference mode, which has no gradients.
    """
    if torch.is_inference_mode_enabled():
        raise UsageError("A model that adapts cannot score a text in inference mode.", "Use torch.no_grad(), or fit with adapt=False.")
    learner = _Learner(net, heads)
    part = length - length // 2
    before = prefix[max(0, len(prefix) - _MEASURED * part) :]
    for x, place in _windows(before, prefix[:0], length, length // 2, 1):
        learner.step(learner.predicted(x, place)[0], 0.0)
    for x, place in _windows(stretch, prefix, length, length // 2, min(_ROWS, max(1, -(-len(stretch) // (part * _STEPS))))):
        loss, parameters, symbols = learner.predicted(x, place)
        yield parameters, symbols
        learner.step(loss, _RATE)


class _Learner:
    """A copy of a net with the sizes of its gradients."""

    def __init__(self, net: CausalNet | Turned, heads: Heads) -> None:
        self.net, self.heads = copy.deepcopy(net).requires_grad_(True), heads
        self.optimiser = torch.optim.Adam(self.net.parameters(), lr=0.0, betas=(0.0, _BETA))

    @torch.enable_grad()
    def predicted(self, x: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(mean loss, parameters, symbols) of the places that count."""
        with torch.backends.cudnn.flags(enabled=False):  # whose recurrent nets learn in training mode alone
            parameters, symbols = _predicted(self.net, x, place)
        return -self.heads.log_mass(parameters[None], symbols[None]).mean(), parameters.detach(), symbols

    def step(self, loss: Tensor, rate: float) -> None:
        """Follow the gradient; at no rate only its size is measured."""
        self.optimiser.zero_grad()
        loss.backward()
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()


def _predicted(net: CausalNet | Turned, x: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """(parameters [n, out], symbols [n]) at the places [B, P] of windows x [B, L] where there is a symbol."""
    parameters, symbols = net(x.clamp_min(0)), x.gather(1, place)
    parameters = parameters.gather(1, place[..., None].expand(-1, -1, parameters.shape[-1]))
    return parameters[symbols >= 0], symbols[symbols >= 0]


def _windows(stretch: Tensor, prefix: Tensor, length: int, context: int, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows of both that overlap by `context`, `rows` at once, and the places of each that are new: those at its end."""
    new = torch.arange(length - context, device=stretch.device)
    first = len(prefix) + torch.arange(0, len(stretch), len(new), device=stretch.device)
    begin = (first - context).clamp_min(0)
    text = F.pad(torch.cat([prefix, stretch]), (0, length), value=-1)
    for b, f in zip(begin.split(rows), first.split(rows), strict=True) if len(stretch) else ():
        yield text[b[:, None] + torch.arange(length, device=text.device)], (f - b)[:, None] + new
