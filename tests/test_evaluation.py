"""Measures against brute force, closed forms and cases whose answer is known."""

import math
import subprocess
import sys

import pytest
import torch

import likely
from likely.abilities import Likelihood
from likely.dataset import Data, Split
from likely.evaluation.features import features
from likely.evaluation.fidelity import memorisation, nearest, precision_recall
from likely.evaluation.gallery import gallery
from likely.evaluation.measure import draw, evaluate, held_out_bits, log_prob
from likely.evaluation.quality import floors, quality
from likely.evaluation.row import Row, read_rows, standing, write_rows
from likely.evaluation.two_sample import _auc_stderr, classifier_test, energy_distance, kernel_mmd, pairwise
from likely.logprob import LogProb
from likely.model import Model
from likely.space import Space, Support


def normal(n, dims=3, seed=0, shift=0.0):
    return torch.randn(n, dims, generator=torch.Generator().manual_seed(seed)).double() + shift


# -- two-sample tests -----------------------------------------------------------------------------


def test_energy_distance_is_its_definition():
    x, y = normal(20), normal(30, seed=1, shift=0.5)
    xx, yy, xy = torch.cdist(x, x).sum() / (20 * 19), torch.cdist(y, y).sum() / (30 * 29), torch.cdist(x, y).mean()
    assert energy_distance(pairwise(x, y), 20)["value"] == pytest.approx((2 * xy - xx - yy).item(), abs=1e-9)


def test_energy_distance_of_two_points_is_twice_their_distance():
    assert energy_distance(pairwise(torch.zeros(5, 1).double(), torch.full((7, 1), 3.0).double()), 5)["value"] == pytest.approx(6.0)


def test_kernel_mmd_is_its_definition():
    x, y = normal(20), normal(25, seed=1, shift=0.5)
    result = kernel_mmd(pairwise(x, y), 20)
    kernel = torch.exp(-pairwise(x, y).square() / (2 * result["bandwidth"] ** 2))
    off = kernel - torch.eye(45)
    expected = off[:20, :20].sum() / (20 * 19) + off[20:, 20:].sum() / (25 * 24) - 2 * kernel[:20, 20:].mean()
    assert result["value"] == pytest.approx(expected.item(), abs=1e-9)


def test_energy_distance_of_many_to_few_in_single_precision():
    generator = torch.Generator().manual_seed(0)
    distance = pairwise(torch.randn(3000, 2, generator=generator), torch.randn(20, 2, generator=generator) + 0.3)
    exact = energy_distance(distance.double(), 3000, permutations=1)["value"]
    assert energy_distance(distance, 3000, permutations=1)["value"] == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("test", [energy_distance, kernel_mmd])
def test_permutation_p_is_uniform_under_the_null_and_small_off_it(test):
    null = torch.tensor([test(pairwise(normal(40, seed=2 * s), normal(40, seed=2 * s + 1)), 40)["p"] for s in range(60)])
    assert 0.3 < null.mean() < 0.7
    assert (null < 0.05).double().mean() < 0.15
    assert test(pairwise(normal(40), normal(40, seed=1, shift=1.0)), 40)["p"] == pytest.approx(1 / 201)


def test_identical_points_are_no_evidence():
    assert energy_distance(torch.zeros(40, 40).double(), 20)["p"] == 1.0


def test_auc_error_is_the_null_variance_of_the_rank_sum():
    assert _auc_stderr(0.5, 40, 60) == pytest.approx(math.sqrt((40 + 60 + 1) / (12 * 40 * 60)))
    assert _auc_stderr(1.0, 40, 60) == 0.0


def test_classifier_sees_dependence_that_marginals_hide():
    independent = normal(200, 2)
    dependent = normal(200, 2, seed=1)
    dependent[:, 1] = dependent[:, 1].abs() * dependent[:, 0].sign()  # the same marginals
    told = classifier_test(independent, dependent)["c2st_auc"]
    assert told["value"] > 0.65
    same = classifier_test(independent, normal(200, 2, seed=2))["c2st_auc"]
    assert same["value"] < 0.6
    assert same["low"] < same["value"] < same["high"]


# -- fidelity and memorisation --------------------------------------------------------------------


def test_half_the_modes_have_full_precision_and_half_the_recall():
    left, right = normal(60, 2), normal(60, 2, seed=1, shift=50.0)
    result = precision_recall(pairwise(torch.cat([left, right]), normal(120, 2, seed=2)), 120)
    assert result["precision"]["value"] > 0.9
    assert 0.4 < result["recall"]["value"] < 0.5
    assert 0.4 < result["coverage"]["value"] <= 0.5
    assert result["precision"]["k"] == 5


def test_far_away_scores_nothing():
    assert all(m["value"] == 0 for m in precision_recall(pairwise(normal(50), normal(50, shift=100.0)), 50).values())


def test_nearest_in_chunks_is_the_brute_force_minimum():
    x, train = normal(7), normal(50, seed=1)
    assert torch.allclose(nearest(x, train, chunk=8), torch.cdist(x, train).amin(1))


def test_copies_are_found():
    train, held_out = normal(500, 4), nearest(normal(200, 4, seed=1), normal(500, 4))
    assert memorisation(nearest(train[:200], train), held_out)["near_copies"]["value"] == 1.0
    assert memorisation(nearest(normal(200, 4, seed=2), train), held_out)["near_copies"]["value"] < 0.15


# -- features -------------------------------------------------------------------------------------


def test_features_of_a_table_and_of_pairs():
    space = Space.columns(Support("decimal", center=2.0, scale=2.0, missing=True), Support("nominal", 3))
    x = torch.tensor([[4, 0], [-1, 2]])
    assert features(space, x).tolist() == [[1.0, 0.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0, 1.0]]
    assert features(space, x, Space.label(2), torch.tensor([[0], [1]])).shape == (2, 7)


def test_features_of_an_image_lie_in_the_unit_interval():
    assert features(Space.grid(1, 1, 3, 17), torch.tensor([[[[0, 8, 16]]]])).tolist() == [[0.0, 0.5, 1.0]]


def test_features_of_text_count_what_is_there_and_not_the_padding():
    text = torch.tensor([[5, 6, 7, -1, -1], [5, 6, 7, 8, 9]])
    full = features(Space.sequence(5, variable=True), text)
    assert torch.allclose(full[0], features(Space.sequence(3), text[:1, :3])[0])
    assert torch.allclose(full.square().sum(1), torch.full((2,), 3.0).double())  # three orders, each sums to one


# -- evaluate -------------------------------------------------------------------------------------


class Uniform(Model, Likelihood):
    """log p = -D log K plus the row's own noise: depends on content, draws and seed as a bound does."""

    summary = "uniform"
    bound_draws = 4

    def __init__(self, space, *, given=None, size="small", noisy=False, empty=False):
        super().__init__(space, given=given, size=size)
        self.linear = torch.nn.Linear(2, 3)
        self.noisy, self.empty = noisy, empty

    def forward(self, x, given=None, *, turn=""):
        return self.linear.weight.sum() * torch.ones(len(x))

    def _log_prob(self, x, given, noise):
        nats = torch.full((len(x),), -self.space.dims * math.log(self.space.levels)).double()
        if self.noisy:
            nats = nats + noise.normal(2).view(noise.draws, len(x), 2).mean((0, 2))
        if self.empty:
            nats[0] = -math.inf
        return LogProb(nats, "exact", how="uniform")

    def sample(self, n, given=None, **how):
        assert not self.training
        assert not torch.is_grad_enabled()
        assert (given is not None) == (self.given_space is not None)
        return torch.randint(self.space.levels, (n, *self.space.shape))


class Sampler(Model):
    """No likelihood."""

    summary = "sampler"

    def forward(self, x, given=None, *, turn=""):
        return torch.zeros(len(x))

    def sample(self, n, given=None, **how):
        return torch.randint(3, (n, *self.space.shape))


@pytest.fixture
def data():
    """Rows of three equal entries out of three levels: marginals are uniform, dependence is total."""
    generator = torch.Generator().manual_seed(0)
    value = torch.randint(3, (300, 1), generator=generator)
    x = value.expand(300, 4).reshape(300, 1, 2, 2).contiguous()
    split = [Split(x[a:b], value[a:b]) for a, b in ((0, 180), (180, 200), (200, 300))]
    return Data(Space.grid(1, 2, 2, 3), *split, given=Space.label(3), name="equal entries")


def test_evaluate_a_likelihood(data):
    model = Uniform(data.space).train()
    row = evaluate(model, data)
    assert row.value == pytest.approx(math.log2(3))
    assert (row.unit, row.kind, row.how, row.n, row.given, row.parameters, row.error) == ("bits/dim", "exact", "uniform", 100, None, 9, "")
    assert model.training
    assert row.stderr == pytest.approx(0.0)
    assert min(row.samples_per_s, row.log_prob_per_s, row.peak_memory_mib) > 0
    auc = row.quality["c2st_auc"]
    assert auc["value"] > 0.9
    assert auc["independent"] > 0.9
    assert auc["real"] < 0.6
    assert row.quality["energy_distance"]["p"] < 0.01
    assert standing(row) == "ranked"


def test_evaluate_repeats_itself(data):
    one, two = (evaluate(Uniform(data.space, noisy=True), data, seed=3) for _ in range(2))
    assert one.value == two.value
    assert one.quality == two.quality
    assert evaluate(Uniform(data.space, noisy=True), data, seed=4).value != one.value


def test_evaluate_a_conditional_model(data):
    row = evaluate(Uniform(data.space, given=data.given), data)
    assert row.given == "label"
    assert row.quality["c2st_auc"]["n"] == 100


def test_a_model_without_likelihood_has_null_value_and_kind(data):
    row = evaluate(Sampler(data.space), data)
    assert (row.value, row.kind, row.unit) == (None, None, None)
    assert row.quality["coverage"]["value"] >= 0
    assert standing(row) == "no likelihood"


def test_an_impossible_example_is_an_error_not_a_number(data):
    row = evaluate(Uniform(data.space, empty=True), data)
    assert row.value is None
    assert "not finite" in row.error
    assert standing(row) == "failed"


def test_chunks_do_not_change_a_likelihood(data, monkeypatch):
    model = Uniform(data.space, noisy=True)
    whole = log_prob(model, data.test, draws=4)
    monkeypatch.setattr("likely.evaluation.measure._ENTRIES", 4 * 4 * 7)  # seven rows at a time
    assert torch.equal(log_prob(model, data.test, draws=4).nats, whole.nats)
    assert held_out_bits(model, data).n == 100


def test_a_slow_model_is_measured_on_a_part_and_says_so(data, monkeypatch):
    more = Data(data.space, data.train, data.valid, Split(data.test.x.repeat(3, 1, 1, 1)), name="more")
    monkeypatch.setattr("likely.evaluation.measure._ENTRIES", 16 * 20)  # twenty rows of four entries and four draws at a time
    result = held_out_bits(Uniform(data.space, noisy=True), more, seconds=0.0)
    assert result.n == 32
    assert "32 of 300 test examples" in result.how
    assert held_out_bits(Uniform(data.space, noisy=True), more, seconds=60.0).n == 300
    with torch.no_grad():
        drawn, _ = draw(Uniform(data.space).eval(), None, 1000, 0, 0.0)
    assert len(drawn) == 64


def test_drawing_gives_each_its_given_and_as_many_as_were_asked_for(data):
    with torch.no_grad():
        drawn, _ = draw(Uniform(data.space, given=data.given).eval(), data.test.given, 100, 0)
    assert (len(drawn.x), len(drawn.given)) == (100, 100)
    assert torch.equal(drawn.given, data.test.given)


def test_floors_frame_the_measures(data):
    data = data.unconditional()
    reference = floors(data, 100)
    assert reference["coverage"]["real"] > reference["coverage"]["independent"]
    assert reference["near_copies"]["real"] == pytest.approx(1.0)  # three possible rows: every one is in the training split
    perfect = quality(data, Split(data.valid.x.repeat(5, 1, 1, 1)), reference=reference)
    assert perfect["c2st_auc"]["independent"] == reference["c2st_auc"]["independent"]
    assert perfect["c2st_auc"]["value"] < 0.65


# -- rows and galleries ---------------------------------------------------------------------------


def test_rows_survive_json(tmp_path):
    row = Row(
        "flow", 1.5, "bits/dim", "lower bound", stderr=math.nan, curve=[{"step": 1, "train": math.inf}], quality={"x": {"value": 0.1}}
    )
    write_rows(tmp_path / "rows.json", [row])
    (back,) = read_rows(tmp_path / "rows.json")
    assert (back.model, back.value, back.stderr, back.curve) == ("flow", 1.5, None, [{"step": 1, "train": None}])
    assert Row.from_json({**row.to_json(), "of a later version": 1}).model == "flow"
    assert read_rows(tmp_path / "none.json") == []


def test_galleries_show_the_data():
    import base64
    import io

    from PIL import Image

    strip = gallery(Space.grid(1, 1, 2, 17), torch.tensor([[[[0, 16]]], [[[8, 0]]]]))
    image = Image.open(io.BytesIO(base64.b64decode(strip["png"])))
    assert image.size == (5, 1)
    assert [image.getpixel((i, 0)) for i in range(5)] == [(0, 0, 0, 255), (255,) * 4, (0, 0, 0, 0), (128, 128, 128, 255), (0, 0, 0, 255)]
    table = Space.columns(
        Support("nominal", 2, "sex", missing=True, categories=("f", "m")), Support("decimal", name="kg", decimals=1, origin=5)
    )
    assert gallery(table, torch.tensor([[1, 7], [-1, 0]]))["rows"] == [["m", "1.2"], ["–", "0.5"]]
    assert gallery(Space.sequence(4), torch.tensor([[104, 105, 255, 33]]))["excerpts"] == ["hi\ufffd!"]
    assert gallery(Space.reals(2), torch.tensor([[0.5, 1.0]])) == {"kind": "points", "xy": [[0.5, 1.0]]}


def test_rows_and_reports_do_not_import_torch():
    code = "import sys, likely.evaluation, likely.report.html, likely.report.terminal; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_bound_is_told_by_one_draw_and_by_many():
    from likely.verbs import score

    data = likely.load("bars-and-stripes")
    model = likely.fit(data, "flow", size="tiny", steps=20, progress=False).model
    with torch.no_grad():
        result = held_out_bits(model, data)
        one = held_out_bits(model, data, draws=1)
    assert f"K={model.bound_draws}; K=1: <= {one.value:.3f}" in result.how
    assert "K=1:" not in one.how
    assert result.value < one.value
    rows = score(model, data)
    assert sum(row["bits"] for row in rows) < sum(row["bits_by_one_draw"] for row in rows)
    assert "bits_by_one_draw" not in score(model, data, draws=1)[0]
