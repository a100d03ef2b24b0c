r"""`check_model`: the contract that every family keeps, ours or a stranger's, as laws over tiny spaces.

On an enumerable space a likelihood can be proved: an exact one sums to 1, a lower bound (its logs
averaged over draws) to at most 1, an estimate to 1 within its error; samples follow what the model
claims; and by KL(p || q) >= 0 no model may claim more than the data's own entropy allows.

A law is a function (model, data, room) -> what it measured, which raises `LawBroken`. It applies
where the model has the ability it speaks of.

    from likely.checks import check_model
    check_model("my-family")        # over every tiny data set whose layout the family claims
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from likely import store
from likely.coding import Stack
from likely.dataset import Data
from likely.enumeration import Claim, Room, claimed, enumerable_data, index_of, shared_error, tiny_data
from likely.errors import DataError, LikelyError, UsageError
from likely.families import family_class
from likely.logprob import LogProb
from likely.model import ClosedForm, Coded, Fillable, Latent, Likelihood, Model
from likely.noise import seeded

__all__ = ["LAWS", "Finding", "LawBroken", "Room", "check_model", "enumerable_data", "tiny_data"]


class LawBroken(LikelyError):
    """A model does not keep the contract; the message names the law and the numbers."""


@dataclass(frozen=True)
class Finding:
    """One law on one data set: what was measured."""

    law: str
    data: str
    measured: str

    def __str__(self) -> str:
        return f"{self.data}: {self.law}: {self.measured}"


def check_model(name: str, data: Data | None = None, *, room: Room | None = None, **options: object) -> list[Finding]:
    """Fit a registered family, in size "tiny", and hold it to every law that applies.

    Args:
        data: any `Data`; every tiny data set of the family's layouts by default.
        options: of the family.

    Raises: LawBroken at the first law that does not hold.
    """
    room = room or Room()
    if data is None:
        every = [d for d in tiny_data().values() if d.space.layout in family_class(name).layouts]
        return [finding for d in every for finding in check_model(name, d, room=room, **options)]
    model = _fitted(name, data, room, options)
    return [Finding(law, data.name, told) for law, check in LAWS.items() if (told := check(model, data, room)) is not None]


def _fitted(name: str, data: Data, room: Room, options: dict[str, object]) -> Model:
    from likely.train import fit

    return fit(data, name, size="tiny", steps=room.steps, seed=room.seed, progress=False, **options).model  # type: ignore[arg-type]


def _require(holds: bool, law: str, told: str) -> str:
    if not holds:
        raise LawBroken(f"{law}: {told}.")
    return told


# --- laws --------------------------------------------------------------------------------------------


def samples_belong(model: Model, data: Data, room: Room) -> str:
    """Samples have the space's shape, type and values, and a seed repeats them."""
    given = data.test.given[:1] if data.test.given is not None else None
    with seeded(1):
        x = model.sample(5, given)
    with seeded(1):
        again = model.sample(5, given)
    model.space.check(x)
    _require(len(x) == 5 and x.dtype == data.space.dtype, "samples belong", f"5 asked for, got {tuple(x.shape)} of {x.dtype}")
    return _require(torch.equal(x.nan_to_num(7), again.nan_to_num(7)), "samples belong", "a seed repeats its samples")


def parameters_learn(model: Model, data: Data, room: Room) -> str | None:
    """forward gives a finite loss per example, and its turns reach every parameter; none is a scalar or sits at the root."""
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


def store_keeps(model: Model, data: Data, room: Room) -> str:
    """A stored and reopened model gives the same samples and log-likelihoods, bit for bit."""
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


def rows_are_independent(model: Model, data: Data, room: Room) -> str | None:
    """log p of an example does not depend on the rest of its batch or on the order."""
    if not isinstance(model, Likelihood):
        return None
    x, given = data.test.rows(slice(0, 16))
    together = _nats(model, x, given, draws=2)
    flipped = _nats(model, x.flip(0), None if given is None else given.flip(0), draws=2).flip(0)
    alone = torch.cat([_nats(model, x[i : i + 1], None if given is None else given[i : i + 1], draws=2) for i in range(4)])
    gap = max((together - flipped).abs().max().item(), (together[:4] - alone).abs().max().item())
    return _require(gap < 1e-4, "rows are independent", f"largest change of log p {gap:.1e} nats")


def bad_input_is_refused(model: Model, data: Data, room: Room) -> str | None:
    """Wrong shapes, types and values raise a `DataError`; a conditional model wants its `given`."""
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


def mass_is_one(model: Model, data: Data, room: Room) -> str | None:
    """The claimed masses of all states sum to 1 (exact), to at most 1 (a bound), to 1 within its error (an estimate)."""
    if not isinstance(model, Likelihood):
        return None
    if not data.space.discrete:
        return _mass_by_quadrature(model, room)
    told = None
    for given in _givens(data):
        claim = claimed(model, data.space, given, room)
        mass, error = claim.p.sum().item(), claim.mass_error
        told = f"sum of p is {mass:.6f} ({claim.kind}, +- {error:.1e})"
        _require(mass <= 1 + 3 * error + 1e-4, "mass is one", told)
        if claim.kind == "exact":
            _require(mass >= 1 - 1e-4, "mass is one", told)
        elif claim.kind == "estimate":
            _require(mass >= 0.75 - 3 * error, "mass is one", told)
    return told


def _mass_by_quadrature(model: Likelihood, room: Room) -> str | None:
    """The trapezoidal rule over a square, on standardised 2-D data; the logs of a bound are averaged over draws first."""
    if model.space.dims != 2:
        return None
    first = model.log_prob(torch.zeros(1, 2))
    draws, side = (1, 321) if first.kind == "exact" else (max(2, room.draws // 5), 65)
    line = torch.linspace(-6, 6, side)
    points = torch.cartesian_prod(line, line)
    with torch.no_grad():
        nats = torch.stack([model.log_prob(points, seed=s).nats for s in range(draws)])
    # where a bound is noisy, exp of its mean says nothing; the mass of the other points is at most 1 all the same
    clear = nats.std(0) / math.sqrt(draws) < 0.3 if draws > 1 else torch.ones(len(points), dtype=torch.bool)
    mass = (nats.mean(0)[clear].exp().sum() * (line[1] - line[0]).double() ** 2).item()
    error = 0.02 + shared_error(first) * mass
    told = f"density integrates to {mass:.4f} ({first.kind})"
    _require(mass <= 1 + 3 * error, "mass is one", told)
    return _require(first.kind == "lower bound" or mass >= 1 - 3 * error, "mass is one", told)


def samples_follow(model: Model, data: Data, room: Room) -> str | None:
    """Samples of an exact model pass a chi-square test against its own p; of a bound, no frequent state is rarer than claimed."""
    if not isinstance(model, Likelihood) or not data.space.discrete:
        return None
    told = None
    for given in _givens(data):
        claim = claimed(model, data.space, given, room)
        if claim.kind == "estimate":
            return None
        sampler: Any = model.sample
        with seeded(3):
            drawn = index_of(sampler(room.samples, given, **model.bound_sampler), claim.states)
        count = torch.bincount(drawn, minlength=len(claim.states)).double()
        told = _chi_square(count, claim.p) if claim.kind == "exact" else _not_rarer(count, claim)
    return told


def _chi_square(count: Tensor, p: Tensor) -> str:
    from scipy.stats import chi2

    expected = p / p.sum() * count.sum()
    common = expected >= 5
    rest = torch.stack([count[~common].sum(), expected[~common].sum()])
    count, expected = torch.cat([count[common], rest[:1]]), torch.cat([expected[common], rest[1:]])
    statistic = ((count - expected).square() / expected.clamp_min(1e-9)).sum().item()
    tail = float(chi2.sf(statistic, max(1, len(count) - 1)))
    return _require(tail > 1e-4, "samples follow", f"chi-square of samples against p: tail probability {tail:.4f}")


def _not_rarer(count: Tensor, claim: Claim) -> str:
    n = count.sum()
    frequency = count / n
    frequent = claim.p * n >= 20
    slack = 4 * (claim.p * (1 - claim.p).clamp_min(0) / n).sqrt() + 4 * claim.p * claim.stderr
    gap = (frequency - claim.p + slack)[frequent]
    return _require(
        bool((gap >= 0).all()), "samples follow", f"of {int(frequent.sum())} frequent states none is sampled more rarely than its bound"
    )


def truth_is_the_limit(model: Model, data: Data, room: Room) -> str | None:
    """No honest model beats the truth: the paired mean of log p_true - log p_model is not below zero; and it learnt something."""
    if not isinstance(model, Likelihood) or data.truth is None:
        return None
    result = _log_prob(model, data.test.x, data.test.given, draws=model.bound_draws)
    gap = data.truth.log_prob(data.test.x).double() - result.nats
    mean, error = gap.mean().item(), gap.std().item() / math.sqrt(len(gap)) + shared_error(result)
    told = f"KL(truth, model) about {mean:.3f} +- {error:.3f} nats"
    return _require(mean >= -3 * error - 1e-3, "truth is the limit", told)


def given_matters(model: Model, data: Data, room: Room) -> str | None:
    """A conditional model tells the classes apart: the true label is likelier than the other on average."""
    if not isinstance(model, Likelihood) or data.test.given is None:
        return None
    right = _nats(model, data.test.x, data.test.given, draws=4)
    wrong = _nats(model, data.test.x, 1 - data.test.given, draws=4)
    gain = (right - wrong).mean().item()
    return _require(gain > 0.05, "given matters", f"the true label is worth {gain:.2f} nats")


def codec_keeps_its_word(model: Model, data: Data, room: Room) -> str | None:
    """What is coded comes back, in as many bits as claimed, and the stack is left as it was."""
    if not isinstance(model, Coded) or not data.space.discrete:
        return None
    x, given = data.test.rows(slice(0, 64))
    stack = Stack()
    model.codec(given).push(stack, x)
    coded, claim = len(stack), stack.claim
    back = model.codec(given).pop(stack, len(x))
    _require(torch.equal(back, x), "codec keeps its word", "what was coded comes back")
    return _require(coded <= 1.001 * claim + 128, "codec keeps its word", f"{coded} bits coded, {claim:.1f} claimed")


def latents_return(model: Model, data: Data, room: Room) -> str | None:
    """encode lands in the latent space with one value of nats per draw; decode lands in the data space."""
    if not isinstance(model, Latent):
        return None
    x, given = data.test.rows(slice(0, 4))
    with torch.no_grad():
        z = model.encode(x, given, 2)
        back = model.decode(z.value[:4], given)
    model.space.check(back)
    fits = z.value.shape == (4 * z.draws, *model.latent.shape) and z.nats.shape == (4 * z.draws,)
    return _require(fits, "latents return", f"latents {tuple(z.value.shape)}, nats {tuple(z.nats.shape)}")


def known_stay(model: Model, data: Data, room: Room) -> str | None:
    """Filling leaves known entries bit for bit."""
    if not isinstance(model, Fillable):
        return None
    x, given = data.test.rows(slice(0, 8))
    with seeded(4):
        known = torch.rand(x.shape) < 0.5
        filled = model.fill(x, known, given, draws=2)
    return _require(torch.equal(filled[:, known], x[known].expand(2, -1)), "known stay", "known entries are unchanged")


LAWS: dict[str, Callable[[Model, Data, Room], str | None]] = {
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
}


def _givens(data: Data) -> Iterator[Tensor | None]:
    """Each label in turn, or None for unconditional data."""
    if data.test.given is None:
        yield None
        return
    for value in data.test.given.unique(dim=0):
        yield value[None]


@torch.no_grad()
def _log_prob(model: Likelihood, x: Tensor, given: Tensor | None, draws: int = 1) -> LogProb:
    return model.log_prob(x, given, draws=draws)


def _nats(model: Likelihood, x: Tensor, given: Tensor | None, draws: int = 1) -> Tensor:
    return _log_prob(model, x, given, draws).nats
