"""The adversarial network: its two losses against autograd and closed forms, whom each turn trains, and that it learns."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from likely.abilities import Likelihood
from likely.errors import UsageError
from likely.families.gan import GAN
from likely.space import Space, Support

REAL = Space.reals(2)
MIXED = Space.columns(
    Support("ordinal", 3, center=1.5, scale=0.9),
    Support("decimal", center=2.0, scale=1.5, missing=True),
    Support("nominal", 3),
    Support("nominal", 2),
)


class Linear(nn.Module):
    """D(u) = w . u, whose gradient is w everywhere."""

    def __init__(self, dims):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(1.0, dims + 1)[None])

    def forward(self, u, given=None):
        return F.linear(u.flatten(1), self.weight)


class Constant(nn.Module):
    """G(z) = c."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor([value]))

    def forward(self, z, given=None):
        return self.value.expand(len(z), -1)


def train(model, x, given=None, *, steps=200, lr=2e-3):
    optimisers = {turn: torch.optim.AdamW(model.get_submodule(turn).parameters(), lr=lr, betas=(0.0, 0.99)) for turn in model.turns}
    for _ in range(steps):
        rows = torch.randint(len(x), (64,))
        for turn, optimiser in optimisers.items():
            optimiser.zero_grad()
            model(x[rows], None if given is None else given[rows], turn=turn).mean().backward()
            optimiser.step()
    return model.eval()


def test_the_critic_loss_of_a_linear_critic_is_in_closed_form():
    model = GAN(REAL, size="tiny", gamma=0.5)
    model.critic, model.generator = Linear(2), Constant((0.3, -0.2))
    x = torch.randn(5, 2)
    w = torch.tensor([1.0, 2.0])
    margin = (x - torch.tensor([0.3, -0.2])) @ w
    expected = F.softplus(-margin) + 0.5 / 2 * 2 * w.square().sum()
    assert torch.allclose(model(x, turn="critic"), expected)
    assert torch.allclose(model(x, turn="generator"), F.softplus(margin))


def test_the_penalty_is_differentiated_twice():
    model = GAN(REAL, size="tiny", gamma=1.0)
    model.critic, model.generator = Linear(2), Constant((0.0, 0.0))
    x = torch.zeros(4, 2)  # no margin: only the penalty has a gradient, gamma * 2 w / 2 twice
    model(x, turn="critic").mean().backward()
    assert torch.allclose(model.critic.weight.grad, 2 * model.critic.weight)


def test_the_generator_has_the_gradient_of_its_loss():
    model = GAN(Space.grid(1, 3, 3, 4), size="tiny")
    x = torch.randint(4, (16, 1, 3, 3))
    torch.manual_seed(1)
    model(x, turn="generator").mean().backward()
    torch.manual_seed(1)
    u = model.space.relax(x).value
    made = model._generate(16, None)
    fake = made + (model._as_data(made) - made).detach()  # straight through
    direct = F.softplus(model._judge(u, None) - model._judge(fake, None)).mean()
    expected = torch.autograd.grad(direct, list(model.generator.parameters()))
    for p, g in zip(model.generator.parameters(), expected, strict=True):
        assert torch.allclose(p.grad, g, atol=1e-6)


@pytest.mark.parametrize("space", [Space.grid(1, 3, 3, 4), Space.grid(3, 20, 19, 4), MIXED], ids=["dense", "convolutional", "mixed"])
@pytest.mark.parametrize("turn", GAN.turns)
def test_a_turn_trains_its_own_net_and_all_of_it(space, turn):
    torch.manual_seed(0)
    model = GAN(space, given=Space.label(2), size="tiny")
    x = torch.randint(2, (8, *space.shape))
    model(x, torch.arange(8)[:, None] % 2, turn=turn).mean().backward()
    for name, p in model.named_parameters():
        learns = p.grad is not None and bool(p.grad.abs().sum() > 0)
        last = name.split(".")[-2] == "linear" or ".film." in name  # FiLM is zero at first, and so is what feeds it
        assert p.grad is not None if name.startswith(turn) else p.grad is None
        assert learns or last or "conditioner" in name or not name.startswith(turn), name


def test_the_energy_score_of_a_constant_is_the_distance_and_of_the_truth_is_lower():
    model = GAN(REAL, size="tiny").eval()
    model.generator = Constant((3.0, 4.0))
    assert torch.allclose(model(torch.zeros(6, 2)), torch.full((6,), 5.0))

    class Normal(nn.Linear):
        def forward(self, z, given=None):
            return z[:, :2]

    x = torch.randn(2000, 2)
    model.generator = Constant((0.0, 0.0))
    constant = model(x).mean()
    model.generator = Normal(1, 1)
    assert constant.item() == pytest.approx(math.sqrt(math.pi / 2), abs=0.05)  # E|x| of a plane normal
    assert model(x).mean().item() == pytest.approx(math.sqrt(math.pi) / 2, abs=0.05)  # E|x - y| / 2


def test_it_learns_a_shifted_normal():
    torch.manual_seed(0)
    x = torch.randn(2000, 2) * torch.tensor([0.3, 1.0]) + torch.tensor([1.0, -1.0])
    model = train(GAN(REAL, size="tiny", gamma=0.3), x)
    drawn = model.sample(2000)
    assert (drawn.mean(0) - x.mean(0)).abs().max() < 0.3
    assert 0.15 < drawn[:, 0].std() < 0.6 < drawn[:, 1].std() < 1.5


def test_it_learns_what_is_given():
    torch.manual_seed(0)
    label = torch.arange(600)[:, None] % 3
    space = Space.grid(1, 1, 2, 3)
    model = train(GAN(space, given=Space.label(3), size="tiny", gamma=0.3), label.view(-1, 1, 1, 1).expand(-1, 1, 1, 2).contiguous(), label)
    hits = [(model.sample(200, torch.tensor([[k]])) == k).double().mean() for k in range(3)]
    assert min(hits) > 0.6


def test_the_critic_sees_samples_as_it_sees_data():
    """Relaxed again, a sample lies in the cell, and has the code, of the value that it is snapped to."""
    model = GAN(MIXED, size="tiny")
    made = 2 * torch.randn(500, *MIXED.relaxed.shape)
    assert torch.equal(MIXED.snap(model._as_data(made)), MIXED.snap(made))
    assert torch.equal(GAN(REAL, size="tiny")._as_data(made[:, :2]), made[:, :2])


def test_samples_are_values_of_the_space_in_any_number():
    model = GAN(MIXED, size="tiny").eval()
    drawn = model.sample(1030)
    MIXED.check(drawn)
    assert drawn.shape == (1030, 4)


def test_it_claims_no_likelihood():
    assert not isinstance(GAN(REAL, size="tiny"), Likelihood)


def test_an_unknown_turn_is_an_error():
    with pytest.raises(UsageError, match="critic, generator"):
        GAN(REAL, size="tiny")(torch.zeros(2, 2), turn="painter")
