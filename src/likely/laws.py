"""The laws of the contract, each a function of one fitted model on one tiny data set: what it measured, or `LawBroken`.

A law applies where the model has the ability it speaks of; else it returns None.
"""

import copy
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from likely import store
from likely.abilities import ClosedForm, Coded, Fillable, Latent, Likelihood
from likely.ancestral import Ancestral
from likely.coding import Stack
from likely.dataset import Data
from likely.enumeration import Claim, Room, claimed, index_of, shared_error
from likely.errors import DataError, LikelyError, UsageError
from likely.logprob import LogProb
from likely.model import Model
from likely.nets.causal import OrderFree
from likely.noise import seeded
from likely.stepwise import Conditionals

__all__ = ["LAWS", "LawBroken", "Trial"]

_SEEDS = 8  # of the noise of a bound, where its mean over examples is tested


class LawBroken(LikelyError):
    """A model does not keep the contract; the message names the law and the numbers."""


@dataclass(frozen=True)
class Trial:
    """A fitted model, the data it was fitted to, and how much a law may spend."""

    model: Model
    data: Data
    room: Room

    @cached_property
    def claims(self) -> list[tuple[Tensor | None, Claim]]:
        """What the model claims about every state of the space, for each label in turn."""
        model = self.model
        assert isinstance(model, Likelihood)
        return [(given, claimed(model, self.data.space, given, self.room)) for given in _givens(self.data)]


def _givens(data: Data) -> Iterator[Tensor | None]:
    """Each label in turn, or None for unconditional data."""
    if data.test.given is None:
        yield None
        return
    for value in data.test.given.unique(dim=0):
        yield value[None]


def _require(holds: bool, law: str, told: str) -> str:
    if not holds:
        raise LawBroken(f"{law}: {told}.")
    return told


def samples_belong(trial: Trial) -> str:
    """Samples have the space's shape, type and values, and a seed repeats them."""
    model, data = trial.model, trial.data
    given = data.test.given[:1] if data.test.given is not None else None
    with seeded(1):
        x = model.sample(5, given)
    with seeded(1):
        again = model.sample(5, given)
    model.space.check(x)
    _require(len(x) == 5 and x.dtype == data.space.dtype, "samples belong", f"5 asked for, got {tuple(x.shape)} of {x.dtype}")
    return _require(torch.equal(x.nan_to_num(7), again.nan_to_num(7)), "samples belong", "a seed repeats its samples")


def parameters_learn(trial: Trial) -> str | None:
    """forward gives a finite loss per example, and its turns reach every parameter; none is a scalar or sits at the root."""
    model, data = trial.model, trial.data
    if isinstance(model, ClosedForm):
        return None
    model.train().zero_grad()
    x, given = data.train.rows(slice(0, 32))
    for turn in model.turns:
        loss = model(x, given, turn=turn)
        _require(
            loss.shape == (32,) and bool(loss.isfinite().all()), "parameters learn", f"loss {tuple(loss.shape)} of turn '{turn}' is finite"
        )
        loss.float().mean().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None]
    odd = [name for name, p in model.named_parameters() if p.ndim == 0 or "." not in name]
    model.zero_grad()
    model.eval()
    _require(not odd, "parameters learn", f"scalar or root parameters: {', '.join(odd) or 'none'}")
    return _require(not idle, "parameters learn", f"parameters without a gradient: {', '.join(idle) or 'none'}")


def store_keeps(trial: Trial) -> str:
    """A stored and reopened model gives the same samples and log-likelihoods, bit for bit."""
    model, data = trial.model, trial.data
    given = data.test.given[:8] if data.test.given is not None else None
    with tempfile.TemporaryDirectory() as folder:
        twin = store.open_model(store.save(model, Path(folder) / "model"))
    with seeded(2):
        x = model.sample(8, given)
    with seeded(2):
        same = torch.equal(x.nan_to_num(7), twin.sample(8, given).nan_to_num(7))
    if isinstance(model, Likelihood) and isinstance(twin, Likelihood):
        rows = data.test.rows(slice(0, 8))
        same &= torch.equal(_nats(model, *rows), _nats(twin, *rows))
    return _require(same, "store keeps", "samples and log-likelihoods are the same after save and open")


def rows_are_independent(trial: Trial) -> str | None:
    """log p of an example does not depend on the rest of its batch or on the order."""
    model, data = trial.model, trial.data
    if not isinstance(model, Likelihood):
        return None
    x, given = data.test.rows(slice(0, 16))
    together = _nats(model, x, given, draws=2)
    flipped = _nats(model, x.flip(0), None if given is None else given.flip(0), draws=2).flip(0)
    alone = torch.cat([_nats(model, x[i : i + 1], None if given is None else given[i : i + 1], draws=2) for i in range(4)])
    gap = max((together - flipped).abs().max().item(), (together[:4] - alone).abs().max().item())
    return _require(gap < 1e-4, "rows are independent", f"largest change of log p {gap:.1e} nats")


def bad_input_is_refused(trial: Trial) -> str | None:
    """Wrong shapes, types and values raise a `DataError`; a conditional model wants its `given`."""
    model, data = trial.model, trial.data
    if not isinstance(model, Likelihood):
        return None
    x, given = data.test.rows(slice(0, 2))
    wrong = [x[:, :0], x.float() if data.space.discrete else x.long()]
    if data.space.discrete:
        wrong.append(torch.full_like(x, 99))
    for bad in wrong:
        _raises(DataError, lambda bad=bad: model.log_prob(bad, given), f"log_prob of {tuple(bad.shape)} {bad.dtype} is refused")
    if given is not None:
        _raises(UsageError, lambda: model.log_prob(x), "a conditional model without `given` is refused")
    return f"{len(wrong)} kinds of bad input refused"


def _raises(kind: type[Exception], action: Callable[[], object], told: str) -> None:
    try:
        action()
    except kind:
        return
    _require(False, "bad input is refused", f"not so: {told}")


def mass_is_one(trial: Trial) -> str | None:
    """The claimed masses of all states sum to 1 (exact), to at most 1 (a bound), to 1 within its error (an estimate)."""
    if not isinstance(trial.model, Likelihood):
        return None
    if not trial.data.space.discrete:
        return _mass_by_quadrature(trial.model, trial.room)
    told = None
    for _, claim in trial.claims:
        mass, error = claim.p.sum().item(), claim.mass_error
        told = f"sum of p is {mass:.6f} ({claim.kind}, +- {error:.1e})"
        _require(mass <= 1 + 3 * error + 1e-4, "mass is one", told)
        _require(claim.kind == "lower bound" or mass >= 1 - 3 * error - 1e-4, "mass is one", told)
    return told


def _mass_by_quadrature(model: Likelihood, room: Room) -> str | None:
    """A sum over a square, on standardised 2-D data: of a density at a point of each cell at random, so that none with edges of its own (a
    histogram) can beat with the grid, several times if there is room, which tells the error; of a bound at the grid's points, its logs
    averaged over draws first."""
    if model.space.dims != 2:
        return None
    first = model.log_prob(torch.zeros(1, 2))
    certain = first.kind != "lower bound" and first.stderr is None  # more draws would be the same
    times = 1 if first.kind == "exact" or room.draws < 100 else 6
    draws, side = (1, 321 if first.kind == "exact" else 33 if room.draws < 100 else 49) if certain else (max(2, room.draws // 5), 65)
    line, masses = torch.linspace(-6, 6, side), []
    grid, cell = torch.cartesian_prod(line, line), (line[1] - line[0]).double()
    for turn in range(times if certain else 1):
        with seeded(6 + turn), torch.no_grad():
            points = grid + (torch.rand(grid.shape) - 0.5) * cell.float() if certain else grid
            nats = torch.stack([model.log_prob(points, seed=s).nats for s in range(draws)])
        # where a bound is noisy, exp of its mean says nothing; the mass of the other points is at most 1 all the same
        clear = nats.std(0) / math.sqrt(draws) < 0.3 if draws > 1 else torch.ones(len(points), dtype=torch.bool)
        masses.append(nats.mean(0)[clear].exp().sum() * cell**2)
    mass, spread = torch.stack(masses).mean().item(), torch.stack(masses).std(correction=0).item() / math.sqrt(max(1, len(masses) - 1))
    error = 0.02 + shared_error(first) * mass + spread
    told = f"density integrates to {mass:.4f} ({first.kind}, +- {error:.4f})"
    _require(mass <= 1 + 3 * error, "mass is one", told)
    return _require(first.kind == "lower bound" or mass >= 1 - 3 * error, "mass is one", told)


def samples_follow(trial: Trial) -> str | None:
    """Samples of an exact model pass a chi-square test against its own p; of a bound, no frequent state is rarer than claimed."""
    model, data = trial.model, trial.data
    if not isinstance(model, Likelihood) or not data.space.discrete:
        return None
    told = None
    for given, claim in trial.claims:
        if claim.kind == "estimate":
            return None
        sampler: Any = model.sample
        with seeded(3):
            x = sampler(trial.room.samples, given, **model.bound_sampler)
            drawn = index_of(data.space.canonical(x), claim.states)
        count = torch.bincount(drawn, minlength=len(claim.states)).double()
        told = _chi_square(count, claim.p) if claim.kind == "exact" else _not_rarer(count, claim)
    return told


def _chi_square(count: Tensor, p: Tensor, law: str = "samples follow") -> str:
    from scipy.stats import chi2

    expected = p / p.sum() * count.sum()
    common = expected >= 5
    rest = torch.stack([count[~common].sum(), expected[~common].sum()])
    count, expected = torch.cat([count[common], rest[:1]]), torch.cat([expected[common], rest[1:]])
    statistic = ((count - expected).square() / expected.clamp_min(1e-9)).sum().item()
    tail = float(chi2.sf(statistic, max(1, len(count) - 1)))
    return _require(tail > 1e-4, law, f"chi-square of draws against p: tail probability {tail:.4f}")


def _not_rarer(count: Tensor, claim: Claim) -> str:
    n = count.sum()
    frequency = count / n
    frequent = claim.p * n >= 20
    slack = 4 * (claim.p * (1 - claim.p).clamp_min(0) / n).sqrt() + 4 * claim.p * claim.stderr
    gap = (frequency - claim.p + slack)[frequent]
    return _require(
        bool((gap >= 0).all()), "samples follow", f"of {int(frequent.sum())} frequent states none is sampled more rarely than its bound"
    )


def truth_is_the_limit(trial: Trial) -> str | None:
    """No honest model beats the truth: the paired mean of log p_true - log p_model is not below zero."""
    model, data = trial.model, trial.data
    if not isinstance(model, Likelihood) or data.truth is None:
        return None
    # equal rows have equal noise, so each is scored once, under several seeds
    x, given, share = _distinct(data.test.x, data.test.given)
    results = [_log_prob(model, x, given, model.bound_draws, seed) for seed in range(_SEEDS if len(x) < len(data.test.x) else 1)]
    gap = data.truth.log_prob(x).double() - torch.stack([result.nats for result in results])
    each, mean = gap @ share, (gap @ share).mean().item()
    spread = (((gap.mean(0) - mean).square() @ share) / len(data.test.x)).sqrt().item()
    error = spread + shared_error(results[0]) + (each.std().item() / math.sqrt(len(each)) if len(each) > 1 else 0.0)
    told = f"KL(truth, model) about {mean:.3f} +- {error:.3f} nats"
    return _require(mean >= -3 * error - 1e-3, "truth is the limit", told)


def _distinct(x: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
    """Each distinct example once, and its share of all [n], float64; as they are where they are conditioned, or reals."""
    if given is not None or x.is_floating_point():
        return x, given, torch.full((len(x),), 1 / len(x), dtype=torch.float64)
    rows, count = x.unique(dim=0, return_counts=True)
    return rows, None, count.double() / len(x)


def given_matters(trial: Trial) -> str | None:
    """A conditional model tells the classes apart: the true label is likelier than the other on average."""
    model, (x, given) = trial.model, trial.data.test.rows(slice(0, 256))
    if not isinstance(model, Likelihood) or given is None:
        return None
    right, wrong = _nats(model, x, given, draws=4), _nats(model, x, 1 - given, draws=4)
    gain = (right - wrong).mean().item()
    return _require(gain > 0.05, "given matters", f"the true label is worth {gain:.2f} nats")


def codec_keeps_its_word(trial: Trial) -> str | None:
    """What is coded comes back, in as many bits as claimed, and the stack is left as it was."""
    model, data = trial.model, trial.data
    if not isinstance(model, Coded) or not model.codable:
        return None
    x, given = data.test.rows(slice(0, 64))
    stack = Stack()
    model.codec(given).push(stack, x)
    coded, claim = len(stack), stack.claim
    back = model.codec(given).pop(stack, len(x))
    _require(torch.equal(back, x), "codec keeps its word", "what was coded comes back")
    _require(len(stack) == len(Stack()), "codec keeps its word", f"{len(stack) - len(Stack())} bits are left over")
    return _require(coded <= 1.001 * claim + 128, "codec keeps its word", f"{coded} bits coded, {claim:.1f} claimed")


def latents_return(trial: Trial) -> str | None:
    """encode lands in the latent space with one value of nats per draw; decode lands in the data space."""
    model, data = trial.model, trial.data
    if not isinstance(model, Latent):
        return None
    x, given = data.test.rows(slice(0, 4))
    with torch.no_grad():
        z = model.encode(x, given, 2)
        back = model.decode(z.value[:4], given)
    model.space.check(back)
    fits = z.value.shape == (4 * z.draws, *model.latent.shape) and z.nats.shape == (4 * z.draws,)
    return _require(fits, "latents return", f"latents {tuple(z.value.shape)}, nats {tuple(z.nats.shape)}")


def known_stay(trial: Trial) -> str | None:
    """Filling leaves known entries bit for bit."""
    model, data = trial.model, trial.data
    if not isinstance(model, Fillable) or data.space.layout == "set":
        return None
    x, given = data.test.rows(slice(0, 8))
    with seeded(4):
        known = torch.rand(x.shape) < 0.5
        filled = model.fill(x, known, given, draws=2).x
    model.space.check(filled.flatten(0, 1))
    same = torch.equal(filled[:, known].nan_to_num(7), x[known].expand(2, -1).nan_to_num(7))
    return _require(same, "known stay", "known entries are unchanged")


def fills_follow(trial: Trial) -> str | None:
    """Given the first entry of its order, the others are drawn as the model's own p says."""
    model, space = trial.model, trial.data.space
    if not isinstance(model, Fillable) or not isinstance(model, Likelihood) or not space.discrete or space.dims == 1:
        return None
    given, claim = trial.claims[0]
    if claim.kind != "exact":
        return None
    x, first = trial.data.test.x[:1], 0
    if isinstance(model, Ancestral):
        walk = model.conditionals
        if isinstance(walk.net, OrderFree) and walk.orderings > 1:
            return None  # it fills in an order of its own, not under the mixture
        first = walk.order[0]
    known = (torch.arange(space.dims) == first).view(x.shape)
    there = (claim.states >= 0) | known if space.layout == "columns" else torch.ones_like(claim.states, dtype=torch.bool)
    fits = ((claim.states == x) | ~known).flatten(1).all(1) & there.flatten(1).all(1)  # no fill is "missing"
    with seeded(5):
        filled = model.fill(x, known, given, draws=trial.room.samples // 2)
    states, p = claim.states[fits], claim.p[fits] / claim.p[fits].sum()
    count = torch.bincount(index_of(filled.x[:, 0], states), minlength=len(states)).double()
    if filled.exact:
        return _chi_square(count, p, "fills follow")
    away = (count / count.sum() - p).abs().sum().item() / 2
    slack = (p * (1 - p) / count.sum()).sqrt().sum().item() / 2  # what so many draws are away by on average, at most
    told = f"total variation {away:.3f} of weighed draws, {slack:.3f} by chance"
    return _require(away < 2 * slack + 0.05, "fills follow", told)


def steps_equal_the_whole(trial: Trial) -> str | None:
    """Entry by entry, with what a state keeps, log p in float64 is that of the whole example."""
    data = trial.data
    if not isinstance(trial.model, Ancestral) or not isinstance(trial.model, Likelihood):
        return None
    model: Any = copy.deepcopy(trial.model).double().eval()
    x, given = data.test.rows(slice(0, 16))
    with torch.no_grad():
        walk, each = model.conditionals, []
        for ordering in range(walk.orderings):
            with walk.net.under(ordering) if walk.orderings > 1 else nullcontext():
                each.append(_walked(walk, data.space.ended(x).flatten(1), given))
        stepped = torch.stack(each).logsumexp(0) - math.log(len(each))
    gap = (stepped - _nats(model, x, given)).abs().max().item()
    return _require(gap < 1e-8, "steps equal the whole", f"largest difference of log p {gap:.1e} nats")


def _walked(walk: Conditionals, x: Tensor, given: Tensor | None) -> Tensor:
    """log p of examples x [n, entries], step by step; [n]."""
    state, last, nats = walk.net.init_state(len(x), given), None, torch.zeros(len(x), dtype=torch.float64)
    for place in walk.order:
        state, parameters = walk.net.step(state, last)
        last = x[:, place]
        nats += walk.log_mass_at(place, parameters, last)
    return nats


LAWS: dict[str, Callable[[Trial], str | None]] = {
    "samples belong": samples_belong,
    "parameters learn": parameters_learn,
    "store keeps": store_keeps,
    "rows are independent": rows_are_independent,
    "bad input is refused": bad_input_is_refused,
    "mass is one": mass_is_one,
    "samples follow": samples_follow,
    "truth is the limit": truth_is_the_limit,
    "given matters": given_matters,
    "codec keeps its word": codec_keeps_its_word,
    "latents return": latents_return,
    "known stay": known_stay,
    "fills follow": fills_follow,
    "steps equal the whole": steps_equal_the_whole,
}


@torch.no_grad()
def _log_prob(model: Likelihood, x: Tensor, given: Tensor | None, draws: int = 1, seed: int = 0) -> LogProb:
    return model.log_prob(x, given, draws=draws, seed=seed)


def _nats(model: Likelihood, x: Tensor, given: Tensor | None, draws: int = 1) -> Tensor:
    return _log_prob(model, x, given, draws).nats
