"""The measure: relax and snap are inverse, and the log-volumes make every bound a bound."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from likely.errors import DataError
from likely.noise import Noise
from likely.space import Space, Support, from_grid, to_grid

MIXED = Space.columns(
    Support("nominal", 3, "colour", missing=True),
    Support("ordinal", 5, "size", missing=True),
    Support("decimal", name="price", decimals=2, missing=True),
    Support("nominal", 2, "flag"),
    Support("nominal", 40, "town"),
    Support("decimal", name="count"),
)


def mixed_rows(n=200):
    g = torch.Generator().manual_seed(0)
    low, high = (-1, -1, -100, 0, 0, 0), (3, 5, 100, 2, 40, 10**9)
    return torch.stack([torch.randint(a, b, (n,), generator=g) for a, b in zip(low, high, strict=True)], 1)


@pytest.mark.parametrize(
    ("space", "x"),
    [
        (Space.grid(1, 3, 2, 17), torch.randint(0, 17, (50, 1, 3, 2))),
        (Space.grid(3, 2, 2, 256), torch.randint(0, 256, (50, 3, 2, 2))),
        (Space.reals(3), torch.randn(50, 3) * 100 + 7),
        (Space("grid", (2, 2, 2), (Support("nominal", 3), Support("nominal", 20))), torch.randint(0, 3, (50, 2, 2, 2))),
    ],
    ids=["grey", "rgb", "real", "nominal"],
)
def test_snap_undoes_relax(space, x):
    space = space.standardised(x)
    relaxed = space.relax(x, draws=3)
    assert relaxed.value.shape[1:] == space.relaxed.shape
    torch.testing.assert_close(space.snap(relaxed.value)[-len(x) :], x, rtol=1e-5, atol=1e-4)


def test_snap_undoes_relax_on_a_mixed_table_with_missing_cells():
    x = mixed_rows()[:, :5]
    space = Space.columns(*MIXED.supports[:5]).standardised(x)
    assert torch.equal(space.snap(space.relax(x).value), x)


@given(st.integers(-(10**12), 10**12))
def test_grid_codes_step_over_the_missing_code(index):
    code = from_grid(torch.tensor(index))
    assert code != -1
    assert to_grid(code) == index


def test_standardised_numbers_have_mean_0_and_variance_1():
    x = torch.randint(3, 9, (5000, 1, 2, 2))
    u = Space.grid(1, 2, 2, 17).standardised(x).relax(x).value
    assert abs(u.mean()) < 0.02
    assert abs(u.std() - 1) < 0.02


def test_series_are_sequences_of_real_vectors():
    space, x = Space.series(2, 50), torch.randn(100, 2, 50) * torch.tensor([[3.0], [0.1]]) + torch.tensor([[5.0], [-1.0]])
    learnt = space.standardised(x)
    relaxed = learnt.relax(x)
    assert relaxed.value.shape == (100, *learnt.relaxed.shape)
    torch.testing.assert_close(relaxed.value.std((0, 2)), torch.ones(2), rtol=1e-2, atol=0)
    torch.testing.assert_close(relaxed.nats, torch.full((100,), -50 * sum(math.log(s.scale) for s in learnt.supports)).double())
    torch.testing.assert_close(learnt.snap(relaxed.value), x)
    space.check(x)
    with pytest.raises(DataError, match="NaN"):
        space.check(x.where(x < 4, math.nan))
    assert space.nats_per_unit_of(x).unique().item() == 100
    assert Space.from_json(json.loads(json.dumps(learnt.to_json()))) == learnt


@pytest.mark.parametrize(
    "support",
    [Support("ordinal", 4, center=2.0, scale=1.2), Support("nominal", 3), Support("nominal", 2), Support("nominal", 19)],
    ids=["ordinal", "nominal-3", "nominal-2", "nominal-19"],
)
def test_relaxation_is_a_bound_that_is_tight_for_the_uniform(support):
    """log p(x) >= E[log p(u) + nats]: with p(u) the relaxation's own marginal under uniform x, the bound is log 1/K exactly."""
    space, k = Space.columns(support), support.levels
    x = torch.arange(k)[:, None]
    relaxed = space.relax(x, noise=Noise(x, 4000, seed=0))
    if support.kind == "ordinal":
        low, high = -support.center / support.scale, (k - support.center) / support.scale
        assert ((relaxed.value > low) & (relaxed.value < high)).all()
        log_p = torch.full_like(relaxed.nats, -math.log(high - low))
    else:  # normal on every coordinate; unused binary codes hold the rest of the mass
        log_p = torch.distributions.Normal(0, 1).log_prob(relaxed.value).sum(1).double()
    bound = (log_p + relaxed.nats).view(4000, k)
    cells = 2**support.codes if support.kind == "nominal" and support.codes < k else k
    torch.testing.assert_close(bound, torch.full_like(bound, -math.log(cells)), rtol=0, atol=1e-5)


def test_a_missing_number_costs_its_flag_and_nothing_for_its_value():
    space = Space.columns(Support("decimal", missing=True))
    x = torch.tensor([[-1], [3]])
    relaxed = space.relax(x, noise=Noise(x, 2000, seed=1))
    log_p = torch.distributions.Normal(0, 1).log_prob(relaxed.value).sum(1).double() + relaxed.nats
    missing, present = log_p.view(2000, 2).unbind(1)
    torch.testing.assert_close(missing, torch.full_like(missing, -math.log(2)), rtol=0, atol=1e-5)
    inside = torch.distributions.Normal(0, 1).log_prob(torch.linspace(3, 4, 4001)).mean()  # the bound averages log p over the cell
    assert present.mean().item() == pytest.approx(inside.item() - math.log(2), abs=0.02)


def test_cells_cover_the_line_and_edges_are_open():
    space = Space.columns(Support("ordinal", 3, center=1.5, scale=2.0), Support("decimal", center=0.0, scale=10.0, missing=True))
    x = torch.tensor([[0, 5], [1, -2], [2, -1]])
    lower, upper = space.cells(x)
    assert torch.equal(lower[:, 0], torch.tensor([-math.inf, -0.25, 0.25], dtype=torch.float64))
    assert torch.equal(upper[:, 0], torch.tensor([-0.25, 0.25, math.inf], dtype=torch.float64))
    torch.testing.assert_close(lower[:2, 1], torch.tensor([0.5, -0.1], dtype=torch.float64))
    assert lower[2, 1] == -math.inf
    assert upper[2, 1] == math.inf


def test_enumerate_lists_every_example_once():
    assert len(Space.grid(1, 2, 2, 3).enumerate()) == 81
    assert len(Space.columns(Support("nominal", 3, missing=True), Support("ordinal", 2)).enumerate()) == 8
    strings = Space.sequence(3, 2, variable=True).enumerate()
    assert len(strings) == 1 + 2 + 4 + 8
    assert len(strings.unique(dim=0)) == len(strings)
    with pytest.raises(DataError, match="finitely"):
        Space.reals(1).enumerate()


@pytest.mark.parametrize(
    "space", [MIXED, Space.grid(3, 4, 4, 256), Space.sequence(9, variable=True), Space.points(4, 2, unordered=False)], ids=str
)
def test_a_space_survives_json(space):
    assert Space.from_json(json.loads(json.dumps(space.to_json()))) == space


@pytest.mark.parametrize(
    ("space", "x", "told"),
    [
        (Space.grid(1, 2, 2, 4), torch.zeros(3, 2, 2, dtype=torch.int64), "shape"),
        (Space.grid(1, 2, 2, 4), torch.zeros(3, 1, 2, 2), "float32"),
        (Space.grid(1, 2, 2, 4), torch.full((3, 1, 2, 2), 4), "outside 0..3"),
        (Space.reals(2), torch.tensor([[0.0, math.nan]]), "NaN"),
        (Space.columns(Support("decimal", name="age")), torch.tensor([[-1]]), "Missing cells in column age"),
        (Space.sequence(2, 3), torch.tensor([[0, 3]]), "outside"),
    ],
)
def test_check_names_what_is_wrong(space, x, told):
    with pytest.raises(DataError, match=told):
        space.check(x)


def test_units_name_the_measure():
    assert Space.grid(1, 2, 2, 4).unit == "bits/dim"
    assert Space.sequence(5).unit == "bits/byte"
    assert MIXED.unit == "bits/row"
    assert "density" in Space.reals(2).unit


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 60), st.booleans(), st.integers(0, 2**31))
def test_any_nominal_survives_the_relaxation(levels, missing, seed):
    space = Space.columns(Support("nominal", levels, missing=missing))
    x = torch.randint(-1 if missing else 0, levels, (64, 1), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(space.snap(space.relax(x).value), x)


def test_repeats_of_real_columns_are_told_and_a_fit_warns(capsys):
    import likely
    from likely.sources import print_description

    smooth, zeros = torch.randn(200), torch.randn(200).relu()
    data = likely.load(torch.stack([smooth, zeros, smooth.round(decimals=1)], 1))
    lines = data.repeats()
    assert [line.split(":")[0] for line in lines] == ["Column x1", "Column x2"]
    assert "0 in " in lines[0]
    with pytest.warns(UserWarning, match="no limit there"):
        likely.fit(data, "gmm", size="tiny", progress=False)
    assert likely.data(data)["repeats"] == lines
    print_description(likely.data(data))
    told = capsys.readouterr().out
    assert "Column x1" in told
    assert "Column x2" in told
    assert "Column x0" not in told
    assert not likely.load(smooth[:, None]).repeats()


@pytest.mark.parametrize("decimals", [0, 2])
def test_an_atom_of_numbers_on_a_grid_is_told(decimals, tmp_path):
    import likely

    spread = torch.randn(300, generator=torch.Generator().manual_seed(0)).mul(100)
    claims = spread.abs().where(torch.arange(300) % 5 == 0, 0.0)  # four fifths are zeros
    rows = [f"{a:.{decimals}f},{b:.{decimals}f},{i % 3}" for i, (a, b) in enumerate(zip(claims.tolist(), spread.tolist(), strict=True))]
    (tmp_path / "t.csv").write_text("claim,spread,few\n" + "\n".join(rows))
    data = likely.load(tmp_path / "t.csv")
    (line,) = likely.data(data)["repeats"]
    assert line.startswith("Column claim: 0 in 77%")
    with pytest.warns(UserWarning, match="atom"):
        likely.fit(data, "independent", size="tiny", progress=False)


def test_a_few_reals_that_differ_do_not_repeat():
    import likely

    assert not likely.load(torch.randn(50, 1)).repeats()
