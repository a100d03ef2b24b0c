r"""Diffusion of finitely many states by uniform noise, in T steps.

With a_t falling from a_0 = 1 to a_T = 0, and K states of an entry,

    q(x_t = j | x_0 = i) = a_t [i = j] + (1 - a_t) / K
    q(x_t = j | x_s = k) = b   [k = j] + (1 - b) / K,       b = a_t / a_s

A net says what an entry is by the OTHER entries, g = softmax(logits). Its own noisy value x_t = j is told by Bayes'
rule, p(x_0 = i | x_t) = g_i q(j | i) / normaliser, and averaging q(x_s | x_t, x_0) over it leaves a product

    p(x_s = k | x_t = j) = q(x_t = j | x_s = k) (a_s g_k + (1 - a_s) / K) / (a_t g_j + (1 - a_t) / K)

which for g = [k = i] is q(x_s | x_t, x_0 = i) itself. The bound -log p(x) <= sum_{t=1}^T KL(q(x_s | x_t, x) || p(x_s | x_t)),
s = t - 1, has no term for the end, where x_T says nothing of x; its term t = 1 is -log p(x | x_1), as a_0 = 1.

References:
    | Structured denoising diffusion models in discrete state-spaces (D3PM; Austin et al., 2021) | https://arxiv.org/abs/2107.03006
    | Argmax flows and multinomial diffusion (Hoogeboom et al., 2021) | https://arxiv.org/abs/2102.05379
    | The diffusion duality (Sahoo et al., 2025) | https://arxiv.org/abs/2506.10892
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from likely.decoding import UNFILTERED, Filter
from likely.errors import UsageError
from likely.heads.base import at_least_float32, categorical_draw
from likely.nets.conditioning import expand_like
from likely.solve.absorbing import Predict, settled
from likely.space import MISSING, Space

__all__ = ["UniformNoise"]


_NONE = -1e4  # logit of a state that an entry lacks: no mass, but no gradient that is not a number


@dataclass(frozen=True)
class UniformNoise:
    """Uniform noise on entries of finitely many states, in T steps. States are codes 0 .. K - 1, a missing cell the last; times are
    numbers of steps, [B] in 0 .. T. The net says what the OTHER entries tell of each, logits [B, *shape, states].

    Raises: UsageError for entries of infinitely many states.
    """

    space: Space
    symbols: Space
    steps: int

    told = "L_T + L_t + L_0"
    numbers = 2

    def __post_init__(self) -> None:
        if any(s.states is None for s in self.space.supports):
            raise UsageError(f"Uniform noise needs entries of finitely many states, not a {self.space.named}.", "Pass noise='absorbing'.")
        if self.steps < 1:
            raise UsageError(f"Got noise_steps={self.steps}.", "Uniform noise takes at least one step.")

    @property
    def terms(self) -> int:
        """Of the bound: steps."""
        return self.steps

    # -- states ---------------------------------------------------------------------------------

    @cached_property
    def states(self) -> Tensor:
        """K of each support, to broadcast over [B, *shape]."""
        return self._per_entry([s.levels + s.missing for s in self.symbols.supports])

    @cached_property
    def _lossy(self) -> Tensor:
        return self._per_entry([s.missing for s in self.symbols.supports])

    def _per_entry(self, values: list[int] | list[bool]) -> Tensor:
        return torch.tensor(values).view(-1, *[1] * (len(self.space.shape) - 1))

    def code(self, x: Tensor) -> Tensor:
        """Values -> codes, [B, *shape] each."""
        return torch.where(x == MISSING, self.states.to(x.device) - 1, x)

    def value(self, code: Tensor) -> Tensor:
        """Codes -> values."""
        return torch.where(self._lossy.to(code.device) & (code == self.states.to(code.device) - 1), MISSING, code)

    # -- the bound ------------------------------------------------------------------------------

    def kept(self, time: Tensor) -> Tensor:
        """a_t: the share of entries that are as they were, float64."""
        return 1 - time.double() / self.steps

    def term(self, x: Tensor, counts: Tensor, u: Tensor, numbers: Tensor, predict: Predict) -> Tensor:
        """The term that u [B] in [0, 1) picks of the bound, times their number, nats [B] float64; numbers: uniform, [B, 2, *shape].

        Entries of x [B, *shape] that do not count (padding) are noise at all times, and told to be.
        """
        code, time = self.code(x), 1 + (u * self.steps).long().clamp_max(self.steps - 1)
        noisy = self.noised(code, time, torch.where(counts, numbers[:, 0], 1.0), numbers[:, 1])
        logits = predict(self.value(noisy), torch.where(counts, self._share(time, x), 1.0))
        nats = self.divergence(logits, code, noisy, time, time - 1)
        return self.steps * nats.double().masked_fill(~counts, 0.0).flatten(1).sum(1)

    def noised(self, code: Tensor, time: Tensor, which: Tensor, value: Tensor) -> Tensor:
        """x_t of codes [B, *shape], by two uniform numbers of their shape."""
        states = self.states.to(code.device)
        other = (value * states).long().minimum(states - 1)
        return torch.where(which < expand_like(self.kept(time), which), code, other)

    def divergence(self, logits: Tensor, code: Tensor, noisy: Tensor, time: Tensor, before: Tensor) -> Tensor:
        """KL(q(x_s | x_t, x) || p(x_s | x_t)) of each entry, nats [B, *shape]; logits [B, *shape, states]."""
        log_g = self._log_g(logits)
        truth = torch.arange(log_g.shape[-1], device=code.device) == code[..., None]
        log_truth = torch.where(truth, 0.0, -torch.inf).to(log_g)
        log_q, log_p = (self._log_step(v, noisy, time, before) for v in (log_truth, log_g))
        return torch.where(log_q > -torch.inf, log_q.exp() * (log_q - log_p), 0.0).sum(-1)

    def _share(self, time: Tensor, like: Tensor) -> Tensor:
        """How much of each entry is hidden by noise, [B, *shape]."""
        return expand_like(1 - self.kept(time), like).float().expand(like.shape)

    def _log_g(self, logits: Tensor) -> Tensor:
        return at_least_float32(logits).masked_fill(~self._there(logits), _NONE).log_softmax(-1)

    def _there(self, like: Tensor, present: bool = False) -> Tensor:
        """Which states an entry has, or can be `present` in, to broadcast over [B, *shape, states]."""
        states = self.states - self._lossy.long() if present else self.states
        return torch.arange(like.shape[-1], device=like.device) < states.to(like.device)[..., None]

    def _log_step(self, log_g: Tensor, noisy: Tensor, time: Tensor, before: Tensor) -> Tensor:
        """log p(x_s | x_t) of all states, [B, *shape, states]."""
        a_t, a_s = self.kept(time), self.kept(before)
        stays, moves = self._rows(a_t / a_s, log_g)
        own = torch.arange(log_g.shape[-1], device=log_g.device) == noisy[..., None]
        forward = torch.where(own, torch.logaddexp(stays, moves), moves)
        kept, lost = self._rows(a_s, log_g)
        product = forward + torch.logaddexp(kept + log_g, lost)
        return product.masked_fill(~self._there(log_g), -torch.inf).log_softmax(-1)

    def _rows(self, share: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """log of a share a [B] and of (1 - a) / K, to broadcast over `like`."""
        a = expand_like(share, like)
        return a.log().to(like.dtype), ((1 - a) / self.states.to(like.device)[..., None]).log().to(like.dtype)

    # -- draws ----------------------------------------------------------------------------------

    def walk(
        self,
        x: Tensor,
        hidden: Tensor,
        calls: int,
        predict: Predict,
        *,
        keep: Filter = UNFILTERED,
        confident: bool = False,
        present: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(x, an empty mask) after each call of the net, from noise at time T to time 0; what is not hidden of symbols x [B, *shape]
        is put back, noised, at all times. `present` entries are not drawn as missing."""
        if confident:
            raise UsageError("Uniform noise has no order in which masks are removed.", "Leave out order, or fit with noise='absorbing'.")
        truth, mask = self.code(x), torch.zeros_like(hidden)
        times = torch.linspace(self.steps, 0, calls + 1, dtype=torch.float64, device=x.device)[:, None].expand(-1, len(x))
        code = self.noised(truth, times[0], *torch.rand(2, *x.shape, dtype=torch.float64, device=x.device))
        for time, before in itertools.pairwise(times):
            logits = predict(self.value(code), self._share(time, x)).double()
            logits = settled(logits, x, hidden, self.space.supports[0].levels) if self.space.variable else logits
            logits = keep(logits.masked_fill(~self._there(logits, present), _NONE))
            code = categorical_draw(self._log_step(self._log_g(logits), code, time, before))
            known = self.noised(truth, before, *torch.rand(2, *x.shape, dtype=torch.float64, device=x.device))
            code = torch.where(hidden, code, known)
            yield self.value(code), mask

    def filling(self, unknown: Tensor, calls: int, *, random: bool) -> tuple[bool, str]:
        """(False, how in words): earlier steps do not know of later noise of what is known, so that the draws only nearly follow."""
        return False, f"what is known put back, noised, at each of {calls} steps"
