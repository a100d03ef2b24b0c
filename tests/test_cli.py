"""The command line as a person uses it: verbs end to end, and errors of one line with a hint."""

import csv
import json
import re
import sys

import pytest
import torch

import likely
from likely import cli


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["likely", *map(str, words)])
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code if ended.code is not None else 0
        else:
            code = 0
        out, err = capsys.readouterr()
        return code, out, re.sub(r"\x1b\[[0-9;]*m", "", err)

    return call


@pytest.fixture
def fitted(run, tmp_path):
    code, out, err = run("fit", "bars-and-stripes", "histogram", "--out", tmp_path / "m")
    assert code == 0, err
    return tmp_path / "m", out


def test_fit_leaves_a_model_and_run_json_with_its_test_likelihood(fitted):
    folder, out = fitted
    test = json.loads((folder / "run.json").read_text())["test"]
    assert set(test) == {"value", "unit", "kind", "how", "stderr", "n"}
    assert test["unit"] == "bits/dim"
    assert test["kind"] == "exact"
    assert f"= {test['value']:.3f}" in out


def test_sample_score_and_show_work_on_a_stored_model(run, fitted, tmp_path):
    folder, _ = fitted
    code, out, err = run("sample", folder, "-n", 9, "--out", tmp_path / "s.png")
    assert code == 0, err
    assert (tmp_path / "s.png").stat().st_size > 50
    code, out, err = run("score", folder, "--out", tmp_path / "scores.csv", "--top", 3)
    assert code == 0, err
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(r["rank"]) for r in rows] == list(range(1, len(rows) + 1))
    assert [float(r["nats"]) for r in rows] == sorted(float(r["nats"]) for r in rows)
    assert {r["kind"] for r in rows} == {"exact"}
    code, out, err = run("show", folder)
    assert code == 0, err
    assert "histogram" in out


def test_data_and_models_say_what_there_is(run):
    code, out, err = run("data", "bars-and-stripes")
    assert code == 0, err
    assert "bits" in out
    code, out, err = run("models")
    assert code == 0, err
    assert "histogram" in out
    code, out, err = run("models", "histogram")
    assert code == 0, err


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["fit", "digitz"], 3, "digits"),
        (["fit", "digits", "histogramm"], 2, "Did you mean 'histogram'"),
        (["fit", "digits", "histogram", "--depht", "3"], 2, "--depht"),
        (["fit", "digits", "histogram", "--steps", "0"], 2, "not a budget"),
        (["fit", "digits", "histogram", "--steps", "5", "--minutes", "1"], 2, "one budget"),
        (["fit", "digits", "histogram", "--size", "huge"], 2, "Unknown size"),
        (["show", "nowhere"], 4, "not a stored model"),
        (["sample", "nowhere"], 4, "not a stored model"),
        (["models", "flaw"], 2, "Did you mean 'flow'"),
    ],
)
def test_errors_are_one_line_and_a_hint(run, words, code, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    got, _, err = run(*words)
    assert got == code
    assert told in err
    assert err.startswith("error: ")
    assert len(err.strip().splitlines()) <= 2
    assert "Traceback" not in err


def test_debug_shows_where_an_error_arose(run):
    with pytest.raises(likely.LikelyError):
        run("show", "nowhere", "--debug")


def test_an_unexpected_error_is_one_line_too(run, monkeypatch):
    monkeypatch.setattr("likely.verbs.show", lambda folder: 1 / 0)
    code, _, err = run("show", "nowhere")
    assert code == 1
    assert err.startswith("error: ZeroDivisionError")
    assert "--debug" in err


def test_options_of_a_family_are_read_as_python_values():
    assert cli._extra(["--layers", "3", "--rate=0.5", "--net", "gated-pixelcnn", "--tied"]) == {
        "layers": 3,
        "rate": 0.5,
        "net": "gated-pixelcnn",
        "tied": True,
    }


def test_conditioning_values_are_read_by_name_or_code():
    from likely.space import Space, Support
    from likely.verbs import given_values

    space = Space.columns(Support("nominal", 3, "class", categories=("setosa", "virginica", "other")), Support("real", name="width"))
    assert torch.equal(given_values("class=virginica,width=0.5", space), torch.tensor([[1.0, 0.5]]))
    assert torch.equal(given_values({"class": 2, "width": 1}, space), torch.tensor([[2.0, 1.0]]))
    for bad in ("class=rose,width=1", "klass=1,width=1", "class=1", "class"):
        with pytest.raises(likely.LikelyError):
            given_values(bad, space)
