"""Latents of sets by the differential equation: as many points as the set has, its density in closed form, paths between sets of a size."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import likely
from exact import ExactSets, exchangeable
from likely import pointsets
from likely.errors import UsageError
from likely.families.diffusion import Diffusion
from likely.noise import Noise
from likely.space import Space

REAL = Space("set", (4, 1), Space.points(4, 1).supports, variable=True, unordered=True, lengths=(0.1, 0.2, 0.3, 0.4))


def perturbed(space, tolerance=1e-3):
    torch.manual_seed(0)
    model = Diffusion(space, size="tiny")
    model.tolerance = tolerance
    for p in model.parameters():
        if p.count_nonzero() == 0:
            nn.init.normal_(p, std=0.1)
    return model.eval()


def exact():
    model = Diffusion(REAL, size="tiny")
    model.tolerance = 1e-4
    model.net = ExactSets(model, 0.6)
    return model.eval()


def law(n):
    """Some sets of the law that the exact denoiser knows, of 1, 2, 3 and 4 points, and log p of each."""
    numbers = torch.arange(n) % 4 + 1
    x = pointsets.padded(exchangeable(4).sample((n,))[..., None], numbers)
    nats = torch.tensor([exchangeable(k).log_prob(row[:k, 0]) + math.lgamma(k + 1) for k, row in zip(numbers.tolist(), x, strict=True)])
    return x, nats + torch.tensor(REAL.lengths).log()[numbers - 1]


def normal(z):
    return (-0.5 * (z.double().square() + math.log(2 * math.pi))).nan_to_num(0.0).flatten(1).sum(1)


def test_with_an_exact_denoiser_latents_are_white_and_have_the_closed_form_density():
    torch.manual_seed(0)
    model, (x, truth) = exact(), law(160)
    z = model.encode(x)
    assert torch.equal(pointsets.counts(z.value), pointsets.counts(x))
    assert (z.nats + normal(z.value) - truth).abs().mean() < 0.02  # but for the noise of the cleanest level
    whole = z.value[pointsets.counts(x) == 4][..., 0]
    assert (whole.T.cov() - torch.eye(4)).abs().max() < 0.6  # of forty draws
    back = model.decode(z.value)
    assert torch.equal(back.isnan(), x.isnan())
    torch.testing.assert_close(back.nan_to_num(0.0), x.nan_to_num(0.0), atol=0.02, rtol=0)


def test_the_order_of_points_is_that_of_their_latents_and_a_set_does_not_depend_on_its_batch():
    model, x = perturbed(REAL), law(8)[0]
    z, turned = model.encode(x), x.clone()
    turned[3] = x[3].flip(0)
    other = model.encode(turned)
    torch.testing.assert_close(other.value[3], z.value[3].flip(0), atol=1e-2, rtol=0)
    torch.testing.assert_close(other.nats, z.nats, atol=1e-2, rtol=0)
    alone = model.encode(x[3:4])
    torch.testing.assert_close(alone.value[0], z.value[3], atol=1e-5, rtol=0)


@pytest.mark.parametrize("unordered", [False, True])
def test_of_sets_on_a_grid_the_bounds_sum_to_at_most_one(unordered):
    """Over all sets of up to two points of three values: log p(n), orders and absent points are counted right, or the sum is not near 1."""
    space = Space.points(2, 1, 3, variable=True, unordered=unordered)
    model, states = perturbed(space), space.enumerate()
    noise = Noise(states, 6, 0)
    z = model.encode(states, noise=noise)
    assert z.value.shape == (6 * len(states), *model.latent.shape)
    nats = (z.nats + normal(z.value)).view(6, -1).mean(0)
    total = nats.exp().sum().item()
    assert 0.6 < total < 1 + 0.02
    assert (model.decode(z.value) == states.repeat(6, 1, 1)).double().mean() > 0.9


def test_a_path_leads_between_sets_of_one_size_and_keeps_it():
    model, x = perturbed(REAL), law(8)[0]
    path = likely.interpolate(model, x[2], x[6], 5)
    assert path.shape == (5, 4, 1)
    assert (pointsets.counts(path) == 3).all()
    torch.testing.assert_close(path[0].nan_to_num(0.0), x[2].nan_to_num(0.0), atol=2e-2, rtol=0)
    ends = pointsets.sorted_points(torch.stack([path[-1], x[6]])).nan_to_num(0.0)
    torch.testing.assert_close(ends[0], ends[1], atol=2e-2, rtol=0)
    with pytest.raises(UsageError, match="these have 3 and 4 points"):
        likely.interpolate(model, x[2], x[3], 5)


def test_points_go_where_all_together_have_least_to_go():
    """Sets that are one and the same in another order have a path that stays."""
    model, x = perturbed(REAL), law(4)[0]
    path = likely.interpolate(model, x[3], x[3].flip(0), 4)
    torch.testing.assert_close(path, x[3].expand(4, -1, -1), atol=2e-2, rtol=0)


def test_the_command_line_draws_the_way_between_two_sets(run, tmp_path):
    torch.manual_seed(0)
    np.savez(tmp_path / "sets.npz", x=pointsets.padded(torch.randn(30, 2, 2), torch.arange(30) % 2 + 1).numpy())
    data = likely.load(tmp_path / "sets.npz", layout="set")
    folder = tmp_path / "m"
    likely.fit(data, "diffusion", size="tiny", steps=2, out=folder, progress=False)
    sizes = pointsets.counts(data.test.x).tolist()
    first, second = next((i, j) for i in range(len(sizes)) for j in range(i) if sizes[i] == sizes[j])
    code, _, err = run("sample", folder, "--between", f"{first},{second}", "-n", 3, "--out", tmp_path / "way.npz")
    assert code == 0, err
    assert (tmp_path / "way.npz").exists()
    other = next(j for j in range(len(sizes)) if sizes[j] != sizes[first])
    code, _, err = run("sample", folder, "--between", f"{first},{other}", "-n", 3, "--out", tmp_path / "no.npz")
    assert (code, "between sets of one size" in err, len(err.strip().splitlines())) == (2, True, 2), err
