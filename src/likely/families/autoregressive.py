r"""Autoregressive models: each entry given the entries before it.

    log p(x) = sum_i log p(x_i | x_1 .. x_{i-1})                                    (exact)

A causal net computes the parameters of all conditionals at once, a head turns each into a
distribution with exact mass (categorical; logistics integrated over the cells of finely graded
ordinals and decimals; normals for reals; a missing state where cells may be missing), and the loss
is -log p(x). The order of entries is the net's: grids go by row, column, channel, tables by column,
sequences from left to right. A net that knows several orderings (`made`) is their mixture,

    log p(x) = log 1/K sum_k prod_i p_k(x_i | what is before it in the k-th ordering)

with whole examples averaged, as probabilities: a product of averaged conditionals would not sum to one.

A sequence of variable length ends with a symbol of its own, except at the maximal length, where the
end is certain; so the masses of all strings sum to one. Of a fixed length, -1 pads a prefix, and
its likelihood is the prefix's marginal: the product of the conditionals up to there.

Sampling and coding go entry by entry through `net.step`, which keeps what the next entry needs, so
that drawing D entries costs about as much as one likelihood and not D of them.

References:
    | A neural probabilistic language model (Bengio et al., 2003) | https://www.jmlr.org/papers/v3/bengio03a.html
    | The neural autoregressive distribution estimator (Larochelle and Murray, 2011) | https://proceedings.mlr.press/v15/larochelle11a.html
    | A deep and tractable density estimator (mixtures over orderings; Uria et al., 2014) | https://arxiv.org/abs/1310.1757
    | Pixel recurrent neural networks (van den Oord et al., 2016) | https://arxiv.org/abs/1601.06759
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from likely.abilities import Coded, Likelihood, Stepwise
from likely.ancestral import Ancestral
from likely.coding import Codec, autoregressive
from likely.dynamic import Turned, adapting, along
from likely.errors import UsageError, nearest
from likely.heads import Coupled, Heads
from likely.logprob import LogProb
from likely.model import Model, Recipe, evaluating
from likely.nets import default
from likely.nets import net as build_net
from likely.nets.causal import CausalNet, OrderFree
from likely.nets.causal.ordered import ORDERS, Order, arranged
from likely.noise import Noise
from likely.space import Space
from likely.stepwise import Conditionals

__all__ = ["Autoregressive"]

_RECIPES = {
    "grid": Recipe(lr=2e-3, batch=32, ema=0.998),
    "columns": Recipe(lr=2e-3, batch=64, ema=0.998),
    "sequence": Recipe(lr=4e-3, batch=8, ema=0.995, clip=100.0, warmup=30),  # the norm of a sum over a window
}
_OF_NETS: dict[tuple[str, str], dict[str, Any]] = {  # what a net changes of it
    **{(layout, "any-order"): {"lr": 1e-2} for layout in _RECIPES},
    ("sequence", "transformer"): {"optimizer": "muon", "lr": 8e-3, "betas": (0.9, 0.95), "weight_decay": 0.1, "batch": 16},
}


class Autoregressive(Ancestral, Model, Likelihood, Stepwise, Coded):
    """A causal net and a head for each entry.

    Args:
        net: another causal net than the layout's default.
        order: of the entries: "raster", "reverse", of grids "transposed" (by column, row, channel), a permutation of the places of a
            flattened example, or of a table the names of its columns.
        head: of ordinals: "categorical", "mixture" (of logistics), "coupled" (one mixture for a pixel's channels
            together), or "auto": categorical up to `categorical_up_to` levels, a mixture beyond.
        components: of mixtures of logistics or normals, for numbers.
        categorical_up_to: ordinals of at most so many levels have a free probability per level.
        adapt: whether it goes on learning a text's stretch while that is scored (see `dynamic`).
        options: of the net, such as width, depth and dropout, instead of the size's.
    """

    summary = "each entry given those before it, by a causal net"
    layouts = frozenset({"grid", "columns", "sequence"})
    net_role = "causal"
    words: ClassVar[dict[str, tuple[str, ...]]] = {"order": ORDERS, "head": ("auto", "categorical", "mixture", "coupled")}

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        net: str | None = None,
        order: Order = None,
        head: str = "auto",
        components: int = 10,
        categorical_up_to: int = 64,
        adapt: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(space, given=given, size=size)
        self.recipe = replace(_RECIPES[space.layout], **_OF_NETS.get((space.layout, net or default("causal", space.layout)), {}))
        self.adapts = adapt and space.layout == "sequence" and not space.variable
        self.symbols = space.with_end
        up_to = {"auto": categorical_up_to, "categorical": sys.maxsize, "mixture": 0, "coupled": 0}
        if head not in up_to:
            raise UsageError(f"Unknown head '{head}'.", nearest(head, up_to))
        self.heads = Heads(self.symbols, components=components, categorical_up_to=up_to[head])
        out = Coupled.width(space, components) if head == "coupled" else self.heads.width

        def build(inner: Space, word: str | None) -> Any:
            return build_net(inner, "causal", size, word=word, given=given, out=out, **options)

        if space.variable and order not in (None, "raster"):
            raise UsageError("Strings of variable length are read in order: their end comes last.", "Leave out order.")
        causal: Any = arranged(self.symbols, order, net, build)
        causal = Coupled(space, causal, components) if head == "coupled" else causal
        self.net: CausalNet = Ending(causal, self.symbols.supports[0].levels - 1) if space.variable else causal

    def forward(self, x: Tensor, given: Tensor | None = None, *, turn: str = "") -> Tensor:
        return -self._log_masses(x, given).flatten(1).sum(1)

    def _log_masses(self, x: Tensor, given: Tensor | None) -> Tensor:
        """log p(x_i | x_<i) of each entry, [B, *shape]; 0 for what does not count."""
        symbols, counts = self._symbols(x)
        nats = self.heads.log_mass(self.net(symbols, given), symbols)
        return nats if counts is None else nats.masked_fill(~counts, 0.0)

    def _symbols(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """x with symbols in place of its padding, and which entries count; None if all do."""
        if self.space.layout != "sequence":
            return x, None
        padding = x < 0
        if not self.space.variable:
            self._check_padding(padding)
            return x.clamp_min(0), ~padding
        return self.space.ended(x), padding.cumsum(1) <= 1  # the end itself counts

    def _check_padding(self, padding: Tensor) -> None:
        """Padding is what is left out at the end of the order; else later entries would be told of symbols that are not there."""
        if self.training and isinstance(self.net, OrderFree) and bool(padding.any()):
            raise UsageError("A net that knows every order cannot be trained on padded sequences.", "Give whole windows, or another net.")
        if not self.conditionals.reads and bool((padding[:, self.net.order].long().diff() < 0).any()):
            raise UsageError("Padding comes before other symbols in this model's order.", "Give whole windows, or fit without order.")

    # -- likelihood -----------------------------------------------------------------------------

    def _log_prob(self, x: Tensor, given: Tensor | None, noise: Noise) -> LogProb:
        with evaluating(self):
            each = [self._log_mass(x, given, ordering) for ordering in range(self.net.orderings)]
            return LogProb(torch.stack(each).logsumexp(0) - math.log(len(each)), "exact")

    def _log_mass(self, x: Tensor, given: Tensor | None, ordering: int) -> Tensor:
        """log p(x) of each example under one ordering, float64."""
        with self.net.under(ordering):
            return self._log_masses(x, given).double().flatten(1).sum(1)

    def log_prob_after(self, stretch: Tensor, prefix: Tensor) -> Tensor:
        if self.backward:  # each symbol given those after it
            stretch, prefix = stretch.flip(0), prefix[:0]
        parts = [self.heads.log_mass(parameters[None], x[None])[0].double() for parameters, x in self._after(stretch, prefix)]
        nats = torch.cat([torch.zeros(0, dtype=torch.float64, device=stretch.device), *parts])
        return nats.flip(0) if self.backward else nats

    def logits_after(self, stretch: Tensor, prefix: Tensor) -> Iterator[Tensor]:
        self._check_reads()
        return (self._logits(0, parameters) for parameters, _ in self._after(stretch, prefix))

    def _after(self, stretch: Tensor, prefix: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Blocks of (parameters [n, out], symbols [n]) along a stretch, as the net reads it."""
        if self.space.layout != "sequence" or self.space.variable:
            raise UsageError(f"A stretch has no likelihood under a model of a {self.space.named}.", "Fit one to windows of a text.")
        if not self.backward:
            self._check_reads()
        net, length = Turned(self.net) if self.backward else self.net, self.space.dims
        with evaluating(self):
            yield from adapting(net, self.heads, stretch, prefix, length) if self.adapts else along(net, stretch, prefix, length)

    @property
    def backward(self) -> bool:
        """Whether a sequence is read from its end."""
        order = self.conditionals.net.order
        return self.space.layout == "sequence" and len(order) > 1 and torch.equal(order.flip(0), torch.arange(len(order)))

    def _check_reads(self) -> None:
        if not self.conditionals.reads:
            raise UsageError("This model does not read sequences from left to right.", "Fit without order.")

    # -- conditionals ---------------------------------------------------------------------------

    @property
    def conditionals(self) -> Conditionals:
        return Conditionals(self.symbols, self.net, self.heads)

    def logits(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        self._check_reads()
        parameters = self.net(self._symbols(x)[0], given)
        return self._logits(0, parameters.flatten(0, 1)).unflatten(0, x.shape)

    def init_state(self, n: int, given: Tensor | None = None) -> Any:
        return self.net.init_state(n, given)

    def step(self, state: Any, x_i: Tensor | None) -> tuple[Any, Tensor]:
        state, parameters = self.net.step(state, x_i)
        return state, self._logits(0, parameters)

    # -- codes ----------------------------------------------------------------------------------

    def codec(self, given: Tensor | None = None) -> Codec:
        """A codec of examples whose entries are of finitely many states.

        Raises: UsageError for real or decimal entries.
        """
        if any(s.states is None for s in self.space.supports):
            raise UsageError(f"A {self.space} cannot be coded by an autoregressive model yet.", "Nominal and ordinal entries can.")
        if self.net.orderings > 1:
            raise UsageError("A mixture over orderings has no codec: no single one has its likelihood.", "Fit with orderings=1.")
        coded = autoregressive(self.symbols, self.net, self._logits, given, self.conditionals.order)
        return coded.mapped(lambda x: self._symbols(x)[0], self.space.padded)

    def _logits(self, place: int, parameters: Tensor) -> Tensor:
        """float64 logits of an entry's states, a missing one last."""
        return self.heads.logits_at(self.conditionals.support(place), parameters).double()


class Ending(CausalNet):
    """A causal net after whose end symbol only the end symbol can follow."""

    def __init__(self, net: CausalNet, end: int) -> None:
        super().__init__()
        self.net, self.end, self.order, self.reach, self.room = net, end, net.order, net.reach, net.room

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        return self.net(x, given)  # what follows an end does not count there

    def init_state(self, n: int, given: Tensor | None = None) -> Any:
        return self.net.init_state(n, given)

    def step(self, state: Any, x_i: Tensor | None) -> tuple[Any, Tensor]:
        state, parameters = self.net.step(state, x_i)
        if x_i is not None:  # it repeats, so the last symbol tells
            certain = torch.full_like(parameters, -math.inf)
            certain[:, -1] = 0.0 if self.end < parameters.shape[1] else math.inf  # of two symbols the end's logit is the only one
            parameters = torch.where((x_i == self.end)[:, None], certain, parameters)
        return state, parameters
