"""Mixtures of components: densities, bounds, conditionals and EM against closed forms, quadrature, sums and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture as Reference
from sklearn.neighbors import KernelDensity, NearestNeighbors

import likely
from likely.checks import tiny_data
from likely.dataset import Split
from likely.errors import DataError, UsageError
from likely.families import build
from likely.families.pca import Spectrum
from likely.noise import Noise, seeded
from likely.solve import em
from likely.solve.factors import Factors
from likely.solve.intervals import student_interval
from likely.solve.normals import Normals
from likely.solve.numbers import Diagonal
from likely.solve.observed import Observed
from likely.space import MISSING, Space, Support, from_grid

NAN = math.nan


@pytest.fixture(autouse=True)
def _seed():
    with seeded(0):
        yield


def _fitted(name, space, x, **options):
    model = build(name, space, size="tiny", **options)
    cut = len(x) * 4 // 5
    model.solve(Split(x[:cut]).batches(100), Split(x[cut:]).batches(100))
    return model


def _wine():
    x = torch.from_numpy(load_wine().data[:, :6]).float()[torch.randperm(178)]
    return Space.reals(6).standardised(x), x


def _without_the_unlike(model, x):
    """log p of the components alone, without the one that is unlike all."""
    mixture = model.mixture
    share = mixture.log_weight[0, -1].exp()
    number = x.double()
    unlike = mixture.unlike.log_prob(number, number[None, :, :0])[0, :, 0]
    return torch.log((model.log_prob(x).nats.exp() - share * unlike.exp()) / (1 - share))


def _normals(mean, covariance):
    part = Normals(Space.reals(len(mean[0])))
    part.mean, part.root = mean, torch.linalg.cholesky(covariance)
    return part


def _covariance(size):
    root = torch.randn(size, size, dtype=torch.float64)
    return root @ root.T + 0.3 * torch.eye(size, dtype=torch.float64)


def _spread(space):
    return (torch.tensor([getattr(s, name) for s in space.supports], dtype=torch.float64) for name in ("center", "scale"))


# -- against scikit-learn -----------------------------------------------------------------------


def test_kernel_density_of_real_data_is_scikit_learns():
    space, x = _wine()
    model = _fitted("kde", space, x, kernels=142)
    center, scale = (v.numpy() for v in _spread(space))
    h = model.mixture.numbers.sd[0].numpy()
    z = (x.double().numpy() - center) / scale / h
    want = KernelDensity(bandwidth=1.0).fit(z[:142]).score_samples(z[142:]) - np.log(scale * h).sum()
    np.testing.assert_allclose(_without_the_unlike(model, x[142:]).numpy(), want, atol=1e-8)
    assert model.log_prob(x).kind == "exact"


@pytest.mark.parametrize("kind", ["full", "tied"])
def test_own_em_stays_where_scikit_learns_has_converged(kind):
    u = torch.from_numpy(load_breast_cancer().data[:, :5])
    u = (u - u.mean(0)) / u.std(0)
    seen = Observed.of(Space.reals(5), u)
    found = Reference(3, covariance_type=kind, reg_covar=1e-5, tol=1e-9, max_iter=2000, random_state=0).fit(seen.number.numpy())
    share = torch.from_numpy(found.predict_proba(seen.number.numpy()))
    ours = em.normals(seen, 3, kind, start=share, steps=2)
    np.testing.assert_allclose(ours.mean.numpy(), found.means_, atol=1e-3)
    want = np.broadcast_to(found.covariances_, ours.covariance.shape)
    np.testing.assert_allclose(ours.covariance.numpy(), want, atol=1e-3)
    model = _normals(ours.mean, ours.covariance)
    nats = (model.log_density(seen.number) + (ours.mass / len(u)).log()).logsumexp(1)
    np.testing.assert_allclose(nats.numpy(), found.score_samples(seen.number.numpy()), atol=0.02)


def test_factors_are_scikit_learns_probabilistic_pca():
    u = torch.randn(500, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    seen = Observed.of(Space.reals(6), u)
    part = Factors(Space.reals(6))
    axes, variance = Spectrum.of(seen, 6).subspace(3, 1.0, 0.0)
    part.take({"mean": u.mean(0)[None], "axes": axes[None], "variance": variance})
    ours = part.log_prob(u, part.noise(u, Noise(u)))[0, :, 0]
    np.testing.assert_allclose(ours.numpy(), PCA(3).fit(u.numpy()).score_samples(u.numpy()), atol=1e-9)


# -- conditionals and marginals -----------------------------------------------------------------


def _parts():
    """The same two normals twice: as covariances, and as factors."""
    axes = torch.randn(2, 4, 2, dtype=torch.float64)
    variance, mean = torch.tensor([0.5, 0.8], dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    factors = Factors(Space.reals(4))
    factors.take({"mean": mean, "axes": axes, "variance": variance})
    covariance = axes @ axes.mT + variance[:, None, None] * torch.eye(4, dtype=torch.float64)
    return mean, covariance, _normals(mean, covariance), factors


@pytest.mark.parametrize("which", [2, 3])
def test_what_is_missing_is_marginalised(which):
    """The density of a row with gaps is that of the normal over what is there."""
    mean, covariance, *_ = parts = _parts()
    part = parts[which]
    u = torch.randn(6, 4, dtype=torch.float64)
    u[0, 0] = u[1, [1, 3]] = u[2, :3] = u[3] = NAN
    got = part.log_prob(u, part.noise(u, Noise(u)))[0]
    for row, known in enumerate(~u.isnan()):
        for c in range(2):
            want = (
                torch.distributions.MultivariateNormal(mean[c, known], covariance[c][known][:, known]).log_prob(u[row, known])
                if known.any()
                else 0.0
            )
            assert got[row, c].item() == pytest.approx(float(want), abs=1e-9)


@pytest.mark.parametrize("which", [2, 3])
def test_what_is_unknown_has_the_conditionals_moments(which):
    """m_U + S_UO S_OO^-1 (u_O - m_O) and the Schur complement."""
    mean, covariance, *_ = parts = _parts()
    part, n = parts[which], 20_000
    u, o = torch.tensor([NAN, 0.7, NAN, -1.1], dtype=torch.float64), [1, 3]
    rows = u.expand(n, -1)
    drawn = part.complete(rows, torch.zeros(n, 0), torch.ones(n, dtype=torch.int64))
    assert torch.equal(drawn[:, o], rows[:, o]) or which == 3  # factors draw every number anew; the caller keeps those known
    gain = covariance[1][[0, 2]][:, o] @ torch.linalg.inv(covariance[1][o][:, o])
    want = mean[1, [0, 2]] + gain @ (u[o] - mean[1, o])
    left = covariance[1][[0, 2]][:, [0, 2]] - gain @ covariance[1][o][:, [0, 2]]
    torch.testing.assert_close(drawn[:, [0, 2]].mean(0), want, atol=4 * (left.max().item() / n) ** 0.5, rtol=0)
    torch.testing.assert_close(drawn[:, [0, 2]].T.cov(), left, atol=0.1 * left.max().item(), rtol=0)


@pytest.mark.parametrize(
    ("name", "options"), [("gmm", {"covariance": "full"}), ("gmm", {"covariance": "low-rank"}), ("pca", {}), ("kde", {})]
)
def test_fills_of_reals_are_exact(name, options):
    """Of two reals, one given: the mean of the fills is that of the joint density along the line, by quadrature."""
    z = torch.randn(600)
    x = torch.stack([z + 0.3 * torch.randn(600), z.square() + 0.3 * torch.randn(600)], 1)
    model = _fitted(name, Space.reals(2).standardised(x), x, **options)
    filled = model.fill(torch.tensor([[1.2, 9.0]]), torch.tensor([[True, False]]), draws=20_000)
    assert filled.exact
    assert filled.effective.isinf().all()
    assert (filled.x[..., 0] == 1.2).all()
    line = torch.linspace(-20, 20, 4001)
    p = model.log_prob(torch.stack([torch.full_like(line, 1.2), line], 1)).nats.exp()
    p = p / p.sum()
    want, y = (p * line).sum().item(), filled.x[:, 0, 1].clamp(-20, 20)
    assert y.mean().item() == pytest.approx(want, abs=5 * (p * (line - want).square()).sum().sqrt().item() / 20_000**0.5 + 0.01)


@pytest.mark.parametrize("covariance", ["full", "tied", "low-rank"])
def test_mixtures_of_reals_are_densities(covariance):
    x = torch.cat([torch.randn(300, 2) @ torch.tensor([[1.0, 0.9], [0.0, 0.2]]), torch.randn(300, 2) + 4])[torch.randperm(600)]
    model = _fitted("gmm", Space.reals(2).standardised(x), x, covariance=covariance)
    axis = torch.linspace(-40, 40, 401)
    lp = model.log_prob(torch.cartesian_prod(axis, axis))
    assert lp.kind == "exact"
    assert lp.nats.exp().sum().item() * 0.04 == pytest.approx(1.0, abs=1e-3)
    drawn = model.sample(4000).clamp(-10, 14)
    torch.testing.assert_close(drawn.T.cov(), x.T.cov(), atol=0.5, rtol=0.1)


def test_correlated_reals_want_a_covariance():
    x = torch.randn(500, 2) @ torch.tensor([[1.0, 0.99], [0.0, 0.1]])
    assert not isinstance(_fitted("gmm", Space.reals(2).standardised(x), x).mixture.numbers, Diagonal)


def test_neighbours_make_a_density_and_an_outlier_score():
    """Kernels of any widths integrate to 1; the score is scikit-learn's distance to the k-th neighbour."""
    x = torch.cat([torch.randn(150, 1) * 0.1, torch.randn(150, 1) + 4])[torch.randperm(300)]
    space = Space.reals(1).standardised(x[:240])
    model = _fitted("knn", space, x, kernels=240)
    assert model.mixture.numbers.sd[:, 0].unique().numel() > 3
    line = torch.linspace(-60, 60, 12_001)[:, None]
    lp = model.log_prob(line)
    assert lp.kind == "exact"
    assert lp.nats.exp().sum().item() * 0.01 == pytest.approx(1.0, abs=1e-4)
    center, scale = (v.numpy() for v in _spread(space))
    z = (x.double().numpy() - center) / scale
    want = NearestNeighbors(n_neighbors=int(model.nearest)).fit(z[:240]).kneighbors(z[240:])[0][:, -1]
    np.testing.assert_allclose(model.outlier_score(x[240:]).numpy(), want, atol=1e-6)
    assert model.outlier_score(torch.tensor([[50.0]])).item() > model.outlier_score(x).max().item()


# -- bounds on a grid ---------------------------------------------------------------------------


def test_pcas_bound_meets_the_mass_of_two_pixels():
    """With one latent dimension, quadrature gives the mass; the bound is below it and meets it with many draws."""
    x = torch.randint(0, 4, (400, 1, 1, 1)).repeat(1, 1, 1, 2)
    x[:, 0, 0, 1] = (x[:, 0, 0, 1] + torch.randint(-1, 2, (400,))).clamp(0, 3)
    space = Space.grid(1, 1, 2, 4).standardised(x)
    model = _fitted("pca", space, x)
    states, part, mixture = space.enumerate(), model.mixture.numbers, model.mixture
    z = torch.linspace(-8, 8, 1001, dtype=torch.float64)[:, None]
    assert part.axes.shape == (1, 2, 1)
    lower, upper = part.cells(states.flatten(1).double())
    mean, s = part.mean + z @ part.axes[0].T, part.variance.sqrt()
    given_z = torch.distributions.Normal(0.0, 1.0).cdf((upper[:, None] - mean) / s) - torch.distributions.Normal(0.0, 1.0).cdf(
        (lower[:, None] - mean) / s
    )
    inside = (given_z.prod(2) * (-0.5 * z[:, 0].square()).exp()).sum(1) * 0.016 / math.sqrt(2 * math.pi)
    unlike = mixture.unlike.log_prob(states.flatten(1).double(), z[None, :16, :0])[0, :, 0].exp()
    share = mixture.log_weight[0, -1].exp()
    exact = ((1 - share) * inside + share * unlike).log()
    assert exact.exp().sum().item() == pytest.approx(1.0, abs=1e-4)
    tight = model.log_prob(states, draws=1000)
    assert tight.kind == "lower bound"
    loose = torch.stack([model.log_prob(states, seed=seed).nats for seed in range(200)])
    assert (loose.mean(0) < exact + 3 * loose.std(0) / math.sqrt(200)).all()
    assert ((tight.nats - exact).abs() < 0.1).all()
    assert (tight.nats - exact).mean().abs() < 0.02
    drawn = model.sample(8000).flatten(1)
    frequency = torch.stack([(drawn == s.flatten()).all(1).double().mean() for s in states])
    torch.testing.assert_close(frequency, exact.exp(), atol=0.02, rtol=0)


# -- weights, missing values, far values --------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", "tied", "low-rank"])
def test_weights_are_repeated_rows(kind):
    x = torch.randn(60, 3) + 3 * torch.randint(0, 2, (60, 1))
    x[:20, 1] = NAN
    space = Space.columns(*(Support("real", missing=True),) * 3)
    times = torch.randint(0, 4, (60,))
    weighted, repeated = Observed.of(space, x, times), Observed.of(space, x.repeat_interleave(times, 0))
    start = torch.rand(60, 2, dtype=torch.float64).softmax(1)
    one = em.normals(weighted, 2, kind, 1, start=start * times[:, None], steps=4)
    two = em.normals(repeated, 2, kind, 1, start=start.repeat_interleave(times, 0), steps=4)
    torch.testing.assert_close(one.mean, two.mean)
    torch.testing.assert_close(one.covariance, two.covariance)
    for statistic in ("moments", "absent"):
        torch.testing.assert_close(getattr(weighted, statistic)(), getattr(repeated, statistic)())


@pytest.mark.parametrize(
    ("name", "options"),
    [("kde", {}), ("knn", {"neighbours": 5}), ("knn", {}), ("pca", {}), ("gmm", {"covariance": "full", "components": 1})],
)
def test_a_model_of_weighted_examples_is_that_of_repeated_rows(name, options):
    x, times = torch.randn(120, 2) @ torch.tensor([[1.0, 0.8], [0.0, 0.5]]), torch.randint(1, 3, (80,))
    space, valid = Space.reals(2).standardised(x[:80]), Split(x[80:]).batches()
    repeated = x[:80].repeat_interleave(times, 0)
    weighted, plain = (build(name, space, size="tiny", **options) for _ in range(2))
    weighted.solve(Split(x[:80]).batches(), valid, times)
    plain.solve(Split(repeated).batches(), valid)
    atol = 1e-9 if name in ("kde", "knn") else 0.1  # scikit-learn divides a covariance by n - 1: far points notice
    torch.testing.assert_close(weighted.log_prob(x).nats, plain.log_prob(x).nats, atol=atol, rtol=0)


@pytest.mark.parametrize("times", [torch.full((80,), 0.5), 3 * torch.rand(80), torch.tensor([40.0] + [0.25] * 79)])
def test_radii_are_where_weights_reach_k(times):
    """Against sorting all distances; a neighbour counts by its weight, and what an example weighs beyond one is beside itself."""
    x = torch.randn(80, 2)
    model = build("knn", Space.reals(2), size="tiny", neighbours=3)
    model.solve(Split(x).batches(), Split(x[:9]).batches(), times)
    x, times = model.examples, model.counts  # in the order of the components
    far, own = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist"), (times - 1).clamp_min(0.0)

    def radius(row, weight, begin):
        order = row.argsort()
        reached = (begin + weight[order].cumsum(0) >= 3 - 1e-9).nonzero()[:, 0]
        return 0.0 if begin >= 3 else row[order][reached[0] if len(reached) else -1].item()

    others = torch.tensor([radius(far[i][torch.arange(80) != i], times[torch.arange(80) != i], own[i].item()) for i in range(80)])
    octaves = torch.exp2((4 * (others / 2**0.5).clamp_min(1e-6).log2()).round() / 4)
    seen = Observed.of(Space.reals(2), x, times)
    widths = model.mixture.numbers.sd / seen.moments()[1].sqrt() / octaves[:, None]
    used = (octaves > 1e-3)[:, None].expand_as(widths)  # a radius of 0 is held off by the floor
    assert any((widths[used] - h).abs().max() < 1e-4 for h in (0.5, 0.7, 1.0, 1.4, 2.0))
    asked = torch.randn(20, 2)
    to = torch.cdist(asked.double(), x, compute_mode="donot_use_mm_for_euclid_dist")
    want = torch.tensor([radius(row, times, 0.0) for row in to]) / 2**0.5
    torch.testing.assert_close(model.outlier_score(asked), want.double(), atol=1e-6, rtol=0)


def test_a_weighted_density_of_neighbours_integrates_to_one():
    x = 0.2 * torch.randn(40, 1)
    model = build("knn", Space.reals(1), size="tiny")
    model.solve(Split(x).batches(), Split(x[:9]).batches(), 4 * torch.rand(40))
    at = torch.linspace(-60, 60, 60_001)[:, None]
    assert torch.trapezoid(model.log_prob(at).nats.exp(), at[:, 0].double()).item() == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("name", ["kde", "knn"])
def test_validation_weights_choose(name):
    """Validation examples on top of the training examples want narrow kernels, those between want wide ones."""
    x = torch.linspace(0, 1, 30)[:, None]
    valid = torch.cat([x[:20], x[:20] + 0.5 / 29 + 1.0])
    space, found = Space.reals(1).standardised(x), []
    for judging in (torch.tensor([1.0, 1e-9]), torch.tensor([1e-9, 1.0])):
        model = build(name, space, size="tiny")
        model.solve(Split(x).batches(), Split(valid).batches(), None, judging.repeat_interleave(20))
        found.append(model.mixture.numbers.sd.mean().item())
    assert found[0] < 0.7 * found[1]


def test_who_does_not_weigh_says_so():
    data = tiny_data()["grid"]
    with pytest.raises(UsageError, match="does not weigh"):
        likely.fit(data, "histogram", size="tiny", progress=False, weights=torch.ones(len(data.train)))
    with pytest.raises(DataError, match="weights of shape"):
        likely.fit(data, "kde", size="tiny", progress=False, weights=torch.ones(3))
    assert likely.fit(data, "kde", size="tiny", progress=False, weights=torch.ones(len(data.train))).stopped == "closed form"


def test_em_finds_a_covariance_behind_gaps():
    """A third of the cells missing at random: EM's covariance is near that of the whole, which filling in means is not."""
    covariance = torch.tensor([[1.0, 0.8, 0.0], [0.8, 1.0, 0.3], [0.0, 0.3, 1.0]], dtype=torch.float64)
    x = torch.randn(4000, 3, dtype=torch.float64) @ torch.linalg.cholesky(covariance).T
    x[torch.rand(x.shape) < 1 / 3] = NAN
    found = em.normals(Observed.of(Space.columns(*(Support("real", missing=True),) * 3), x), 1, "full", steps=200)
    torch.testing.assert_close(found.covariance[0], covariance, atol=0.08, rtol=0)


def test_a_far_value_costs_its_logarithm():
    """A table of decimals with one far cell in a column that hardly varies: its bits are finite and few."""
    n = 1000
    x = from_grid(torch.stack([torch.randint(0, 1000, (n,)), 50 + (torch.rand(n) < 0.02).long()], 1))
    space = Space.columns(Support("decimal"), Support("decimal")).standardised(x)
    far = from_grid(torch.tensor([[500, 50_000_000], [10_000_000_000, 50]]))
    for name in ("gmm", "kde", "pca"):
        nats = _fitted(name, space, x).log_prob(far, draws=4).nats
        assert (nats > -90).all(), name


def test_the_heavy_tail_telescopes():
    edges = torch.tensor([-math.inf, -1e9, -100.0, -3.0, -1e-7, 0.0, 1e-9, 0.5, 100.0, 1e6, math.inf], dtype=torch.float64)
    assert student_interval(edges[:-1], edges[1:]).exp().sum().item() == pytest.approx(1.0, abs=1e-14)
    t = torch.tensor([3.0, 1e3, 1e6], dtype=torch.float64)
    torch.testing.assert_close(student_interval(t, t * (1 + 1e-9)).exp(), t * 1e-9 * (2 + t.square()) ** -1.5, rtol=1e-6, atol=0)


def test_missing_cells_are_never_filled_as_missing():
    x = torch.where(torch.rand(500, 3) < 0.4, MISSING, torch.randint(0, 3, (500, 3)))
    space = Space.columns(
        Support("nominal", 3, missing=True), Support("ordinal", 3, missing=True), Support("decimal", missing=True)
    ).standardised(x)
    for name in ("gmm", "kde", "pca"):
        filled = _fitted(name, space, x).fill(x[:50], x[:50] >= 0, draws=5)
        assert (filled.x != MISSING).all()
