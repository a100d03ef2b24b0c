"""Point sets from the source to the report: read, drawn, compared whatever their order, shown and written."""

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

import likely
from likely import pointsets
from likely.evaluation.features import features
from likely.evaluation.gallery import gallery
from likely.sources import describe, write
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
