"""`likely edit --strength`: others like given examples, of every kind of data that can be varied, written as that kind is."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

import likely
from likely import families
from likely.errors import UsageError
from likely.space import Space, Support
from likely.varying import vary

GREY = Space.grid(1, 4, 4, 16)
TABLE = Space.columns(Support("nominal", 3, "hue", categories=("r", "g", "b")), Support("decimal", decimals=1, name="mass", missing=True))


def kept(folder, space, name="diffusion", **options):
    torch.manual_seed(0)
    likely.save(families.build(name, space, size="tiny", **options), folder)
    return folder


def photo(path, seed):
    pixels = np.random.default_rng(seed).integers(0, 16, (4, 4)) * 16
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def test_an_image_gives_a_sheet_of_others_and_a_folder_keeps_its_names(run, tmp_path):
    model = kept(tmp_path / "m", GREY)
    source = photo(tmp_path / "one.png", 0)
    code, out, err = run("edit", model, source, "--strength", ".5", "--draws", 4, "--out", tmp_path / "others.png")
    assert code == 0, err
    assert "4 examples" in out
    with Image.open(tmp_path / "others.png") as sheet:
        assert sheet.size == (65, 65)  # four in a square, enlarged from 4 to 32 pixels, and the line between
    (tmp_path / "in").mkdir()
    names = [photo(tmp_path / f"in/{name}.png", i).stem for i, name in enumerate(("ant", "bee"))]
    assert run("edit", model, tmp_path / "in", "--strength", "0.2", "--draws", 2, "--out", tmp_path / "out")[0] == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {f"{name}-{draw}.png" for name in names for draw in (1, 2)}


def test_no_strength_gives_files_back_and_full_strength_does_not(tmp_path):
    model, source = kept(tmp_path / "m", GREY), photo(tmp_path / "one.png", 0)
    x = likely.sources.read(source, GREY)
    assert (vary(model, source, 0.0) == x).double().mean() > 0.9
    assert (vary(model, source, 1.0) == x).double().mean() < 0.5
    assert torch.equal(vary(model, source, 0.6, seed=3), vary(model, x, 0.6, seed=3))


def test_rows_of_a_table_become_other_rows(run, tmp_path):
    model = kept(tmp_path / "m", TABLE)
    (tmp_path / "rows.csv").write_text("hue,mass\nr,1.5\nb,\n")
    code, _, err = run("edit", model, tmp_path / "rows.csv", "--strength", "0", "--draws", 3, "--out", tmp_path / "like.csv")
    assert code == 0, err
    with (tmp_path / "like.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["hue"] for row in rows] == ["r", "b"] * 3  # draw by draw
    assert [abs(float(row["mass"]) - 1.5) < 0.3 for row in rows[::2]] == [True] * 3
    assert [row["mass"] for row in rows[1::2]] == [""] * 3


def test_sets_of_points_keep_their_number_of_points(run, tmp_path):
    space = Space.points(5, 2, variable=True)
    model = kept(tmp_path / "m", space)
    x = torch.randn(3, 5, 2)
    x[1, 2:], x[2, 4:] = torch.nan, torch.nan
    np.savez(tmp_path / "sets.npz", x=x.numpy())
    code, _, err = run("edit", model, tmp_path / "sets.npz", "--strength", ".4", "--out", tmp_path / "like.npz")
    assert code == 0, err
    like = torch.from_numpy(np.load(tmp_path / "like.npz")["x"])
    assert torch.equal(like.isnan(), x.isnan())


def test_latents_are_varied_where_the_second_of_a_stack_can(tmp_path):
    model = families.build("vae > diffusion", GREY, size="tiny").eval()
    x = torch.randint(0, 16, (3, *GREY.shape))
    like = vary(model, x, 0.5, draws=2, steps=4)
    GREY.check(like)
    assert like.shape == (6, *GREY.shape)


def test_a_label_may_be_another_than_the_example_had(tmp_path):
    model = kept(tmp_path / "m", GREY, given=Space.label(2))
    x = torch.randint(0, 16, (2, *GREY.shape))
    one, other = (vary(model, x, 0.9, given=torch.full((1, 1), label)) for label in (0, 1))
    assert one.shape == other.shape == x.shape
    with pytest.raises(UsageError, match="given"):
        vary(model, x, 0.5)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (("--box", "0,0,1,1"), "--box means nothing"),
        (("--particles", "3"), "--particles means nothing"),
        (("--eta", "1"), "no option 'eta'"),
        (("--strength", "1.5"), "less than or equal to 1"),
        (("--draws", "0"), "--draws"),
    ],
    ids=lambda v: v[0] if isinstance(v, tuple) else "",
)
def test_what_means_nothing_is_refused_in_a_line(run, tmp_path, wrong, told):
    model, source = kept(tmp_path / "m", GREY), photo(tmp_path / "one.png", 0)
    code, _, err = run("edit", model, source, "--strength", ".5", *wrong, "--out", tmp_path / "no.png")
    assert code == 2
    assert told in err
    assert not (tmp_path / "no.png").exists()


def test_models_that_cannot_vary_name_those_that_can(run, tmp_path):
    model, source = kept(tmp_path / "m", GREY, "vae"), photo(tmp_path / "one.png", 0)
    code, _, err = run("edit", model, source, "--strength", ".5")
    assert code == 2
    assert "diffusion" in err
    code, _, err = run("edit", kept(tmp_path / "d", GREY), "--strength", ".5")
    assert code == 2
    assert "Pass a file" in err
