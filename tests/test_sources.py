"""Reading arrays, toys and text; splits, cards, augmentation, facts."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from likely.dataset import permutation_split
from likely.errors import DataError, UsageError
from likely.sources import augment_batch, describe, load, print_description, rebuild
from likely.sources.facts import _log_numbers, _log_smooth
from likely.sources.toys import TOYS
from likely.space import Space, to_grid

SHARED = Path(__file__).parents[2] / "shared/data"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="the shared benchmark data are not here")


# -- splits and cards ---------------------------------------------------------------------------


@given(st.integers(3, 400), st.integers(0, 99))
def test_splits_are_disjoint_and_complete(n, seed):
    parts = permutation_split(n, seed)
    assert torch.cat(parts).sort().values.tolist() == list(range(n))
    assert [len(p) for p in parts[:0:-1]] == [math.ceil(n / 5), math.ceil((n - math.ceil(n / 5)) / 10)]


def test_digits_split_is_the_stated_one():
    from sklearn.datasets import load_digits

    data, bunch = load("digits", given="label"), load_digits()
    order = np.random.default_rng(0).permutation(1797)
    for split, rows in zip((data.train, data.valid, data.test), (order[:1293], order[1293:1437], order[1437:]), strict=True):
        assert torch.equal(split.x[:, 0], torch.from_numpy(bunch.images[rows]).long())
        assert torch.equal(split.given[:, 0], torch.from_numpy(bunch.target[rows]))
    assert data.space.levels == 17
    assert data.given.levels == 10
    assert load("digits").given is None
    assert load("digits").train.given is None


def test_seed_changes_the_split_and_the_card_rebuilds_it():
    data = load("digits", given="label", seed=7)
    assert not torch.equal(data.train.x, load("digits").train.x)
    again = rebuild(data.card)
    assert again.card == data.card
    assert torch.equal(again.test.x, data.test.x)
    assert torch.equal(again.test.given, data.test.given)


def test_rebuild_refuses_what_changed_and_what_is_not_stored(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.arange(24, dtype=np.float32).reshape(12, 2))
    card = load(path).card
    assert rebuild(card).card == card
    np.save(path, np.ones((12, 2), np.float32))
    with pytest.raises(DataError, match="has changed since"):
        rebuild(card)
    with pytest.raises(DataError, match="in memory"):
        rebuild(load(np.random.rand(9, 2)).card)
    with pytest.raises(DataError, match="an array in memory"):
        rebuild(load(path, given=np.arange(12) % 2).card)


def test_duplicates_are_counted_within_and_across_splits():
    x = np.arange(20, dtype=np.uint8).reshape(20, 1, 1) * np.ones((1, 2, 2), np.uint8)
    train, _, test = permutation_split(20, 0)
    x[test[0]] = x[train[0]]
    x[train[2]] = x[train[1]]
    found = load(x).card["duplicates"]
    assert found == {"within_train": 1, "within_valid": 0, "within_test": 0, "valid_in_train": 0, "test_in_train": 1, "test_in_valid": 0}


def test_statistics_come_from_the_training_split():
    data = load(np.random.default_rng(0).normal(3, 2, (200, 2)))
    assert data.space.supports[0].center == pytest.approx(float(data.train.x[:, 0].double().mean()))


# -- arrays -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "options", "shape", "kind", "levels"),
    [
        (np.zeros((9, 4, 5), np.uint8), {}, (1, 4, 5), "ordinal", 256),
        (np.zeros((9, 7, 5, 3), np.uint8), {}, (3, 7, 5), "ordinal", 256),
        (np.zeros((9, 3, 4, 5), np.uint8), {"levels": 2}, (3, 4, 5), "ordinal", 2),
        (np.ones((9, 4, 4), bool), {}, (1, 4, 4), "ordinal", 2),
        (np.full((9, 4, 4), 6), {}, (1, 4, 4), "ordinal", 7),
        (np.full((9, 4, 4), 6.0), {"levels": 7}, (1, 4, 4), "ordinal", 7),
        (np.random.rand(9, 4, 4), {}, (1, 4, 4), "real", 0),
        (np.random.rand(9, 3), {}, (3,), "real", 0),
        (np.random.rand(9), {}, (1,), "real", 0),
        (np.arange(27).reshape(9, 3), {}, (3,), "decimal", 0),
        (np.zeros((9, 3), int), {"levels": 3}, (3,), "ordinal", 3),
        (np.arange(45).reshape(9, 5) % 4, {"layout": "sequence"}, (5,), "nominal", 4),
        (np.random.rand(9, 5, 2), {"layout": "set"}, (5, 2), "real", 0),
    ],
)
def test_array_rules(array, options, shape, kind, levels):
    for source in (array, torch.from_numpy(array)):
        data = load(source, **options)
        assert data.space.shape == shape
        assert {s.kind for s in data.space.supports} == {kind}
        assert data.space.supports[0].levels == levels
        data.space.check(data.train.x)


def test_nhwc_keeps_pixels():
    x = np.random.default_rng(0).integers(0, 256, (20, 5, 6, 3), dtype=np.uint8)
    order = permutation_split(20)[0]
    assert torch.equal(load(x).train.x, torch.from_numpy(x[order]).permute(0, 3, 1, 2).long())


def test_integer_tables_keep_their_values():
    x = np.array([[-5, 10**9 + i] for i in range(10)])
    data = load(x)
    origins = torch.tensor([s.origin for s in data.space.supports])
    assert torch.equal(to_grid(data.train.x) + origins, torch.from_numpy(x)[permutation_split(10)[0]])


def test_labels_of_pairs_arrays_and_datasets_agree():
    x, y = torch.randint(0, 256, (30, 1, 4, 4)).byte(), torch.arange(30) % 3
    pair = load((x, y), given="label")
    aside = load(x, given=y)
    dataset = load(torch.utils.data.TensorDataset(x, y), given="label")
    for data in (pair, aside, dataset):
        assert data.given.supports[0].categories == ("0", "1", "2")
        assert torch.equal(data.train.given, pair.train.given)
        assert torch.equal(data.train.x, pair.train.x)
    vectors = load(x, given=torch.rand(30, 2))
    assert vectors.given.shape == (2,)
    assert not vectors.given.discrete


def test_missing_labels_are_an_error_or_dropped():
    x, y = np.zeros((30, 4, 4), np.uint8), np.array([-1, *range(29)]) % 4 - (np.arange(30) < 2) * 9
    y[:2] = -1
    with pytest.raises(DataError, match="2 of 30 examples have no label"):
        load((x, y), given="label")
    data = load((x, y), given="label", missing_labels="drop")
    assert sum(map(len, data.splits.values())) == 28
    assert data.card["dropped_without_label"] == 2


def test_ragged_lists_are_sets():
    data = load([np.random.rand(k % 4 + 1, 2) for k in range(12)])
    assert data.space.variable
    assert data.space.unordered
    assert data.space.shape == (4, 2)
    ints = load([np.full((k % 3 + 1, 2), k) for k in range(12)])
    assert ints.space.levels == 12
    assert int(ints.train.x.min()) == -1


def test_named_arrays_keep_their_own_split(tmp_path):
    path = tmp_path / "parts.npz"
    train, test = np.arange(20).reshape(20, 1).astype(np.float32), np.arange(20, 25).reshape(5, 1).astype(np.float32)
    np.savez(path, x_train=train, y_train=np.arange(20) % 2, x_test=test, y_test=np.ones(5, int))
    data = load(path, given="label")
    assert data.test.x[:, 0].tolist() == test[:, 0].tolist()
    assert sorted([*data.train.x[:, 0].tolist(), *data.valid.x[:, 0].tolist()]) == train[:, 0].tolist()
    assert data.test.given.flatten().tolist() == [1] * 5
    assert len(data.valid) == 2


def test_idx_files_find_their_labels(tmp_path):
    x, y = np.arange(12 * 4, dtype=np.uint8).reshape(12, 2, 2), np.arange(12, dtype=np.uint8) % 3
    header = {3: bytes([0, 0, 8, 3, 0, 0, 0, 12, 0, 0, 0, 2, 0, 0, 0, 2]), 1: bytes([0, 0, 8, 1, 0, 0, 0, 12])}
    (tmp_path / "train-images-idx3-ubyte").write_bytes(header[3] + x.tobytes())
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(header[1] + y.tobytes())
    data = load(tmp_path / "train-images-idx3-ubyte", given="label")
    rows = permutation_split(12)[2]
    assert torch.equal(data.test.x[:, 0], torch.from_numpy(x)[rows].long())
    assert torch.equal(data.test.given[:, 0], torch.from_numpy(y)[rows].long())


@needs_shared
def test_mnist_is_read_as_published():
    data = load(SHARED / "mnist/t10k-images-idx3-ubyte.gz", given="label")
    x = torch.cat([s.x for s in data.splits.values()])
    assert x.shape == (10000, 1, 28, 28)
    assert float(x.double().mean()) == pytest.approx(33.7912, abs=1e-4)
    assert torch.cat([s.given for s in data.splits.values()]).flatten().bincount().max() == 1135


# -- toys ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOYS)
def test_toy_density_integrates_to_one_and_matches_its_samples(name):
    toy, data = TOYS[name](), load(name, count=4000)
    points, area = toy.lattice()
    p = toy.log_prob(points).exp() * area
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-6)
    x = torch.cat([s.x for s in data.splits.values()])
    log_p = data.truth.log_prob(x)
    assert float(-log_p.mean()) == pytest.approx(data.truth.entropy, abs=4 * float(log_p.std()) / len(x) ** 0.5 + 1e-6)
    assert torch.allclose(x.double().mean(0), p @ points, atol=4 * float(x.std(0).max()) / len(x) ** 0.5)


def test_bars_and_stripes_mass_and_entropy():
    data = load("bars-and-stripes", count=2000)
    log_p = data.truth.log_prob(data.space.enumerate())
    p = log_p.exp()
    assert float(p.sum()) == pytest.approx(1.0)
    assert float(-torch.xlogy(p, p).sum()) == pytest.approx(data.truth.entropy)
    assert bool(data.truth.log_prob(data.train.x).isfinite().all())


def test_toys_are_the_peers_ones():
    g = np.random.default_rng(3)
    k, t = g.integers(0, 2, 50), np.pi * g.random(50)
    arcs = np.where(k[:, None] == 0, np.c_[np.cos(t), np.sin(t)], np.c_[1 - np.cos(t), 0.5 - np.sin(t)])
    drawn = TOYS["moons"]().draw(np.random.default_rng(3), 50)
    assert np.allclose(drawn, arcs + 0.1 * g.normal(size=(50, 2)))


# -- text ---------------------------------------------------------------------------------------


def test_text_is_split_contiguously_and_windows_are_a_view():
    text = bytes(range(256)) * 40
    data = load(text, window=16)
    n = len(text)
    streams = [data.splits[p].stream for p in ("train", "valid", "test")]
    assert bytes(torch.cat(streams).tolist()) == text
    assert len(streams[2]) == n // 10
    assert len(streams[1]) == (n - n // 10) // 20
    assert data.train.x.shape == (len(streams[0]) - 15, 16)
    assert data.train.x.data_ptr() == streams[0].data_ptr()
    assert torch.equal(data.train.x[5], streams[0][5:21])
    assert data.space == Space.sequence(16)


def test_text_folder_is_split_by_file(tmp_path):
    import gzip

    texts = [bytes([65 + i]) * 50 for i in range(10)]
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt.gz").write_bytes(gzip.compress(text))
    data = load(tmp_path, window=8)
    seen = [set(data.splits[p].stream.tolist()) for p in ("train", "valid", "test")]
    assert set().union(*seen) == set(range(65, 75))
    assert sum(map(len, seen)) == 10
    assert [len(s) for s in seen] == [7, 1, 2]


def test_text_that_is_not_utf8_is_bytes_and_says_so():
    data = load(bytes([255, 254, 200]) * 100)
    assert data.card["not_utf8"] == 1
    assert set(data.train.stream.tolist()) == {255, 254, 200}


# -- augmentation -------------------------------------------------------------------------------


def test_augmentation_is_recorded_and_only_moves_pixels():
    data = load("digits", augment=("flip", "shift"))
    assert data.card["augment"] == ["flip", "shift"]
    x = data.train.x[:64]
    y = augment_batch(x, data.card, torch.Generator().manual_seed(0))
    assert torch.equal(y, augment_batch(x, data.card, torch.Generator().manual_seed(0)))
    assert not torch.equal(x, y)
    data.space.check(y)
    assert augment_batch(x, {}) is x
    flipped = augment_batch(x, {"augment": ["flip"]}, torch.Generator().manual_seed(0))
    same, mirrored = (flipped == x).flatten(1).all(1), (flipped == x.flip(-1)).flatten(1).all(1)
    assert bool((same | mirrored).all())
    assert 10 < int(mirrored.sum()) < 54


def test_shift_moves_by_at_most_an_eighth_and_repeats_the_edge():
    x = torch.arange(16).view(1, 1, 1, 16).expand(200, 1, 16, 16)
    y = augment_batch(x, {"augment": ["shift"]}, torch.Generator().manual_seed(0))
    rows = {tuple(row) for row in y[:, 0, 0].tolist()}
    assert rows == {tuple(min(max(i + by, 0), 15) for i in range(16)) for by in range(-2, 3)}


def test_augmentation_of_a_table_or_unknown_is_refused():
    with pytest.raises(UsageError, match="Only images"):
        load("moons", augment=("flip",))
    with pytest.raises(UsageError, match="Did you mean 'flip'"):
        load("digits", augment=("flipp",))


# -- facts --------------------------------------------------------------------------------------


def test_histogram_of_digits_is_the_known_figure():
    facts = describe(load("digits"))
    assert facts["trivial"]["histogram"] == pytest.approx(2.43, abs=0.005)
    assert facts["trivial"]["uniform"] == pytest.approx(math.log2(17))
    assert facts["entropy"][0]["constant"] == 3
    assert facts["sizes"] == {"train": 1293, "valid": 144, "test": 360}


@given(st.lists(st.integers(-20, 20), min_size=2, max_size=60))
def test_trivial_histogram_of_integers_sums_to_one(values):
    train = np.array(values, dtype=float)
    everything = np.arange(-6000, 6000, dtype=float)
    assert np.exp(_log_numbers(train, everything, real=False)).sum() == pytest.approx(1.0, abs=1e-6)


def test_trivial_histogram_of_reals_integrates_to_one():
    train = np.random.default_rng(0).normal(size=300)
    grid = np.arange(-200, 200, 1e-3)
    assert np.exp(_log_smooth(train, grid, real=True)).sum() * 1e-3 == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("source", ["digits", "wine", "moons", "bars-and-stripes", b"abcd" * 60])
def test_description_prints(source, capsys):
    facts = describe(load(source))
    print_description(facts)
    out = capsys.readouterr().out
    assert f"{facts['trivial']['histogram']:.3f} histogram" in out
    assert facts["unit"].split()[0] in out
    json_like = describe(load(source))
    assert json_like["trivial"] == facts["trivial"]


@pytest.mark.parametrize("source", ["digits", "wine", "spirals", "bars-and-stripes", b"abcd" * 60, np.zeros((9, 2, 2), np.uint8)])
def test_cards_and_facts_are_plain_json(source):
    data = load(source)
    assert json.loads(json.dumps(data.card)) == data.card
    assert json.loads(json.dumps(describe(data)["entropy"])) == describe(data)["entropy"]


def test_lists_of_tensors_and_frames_with_labels_beside():
    import pandas

    images = [torch.full((2, 2), i, dtype=torch.uint8) for i in range(9)]
    assert load(images).space.shape == (1, 2, 2)
    data = load(pandas.DataFrame({"v": range(12)}), given=np.arange(12) % 2)
    assert torch.equal(data.train.given, data.train.x % 2)


def test_a_path_is_stored_whole(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.random.rand(9, 2))
    monkeypatch.chdir(tmp_path)
    card = load("x.npy").card
    monkeypatch.chdir("/")
    assert rebuild(card).card == card


def test_names_in_brackets_are_printed_as_they_are(capsys):
    import polars

    print_description(describe(load(polars.DataFrame({"size [cm]": range(9), "[red]x": range(9)}))))
    out = capsys.readouterr().out
    assert "size [cm]" in out
    assert "[red]x" in out


@needs_shared
def test_shakespeare_is_split_as_texts_are():
    data = load(SHARED / "text/tinyshakespeare.txt.gz")
    assert [len(s.stream) for s in data.splits.values()] == [953663, 50192, 111539]
    assert describe(data)["trivial"]["histogram"] == pytest.approx(4.830, abs=1e-3)
