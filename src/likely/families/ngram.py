r"""Contexts of up to `order` symbols by counts: what models of text must beat.

    log p(x) = sum_i log p(x_i | x_{i-order} .. x_{i-1})                                   (exact)

The model is the text that it has read, two bytes per symbol: a tree of its contexts is counted anew,
in a few seconds per million symbols, when it is first used. Four estimators make probabilities
of the counts (`solve/backoff.py`): modified Kneser-Ney, PPM, a logistic mixture of the orders
whose weights are learnt on the way through the text, and context-tree weighting (`solve/weighting.py`),
the mixture of all prunings of the tree. The order is chosen on the validation split.

A label that is given has contexts of its own; labels share order 0. A sequence of variable length ends
with a symbol, which is certain at the longest. Of a fixed length, -1 pads a prefix, whose likelihood
is its marginal.

A stretch may be learnt as it goes (`adapt`): a symbol is counted after it has been predicted, as
every compressor of this kind does; so are those of its prefix that the model had not read. The
product of conditionals is a distribution all the same, and evaluation names it.

References:
    | Improved backing-off for m-gram language modeling (Kneser and Ney, 1995) | https://doi.org/10.1109/ICASSP.1995.479394
    | Data compression using adaptive coding and partial string matching (PPM; Cleary and Witten, 1984) | https://doi.org/10.1109/TCOM.1984.1096090
    | The context-tree weighting method: basic properties (Willems, Shtarkov and Tjalkens, 1995) | https://doi.org/10.1109/18.382012
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from likely.abilities import ClosedForm, Coded, Likelihood, Stepwise
from likely.ancestral import Ancestral
from likely.coding import Codec, strings
from likely.errors import UsageError, nearest
from likely.logprob import LogProb
from likely.model import Batches, Model
from likely.noise import Noise
from likely.solve import backoff, contexts
from likely.solve.labels import label_count, label_of
from likely.space import Space
from likely.stepwise import Conditionals

__all__ = ["NGram"]

ESTIMATORS = ("mixed", "kneser-ney", "ppm", "ctw")
MOST_ORDER = 16
_ORDERS = (2, 5, 8, 12, MOST_ORDER)  # tried in turn, as long as they help
_BLOCK = 4096  # symbols of a stretch whose logits are in memory together


class NGram(Ancestral, Model, Likelihood, Stepwise, Coded, ClosedForm):
    """Each symbol given the few before it, by counts; exact.

    Args:
        order: longest context, up to 16; by default chosen on the validation split.
        estimator: "mixed" (orders mixed by weights learnt online), "kneser-ney", "ppm", or "ctw" (context-tree weighting).
        adapt: whether a stretch is counted as it goes.
    """

    summary = "each symbol given the few before it, by counts"
    layouts: ClassVar[frozenset[str]] = frozenset({"sequence"})
    words: ClassVar[dict[str, tuple[str, ...]]] = {"estimator": ESTIMATORS}
    text: Tensor
    discount: Tensor
    trust: Tensor
    bias: Tensor

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        order: int | None = None,
        estimator: str = "mixed",
        adapt: bool = True,
    ) -> None:
        super().__init__(space, given=given, size=size)
        if estimator not in ESTIMATORS:
            raise UsageError(f"Unknown estimator '{estimator}'.", nearest(estimator, ESTIMATORS))
        if order is not None and order > MOST_ORDER:
            raise UsageError(f"Contexts of {order} symbols are too long.", f"order is at most {MOST_ORDER}.")
        self.longest, self.estimator, self.adapts = order, estimator, adapt
        self.symbols = space.with_end.supports[0].levels
        self.codes = label_count(given) * (self.symbols + 1)
        if self.codes > contexts.MOST_CODES:
            raise UsageError(f"{self.codes} pairs of label and symbol are too many.", f"An n-gram model takes {contexts.MOST_CODES}.")
        self.register_buffer("text", torch.zeros(0, dtype=torch.int16))
        for name, part in zip(("discount", "trust", "bias"), backoff.unlearnt(1), strict=True):
            self.register_buffer(name, torch.from_numpy(part))
        self._counted: tuple[Tensor, contexts.Tree] | None = None

    def forward(self, x: Tensor, given: Tensor | None = None, *, turn: str = "") -> Tensor:
        """-log p(x | given), nats [batch]."""
        return -self._log_prob(x, given, Noise(x)).nats

    # -- fitting --------------------------------------------------------------------------------

    def solve(self, train: Batches, valid: Batches) -> None:
        """Read the training split, with the order that predicts the validation split best."""
        text, held_out, best = self._read(train), self._read(valid), np.inf
        adapt = self.adapts and _stream(train) is not None
        for order in _ORDERS if self.longest is None else (self.longest,):
            tree, blend = backoff.estimate(self._empty(order), text, self.estimator)
            cost = -self._held_out(tree, blend, held_out, adapt=adapt).sum()
            if cost >= best:
                break
            best, self.text = cost, torch.from_numpy(text)
            self.discount, self.trust, self.bias = (torch.from_numpy(part) for part in blend[:3])

    def _held_out(self, tree: contexts.Tree, blend: backoff.Blend, codes: np.ndarray, *, adapt: bool) -> np.ndarray:
        if not adapt:
            return backoff.log_probs(tree, blend, codes, np.arange(len(codes)))
        own = backoff.blend_of(self.estimator, *blend[:3])
        return backoff.adapted(contexts.extended(tree, codes, count=False), own)[1]

    def _read(self, batches: Batches) -> np.ndarray:
        """A split as one text of codes: a text's own bytes once, of strings one after another."""
        stream = _stream(batches)
        if stream is not None:
            return self._codes(stream[None].long(), None)[0]
        codes = np.concatenate([self._codes(x, given).ravel() for x, given in batches])
        starts = codes % (self.symbols + 1) == self.symbols
        return codes[~(starts & np.append(starts[1:], True))]

    def _codes(self, x: Tensor, given: Tensor | None) -> np.ndarray:
        """Strings [B, L] -> codes [B, L + 1]: a start, then the symbols that count, then more starts."""
        x, start = x.cpu(), self.symbols
        counts = (x < 0).cumsum(1) <= int(self.space.variable)  # the end counts, but not what follows it
        rows = torch.nn.functional.pad(self.space.ended(x).masked_fill(~counts, start), (1, 0), value=start)
        return (rows + self._offset(given, len(x))).numpy().astype(np.int16 if self.codes <= 2**15 else np.int32)

    def _offset(self, given: Tensor | None, n: int) -> Tensor:
        """What a label adds to the codes of its strings, [n, 1]."""
        return (self.symbols + 1) * label_of(self.given_space, given if given is None else given.cpu(), n)[:, None]

    @property
    def order(self) -> int:
        """Length of the longest context."""
        return len(self.discount) - 1

    def _empty(self, order: int) -> contexts.Tree:
        return contexts.new_tree(order, self.symbols, weighted=self.estimator == "ctw")

    def _tree(self) -> contexts.Tree:
        """The contexts of the text that was read, counted once."""
        text = self.text.cpu()
        if self._counted is None or not torch.equal(self._counted[0], text):
            self._counted = text.clone(), contexts.extended(self._empty(self.order), text.numpy().astype(np.int32))
        return self._counted[1]

    def _blend(self) -> backoff.Blend:
        return backoff.blend_of(self.estimator, *(part.double().cpu().numpy() for part in (self.discount, self.trust, self.bias)))

    # -- likelihood -----------------------------------------------------------------------------

    def _log_prob(self, x: Tensor, given: Tensor | None, noise: Noise) -> LogProb:
        codes = self._codes(x, given)
        nats = backoff.log_probs(self._tree(), self._blend(), codes.ravel(), np.arange(codes.size))
        return LogProb(torch.from_numpy(nats.reshape(codes.shape).sum(1)).to(x.device), "exact")

    def logits(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        codes = self._codes(x, given)
        places = np.arange(codes.size).reshape(codes.shape)[:, 1:].ravel()
        every = backoff.log_probs(self._tree(), self._blend(), codes.ravel(), places, every=True)
        return torch.from_numpy(every).view(*x.shape, -1).to(x.device)

    def log_prob_after(self, stretch: Tensor, prefix: Tensor) -> Tensor:
        return torch.cat([block[:, 0] for block in self._after(stretch, prefix, every=False)]) if len(stretch) else stretch.double()

    def logits_after(self, stretch: Tensor, prefix: Tensor) -> Iterator[Tensor]:
        return self._after(stretch, prefix, every=True)

    def _after(self, stretch: Tensor, prefix: Tensor, *, every: bool) -> Iterator[Tensor]:
        """log p of blocks of a stretch, [n, 1], or of every symbol, [n, symbols]."""
        if self.space.variable:
            raise UsageError(f"A stretch has no likelihood under a model of a {self.space.named}.", "Fit one to windows of a text.")
        before, codes = self._codes(prefix[None], None)[0], stretch.cpu().numpy()
        text, first = np.concatenate([before[-self.order - 1 :], codes]), min(len(before), self.order + 1)
        tree, blend = self._tree(), self._blend()
        if self.adapts:
            tree = self._caught_up(tree, blend, before)
        for begin in range(0, len(codes), _BLOCK):
            end = min(begin + _BLOCK, len(codes))
            if self.adapts:
                tree, nats = backoff.adapted(contexts.extended(tree, codes[begin:end], count=False), blend, every=every)
            else:
                nats = backoff.log_probs(tree, blend, text, np.arange(first + begin, first + end), every=every)
            yield torch.from_numpy(nats).to(stretch.device)

    def _caught_up(self, tree: contexts.Tree, blend: backoff.Blend, before: np.ndarray) -> contexts.Tree:
        """A copy of the tree that has read what is before a stretch, which may begin with the text that it had read."""
        read = len(self.text)
        known = read if np.array_equal(before[:read], self.text.cpu().numpy()) else 0
        return backoff.adapted(contexts.extended(contexts.copied(tree), before[known:], count=False), blend)[0]

    # -- symbol by symbol -----------------------------------------------------------------------

    def init_state(self, n: int, given: Tensor | None = None) -> Any:
        return self._tree(), self._blend(), self._offset(given, n).repeat(1, self.order + 1) + self.symbols

    def step(self, state: Any, x_i: Tensor | None) -> tuple[Any, Tensor]:
        tree, blend, history = state
        if x_i is not None:
            label = history[:, :1] // (self.symbols + 1)
            history = torch.cat([history[:, 1:], label * (self.symbols + 1) + x_i.cpu()[:, None]], 1)
        n, width = history.shape
        text = torch.cat([history, history[:, :1]], 1).flatten().numpy()  # what follows is not looked at
        every = backoff.log_probs(tree, blend, text, np.arange(n) * (width + 1) + width, every=True)
        return (tree, blend, history), strings.end_stays(torch.from_numpy(every), x_i, self.space)

    @property
    def conditionals(self) -> Conditionals:
        return Conditionals.of_strings(self, self.space, reach=self.order)

    def codec(self, given: Tensor | None = None) -> Codec:
        """A codec of whole examples."""
        return strings.codec(self, self.space, given)


def _stream(batches: Batches) -> Tensor | None:
    """The contiguous text that batches are windows of."""
    return getattr(batches, "stream", None)
