"""Variational diffusion: the continuous bound does not depend on the schedule between its ends, and is where steps come to."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from exact import gaussian, rotated
from likely import families
from likely.families.diffusion import Diffusion
from likely.nets.gamma import LearntShape
from likely.solve.noise import Schedule, noise_schedule
from likely.space import Space

COVARIANCE = rotated([1.4, 0.2])


class Perfect(nn.Module):
    """A perfect net of a Gaussian under whatever schedule; it finds the log-SNR by what time is asked for."""

    def __init__(self, model, schedule) -> None:
        super().__init__()
        self.level, self.exact = model.level, gaussian(schedule, (2,), [1.4, 0.2])
        self.exact.means = torch.zeros(1, 2, dtype=torch.float64)

    def forward(self, z, t, given=None):
        alpha, sigma = self.level(t, z)
        mean, var = self.exact(z, t)
        return torch.stack([(alpha * z - mean) / sigma, var.log() - 2 * sigma.log()], 2).flatten(1)


def continuous(shape):
    model = Diffusion(Space.reals(2), size="tiny", steps=0, schedule=shape).eval()
    model.net = Perfect(model, model.schedule)
    return model


def bound(model, x, draws):
    claim = model.log_prob(x, draws=draws)
    return claim.nats.detach(), claim.stderr.detach()


def test_the_continuous_bound_is_equal_for_schedules_with_the_same_ends():
    law = MultivariateNormal(torch.zeros(2, dtype=torch.float64), COVARIANCE)
    x = law.sample((100,)).float()
    values = [bound(continuous(shape), x, draws=40) for shape in ("linear", "cosine", "tapered")]
    for value, error in values[1:]:
        apart = (value - values[0][0]).mean().abs()
        assert apart < 4 * (error.square() + values[0][1].square()).mean().sqrt() / math.sqrt(len(x))
    # the perfect net's bound is the density, with the noise of the first time and what the last forgets
    gap = law.log_prob(x.double()) - values[0][0]
    assert abs(gap.mean().item()) < 0.02 + 4 * values[0][1].square().mean().sqrt().item() / math.sqrt(len(x))


def test_steps_come_to_the_continuous_bound():
    law = MultivariateNormal(torch.zeros(2, dtype=torch.float64), COVARIANCE)
    x = law.sample((200,)).float()
    limit, error = bound(continuous("linear"), x, draws=24)
    gaps = []
    for steps in (4, 16, 128):
        model = Diffusion(Space.reals(2), size="tiny", steps=steps, schedule="linear").eval()
        model.net = Perfect(model, model.schedule)
        gaps.append((limit - bound(model, x, draws=24)[0]).mean().item())
    slack = 6 * error.square().mean().sqrt().item() / math.sqrt(len(x))
    assert gaps[0] > gaps[1] > gaps[2] - slack
    assert abs(gaps[2]) < 0.03 + slack
    assert gaps[0] > 0.1


def test_a_registered_vdm_is_continuous_and_learns_its_schedule():
    model = families.build("vdm", Space.reals(2), size="tiny")
    assert model.steps == 0
    assert isinstance(model.schedule.shape, LearntShape)
    model.train()(torch.randn(64, 2)).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.schedule.shape.parameters())
    assert max(p.grad.abs().max() for p in model.schedule.shape.parameters()) > 0


def test_the_learnt_shape_lowers_the_variance_of_the_bound_and_not_its_value():
    torch.manual_seed(0)
    model = continuous("linear")
    ends = model.schedule.start, model.schedule.end
    shape = LearntShape(*ends)
    exact = gaussian(noise_schedule("linear", *ends), (2,), [1.4, 0.2])
    optimiser = torch.optim.Adam(shape.parameters(), 0.05)

    def integrand(log_snr):
        """1/2 SNR E|e - m|^2 at a log-SNR, the density of the bound over it: of a Gaussian in closed form."""
        variances, snr = exact.variances[0], log_snr.exp()[:, None]
        return 0.5 * (snr * variances / (1 + snr * variances)).sum(1)

    def estimates(n):
        t = (torch.arange(n).double() + torch.rand(1).double()) / n
        log_snr, slope = shape(t)
        return t, (integrand(log_snr) * -slope).detach()

    _, before = estimates(4000)
    for _ in range(60):
        t, nats = estimates(256)
        optimiser.zero_grad()
        shape.steadied(t, nats).mean().backward()
        optimiser.step()
    _, after = estimates(4000)
    assert after.var() < 0.3 * before.var()
    assert after.mean() == pytest.approx(before.mean().item(), rel=1e-3)
    assert Schedule(shape).start == pytest.approx(ends[0])
