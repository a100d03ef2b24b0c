r"""Energy-based model: independent columns, tilted by a learnt energy.

On the relaxed space u (`space.relax`), with p0 a histogram of each entry alone,

    p(u) = p0(u) exp(-E(u)) / Z,                        Z = E_{p0}[ exp(-E(u)) ]
    -grad log p = grad E(u_data) - E_{u ~ p}[ grad E(u) ]                    (maximum likelihood of E)

so E has to explain only how entries depend on each other, and E = 0 is the histogram model already.
p0 has a normal coordinate, u = T(v) with v ~ N(0, I), in which every entry is as wide as every other
and no step leaves the support. There all chains live, and move by Langevin (Hamiltonian) dynamics of
N(v) exp(-E(T(v))), see `likely.solve.langevin`.

Training    persistent contrastive divergence: a buffer of chains goes on by one proposal of `moves` leaps
            for each gradient step; a few of them start anew from p0. p0 is fitted by its own likelihood.
            Where chains and model are in balance, E is alike on both in the mean. If data lie lower than
            chains by `slack` nats, the energy has outrun its chains, and learns nothing until they follow.
            E^2 is penalised a little, which fixes the constant that E is free to add.
log Z       by annealed importance sampling from p0, once for each set of weights, and stored with
            them. Annealing finds log Z from below: log p(x) is optimistic by what the chains missed.
            It is an estimate and never a bound.
Sampling    chains of the buffer, `settle` proposals on.

References:
    | Training products of experts by minimizing contrastive divergence (Hinton, 2002) | https://doi.org/10.1162/089976602760128018
    | Training RBMs using approximations to the likelihood gradient (Tieleman, 2008) | https://doi.org/10.1145/1390156.1390290
    | Implicit generation and modeling with energy-based models (Du and Mordatch, 2019) | https://arxiv.org/abs/1903.08689
    | Learning energy-based models by exponential tilting of a base density (Arbel et al., 2021) | https://arxiv.org/abs/2003.05033
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from likely.abilities import Likelihood, Starts
from likely.errors import UsageError
from likely.logprob import LogProb
from likely.model import Model, Recipe, expand_given
from likely.nets import net
from likely.noise import Noise, row_hash, seeded
from likely.solve.ais import Annealed, anneal, temper
from likely.solve.langevin import Energy as EnergyOf
from likely.solve.langevin import adapt, place, walk
from likely.space import MISSING, Space

__all__ = ["Energy", "Marginals"]

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_EDGE = 1e-12  # probabilities are kept this far from 0 and 1, where the normal quantile is infinite
_CHAINS, _LEAPS = 64, 4  # of annealing: chains, and leaps at each temperature; bias falls with temperatures, not chains
_BLOCK = 16  # labels annealed together
_GAIN = 10.0  # histogram logits = 10 x weights, so that they settle at the learning rate of a net


class Marginals(nn.Module):
    """p0(u): a histogram of every entry alone, in w in (0, 1).

    w is the place between the ends of an ordinal, whose bins are its cells; for every other entry it
    is the standard normal's CDF at u, and the histogram corrects that normal. Float64 inside.
    """

    bins: Tensor
    low: Tensor
    width: Tensor

    def __init__(self, space: Space, bins: int) -> None:
        super().__init__()
        relaxed = space.relaxed
        ends = [_ends(space, channel, bins) for channel in range(relaxed.shape[0])]
        count, low, width = (
            torch.tensor(c, dtype=torch.float64).repeat_interleave(relaxed.dims // len(ends)) for c in zip(*ends, strict=True)
        )
        for name, value in {"bins": count, "low": low, "width": width}.items():
            self.register_buffer(name, value, persistent=False)
        self.shape, self.most = relaxed.shape, int(count.max())
        self.weight = nn.Parameter(torch.zeros(relaxed.dims, self.most))

    def _log_mass(self) -> Tensor:
        """[dims, most], float64; minus infinity where an entry has fewer bins."""
        absent = torch.arange(self.most, device=self.bins.device) >= self.bins[:, None]
        return (_GAIN * self.weight.double()).masked_fill(absent, -math.inf).log_softmax(1)

    def _place(self, u: Tensor) -> Tensor:
        """Bin [dims, B] of each entry."""
        w = torch.where(self.width > 0, (u - self.low) / self.width, torch.special.ndtr(u))
        return (w * self.bins).long().clamp_min(0).minimum(self.bins.long() - 1).T

    def start(self, u: Tensor) -> None:
        """Set the histogram to that of a batch, smoothed by one example spread evenly."""
        place = self._place(u.flatten(1).double())
        counts = torch.zeros_like(self.weight).scatter_add_(1, place, torch.ones_like(place, dtype=self.weight.dtype))
        with torch.no_grad():
            self.weight.copy_((counts + 1 / self.bins[:, None]).log() / _GAIN)

    def log_prob(self, u: Tensor) -> Tensor:
        """log p0(u), nats [B]."""
        u = u.flatten(1).double()
        reference = torch.where(self.width > 0, -self.width.clamp_min(_EDGE).log(), -0.5 * u.square() - _LOG_SQRT_2PI)
        return (self._log_mass().gather(1, self._place(u)).T + self.bins.log() + reference).sum(1)

    def table(self) -> tuple[Tensor, Tensor]:
        """Mass of each bin and its cumulative sum: all that `from_normal` needs, computed once for a chain."""
        mass = self._log_mass().detach().exp()
        return mass, mass.cumsum(1)

    def from_normal(self, v: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        """u = T(v) [B, *relaxed shape] of v [B, dims]; u ~ p0 where v ~ N(0, I)."""
        mass, edge = table
        c = torch.special.ndtr(v.double()).clamp(_EDGE, 1 - _EDGE).T
        index = torch.searchsorted(edge, c.detach().contiguous()).minimum(self.bins.long()[:, None] - 1)
        m = mass.gather(1, index)
        w = ((index + ((c - edge.gather(1, index) + m) / m).clamp(0, 1)) / self.bins[:, None]).T
        u = self.low + self.width * w
        if bool((self.width == 0).any()):
            u = torch.where(self.width > 0, u, torch.special.ndtri(w.clamp(_EDGE, 1 - _EDGE)))
        return u.to(torch.get_default_dtype()).view(-1, *self.shape)


def _ends(space: Space, channel: int, bins: int) -> tuple[float, float, float]:
    """Bins, low end and width of a relaxed channel; width 0 where it is unbounded."""
    numbers = space.numbers
    s = space.supports[numbers[channel]] if channel < len(numbers) else None
    if s is None:
        return 2.0, 0.0, 0.0  # the sign of a half-normal is what matters
    if s.kind != "ordinal":
        return float(bins), 0.0, 0.0
    return float(min(s.levels, 256)), -s.center / s.scale, s.levels / s.scale


class Energy(Model, Likelihood, Starts):
    """p(u) proportional to p0(u) exp(-E(u)), by contrastive divergence; log Z by annealed importance sampling.

    Args:
        given: one nominal label; log Z is estimated for each of its values.
        net: word for another net than the default; `width` and `depth` of it, by size where not given.
        chains: in the replay buffer, shared among the labels.
        moves: leaps of each proposal.
        restart: share of chains that start anew from p0 at each step.
        slack: nats by which data may lie lower than chains.
        penalty: weight of E^2.
        temperatures: of annealing.

    Raises: UsageError if `given` is anything but one nominal label.
    """

    summary = "energy-based: marginals tilted by a learnt energy, contrastive divergence"
    recipe = Recipe(lr=1e-3, weight_decay=0.3, bf16=False, patience=0)
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"chains": 128, "moves": 2, "temperatures": 50},
        "small": {"chains": 512, "moves": 10, "temperatures": 1000},
        "base": {"chains": 2048, "moves": 20, "temperatures": 4000},
    }
    rank_buffers = ("chains", "step")
    bound_draws = 16

    chains: Tensor
    step: Tensor
    log_z: Tensor
    log_z_stderr: Tensor
    fingerprint: Tensor

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        net: str | None = None,
        width: int | None = None,
        depth: int | None = None,
        chains: int | None = None,
        moves: int | None = None,
        restart: float = 0.01,
        slack: float = 10.0,
        penalty: float = 1e-5,
        temperatures: int | None = None,
    ) -> None:
        super().__init__(space, given=given, size=size)
        if given is not None and (given.shape != (1,) or given.numbers):
            raise UsageError(f"An energy model is conditioned on one nominal label, not on {given}.", "Each value has its own log Z.")
        chosen = self.options(size, chains=chains, moves=moves, temperatures=temperatures)
        self.moves, self.temperatures = chosen["moves"], chosen["temperatures"]
        self.restart, self.slack, self.penalty = restart, slack, penalty
        self.base = Marginals(space, bins=16)
        self.net = _net(space, size, net, given, width=width, depth=depth)
        states = 1 if given is None else given.supports[0].levels + given.supports[0].missing
        self.register_buffer("chains", torch.randn(states, max(16, chosen["chains"] // states), space.relaxed.dims))
        self.register_buffer("step", torch.full((1,), 0.1))
        self.register_buffer("log_z", torch.full((states,), math.nan, dtype=torch.float64))
        self.register_buffer("log_z_stderr", torch.full((states,), math.nan, dtype=torch.float64))
        self.register_buffer("fingerprint", torch.zeros(1, dtype=torch.int64))

    # -- training -------------------------------------------------------------------------------

    def start(self, x: Tensor, given: Tensor | None = None) -> None:
        """Set p0 to the histogram of a batch."""
        self.base.start(self.space.relax(x).value)

    def forward(self, x: Tensor, given: Tensor | None = None, *, turn: str = "") -> Tensor:
        """Contrastive divergence, whose gradient (and not whose value) is that of -log p(x), plus -log p0(x)."""
        relaxed, fake = self.space.relax(x), self._advance(len(x), given)
        e_data, e_fake = self._energy(torch.cat([relaxed.value, fake]), None if given is None else torch.cat([given, given])).chunk(2)
        throttle = (1 - (e_fake - e_data).detach().mean() / self.slack).clamp(0, 1)
        contrast = throttle * (e_data - e_fake) + self.penalty * (e_data.square() + e_fake.square())
        return contrast - self.base.log_prob(relaxed.value) - relaxed.nats

    def _energy(self, u: Tensor, given: Tensor | None) -> Tensor:
        return self.net(u, given).squeeze(1).double()

    def _of_normal(self, given: Tensor | None) -> EnergyOf:
        """E(T(v)) as a function of v, for chains with these labels, or one for all."""
        table = self.base.table()
        return lambda v: self._energy(self.base.from_normal(v, table), expand_given(given, len(v)))

    def _state(self, given: Tensor | None, n: int) -> Tensor:
        """Row of the buffer and of log Z for each example; a missing label has the last."""
        if self.given_space is None or given is None:
            return torch.zeros(n, dtype=torch.int64, device=self.chains.device)
        return torch.where(given[:, 0] < 0, len(self.log_z) - 1, given[:, 0])

    def _pick(self, n: int, given: Tensor | None) -> tuple[Tensor, Tensor]:
        """Row and column in the buffer of a chain for each example; no chain twice while there are enough of its label."""
        row, each = self._state(given, n), self.chains.shape[1]
        earlier = nn.functional.one_hot(row, len(self.chains)).cumsum(0).gather(1, row[:, None])[:, 0]
        return row, (earlier + torch.randint(each, (1,), device=row.device)) % each

    def _advance(self, n: int, given: Tensor | None) -> Tensor:
        """One chain for each label of the batch goes on by a proposal; u, without gradient."""
        at = self._pick(n, given)
        v, energy = self.chains[at], self._of_normal(given)
        v = torch.where(torch.rand(n, 1, device=v.device) < self.restart, torch.randn_like(v), v)
        walkers, moved = walk(place(v, energy), energy, self.step[0], leaps=self.moves)
        self.chains[at] = walkers.v
        self.step[0] = adapt(self.step[0], moved, rate=0.03)
        return self.base.from_normal(walkers.v, self.base.table())

    # -- likelihood -----------------------------------------------------------------------------

    def _log_prob(self, x: Tensor, given: Tensor | None, noise: Noise) -> LogProb:
        row = self._state(given, len(x))
        self._estimate(row.unique().tolist())
        relaxed = self.space.relax(x, noise=noise)
        repeated = None if given is None or relaxed.exact else noise.repeat(given)
        density = self.base.log_prob(relaxed.value) - self._energy(relaxed.value, repeated)
        how = (
            f"log Z by forward AIS, {self._chains_each()} chains x {self.temperatures} temperatures, an underestimate: log p is optimistic"
        )
        tilted = relaxed.log_prob(LogProb(density, "exact", how=how))
        return LogProb(tilted.nats - self.log_z[row], "estimate", stderr=self.log_z_stderr[row], how=tilted.how)

    def _estimate(self, states: list[int]) -> None:
        """log Z of these labels, and of others of their block, unless it is known for the weights as they are."""
        fingerprint = torch.stack([row_hash(p.reshape(1, -1)) for p in self.parameters()]).sum(0)
        if not torch.equal(fingerprint, self.fingerprint):
            self.log_z.fill_(math.nan)
            self.fingerprint.copy_(fingerprint)
        for block in {state // _BLOCK for state in states}:
            rows = slice(block * _BLOCK, (block + 1) * _BLOCK)
            if self.log_z[rows].isnan().any():
                with seeded(block):
                    annealed = self._anneal(block)
                self.log_z[rows], self.log_z_stderr[rows] = annealed.log_z, annealed.stderr

    def _chains_each(self) -> int:
        """Chains of annealing for each label: their sum over a block stays bounded."""
        return max(16, _CHAINS // len(self.log_z))

    def _anneal(self, block: int) -> Annealed:
        """Chains of a block of labels from p0 to p; the weights of each label, [labels, chains], average to its Z."""
        states = torch.arange(block * _BLOCK, min((block + 1) * _BLOCK, len(self.log_z)), device=self.chains.device)
        shape = len(states), self._chains_each()
        given = None
        if self.given_space:
            given = torch.where(states < self.given_space.supports[0].levels, states, MISSING).repeat_interleave(shape[1])[:, None]
        energy = self._of_normal(given)
        v = torch.randn(2, shape[0] * shape[1], self.chains.shape[2], device=self.chains.device)
        pilot = temper(v[1], energy, -(-self.temperatures // 4), _LEAPS)
        annealed = anneal(v[0], energy, [pilot[t // 4] for t in range(self.temperatures)], _LEAPS)
        return annealed._replace(log_weight=annealed.log_weight.view(shape))

    # -- samples --------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, n: int, given: Tensor | None = None, *, settle: int = 10) -> Tensor:
        """Chains of the buffer, `settle` proposals on; beyond as many as the buffer has, several share a start."""
        given = expand_given(given, n)
        parts = [slice(i, min(i + 512, n)) for i in range(0, n, 512)]
        return torch.cat([self._settle(p.stop - p.start, None if given is None else given[p], settle) for p in parts])

    def _settle(self, n: int, given: Tensor | None, proposals: int) -> Tensor:
        energy = self._of_normal(given)
        walkers = place(self.chains[self._pick(n, given)], energy)
        for _ in range(proposals):
            walkers, _ = walk(walkers, energy, self.step[0], leaps=self.moves)
        return self.space.snap(self.base.from_normal(walkers.v, self.base.table()))


def _net(space: Space, size: str, word: str | None, given: Space | None, **options: int | None) -> nn.Module:
    chosen = {name: value for name, value in options.items() if value is not None}
    return net(space.relaxed, "energy", size, word=word, given=given, out=1, **chosen)
