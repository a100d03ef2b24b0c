r"""Generative adversarial network: a generator that a critic cannot tell from the data, pair by pair.

On the relaxed space u (`space.relax`), with f(t) = log(1 + e^-t), noise z ~ N(0, I) and a generated
example u' = G(z) of the same space, the two take turns (R3GAN):

    critic D       E f( D(u) - D(u') ) + gamma/2 E |grad D(u)|^2 + gamma/2 E |grad D(u')|^2
    generator G    E f( D(u') - D(u) )

The loss is relativistic: each generated example is judged against a real one, which leaves no
incentive to drop modes; with both zero-centred gradient penalties (R1 on data, R2 on samples)
training converges locally. No batch normalisation, no momentum.

What the critic sees of G(z) is what a user would: it is snapped to the data's own values and relaxed
again, u' = relax(snap(G(z))), by the same noise as data. So it can not tell the two by values between
cells or by the shape of a code's noise, and pixels that are always 0 cost nothing. The gradient passes
straight through, du'/dG = 1.

There is NO likelihood: G maps a few dimensions into many, so its distribution has no density there.
What selects the weights in training is the energy score on validation data, a strictly proper
score that needs samples only: E|u - u'| - E|u' - u''| / 2, per example, in the relaxed space's units.

References:
    | Generative adversarial nets (Goodfellow et al., 2014) | https://arxiv.org/abs/1406.2661
    | The GAN is dead; long live the GAN! A modern baseline GAN (Huang et al., 2024) | https://arxiv.org/abs/2501.05441
    | Which training methods for GANs do actually converge? (Mescheder et al., 2018) | https://arxiv.org/abs/1801.04406
    | Strictly proper scoring rules, prediction, and estimation (Gneiting and Raftery, 2007) | https://doi.org/10.1198/016214506000001437
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from likely.errors import UsageError
from likely.model import Model, Recipe, expand_given
from likely.nets import net
from likely.noise import Noise
from likely.space import Space

__all__ = ["GAN"]

_DRAWS = 8  # samples that the energy score compares each example with


class GAN(Model):
    """Two nets in turn, with the relativistic loss and R1 + R2 gradient penalties.

    Args:
        given: what generator and critic are conditioned on.
        latent: dimensions of z.
        generator, critic: words for other nets than the defaults.
        gamma: weight of the gradient penalties.
        width, depth: of both nets, by size where not given.
    """

    summary = "adversarial: relativistic critic with R1 and R2 penalties; samples, no likelihood"
    turns = ("critic", "generator")
    # No momentum, as in the paper; penalties differentiate twice, where bf16 has too few digits; the energy score
    # selects weights, and such a patience never stops early.
    recipe = Recipe(lr=5e-4, betas=(0.0, 0.99), clip=10.0, ema=0.999, bf16=False, patience=100)
    sizes: ClassVar[dict[str, dict[str, Any]]] = {"tiny": {"latent": 8}, "small": {"latent": 16}, "base": {"latent": 64}}

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        latent: int | None = None,
        generator: str | None = None,
        critic: str | None = None,
        gamma: float = 3.0,
        width: int | None = None,
        depth: int | None = None,
    ) -> None:
        super().__init__(space, given=given, size=size)
        self.latent, self.gamma = self.options(size, latent=latent)["latent"], gamma
        shape = {name: value for name, value in {"width": width, "depth": depth}.items() if value is not None}
        self.generator = net(space.relaxed, "generator", size, word=generator, given=given, out=1, inputs=self.latent, **shape)
        self.critic = net(space.relaxed, "energy", size, word=critic, given=given, out=1, **shape)

    # -- training -------------------------------------------------------------------------------

    def forward(self, x: Tensor, given: Tensor | None = None, *, turn: str = "") -> Tensor:
        """Loss of the net whose turn it is; in evaluation mode the energy score."""
        u = self.space.relax(x).value
        if not self.training:
            return self._energy_score(u, given)
        if turn not in self.turns:
            raise UsageError(f"Unknown turn '{turn}'.", f"A GAN trains in turns: {', '.join(self.turns)}.")
        return self._critic_loss(u, given) if turn == "critic" else self._generator_loss(u, given)

    def _generate(self, n: int, given: Tensor | None) -> Tensor:
        device = next(self.generator.parameters()).device
        return self.generator(torch.randn(n, self.latent, device=device), given)

    def _as_data(self, u: Tensor) -> Tensor:
        """u' of G(z): snapped and relaxed, without gradient."""
        return self.space.relax(self.space.snap(u.detach())).value

    def _judge(self, u: Tensor, given: Tensor | None) -> Tensor:
        return self.critic(u, given).squeeze(1)

    def _critic_loss(self, u: Tensor, given: Tensor | None) -> Tensor:
        with torch.no_grad():
            fake = self._as_data(self._generate(len(u), given))
        both = torch.cat([u, fake]).requires_grad_()
        judged = self._judge(both, None if given is None else torch.cat([given, given]))
        (slope,) = torch.autograd.grad(judged.sum(), both, create_graph=True)
        penalty = slope.square().flatten(1).sum(1)
        real, made = judged.chunk(2)
        return F.softplus(made - real) + self.gamma / 2 * sum(penalty.chunk(2))

    def _generator_loss(self, u: Tensor, given: Tensor | None) -> Tensor:
        """Its gradient stops at the generated examples: the critic's weights get none, and no time is spent on them."""
        made = self._generate(len(u), given)
        fake = self._as_data(made).requires_grad_()
        with torch.no_grad():
            real = self._judge(u, given)
        loss = F.softplus(real - self._judge(fake, given))
        (slope,) = torch.autograd.grad(loss.sum(), fake)
        return loss.detach() + (slope * (made - made.detach())).flatten(1).sum(1)

    @torch.no_grad()
    def _energy_score(self, u: Tensor, given: Tensor | None) -> Tensor:
        noise = Noise(u, _DRAWS)
        fake = self._as_data(self._generate(_DRAWS * len(u), None if given is None else noise.repeat(given)))
        fake = fake.view(_DRAWS, len(u), -1).transpose(0, 1)
        near = torch.cdist(u.flatten(1)[:, None], fake).mean((1, 2))
        apart = torch.cdist(fake, fake).sum((1, 2)) / (_DRAWS * (_DRAWS - 1))
        return near - apart / 2

    # -- samples --------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, n: int, given: Tensor | None = None) -> Tensor:
        given = expand_given(given, n)
        parts = (slice(i, min(i + 1024, n)) for i in range(0, n, 1024))
        return torch.cat([self.space.snap(self._generate(p.stop - p.start, None if given is None else given[p])) for p in parts])
