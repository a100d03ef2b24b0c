"""Perfect denoisers of laws whose every marginal along a diffusion is known: mixtures of Gaussians, sets of points."""

import math

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from likely import pointsets


class Mixture:
    """sum_k w_k N(mean_k, covariance_k) over vectors, or over images [C, H, W] of as many entries; float64.

    Sums are over the last axis alone, so that to the bit no row depends on its batch.
    """

    def __init__(self, schedule, weights: list[float], means: Tensor, covariances: Tensor, shape: tuple[int, ...] | None = None) -> None:
        self.schedule, self.means, self.covariances = schedule, means.double(), covariances.double()
        self.log_weights = torch.tensor(weights, dtype=torch.float64).log()
        self.variances, self.axes = torch.linalg.eigh(self.covariances)  # [K, D], [K, D, D]
        self.shape = shape or means.shape[1:]

    def __call__(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = (v[:, None, None] for v in self.schedule(t.double()))
        flat = z.double().flatten(1)[:, None]
        spread = alpha**2 * self.variances + sigma**2  # [B, K, D]
        along = self._project(flat - alpha * self.means)
        gain = alpha * self.variances / spread
        mean = self.means + (self.axes * (gain * along)[:, :, None]).sum(3)
        var = (self.axes.square() * (self.variances - gain * alpha * self.variances)[:, :, None]).sum(3)
        share = self._shares(along, spread).softmax(1)[:, :, None]
        middle = (share * mean).sum(1)
        total = (share * (var + (mean - middle[:, None]).square())).sum(1)
        return middle.view(z.shape).to(z), total.view(z.shape).to(z)

    def _project(self, v: Tensor) -> Tensor:
        """Coordinates along each component's axes, [B, K, D]."""
        return (self.axes.mT * v[:, :, None]).sum(3)

    def _shares(self, along: Tensor, spread: Tensor) -> Tensor:
        return self.log_weights - 0.5 * (along.square() / spread + spread.log() + math.log(2 * math.pi)).sum(2)

    def log_prob(self, z: Tensor, t: Tensor) -> Tensor:
        """log p(z_t), nats [B]."""
        alpha, sigma = (v[:, None, None] for v in self.schedule(t.double()))
        spread = alpha**2 * self.variances + sigma**2
        return self._shares(self._project(z.double().flatten(1)[:, None] - alpha * self.means), spread).logsumexp(1)

    def sample(self, n: int) -> Tensor:
        which = torch.multinomial(self.log_weights.exp(), n, replacement=True)
        e = (self.axes[which] * (self.variances[which].sqrt() * torch.randn(n, self.means.shape[1]).double())[:, None]).sum(2)
        return (self.means[which] + e).view(n, *self.shape)

    @property
    def mean(self) -> Tensor:
        return (self.log_weights.exp()[:, None] * self.means).sum(0)

    @property
    def covariance(self) -> Tensor:
        apart = self.means - self.mean
        return (self.log_weights.exp()[:, None, None] * (self.covariances + apart[:, :, None] * apart[:, None])).sum(0)


def rotated(variances: list[float], angle: float = 0.6) -> Tensor:
    """A covariance with these eigenvalues whose axes are those of no entry: every pair of neighbours is turned."""
    d = len(variances)
    turn = torch.eye(d, dtype=torch.float64)
    for i in range(d - 1):
        c, s = math.cos(angle + i), math.sin(angle + i)
        one = torch.eye(d, dtype=torch.float64)
        one[i : i + 2, i : i + 2] = torch.tensor([[c, -s], [s, c]])
        turn = one @ turn
    return turn @ torch.diag(torch.tensor(variances, dtype=torch.float64)) @ turn.T


def gaussian(schedule, shape: tuple[int, ...] = (3,), variances: list[float] | None = None) -> Mixture:
    d = math.prod(shape)
    variances = variances or torch.linspace(0.1, 1.5, d).tolist()
    return Mixture(schedule, [1.0], torch.linspace(-0.3, 0.4, d)[None], rotated(variances)[None], shape)


def two_bumps(schedule) -> Mixture:
    means = torch.tensor([[1.0, -0.5], [-0.8, 0.4]])
    return Mixture(schedule, [0.3, 0.7], means, torch.stack([rotated([0.05, 0.3]), rotated([0.2, 0.1], 1.2)]))


class ExactSets(nn.Module):
    """A perfect net of points in a line, n of them jointly normal with variance 1 and correlation `rho`, NaN where there is none."""

    def __init__(self, model, rho: float) -> None:
        super().__init__()
        self.where, self.schedule, self.rho = nn.Linear(1, 1), model.schedule, rho

    def forward(self, z: Tensor, t: Tensor, given: Tensor | None = None) -> Tensor:
        alpha, sigma = (c[:, None, None].double() for c in self.schedule(t.double()))
        there = pointsets.there(z).double()
        covariance = (1 - self.rho) * torch.diag_embed(there) + self.rho * there[:, :, None] * there[:, None]
        gain = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(z.shape[1]))
        mean = gain @ z.double().nan_to_num(0.0)
        var = (covariance - gain @ (alpha * covariance)).diagonal(dim1=1, dim2=2)[..., None].clamp_min(1e-6)
        said = torch.stack([(alpha * z.double().nan_to_num(0.0) - mean) / sigma, var.log() - 2 * sigma.log()], 2)
        return said.flatten(1, 2).to(z)


def exchangeable(n: int, rho: float = 0.6) -> MultivariateNormal:
    return MultivariateNormal(torch.zeros(n), (1 - rho) * torch.eye(n) + rho)
