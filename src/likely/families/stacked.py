r"""One model over the latents of another: latent diffusion, a VAE with a learnt prior, a flow whose noise is a mixture of normals.

The first model has latents (`Latent`): draws of z and nats such that log p(x) >= E[log p(z) + nats]. The second is fitted to
z' = (z - center) / scale of the training examples, so that

    p(x) = int p2(z') p1(x | z) dz,        log p(x) >= E [log p2(z') - sum log scale + nats]

It trains in phases. The first is fitted to the data and then stands still; its latents are drawn afresh several times for each
example; the second is fitted to those. Where examples are conditioned on something, both are told, p(z | given) and p(x | z, given): a VAE
need not keep in z what its decoder is told, and a z that keeps little of the condition would leave the second nothing to go by.

The likelihood, with draws z_k, k = 1..K, and w_k = exp(nats_k) p2(z'_k) / prod scale:

    the second exact      log (1/K) sum_k w_k        an importance-weighted bound; with an invertible first the change of variables
    the second a bound    log (1/K) sum_k w~_k + [log p2(z'_J) - log N(z'_J)],        w~_k = exp(nats_k) N(z'_k) / prod scale

The mean of exponentials of a noisy bound may lie above p(x), so there one draw J is chosen in proportion to w~_k, weights under a standard
normal in place of p2. That is a lower bound for any p2: with Q(z_1..z_K, J) = prod q(z_k) w~_J / sum w~ it is the evidence lower bound
E_Q log [p(x, z_J) / K prod_{k != J} q(z_k)] / Q. The second is asked once, however many draws the first makes. With p2 = N it is the
importance-weighted bound.

References:
    | Importance weighted autoencoders (Burda et al., 2016) | https://arxiv.org/abs/1509.00519
    | Filtering variational objectives, and auxiliary bounds of resampling (Maddison et al., 2017) | https://arxiv.org/abs/1705.09279
    | Variational lossy autoencoder, a learnt prior (Chen et al., 2017) | https://arxiv.org/abs/1611.02731
    | Diagnosing and enhancing VAE models, two stages (Dai and Wipf, 2019) | https://arxiv.org/abs/1903.05789
    | High-resolution image synthesis with latent diffusion models (Rombach et al., 2022) | https://arxiv.org/abs/2112.10752
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from likely.abilities import Amortised, ClosedForm, Combined, Latent, Likelihood, Phase, Varied
from likely.dataset import Data, Split
from likely.errors import UsageError
from likely.logprob import Kind, LogProb, compose
from likely.model import Model, expand_given
from likely.noise import Noise, log_mean_exp
from likely.space import Relaxed, Space

__all__ = ["Stacked", "StackedLatent", "StackedLikelihood", "StackedVaried"]

_ROWS = 256  # examples that are encoded at once
_LATENTS = 2**24  # numbers that latents of the training split may take up in all, by draws of each example
_DRAWS = 64  # most draws of an example
_CLOSED = 2**14  # latents that a closed form is fitted to, unless there are more examples than that
_EVERY = 16  # draws of the first for each that a second with a bound is asked about
_KINDS_THAT_AVERAGE = ("exact", "numerical", "estimate")  # exp of them is p, so that they can be averaged over draws


class Stacked(Model, Combined):
    """A second model over the latents of a first; without a likelihood where the second has none.

    Args:
        members: the first, which has latents, and the second, of those latents.
        share: of the budget that the first gets; equal shares for all stages by default.
    """

    summary = "one model over the latents of another, such as latent diffusion: `vae > diffusion`"
    layouts: ClassVar[frozenset[str]] = frozenset({"grid", "columns", "sequence"})
    hands_on = True
    center: Tensor
    scale: Tensor

    def __init__(
        self, space: Space, *, members: Sequence[Model], given: Space | None = None, size: str = "small", share: float | None = None
    ) -> None:
        super().__init__(space, given=given, size=size)
        if share is not None and not 0 < share < 1:
            raise UsageError(f"The first model cannot have {share} of the budget.", "Give a share between 0 and 1.")
        self.members, self.share = nn.ModuleList(members), share
        self.turns = tuple(f"members.1.{turn}" if turn else "" for turn in self.second.turns)  # type: ignore[misc]
        places = (len(self.first.latent.supports), *[1] * (len(self.first.latent.shape) - 1))
        self.register_buffer("center", torch.zeros(places, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(places, dtype=torch.float64))

    @classmethod
    def made_of(cls, members: Sequence[type[Model]]) -> type[Model]:
        if len(members) != 2:
            raise UsageError(f"A stack has two parts, not {len(members)}.", "Write stacked(vae, diffusion), or vae > diffusion.")
        if not issubclass(members[1], Likelihood):
            return cls
        if not issubclass(members[1], Latent):
            return StackedLikelihood
        return StackedVaried if issubclass(members[1], Varied) else StackedLatent

    @classmethod
    def place(cls, space: Space, given: Space | None, before: Sequence[Model]) -> tuple[Space, Space | None]:
        if not before:
            return space, given
        if not isinstance(first := before[0], Latent):
            raise UsageError(f"{first.called} has no latents that another could model.", "vae and flow have.")
        return first.latent, given

    @property
    def first(self) -> Any:
        return self.members[0]

    @property
    def second(self) -> Any:
        return self.members[1]

    # -- fitting --------------------------------------------------------------------------------

    def phases(self, data: Data) -> Iterator[Phase]:
        """The first on the data; then, when it stands still, the second on its latents."""
        yield Phase(0, data, self._share())
        yield Phase(1, self._latents(data), float(not isinstance(self.second, ClosedForm)))

    def _share(self) -> float:
        if isinstance(self.first, ClosedForm) or isinstance(self.second, ClosedForm):
            return float(not isinstance(self.first, ClosedForm))
        return self.share or 1 / _stages(self)

    @torch.no_grad()
    def _latents(self, data: Data) -> Data:
        """Latents as data; their centers and scales are learnt here from those of the training split."""
        draws = max(1, min(_DRAWS, self._most() // max(1, len(data.train.apart()))))
        train, valid = self._drawn(data.train, draws), self._drawn(data.valid, 1)
        if not (space := self.first.latent).discrete:
            known = space.standardised(train.x).affine(train.x)
            self.center, self.scale = (value.to(self.center.device) for value in known)
        train, valid = (Split(self._standard(split.x.to(self.center.device)).cpu(), split.given) for split in (train, valid))
        nothing = Split(*train.rows(slice(0, 0)))  # nobody looks at the test split
        return Data(space, train, valid, nothing, data.given, f"latents of {data.name}")

    def _most(self) -> int:
        return _CLOSED if isinstance(self.second, ClosedForm) else _LATENTS // self.first.latent.dims

    def _drawn(self, split: Split, draws: int) -> Split:
        """Latents of a split, draw-major."""
        whole = split.apart()
        device = self.center.device
        batches = ((x.to(device), given if given is None else given.to(device)) for x, given in whole.batches(_ROWS))
        parts = [self._draw(x, given, draws).cpu() for x, given in batches]
        given = None if whole.given is None else whole.given.repeat(draws, *[1] * (whole.given.ndim - 1))
        return Split(torch.cat(parts, 1).flatten(0, 1), given)

    def _draw(self, x: Tensor, given: Tensor | None, draws: int) -> Tensor:
        """z [draws, batch, *latent shape]"""
        if isinstance(self.first, Amortised):
            return self.first.posterior(x, given).sample((draws,))
        return torch.stack([self.first.encode(x, given).value for _ in range(draws)])

    def _standard(self, z: Tensor) -> Tensor:
        return z if self.first.latent.discrete else ((z - self.center) / self.scale).to(z.dtype)

    def _log_scale(self) -> float:
        """log det dz/dz', nats."""
        latent = self.first.latent
        return self.scale.log().sum().item() * (latent.dims // len(latent.supports))

    # -- use ------------------------------------------------------------------------------------

    def forward(self, x: Tensor, given: Tensor | None = None, *, turn: str = "") -> Tensor:
        """The second's loss at a draw of the latents, less the first's nats: minus the bound, where the second has a likelihood."""
        lifted = self._encoded(x, given, Noise(x))
        return self.second(lifted.value, given, turn=turn.removeprefix("members.1.")) - lifted.nats

    def _encoded(self, x: Tensor, given: Tensor | None, noise: Noise) -> Relaxed:
        """z' [draws * batch, *latent shape], and log p(x) >= E[log p2(z') + nats]."""
        lifted = self.first.encode(x, given, noise.draws, noise)
        return replace(lifted, value=self._standard(lifted.value), nats=lifted.nats - self._log_scale())

    def sample(self, n: int, given: Tensor | None = None, **how: Any) -> Tensor:
        """n examples: latents of the second, decoded by the first; `how` are options of the second's sampler."""
        return self._decoded(self.second.sample(n, given, **how), given)

    def _decoded(self, z: Tensor, given: Tensor | None) -> Tensor:
        z = z if self.first.latent.discrete else (z * self.scale + self.center).to(z.dtype)
        return self.first.decode(z, expand_given(given, len(z)))


class StackedLikelihood(Stacked, Likelihood):
    """With a likelihood, as both parts have one."""

    @property
    def bound_draws(self) -> int:  # type: ignore[override]
        return self.first.bound_draws if isinstance(self.first, Likelihood) else 1

    @property
    def bound_sampler(self) -> dict[str, Any]:  # type: ignore[override]
        return self.second.bound_sampler

    def _log_prob(self, x: Tensor, given: Tensor | None, noise: Noise) -> LogProb:
        lifted = self._encoded(x, given, noise)
        rows = torch.arange(lifted.draws * len(x), device=x.device)
        averages = self._prior(lifted.value[:1], given, noise, rows[:1]).kind in _KINDS_THAT_AVERAGE
        whole = lifted.log_prob(self._prior(lifted.value, given, noise, rows)) if averages else self._resampled(lifted, given, noise)
        return replace(whole, kind=compose(whole.kind, self._kind_of_first(x, given)))

    def _kind_of_first(self, x: Tensor, given: Tensor | None) -> Kind:
        """Whether its nats are exact, or solved or estimated, as its own likelihood is."""
        if not isinstance(self.first, Likelihood):
            return "exact"
        return self.first.log_prob(x[:1], given if given is None else given[:1]).kind

    def _prior(self, z: Tensor, given: Tensor | None, noise: Noise, rows: Tensor) -> LogProb:
        """log p2 of latents that were drawn for these rows."""
        told = None if given is None else expand_given(given, noise.batch)[rows % noise.batch]  # type: ignore[index]
        density = self.second._log_prob(z, told, noise.of(rows))
        return replace(density, how=f"p(z): {density.how}" if density.how else "")

    def _resampled(self, lifted: Relaxed, given: Tensor | None, noise: Noise) -> LogProb:
        """The bound by draws that are chosen as if p2 were a standard normal, one of every few; the bounds of several are averaged."""
        normal, count = _log_normal(lifted.value), -(-lifted.draws // _EVERY)
        log_w = (lifted.nats + normal).view(lifted.draws, -1)
        # noise beyond that of the draws themselves, for the second might have drawn the same
        fresh = torch.arange(count * noise.batch, device=log_w.device) + lifted.draws * noise.batch
        u = noise.of(fresh).uniform().view(count, 1, -1)
        chosen = (log_w.softmax(0).cumsum(0) < u).sum(1).clamp_max(lifted.draws - 1)
        rows = (chosen * noise.batch + torch.arange(noise.batch, device=log_w.device)).flatten()
        density = self._prior(lifted.value[rows], given, noise, fresh + len(fresh))
        nats = log_mean_exp(log_w.flatten(), lifted.draws) + (density.nats - normal[rows]).view(count, -1).mean(0)
        error = None if density.stderr is None else density.stderr.view(count, -1).square().sum(0).sqrt() / count
        how = "; ".join(filter(None, (density.how, lifted.told)))
        return LogProb(nats, compose("lower bound", density.kind), stderr=error, how=how)


class StackedLatent(StackedLikelihood, Latent):
    """With the second's latents as its own."""

    @property
    def latent(self) -> Space:
        return self.second.latent

    def encode(self, x: Tensor, given: Tensor | None = None, draws: int = 1, noise: Noise | None = None) -> Relaxed:
        noise = noise or Noise(x, draws)
        lifted = self._encoded(x, given, noise)
        rows = torch.arange(lifted.draws * len(x), device=x.device)
        told = None if given is None else given[rows % len(x)]
        deep = self.second.encode(lifted.value, told, 1, noise.of(rows))
        how = "; ".join(part.how for part in (lifted, deep) if not part.exact)
        return Relaxed(deep.value, lifted.nats + deep.nats, lifted.exact and deep.exact, lifted.draws, how)

    def decode(self, z: Tensor, given: Tensor | None = None) -> Tensor:
        return self._decoded(self.second.decode(z, given), given)


class StackedVaried(StackedLatent, Varied):
    """With latents that the second varies."""

    @torch.no_grad()
    def vary(self, x: Tensor, given: Tensor | None = None, *, strength: float = 0.5, **how: Any) -> Tensor:
        """Others like x [n, *shape]: the first decodes what the second makes of its latents, `how` being options of the second's."""
        self.space.check(x)
        given = expand_given(given, len(x))
        return self._decoded(self.second.vary(self._encoded(x, given, Noise(x)).value, given, strength=strength, **how), given)


def _log_normal(z: Tensor) -> Tensor:
    """Standard normal log-density of latents [rows, ...], nats [rows], float64."""
    return -0.5 * (z.double().square() + math.log(2 * math.pi)).flatten(1).sum(1)


def _stages(model: Model) -> int:
    return sum(map(_stages, model.members)) if isinstance(model, Stacked) else 1  # type: ignore[arg-type]
