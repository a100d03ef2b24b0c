r"""Diffusion of discrete data: entries are masked, or replaced at random, and a net that sees all of them says what they were.

`noise="absorbing"`. Noise masks entries and leaves the others as they are; a net gives each masked entry a distribution by
those that are seen, p(x_i | x_seen), which never is "masked". In continuous time the bound is the mean over orders of
revealing entries one by one (`solve.absorbing`, where that is shown),

    -log p(x) <= mean over m = 1..D of  D/m  E_{m masked of D} [ sum_{i masked} -log p(x_i | x_seen) ]

Whatever has a head can be masked: categories, ordinals, decimals on their unbounded grid, missing cells, reals (with a density).
What is seen of a string settles some of the rest: after its end there is nothing, before a symbol no end.

`noise="uniform"`. Noise puts a random state in place of an entry, in T steps; entries of finitely many states (see `solve.uniform`).

    -log p(x) <= sum_{t=1}^T KL(q(x_{t-1} | x_t, x) || p(x_{t-1} | x_t))

Either sum is estimated without bias by a term from each of several equal parts of it. The LOGS are averaged, so that the value
stays a lower bound at every number of draws.

Sampling begins with all entries hidden. As many are revealed at each call of the net, in random order, as makes `steps` of them;
those of one call are drawn independently, so that one at a time, the default up to 256 entries, is the model whose likelihood
is bounded. Filling begins with what is known.

References:
    | Structured denoising diffusion models in discrete state-spaces (D3PM; Austin et al., 2021) | https://arxiv.org/abs/2107.03006
    | Simple and effective masked diffusion language models (Sahoo et al., 2024) | https://arxiv.org/abs/2406.07524
    | MaskGIT: masked generative image transformer (the confident order; Chang et al., 2022) | https://arxiv.org/abs/2202.04200
    | Masked diffusion models are secretly time-agnostic (draws need float64; Zheng et al., 2024) | https://arxiv.org/abs/2409.02908
"""

import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from likely.abilities import Fillable, Filled, Likelihood, Traced
from likely.decoding import Filter
from likely.errors import UsageError, nearest
from likely.heads import Heads
from likely.logprob import LogProb
from likely.model import Model, Recipe, evaluating, expand_given
from likely.nets import net as build_net
from likely.noise import Noise
from likely.solve.absorbing import AbsorbingNoise
from likely.solve.objectives import strata_error
from likely.solve.uniform import UniformNoise
from likely.space import Space

__all__ = ["MaskedDiffusion"]

_NOISES = ("absorbing", "uniform")
_ORDERS = ("random", "confident")
_EVALUATED, _VALIDATED = 16, 2  # terms of the bound per draw, in log_prob and in validation
_CALLS = 256  # of the net for a sample, at most, if none are asked for
_CHUNK = 2**15  # entries per call of the net outside training
_RECIPES = {
    "grid": Recipe(lr=4e-3, weight_decay=0.01, ema=0.995, batch=64),
    "columns": Recipe(lr=4e-3, weight_decay=0.01, ema=0.995, batch=128),
    "sequence": Recipe(optimizer="muon", lr=8e-3, betas=(0.9, 0.95), weight_decay=0.1, ema=0.995, batch=16),
}


class MaskedDiffusion(Model, Likelihood, Fillable, Traced):
    """Discrete diffusion, by masks or by uniform noise.

    Args:
        noise: "absorbing" (entries are masked) or "uniform" (replaced by random states).
        noise_steps: T, of uniform noise (8, 64 or 256 by size); masks come in continuous time.
        components: of mixtures of logistics or normals, for numbers.
        categorical_up_to: ordinals of at most so many levels have a free probability per level; under uniform noise all have.
        net: another than the layout's default.
        options: of the net, such as width and depth, instead of the size's.
    """

    summary = "discrete diffusion: masked (any-order bound) or uniform noise; fills any gap"
    layouts = frozenset({"grid", "columns", "sequence"})
    net_role = "bidirectional"
    words: ClassVar[dict[str, tuple[str, ...]]] = {"noise": _NOISES}
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"noise_steps": 8},
        "small": {"noise_steps": 64},
        "base": {"noise_steps": 256},
    }
    bound_sampler: ClassVar[dict[str, Any]] = {"steps": sys.maxsize}

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        noise: str = "absorbing",
        noise_steps: int | None = None,
        components: int = 10,
        categorical_up_to: int = 64,
        net: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(space, given=given, size=size)
        if noise not in _NOISES:
            raise UsageError(f"Unknown noise '{noise}'.", nearest(noise, _NOISES))
        if noise == "absorbing" and noise_steps is not None:
            raise UsageError("Masks come in continuous time, so noise_steps has no meaning.", "Leave it out, or pass noise='uniform'.")
        self.recipe, absorbing = _RECIPES[space.layout], noise == "absorbing"
        up_to = categorical_up_to if absorbing else sys.maxsize
        heads = Heads(space.with_end, components=components, categorical_up_to=up_to, bernoulli=False)
        uniform = UniformNoise(space, space.with_end, self.options(size, noise_steps=noise_steps)["noise_steps"]) if not absorbing else None
        self.noise = uniform or AbsorbingNoise(space, heads)
        self.net = build_net(space.with_end, "bidirectional", size, word=net, given=given, out=heads.width, **options)

    # -- the bound ------------------------------------------------------------------------------

    def forward(self, x: Tensor, given: Tensor | None = None, *, turn: str = "") -> Tensor:
        """The bound of each example in nats: one random term of it in training, stratified over the batch; several in evaluation."""
        noise = Noise(x)
        if not self.training:
            return self._bound(x, given, noise, min(_VALIDATED, self.noise.terms)).mean(0)
        u = torch.arange(len(x), device=x.device) / len(x) + torch.rand(1, device=x.device)
        return self._term(x, given, u.double() % 1, self._numbers(noise))

    def _log_prob(self, x: Tensor, given: Tensor | None, noise: Noise) -> LogProb:
        terms = self.noise.terms
        strata = min(_EVALUATED, terms)
        with evaluating(self):
            nats = -self._bound(x, given, noise, strata).view(strata, noise.draws, -1)
        how = f"{self.noise.told}, {strata} of {terms} terms, K={noise.draws}"
        return LogProb(nats.mean((0, 1)), "lower bound", stderr=strata_error(nats), how=how)

    def _bound(self, x: Tensor, given: Tensor | None, noise: Noise, strata: int) -> Tensor:
        """Unbiased bounds on -log p(x) from one term of each of `strata` equal parts of them, nats [strata, draws * batch]."""
        x, given, terms = noise.repeat(x), None if given is None else noise.repeat(given), []
        for k in range(strata):
            u, numbers = (k + noise.uniform()) / strata, self._numbers(noise)
            terms.append(torch.cat([self._term(x[r], _rows(given, r), u[r], numbers[r]) for r in self._chunks(len(x))]))
        return torch.stack(terms)

    def _numbers(self, noise: Noise) -> Tensor:
        """The uniform numbers of a term, besides which it is, [B, numbers, *shape]."""
        return noise.uniform(self.noise.numbers, *self.space.shape)

    def _term(self, x: Tensor, given: Tensor | None, u: Tensor, numbers: Tensor) -> Tensor:
        counts = torch.ones_like(x, dtype=torch.bool)
        if self.space.layout == "sequence" and not self.space.variable:
            x, counts = x.clamp_min(0), x >= 0
        return self.noise.term(self.space.ended(x), counts, u, numbers, self._predict(given))

    def _predict(self, given: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, hidden: self.net(x, hidden, given)

    # -- draws ----------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        n: int,
        given: Tensor | None = None,
        *,
        steps: int | None = None,
        order: str = "random",
        temperature: float = 1.0,
        top_p: float | None = None,
    ) -> Tensor:
        """n examples in data units; for the options see `trace`."""
        given, drawn = expand_given(given, n), [self._blank(0)]
        for r in self._chunks(n):
            *_, (x, _) = self.trace(len(range(n)[r]), _rows(given, r), steps=steps, order=order, temperature=temperature, top_p=top_p)
            drawn.append(x)
        return torch.cat(drawn)

    @torch.no_grad()
    def trace(
        self,
        n: int,
        given: Tensor | None = None,
        *,
        steps: int | None = None,
        order: str = "random",
        temperature: float = 1.0,
        top_p: float | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """n examples in the making: (x [n, *shape] in data units, which of its entries are masked) after each call of the net.

        Args:
            steps: calls of the net; by default one per entry, up to 256, and of uniform noise its T. With fewer calls than entries
                those that are revealed at once are drawn independently.
            order: in which masks are removed, "random", or "confident" (the likeliest draws first), which does not follow the model.
            temperature, top_p: a `Filter` of entries of finitely many values.
        """
        calls, blank = self._calls(min(_CALLS, self.noise.terms) if steps is None else steps, order), self._blank(n)
        hidden, given = torch.ones_like(blank, dtype=torch.bool), expand_given(given, n)
        keep, confident = Filter(temperature, top_p=top_p), order == "confident"
        with evaluating(self):
            for x, masked in self.noise.walk(blank, hidden, calls, self._predict(given), keep=keep, confident=confident):
                yield self._strings(x), masked

    def _blank(self, n: int) -> Tensor:
        device = next(self.parameters()).device
        return torch.zeros(n, *self.space.shape, dtype=self.space.dtype, device=device)

    def _calls(self, steps: int, order: str) -> int:
        if order not in _ORDERS:
            raise UsageError(f"Unknown order '{order}'.", nearest(order, _ORDERS))
        if steps < 1:
            raise UsageError(f"Cannot draw in {steps} steps.", "The least is one.")
        return min(steps, self.noise.terms)

    def _strings(self, symbols: Tensor) -> Tensor:
        """Symbols as examples: of a string of variable length nothing is left after its first end."""
        if not self.space.variable:
            return symbols
        end = self.space.supports[0].levels
        return self.space.padded(symbols.masked_fill((symbols == end).cummax(1).values, end))

    # -- unknown entries ------------------------------------------------------------------------

    @torch.no_grad()
    def fill(
        self, x: Tensor, known: Tensor, given: Tensor | None = None, draws: int = 1, *, steps: int | None = None, order: str = "random"
    ) -> Filled:
        """Unknown entries drawn given those known, never as missing.

        Args:
            steps: calls of the net; by default as many as the example with most unknown entries has of them.
            order: as of `trace`.
        """
        if known.shape != x.shape or known.dtype != torch.bool:
            raise UsageError(f"`known` is {known.dtype} of shape {tuple(known.shape)}, not bool of {tuple(x.shape)}.")
        x = torch.where(known, x, torch.zeros_like(x))
        self.space.check(x)
        if self.space.layout == "sequence" and not self.space.variable and bool((x < 0).any()):
            raise UsageError("Padding cannot be known in texts of a fixed length.", "Fill whole windows.")
        most = max(1, int((~known).flatten(1).sum(1).amax())) if len(x) else 1
        enough = most if isinstance(self.noise, AbsorbingNoise) else self.noise.terms
        calls = self._calls(enough if steps is None else steps, order)
        drawn = torch.cat([x[:0], *self._filled(x, ~known, expand_given(given, len(x)), draws, calls, order)])
        exact, how = self.noise.filling(~known, calls, random=order == "random")
        sure = torch.full((draws, len(x)), math.inf, dtype=torch.float64, device=x.device)
        return Filled(torch.where(known, x, drawn.view(draws, *x.shape)), exact, sure, how)

    def _filled(self, x: Tensor, hidden: Tensor, given: Tensor | None, draws: int, calls: int, order: str) -> Iterator[Tensor]:
        """Rows whose hidden entries were drawn, draw-major and in chunks."""
        with evaluating(self):
            for row in torch.arange(len(x), device=x.device).repeat(draws).split(self._at_once):
                predict = self._predict(None if given is None else given[row])
                walk = self.noise.walk(self.space.ended(x[row]), hidden[row], calls, predict, confident=order == "confident", present=True)
                *_, (drawn, _) = walk
                yield self._strings(drawn)

    @property
    def _at_once(self) -> int:
        """How many rows go through the net at once, outside training."""
        return max(1, _CHUNK // self.space.dims)

    def _chunks(self, n: int) -> list[slice]:
        return [slice(i, min(n, i + self._at_once)) for i in range(0, n, self._at_once)]


def _rows(values: Tensor | None, index: slice) -> Tensor | None:
    return None if values is None else values[index]
