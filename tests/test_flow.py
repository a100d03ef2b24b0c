"""The flow: its density integrates to one, its bounds hold, its start is the histogram, its maps return."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import AffineTransform

from likely.bijections.marginal import smoothed_histogram
from likely.errors import DataError, UsageError
from likely.families import build
from likely.families.flow import Flow
from likely.invertible import Invertible
from likely.space import Space, Support


def _trained(flow: Flow, x: Tensor, given: Tensor | None = None, steps: int = 60, lr: float = 1e-2) -> Flow:
    flow.start(x, given)
    optimiser = torch.optim.Adam(flow.parameters(), lr)
    for _ in range(steps):
        optimiser.zero_grad()
        flow(x, given).mean().backward()
        optimiser.step()
    return flow.eval()


def _moons(n: int) -> Tensor:
    t, k = math.pi * torch.rand(n), torch.randint(2, (n,))
    x = torch.stack([torch.where(k == 0, t.cos(), 1 - t.cos()), torch.where(k == 0, t.sin(), 0.5 - t.sin())], 1)
    return x + 0.1 * torch.randn(n, 2)


@pytest.mark.parametrize("transform", ["spline", "affine"])
@pytest.mark.parametrize("dims", [1, 2])
def test_trained_density_integrates_to_one(transform, dims):
    x = _moons(512)[:, :dims]
    flow = _trained(Flow(Space.reals(dims), size="tiny", transform=transform), x)
    ticks = torch.linspace(-8, 8, 601 if dims == 2 else 2001)
    points = torch.cartesian_prod(*[ticks] * dims).view(-1, dims)
    with torch.no_grad():
        logprob = flow.log_prob(points)
    assert logprob.kind == "exact"
    mass = logprob.nats.exp().sum().item() * (ticks[1] - ticks[0]).item() ** dims
    assert mass == pytest.approx(1, abs=2e-3)


ENDS = {
    "0..1": (torch.distributions.Beta(0.5, 0.5), lambda v: (1 - torch.cos(math.pi * v)) / 2),
    "..3": (
        torch.distributions.TransformedDistribution(torch.distributions.Exponential(2.0), AffineTransform(3, -1)),
        lambda v: 11 * v - 8,
    ),
}


@pytest.mark.parametrize("bounds", ENDS)
def test_bounds_hold_the_mass_and_the_samples(bounds):
    law, at = ENDS[bounds]
    x = law.sample((1000, 1))
    flow = _trained(Flow(Space.reals(1).standardised(x), size="tiny", bounds=bounds), x, steps=30)
    edges = at(torch.linspace(0, 1, 4001).double())  # finer near ends where the density has poles
    middle, low, high = (edges[1:] + edges[:-1]) / 2, edges[0].item(), edges[-1].item()
    with torch.no_grad():
        density = flow.log_prob(middle[:, None].float()).nats.exp()
        assert (density * edges.diff()).sum().item() == pytest.approx(1, abs=5e-3)
        assert flow.log_prob(torch.tensor([[high + 0.1]])).nats.isneginf().all()
        far = law.sample((2000, 1))
        assert flow.log_prob(far).nats.mean() > law.log_prob(far).mean() - 0.1
    drawn = flow.sample(2000)
    assert ((drawn > low) & (drawn < high)).all()


@pytest.mark.parametrize("name", ["gaussianization", "residual", "cnf", "tarflow", "nice"])
def test_bounds_are_an_option_of_every_flow(name):
    x = torch.cat([law.sample((200, 1)) for law, _ in ENDS.values()], 1)
    flow = build(name, Space.reals(2).standardised(x), size="tiny", bounds="x0=0..1,x1=..3")
    assert isinstance(flow, Invertible)
    flow.start(x)
    drawn = flow.eval().sample(100)
    assert ((drawn[:, 0] > 0) & (drawn[:, 0] < 1) & (drawn[:, 1] < 3)).all()
    said = flow.log_prob(torch.stack([x[0], torch.tensor([1.1, 0.0])]))
    assert said.nats[0].isfinite()
    assert said.nats[1].isneginf()
    assert "nan" not in said.how


def test_bounds_of_numbers_on_a_grid_are_within_them():
    percent = Support("decimal", name="percent", decimals=2, origin=7, center=50.0, scale=30.0)
    flow = Flow(Space.columns(percent), size="tiny", bounds=".07..1.074").eval()  # 100 * .07 is a little more than 7
    assert flow.sample(500).amin() >= 0
    assert flow.sample(500).amax() <= 100
    with torch.no_grad():
        mass = flow.log_prob(torch.arange(101)[:, None], draws=200).nats.exp().sum().item()
    assert mass == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("bounds", "told"),
    [
        ("x7=0..1", "no column 'x7'"),
        ("0-1", "says no bounds"),
        ("1..0", "says no bounds"),
        ("x0=a..", "says no bounds"),
        ("x0=..", "says no bounds"),
        ("=0..1", "no column"),
    ],
)
def test_bounds_that_cannot_be_are_refused(bounds, told):
    with pytest.raises(UsageError, match=told):
        Flow(Space.reals(2), size="tiny", bounds=bounds)


@pytest.mark.parametrize(
    "space", [Space.reals(2), Space.columns(Support("real", name="x0"), Support("real", name="x1"), Support("nominal", 3))]
)
def test_training_beyond_bounds_names_the_column(space):
    flow = Flow(space, size="tiny", bounds="x1=0..")
    with pytest.raises(DataError, match="Of 8 values of x1, 8 are out of its bounds"):
        flow(torch.cat([-torch.rand(8, 2) - 0.1, torch.zeros(8, space.dims - 2)], 1))


def test_training_learns_what_a_normal_cannot():
    x, test = _moons(512), _moons(512)
    flow = _trained(Flow(Space.reals(2), size="tiny", layers=4), x, steps=80)
    normal = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov())
    assert flow.log_prob(test).nats.mean() > normal.log_prob(test).mean() + 0.3


def test_an_untrained_flow_of_ordinals_is_the_histogram_and_its_bound_is_tight():
    space = Space.grid(1, 2, 2, 3)
    x = torch.randint(0, 3, (500, 1, 2, 2)).minimum(torch.randint(0, 3, (500, 1, 2, 2)))
    flow = Flow(space, size="tiny").eval()
    flow.map.parts[0].start(space.relax(x).value)
    states = space.enumerate()
    log_mass = smoothed_histogram(x.flatten(1), 3).log()
    nats = flow.log_prob(states).nats
    torch.testing.assert_close(nats, log_mass[torch.arange(4), states.flatten(1)].sum(1), atol=1e-4, rtol=0)
    torch.testing.assert_close(nats.exp().sum().item(), 1.0, atol=1e-4, rtol=0)
    torch.testing.assert_close(flow.log_prob(states, seed=1).nats, nats, atol=1e-4, rtol=0)  # whatever the noise


def test_masses_of_a_trained_flow_stay_below_one_and_more_draws_tighten():
    space = Space.grid(1, 2, 2, 2)
    x = torch.randint(0, 2, (200, 1, 2, 2))
    x[:, 0, 0] = x[:, 0, 1]
    flow = _trained(Flow(space, size="tiny"), x)
    states = space.enumerate()
    with torch.no_grad():
        one = torch.stack([flow.log_prob(states, seed=s).nats for s in range(64)]).mean(0)
        many = flow.log_prob(states, draws=256)
    assert many.kind == "lower bound"
    assert "K=256" in many.how
    assert one.exp().sum() < 1
    assert many.nats.exp().sum() == pytest.approx(1, abs=0.05)
    assert (many.nats > one - 0.02).all()
    sampled = flow.sample(4000)
    frequency = torch.stack([(sampled == state).flatten(1).all(1).double().mean() for state in states])
    assert (frequency - many.nats.exp()).abs().max() < 0.03


SPACES = {
    "grid": Space.grid(1, 4, 4, 5),
    "real grid": Space.grid(2, 4, 2),
    "vector": Space.reals(5),
    "one number": Space.reals(1),
    "table": Space.columns(
        Support("ordinal", 5),
        Support("nominal", 3, missing=True),
        Support("decimal", missing=True),
        Support("ordinal", 4, missing=True),
        Support("nominal", 40),
        Support("ordinal", 7, center=3.5, scale=2.0),
    ),
    "image": Space.grid(1, 20, 28, 8),
    "odd image": Space.grid(1, 17, 19, 3),
    "colour image": Space.grid(3, 16, 16, 256),
}


def _examples(space: Space, n: int) -> Tensor:
    """Random examples of a space, missing cells included."""
    if not space.discrete:
        return torch.randn(n, *space.shape)
    columns = [torch.randint(-1 if s.missing else 0, s.levels or 9, (n, *space.shape[1:])) for s in space.supports]
    return torch.stack(columns, 1)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("conditional", [False, True])
def test_every_layout_encodes_decodes_and_reaches_every_parameter(name, conditional):
    space, label = SPACES[name], Space.label(3)
    x, given = _examples(space, 8), torch.randint(0, 3, (8, 1)) if conditional else None
    flow = Flow(space, given=label if conditional else None, size="tiny")
    flow.start(x, given)
    flow(x, given).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.parameters())
    for p in flow.parameters():
        torch.nn.init.normal_(p, std=0.02)
    flow.eval()
    z = flow.encode(x, given, draws=2)
    assert z.value.shape == (16 if space.discrete else 8, *flow.latent.shape)
    back = flow.decode(z.value[:8], given)
    if space.discrete:
        assert (back == x).double().mean() > 0.999  # a draw may lie within rounding of its cell's edge
    else:
        torch.testing.assert_close(back, x, atol=1e-4, rtol=1e-3)
    samples = flow.sample(3, None if given is None else given[:1])
    assert samples.shape == (3, *space.shape)
    space.check(samples)


@pytest.mark.parametrize("shape", [(1, 17, 16), (2, 12, 12)])
def test_log_determinant_of_the_multi_scale_map(shape):
    flow = Flow(Space.grid(*shape), size="tiny", layers=1).double().eval()
    for p in flow.parameters():
        torch.nn.init.normal_(p, std=0.05)
    x = torch.randn(1, *shape, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: flow.map(v[None])[0][0], x[0]).flatten(1)
    torch.testing.assert_close(flow.map(x)[1][0], torch.linalg.slogdet(jacobian).logabsdet)


def test_samples_bring_their_log_density_from_the_same_pass():
    flow = _trained(Flow(Space.reals(2).standardised(_moons(64)), size="tiny"), _moons(256))
    x, log_prob = flow.sample(50, with_log_prob=True)
    assert log_prob.kind == "exact"
    torch.testing.assert_close(log_prob.nats, flow.log_prob(x).nats, atol=1e-3, rtol=0)
    discrete = Flow(SPACES["grid"], size="tiny").eval()
    x, log_prob = discrete.sample(5, with_log_prob=True)
    assert log_prob.kind == "lower bound"
    torch.testing.assert_close(log_prob.nats, discrete.log_prob(x, draws=discrete.bound_draws).nats)


def test_given_is_learnt():
    label = torch.arange(2).repeat(100)[:, None]
    x = torch.randn(200, 2) + 6 * label
    flow = _trained(Flow(Space.reals(2), given=Space.label(2), size="tiny"), x, label, steps=80)
    assert (flow.sample(200, torch.tensor([[0]])).mean(0) < 1).all()
    assert (flow.sample(200, torch.tensor([[1]])).mean(0) > 5).all()
    assert flow.log_prob(x, label).nats.mean() > flow.log_prob(x, 1 - label).nats.mean() + 1


def test_trained_maps_return_far_out():
    flow = _trained(Flow(Space.reals(2), size="tiny"), _moons(512))
    x = torch.tensor([[1e3, -1e3], [30.0, 40.0], [0.5, 0.25], [-1e3, 0.0]])
    with torch.no_grad():
        torch.testing.assert_close(flow.decode(flow.encode(x).value), x, rtol=1e-4, atol=1e-3)
        assert flow.log_prob(x).nats.isfinite().all()


def test_chunks_do_not_change_results(monkeypatch):
    x = torch.randint(0, 5, (7, 1, 4, 4))
    flow = Flow(SPACES["grid"], given=Space.label(3), size="tiny").eval()
    given = torch.randint(0, 3, (7, 1))
    whole = flow.log_prob(x, given, draws=3).nats
    monkeypatch.setattr("likely.invertible._CHUNK", 32)
    torch.testing.assert_close(flow.log_prob(x, given, draws=3).nats, whole, atol=1e-5, rtol=0)
    assert flow.sample(5, given[:1]).shape == (5, 1, 4, 4)


def test_a_resumed_flow_is_not_started_again():
    x = torch.randint(0, 5, (64, 1, 4, 4))
    flow = Flow(SPACES["grid"], size="tiny").eval()
    flow.start(x)
    resumed = Flow(SPACES["grid"], size="tiny").eval()
    resumed.load_state_dict(flow.state_dict())
    resumed.start(4 - x)
    torch.testing.assert_close(resumed.log_prob(x).nats, flow.log_prob(x).nats)


def test_unknown_transform_suggests_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'spline'"):
        Flow(Space.reals(2), transform="splin")


def test_far_from_the_data_the_log_density_is_a_large_finite_number():
    """Affine maps at their start are the identity: log p is that of a normal, whose squares are beyond float32."""
    model = Flow(Space.reals(2), size="tiny", structure="autoregressive", transform="affine").eval()
    x = torch.tensor([[1e20, -1e20], [3e30, 0.0]])
    torch.testing.assert_close(model.log_prob(x).nats, -0.5 * x.double().square().sum(1), rtol=1e-6, atol=0)
