r"""Conditionals p(x_i | x_<i) walked entry by entry: draws, the likeliest examples, and unknown entries given known ones.

Filling. Where every known entry precedes every unknown one, the unknown ones are drawn from the model's own
conditional. Else particles walk through the entries: an unknown entry is drawn, a known one weighs its particle,

    w <- w p(x_i | x_<i),

and particles are drawn anew by weight when few of them still count (resampling). As particles grow the one that
is picked in the end follows p(unknown | known); their effective number, (sum w)^2 / sum w^2, says how far to
believe it. What is known is never ignored: it weighs, or it leads. A net that takes any order begins with what is known.

Of a mixture over orderings k, p(unknown | known) = sum_k r_k p_k(unknown | known), r_k proportional to p_k(known), which is
the mean weight of the particles under k (its evidence): each ordering fills, and one is taken by its evidence.

References:
    | Novel approach to nonlinear/non-Gaussian Bayesian state estimation (Gordon et al., 1993) | https://doi.org/10.1049/ip-f-2.1993.0015
    | Sequential Monte Carlo samplers (Del Moral et al., 2006) | https://doi.org/10.1111/j.1467-9868.2006.00553.x
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from likely.decoding import UNFILTERED, Filter, Stops
from likely.errors import UsageError
from likely.heads import Heads
from likely.heads.base import categorical_draw
from likely.nets.causal import OrderFree
from likely.space import MISSING, Space

__all__ = ["Conditionals", "Drawn", "Stepping", "Strings", "Weighted", "select"]

_FEW = 0.5  # share of particles that must count; below it they are drawn anew


@runtime_checkable
class Stepping(Protocol):
    """What walks: a causal net, or whatever else has states (see `nets.causal.CausalNet`)."""

    @property
    def order(self) -> Tensor: ...

    @property
    def reach(self) -> int | None: ...

    @property
    def room(self) -> int | None: ...

    def init_state(self, n: int, given: Tensor | None = None) -> Any: ...

    def step(self, state: Any, x_i: Tensor | None) -> tuple[Any, Tensor]: ...


@dataclass(frozen=True)
class Strings:
    """A model of strings (see `model.Stepwise`) as what steps: from left to right, symbol by symbol."""

    model: Any
    length: int
    reach: int | None = None
    room: int | None = None

    @property
    def order(self) -> Tensor:
        return torch.arange(self.length)

    def init_state(self, n: int, given: Tensor | None = None) -> Any:
        return self.model.init_state(n, given)

    def step(self, state: Any, x_i: Tensor | None) -> tuple[Any, Tensor]:
        return self.model.step(state, x_i)


class Drawn(NamedTuple):
    """Examples in the order of places [n, entries], log p of each under the model, and under the filtered sampler; nats [n] float64."""

    x: Tensor
    log_prob: Tensor
    filtered_log_prob: Tensor


class Weighted(NamedTuple):
    """Filled examples [rows, entries]; the smallest effective number of particles on the way, infinite where none are needed, [rows];
    and log p of what is known, as the particles estimate it, nats [rows]."""

    x: Tensor
    effective: Tensor
    evidence: Tensor


def select(state: Any, index: Tensor) -> Any:
    """The state of examples `index`: every tensor in a state has its examples on axis 0."""
    if isinstance(state, Tensor):
        return state.index_select(0, index)
    if isinstance(state, dict):
        return {key: select(part, index) for key, part in state.items()}
    if isinstance(state, list | tuple):
        parts = [select(part, index) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    if is_dataclass(state) and not isinstance(state, type):
        return replace(state, **{f.name: select(getattr(state, f.name), index) for f in fields(state)})
    return state


@dataclass(frozen=True)
class Conditionals:
    """A net that steps and the heads that read it, over a space of symbols."""

    space: Space
    net: Stepping
    heads: Heads

    @classmethod
    def of_strings(cls, model: Any, space: Space, *, reach: int | None = None, room: int | None = None) -> "Conditionals":
        """Those of a `model.Stepwise` of strings in `space`."""
        return cls(space.with_end, Strings(model, space.dims, reach, room), Heads(space.with_end, bernoulli=False))

    @property
    def order(self) -> list[int]:
        """Places of a flattened example, in the order of the conditionals."""
        return self.net.order.tolist()

    def support(self, place: int) -> int:
        """Which support the entry at a place has."""
        return place * len(self.space.supports) // self.space.dims

    @property
    def reads(self) -> bool:
        """Whether sequences go from left to right."""
        return self.space.layout != "sequence" or torch.equal(self.net.order.cpu(), torch.arange(len(self.net.order)))

    # -- one entry ------------------------------------------------------------------------------

    def draw_at(self, place: int, parameters: Tensor, keep: Filter = UNFILTERED) -> Tensor:
        """Values [n] of one entry, as the space stores them."""
        if keep == UNFILTERED:
            return self.heads.sample_at(self.support(place), parameters)
        return self.heads.value_at(self.support(place), categorical_draw(keep(self._logits(place, parameters))))

    def log_mass_at(self, place: int, parameters: Tensor, x: Tensor, keep: Filter = UNFILTERED) -> Tensor:
        """log p of values x [n] of one entry, nats [n] float64."""
        if keep != UNFILTERED:
            log_p = keep(self._logits(place, parameters)).double().log_softmax(-1)
            return log_p.gather(-1, self.heads.state_at(self.support(place), x)[:, None])[:, 0]
        head = self.heads.at(self.support(place))
        return head.log_mass(parameters[:, None, : head.width], x[:, None])[:, 0].double()

    def _logits(self, place: int, parameters: Tensor) -> Tensor:
        """Logits [n, states] of one entry."""
        return self.heads.logits_at(self.support(place), parameters)

    def _present(self, place: int, parameters: Tensor) -> Tensor:
        """The same distribution, given that the entry is not missing."""
        which = self.support(place)
        if not self.space.supports[which].missing:
            return parameters
        head, parameters = self.heads.at(which), parameters.clone()
        parameters[:, head.width - 1] = -math.inf  # of a categorical the last state, of a number its own logit
        return parameters

    # -- draws ----------------------------------------------------------------------------------

    @property
    def orderings(self) -> int:
        """How many orderings the net knows; p is the mixture of them."""
        return getattr(self.net, "orderings", 1)

    def draw_mixed(
        self, n: int, given: Tensor | None = None, keep: Filter = UNFILTERED, prompt: Tensor | None = None, *, scored: bool = False
    ) -> Drawn:
        """As `draw`; of several orderings each example takes one at random."""
        if self.orderings == 1:
            return self.draw(n, given, keep, prompt, scored=scored)
        if scored:
            raise UsageError("A draw from a mixture over orderings has no single log-probability.", "Ask log_prob for it.")
        which, parts = torch.randint(self.orderings, (n,)), []
        for ordering in which.unique().tolist():
            rows = which == ordering
            with self.net.under(ordering):  # type: ignore[attr-defined]
                parts.append(self.draw(int(rows.sum()), None if given is None else given[rows], keep))
        back = which.argsort(stable=True).argsort()
        return Drawn(*(torch.cat(values)[back.to(values[0].device)] for values in zip(*parts, strict=True)))

    def draw(
        self, n: int, given: Tensor | None = None, keep: Filter = UNFILTERED, prompt: Tensor | None = None, *, scored: bool = False
    ) -> Drawn:
        """n examples that begin with `prompt` [n, m]; the log-probabilities, if wanted, are of what follows it."""
        state, last, drawn, nats, filtered = self.net.init_state(n, given), None, [], [], []
        for i, place in enumerate(self.order):
            state, parameters = self.net.step(state, last)
            if prompt is not None and i < prompt.shape[1]:
                last = prompt[:, i]
            else:
                last = self.draw_at(place, parameters, keep)
                if scored:
                    nats.append(self.log_mass_at(place, parameters, last))
                    filtered.append(nats[-1] if keep == UNFILTERED else self.log_mass_at(place, parameters, last, keep))
            drawn.append(last)
        return Drawn(self._in_place(drawn), *(_total(v, drawn[0]) for v in (nats, filtered)))

    def follow(self, prompt: Tensor, given: Tensor | None = None, keep: Filter = UNFILTERED) -> Iterator[tuple[Tensor, Tensor]]:
        """Symbols [n] after `prompt` [n, m], without end, each with its parameters; of a sequence.

        Where a state takes no more than `net.room` symbols, the walk begins anew with half as many for context.
        """
        context, room = self._context()
        while True:
            known = prompt[:, max(0, prompt.shape[1] - context) :]
            state, last, drawn = self.net.init_state(len(prompt), given), None, []
            for i in itertools.count() if room is None else range(room):
                state, parameters = self.net.step(state, last)
                if i < known.shape[1]:
                    last = known[:, i]
                    continue
                last = self.draw_at(0, parameters, keep)
                drawn += [last] if room is not None else []
                yield last, parameters
            prompt = torch.cat([known, torch.stack(drawn, 1)], 1)

    def _context(self) -> tuple[int, int | None]:
        """How many of the latest symbols are looked back on, and how many a state takes (None: any number)."""
        room, reach = self.net.room, self.net.reach
        if room is not None:
            return max(1, room // 2), room
        return (4 * self.space.dims if reach is None else reach), None

    def _in_place(self, drawn: list[Tensor]) -> Tensor:
        """Entries in the order of the conditionals -> in the order of places."""
        return torch.stack(drawn, 1)[:, self.net.order[: len(drawn)].to(drawn[0].device).argsort()]

    # -- the likeliest --------------------------------------------------------------------------

    def search(
        self,
        width: int,
        given: Tensor | None = None,
        prompt: Tensor | None = None,
        entries: int | None = None,
        stop: Tensor | Sequence[Tensor] | None = None,
    ) -> Drawn:
        """The likeliest examples that a beam of `width` finds, best first, [width or fewer, entries].

        Args:
            given: one row, or None; prompt: [1, m]; entries: in all, no more than the space has.
            stop: strings that end a text, which then stays in the beam as it is, padded with -1.

        Raises: UsageError where an entry's values cannot be listed.
        """
        state, last, stops = self.net.init_state(1, given), None, Stops([] if stop is None else stop, self.space, 1)
        total, drawn = torch.zeros(1, dtype=torch.float64), torch.zeros(1, 0, dtype=torch.int64)
        for i, place in enumerate(self.order[:entries]):
            state, parameters = self.net.step(state, last)
            if prompt is not None and i < prompt.shape[1]:
                last = prompt[:, i]
                drawn = torch.cat([drawn.to(last), last[:, None]], 1)
                continue
            log_p = self._logits(place, parameters).double().log_softmax(-1)
            ended = torch.tensor(stops.met, device=log_p.device)
            log_p[ended] = torch.where(torch.arange(log_p.shape[1], device=log_p.device) > 0, -math.inf, 0.0).to(log_p)
            scores = (total.to(log_p)[:, None] + log_p).flatten()
            total, best = scores.topk(min(width, int((scores > -math.inf).sum())))
            row, last = best // log_p.shape[1], self.heads.value_at(self.support(place), best % log_p.shape[1])
            state, drawn = select(state, row), torch.cat([drawn.to(last)[row], last.masked_fill(ended[row], MISSING)[:, None]], 1)
            stops = stops.select(row)
            stops.take(last)
        return Drawn(self._in_place(list(drawn.T)), total, total)

    # -- unknown entries ------------------------------------------------------------------------

    def leads(self, known: Tensor) -> bool:
        """Whether draws of the unknown entries need no weights; `known` [entries], by place.

        Every known entry precedes every unknown one, and no unknown one but the first may be missing: how
        likely it is to be present would depend on what was drawn before it.
        """
        order = self.net.order.to(known.device)
        unknown = order[~known[order]].tolist()
        in_order = bool((known[order].long().diff() <= 0).all())
        return in_order and not any(self.space.supports[self.support(place)].missing for place in unknown[1:])

    def toward(self, known: Tensor) -> "Conditionals":
        """These, in the order that begins with what is known [entries], if the net takes any order."""
        if not isinstance(self.net, OrderFree):
            return self
        order = self.net.order
        first = known.cpu()[order]
        return replace(self, net=self.net.ordered(torch.cat([order[first], order[~first]])))

    def fill(self, x: Tensor, known: Tensor, given: Tensor | None = None, particles: int = 1) -> Weighted:
        """Entries that are not `known` [entries], of x [rows, entries], drawn given those that are; never as missing.

        Args:
            particles: for each row and ordering, where known entries do not lead (see `leads`).
        """
        if self.orderings == 1:
            return self._walked(x, known, given, particles)
        parts = []
        for ordering in range(self.orderings):
            with self.net.under(ordering):  # type: ignore[attr-defined]
                parts.append(self._walked(x, known, given, particles))
        return _by_evidence(parts)

    def _walked(self, x: Tensor, known: Tensor, given: Tensor | None, particles: int) -> Weighted:
        """One particle is enough where known entries lead: its weight is the evidence itself."""
        rows, leads = len(x), self.leads(known)
        particles = 1 if leads else particles
        x = x.repeat_interleave(particles, 0)
        given = None if given is None else given.repeat_interleave(particles, 0)
        state, last, drawn = self.net.init_state(len(x), given), None, []
        log_w = torch.zeros(rows, particles, dtype=torch.float64, device=x.device)
        least = torch.full((rows,), float(particles), dtype=torch.float64, device=x.device)
        for place in self.order:
            state, parameters = self.net.step(state, last)
            last, gain = self._weighed(place, parameters, x[:, place], known[place])
            drawn.append(last)
            log_w += gain.view(rows, particles)
            effective = _effective(log_w)
            least = torch.minimum(least, effective)
            if particles > 1 and bool((effective < _FEW * particles).any()):
                index = _resampled(log_w, effective < _FEW * particles)
                state, last, drawn = select(state, index), last[index], [d[index] for d in drawn]
        filled = torch.where(known, x, self._in_place(drawn))[_picked(log_w)]
        return Weighted(filled, torch.full_like(least, math.inf) if leads else least, log_w.logsumexp(1) - math.log(particles))

    def _weighed(self, place: int, parameters: Tensor, x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """(values of one entry, known or drawn; the log weight that each brings)."""
        present = self._present(place, parameters)
        values = torch.where(known, x, self.draw_at(place, present).to(x.dtype))
        log_p = self.log_mass_at(place, parameters, values)
        return values, torch.where(known, log_p, log_p - self.log_mass_at(place, present, values))


def _total(nats: list[Tensor], like: Tensor) -> Tensor:
    """Sum over entries, [n] float64; zeros if there are none."""
    return torch.stack(nats).sum(0) if nats else torch.zeros(len(like), dtype=torch.float64, device=like.device)


def _effective(log_w: Tensor) -> Tensor:
    """Effective number of particles of each row; 0 where all weights are."""
    w = (log_w - log_w.amax(1, keepdim=True).clamp_min(-1e300)).exp()
    return w.sum(1).square() / w.square().sum(1).clamp_min(1e-300)


def _resampled(log_w: Tensor, where: Tensor) -> Tensor:
    """Indices of particles: in rows `where`, drawn anew by weight, evenly spread; others stay. Their weights become equal, in place."""
    rows, particles = log_w.shape
    index = torch.arange(particles, device=log_w.device).expand(rows, -1).clone()
    chosen = log_w[where] - log_w[where].amax(1, keepdim=True).clamp_min(-1e300)
    edges = chosen.exp().clamp_min(1e-300).cumsum(1)
    pointers = (torch.rand_like(edges[:, :1]) + torch.arange(particles, device=log_w.device)) / particles * edges[:, -1:]
    index[where] = torch.searchsorted(edges, pointers).clamp_max(particles - 1)
    log_w[where] = log_w[where].logsumexp(1, keepdim=True) - math.log(particles)
    return (index + torch.arange(rows, device=log_w.device)[:, None] * particles).flatten()


def _picked(log_w: Tensor) -> Tensor:
    """One particle of each row, by weight: its index among all."""
    rows, particles = log_w.shape
    p = (log_w - log_w.amax(1, keepdim=True).clamp_min(-1e300)).exp()
    return torch.multinomial(p.clamp_min(1e-300), 1)[:, 0] + torch.arange(rows, device=log_w.device) * particles


def _by_evidence(parts: list[Weighted]) -> Weighted:
    """One of several fillings for each row, by evidence. Effective numbers are pooled; one that leads counts as any number."""
    x, effective, evidence = (torch.stack(values, 1) for values in zip(*parts, strict=True))
    share = (evidence - evidence.amax(1, keepdim=True).clamp_min(-1e300)).exp()
    pooled = share.sum(1).square() / (share.square() / effective.clamp_min(1e-300)).sum(1)
    chosen = x.flatten(0, 1)[_picked(evidence)]
    return Weighted(chosen, pooled.nan_to_num(0.0, posinf=math.inf), evidence.logsumexp(1) - math.log(len(parts)))
