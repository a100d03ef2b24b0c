"""Sets of points: what is padding, how many lists are one set, and that no likelihood forgets either."""

import json
import math

import pytest
import torch
from torch import nn

from exact import ExactSets, exchangeable
from likely import pointsets
from likely.errors import DataError
from likely.families.diffusion import Diffusion
from likely.noise import Noise
from likely.solve.set_lift import lift_of
from likely.space import Space

SPACES = [
    Space.points(n, d, levels, variable=v, unordered=u)
    for n, d, levels in ((3, 1, 3), (2, 2, 2))
    for v in (False, True)
    for u in (False, True)
]
REAL = Space.points(4, 2, variable=True)


def ragged(n: int = 60) -> torch.Tensor:
    return pointsets.padded(torch.randn(n, 4, 2) * torch.tensor([3.0, 0.5]) + 1, torch.arange(n) % 4 + 1)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_lists_that_are_one_set_add_up_to_all_lists(space):
    x = space.enumerate()
    space.check(x)
    lists = pointsets.nats(Space("set", space.shape, space.supports, unordered=space.unordered), x).exp()
    numbers = range(1 if space.variable else space.shape[0], space.shape[0] + 1)
    states = space.supports[0].levels ** space.shape[1]
    assert lists.sum().item() == pytest.approx(sum(states**n for n in numbers))
    assert len(x.unique(dim=0)) == len(x)
    if space.unordered:
        assert torch.equal(pointsets.sorted_points(x), x)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_uniform_law_of_points_has_mass_one(space):
    x = space.enumerate()
    learnt = space.standardised(x)
    uniform = -pointsets.counts(x) * space.shape[1] * math.log(space.supports[0].levels)
    assert (uniform + pointsets.nats(learnt, x)).exp().sum().item() == pytest.approx(1)


@pytest.mark.parametrize("space", [*SPACES, REAL], ids=str)
def test_snap_undoes_relax_and_keeps_the_padding(space):
    x = ragged() if space is REAL else space.enumerate()
    learnt = space.standardised(x)
    relaxed = learnt.relax(x, noise=Noise(x, 2, seed=0))
    assert relaxed.value.shape == (len(relaxed.nats), *learnt.relaxed.shape)
    again = relaxed.value.view(relaxed.draws, *x.shape)
    assert all(torch.equal(learnt.snap(u).nan_to_num(7), x.nan_to_num(7)) for u in again) if space.discrete else True
    torch.testing.assert_close(learnt.snap(again[0]), x, equal_nan=True)


def test_reals_are_counted_by_point():
    x = ragged()
    learnt = REAL.standardised(x)
    present = x[pointsets.there(x)]
    assert [s.center for s in learnt.supports] == pytest.approx(present.mean(0).tolist(), rel=1e-5)
    n = pointsets.counts(x)
    volume = sum(math.log(s.scale) for s in learnt.supports)
    expected = -n * volume + math.log(1 / 4) + torch.lgamma(n + 1.0)
    torch.testing.assert_close(learnt.relax(x).nats, expected.double())
    assert sum(learnt.lengths) == pytest.approx(1)


def test_a_dequantized_set_is_scored_by_its_points_alone():
    space = Space.points(3, 1, 4, variable=True)
    x = torch.tensor([[[2], [-1], [-1]], [[0], [3], [1]]])
    cells = -torch.tensor([1, 3]) * math.log(space.supports[0].scale)
    torch.testing.assert_close(space.relax(x).nats, cells + torch.tensor([1.0, 6.0]).log().double() + math.log(1 / 3))


def test_points_are_sorted_with_padding_last():
    x = torch.tensor([[[2.0, 1.0], [0.0, 5.0], [0.0, 3.0], [math.nan, math.nan]]])
    expected = torch.tensor([[[0.0, 3.0], [0.0, 5.0], [2.0, 1.0], [math.nan, math.nan]]])
    assert torch.equal(pointsets.sorted_points(x).nan_to_num(7), expected.nan_to_num(7))


@pytest.mark.parametrize(
    ("space", "row", "told"),
    [
        (REAL, [[math.nan] * 2, [0, 0], [0, 0], [0, 0]], "end"),
        (REAL, [[0, 0], [math.nan, 0], [0, 0], [0, 0]], "some dimension"),
        (REAL, [[0, 0], [math.inf, 0], [0, 0], [0, 0]], "Infinite"),
        (Space.points(4, 2), [[0, 0], [0, 0], [0, 0], [math.nan] * 2], "fewer points"),
        (Space.points(2, 1, 3), [[0], [3]], "outside"),
        (Space.points(2, 1, 3, variable=True), [[-1], [-1]], "one point"),
    ],
)
def test_check_names_what_is_wrong(space, row, told):
    with pytest.raises(DataError, match=told):
        space.check(torch.tensor([row], dtype=space.dtype))


def test_a_space_of_sets_survives_json():
    learnt = REAL.standardised(ragged())
    assert Space.from_json(json.loads(json.dumps(learnt.to_json()))) == learnt


# -- diffusion on sets --------------------------------------------------------------------------------


def test_with_an_exact_denoiser_the_bound_of_a_set_meets_its_density():
    torch.manual_seed(0)
    space = Space.points(4, 1, variable=True)
    space = Space("set", space.shape, space.supports, variable=True, unordered=True, lengths=(0.1, 0.2, 0.3, 0.4))
    numbers = torch.arange(200) % 4 + 1
    x = pointsets.padded(exchangeable(4).sample((200,))[..., None], numbers)  # marginals of an exchangeable law are of its kind
    truth = torch.tensor([exchangeable(n).log_prob(row[:n, 0]) + math.lgamma(n + 1) for n, row in zip(numbers.tolist(), x)])
    truth += torch.tensor(space.lengths).log()[numbers - 1]
    model = Diffusion(space, size="tiny", steps=128)
    model.net = ExactSets(model, 0.6)
    with torch.no_grad():
        claim = model.log_prob(x, draws=20)
    gap, error = (truth - claim.nats).mean().item(), claim.stderr.square().mean().sqrt().item() / math.sqrt(len(x))
    assert -4 * error < gap < 0.1 + 4 * error
    assert error < 0.1


def test_samples_of_sets_have_the_counts_and_moments_of_the_law():
    torch.manual_seed(0)
    space = Space("set", (3, 1), Space.points(3, 1).supports, variable=True, unordered=True, lengths=(0.2, 0.0, 0.8))
    model = Diffusion(space, size="tiny")
    model.net = ExactSets(model, 0.6)
    x = model.sample(4000)
    space.check(x)
    n = pointsets.counts(x)
    assert n.unique().tolist() == [1, 3]
    assert (n == 3).float().mean().item() == pytest.approx(0.8, abs=0.03)
    torch.testing.assert_close(x[n == 3][..., 0].T.cov(), exchangeable(3).covariance_matrix, rtol=0, atol=0.1)


@pytest.mark.parametrize(
    "space", [*SPACES, Space.points(3, 2), REAL, Space.points(3, 2, 100, variable=True), Space.points(3, 1, 70_000, variable=True)], ids=str
)
def test_diffusion_trains_scores_and_draws_sets(space):
    torch.manual_seed(0)
    x = torch.randn(30, *space.shape) if not space.discrete else torch.randint(0, 2, (30, *space.shape))
    x = pointsets.padded(x, torch.arange(30) % space.shape[0] + 1) if space.variable else x
    model = Diffusion(space.standardised(x), size="tiny")
    for p in model.parameters():
        if p.count_nonzero() == 0:
            nn.init.normal_(p, std=0.1)
    model(x).mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    model.eval()
    assert model.log_prob(x).nats.isfinite().all()
    for sampler in ("ancestral", "dpm-solver"):
        space.check(model.sample(20, sampler=sampler))


def test_a_set_lifts_to_its_points_and_back():
    x = ragged()
    lift = lift_of(REAL.standardised(x))
    e, nats = lift(x, Noise(x, 3, seed=0))
    assert e.shape == (180, 4, 2)
    assert nats.shape == (180,)
    assert torch.equal(pointsets.counts(e), pointsets.counts(x).repeat(3))
