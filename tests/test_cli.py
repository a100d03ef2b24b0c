"""The command line as a person uses it: verbs end to end, and errors of one line with a hint."""

import csv
import json
import math
import sys

import numpy as np
import pytest
import torch

import likely
from likely import arguments, printing, verbs
from likely.errors import UsageError


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
    code, out, err = run("score", folder, "--out", tmp_path / "scores.csv")
    assert (code, "--overwrite" in err) == (2, True), err
    assert run("score", folder, "--out", tmp_path / "scores.csv", "--overwrite", "--top", 0)[0] == 0
    for wrong in (("--top", -3), ("--draws", 0)):
        code, out, err = run("score", folder, *wrong)
        assert (code, wrong[0] in err) == (2, True), err
    with pytest.raises(UsageError, match="0 draws"):
        likely.score(folder, draws=0)
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


def test_models_names_the_words_that_an_option_can_be(run):
    (record,) = (r for r in likely.models() if r["name"] == "autoregressive")
    told = record["options"]
    assert told["net"].startswith("gated-pixelcnn, pixelcnn++")
    assert told["attention"].startswith("full, local, linear; ")
    assert "transposed" in told["order"]
    assert told["cell"] == "lstm, gru; default lstm"
    assert told["width"] == "int | None; default by size or data"
    code, out, err = run("models", "autoregressive")
    assert code == 0, err
    assert "full, local, linear" in out


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["fit", "digitz"], 3, "digits"),
        (["fit", "digits", "histogramm"], 2, "Did you mean 'histogram'"),
        (["fit", "digits", "histogram", "--depht", "3"], 2, "--depht"),
        (["fit", "digits", "histogram", "--given", "lable"], 3, "It has: label"),
        (["fit", "digits", "gmm", "--components", "many"], 2, "'many', not int"),
        (["fit", "digits", "gmm", "--components", "-1"], 2, "cannot be -1"),
        (["fit", "digits", "histogram", "--lr", "nan"], 2, "lr=nan"),
        (["fit", "digits", "histogram", "--batch", "0"], 2, "batch=0"),
        (["fit", "digits", "histogram", "--steps", "few"], 2, "--steps"),
        (["frobnicate"], 2, "frobnicate"),
        (["fit"], 2, "See: likely fit --help"),
        (["fit", "digits", "histogram", "--steps", "0"], 2, "not a budget"),
        (["fit", "digits", "histogram", "--steps", "5", "--minutes", "1"], 2, "one budget"),
        (["fit", "digits", "histogram", "--size", "huge"], 2, "Unknown size"),
        (["show", "nowhere"], 4, "not a stored model"),
        (["sample", "nowhere"], 4, "not a stored model"),
        (["models", "flaw"], 2, "Did you mean 'flow'"),
        (["fit", "digits", "--order", "sideways", "--steps", "1"], 2, "Unknown order 'sideways'"),
        (["fit", "digits", "--order", "reverse", "flow"], 2, "right after DATA"),
        (["fit", "digits", "mixture(ngram"], 2, "brackets"),
        (["fit", "digits", "histogram", "--window", "8"], 2, "no option 'window'"),
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
    assert arguments.extra_options(["--layers", "3", "--rate=0.5", "--net", "gated-pixelcnn", "--tied"]) == {
        "layers": 3,
        "rate": 0.5,
        "net": "gated-pixelcnn",
        "tied": True,
    }


def test_truths_are_spelt_as_people_spell_them():
    found = arguments.extra_options(["--greedy", "false", "--adapt=No", "--tied", "yes", "--dry", "True"])
    assert found == {"greedy": False, "adapt": False, "tied": True, "dry": True}


def test_a_window_reaches_the_net_of_data_that_are_no_text(run, tmp_path):
    net = ["--net", "transformer", "--attention", "local", "--window", 9, "--size", "tiny"]
    code, _, err = run("fit", "bars-and-stripes", *net, "--steps", 1, "--out", tmp_path / "m")
    assert code == 0, err
    assert likely.open(tmp_path / "m").config["options"] == {"net": "transformer", "attention": "local", "window": 9}


def test_conditioning_values_are_read_by_name_or_code():
    from likely.sources import given_values
    from likely.space import Space, Support

    space = Space.columns(Support("nominal", 3, "class", categories=("setosa", "virginica", "other")), Support("real", name="width"))
    assert torch.equal(given_values("class=virginica,width=0.5", space), torch.tensor([[1.0, 0.5]]))
    assert torch.equal(given_values({"class": 2, "width": 1}, space), torch.tensor([[2.0, 1.0]]))
    for bad in ("class=rose,width=1", "klass=1,width=1", "class=1", "class"):
        with pytest.raises(likely.LikelyError):
            given_values(bad, space)


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "t.txt").write_bytes(b"the quick brown fox jumps over the lazy dog\n" * 70)
    likely.fit(str(folder / "t.txt"), "histogram", out=folder / "m")
    return folder


def test_a_text_is_fitted_and_scored_by_windows_that_do_not_overlap(text_model):
    rows = likely.score(text_model / "m")
    assert len(rows) == 308 // 128  # test is the last tenth
    model = likely.open(text_model / "m")
    byte = -model.log_prob(torch.full((1, 128), ord("o"))).nats.item() / 128
    assert byte == pytest.approx(-math.log(4 / 44), rel=0.1)


def test_bits_of_a_short_text_are_those_of_its_own_bytes(text_model):
    (text_model / "new.txt").write_text("the quick")
    (row,) = likely.score(text_model / "m", text_model / "new.txt")
    assert row["unit"] == "bits/byte"
    assert row["bits"] == pytest.approx(-row["nats"] / math.log(2) / 9)


def test_score_takes_what_it_conditions_on_from_the_new_data(run, tmp_path):
    likely.fit("wine", "histogram", given="class", out=tmp_path / "m")
    test = likely.load("wine").test.x
    space = likely.load("wine").space
    likely.sources.write(test, space, tmp_path / "new.csv")
    own = likely.score(tmp_path / "m")
    new = likely.score(tmp_path / "m", tmp_path / "new.csv")
    assert [r["nats"] for r in new] == pytest.approx([r["nats"] for r in own])
    told = likely.score(tmp_path / "m", tmp_path / "new.csv", given={"class": "class_0"})
    assert [r["nats"] for r in told] != [r["nats"] for r in own]


def test_score_reads_new_images_as_those_of_the_fit_were(tmp_path):
    from PIL import Image

    for i in range(12):
        place = tmp_path / "photos" / ("a" if i % 2 else "b")
        place.mkdir(parents=True, exist_ok=True)
        Image.new("L", (10 + i, 12), 20 * i).save(place / f"{i}.png")
    likely.fit(likely.load(str(tmp_path / "photos"), resize=4, levels=4, given="label"), "histogram", out=tmp_path / "m")
    assert len(likely.score(tmp_path / "m", tmp_path / "photos")) == 12
    (tmp_path / "photos" / "a").rename(tmp_path / "photos" / "c")
    with pytest.raises(likely.errors.DataError, match="not fitted to the label 'c'"):
        likely.score(tmp_path / "m", tmp_path / "photos")


def test_sample_replaces_a_file_only_when_told(run, fitted, tmp_path):
    folder, _ = fitted
    assert run("sample", folder, "-n", 2, "--out", tmp_path / "s.png")[0] == 0
    code, _, err = run("sample", folder, "-n", 2, "--out", tmp_path / "s.png")
    assert code == 2
    assert "--overwrite" in err
    assert run("sample", folder, "-n", 2, "--out", tmp_path / "s.png", "--overwrite")[0] == 0


def test_a_folder_of_another_run_says_in_words_what_differs(run, tmp_path):
    assert run("fit", "wine", "histogram", "--given", "class", "--out", tmp_path / "m")[0] == 0
    code, _, err = run("fit", "wine", "histogram", "--out", tmp_path / "m")
    assert code == 2
    assert "holds a run with" in err
    assert "{" not in err


def test_a_built_in_set_is_scored_by_its_name(run, fitted):
    folder, _ = fitted
    code, out, err = run("score", folder, "bars-and-stripes", "--top", 3)
    assert code == 0, err
    assert "bits/dim" in out
    code, out, err = run("score", folder, "digits")
    assert code == 3, out
    assert "[360, 1, 8, 8]" in err.replace("(", "[").replace(")", "]")


def test_reading_options_reach_the_reader(run, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("".join(f"{i % 3},{i}\n" for i in range(60)))
    code, out, err = run("data", table, "--no-header", "--nominal", "column1")
    assert code == 0, err
    assert "nominal" in out
    code, out, err = run("data", table, "--no-header", "--nominal", "colour")
    assert code in (2, 3), out
    assert "colour" in err


def test_rows_count_as_often_as_a_column_says(run, tmp_path):
    """A table of weights is fitted as one of repeated rows; what is stored lacks the column, and takes tables with and without it."""
    table, folder = tmp_path / "t.csv", tmp_path / "m"
    table.write_text("x,y,times\n" + "".join(f"{i % 7},{i % 7 + i % 3},{1 + i % 4}\n" for i in range(60)))
    code, _, err = run("fit", table, "kde", "--weights", "times", "--size", "tiny", "--out", folder)
    assert code == 0, err
    assert "by their weights" in json.loads((folder / "run.json").read_text())["test"]["how"]
    data = likely.load(table, weights="times")
    nats, by = likely.open(folder).log_prob(data.test.x).nats, data.test.weights
    stored = json.loads((folder / "run.json").read_text())["test"]["value"]
    assert stored == pytest.approx((-(by @ nats) / by.sum() / math.log(2)).item())
    for words in (["score", folder], ["score", folder, table], ["show", folder], ["sample", folder, "-n", 3, "--out", tmp_path / "s.csv"]):
        code, _, err = run(*words)
        assert code == 0, err
    assert (tmp_path / "s.csv").read_text().splitlines()[0] == "x,y"
    (tmp_path / "holes.csv").write_text("x,y,times\n3,,2\n,4,1\n")
    code, _, err = run("edit", folder, tmp_path / "holes.csv", "--out", tmp_path / "full.csv")
    assert code == 0, err
    full = (tmp_path / "full.csv").read_text().splitlines()
    assert [full[0], full[1][:2], full[1][-2:]] == ["x,y,times", "3,", ",2"]
    code, _, err = run("fit", table, "histogram", "--weights", "times", "--out", tmp_path / "h")
    assert (code, "does not weigh examples" in err, "gmm, kde, knn, pca" in err) == (2, True, True), err
    assert len(err.strip().splitlines()) == 2
    with pytest.raises(UsageError, match="comparison does not weigh"):
        likely.compare(data, ["kde"], out=tmp_path / "c")
    with pytest.raises(UsageError, match="weights of its own"):
        likely.fit(data, "kde", weights=torch.ones(len(data.train)), progress=False)


def test_a_text_goes_on_after_a_prompt(run, text_model, tmp_path):
    likely.fit(str(text_model / "t.txt"), "autoregressive", size="tiny", steps=2, out=tmp_path / "m", progress=False)
    code, _, err = run("sample", tmp_path / "m", "-n", 2, "--prompt", "to be", "--length", 300, "--top-p", 0.9, "--out", tmp_path / "s.txt")
    assert code == 0, err
    written = (tmp_path / "s.txt").read_bytes()
    assert written.startswith(b"to be")
    assert len(written) > 600
    code, _, err = run("sample", tmp_path / "m", "--prompt", "x", "--length", -1, "--out", tmp_path / "t.txt")
    assert code == 2
    assert "-1" in err


@pytest.fixture(scope="module")
def writer(text_model):
    likely.fit(str(text_model / "t.txt"), "ngram", order=6, out=text_model / "writer", progress=False)
    return text_model / "writer"


def test_a_text_is_printed_as_it_is_written(run, writer):
    code, out, err = run("sample", writer, "--prompt", "the quick", "--length", 50, "--greedy")
    assert (code, err) == (0, "")
    assert out == "the quick brown fox jumps over the lazy dog\nthe quick brown\n"
    pieces = list(verbs.stream(writer, prompt="the", length=5, seed=1))
    assert [piece for _, piece in pieces[:1]] == [b"the"]
    assert len(pieces) == 6
    assert b"".join(piece for _, piece in pieces) == bytes(likely.sample(writer, 1, prompt="the", length=5, seed=1)[0].tolist())
    code, out, err = run("sample", writer)
    assert len(out.encode()) >= 500


def test_several_texts_are_printed_one_after_the_other(run, writer):
    code, out, err = run("sample", writer, "-n", 2, "--prompt", "the quick", "--length", 3, "--greedy")
    assert (code, err) == (0, "")
    assert out == "--- 1 of 2 ---\nthe quick br\n--- 2 of 2 ---\nthe quick br\n"
    code, out, err = run("sample", writer, "--prompt", "the quick", "--length", 3, "--beam", 4)
    assert (code, out) == (0, "the quick br\n")


@pytest.mark.parametrize("stops", [["fox"], ["over", "fox"]], ids=str)
def test_a_text_stops_at_a_string(run, writer, stops):
    words = [word for stop in stops for word in ("--stop", stop)]
    code, out, err = run("sample", writer, "--prompt", "a fox; the quick", *words, "--greedy")
    assert (code, out) == (0, "a fox; the quick brown fox\n"), err
    x = likely.sample(writer, 2, prompt="the quick", stop=[*stops, b"fox"], greedy=True)
    assert bytes(x[0].tolist()) == b"the quick brown fox"


def test_bytes_that_are_no_text_are_printed_all_the_same(capsys, monkeypatch):
    pieces = [(0, b"caf\xc3"), (0, b"\xa9 "), (0, b"\xff!"), (0, b"\xc3")]
    assert printing.written(iter(pieces), 1)
    assert capsys.readouterr().out == "café \ufffd!\ufffd\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert printing.written(iter([(0, b"a\x1b[31m\tb\n")]), 1)
    assert capsys.readouterr().out == "a\ufffd[31m\tb\n"


def test_an_interrupted_text_keeps_what_is_written(run, writer, monkeypatch):
    def broken(model, n, **how):
        yield 0, b"so far"
        raise KeyboardInterrupt

    monkeypatch.setattr(verbs, "stream", broken)
    assert run("sample", writer) == (130, "so far\n", "")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--length", -1], "-1"),
        (["--stop", ""], "empty"),
        (["--tempreature", 2], "temperature"),
        (["--top-p", "abc"], "'abc', not float"),
        (["--top-k", "2.5"], "2.5, not int"),
        (["--beam", "x"], "'x', not int"),
        (["--beam", "yes"], "True, not int"),
        (["--greedy", "0"], "0, not bool"),
    ],
)
def test_what_cannot_be_written_is_told_in_a_line(run, writer, words, told):
    code, out, err = run("sample", writer, *words)
    assert (code, out) == (2, "")
    assert told in err


def test_a_model_that_reads_from_the_end_prints_windows_but_goes_on_from_nothing(run, text_model, tmp_path):
    likely.fit(str(text_model / "t.txt"), "autoregressive", size="tiny", steps=1, order="reverse", out=tmp_path / "m", progress=False)
    code, out, err = run("sample", tmp_path / "m", "--prompt", "To be", "--length", 5)
    assert (code, out) == (2, "")
    assert "left to right" in err
    code, out, err = run("sample", tmp_path / "m")
    assert code == 0, err
    assert out.strip()


def test_strings_are_for_models_of_texts(run, writer, tmp_path):
    likely.fit("bars-and-stripes", "autoregressive", size="tiny", steps=1, out=tmp_path / "m", progress=False)
    code, _, err = run("sample", tmp_path / "m", "--stop", "a", "--out", tmp_path / "s.png")
    assert code == 2
    assert "no strings to begin or end with" in err
    for word in ("prompt", "stop"):
        with pytest.raises(likely.LikelyError, match=r"likely\.sample"):
            likely.open(writer).sample(1, **{word: "to be"})


def test_an_empty_text_has_no_score(run, text_model, tmp_path):
    (tmp_path / "empty.txt").write_bytes(b"")
    code, _, err = run("score", text_model / "m", tmp_path / "empty.txt")
    assert (code, err.count("\n")) == (3, 2)
    assert "text is empty" in err


def test_images_of_another_size_say_how_to_resize_them(run, tmp_path):
    from PIL import Image

    likely.fit("digits", "histogram", out=tmp_path / "m", progress=False)
    Image.new("L", (28, 28)).save(tmp_path / "p.png")
    code, _, err = run("score", tmp_path / "m", tmp_path / "p.png")
    assert code == 3
    assert "28 x 28" in err
    assert "--resize 8" in err
    code, _, err = run("score", tmp_path / "m", tmp_path / "p.png", "--resize", 8)
    assert code == 0, err


def test_draws_are_written_with_their_log_probabilities(run, tmp_path):
    polars, folder = pytest.importorskip("polars"), tmp_path / "m"
    assert run("fit", "moons", "flow", "--size", "tiny", "--steps", 10, "--out", folder)[0] == 0
    code, out, err = run("sample", folder, "-n", 5, "--with-log-prob", "--out", tmp_path / "s.csv")
    assert code == 0, err
    x, log_prob = likely.sample(folder, 5, with_log_prob=True)
    assert f"mean log p {log_prob.nats.mean():.3f} +- " in out
    assert log_prob.kind == "exact"
    torch.testing.assert_close(log_prob.nats, likely.open(folder).log_prob(x).nats, atol=1e-4, rtol=0)
    rows = [line.split(",") for line in (tmp_path / "s.csv").read_text().splitlines()]
    assert rows[0][-1] == "log_prob"
    assert [float(row[-1]) for row in rows[1:]] == log_prob.nats.tolist()
    assert run("sample", folder, "-n", 5, "--with-log-prob", "--out", tmp_path / "s.npz")[0] == 0
    assert np.load(tmp_path / "s.npz")["log_prob"].tolist() == log_prob.nats.tolist()
    assert run("sample", folder, "-n", 5, "--with-log-prob", "--out", tmp_path / "s.parquet")[0] == 0
    assert polars.read_parquet(tmp_path / "s.parquet")["log_prob"].to_list() == log_prob.nats.tolist()
    assert "means nothing" in run("sample", folder, "--between", "0,1", "--with-log-prob")[2]
    assert run("fit", "moons", "vae", "--size", "tiny", "--steps", 1, "--out", tmp_path / "v")[0] == 0
    assert "vae draws without log-probabilities" in run("sample", tmp_path / "v", "--with-log-prob", "--out", tmp_path / "v.csv")[2]


def test_what_a_model_was_stored_without_is_asked_for_by_its_option(run, tmp_path):
    likely.fit(likely.load(torch.randint(0, 4, (60, 1, 4, 4))), "diffusion", size="tiny", steps=1, out=tmp_path / "m", progress=False)
    likely.save(likely.open(tmp_path / "m"), tmp_path / "bare")
    for folder in ("m", "bare"):
        for what in ("--terms", "--check"):
            code, _, err = run("show", tmp_path / folder, what)
            assert code in (2, 3)
            assert "--data" in err
