r"""Variational autoencoder: a decoder p(x|z) of a normal latent z, and an encoder q(z|x) that inverts it.

    p(x) = int N(z; 0, I) p(x | z) dz                 q(z | x) = N(z; mu(x), diag sigma(x)^2)

    log p(x) >= E log (1/K) sum_k w_k,                w_k = p(x | z_k) N(z_k) / q(z_k | x),  z_k ~ q(z | x)

K = 1 is the evidence lower bound (ELBO); more draws only tighten it. Entries are independent given z
and have exact masses (`likely.heads`), so the bound is on the mass of the data as stored and nothing
is dequantized. Symbols after the end of a sequence are left out of the product, which gives the
marginal of a prefix; in a `variable` space p(length | z) is one more factor.

Of an image z may be a grid, too, whose sides are halved so often: each of its places then speaks of a
neighbourhood, and leaves what joins them to another model, of the latents (`stacked`). `beta` below 1
lets z keep more for that one to model.

Training maximises the same bound with a few draws. More of them pull a plain gradient of the encoder
below its noise; the doubly reparameterised one keeps its signal:

    decoder:  sum_k v_k grad log p(x, z_k)            encoder:  sum_k v_k^2 (d log w_k / d z_k) grad z_k

with v_k = w_k / sum_j w_j held fixed, and q's parameters held fixed inside log w_k.

References:
    | Auto-encoding variational Bayes (Kingma and Welling, 2014) | https://arxiv.org/abs/1312.6114
    | Importance weighted autoencoders (Burda et al., 2016) | https://arxiv.org/abs/1509.00519
    | beta-VAE (Higgins et al., 2017) | https://openreview.net/forum?id=Sy2fzU9gl
    | Doubly reparameterized gradient estimators for Monte Carlo objectives (Tucker et al., 2019) | https://arxiv.org/abs/1810.04152
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torch.nn import functional as F

from likely.abilities import Amortised, Likelihood
from likely.errors import UsageError
from likely.heads import Heads
from likely.heads.base import at_least_float32
from likely.logprob import LogProb
from likely.model import Model, Recipe, evaluating, expand_given
from likely.nets import net as build_net
from likely.noise import Noise, log_mean_exp
from likely.space import Relaxed, Space

__all__ = ["VAE"]

_LOG_SIGMA = (-7.0, 3.0)  # of the posterior: keeps exp finite, far beyond what training reaches
_CHANNELS = 4  # of a grid of latents
_AT_ONCE = 2**23  # numbers that the decoder may put out in one call
_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class VAE(Model, Likelihood, Amortised):
    """An encoder, a decoder, and a head for each entry.

    Args:
        latent: dimensions of z; its channels, 4 by default, where it is a grid.
        halvings: of a grid's sides, to those of a grid of latents; 0 for a vector.
        beta: weight of the divergence from the prior in training; the bound that is told is the true one.
        draws: importance draws in training; 1 for sequences if not given.
        net: another encoder and decoder net than the layout's default.
        width, depth, dropout: of both nets, instead of the size's.
        components: of mixtures of logistics or normals, for numbers.
        categorical_up_to: ordinals of at most so many levels have a free probability per level.
    """

    summary = "a decoder of normal latents and an encoder, by an importance-weighted bound"
    layouts = frozenset({"grid", "columns", "sequence"})
    recipe = Recipe(lr=1.5e-3, weight_decay=0.01, ema=0.999, batch=64)
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"latent": 4, "draws": 2, "dropout": 0.0, "components": 3},
        "small": {"latent": 32, "draws": 4, "dropout": 0.4, "components": 1},
        "base": {"latent": 128, "draws": 4, "dropout": 0.1, "components": 3},
    }

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        latent: int | None = None,
        halvings: int = 0,
        beta: float = 1.0,
        draws: int | None = None,
        net: str | None = None,
        width: int | None = None,
        depth: int | None = None,
        dropout: float | None = None,
        components: int | None = None,
        categorical_up_to: int = 8,
    ) -> None:
        super().__init__(space, given=given, size=size)
        draws = draws or (1 if space.layout == "sequence" else None)  # decoding a window of text costs more than a second draw gains
        if halvings and space.layout != "grid":
            raise UsageError(f"Latents of {space.layout} data are no grid.", "Leave out halvings.")
        latent = latent or (_CHANNELS if halvings else None)
        chosen = self.options(size, latent=latent, draws=draws, dropout=dropout, components=components)
        self.dims, self.draws, self.beta = chosen["latent"], chosen["draws"], beta
        self.sides = tuple(-(-side // 2**halvings) for side in space.shape[1:]) if halvings else ()
        self.heads = Heads(space, components=chosen["components"], categorical_up_to=categorical_up_to)
        how: dict[str, Any] = {"word": net, "given": given, "width": width, "depth": depth, "dropout": chosen["dropout"]}
        how |= {"word": net or "conv", "halvings": halvings} if halvings else {}
        self.encoder = build_net(space, "encoder", size, out=2 * self.dims, **how)
        self.decoder = build_net(space, "decoder", size, inputs=self.dims, out=self.heads.width, **how)
        self.length = nn.Linear(self.dims, space.shape[0] + 1) if space.variable else None
        # as many draws as decode about 2**18 numbers per example: 256 of a small image, 20 of MNIST's, 8 of a window of text
        self.bound_draws = min(256, max(8, min(2**18 // self.heads.width, 2**14) // space.dims))  # type: ignore[misc]

    @property
    def latent(self) -> Space:
        return Space.grid(self.dims, *self.sides) if self.sides else Space.reals(self.dims)

    # -- loss -----------------------------------------------------------------------------------

    def forward(self, x: Tensor, given: Tensor | None = None, *, turn: str = "") -> Tensor:
        """Minus the bound of `draws` samples, in nats, [batch]; its gradients are the doubly reparameterised ones."""
        noise = Noise(x, self.draws)
        mean, log_sigma = map(noise.repeat, self._posterior(x, given))
        z = mean + log_sigma.exp() * noise.normal(*self.latent.shape).to(mean)
        log_ratio = _log_normal(z) - _log_normal(z, mean.detach(), log_sigma.detach())
        log_w = self._log_given_z(noise.repeat(x), z, _repeat(given, noise)) + self.beta * _summed(log_ratio)
        v = log_w.detach().view(self.draws, -1).softmax(0)
        if z.requires_grad:  # the second factor v_k of what flows on into the encoder
            shares = v.view(-1, *[1] * (z.ndim - 1))
            z.register_hook(lambda gradient: gradient * shares.to(gradient.dtype))
        with_gradient = (v * log_w.view(self.draws, -1)).sum(0)
        return -(log_mean_exp(log_w.detach(), self.draws) + with_gradient - with_gradient.detach())

    def _posterior(self, x: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of q(z | x), [batch, *latent shape] each."""
        mean, log_sigma = at_least_float32(self.encoder(x, given)).chunk(2, 1)
        return mean, log_sigma.clamp(*_LOG_SIGMA)

    def _log_given_z(self, x: Tensor, z: Tensor, given: Tensor | None) -> Tensor:
        """log p(x | z), [batch], float64."""
        nats = self.heads.log_mass(self.decoder(z, given), x).double()
        if self.space.layout != "sequence":
            return nats.flatten(1).sum(1)
        present = x >= 0
        nats = nats.masked_fill(~present, 0.0).sum(1)
        if self.length is None:
            return nats
        return nats - F.cross_entropy(at_least_float32(self.length(z)), present.sum(1), reduction="none").double()

    # -- sample ---------------------------------------------------------------------------------

    def sample(self, n: int, given: Tensor | None = None) -> Tensor:
        """Ancestral: z from the prior, each entry of x from p(x | z)."""
        z = torch.randn(n, *self.latent.shape, device=next(self.parameters()).device)
        return self.decode(z, expand_given(given, n))

    @torch.no_grad()
    def decode(self, z: Tensor, given: Tensor | None = None) -> Tensor:
        """One draw from p(x | z) for each z."""
        with evaluating(self):
            return torch.cat([self._decode(z[rows], _rows(given, rows)) for rows in self._chunks(len(z))])

    def _decode(self, z: Tensor, given: Tensor | None) -> Tensor:
        x = self.heads.sample(self.decoder(z, given))
        if self.length is None:
            return x
        length = torch.distributions.Categorical(logits=self.length(z).float()).sample()
        return torch.where(torch.arange(x.shape[1], device=x.device) < length[:, None], x, -1)

    # -- likelihood -----------------------------------------------------------------------------

    def _log_prob(self, x: Tensor, given: Tensor | None, noise: Noise) -> LogProb:
        z, nats = self._encode(x, given, noise)
        log_w = nats + _summed(_log_normal(z))
        return LogProb(log_mean_exp(log_w, noise.draws), "lower bound", how=f"L_{noise.draws}" if noise.draws > 1 else "ELBO")

    def encode(self, x: Tensor, given: Tensor | None = None, draws: int = 1, noise: Noise | None = None) -> Relaxed:
        """z ~ q(z | x), and log p(x | z) - log q(z | x)."""
        noise = noise or Noise(x, draws)
        return Relaxed(*self._encode(x, given, noise), exact=False, draws=noise.draws, how="z ~ q(z | x)")

    def posterior(self, x: Tensor, given: Tensor | None = None) -> Distribution:
        """q(z | x)."""
        with evaluating(self):
            mean, log_sigma = self._posterior(x, given)
        return Independent(Normal(mean, log_sigma.exp()), len(self.latent.shape))

    def _encode(self, x: Tensor, given: Tensor | None, noise: Noise) -> tuple[Tensor, Tensor]:
        with evaluating(self):
            mean, log_sigma = map(noise.repeat, self._posterior(x, given))
            z = mean + log_sigma.exp() * noise.normal(*self.latent.shape).to(mean)
            xs, givens = noise.repeat(x), _repeat(given, noise)
            parts = [self._log_given_z(xs[rows], z[rows], _rows(givens, rows)) for rows in self._chunks(len(z))]
        return z, torch.cat(parts) - _summed(_log_normal(z, mean, log_sigma))

    def _chunks(self, n: int) -> list[slice]:
        """Rows to decode at once, so that memory stays bounded; one empty slice for no rows."""
        size = max(1, _AT_ONCE // (self.space.dims * self.heads.width))
        return [slice(i, i + size) for i in range(0, max(n, 1), size)]


def _log_normal(z: Tensor, mean: Tensor | None = None, log_sigma: Tensor | None = None) -> Tensor:
    """log N(z; mean, sigma^2), elementwise; the standard normal without parameters."""
    if mean is None or log_sigma is None:
        return -0.5 * z.square() - _LOG_SQRT_2PI
    return _log_normal((z - mean) * torch.exp(-log_sigma)) - log_sigma


def _summed(nats: Tensor) -> Tensor:
    return nats.double().flatten(1).sum(1)


def _repeat(given: Tensor | None, noise: Noise) -> Tensor | None:
    return None if given is None else noise.repeat(given)


def _rows(given: Tensor | None, rows: slice) -> Tensor | None:
    return None if given is None else given[rows]
