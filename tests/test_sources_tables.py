"""Tables: schema, codes, and the way back to the same table."""

import csv
import gzip
import io
import itertools
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas
import polars
import pyarrow
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from likely.errors import DataError, UsageError
from likely.sources import load, read, write
from likely.sources.columns import Column, frame_columns, read_columns
from likely.sources.examples import Options
from likely.sources.tables import OTHER, Number, csv_text, encode, frame, spelt_columns, table_examples
from likely.space import MISSING, Space

SHARED = Path(__file__).parents[2] / "shared/data"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="the shared benchmark data are not here")
TABLE = "age,job,pay\n" + "".join(f"{20 + i},{'abc'[i % 3]},{i}.{i % 4}5\n" for i in range(20)) + "?,c,1.5\n33,,0.25\n"


def _saved(tmp_path, text, name="t.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def _all_rows(data):
    return torch.cat([s.x for s in data.splits.values()])


# -- schema -------------------------------------------------------------------------------------


def test_schema_of_a_mixed_table(tmp_path):
    data = load(_saved(tmp_path, TABLE))
    age, job, pay = data.space.supports
    assert (age.kind, age.missing, age.decimals, age.origin) == ("decimal", True, 0, 20)
    assert (job.kind, job.missing, job.categories) == ("nominal", True, ("a", "b", "c", OTHER))
    assert (pay.kind, pay.missing, pay.decimals, pay.origin) == ("decimal", False, 2, 5)
    assert data.card["missing_cells"] == {"age": 1, "job": 1}
    assert data.space.unit == "bits/row"


@pytest.mark.parametrize(
    ("cells", "decimals", "origin"),
    [
        (["1", "2", "30"], 0, 1),
        (["1.50", "2", "-3.0"], 1, -30),
        (["1e3", "2.5E-2"], 3, 25),
        (["0.1", "0.25", "1E1"], 2, 10),
        (["1000000000", "3999999999"], 0, 10**9),
        (["-0", "+7"], 0, 0),
        ([".5", "5."], 1, 5),
        (["123456789012345", "0"], 0, 0),
    ],
)
def test_fewest_decimals_that_hold_every_value(cells, decimals, origin):
    found = table_examples([Column.of("v", cells)], Options())
    s = found.space.supports[0]
    assert (s.kind, s.decimals, s.origin) == ("decimal", decimals, origin)
    assert [Decimal(v) for v in spelt_columns(found.x, found.space)["v"]] == [Decimal(c) for c in cells]


def test_leading_zeros_are_names_and_so_are_declared_columns():
    assert table_examples([Column.of("zip", ["00501", "10001"])], Options()).space.supports[0].kind == "nominal"
    found = table_examples([Column.of("code", ["1", "2", "1"])], Options(nominal=("code",)))
    assert found.space.supports[0].categories == ("1", "2", OTHER)


def test_precision_rounds_and_counts():
    found = table_examples([Column.of("v", ["0.12345678901234567", "2.5", "1e-30"])], Options(precision=2))
    assert spelt_columns(found.x, found.space)["v"] == ["0.12", "2.50", "0.00"]
    assert found.notes["rounded_cells"] == 2
    whole = table_examples([Column.of("v", ["0.125", "2.5"]), Column.of("age", ["31", "64"])], Options(precision=2))
    assert [s.decimals for s in whole.space.supports] == [2, 0]


@given(st.decimals(allow_nan=False, allow_infinity=False, places=None, min_value=-(10**12), max_value=10**12), st.integers(0, 6))
def test_rounding_is_half_even(value, decimals):
    want = int((value * 10**decimals).to_integral_value(rounding="ROUND_HALF_EVEN"))
    assert Number.of(str(value)).in_units(decimals) == want


def test_given_columns_leave_the_table(tmp_path):
    path = _saved(tmp_path, TABLE.replace("33,,", "33,a,"))
    data = load(path, given="job")
    assert [s.name for s in data.space.supports] == ["age", "pay"]
    assert data.given.supports[0].categories == ("a", "b", "c")
    assert data.given.levels == 3
    data.given.check(data.train.given)
    both = load(path, given=("job", "pay"))
    assert [s.name for s in both.given.supports] == ["job", "pay"]
    with pytest.raises(DataError, match="Did you mean 'job'"):
        load(path, given="jobb")


WEIGHED = "x,job,times\n" + "".join(f"{i},{'ab'[i % 2]},{i % 4 / 2}\n" for i in range(40))


def test_a_column_of_weights_leaves_the_table_and_rows_of_weight_zero_too(tmp_path):
    data = load(_saved(tmp_path, WEIGHED), weights="times", given="job")
    assert [s.name for s in data.space.supports] == ["x"]
    assert data.card["dropped_of_weight_0"] == 10
    assert data.card["options"]["weights"] == "times"
    for split in data.splits.values():
        assert torch.equal(split.weights, (split.x[:, 0] % 4 / 2).double())  # codes are the values, as the smallest is 0
        assert torch.equal(split.given[:, 0], split.x[:, 0] % 2)
    kept = "".join(line + "\n" for line in WEIGHED.splitlines() if not line.endswith(",0.0"))
    apart = load(_saved(tmp_path, kept.replace("x,job,times", "x,job,n"), "u.csv"), given="job")
    assert torch.equal(apart.train.x[:, 0] + (apart.space.supports[0].origin), data.train.x[:, 0])
    assert data.unconditional().train.weights is data.train.weights
    assert load(_saved(tmp_path, WEIGHED)).train.weights is None
    frame = pandas.read_csv(io.StringIO(WEIGHED))
    assert torch.equal(load(frame, weights="times").train.weights, load(_saved(tmp_path, WEIGHED), weights="times").train.weights)


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        (WEIGHED, "tims", r"t.csv has no column 'tims'.*Did you mean 'times'\? Known: job, times, x"),
        (WEIGHED.replace("3,b,1.5", "3,b,-1"), "times", "t.csv, column 'times', row 4: '-1' is no weight"),
        (WEIGHED.replace("3,b,1.5", "3,b,"), "times", "row 4: '' is no weight"),
        (WEIGHED.replace("3,b,1.5", "3,b,inf"), "times", "row 4: 'inf' is no weight"),
        (WEIGHED, "job", "column 'job', row 1: 'a' is no weight"),
        ("w,x\n" + "0,1\n0,2\n0,3\n", "w", "all weights are 0"),
        ("w\n1\n2\n3\n", "w", "none is left to model"),
    ],
)
def test_what_is_no_weight_is_named(tmp_path, text, column, message):
    with pytest.raises(DataError, match=message):
        load(_saved(tmp_path, text), weights=column)


def test_only_tables_have_weights(tmp_path):
    with pytest.raises(UsageError, match="column of a table"):
        load(np.zeros((9, 4, 4), dtype=np.uint8), weights="times")
    with pytest.raises(UsageError, match="column of a table"):
        load(_saved(tmp_path, "some text " * 40, "t.txt"), weights="times")


def test_wine_is_a_table_with_a_class():
    data = load("wine", given="class")
    assert (data.space.shape, data.given.levels, len(data.test)) == ((13,), 3, 36)
    from sklearn.datasets import load_wine

    cells = spelt_columns(_all_rows(data), data.space)
    found = sorted(map(tuple, np.array([list(map(float, c)) for c in cells.values()]).T))
    assert found == sorted(map(tuple, load_wine().data))


# -- there and back -----------------------------------------------------------------------------

_words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), min_size=1, max_size=6)
_numbers = st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**7), max_value=10**7, places=3)


@st.composite
def tables(draw):
    """Header and rows: a column of numbers that may be missing, one of words, and a third of words."""
    n = draw(st.integers(1, 12))
    number = draw(st.lists(st.one_of(st.none(), _numbers.map(str)), min_size=n, max_size=n).filter(any))
    word = draw(st.lists(_words, min_size=n, max_size=n))
    quoted = draw(st.lists(st.sampled_from(["a,b", 'say "x"', "two\nlines", "plain", "", "?x"]), min_size=n, max_size=n).filter(any))
    return [["x, number", "name", "third"], *([a or "", "w" + b, c] for a, b, c in zip(number, word, quoted, strict=True))]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(tables())
def test_writing_what_was_read_gives_the_same_table(tmp_path, rows):
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    columns = read_columns(_saved(tmp_path, out.getvalue()))
    found = table_examples(columns, Options())
    found.space.check(found.x)
    back = list(csv.reader(io.StringIO(csv_text(found.x, found.space))))
    assert back[0] == rows[0]
    for was, now in zip(rows[1:], back[1:], strict=True):
        assert was[1:] == now[1:]
        assert was[0] == now[0] == "" or Decimal(was[0]) == Decimal(now[0])
    again = read_columns(_saved(tmp_path, csv_text(found.x, found.space)))
    assert torch.equal(encode(again, found.space, Options())[0], found.x)
    assert Space.from_json(found.space.to_json()) == found.space


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-1e4, 1e4, width=32).map(lambda v: round(v, 2)), st.sampled_from(["u", "v"])), min_size=1, max_size=9))
def test_frames_come_back(rows):
    table = polars.DataFrame({"a": [r[0] for r in rows], "b": [r[1] for r in rows]})
    found = table_examples(frame_columns(table), Options())
    assert frame(found.x, found.space).cast({"a": polars.Float64}).equals(table.with_columns(polars.col("a") + 0.0))


def test_frames_of_all_libraries_read_alike(tmp_path):
    values = {
        "n": [1.5, None, 3.0, -2.25] * 5,
        "k": [1, 2, 3, 4] * 5,
        "flag": [True, False, None, True] * 5,
        "w": ["a", "b", None, "c"] * 5,
    }
    polars_frame = polars.DataFrame(values)
    polars_frame.write_parquet(tmp_path / "t.parquet")
    sources = [polars_frame, pandas.DataFrame(values), pyarrow.table(values), tmp_path / "t.parquet"]
    first = load(sources[0])
    assert first.space.supports[2].categories == ("false", "true", OTHER)
    for source in sources[1:]:
        data = load(source)
        assert data.space == first.space
        assert torch.equal(data.train.x, first.train.x)


def test_categorical_numbers_of_a_frame_are_names():
    data = load(pandas.DataFrame({"a": pandas.Categorical([1, 2, 3] * 5), "f": np.float32([0.1, 0.2, 0.3] * 5)}))
    assert data.space.supports[0].categories == ("1", "2", "3", OTHER)
    assert data.space.supports[1].decimals == 1


def test_new_rows_are_read_in_the_stored_schema(tmp_path):
    data = load(_saved(tmp_path, TABLE))
    new = _saved(tmp_path, "pay,job,age,more\n-7.25,zzz,?,1\n1e3,b,-5,2\n", "new.csv")
    x = read(new, data.space)
    assert spelt_columns(x, data.space) == {"age": ["", "-5"], "job": [OTHER, "b"], "pay": ["-7.25", "1000.00"]}
    assert x[0, 0] == MISSING
    as_frame = read(polars.DataFrame({"age": [None, -5], "job": ["q", "b"], "pay": [-7.25, 1000.0]}), data.space)
    assert torch.equal(x, as_frame)
    array = load(np.arange(20).reshape(10, 2))
    assert torch.equal(read(np.array([[-4, 3]]), array.space), torch.tensor([[-5, 2]]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("age,job\n1,a\n", "lacks the column 'pay'"),
        ("age,job,pay\n1,a,\n", "Column 'pay' is missing in row 1"),
        ("age,job,pay\n1,a,0.125\n", "more than the 2 decimals of the schema"),
        ("age,job,pay\nold,a,1\nold,a,2", "'old' in column 'age', row 1, is not a number"),
        ("age,job,pay\n1,a,inf\n", "infinite"),
        ("age,job,pay\n1,a,1234567890123456\n", "more than 15 digits"),
    ],
)
def test_new_rows_outside_the_schema_are_named(tmp_path, text, message):
    space = load(_saved(tmp_path, TABLE)).space
    with pytest.raises(DataError, match=message):
        read(_saved(tmp_path, text, "new.csv"), space)


@needs_shared
@pytest.mark.parametrize("name", ["adult_test", "california_housing_mixed", "abalone"])
def test_real_tables_come_back_exactly(tmp_path, name):
    with gzip.open(SHARED / f"tables/{name}.csv.gz", "rt", newline="") as file:
        text = "".join(itertools.islice(file, 200))
    rows = list(csv.reader(io.StringIO(text), skipinitialspace=True))
    found = table_examples(read_columns(_saved(tmp_path, text)), Options())
    back = list(csv.reader(io.StringIO(csv_text(found.x, found.space))))
    assert back[0] == rows[0]
    for support, was, now in zip(found.space.supports, zip(*rows[1:]), zip(*back[1:]), strict=True):
        for a, b in zip(was, now, strict=True):
            same = float(a) == float(b) if support.numeric and b else b == ("" if a in ("?", "") else a)
            assert same, (support.name, a, b)


# -- writing ------------------------------------------------------------------------------------


def test_samples_are_written_as_csv_and_parquet(tmp_path):
    data = load(_saved(tmp_path, TABLE))
    said = write(data.test.x, data.space, tmp_path / "out.csv")
    assert said == f"Wrote {len(data.test)} rows to {tmp_path / 'out.csv'}."
    assert torch.equal(read(tmp_path / "out.csv", data.space), data.test.x)
    write(data.test.x, data.space, tmp_path / "out.parquet")
    assert torch.equal(read(tmp_path / "out.parquet", data.space), data.test.x)


def test_real_samples_come_back_from_csv_and_npz(tmp_path):
    data = load("moons", count=50)
    for name in ("x.csv", "x.npz"):
        write(data.test.x, data.space, tmp_path / name)
        assert torch.equal(read(tmp_path / name, data.space), data.test.x)
