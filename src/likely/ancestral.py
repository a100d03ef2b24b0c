"""What every model of conditionals does alike: draw, fill, continue, and find the likeliest, entry by entry."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from likely.abilities import Fillable, Filled, Primed
from likely.decoding import UNFILTERED, Filter, Stops
from likely.errors import UsageError, nearest
from likely.model import evaluating, expand_given, in_precision
from likely.nets.causal import OrderFree
from likely.space import MISSING, Space
from likely.stepwise import Conditionals, Weighted

__all__ = ["PRECISIONS", "Ancestral", "Sampled"]

PRECISIONS = ("float32", "bf16")

_CHUNK = 2**18  # entries of examples that are drawn side by side
_PARTICLES = 64


class Sampled(NamedTuple):
    """Examples [n, *shape], log p of each under the model, and under the filtered sampler that drew it; nats [n] float64.

    Where a prompt leads, both are of what follows it.
    """

    x: Tensor
    log_prob: Tensor
    filtered_log_prob: Tensor


class Ancestral(Primed, Fillable, ABC):
    """Draws each entry given those before it; a family says what its conditionals are, all else is here."""

    space: Space

    @property
    @abstractmethod
    def conditionals(self) -> Conditionals:
        """The net that steps, and the heads, over the symbols that are predicted."""

    @property
    def goes_on(self) -> bool:
        return not self.space.variable and self.conditionals.reads

    @final
    @torch.no_grad()
    def sample(
        self,
        n: int,
        given: Tensor | None = None,
        *,
        prompt: Tensor | str | bytes | None = None,
        length: int | None = None,
        stop: Tensor | Sequence[Tensor] | str | bytes | None = None,
        beam: int | None = None,
        with_log_prob: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        typical: float | None = None,
        greedy: bool = False,
        precision: str = "float32",
    ) -> Any:
        """Draw n examples, entry by entry.

        Args:
            prompt: symbols [m] or [n, m] that a sequence begins with; it is part of what is returned.
            length: symbols of a text after the prompt, however many; the space's own length by default.
            stop: strings, as symbols [m], of which the first to appear after the prompt ends a text; it is part of what is
                returned, and a text that ends before others is padded with -1.
            beam: the n likeliest examples that a search of this width finds, instead of draws; best first. It takes no filter.
            with_log_prob: return a `Sampled`.
            temperature, top_k, top_p, min_p, typical, greedy: a `Filter` of entries of finitely many values, which changes
                what is drawn from; `log_prob` stays that of the model itself.
            precision: "bf16" draws from the net with its numbers and products rounded to 8 bits, which is faster. That is another
                distribution, near the model's own; both log-probabilities of a `Sampled` are under it, as it runs.

        Returns: a tensor [n, *shape], with a prompt or a length [n, m + length], with a stop at most so long; or a `Sampled` with it.

        Raises: UsageError for strings, which `likely.sample` reads.
        """
        if isinstance(prompt, str | bytes) or isinstance(stop, str | bytes):
            raise UsageError("A model's own `sample` takes symbols, not strings.", "likely.sample(model, n, prompt=...) reads strings.")
        keep, given = Filter(temperature, top_k, top_p, min_p, typical, greedy), expand_given(given, n)
        if beam is not None and keep != UNFILTERED:
            asked = ", ".join(f"{name}={value}" for name, value in vars(keep).items() if value != getattr(UNFILTERED, name))
            raise UsageError(f"A beam search draws nothing that {asked} could filter.", "Pass beam alone, or leave it out.")
        length = self._up_to(prompt, length, stop)
        prompt = self._prompt(prompt, length, n)
        with self._computing(precision):
            if beam is not None and length != 0:  # no symbols leave nothing to search
                drawn = self._likeliest(n, given, beam, prompt, length, stop)
            elif length is not None:
                drawn = self._text(given, keep, prompt, length, stop, with_log_prob)
            else:
                drawn = self._examples(n, given, keep, prompt, with_log_prob)
        return drawn if with_log_prob else drawn.x

    @contextmanager
    def _computing(self, precision: str) -> Iterator[None]:
        """Without dropout, and in the precision asked for."""
        if precision not in PRECISIONS:
            raise UsageError(f"Unknown precision '{precision}'.", nearest(precision, PRECISIONS))
        net = self.conditionals.net
        if precision == "bf16" and not isinstance(net, nn.Module):
            raise UsageError("This model has no net of its own that could run in bf16.", "Leave out precision.")
        with evaluating(self), in_precision(net, torch.bfloat16) if precision == "bf16" else nullcontext():  # type: ignore[arg-type]
            yield

    def _up_to(self, prompt: Tensor | None, length: int | None, stop: Any) -> int | None:
        """How far a text goes on that may stop before: as asked for, or to the length of the space."""
        if stop is None or length is not None:
            return length
        return max(0, self.space.dims - (0 if prompt is None else prompt.shape[-1]))

    def _prompt(self, prompt: Tensor | None, length: int | None, n: int) -> Tensor | None:
        """The prompt [n, m] on the model's device, or None."""
        if prompt is None and length is None:
            return None
        if self.space.layout != "sequence" or (length is not None and self.space.variable):
            raise UsageError(f"A {self.space} has no prompt or length to draw.", "Texts have; fill takes whatever else is known.")
        if not self.conditionals.reads:
            raise UsageError("This model does not read from left to right, so nothing can be continued.", "fill takes whatever is known.")
        prompt = torch.empty(0, dtype=torch.int64) if prompt is None else prompt
        rows = prompt.expand(n, -1).to(self._device())
        levels = self.space.supports[0].levels
        if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < levels:
            raise UsageError(f"The prompt has a symbol outside 0..{levels - 1}.", "Prompts are written in the symbols of the data.")
        if length is not None and length < 0:
            raise UsageError(f"Cannot draw {length} symbols.")
        if length is None and rows.shape[1] > self.space.dims:
            raise UsageError(f"The prompt has {rows.shape[1]} symbols, an example {self.space.dims}.", "Pass length to go on after it.")
        return rows

    def _device(self) -> torch.device:
        assert isinstance(self, torch.nn.Module)
        return next((t.device for t in (*self.parameters(), *self.buffers())), torch.device("cpu"))

    def _examples(self, n: int, given: Tensor | None, keep: Filter, prompt: Tensor | None, scored: bool) -> Sampled:
        size, walk = max(1, _CHUNK // self.space.dims), self.conditionals
        starts = range(0, max(n, 1), size)  # none asked for: an empty batch
        rows = [slice(i, min(i + size, n)) for i in starts]
        parts = [walk.draw_mixed(r.stop - r.start, _rows(given, r), keep, _rows(prompt, r), scored=scored) for r in rows]
        x, nats, filtered = (torch.cat(values) for values in zip(*parts, strict=True))
        return Sampled(self.space.padded(x.view(n, *self.space.shape)), nats, filtered)

    def _text(
        self, given: Tensor | None, keep: Filter, prompt: Tensor | None, length: int, stop: Tensor | Sequence[Tensor] | None, scored: bool
    ) -> Sampled:
        assert prompt is not None
        walk, drawn = self.conditionals, []
        nats = filtered = torch.zeros(len(prompt), dtype=torch.float64, device=prompt.device)
        for symbols, parameters in islice(self._followed(prompt, given, keep, stop), length):
            drawn.append(symbols)
            if scored:
                some, there = symbols.clamp_min(0), symbols >= 0
                nats = nats + walk.log_mass_at(0, parameters, some).where(there, 0.0)
                filtered = filtered + walk.log_mass_at(0, parameters, some, keep).where(there, 0.0)
        return Sampled(torch.cat([prompt, torch.stack(drawn, 1)], 1) if drawn else prompt, nats, filtered)

    def _followed(
        self, prompt: Tensor, given: Tensor | None, keep: Filter, stop: Tensor | Sequence[Tensor] | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Symbols [n] after a prompt, each with its parameters: without end, or until all texts have stopped, and -1 in those that have."""
        drawn = self.conditionals.follow(prompt, given, keep)
        if stop is None:
            yield from drawn
            return
        stops = Stops(stop, self.space, len(prompt))
        while not all(stops.met):
            symbols, parameters = next(drawn)
            ended = torch.tensor(stops.met, device=symbols.device)
            stops.take(symbols)
            yield symbols.masked_fill(ended, MISSING), parameters

    def _likeliest(
        self, n: int, given: Tensor | None, width: int, prompt: Tensor | None, length: int | None, stop: Tensor | Sequence[Tensor] | None
    ) -> Sampled:
        """One search for all where nothing differs between rows, else one for each row."""
        entries = None if prompt is None or length is None else prompt.shape[1] + length
        if entries is not None and entries > self.space.dims:
            raise UsageError(f"Beam search ends at {self.space.dims} symbols, prompt included.", "Ask for fewer.")
        if self.conditionals.orderings > 1:
            raise UsageError("A mixture over orderings has no beam search: no single one has its likelihood.", "Fit with orderings=1.")
        alike = all(v is None or bool((v == v[:1]).all()) for v in (given, prompt))
        if alike and n > width:
            raise UsageError(f"A beam of {width} finds {width} examples, not {n}.", f"Pass beam={n} or more.")
        rows = [slice(0, 1)] if alike else [slice(i, i + 1) for i in range(n)]
        found = [self.conditionals.search(width, _rows(given, r), _rows(prompt, r), entries, stop) for r in rows]
        most = n if alike else 1
        x, nats, filtered = (torch.cat([v[:most] for v in values]) for values in zip(*found, strict=True))
        shape = self.space.shape if entries is None else (entries,)
        return Sampled(self.space.padded(x.view(len(x), *shape)), nats, filtered)

    @final
    @torch.no_grad()
    def follow(
        self,
        prompt: Tensor,
        given: Tensor | None = None,
        *,
        stop: Tensor | Sequence[Tensor] | None = None,
        precision: str = "float32",
        **keep: Any,
    ) -> Iterator[Tensor]:
        rows = self._prompt(prompt, 0, len(prompt))
        assert rows is not None
        with self._computing(precision):
            for symbols, _ in self._followed(rows, given, Filter(**keep), stop):
                yield symbols

    @final
    @torch.no_grad()
    def fill(self, x: Tensor, known: Tensor, given: Tensor | None = None, draws: int = 1, *, particles: int = _PARTICLES) -> Filled:
        """Unknown entries drawn given those known, never as missing; see `stepwise` for how.

        Args:
            particles: that walk for each draw, where not every known entry precedes every unknown one.
        """
        if known.shape != x.shape or known.dtype != torch.bool:
            raise UsageError(f"`known` is {known.dtype} of shape {tuple(known.shape)}, not bool of {tuple(x.shape)}.")
        if particles < 2:
            raise UsageError(f"Of {particles} particles none can be preferred to another.", "Ask for many.")
        x = torch.where(known, x, torch.zeros_like(x))
        self.space.check(x)
        if self.space.layout == "sequence" and not self.space.variable and bool((x < 0).any()):
            raise UsageError("Padding cannot be known in texts of a fixed length.", "Fill whole windows.")
        symbols, parts = self.space.ended(x), []
        with evaluating(self):  # type: ignore[arg-type]
            for pattern in known.flatten(1).unique(dim=0):  # rows with the same mask walk together
                rows = (known.flatten(1) == pattern).all(1).nonzero()[:, 0]
                parts.append((rows, self._filled(symbols[rows], pattern, _rows(given, rows), draws, particles)))
        return self._joined(x, known, draws, parts, particles)

    def _filled(self, x: Tensor, known: Tensor, given: Tensor | None, draws: int, particles: int) -> Weighted:
        """Draw-major rows."""
        walk = self.conditionals.toward(known)
        x, given = x.flatten(1).repeat(draws, 1), None if given is None else given.repeat(draws, *[1] * (given.ndim - 1))
        size = max(1, _CHUNK // (self.space.dims * (1 if walk.leads(known) else particles)))
        rows = [slice(i, i + size) for i in range(0, len(x), size)]
        parts = [walk.fill(x[r], known, _rows(given, r), particles) for r in rows]
        return Weighted(*(torch.cat(values) for values in zip(*parts, strict=True)))

    def _joined(self, x: Tensor, known: Tensor, draws: int, parts: list[tuple[Tensor, Weighted]], particles: int) -> Filled:
        """Rows of all masks in their places again."""
        filled = x.expand(draws, *x.shape).clone()
        effective = torch.full((draws, len(x)), math.inf, dtype=torch.float64, device=x.device)
        for rows, done in parts:
            filled[:, rows] = torch.where(known[rows], x[rows], self.space.padded(done.x.view(draws, len(rows), *self.space.shape)))
            effective[:, rows] = done.effective.view(draws, len(rows))
        exact = bool(effective.isinf().all())
        return Filled(filled, exact, effective, self._how(exact, particles))

    def _how(self, exact: bool, particles: int) -> str:
        walk = self.conditionals
        free = isinstance(walk.net, OrderFree)
        if exact:
            return "the conditional of the ordering that begins with what is known" if free else "the model's own conditional"
        each = f" under each of {walk.orderings} orderings" if walk.orderings > 1 and not free else ""
        there = ", and by the chance of unknown cells to be there" if any(s.missing for s in self.space.supports) else ""
        return f"{particles} particles{each}, weighed by the known entries that come later{there}"


def _rows(values: Tensor | None, index: slice | Tensor) -> Tensor | None:
    return None if values is None else values[index]
