r"""Models of strings mixed at each step in the logistic domain: better than the best of them.

    p(x_i | x_<i) = prod_k p_k(x_i | x_<i)^{w_k} / sum_s prod_k p_k(s | x_<i)^{w_k}          (exact)
    w_k = sum_j trust[k, j, b_j],   b_j = how sure member j is: -log2(1 - max_s p_j(s)), in eight steps

A member that is sure is believed more, and one whose errors are its own adds to the others what they
lack. The log-likelihood is concave in the trusts. They are fitted to the validation split, which no
member was trained on, by L-BFGS; on a stretch they go on learning (`adapt`), by a step up the
gradient after every few symbols.

The members are built by the registry, from the name itself, `mixture(ngram, autoregressive)`, and
trained by `fit` one after another; closed forms come first, the others share what is left of the budget.

References:
    | Training products of experts by minimizing contrastive divergence (Hinton, 2002) | https://doi.org/10.1162/089976602760128018
    | Adaptive weighing of context models for lossless data compression (Mahoney, 2005) | https://cs.fit.edu/~mmahoney/compression/cs200516.pdf
    | Logarithmic opinion pools for conditional random fields (Smith, Cohn and Osborne, 2005) | https://aclanthology.org/P05-1003
"""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from likely.abilities import ClosedForm, Coded, Combined, Likelihood, Phase, Stepwise
from likely.ancestral import Ancestral
from likely.coding import Codec, strings
from likely.dataset import Data
from likely.errors import UsageError
from likely.logprob import LogProb
from likely.model import Batches, Model
from likely.noise import Noise
from likely.space import Space
from likely.stepwise import Conditionals

__all__ = ["Mixture"]

_SURE = 8  # steps of sureness, half a chance to be wrong in each less than in the one before
_ENOUGH = 2**14  # symbols of the validation split that trusts are fitted to, at most
_PRIOR = 1.0  # weight of the penalty that keeps trusts near equal shares
_BLOCK = 16  # symbols of a stretch between two steps of its trusts
_RATE = 2e-3  # of a step, per symbol


class Mixture(Ancestral, Model, Likelihood, Stepwise, Coded, Combined):
    """Members mixed per step, as a normalised weighted product; exact.

    Args:
        members: models of the same strings.
        adapt: whether trusts go on learning on a stretch. A member adapts by an option of its own.
    """

    summary = "models of strings, mixed at each step"
    layouts: ClassVar[frozenset[str]] = frozenset({"sequence"})
    trust: Tensor

    def __init__(
        self, space: Space, *, members: Sequence[Model], given: Space | None = None, size: str = "small", adapt: bool = True
    ) -> None:
        super().__init__(space, given=given, size=size)
        unfit = [type(m).__name__ for m in members if not isinstance(m, Stepwise)]
        if unfit or not members:
            raise UsageError(
                f"{unfit[0] if unfit else 'Nothing'} cannot be mixed per step.", "Models of conditionals can: ngram, autoregressive."
            )
        self.members = nn.ModuleList(members)
        self.learns = adapt
        self.adapts = adapt or any(m.adapts for m in members if isinstance(m, Stepwise))
        self.register_buffer("trust", torch.full((len(members), len(members), _SURE), len(members) ** -2.0, dtype=torch.float64))

    @property
    def _members(self) -> list[Any]:
        return list(self.members)

    def forward(self, x: Tensor, given: Tensor | None = None, *, turn: str = "") -> Tensor:
        return -self._log_mass(x, given)

    # -- fitting --------------------------------------------------------------------------------

    @classmethod
    def made_of(cls, members: Sequence[type[Model]]) -> type[Model]:
        return cls

    @classmethod
    def place(cls, space: Space, given: Space | None, before: Sequence[Model]) -> tuple[Space, Space | None]:
        return space, given

    def phases(self, data: Data) -> Iterator[Phase]:
        """Closed forms first; the others share alike what those leave."""
        closed = [i for i, member in enumerate(self.members) if isinstance(member, ClosedForm)]
        others = [i for i in range(len(self.members)) if i not in closed]
        yield from (Phase(i, data, 0.0) for i in closed)
        yield from (Phase(i, data, 1 / (len(others) - done)) for done, i in enumerate(others))
        self.solve(data.train.pieces(), data.valid.pieces())

    def solve(self, train: Batches, valid: Batches) -> None:
        """Fit the trusts to the validation split."""
        log_p, target = self._stream_of(train, valid) if getattr(valid, "stream", None) is not None else self._rows_of(valid)
        self.trust = _fitted(log_p, target, self.trust)

    @torch.no_grad()
    def _stream_of(self, train: Any, valid: Any) -> tuple[Tensor, Tensor]:
        """Members' log p [n, members, symbols] along a text, and its symbols [n]."""
        stretch = valid.stream[:_ENOUGH].long().to(self.trust.device)
        blocks = self._log_p_after(stretch, train.stream.long().to(self.trust.device))
        return torch.cat([log_p.float() for log_p in blocks]), stretch

    @torch.no_grad()
    def _rows_of(self, valid: Batches) -> tuple[Tensor, Tensor]:
        """Members' log p [n, members, symbols] at each place that counts, and the symbols [n]."""
        parts, enough = [], _ENOUGH
        for x, given in valid:
            x = x[: max(1, enough // x.shape[1])].to(self.trust.device)
            log_p, counts = self._log_p(x, given if given is None else given[: len(x)].to(x.device)), self._counts(x)
            parts.append((log_p[counts].float(), self.space.ended(x)[counts]))
            enough -= int(counts.sum())
            if enough <= 0:
                break
        log_p, target = zip(*parts, strict=True)
        return torch.cat(log_p), torch.cat(target)

    # -- likelihood -----------------------------------------------------------------------------

    def _counts(self, x: Tensor) -> Tensor:
        """Which places of strings count: the end of one does, what follows it does not."""
        return (x < 0).cumsum(1) <= int(self.space.variable)

    def _log_p(self, x: Tensor, given: Tensor | None) -> Tensor:
        """[B, L, members, symbols]"""
        return torch.stack([m.logits(x, given).log_softmax(-1) for m in self._members], 2)

    def _log_mass(self, x: Tensor, given: Tensor | None) -> Tensor:
        target = self.space.ended(x).clamp_min(0)[..., None]
        nats = self.logits(x, given).gather(-1, target)[..., 0]
        return nats.masked_fill(~self._counts(x), 0.0).sum(1)

    def _log_prob(self, x: Tensor, given: Tensor | None, noise: Noise) -> LogProb:
        with torch.no_grad():
            return LogProb(self._log_mass(x, given), "exact")

    def logits(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        return _mixed(self._log_p(x, given), self.trust)

    def log_prob_after(self, stretch: Tensor, prefix: Tensor) -> Tensor:
        return torch.cat([stretch.new_zeros(0, dtype=torch.float64), *(nats for nats, _ in self._after(stretch, prefix))])

    def logits_after(self, stretch: Tensor, prefix: Tensor) -> Iterator[Tensor]:
        return (logits for _, logits in self._after(stretch, prefix))

    @torch.no_grad()
    def _after(self, stretch: Tensor, prefix: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Blocks of (log p of the stretch's symbols [n], of every symbol [n, symbols]); trusts learn between them."""
        trust, begin = self.trust.clone(), 0
        for log_p in _rechunked(self._log_p_after(stretch, prefix), _BLOCK if self.learns else 2**12):
            target = stretch[begin : begin + len(log_p)]
            begin += len(log_p)
            mixed = _mixed(log_p, trust)
            yield mixed.gather(1, target[:, None])[:, 0], mixed
            if self.learns:
                trust += _RATE * _slope(log_p, mixed, target, trust)

    def _log_p_after(self, stretch: Tensor, prefix: Tensor) -> Iterator[Tensor]:
        """Blocks [n, members, symbols] along a stretch."""
        each = [_rechunked(m.logits_after(stretch, prefix), 2**12) for m in self._members]
        for logits in zip(*each, strict=True):
            yield torch.stack([part.double().log_softmax(-1) for part in logits], 1)

    # -- symbol by symbol -----------------------------------------------------------------------

    def init_state(self, n: int, given: Tensor | None = None) -> Any:
        return [m.init_state(n, given) for m in self._members]

    def step(self, state: Any, x_i: Tensor | None) -> tuple[Any, Tensor]:
        states, logits = zip(*(m.step(s, x_i) for m, s in zip(self._members, state, strict=True)), strict=True)
        mixed = _mixed(torch.stack([part.double().log_softmax(-1) for part in logits], 1), self.trust)
        return list(states), strings.end_stays(mixed, x_i, self.space)

    @property
    def conditionals(self) -> Conditionals:
        nets = [m.conditionals.net for m in self._members]
        rooms = [net.room for net in nets if net.room is not None]
        reach = None if any(net.reach is None for net in nets) else max(net.reach for net in nets)
        return Conditionals.of_strings(self, self.space, reach=reach, room=min(rooms, default=None))

    def codec(self, given: Tensor | None = None) -> Codec:
        """A codec of whole examples."""
        return strings.codec(self, self.space, given)


def _sureness(log_p: Tensor) -> Tensor:
    """Step of sureness of each member, [..., members, symbols] -> [..., members]."""
    wrong = -torch.expm1(log_p.amax(-1).clamp_max(0.0))
    return (-wrong.clamp_min(2.0**-_SURE).log2()).long().clamp(0, _SURE - 1)


def _weights(log_p: Tensor, trust: Tensor) -> Tensor:
    """w [..., members]."""
    sure = _sureness(log_p.detach())
    each = trust[:, torch.arange(len(trust), device=sure.device), sure]  # [members, ..., members]
    return each.sum(-1).movedim(0, -1)


def _mixed(log_p: Tensor, trust: Tensor) -> Tensor:
    """Members' log p [..., members, symbols] -> that of their mixture [..., symbols], float64."""
    return (_weights(log_p, trust)[..., None] * log_p).sum(-2).double().log_softmax(-1)


def _slope(log_p: Tensor, mixed: Tensor, target: Tensor, trust: Tensor) -> Tensor:
    """Gradient of the sum of log p(target) [n] in the trusts: each member's log p less its mean under the mixture."""
    excess = log_p.gather(-1, target[:, None, None].expand(-1, log_p.shape[1], 1))[..., 0] - (log_p * mixed.exp()[:, None]).sum(-1)
    chosen = torch.nn.functional.one_hot(_sureness(log_p), _SURE).to(excess)
    return torch.einsum("nk,njb->kjb", excess, chosen)


def _fitted(log_p: Tensor, target: Tensor, start: Tensor) -> Tensor:
    """Trusts that maximise the likelihood of the targets, kept near equal shares by a penalty."""
    trust = start.clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS([trust], max_iter=30, line_search_fn="strong_wolfe")
    share = len(start) ** -2.0

    def cost() -> float:
        with torch.no_grad():
            parts = list(zip(log_p.split(2**12), target.split(2**12), strict=True))
            nats, slope = 0.0, torch.zeros_like(start)
            for some, symbols in parts:
                mixed = _mixed(some, trust)
                nats += mixed.gather(1, symbols[:, None]).sum().item()
                slope += _slope(some.double(), mixed, symbols, trust)
            away = trust - share
            trust.grad = (2 * _PRIOR * away - slope) / len(target)
            return (_PRIOR * away.square().sum().item() - nats) / len(target)

    optimiser.step(cost)
    return trust.detach()


def _rechunked(blocks: Iterator[Tensor], size: int) -> Iterator[Tensor]:
    """The same rows in blocks of one size, the last one shorter."""
    rest: list[Tensor] = []
    for block in blocks:
        rest.append(block)
        if sum(map(len, rest)) >= size:
            whole = torch.cat(rest)
            cut = len(whole) // size * size
            yield from whole[:cut].split(size)
            rest = [whole[cut:]]
    if rest and sum(map(len, rest)):
        yield torch.cat(rest)
