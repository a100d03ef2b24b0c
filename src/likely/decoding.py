"""How draws of entries of finitely many values depart from the model: temperature, truncation to likely values, strings that end a text.

References:
    | Hierarchical neural story generation (top-k; Fan et al., 2018) | https://arxiv.org/abs/1805.04833
    | The curious case of neural text degeneration (top-p; Holtzman et al., 2020) | https://arxiv.org/abs/1904.09751
    | Locally typical sampling (Meister et al., 2023) | https://arxiv.org/abs/2202.00666
    | Turning up the heat: min-p sampling (Nguyen et al., 2024) | https://arxiv.org/abs/2407.01082
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from likely.errors import UsageError
from likely.space import Space

__all__ = ["UNFILTERED", "Filter", "Stops"]


@dataclass(frozen=True)
class Filter:
    """What is left of a categorical distribution; each part narrows what those before it have left, and one value stays.

    Attributes:
        temperature: logits are divided by it.
        top_k: the k likeliest values.
        top_p: the likeliest values that together reach this mass.
        min_p: values at least this times as likely as the likeliest.
        typical: values whose surprise, -log p, is nearest the entropy, until they reach this mass.
        greedy: the likeliest value alone.

    Raises: UsageError for a number that means nothing.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical: float | None = None
    greedy: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise UsageError(f"The temperature must be positive, got {self.temperature}.", "For the likeliest values pass greedy=True.")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top_k is the number of values to keep, at least 1, got {self.top_k}.")
        for name in ("top_p", "min_p", "typical"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise UsageError(f"{name} is a share, above 0 and at most 1, got {value}.")

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits [..., K] of the filtered distribution, -inf where it has no mass."""
        logits = logits / self.temperature
        if self.greedy or self.top_k is not None:
            logits = _first(logits, logits, count=1 if self.greedy or self.top_k is None else self.top_k)
        if self.top_p is not None:
            logits = _first(logits, logits, mass=self.top_p)
        if self.min_p is not None:
            logits = logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(self.min_p), -math.inf)
        if self.typical is not None:
            logits = _first(logits, -_unlikeness(logits), mass=self.typical)
        return logits


UNFILTERED = Filter()


def _unlikeness(logits: Tensor) -> Tensor:
    """|surprise - entropy| of each value; infinite where it has no mass."""
    log_p = logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p.masked_fill(log_p == -math.inf, 0.0)).sum(-1, keepdim=True)
    return (-log_p - entropy).abs()


def _first(logits: Tensor, score: Tensor, *, count: int = 1, mass: float | None = None) -> Tensor:
    """Keep the values of the highest scores: as many as reach `mass`, or else `count` of them; of equals the first."""
    order = score.sort(dim=-1, descending=True, stable=True).indices
    if mass is None:
        beyond = torch.arange(logits.shape[-1], device=logits.device).expand_as(logits) >= count
    else:
        p = logits.softmax(-1).gather(-1, order)
        beyond = p.cumsum(-1) - p >= mass  # the mass of the values before it suffices
    return logits.masked_fill(beyond.gather(-1, order.argsort(-1)), -math.inf)


class Stops:
    """Watches texts as they are drawn for the first of some strings, at which each ends.

    Strings are compared by what they spell, so a stop may begin and end within tokens.

    Args:
        stops: the strings, as symbols [m] of `space` each; n: how many texts are drawn side by side.

    Raises: UsageError for an empty string, which every text begins with.
    """

    def __init__(self, stops: Tensor | Sequence[Tensor], space: Space, n: int) -> None:
        self._vocabulary = space.vocabulary
        each = [stops] if isinstance(stops, Tensor) else stops
        self.stops = ["".join(map(self._spell, stop.tolist())) for stop in each]
        if not all(self.stops):
            raise UsageError("An empty string cannot end a text.", "Leave `stop` out, and pass length.")
        self._back = max(map(len, self.stops), default=1) - 1
        self._latest, self.met = [""] * n, [False] * n

    def take(self, symbols: Tensor) -> None:
        """The next symbols [n]; `met` says which texts end with them, or have ended before."""
        for i, symbol in enumerate(symbols.tolist() if self.stops else ()):
            text = self._latest[i] + self._spell(symbol)
            self.met[i] = self.met[i] or any(stop in text for stop in self.stops)
            self._latest[i] = text[max(0, len(text) - self._back) :]

    def select(self, index: Tensor) -> "Stops":
        """Those of the texts `index`."""
        chosen, rows = copy.copy(self), index.tolist()
        chosen._latest, chosen.met = [self._latest[i] for i in rows], [self.met[i] for i in rows]
        return chosen

    def _spell(self, symbol: int) -> str:
        return self._vocabulary[symbol] if self._vocabulary else chr(symbol)
