"""A model as a torch distribution: shapes, densities, gradients, and what torch's own code makes of it."""

import pytest
import torch
from torch.distributions import Independent, MixtureSameFamily, MultivariateNormal, Normal

import likely
from likely.errors import UsageError
from likely.space import Space


@pytest.fixture(scope="module")
def flow():
    x = torch.randn(256, 2) @ torch.tensor([[2.0, 1.0], [0.0, 0.5]]) + torch.tensor([3.0, -1.0])
    space = Space.reals(2).standardised(x)
    model = likely.build("flow", space, size="tiny").eval()
    model.start(x)
    return model


@pytest.fixture(scope="module")
def conditional():
    model = likely.build("flow", Space.reals(2), given=Space.label(3), size="tiny").eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return model


def test_shapes_are_those_of_torch(flow, conditional):
    p = flow.distribution()
    assert (p.batch_shape, p.event_shape, p.has_rsample) == ((), (2,), True)
    x = p.sample((5, 3))
    assert x.shape == (5, 3, 2)
    assert not x.requires_grad
    assert p.log_prob(x).shape == (5, 3)
    assert p.sample().shape == (2,)
    assert bool(p.support.check(x).all())
    given = torch.tensor([[0], [1], [2], [0]])
    q = conditional.distribution(given)
    assert q.batch_shape == (4,)
    assert q.sample((6,)).shape == (6, 4, 2)
    assert q.log_prob(torch.zeros(2)).shape == (4,)
    wide = conditional.distribution(given[:1]).expand((5, 1))
    assert wide.sample((2,)).shape == (2, 5, 1, 2)


def test_it_says_which_model_it_is_and_its_shapes(conditional):
    given = torch.tensor([[0], [1]])
    assert repr(conditional.distribution(given)) == "ModelDistribution(flow of columns 2 of real, batch_shape=(2,), event_shape=(2,))"


def test_log_prob_is_the_models_and_follows_given(conditional):
    given, x = torch.tensor([[0], [1], [2]]), torch.randn(7, 3, 2)
    with torch.no_grad():
        nats = conditional.distribution(given).log_prob(x)
        for i in range(3):
            alone = conditional.log_prob(x[:, i], given[i : i + 1].expand(7, 1)).nats
            torch.testing.assert_close(nats[:, i].double(), alone, atol=1e-5, rtol=1e-6)  # a matrix product rounds by its size
    assert (nats[:, 0] - nats[:, 1]).abs().max() > 1e-3 or (nats[:, 0] - nats[:, 2]).abs().max() > 1e-3


def test_a_flow_at_its_start_is_the_normal_of_its_data_and_their_divergence_is_nought(flow):
    """At its start the map is linear, so p is a normal N(m, S) with S diagonal, known in closed form."""
    p = flow.distribution()
    with torch.no_grad():
        zero, e = flow.decode(torch.zeros(1, 2))[0], flow.decode(torch.eye(2))
    jacobian = (e - zero).T
    normal = MultivariateNormal(zero, jacobian @ jacobian.T)
    x = p.rsample((4000,))
    gap = p.log_prob(x) - normal.log_prob(x)
    assert gap.abs().max() < 1e-3
    independent = Independent(p.expand((3,)), 1)
    assert independent.log_prob(x[:3]).item() == pytest.approx(normal.log_prob(x[:3]).sum().item(), abs=1e-3)


def test_gradients_of_draws_and_densities_reach_the_weights(flow):
    """Reverse KL to a normal goes down along its reparameterised gradient."""
    import copy

    model = copy.deepcopy(flow)
    target = Independent(Normal(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 0.5])), 1)
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    losses = []
    for _ in range(60):
        p = model.distribution()
        x = p.rsample((256,))
        loss = (p.log_prob(x) - target.log_prob(x)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 < losses[0]
    assert losses[-1] > -0.1


def test_discrete_models_draw_without_gradients():
    space = Space.grid(1, 2, 2, 3)
    x = torch.randint(0, 3, (200, 1, 2, 2))
    model = likely.fit(likely.load(x.numpy()), "histogram", progress=False).model
    p = model.distribution()
    drawn = p.sample((9,))
    assert drawn.shape == (9, 1, 2, 2)
    assert not p.has_rsample
    assert bool(p.support.check(drawn).all())
    assert not bool(p.support.check(drawn + 3).any())
    total = p.log_prob(space.enumerate()).double().exp().sum().item()
    assert total == pytest.approx(1, abs=1e-5)
    with pytest.raises(UsageError, match="no gradient"):
        p.rsample()


def test_what_is_given_must_fit(flow, conditional):
    with pytest.raises(UsageError, match="without `given`"):
        conditional.distribution()
    with pytest.raises(UsageError, match="unconditional"):
        flow.distribution(torch.zeros(1, 1))


def test_it_is_a_component_of_torchs_own_mixtures(conditional):
    given = torch.tensor([[0], [1], [2]])
    mixture = MixtureSameFamily(torch.distributions.Categorical(torch.ones(3)), conditional.distribution(given))
    x = torch.randn(5, 2)
    each = torch.stack([conditional.log_prob(x, row.expand(5, 1)).nats for row in given])
    torch.testing.assert_close(mixture.log_prob(x).double(), each.logsumexp(0) - torch.tensor(3.0).double().log(), atol=1e-4, rtol=0)
    assert mixture.sample((4,)).shape == (4, 2)
