r"""Variational autoencoder: a decoder p(x|z) of a normal latent z, and an encoder q(z|x) that inverts it.

    p(x) = int N(z; 0, I) p(x | z) dz                 q(z | x) = N(z; mu(x), diag sigma(x)^2)

    log p(x) >= E log (1/K) sum_k w_k,                w_k = p(x | z_k) N(z_k) / q(z_k | x),  z_k ~ q(z | x)

K = 1 is the evidence lower bound; more draws only tighten it. The decoder's entries are independent
given z and have exact masses (`likely.heads`), so the bound is on the mass of the data as stored and
nothing is dequantized. A sequence's symbols after its end are left out of the product: the marginal
of the prefix; where the space is `variable`, p(length | z) is a factor.

Training maximises the same bound with `draws` samples. Its gradient in the encoder is the doubly
reparameterised one, which keeps its signal as draws grow:

    decoder:  sum_k v_k grad log p(x, z_k)            encoder:  sum_k v_k^2 (d log w_k / d z_k) grad z_k

with v_k = w_k / sum_j w_j held fixed, and q's parameters held fixed inside log w_k.

References:
    | Auto-encoding variational Bayes (Kingma and Welling, 2014) | https://arxiv.org/abs/1312.6114
    | Importance weighted autoencoders (Burda et al., 2016) | https://arxiv.org/abs/1509.00519
    | Doubly reparameterized gradient estimators for Monte Carlo objectives (Tucker et al., 2019) | https://arxiv.org/abs/1810.04152
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from likely.heads import Heads
from likely.logprob import LogProb
from likely.model import Latent, Likelihood, Model, Recipe, expand_given
from likely.nets import net
from likely.noise import Noise, log_mean_exp
from likely.space import Relaxed, Space

__all__ = ["VAE"]

_LOG_SIGMA = (-7.0, 3.0)  # of the posterior; far wider than any that training reaches
_ROWS = 8192  # decoded at once
_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class VAE(Model, Likelihood, Latent):
    """A variational autoencoder with importance-weighted bounds.

    Args:
        latent: dimensions of z.
        draws: importance draws in training.
        dropout: in both nets.
        components: of the mixtures of the decoder's numbers.
        categorical_up_to: ordinals of at most so many levels are categorical.
        net: word of the encoder and decoder net.
    """

    summary = "variational autoencoder, importance-weighted bound"
    layouts = frozenset({"grid", "columns", "sequence"})
    recipe = Recipe(lr=2e-3, weight_decay=0.01, ema=0.999, batch=64)
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"latent": 4, "draws": 2, "dropout": 0.0, "components": 3},
        "small": {"latent": 32, "draws": 4, "dropout": 0.1, "components": 5},
        "base": {"latent": 128, "draws": 4, "dropout": 0.1, "components": 10},
    }
    bound_draws = 256

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        latent: int | None = None,
        draws: int | None = None,
        dropout: float | None = None,
        components: int | None = None,
        categorical_up_to: int = 64,
        net_word: str | None = None,
        width: int | None = None,
        depth: int | None = None,
    ) -> None:
        super().__init__(space, given=given, size=size)
        chosen = self.options(size, latent=latent, draws=draws, dropout=dropout, components=components)
        self.dims, self.draws = chosen["latent"], chosen["draws"]
        self.heads = Heads(space, components=chosen["components"], categorical_up_to=categorical_up_to)
        how = {k: v for k, v in {"width": width, "depth": depth}.items() if v}
        how |= {"word": net_word, "given": given, "dropout": chosen["dropout"]}
        self.encoder = net(space, "encoder", size, out=2 * self.dims, **how)
        self.decoder = net(space, "decoder", size, inputs=self.dims, out=self.heads.width, **how)
        self.length = nn.Linear(self.dims, space.shape[0] + 1) if space.variable else None

    @property
    def latent(self) -> Space:
        return Space.reals(self.dims)

    # -- loss -----------------------------------------------------------------------------------

    def forward(self, x: Tensor, given: Tensor | None = None, *, turn: str = "") -> Tensor:
        """Minus the bound of `draws` samples, in nats, [batch]; its gradients are the doubly reparameterised ones."""
        noise = Noise(x, self.draws)
        mean, log_sigma = map(noise.repeat, self._posterior(x, given))
        z = mean + log_sigma.exp() * noise.normal(self.dims).float()
        log_ratio = _log_normal(z) - _log_normal(z, mean.detach(), log_sigma.detach())
        log_p = self._log_given_z(noise.repeat(x), z, None if given is None else noise.repeat(given))
        log_w = log_p + log_ratio.double().sum(1)
        v = log_w.detach().view(self.draws, -1).softmax(0)
        if z.requires_grad:
            z.register_hook(lambda gradient: gradient * v.view(-1, 1).to(gradient.dtype))
        gradient = (v * log_w.view(self.draws, -1)).sum(0)
        return -(log_mean_exp(log_w.detach(), self.draws) + gradient - gradient.detach())

    def _posterior(self, x: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of q(z | x), [batch, dims]."""
        mean, log_sigma = self.encoder(x, given).float().chunk(2, 1)
        return mean, log_sigma.clamp(*_LOG_SIGMA)

    def _log_given_z(self, x: Tensor, z: Tensor, given: Tensor | None) -> Tensor:
        """log p(x | z), float64."""
        nats = self.heads.log_mass(self.decoder(z, given), x)
        if self.space.layout != "sequence":
            return nats.double().flatten(1).sum(1)
        nats = nats.masked_fill(x < 0, 0.0).double().sum(1)
        if self.length is None:
            return nats
        return nats - F.cross_entropy(self.length(z).float(), (x >= 0).sum(1), reduction="none").double()

    # -- sample ---------------------------------------------------------------------------------

    def sample(self, n: int, given: Tensor | None = None, **how: Any) -> Tensor:
        """Ancestral: z from the prior, each entry of x from p(x | z)."""
        given, z = expand_given(given, n), torch.randn(n, self.dims, device=next(self.parameters()).device)
        return self.decode(z, given)

    @torch.no_grad()
    def decode(self, z: Tensor, given: Tensor | None = None) -> Tensor:
        """One draw from p(x | z) for each z."""
        return torch.cat([self._decode(z[rows], None if given is None else given[rows]) for rows in _chunks(len(z))])

    def _decode(self, z: Tensor, given: Tensor | None) -> Tensor:
        x = self.heads.sample(self.decoder(z, given))
        if self.length is None:
            return x
        length = torch.distributions.Categorical(logits=self.length(z).float()).sample()
        return torch.where(torch.arange(x.shape[1], device=x.device) < length[:, None], x, -1)

    # -- likelihood -----------------------------------------------------------------------------

    def _log_prob(self, x: Tensor, given: Tensor | None, noise: Noise) -> LogProb:
        z, nats = self._encode(x, given, noise)
        log_w = nats + _log_normal(z).double().sum(1)
        return LogProb(log_mean_exp(log_w, noise.draws), "lower bound", how=f"L_{noise.draws}" if noise.draws > 1 else "ELBO")

    def encode(self, x: Tensor, given: Tensor | None = None, draws: int = 1) -> Relaxed:
        """z ~ q(z | x), and log p(x | z) - log q(z | x)."""
        return Relaxed(*self._encode(x, given, Noise(x, draws)), exact=False, draws=draws)

    def _encode(self, x: Tensor, given: Tensor | None, noise: Noise) -> tuple[Tensor, Tensor]:
        mean, log_sigma = map(noise.repeat, self._posterior(x, given))
        z = mean + log_sigma.exp() * noise.normal(self.dims).float()
        xs, givens = noise.repeat(x), None if given is None else noise.repeat(given)
        parts = [self._log_given_z(xs[rows], z[rows], None if givens is None else givens[rows]) for rows in _chunks(len(z))]
        return z, torch.cat(parts) - _log_normal(z, mean, log_sigma).double().sum(1)


def _log_normal(z: Tensor, mean: Tensor | float = 0.0, log_sigma: Tensor | float = 0.0) -> Tensor:
    """log N(z; mean, sigma^2), elementwise."""
    log_sigma = torch.as_tensor(log_sigma, device=z.device)
    return -0.5 * ((z - mean) / log_sigma.exp()).square() - log_sigma - _LOG_SQRT_2PI


def _chunks(n: int) -> list[slice]:
    """Rows to decode at once; one empty slice for no rows."""
    return [slice(i, i + _ROWS) for i in range(0, max(n, 1), _ROWS)]
