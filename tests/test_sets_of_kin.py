"""Sets of points by the kin of `diffusion`: densities in closed form by perfect nets, losses without padding, draws and fills."""

import math

import pytest
import torch
from torch import nn

from exact import ExactSets, exchangeable
from likely import families, pointsets
from likely.errors import UsageError
from likely.families.flow_matching import FlowMatching
from likely.families.meanflow import MeanFlow
from likely.families.score import ScoreModel
from likely.space import Space

NAMES = ["ddpm", "score", "flow-matching", "meanflow"]
LAW = Space("set", (4, 1), Space.points(4, 1).supports, variable=True, unordered=True, lengths=(0.1, 0.2, 0.3, 0.4))
SPACES = [Space.points(3, 2), Space.points(3, 2, variable=True), Space.points(3, 2, 100, variable=True)]


class PerfectSets(ExactSets):
    """What each family asks of its net, of the exact denoiser: v, or the velocity along the straight path."""

    def __init__(self, model) -> None:
        super().__init__(model, 0.6)
        self.straight, self.span = not isinstance(model, ScoreModel), model.path.span if isinstance(model, FlowMatching) else 1.0
        if isinstance(model, MeanFlow):
            self.schedule = lambda t: (1 - t, t)

    def forward(self, u, t, given=None):
        t = t[:, 0] if t.ndim == 2 else t
        alpha, sigma = (c[:, None, None] for c in self.schedule(t.double()))
        z = u.double() * torch.hypot(alpha, sigma)
        v = super().forward(z, t).unflatten(1, (z.shape[1], -1))[:, :, 0]
        mean = alpha * z - sigma * v
        return (self.span * ((z - alpha * mean) / sigma - mean) if self.straight else v).nan_to_num(0.0).to(u)


def ragged(space, n):
    x = torch.randn(n, *space.shape) if not space.discrete else torch.randint(0, 2, (n, *space.shape))
    return pointsets.padded(x, torch.arange(n) % space.shape[0] + 1) if space.variable else x


def perturbed(name, space, **options):
    torch.manual_seed(0)
    model = families.build(name, space, size="tiny", **options)
    for p in model.parameters():
        if p.count_nonzero() == 0:
            nn.init.normal_(p, std=0.1)
    return model


@pytest.mark.parametrize("name", ["score", "flow-matching", "meanflow"])
def test_by_a_perfect_net_a_set_has_its_density_in_closed_form(name):
    torch.manual_seed(0)
    model = families.build(name, LAW, size="tiny", tolerance=0.1).eval()
    model.net = PerfectSets(model)
    numbers = 4 - torch.arange(20) % 2  # each number is an equation of its own
    x = pointsets.padded(exchangeable(4).sample((20,))[..., None], numbers)
    truth = [exchangeable(n).log_prob(row[:n, 0]) + math.lgamma(n + 1) for n, row in zip(numbers.tolist(), x, strict=True)]
    truth = torch.tensor(truth) + torch.tensor(LAW.lengths).log()[numbers - 1]
    with torch.no_grad():
        off = model.log_prob(x).nats - truth
    assert off.abs().mean() < 0.05  # and the noise of the cleanest level


@pytest.mark.parametrize("name", [*NAMES, "consistency"])
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_sets_are_learnt_from_and_drawn(name, space):
    model, x = perturbed(name, space), ragged(space, 24)
    loss = model(x)
    loss.mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    space.check(model.eval().sample(20))


def test_the_padding_of_sets_costs_nothing():
    """Of sets of one point among three, the loss of one that is wrong by so much in every point is a third of that of full sets."""
    space = Space.points(3, 2, variable=True)
    model, losses = perturbed("flow-matching", space).eval(), []
    nn.init.zeros_(list(model.parameters())[-2])
    for n in (1, 3):
        x = pointsets.padded(torch.zeros(4000, 3, 2), torch.full((4000,), n))
        losses.append(model(x).mean().item())
    assert losses[0] * 3 == pytest.approx(losses[1], rel=0.05)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "ddpm"])
@pytest.mark.parametrize("method", ["posterior", "repaint", "conditional"])
def test_known_points_of_sets_stay(name, method):
    space = Space.points(4, 2, variable=True)
    if method == "conditional" and name == "meanflow":
        pytest.skip("meanflow does not learn to fill")
    model = perturbed(name, space, **({"inpaint": True} if method == "conditional" else {})).eval()
    x = ragged(space, 12)
    known = (torch.rand(12, 4, 1).expand(x.shape) < 0.5) | x.isnan()
    filled = model.fill(x, known, method=method, steps=3, **({"resamplings": 2} if method == "repaint" else {})).x[0]
    assert torch.equal(filled[known].nan_to_num(9), x[known].nan_to_num(9))
    space.check(filled)
    space.check(model.vary(x, strength=0.5, steps=4))


def test_sets_are_not_coupled_with_noise():
    with pytest.raises(UsageError, match="'ot' would pair"):
        families.build("flow-matching", SPACES[1], coupling="ot")
