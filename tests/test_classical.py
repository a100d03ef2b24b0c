"""Histogram, Gaussian mixture, kernel density and probabilistic PCA against closed forms, sums and scikit-learn."""

import math

import pytest
import torch

import likely
from likely.coding import Stack
from likely.dataset import Split
from likely.errors import UsageError
from likely.families import build
from likely.logprob import bits
from likely.noise import Noise, seeded
from likely.space import MISSING, Space, Support, from_grid

CLASSICAL = ("histogram", "gmm", "kde", "knn", "pca")


@pytest.fixture(autouse=True)
def _seed():
    with seeded(0):
        yield


def _fitted(name, space, x, given=None, y=None, **options):
    model = build(name, space, given=given, size="tiny", **options)
    cut = len(x) * 4 // 5
    parts = [Split(x[rows], None if y is None else y[rows]).batches(100) for rows in (slice(0, cut), slice(cut, None))]
    model.solve(*parts)
    return model


def _table(n=600, real=False):
    """A nominal, an ordinal (nominal, beside reals) and a decimal (or real) column, related, each with missing cells."""
    z = torch.randint(0, 3, (n,))
    number = (4 * torch.randn(n) + 10 * z).round()
    first = torch.where(torch.rand(n) < 0.1, MISSING, z)
    second = torch.where(torch.rand(n) < 0.2, MISSING, (z + torch.randint(0, 2, (n,))).clamp_max(3))
    third = torch.where(torch.rand(n) < 0.3, math.nan if real else MISSING, number / 7 if real else from_grid(number.long()))
    kinds = ("nominal", 3), ("nominal" if real else "ordinal", 4), ("real" if real else "decimal", 0)
    x = torch.stack([first, second, third], 1)
    return Space.columns(*(Support(kind, levels, missing=True) for kind, levels in kinds)).standardised(x), x


def _rows(space, integers):
    """Every row of a mixed table whose last column is one of `integers`."""
    finite = Space.columns(*space.supports[:2]).enumerate()
    last = torch.cat([from_grid(integers), torch.tensor([MISSING])])
    return torch.cat([finite.repeat_interleave(len(last), 0), last.repeat(len(finite))[:, None]], 1)


@pytest.mark.parametrize("name", ["histogram", "kde", "gmm"])
@pytest.mark.parametrize("labels", [None, 2])
def test_a_mixed_table_has_mass_one(name, labels):
    space, x = _table()
    options = {"covariance": "diag"} if name == "gmm" else {}
    given, y = (None, None) if labels is None else (Space.label(labels), (x[:, :1] > 0).long())
    model = _fitted(name, space, x, given, y, **options)
    rows = _rows(space, torch.arange(-300, 330))
    g = None if labels is None else torch.ones(len(rows), 1, dtype=torch.int64)
    total = model.log_prob(rows, g).nats.logsumexp(0).exp().item()
    assert total == pytest.approx(1.0, abs=2e-4)  # tails reach on
    assert total <= 1 + 1e-9


def _lost(v, real):
    return torch.isnan(v) if real else torch.isnan(v) | (v == MISSING)


@pytest.mark.parametrize("name", CLASSICAL)
@pytest.mark.parametrize("real", [False, True])
def test_samples_of_a_mixed_table_belong_and_follow(name, real):
    space, x = _table(real=real)
    model = _fitted(name, space, x)
    drawn = model.sample(2000)
    space.check(drawn)
    for c in range(3):
        share = [_lost(v[:, c], real and c == 2).double().mean().item() for v in (drawn, x)]
        assert share[0] == pytest.approx(share[1], abs=0.15 if name == "pca" else 0.06)  # one normal knows no modes
    high = [v[:, 2].double()[~_lost(v[:, 2], real)].quantile(0.9).item() for v in (drawn, x)]
    assert high[0] == pytest.approx(high[1], rel=0.4 if name == "pca" else 0.2)
    assert torch.isfinite(model.log_prob(drawn).nats).all()


def test_the_histograms_tail_sums_to_what_it_holds():
    """Doubling widths at a quarter of the mass: the mass beyond 2**k units is (1/4)**k of the tail's."""
    space = Space.columns(Support("decimal")).standardised(torch.arange(100)[:, None])
    model = _fitted("histogram", space, torch.arange(100)[:, None])
    far = from_grid(torch.arange(-200_000, 200_000))[:, None]
    nats = model.log_prob(far).nats
    assert nats.logsumexp(0).exp().item() == pytest.approx(1.0, abs=1e-6)
    assert model.bins.counts.log_p.exp().sum().item() == pytest.approx(1.0, abs=1e-12)
    assert torch.isfinite(model.log_prob(torch.tensor([[10**15], [-(10**15)]])).nats).all()
    upper = [nats[far[:, 0] >= t].logsumexp(0).item() for t in (10_000, 20_000, 40_000)]
    assert upper[0] - upper[1] == pytest.approx(math.log(4), abs=0.15)


def test_an_atom_has_a_bin_of_its_own():
    """A column that is zero nine times of ten (a capital gain) pays for the zero what it must, log2(10 / 9)."""
    n = 2000
    x = from_grid(torch.where(torch.rand(n) < 0.9, 0, (torch.randn(n) * 2000).abs().long() + 1))[:, None]
    model = _fitted("histogram", Space.columns(Support("decimal")).standardised(x), x)
    assert model.log_prob(torch.zeros(1, 1, dtype=torch.int64)).nats.item() == pytest.approx(math.log((x == 0).double().mean()), abs=0.03)


def test_a_short_string_is_the_marginal_of_its_prefix():
    space, x = Space.sequence(3, 4), torch.randint(0, 3, (300, 3))
    model = _fitted("histogram", space, x)
    whole = torch.cartesian_prod(*[torch.arange(4)] * 3)
    assert model.log_prob(whole).nats.logsumexp(0).exp().item() == pytest.approx(1.0, abs=1e-12)
    prefix = model.log_prob(torch.tensor([[2, 0, MISSING]])).nats
    assert prefix.item() == pytest.approx(
        model.log_prob(whole[(whole[:, 0] == 2) & (whole[:, 1] == 0)]).nats.logsumexp(0).item(), abs=1e-12
    )


def test_a_label_leans_on_the_others_as_far_as_it_is_rare():
    """Counts shrink a label to all labels: one without examples is the pooled table, a frequent one its own."""
    x = torch.cat([torch.zeros(300, dtype=torch.int64), torch.ones(300, dtype=torch.int64)])[torch.randperm(600)][:, None]
    space, given = Space.columns(Support("nominal", 2)), Space.label(3)
    for name in ("histogram", "kde", "gmm"):
        model = _fitted(name, space, x, given, x.clone())
        p = [model.log_prob(torch.ones(1, 1, dtype=torch.int64), torch.tensor([[y]])).nats.exp().item() for y in range(3)]
        assert p[0] < 0.05
        assert p[1] > 0.95
        assert p[2] == pytest.approx(x[:480].double().mean().item(), abs=0.05)


@pytest.mark.parametrize("name", CLASSICAL)
def test_given_is_one_label(name):
    space = Space.grid(1, 2, 2, 3)
    with pytest.raises(UsageError, match="one nominal label"):
        build(name, space, given=Space.reals(2))
    x = torch.zeros(2, 1, 2, 2, dtype=torch.int64)
    with pytest.raises(UsageError, match="no `given` was passed"):
        build(name, space, given=Space.label(2)).log_prob(x)
    with pytest.raises(UsageError, match="unconditional"):
        build(name, space).log_prob(x, torch.zeros(2, 1, dtype=torch.int64))


@pytest.mark.parametrize("name", CLASSICAL)
def test_pixels_that_never_vary_have_finite_mass(name):
    x = torch.randint(0, 5, (200, 1, 2, 2))
    x[:, :, 0] = 0
    model = _fitted(name, Space.grid(1, 2, 2, 5).standardised(x), x)
    odd = torch.full((1, 1, 2, 2), 4)
    assert torch.isfinite(model.log_prob(odd, draws=8).nats).all()
    assert model.log_prob(x[:1], draws=64).nats.item() > -2 * math.log(5) - 1.5


def test_the_histograms_code_is_as_long_as_it_says():
    space, x = _table()
    model = _fitted("histogram", space, x)
    stack, codec = Stack(), model.codec()
    codec.push(stack, x)
    claim = -model.log_prob(x).nats.sum().item() / math.log(2)
    assert stack.claim == pytest.approx(claim, rel=1e-3, abs=1)
    assert len(stack) <= claim * 1.001 + 128
    assert torch.equal(codec.pop(stack, len(x)), x)


def test_the_histogram_codes_strings_of_any_length():
    x = torch.randint(0, 5, (300, 7))
    x[torch.arange(7) >= torch.randint(0, 8, (300, 1))] = MISSING
    model = _fitted("histogram", Space.sequence(7, 5, variable=True), x)
    assert torch.equal(model.codec().decompress(model.codec().compress(x), 300), x)
    with pytest.raises(UsageError, match="density"):
        build("histogram", Space.reals(2)).codec()


@pytest.mark.parametrize(
    ("name", "most"), [("histogram", 2.44), ("kde", 2.15), pytest.param("knn", 2.15, marks=pytest.mark.slow), ("pca", 2.45)]
)
def test_digits(name, most):
    data = likely.load("digits").unconditional()
    model = build(name, data.space)
    model.solve(data.train.batches(), data.valid.batches())
    assert bits(model.log_prob(data.test.x, draws=model.bound_draws), data.space).value < most


@pytest.mark.slow
def test_digits_of_mixtures():
    data = likely.load("digits").unconditional()
    model = build("gmm", data.space)
    model.solve(data.train.batches(), data.valid.batches())
    assert bits(model.log_prob(data.test.x), data.space).value < 2.16


def test_rows_do_not_depend_on_their_batch():
    space, x = _table()
    for name in CLASSICAL:
        model = _fitted(name, space, x)
        whole = model._log_prob(x[:20], None, Noise(x[:20], 3, 0)).nats
        alone = torch.cat([model._log_prob(r[None], None, Noise(r[None], 3, 0)).nats for r in x[:20]])
        torch.testing.assert_close(whole, alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", ["gmm", "kde", "knn", "pca", "histogram", "independent"])
def test_draws_come_with_their_log_probability(family):
    data = likely.load(torch.randn(300, 2))
    model = likely.fit(data, family, size="tiny", progress=False).model
    x, log_prob = model.sample(5, with_log_prob=True)
    again, found = likely.sample(model, 5, with_log_prob=True)
    assert x.shape == again.shape
    torch.testing.assert_close(log_prob.nats, model.log_prob(x, draws=model.bound_draws).nats)
    torch.testing.assert_close(found.nats, model.log_prob(again, draws=model.bound_draws).nats)
