r"""What Gaussian diffusion acts on, and what a noisy value z = alpha e + sigma eps says of it.

`Lift` places data on the real line: entries of finitely many values at known points e_k (an ordinal's standardised, a
missing cell one point more), which are not dequantized; the others through `Space.relax`. The posterior joins by Bayes'
rule the likelihood of an entry's own noisy value, which is known, with what a net says of its surroundings:

    few levels    p(x = k | z) ~ exp(net_k) N(z; alpha e_k, sigma^2)
    many levels   mean m and variance V as for a real; its mass: N(e_k; m, V) at the levels, normalised,
                  or of the bins around them, the first and the last open
    real          m = alpha z - sigma net_1,  V = sigma^2 exp(net_2)       exact for e ~ N(0, 1) where net = 0

Masses sum to one over the levels whatever the net says.

References:
    | Variational diffusion models (Kingma et al., 2021) | https://arxiv.org/abs/2107.00630
    | Structured denoising diffusion models in discrete state-spaces (Austin et al., 2021) | https://arxiv.org/abs/2107.03006
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from likely.noise import Noise
from likely.solve.intervals import normal_interval
from likely.solve.odds import gumbel_argmax, whole_normal
from likely.space import MISSING, Space, Support

__all__ = ["Levels", "Lift", "Posterior", "gaussian_posterior"]

_MOST_LEVELS = 256  # entries of more values than this are relaxed
_FEW_LEVELS = 32  # of a grid: up to here the net weighs every level of every pixel
_REAL_LOG_SNR = 9.0  # what is relaxed is resolved down to exp(-9/2), 1 % of its standard deviation
_SIGMAS_PER_GAP = 5.0  # neighbouring levels are this many standard deviations apart at t = 0
_WIDEST = 12.0  # log-variances of a net are kept within +-12
_EXACT = 1e-6  # a deviation that leaves no doubt
_FAR = 1e3  # deviations of the data
_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Posterior:
    """p(x | z): mean and variance [B, C, ...]; of the first entries, where a net weighs levels, log-mass [B, F, K, ...]."""

    mean: Tensor
    var: Tensor
    log_mass: Tensor | None = None

    def __getitem__(self, rows: Tensor | slice) -> "Posterior":
        return Posterior(self.mean[rows], self.var[rows], None if self.log_mass is None else self.log_mass[rows])

    def entries(self, which: slice) -> "Posterior":
        """Of some entries; the log-mass stays that of the first."""
        return replace(self, mean=self.mean[:, which], var=self.var[:, which])

    def towards(self, other: "Posterior", share: float) -> "Posterior":
        """`share` of the way to another and beyond it: linear in the mean and in the log-mass, of the other's variance."""
        log_mass = None
        if self.log_mass is not None and other.log_mass is not None:
            log_mass = torch.where(other.log_mass.isinf(), other.log_mass, self.log_mass.lerp(other.log_mass, share)).log_softmax(2)
        return Posterior(self.mean.lerp(other.mean, share), other.var, log_mass)

    def over(self, other: "Posterior") -> "Posterior":
        """Another one, with the log-mass of this."""
        return replace(other, log_mass=self.log_mass)

    def join(self, other: "Posterior") -> "Posterior":
        """Of more entries."""
        return Posterior(torch.cat([self.mean, other.mean], 1), torch.cat([self.var, other.var], 1), self.log_mass)


def gaussian_posterior(params: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Posterior:
    """Mean and variance from params [B, C, 2 or more, ...]: velocity, and log-variance over that of the noise."""
    velocity, log_var = params[:, :, 0], params[:, :, 1]
    return Posterior(alpha * z - sigma * velocity, sigma.square() * log_var.clamp(-_WIDEST, _WIDEST).exp())


class Levels(nn.Module):
    """Entries (axis 1) of finitely many values, as points of the line.

    Args:
        supports: one per entry, all with finitely many states.
        few: up to so many points the net weighs each one; with more it gives a mean and a variance.
        bins: whether the mass of a level is then that of the bin around it.
    """

    points: Tensor  # [C, K], increasing; infinite where an entry has fewer than K
    last: Tensor  # [C], the number of the last point
    gaps: Tensor  # [C], between neighbours
    loses: Tensor  # [C], whether the last point means missing

    def __init__(self, supports: Sequence[Support], *, few: int = _MOST_LEVELS, bins: bool = False) -> None:
        super().__init__()
        states = [s.levels + s.missing for s in supports]
        rows = [_points(s) for s in supports]
        padded = [row + [math.inf] * (max(states) - len(row)) for row in rows]
        self.register_buffer("points", torch.tensor(padded), persistent=False)
        self.register_buffer("last", torch.tensor(states) - 1, persistent=False)
        self.register_buffer("gaps", torch.tensor([(row[-1] - row[0]) / max(1, len(row) - 1) or 1.0 for row in rows]), persistent=False)
        self.register_buffer("loses", torch.tensor([s.missing for s in supports]), persistent=False)
        self.few, self.bins = max(states) <= few, bins
        self.width = max(states) if self.few else 2
        self.gap = min((row[1] - row[0] for row in rows if len(row) > 1), default=1.0)

    def code(self, x: Tensor) -> Tensor:
        """Cells [B, C, ...] -> numbers of points."""
        return torch.where(x == MISSING, _per_entry(self.last, x), x).long()

    def cell(self, code: Tensor) -> Tensor:
        """Numbers of points -> cells."""
        return torch.where(_per_entry(self.loses, code) & (code == _per_entry(self.last, code)), MISSING, code)

    def value(self, code: Tensor) -> Tensor:
        """Numbers of points -> e."""
        return self.points[_per_entry(torch.arange(len(self.points), device=code.device), code), code]

    def posterior(self, params: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Posterior:
        """From params [B, C, width or more, ...] and z [B, C, ...]; alpha and sigma broadcast over z."""
        if not self.few:
            return gaussian_posterior(params, z, alpha, sigma)
        points, absent = self._points(z)
        likelihood = -0.5 * ((z.unsqueeze(2) - alpha.unsqueeze(2) * points) / sigma.unsqueeze(2)).square()
        log_mass = (params[:, :, : self.width] + likelihood).masked_fill(absent, -math.inf).log_softmax(2)
        mass = log_mass.exp()
        mean = (mass * points).sum(2)
        return Posterior(mean, (mass * (points - mean.unsqueeze(2)).square()).sum(2), log_mass)

    def log_mass(self, posterior: Posterior) -> Tensor:
        """Log-mass of every level, nats [B, C, K, ...]."""
        if posterior.log_mass is not None:
            return posterior.log_mass
        # a model without variance says one point, whose nearest level has all the mass
        mean, var = posterior.mean.unsqueeze(2), posterior.var.unsqueeze(2).clamp_min(_EXACT**2)
        if self.bins:
            lower, upper = self._edges(posterior.mean)
            upper = torch.where(upper > lower, upper, lower + 1)  # of points that are not there
            mass = normal_interval((lower - mean) / var.sqrt(), (upper - mean) / var.sqrt())
            return mass.masked_fill(self._points(posterior.mean)[1], -math.inf)
        points, absent = self._points(posterior.mean)
        return (-0.5 * (points - mean).square() / var).masked_fill(absent, -math.inf).log_softmax(2)

    def log_prob(self, posterior: Posterior, code: Tensor) -> Tensor:
        """Log-mass of the points numbered `code`, nats [B, C, ...]."""
        return self.log_mass(posterior).gather(2, code.unsqueeze(2)).squeeze(2)

    def draw(self, posterior: Posterior) -> Tensor:
        """Numbers of points, drawn from the mass."""
        if posterior.log_mass is not None:
            return gumbel_argmax(posterior.log_mass, 2)
        first, gap, last = (_per_entry(v, posterior.mean) for v in (self.points[:, 0], self.gaps, self.last))
        place, deviation = (posterior.mean - first) / gap, posterior.var.clamp_min(_EXACT**2).sqrt() / gap
        if self.bins:
            return torch.minimum((place + deviation * torch.randn_like(place)).round().clamp_min(0).long(), last)
        return whole_normal(place, deviation, last.expand_as(place))

    def decoded(self, e: Tensor, deviation: float) -> Posterior:
        """p(x | e with noise) by Bayes' rule if all levels are as likely: what little noise there is decides."""
        points, absent = self._points(e)
        nats = -0.5 * ((e.unsqueeze(2).double() - points) / deviation).square()
        return Posterior(e, torch.zeros_like(e), nats.masked_fill(absent, -math.inf).log_softmax(2))

    def _edges(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper edges of the bins, half way between points, [C, K, 1...]; the outermost are so far away that they are open."""
        open_end = self.points.new_full((len(self.points), 1), _FAR)
        middle = ((self.points[:, 1:] + self.points[:, :-1]) / 2).clamp_max(_FAR)
        edges = torch.cat([-open_end, middle, open_end], 1)
        shape = (*self.points.shape, *[1] * (like.ndim - 2))
        return edges[:, :-1].reshape(shape), edges[:, 1:].reshape(shape)

    def _points(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """[C, K, 1...], to broadcast over [B, C, K, ...] where `like` is [B, C, ...]; and which of them are not there, zeros."""
        points = self.points.view(*self.points.shape, *[1] * (like.ndim - 2))
        return points.masked_fill(points.isinf(), 0.0), points.isinf()


class Lift(nn.Module):
    """Data <-> the reals that diffusion acts on, `space`; entries (axis 1) of finitely many values come first.

    Args:
        few, bins: of `Levels`.

    Attributes:
        width: parameters per entry that a posterior takes.
        log_snr: at which the data are resolved, where a schedule starts.
        detail: nats that the relaxed entries of an example cost at `log_snr`, if noise is all that is unknown then.
        dequantizes: whether some entries are dequantized.
        zero: a number on the device and in the precision of what is lifted and drawn: those of the model that it is part of.
    """

    zero: Tensor

    def __init__(self, data: Space, *, few: int | None = None, bins: bool = False) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros(1), persistent=False)
        self.data = data
        self.finite = [i for i, s in enumerate(data.supports) if s.states is not None and s.states <= _MOST_LEVELS]
        self.others = [i for i in range(len(data.supports)) if i not in self.finite]
        few = (_FEW_LEVELS if data.layout == "grid" else _MOST_LEVELS) if few is None else few
        self.levels = Levels([data.supports[i] for i in self.finite], few=few, bins=bins) if self.finite else None
        self.rest = _only(data, self.others) if self.others else None
        self.width = max(self.levels.width if self.levels else 0, 2 if self.rest else 0)
        channels = len(self.finite) + (self.rest.relaxed.shape[0] if self.rest else 0)
        self.space = Space(data.layout, (channels, *data.shape[1:]), (Support("real"),) * channels)
        resolved = 2 * math.log(_SIGMAS_PER_GAP / self.levels.gap) if self.levels else -math.inf
        self.log_snr = max(resolved, _REAL_LOG_SNR if self.rest else 0.0)
        sigma = 1 / math.sqrt(1 + math.exp(self.log_snr))
        self.detail = (self.space.dims - len(self.finite) * math.prod(data.shape[1:])) * (0.5 * (_LOG_2PI + 1) + math.log(sigma))
        self.dequantizes = self.rest is not None and (self.rest.discrete or bool(self.rest.flags))

    def forward(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """x [B, *shape] -> e [draws * B, ...] and the nats of the relaxation [draws * B]."""
        values, nats = [], torch.zeros(noise.draws * len(x), dtype=torch.float64, device=x.device)
        if self.levels is not None:
            values.append(noise.repeat(self.levels.value(self.levels.code(x[:, self.finite]))))
        if self.rest is not None:
            relaxed = self.rest.relax((x[:, self.others] if self.finite else x).to(self.rest.dtype), noise=noise)
            again = noise.draws // relaxed.draws  # what is not random is relaxed once
            values.append(relaxed.value.repeat(again, *[1] * (relaxed.value.ndim - 1)) if again > 1 else relaxed.value)
            nats = nats + relaxed.nats.repeat(again)
        return (torch.cat(values, 1) if self.finite else values[0]).to(self.zero), nats

    def start(self, n: int) -> Tensor:
        """Standard normal noise in place of n examples."""
        return torch.randn(n, *self.space.shape, device=self.zero.device, dtype=self.zero.dtype)

    def posterior(self, params: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Posterior:
        """Of all entries, from params [B, C, width, ...] and z [B, C, ...]; alpha and sigma broadcast over z."""
        count = len(self.finite)
        rest = gaussian_posterior(params[:, count:], z[:, count:], alpha, sigma) if self.rest else None
        if self.levels is None:
            return rest or gaussian_posterior(params, z, alpha, sigma)
        levels = self.levels.posterior(params[:, :count], z[:, :count], alpha, sigma)
        return levels.join(rest) if rest else levels

    def log_prob(self, posterior: Posterior, e: Tensor, x: Tensor) -> Tensor:
        """log p(x | z) of each example, nats [B]."""
        return self.entry_log_prob(posterior, e, x).flatten(1).sum(1)

    def entry_log_prob(self, posterior: Posterior, e: Tensor, x: Tensor) -> Tensor:
        """log p(x | z) of each entry, nats [B, C, ...]: masses of levels, and densities of e for the rest."""
        count, nats = len(self.finite), []
        if self.levels is not None:
            nats.append(self.levels.log_prob(posterior.entries(slice(count)), self.levels.code(x[:, self.finite])))
        if self.rest is not None:
            nats.append(_log_normal(e[:, count:], posterior.entries(slice(count, None))))
        return torch.cat(nats, 1).double()

    def noised(self, e: Tensor, deviation: float, noise: Noise) -> tuple[Tensor, Tensor]:
        """e with noise on its levels alone, and -log q of that, nats [B]."""
        count = len(self.finite)
        eps = noise.normal(*e.shape[1:])
        eps[:, count:] = 0.0
        nats = 0.5 * (eps[:, :count].square() + _LOG_2PI) + math.log(deviation)
        return e + deviation * eps.to(e), nats.flatten(1).sum(1)

    def log_decoded(self, x: Tensor, e: Tensor, deviation: float) -> Tensor:
        """log p(x | e) of the entries of finitely many values, by their noise alone; nats [B]."""
        if self.levels is None:
            return torch.zeros(len(x), dtype=torch.float64, device=x.device)
        log_mass = self.levels.decoded(e[:, : len(self.finite)], deviation)
        return self.levels.log_prob(log_mass, self.levels.code(x[:, self.finite])).double().flatten(1).sum(1)

    def settle(self, e: Tensor, deviation: float) -> Tensor:
        """Examples from e that has noise on its levels: those by p(x | e), the rest as it is; [B, *shape] in data units."""
        settled = Posterior(e, torch.zeros_like(e))
        return self.draw(settled if self.levels is None else self.levels.decoded(e[:, : len(self.finite)], deviation).over(settled))

    def nearest(self, e: Tensor) -> Tensor:
        """Examples whose lifted entries are the nearest to e, [B, *shape] in data units."""
        return self.draw(Posterior(e, torch.zeros_like(e)))

    def entries_of(self, known: Tensor) -> Tensor:
        """Which lifted entries belong to data entries that are marked, bool [B, *shape] -> [B, *lifted shape]."""
        marks = [known[:, self.finite]]
        if self.rest is not None:
            theirs = known[:, self.others]
            numbers, flags, nominals = self.rest.numbers, self.rest.flags, self.rest.nominals
            marks += [theirs[:, numbers], theirs[:, flags]]
            marks += [theirs[:, [i] * self.rest.supports[i].codes] for i in nominals]
        return torch.cat(marks, 1)

    def draw(self, posterior: Posterior) -> Tensor:
        """Examples from the posterior, [B, *shape] in data units."""
        count = len(self.finite)
        x = torch.empty(len(posterior.mean), *self.data.shape, dtype=self.data.dtype, device=posterior.mean.device)
        if self.levels is not None:
            x[:, self.finite] = self.levels.cell(self.levels.draw(posterior.entries(slice(count)))).to(x.dtype)
        if self.rest is not None:
            part = posterior.entries(slice(count, None))
            x[:, self.others] = self.rest.snap(part.mean + part.var.sqrt() * torch.randn_like(part.mean)).to(x.dtype)
        return x


def _log_normal(e: Tensor, posterior: Posterior) -> Tensor:
    return -0.5 * ((e - posterior.mean).square() / posterior.var + posterior.var.log() + _LOG_2PI)


def _only(data: Space, which: list[int]) -> Space:
    """The space of some channels or columns."""
    return replace(data, shape=(len(which), *data.shape[1:]), supports=tuple(data.supports[i] for i in which))


def _points(s: Support) -> list[float]:
    """Where the states of a support lie: an ordinal's in the middle of its cells, a nominal's evenly with variance one."""
    states = s.levels + s.missing
    center, scale = (s.center - 0.5, s.scale) if s.numeric else ((states - 1) / 2, math.sqrt((states**2 - 1) / 12) or 1.0)
    return [(k - center) / scale for k in range(states)]


def _per_entry(values: Tensor, like: Tensor) -> Tensor:
    """[C] -> [C, 1...], to broadcast over [B, C, ...]."""
    return values.view(-1, *[1] * (like.ndim - 2))
