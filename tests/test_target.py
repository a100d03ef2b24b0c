"""Flows fitted to unnormalised densities: log Z against what is known in closed form, weights, tails, bounds."""

import math
from functools import cache

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

import likely
from likely import families
from likely.errors import DataError, UsageError
from likely.space import Space
from likely.target import TargetFit, tail_shape

QUICK = {"steps": 150, "batch": 128, "samples": 4096, "progress": False, "layers": 3, "width": 24, "bins": 4}


def gaussian(x):
    scale = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.5, 0.0], [-0.3, 0.2, 0.7]])
    return MultivariateNormal(torch.tensor([1.0, -2.0, 0.5]), scale_tril=scale).log_prob(x) + 2.5


def funnel(x):
    v = x[:, 0]
    return Normal(0.0, 1.5).log_prob(v) + Normal(0.0, (v / 2).exp()[:, None]).log_prob(x[:, 1:]).sum(1) + 4.0


def mixture(x):
    means, scales = torch.tensor([[-3.0, 0.0], [3.0, 1.0]]), torch.tensor([[0.5, 1.0], [1.0, 0.5]])
    return MixtureSameFamily(Categorical(torch.tensor([0.3, 0.7])), Independent(Normal(means, scales), 1)).log_prob(x) - 1.7


CASES = {"gaussian": (gaussian, 3, 2.5, 0.02), "funnel": (funnel, 3, 4.0, 0.12), "mixture": (mixture, 2, -1.7, 0.06)}


@cache
def fitted(name):
    density, dims, _, _ = CASES[name]
    return likely.fit_target(density, dims, **QUICK)


@pytest.mark.parametrize("name", CASES)
def test_log_z_is_the_known_one_and_the_bound_is_below(name):
    (_, _, log_z, slack), found = CASES[name], fitted(name)
    assert found.log_z == pytest.approx(log_z, abs=slack + 4 * found.stderr)
    assert found.elbo <= log_z + 3 * found.elbo_stderr
    assert found.elbo <= found.log_z
    assert found.effective > 0.4 * len(found.samples)


def test_the_mixture_keeps_both_modes_in_their_shares():
    found = fitted("mixture")
    assert found.mean(lambda x: (x[:, 0] < 0).double()).item() == pytest.approx(0.3, abs=0.04)
    assert (found.resample(2000)[:, 0] < 0).double().mean().item() == pytest.approx(0.3, abs=0.06)


def test_the_posterior_and_evidence_of_a_linear_regression_are_those_in_closed_form():
    """w ~ N(0, I), y = X w + N(0, s^2): the evidence is N(y; 0, X X' + s^2 I), the posterior mean (X'X + s^2 I)^-1 X'y."""
    generator = torch.Generator().manual_seed(0)
    x, s = torch.randn(30, 3, generator=generator), 0.5
    y = x @ torch.tensor([1.0, -0.5, 0.2]) + s * torch.randn(30, generator=generator)
    evidence = MultivariateNormal(torch.zeros(30), x @ x.T + s**2 * torch.eye(30)).log_prob(y).item()
    mean = torch.linalg.solve(x.T @ x + s**2 * torch.eye(3), x.T @ y)

    def joint(w):
        return Normal(0.0, 1.0).log_prob(w).sum(1) + Normal(w @ x.T, s).log_prob(y).sum(1)

    found = likely.fit_target(joint, 3, **QUICK)
    assert found.log_z == pytest.approx(evidence, abs=0.05 + 4 * found.stderr)
    torch.testing.assert_close(found.mean().float(), mean, atol=0.03, rtol=0)


def test_a_seed_repeats_the_fit_and_leaves_the_callers_numbers_alone():
    how = QUICK | {"steps": 5, "samples": 64}
    torch.manual_seed(3)
    want = torch.rand(1)
    torch.manual_seed(3)
    first = likely.fit_target(gaussian, 3, **how, seed=1)
    assert torch.equal(torch.rand(1), want)
    assert torch.equal(likely.fit_target(gaussian, 3, **how, seed=1).log_weights, first.log_weights)
    assert not torch.equal(likely.fit_target(gaussian, 3, **how, seed=2).log_weights, first.log_weights)


def test_weights_are_of_the_model_that_is_returned_and_progress_is_told():
    records = []
    found = likely.fit_target(gaussian, 3, "flow", **QUICK | {"steps": 3, "samples": 200, "progress": records.append})
    torch.testing.assert_close(
        found.log_weights, gaussian(found.samples).double() - found.model.log_prob(found.samples).nats, atol=1e-3, rtol=0
    )
    assert records[-1]["step"] == 3
    assert records[-1]["fraction"] == 1
    assert "in expectation from below" in str(found)


@pytest.mark.parametrize("k", [0.2, 0.5, 1.0])
def test_the_tails_shape_is_that_of_a_pareto(k):
    """The largest weights of exact quantiles of a Pareto distribution, (1 - p)^-k, have the shape k, but for the pull to 0.5."""
    p = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    count = math.ceil(3 * math.sqrt(20000))
    pulled = (count * k + 5) / (count + 10)
    assert tail_shape(-k * (1 - p).log()) == pytest.approx(pulled, abs=0.05)


def test_equal_weights_have_no_tail():
    assert tail_shape(torch.zeros(500, dtype=torch.float64)) == -math.inf


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(DataError, match="shape"):
        likely.fit_target(lambda x: x, 2, **QUICK)
    with pytest.raises(DataError, match="finite at none"):
        likely.fit_target(lambda x: torch.full((len(x),), -math.inf), 2, **QUICK)
    with pytest.raises(UsageError, match="no invertible map"):
        likely.fit_target(gaussian, 3, "gmm", steps=1)
    with pytest.raises(DataError, match=r"NaN or \+inf at \d+ of 128 draws"):
        likely.fit_target(lambda x: x[:, 0].log(), 2, **QUICK)
    with pytest.raises(UsageError, match="no gradient"):
        likely.fit_target(lambda x: gaussian(x.detach()), 3, **QUICK)


@pytest.mark.parametrize("dims", [0, True, -1])
def test_dims_are_a_positive_integer(dims):
    with pytest.raises(UsageError, match="must be positive"):
        likely.fit_target(gaussian, dims)


@pytest.mark.parametrize(
    ("log_weights", "doubt"),
    [
        (torch.zeros(1000), "as it should be"),
        (torch.cat([torch.zeros(900), torch.full((100,), -math.inf)]), "p is 0 at 100 of the samples"),
        (torch.cat([torch.zeros(900), torch.full((100,), -200.0)]), "nats below log Z"),
        (torch.cat([torch.zeros(50), torch.full((950,), -4.5)]), "effective: q misses"),
        (3 * torch.randn(1000, generator=torch.Generator().manual_seed(0)), "k is above 0.7"),
    ],
)
def test_it_says_what_the_weights_hold_against_it(log_weights, doubt):
    found = TargetFit(families.build("nsf", Space.reals(3), size="tiny"), torch.zeros(1000, 3), log_weights.double())
    assert doubt in str(found)
    assert ("as it should be" in str(found)) == (doubt == "as it should be")
