r"""Mixtures of components over the entries of an example, and how what is unknown follows what is known.

    p(x | y) = (1 - e) sum_c w_{yc} p_c(x) + e p_0(x),      p_c(x) = p_c(numbers) prod_j p_c(state_j) prod_f p_c(missing_f)

    numbers    one of `Numbers`: independent, of any covariance, or of low rank; those missing are marginalised
    nominal    a table of each component; a missing cell is one more state
    missing    a Bernoulli of each component and number that may be missing

p_0 is an example unlike all that were seen: independent entries, numbers heavy-tailed. By Laplace's rule of
succession e = 1 / (n + 2) after n examples, so that one far value costs bits by its logarithm and not by its square.

Filling: given the known entries, and that the unknown ones are there, a component has the weight w_c p_c(known); the
rest follows within it. Where p_c(known) needs draws (numbers on a grid, components that are not products), so many
particles compete by their weights, which is exact in their limit.

What is drawn is a number on the relaxed scale, put on the grid by floor and clamp: the distribution whose mass this is.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from likely.abilities import Fillable, Filled, Likelihood, Weighted
from likely.errors import UsageError
from likely.logprob import LogProb
from likely.model import Batches, Model
from likely.noise import Noise
from likely.solve.labels import component_weights, label_count, label_of, labelled
from likely.solve.numbers import HeavyTailed, Numbers
from likely.solve.observed import Observed, flattened, numbers_of, state_of, states_of
from likely.space import MISSING, Space

__all__ = ["Components", "Mixture", "MixtureModel"]

_ELEMENTS = 2**22  # of the largest [draws, batch, components] table
_PARTICLES = 64
_PATIENCE = 2  # rungs
_DRAWS = 4  # of a validation example, where its mass is not exact


class Mixture(nn.Module):
    """Components over the flattened entries of a space, and the one that is unlike all, last; x [B, *shape] in data units.

    Attributes:
        log_weight: log w [labels, C + 1].
        absent: P(missing | c) of the numbers that may be missing, [C + 1, flags].
        tables: P(state | c) of nominals, [C + 1, nominals, most states].
    """

    log_weight: Tensor
    absent: Tensor
    tables: Tensor

    def __init__(self, space: Space, labels: int, numbers: Numbers) -> None:
        super().__init__()
        self.space, self.labels, self.numbers = space, labels, numbers
        self.flat = flattened(space)
        self.unlike = HeavyTailed(self.flat)
        states, count = states_of(self.flat), len(numbers) + 1
        width = torch.arange(max(states, default=1))
        uniform = torch.stack([(width < n) / n for n in states]) if states else torch.zeros(0, 1)
        for name, value in (
            ("log_weight", torch.full((labels, count), -math.log(count))),
            ("absent", torch.full((count, len(self.flat.flags)), 0.5)),
            ("tables", uniform.expand(count, -1, -1)),
        ):
            self.register_buffer(name, value.double().clone())

    def put(self, found: "Components", seen: Observed) -> None:
        """Take components (but for their numbers), and what is unlike all examples seen."""
        doubt = 1 / (seen.weight.sum() + 2)
        weight = component_weights(found.mass, found.owner, self.labels) + torch.log1p(-doubt)
        self.log_weight = torch.cat([weight, doubt.log().expand(self.labels, 1)], 1)
        self.absent = torch.cat([found.absent, seen.absent()[None]])
        self.tables = torch.cat([found.tables, seen.tables()[None]])
        self.unlike.mean, variance = seen.moments()
        self.unlike.spread = variance.sqrt()

    def log_prob(self, x: Tensor, label: Tensor, noise: Noise) -> LogProb:
        """log p(x | label), in blocks, so that memory stays bounded."""
        number = numbers_of(self.flat, x.flatten(1))
        draws, known = self.numbers.noise(number, noise), torch.ones(self.flat.dims, dtype=torch.bool, device=x.device).expand(len(x), -1)
        rows = max(1, _ELEMENTS // (len(draws) * self.log_weight.shape[1]))
        blocks = [slice(i, i + rows) for i in range(0, len(x), rows)]
        parts = [self._joint(x.flatten(1)[b], number[b], known[b], label[b], draws[:, b]) for b in blocks]
        nats = torch.cat([part.logsumexp((0, 2)) for part in parts]) - math.log(len(draws))
        return LogProb(nats, "exact" if self.numbers.exact else "lower bound", how=self._how(noise.draws))

    def _how(self, draws: int) -> str:
        if not self.numbers.gridded:
            return ""
        return "interval masses" if self.numbers.exact else f"cells, {draws} draws of each example"

    def _joint(self, x: Tensor, number: Tensor, known: Tensor, label: Tensor, draws: Tensor) -> Tensor:
        """log w_c p_c(known entries, and that the others are there), nats [K, B, C + 1]; `number` is NaN where unknown."""
        parts = [self.numbers.log_prob(number, draws), self.unlike.log_prob(number, draws).expand(len(draws), -1, -1)]
        return torch.cat(parts, 2) + self.log_weight[label] + self._states(x, known)

    def _states(self, x: Tensor, known: Tensor) -> Tensor:
        """log p_c of missing cells and nominals, nats [B, C + 1]."""
        nats = torch.zeros(len(x), len(self.absent), dtype=torch.float64, device=x.device)
        for f, i in enumerate(self.flat.flags):
            lost = (_lost(x[:, i]) & known[:, i])[:, None]
            nats += torch.where(lost, self.absent[:, f].log(), torch.log1p(-self.absent[:, f]))
        for j, i in enumerate(self.flat.nominals):
            table, s = self.tables[:, j], self.flat.supports[i]
            there = torch.log1p(-table[:, s.levels]) if s.missing else torch.zeros_like(table[:, 0])
            state = state_of(torch.where(known[:, i], x[:, i], 0), s)
            nats += torch.where(known[:, i, None], table.log().T[state], there)
        return nats

    def sample(self, label: Tensor) -> Tensor:
        """One example for each label, [B, *shape] in data units."""
        component = torch.multinomial(self.log_weight.exp()[label], 1)[:, 0]
        number = torch.full((len(label), len(self.flat.numbers)), math.nan, dtype=torch.float64, device=label.device)
        draws = self.numbers.noise(number, Noise(number))[0]
        x = self._drawn(number, draws, component)
        for f, i in enumerate(self.flat.flags):
            lost = torch.rand(len(x), device=x.device) < self.absent[component, f]
            x[:, i] = x[:, i].masked_fill(lost, MISSING if self.flat.discrete else math.nan)
        for j, i in enumerate(self.flat.nominals):
            state, s = torch.multinomial(self.tables[component, j], 1)[:, 0], self.flat.supports[i]
            x[:, i] = torch.where(state == s.levels, MISSING, state).to(x.dtype)
        return x.view(-1, *self.space.shape)

    def _drawn(self, number: Tensor, draws: Tensor, component: Tensor) -> Tensor:
        """Rows in data units whose numbers are drawn given those known, none missing; nominals are left to the caller."""
        far = component == len(self.numbers)
        u = torch.empty_like(number)
        u[far] = self.unlike.complete(number[far], draws[far], component[far])
        u[~far] = self.numbers.complete(number[~far], draws[~far], component[~far])
        beside = self.flat.relaxed.shape[0] - u.shape[1]  # flags, none of which is raised, and nominals
        return self.flat.snap(torch.cat([u, u.new_full((len(u), beside), -1.0)], 1))

    def fill(self, x: Tensor, known: Tensor, label: Tensor, particles: int) -> tuple[Tensor, Tensor]:
        """One draw of each example's unknown entries -> rows [B, entries], and the effective number of particles of each [B]."""
        x, known = x.flatten(1), known.flatten(1)
        number = numbers_of(self.flat, torch.where(known, x, torch.zeros_like(x))).masked_fill(~known[:, self.flat.numbers], math.nan)
        draws = self.numbers.noise(number, Noise(number, particles))
        joint = self._joint(x, number, known, label, draws)
        weight = joint.logsumexp(2).softmax(0)
        pick = torch.multinomial(joint.transpose(0, 1).flatten(1).softmax(1), 1)[:, 0]
        draw, component = pick // joint.shape[2], pick % joint.shape[2]
        filled = self._drawn(number, draws[draw, torch.arange(len(x), device=x.device)], component)
        for j, i in enumerate(self.flat.nominals):
            table = self.tables[component, j].clone()
            if self.flat.supports[i].missing:
                table[:, self.flat.supports[i].levels] = 0
            filled[:, i] = torch.multinomial(table, 1)[:, 0].to(filled.dtype)
        certain = self.numbers.exact | number.isnan().all(1)
        return torch.where(known, x, filled), torch.where(certain, math.inf, 1 / weight.square().sum(0))


def _lost(x: Tensor) -> Tensor:
    """Missing numbers: -1 in a table of integers, NaN beside reals."""
    return torch.isnan(x) if x.is_floating_point() else x == MISSING


@dataclass(frozen=True)
class Components:
    """Components that a mixture may become.

    Attributes:
        numbers: buffers of the numbers of the mixture's `kind`.
        mass, owner: examples that each stands for, and its label [C].
        absent, tables: see `Mixture`.
        how: what it was made with.
    """

    numbers: dict[str, Tensor]
    mass: Tensor
    owner: Tensor
    absent: Tensor
    tables: Tensor
    kind: int = 0
    how: dict[str, float] = field(default_factory=dict)


class MixtureModel(Model, Likelihood, Fillable, Weighted):
    """A family whose likelihood, samples and fills are those of a `Mixture`: of the one kind of `Numbers` that has components."""

    def __init__(self, space: Space, *numbers: type[Numbers], given: Space | None, size: str) -> None:
        super().__init__(space, given=given, size=size)
        self.labels = label_count(given)
        self.mixtures = nn.ModuleList(Mixture(space, self.labels, kind(flattened(space))) for kind in numbers)

    @property
    def mixture(self) -> Mixture:
        """The one that was fitted."""
        return next(m for m in self.mixtures if isinstance(m, Mixture) and len(m.numbers))

    def take(self, found: Components, seen: Observed) -> None:
        """Become what was found in the examples seen."""
        for kind, mixture in enumerate(self.mixtures):
            assert isinstance(mixture, Mixture)
            mixture.numbers.take(found.numbers if kind == found.kind else {})
        self.mixture.put(found, seen)

    def choose(
        self, ladders: Iterable[Iterable[Iterable[Components]]], seen: Observed, valid: Batches, judges: int, judging: Tensor | None
    ) -> Components:
        """Take what codes so many examples of the validation split, of these weights, best; a ladder is left after two rungs that are no
        better."""
        x, label, weight = labelled(valid, self.given_space, judges, judging)
        best, kept = -math.inf, None
        for ladder in ladders:
            top, worse = -math.inf, 0
            for rung in ladder:
                now = -math.inf
                for candidate in rung:
                    self.take(candidate, seen)
                    score = (weight @ self.mixture.log_prob(x, label, Noise(x, _DRAWS, 0)).nats / weight.sum()).item()
                    now = max(now, score)
                    if score > best:
                        best, kept = score, candidate
                top, worse = max(top, now), 0 if now > top else worse + 1
                if worse == _PATIENCE:
                    break
        assert kept is not None
        self.take(kept, seen)
        return kept

    def forward(self, x: Tensor, given: Tensor | None = None, *, turn: str = "") -> Tensor:
        """-log p(x | given), nats [batch]; by one draw where it is not exact."""
        return -self._log_prob(x, given, Noise(x)).nats

    def _log_prob(self, x: Tensor, given: Tensor | None, noise: Noise) -> LogProb:
        return self.mixture.log_prob(x, label_of(self.given_space, given, len(x)), noise)

    @torch.no_grad()
    def sample(self, n: int, given: Tensor | None = None, *, with_log_prob: bool = False) -> Any:
        """Draw n examples, [n, *shape]; with_log_prob: a `Drawn`."""
        x = self.mixture.sample(label_of(self.given_space, given, n))
        return self.scored(x, given) if with_log_prob else x

    @final
    @torch.no_grad()
    def fill(self, x: Tensor, known: Tensor, given: Tensor | None = None, draws: int = 1, *, particles: int = _PARTICLES) -> Filled:
        """Unknown entries drawn given those known, never as missing: in closed form, or by particles; see `solve.mixtures`.

        Args:
            particles: that compete for each draw where a known number on a grid has no closed form.
        """
        if known.shape != x.shape or known.dtype != torch.bool:
            raise UsageError(f"`known` is {known.dtype} of shape {tuple(known.shape)}, not bool of {tuple(x.shape)}.")
        if particles < 2:
            raise UsageError(f"Of {particles} particles none can be preferred to another.", "Ask for many.")
        self.space.check(torch.where(known, x, torch.zeros_like(x)))
        mixture, label = self.mixture, label_of(self.given_space, given, len(x)).repeat(draws)
        rows = max(1, _ELEMENTS // (mixture.log_weight.shape[1] * (1 if mixture.numbers.exact else particles)))
        blocks = [v.repeat(draws, *[1] * (v.ndim - 1)).split(rows) for v in (x, known)]
        parts = [mixture.fill(a, b, y, particles) for a, b, y in zip(*blocks, label.split(rows), strict=True)]
        filled, effective = zip(*parts, strict=True)
        exact = bool(torch.cat(effective).isinf().all())
        how = "the model's own conditional" if exact else f"{particles} particles, weighed by the known numbers"
        return Filled(torch.cat(filled).view(draws, *x.shape), exact, torch.cat(effective).view(draws, len(x)), how)
