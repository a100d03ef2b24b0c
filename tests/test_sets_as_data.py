"""Point sets from the source to the report: read, drawn, compared whatever their order, shown and written."""

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

import likely
from likely import pointsets
from likely.errors import DataError
from likely.evaluation.features import features
from likely.evaluation.gallery import gallery
from likely.sources import describe, write
from likely.sources.gaps import gapped
from likely.sources.toysets import swarm_log_prob
from likely.space import Space


def test_swarms_have_the_density_that_is_claimed():
    data = likely.load("swarms", count=400)
    x = data.test.x
    for row in x[:20]:
        n = int(pointsets.there(row).sum())
        covariance = torch.kron(0.09 * torch.eye(n).double() + 1, torch.eye(2).double())
        flat = MultivariateNormal(torch.zeros(2 * n).double(), covariance).log_prob(row[:n].flatten().double())
        expected = flat + torch.lgamma(torch.tensor(n + 1.0)) - np.log(8)
        assert swarm_log_prob(row[None]).item() == pytest.approx(expected.item(), rel=1e-5)
    many = likely.load("swarms", count=20_000).train.x
    nats = -swarm_log_prob(many)
    assert nats.mean().item() == pytest.approx(data.truth.entropy, abs=4 * nats.std().item() / len(many) ** 0.5)


def test_arrays_of_sets_are_read_with_their_padding(tmp_path):
    x = likely.load("circles", count=60)
    path = tmp_path / "sets.npz"
    write(x.test.x, x.space, path)
    again = likely.load(path, layout="set")
    assert again.space.variable
    assert again.space.unordered
    rows = {tuple(row.nan_to_num(9).flatten().tolist()) for part in again.splits.values() for row in part.x}
    assert all(tuple(row.nan_to_num(9).flatten().tolist()) in rows for row in x.test.x)
    whole = np.arange(24).reshape(4, 3, 2) % 5
    assert not likely.load(whole, layout="set").space.variable
    labelled = likely.load((np.where(whole == 4, -1, whole)[:, :, :1].repeat(2, 2), np.arange(4) % 2), layout="set", given="label")
    assert labelled.space.variable
    assert labelled.given is not None


def test_features_of_sets_know_no_order_but_what_a_set_is():
    torch.manual_seed(0)
    data = likely.load("circles", count=200)
    x = data.train.x[:50]
    order = torch.stack([torch.randperm(16) for _ in x])
    shuffled = pointsets.sorted_points(x.gather(1, order[..., None].expand_as(x)))
    torch.testing.assert_close(features(data.space, x), features(data.space, shuffled))
    assert features(data.space, x).isfinite().all()
    turned = x.clone()
    turned[..., 0] = x[..., 0].flip(0)  # coordinates of other sets: the same marginals, other points
    assert (features(data.space, x) - features(data.space, turned)).abs().max() > 0.1


def test_sets_are_described_and_shown():
    data = likely.load("swarms", count=100)
    assert describe(data)["name"] == "swarms"
    shown = gallery(data.space, data.test.x)
    assert shown["kind"] == "sets"
    assert all(3 <= len(plot) <= 10 for plot in shown["sets"])
    line = Space.points(3, 1)
    assert gallery(line, torch.randn(2, 3, 1))["sets"][0][2][1] == 1.0


@pytest.mark.slow
def test_a_comparison_of_sets_reports_their_plots(tmp_path):
    rows = likely.compare(likely.load("swarms", count=150), ["diffusion"], steps=3, size="tiny", out=tmp_path, jobs=1)
    assert rows[0].unit == "nats/set (density)"
    page = next(tmp_path.rglob("report.html")).read_text()
    assert page.count('aria-label="scatter plot"') == 12


# -- what of a set is unknown ---------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [False, True], ids=["reals", "integers"])
def test_what_is_lost_before_the_end_of_a_set_is_unknown(tmp_path, whole):
    space = Space.points(3, 2, 6 if whole else None, variable=True)
    gone = -1 if whole else np.nan
    sets = [[[gone, gone], [1, 2]], [[3, gone], [gone, gone], [4, 5]], [[1, 1]]]
    padded = np.full((3, 3, 2), gone)
    for row, points in zip(padded, sets, strict=True):
        row[: len(points)] = points
    padded = padded.astype(np.int64 if whole else np.float32)
    np.savez(tmp_path / "holes.npz", x=padded)
    for source in (tmp_path / "holes.npz", padded, torch.from_numpy(padded), [row[: len(s)] for row, s in zip(padded, sets, strict=True)]):
        found = gapped(source, None, space, None)
        assert (~found.known).nonzero().tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 1], [1, 1, 0], [1, 1, 1]]
        assert pointsets.counts(found.x).tolist() == [2, 3, 1]
        there = found.known & pointsets.there(found.x)[..., None]
        assert torch.equal(found.x[there].double(), torch.from_numpy(padded)[there].double())
    for wrong, told in ((padded[:, :, :1], "the model is of"), (padded[2:], "Nothing is unknown"), (padded[:, :1] * 0 + gone, "0 points")):
        with pytest.raises(DataError, match=told):
            gapped(wrong.astype(padded.dtype), None, space, None)


def test_the_command_line_fills_sets(run, tmp_path):
    torch.manual_seed(0)
    sets = pointsets.padded(torch.randn(40, 3, 2), torch.arange(40) % 3 + 1).numpy()
    np.savez(tmp_path / "sets.npz", x=sets)
    code, _, err = run(
        "fit", tmp_path / "sets.npz", "diffusion", "--layout", "set", "--size", "tiny", "--steps", 2, "--inpaint", "--out", tmp_path / "m"
    )
    assert code == 0, err
    holes = sets[[2, 5]].copy()
    holes[0, 0], holes[1, 1] = np.nan, [np.nan, holes[1, 1, 1]]
    np.save(tmp_path / "holes.npy", holes)
    for words in ((), ("--method", "repaint", "--steps", 3)):
        out = tmp_path / f"done{len(words)}.npz"
        code, _, err = run("edit", tmp_path / "m", tmp_path / "holes.npy", "--draws", 2, "--out", out, *words)
        assert code == 0, err
        with np.load(out) as file:
            done = file["x"]
        assert done.shape == (4, 3, 2)
        assert np.isfinite(done).all()
        known = ~np.isnan(holes)
        assert (done.reshape(2, 2, 3, 2)[:, known] == holes[known]).all()
    np.save(tmp_path / "whole.npy", sets[[2]])
    code, _, err = run("edit", tmp_path / "m", tmp_path / "whole.npy", "--out", tmp_path / "no.npz")
    assert (code, "Nothing is unknown" in err, "Mark unknown points by NaN" in err) == (3, True, True), err
