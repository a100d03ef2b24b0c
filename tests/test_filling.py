"""`likely.fill` and `likely edit`: gaps of texts, holes of images, empty cells of tables; what is known stays byte for byte."""

import codecs
import csv
import io
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

import likely
from likely import printing, verbs
from likely.abilities import Filled
from likely.errors import DataError, LikelyError, UsageError
from likely.families.autoregressive import Autoregressive
from likely.filling import Edited, edit
from likely.sources import patched_csv
from likely.space import Space, Support

FOX = b"the quick brown fox jumps over the lazy dog\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model of a text, of images of 6 x 6 resized from 12 x 12, and of a table."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "t.txt").write_bytes(FOX * 70)
    likely.fit(str(folder / "t.txt"), "ngram", order=6, out=folder / "text", progress=False)
    (folder / "photos").mkdir()
    for i in range(12):
        Image.fromarray(np.kron(np.eye(6, dtype=np.uint8) * 20 * i, np.ones((2, 2), np.uint8))).save(folder / f"photos/{i:02d}.png")
    images = likely.load(str(folder / "photos"), resize=6, levels=4)
    likely.fit(images, "autoregressive", size="tiny", steps=2, out=folder / "images", progress=False)
    rows = [f"{i % 7 / 2},{word},{i % 3}\n" for i, word in enumerate(['"x, y"', "z"] * 30)]
    (folder / "t.csv").write_text("".join(["column1,column2,column3\n", *rows]))
    likely.fit(str(folder / "t.csv"), "autoregressive", size="tiny", steps=2, out=folder / "table", progress=False)
    return folder


# -- tensors ----------------------------------------------------------------------------------------


def test_only_rows_with_gaps_change_and_each_draw_is_its_own():
    made = Autoregressive(Space.sequence(6, 5), size="tiny")
    x, known = torch.randint(5, (40, 6)), torch.rand(40, 6) < 0.6
    known[3], known[7] = True, True
    filled = likely.fill(made, x, known, draws=4, seed=1)
    assert torch.equal(filled.x[:, known], x[known].expand(4, -1))
    assert len({tuple(row.tolist()) for row in filled.x[:, ~known]}) == 4
    assert filled.effective.shape == (4, 40)
    assert (filled.effective[:, [3, 7]] == torch.inf).all()
    again = likely.fill(made, x, known, draws=4, seed=1)
    assert torch.equal(filled.x, again.x)
    assert not torch.equal(filled.x, likely.fill(made, x, known, draws=4, seed=2).x)


def test_known_broadcasts_and_progress_is_told():
    made, told = Autoregressive(Space.grid(1, 4, 4, 3), size="tiny"), []
    top = torch.arange(4)[:, None] < 2
    filled = likely.fill(made, torch.randint(3, (2, 1, 4, 4)), top, draws=3, progress=lambda *how: told.append(how))
    assert filled.exact
    assert filled.x.shape == (3, 2, 1, 4, 4)
    assert told[-1] == (6, 6)


def test_missing_cells_of_a_coded_table_are_unknown():
    made = Autoregressive(Space.columns(Support("nominal", 3, missing=True), Support("nominal", 2)), size="tiny")
    filled = likely.fill(made, torch.tensor([[-1, 1], [2, 0]]))
    assert (filled.x >= 0).all()
    assert torch.equal(filled.x[0, 1], torch.tensor([2, 0]))


def test_missing_cells_beside_reals_are_unknown():
    made = Autoregressive(Space.columns(Support("real"), Support("nominal", 3, missing=True)), size="tiny")
    filled = likely.fill(made, torch.tensor([[-1.0, -1.0], [float("nan"), 2.0]]))
    assert filled.x[0, 0, 0] == -1  # a real number like any other
    assert (filled.x[0, :, 1] >= 0).all()
    assert filled.x[0].isfinite().all()


@pytest.mark.parametrize(
    ("known", "told"),
    [
        (None, "Nothing says which"),
        (torch.ones(2, 4), "not bool"),
        (torch.ones(3, dtype=torch.bool), "shape"),
        (torch.ones(2, 4) > 0, "Nothing is"),
    ],
)
def test_masks_that_say_nothing_are_refused(known, told):
    with pytest.raises(LikelyError, match=told):
        likely.fill(Autoregressive(Space.sequence(4, 3), size="tiny"), torch.zeros(2, 4, dtype=torch.int64), known)


def test_models_that_cannot_fill_name_those_that_can():
    with pytest.raises(UsageError, match="cannot fill") as refused:
        likely.fill(likely.build("gan", Space.grid(1, 4, 4, 3), size="tiny"), torch.zeros(1, 1, 4, 4, dtype=torch.int64))
    assert "autoregressive" in refused.value.hint
    assert "gan" not in refused.value.hint
    with pytest.raises(UsageError, match="Cannot draw 0"):
        likely.fill(
            Autoregressive(Space.sequence(2, 3), size="tiny"), torch.zeros(1, 2, dtype=torch.int64), torch.tensor([True, False]), draws=0
        )


# -- texts ------------------------------------------------------------------------------------------


def test_a_short_text_is_filled_as_a_window_begins():
    """What follows the text is summed out: the gap at its end has the marginal of the prefix."""
    made = Autoregressive(Space.sequence(5, 256), size="tiny")
    torch.nn.init.normal_(made.net.last.weight, std=2.0)  # type: ignore[union-attr,arg-type]
    filled = likely.fill(made, "ab_", draws=3000)
    assert filled.exact
    assert filled.x.shape == (3000, 1, 3)
    rows = torch.full((256, 5), -1)
    rows[:, :2], rows[:, 2] = torch.tensor([97, 98]), torch.arange(256)
    p = made.log_prob(rows).nats.softmax(0).detach()
    counts, often = torch.bincount(filled.x[:, 0, 2], minlength=256).double(), p * 3000 > 5
    observed, expected = (torch.cat([v[often], v[~often].sum()[None]]) for v in (counts, 3000 * p))
    assert stats.chi2.sf(((observed - expected).square() / expected).sum().item(), len(observed) - 1) > 1e-3


def test_gaps_of_a_text_of_any_length_are_filled_from_both_sides(models):
    text = FOX * 5
    gaps = [4, 20, 21, 128, len(text) - 2]
    marked = bytes(ord("_") if i in gaps else byte for i, byte in enumerate(text))
    filled = likely.fill(models / "text", marked, particles=16)
    assert bytes(filled.x[0, 0].tolist()) == text
    assert "windows of 128" in filled.how
    assert not filled.exact


def test_a_text_is_read_from_its_file(models):
    (models / "draft.txt").write_text("the qu_ck")
    filled = likely.fill(models / "text", models / "draft.txt", draws=2, particles=2)
    assert torch.equal(filled.x, likely.fill(models / "text", "the qu_ck", draws=2, particles=2).x)
    assert filled.x.shape == (2, 1, 9)


def test_several_texts_of_another_length_are_refused(models):
    with pytest.raises(DataError, match=r"expected \[batch, 128\]"):
        likely.fill(models / "text", torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 5) > 0)


def test_a_mark_is_one_byte_whatever_it_is_spelt_as(models):
    filled = likely.fill(models / "text", "the qu░░k brown_fox", gap="░")
    assert bytes(filled.x[0, 0].tolist()) == b"the quick brown_fox"


def test_where_a_mask_says_what_is_known_a_mark_is_a_byte():
    made = Autoregressive(Space.sequence(5, 256), size="tiny")
    filled = likely.fill(made, "a_bcd", torch.tensor([True, True, True, False, True]), particles=4)
    assert bytes(filled.x[0, 0, :3].tolist()) == b"a_b"


def test_a_text_may_read_like_the_name_of_a_built_in_set(models):
    assert edit(models / "text", text="wine", gap="i").texts[0][::2] == b"wn"
    assert likely.fill(models / "text", "moons", gap="o").x.shape == (1, 1, 5)


def test_strings_of_variable_length_keep_their_length():
    made = Autoregressive(Space.sequence(6, 256, variable=True), size="tiny")
    filled = likely.fill(made, "a_c", draws=5)
    assert filled.x.shape == (5, 1, 3)
    assert (filled.x[:, 0, ::2] == torch.tensor([97, 99])).all()
    with pytest.raises(UsageError, match="6 are the most"):
        likely.fill(made, "a_cdefg")


def test_texts_that_cannot_be_filled_are_refused(models):
    with pytest.raises(DataError, match="Nothing is unknown"):
        likely.fill(models / "text", "all is known")
    with pytest.raises(UsageError, match="tokens"):
        likely.fill(Autoregressive(Space.tokens(4, tuple(map(chr, range(256)))), size="tiny"), "a_")
    with pytest.raises(UsageError, match="empty mark"):
        likely.fill(models / "text", "a_", gap="")


def test_a_text_is_edited_and_printed(run, models, tmp_path):
    code, out, err = run("edit", models / "text", "--text", "the quick br_wn fox")
    assert (code, out) == (0, "the quick brown fox\n"), err
    assert "1 unknown entry of 1 example, filled approx" in err
    assert "particles" in err
    source = tmp_path / "in.txt"
    source.write_bytes(b"the qu__k brown\r\n\xff_ox")
    code, out, err = run("edit", models / "text", source, "--out", tmp_path / "out.txt", "--particles", 4)
    assert (code, out) == (0, ""), err
    written = (tmp_path / "out.txt").read_bytes()
    assert len(written) == source.stat().st_size
    assert written[:6] + written[8:18] == b"the quk brown\r\n\xff"
    code, out, err = run("edit", models / "text", source, "--out", tmp_path / "texts", "--draws", 3, "--particles", 4)
    assert code == 0, err
    assert len(list((tmp_path / "texts").iterdir())) == 3


def test_how_far_to_believe_a_fill_is_told(capsys):
    filled = Filled(torch.zeros(1, 3, 2), False, torch.tensor([[50.0, 1.2, torch.inf]]).double(), "64 particles")
    printing.edited(Edited(filled, 4, 2), Path("out.csv"))
    told = capsys.readouterr().err
    assert "4 unknown entries of 2 examples, filled approximately: 64 particles -> out.csv" in told
    assert "1.2 at least" in told
    assert "warning: 1 of 3 draws" in told
    exact = Filled(torch.zeros(1, 1, 2), True, torch.tensor([[torch.inf]]).double(), "the model's own conditional")
    printing.edited(Edited(exact, 4, 2), Path("out.csv"))
    assert capsys.readouterr().err == "4 unknown entries of 2 examples, filled exactly: the model's own conditional -> out.csv\n"


# -- tables -----------------------------------------------------------------------------------------


def test_of_a_table_only_the_empty_cells_change(run, models, tmp_path):
    """Its columns stand in another order, one is unknown to the model; quotes, blanks, a mark, line ends and blank lines stay."""
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_bytes(b'\xef\xbb\xbfcolumn3; note;column2;"column1"\r\n1;"a;b"; "x, y";0.50\r\n ;;z ; ? \r\n\r\n2;;;+1.5')
    code, _, err = run("edit", models / "table", source, "--out", out)
    assert code == 0, err
    new = out.read_bytes()
    (third, first), second = [cell.encode() for cell in cells_of(new, 2, (0, 3))], cells_of(new, 3, (2,))[0].encode()
    assert new == (
        b'\xef\xbb\xbfcolumn3; note;column2;"column1"\r\n1;"a;b"; "x, y";0.50\r\n '
        + third + b";;z ; " + first + b" \r\n\r\n2;;" + second + b";+1.5"
    )  # fmt: skip
    assert third.decode() in "012"
    assert second.decode() in ("z", "x, y", "(other)")
    float(first)


def cells_of(content, row, columns):
    rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), delimiter=";", skipinitialspace=True))
    rows = [r for r in rows if r]
    return [rows[row][i].strip() for i in columns]


def test_several_draws_of_a_table_stand_in_one_file(run, models, tmp_path):
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text('column1,column2,column3\n0.5,"x, y",\n,z,1')
    code, _, err = run("edit", models / "table", source, "--out", out, "--draws", 3)
    assert code == 0, err
    rows = list(csv.reader(io.StringIO(out.read_text())))
    assert rows[0] == ["draw", "column1", "column2", "column3"]
    assert [row[0] for row in rows[1:]] == ["1", "1", "2", "2", "3", "3"]
    assert all(all(row) for row in rows)
    assert all(row[1:3] == ["0.5", "x, y"] for row in rows[1::2])
    source.write_text("column1,column2,column3,draw\n0.5,z,,1\n")
    assert "column 'draw' of its own" in run("edit", models / "table", source, "--out", tmp_path / "o.csv", "--draws", 2)[2]


def test_categories_unknown_to_the_model_are_told_and_stay(run, models, tmp_path):
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("column1,column2,column3\n,z,1\n,new,1\n0.5,newer,\n")
    code, _, err = run("edit", models / "table", source, "--out", out)
    assert code == 0, err
    assert "Column 'column2', row 2 and 1 more: a category unknown to the model" in err
    assert [row[1] for row in csv.reader(io.StringIO(out.read_text()))] == ["column2", "z", "new", "newer"]


def test_a_dataframe_is_imputed(models):
    frame = pandas.DataFrame({"column2": ["z", None], "column1": [0.5, None], "column3": [None, 2]})
    filled = likely.fill(models / "table", frame, draws=2)
    spelt = likely.sources.spelt_columns(filled.x[0], verbs.open(models / "table").space)
    assert spelt["column2"][0] == "z"
    assert float(spelt["column1"][0]) == 0.5
    assert all(all(column) for column in spelt.values())
    assert filled.effective[0, 0] == torch.inf  # known columns lead


def test_what_a_model_is_conditioned_on_comes_from_the_table_or_by_name(run, models, tmp_path):
    likely.fit(
        likely.load(str(models / "t.csv"), given="column2"), "autoregressive", size="tiny", steps=2, out=tmp_path / "m", progress=False
    )
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("column3,column2,column1\n1,z,\n,z,0.5\n")
    code, _, err = run("edit", tmp_path / "m", source, "--out", out)
    assert code == 0, err
    assert all(all(row) for row in csv.reader(io.StringIO(out.read_text())))
    source.write_text("column3,column1\n1,\n")
    code, _, err = run("edit", tmp_path / "m", source, "--out", out, "--overwrite")
    assert (code, "--given column2" in err) == (2, True), err
    code, _, err = run("edit", tmp_path / "m", source, "--out", out, "--overwrite", "--given", "column2=z")
    assert code == 0, err
    source.write_text("column3,column2,column1\n1,,\n")
    code, _, err = run("edit", tmp_path / "m", source, "--out", out, "--overwrite")
    assert (code, "column2" in err) == (3, True), err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("column1,column2,column3\n1,z,1\n", "Nothing is unknown"),
        ("column1,colum2,column3\n1,,1\n", "lacks the column 'column2'"),
        ("column1,column2,column3\n1,,\n2,z\n", "has 2 cells"),
        ("column1,column2,column3\nx,,1\n1,z,1\n", "not a number"),
    ],
)
def test_tables_that_do_not_fit_are_refused_in_a_line(run, models, tmp_path, text, told):
    (tmp_path / "in.csv").write_text(text)
    code, _, err = run("edit", models / "table", tmp_path / "in.csv", "--out", tmp_path / "out.csv")
    assert code == 3
    assert told in err
    assert len(err.strip().splitlines()) <= 2
    assert not (tmp_path / "out.csv").exists()


CELL = st.text(st.sampled_from('ab,"; \n\t'), max_size=4)


@settings(max_examples=60, deadline=None)
@given(
    table=st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=5), hole=st.tuples(st.integers(0, 4), st.integers(0, 2)), value=CELL
)
def test_any_csv_is_patched_in_place(tmp_path_factory, table, hole, value):
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    written = io.StringIO()
    csv.writer(written, lineterminator="\r\n").writerows([("p", "q", "r"), *table])
    path.write_bytes(written.getvalue().encode())
    assert patched_csv(path, [{}]) == path.read_bytes()
    row, column = hole[0] % len(table), hole[1]
    path.write_bytes(patched_csv(path, [{(row, "pqr"[column]): value}]))
    got = list(csv.reader(io.StringIO(path.read_bytes().decode(), newline=""), skipinitialspace=True, strict=True))
    want = [[cell.strip() for cell in line] for line in table]
    want[row][column] = value.strip()
    assert [[cell.strip() for cell in line] for line in got[1:]] == want


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE], ids=["", "8", "16-le", "16-be"])
def test_a_table_keeps_its_byte_order_and_mark(tmp_path, mark):
    encoding = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}.get(mark, "utf-8")
    (tmp_path / "t.csv").write_bytes(mark + "é,q\n1,\n".encode(encoding))
    assert patched_csv(tmp_path / "t.csv", [{(0, "q"): "ü"}]) == mark + "é,q\n1,ü\n".encode(encoding)


# -- images -----------------------------------------------------------------------------------------


def test_holes_of_an_image_are_filled_and_the_rest_stays(run, models, tmp_path):
    """A photo of the size that others were resized from; the mask is resized alike, and partly white is white."""
    source, out = models / "photos/09.png", tmp_path / "out.png"
    code, _, err = run("edit", models / "images", source, "--box", "0,0,12,5", "--out", out)
    assert code == 0, err
    shown = np.asarray(Image.open(out))
    whole = likely.load(str(models / "photos"), resize=6, levels=4).space
    was = likely.sources.read(models / "photos/09.png", whole, resize=6)[0, 0]
    assert shown.shape == (6, 6)
    assert torch.equal(torch.from_numpy(shown.astype(np.int64))[3:] * 4 // 256, was[3:])
    told = likely.fill(models / "images", source, boxes=[(0, 0, 12, 5)])
    mask = np.zeros((12, 12), np.uint8)
    mask[:5] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert torch.equal(likely.fill(models / "images", str(source), tmp_path / "mask.png").x, told.x)
    assert torch.equal(told.x[0, 0, 0, 3:], was[3:])


def photos(folder, size, *names):
    """Pictures whose pixels have all 256 levels, as arrays by name."""
    made = {name: np.random.default_rng(i).integers(0, 256, (size, size), dtype=np.uint8) for i, name in enumerate(names)}
    for name, array in made.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / name)
    return made


def test_known_pixels_stay_bit_for_bit_though_the_model_has_fewer_levels(run, models, tmp_path):
    was = photos(tmp_path, 6, "photo.png")["photo.png"]
    mask = np.zeros((6, 6), np.uint8)
    mask[2:4, 1:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    words = ("edit", models / "images", tmp_path / "photo.png", "--mask", tmp_path / "mask.png")
    code, _, err = run(*words, "--out", tmp_path / "one.png")
    assert (code, "What was drawn has 4 levels" in err) == (0, True), err
    shown = np.asarray(Image.open(tmp_path / "one.png"))
    assert (shown[mask == 0] == was[mask == 0]).all()
    assert set(shown[mask > 0].tolist()) <= {0, 85, 170, 255}
    code, _, err = run(*words, "--out", tmp_path / "two", "--draws", 2)
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == ["photo-1.png", "photo-2.png"]
    assert all((np.asarray(Image.open(p))[mask == 0] == was[mask == 0]).all() for p in (tmp_path / "two").iterdir())
    assert "All pixels were reduced to 4 levels." in run(*words, "--out", tmp_path / "codes.npz")[2]
    photos(tmp_path, 12, "large.png")
    words = ("edit", models / "images", tmp_path / "large.png", "--box", "0,0,2,2")
    assert "resized to 6 x 6 pixels of 4 levels" in run(*words, "--out", tmp_path / "large-out.png")[2]


def test_images_of_a_folder_keep_their_names_and_their_known_pixels(run, models, tmp_path):
    was = photos(tmp_path / "in", 6, "b.png", "a.png", "cat/a.png")
    code, _, err = run("edit", models / "images", tmp_path / "in", "--box", "0,0,6,3", "--out", tmp_path / "out")
    assert code == 0, err
    shown = {str(p.relative_to(tmp_path / "out")): np.asarray(Image.open(p)) for p in (tmp_path / "out").rglob("*.png")}
    assert shown.keys() == was.keys()
    assert all((shown[name][3:] == was[name][3:]).all() for name in was)
    photos(tmp_path / "alike", 6, "a.png", "a.bmp")
    assert run("edit", models / "images", tmp_path / "alike", "--box", "0,0,6,3", "--out", tmp_path / "two")[0] == 0
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == ["a.bmp.png", "a.png.png"]


def test_draws_of_images_go_to_a_picture_or_a_folder(run, models, tmp_path):
    np.savez(tmp_path / "in.npz", x=np.zeros((2, 6, 6), np.int64))
    words = ("edit", models / "images", tmp_path / "in.npz", "--box", "0,0,3,3", "--box", "4,4,6,6", "--draws", 2)
    code, _, err = run(*words, "--out", tmp_path / "folder")
    assert code == 0, err
    pictures = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "folder").iterdir())]
    assert len(pictures) == 4
    assert all((picture[:3, 3:] == 0).all() for picture in pictures)
    assert any((picture[:3, :3] > 0).any() for picture in pictures)
    code, _, err = run(*words, "--out", tmp_path / "sheet.png")
    assert code == 0, err
    assert "26 unknown entries of 2 examples" in err
    code, _, err = run(*words, "--out", tmp_path / "sheet.png")
    assert code == 2
    assert "--overwrite" in err


def test_masks_and_boxes_that_do_not_fit_are_refused(run, models, tmp_path):
    Image.new("L", (5, 7), 255).save(tmp_path / "mask.png")
    photo = models / "photos/03.png"
    for words, code, told in [
        (["--mask", tmp_path / "mask.png"], 3, "5 x 7, expected 12 x 12 or 6 x 6"),
        (["--mask", tmp_path / "none.png"], 3, "no mask"),
        (["--box", "0,0,13,2"], 2, "not within the image, 12 x 12"),
        (["--box", "0,0,3"], 2, "not x0,y0,x1,y1"),
        ([], 2, "Nothing says which"),
        ([], 2, "Pass --mask, white where unknown, or --box"),
        (["--box", "0,0,3,3", "--missing", "x"], 2, "--missing does not concern"),
        (["--box", "0,0,3,3", "--gap", "#"], 2, "--gap does not concern"),
        (["--box", "0,0,3,3", "--particles", 0], 2, "Of 0 particles"),
        (["--box", "0,0,3,3", "--particles", 1], 2, "Of 1 particles"),
        (["--box", "0,0,3,3", "--text", "a_"], 2, "Both a file and a text"),
    ]:
        got, _, err = run("edit", models / "images", photo, *words, "--out", tmp_path / "out.png")
        assert (got, told in err) == (code, True), err
        assert len(err.strip().splitlines()) <= 2
    assert "Nothing says what to edit" in run("edit", models / "images")[2]
    assert "boxes are for images" in run("edit", models / "text", "--text", "a_", "--box", "0,0,1,1")[2]
    assert "Masks and boxes" in run("edit", models / "table", models / "t.csv", "--mask", tmp_path / "mask.png")[2]
    assert "--resize does not concern" in run("edit", models / "text", "--text", "a_", "--resize", 6)[2]
    assert "--gap does not concern" in run("edit", models / "table", models / "t.csv", "--gap", "#")[2]
    assert "cannot edit a text" in run("edit", models / "table", "--text", "a_")[2]


def test_a_built_in_set_is_filled_by_its_name(tmp_path):
    likely.fit("bars-and-stripes", "autoregressive", size="tiny", steps=2, out=tmp_path / "m", progress=False)
    filled = likely.fill(tmp_path / "m", "bars-and-stripes", boxes=[(0, 3, 4, 4)])
    assert torch.equal(filled.x[0, :, :, :3], likely.load("bars-and-stripes").test.x[:, :, :3])


def test_under_any_order_a_hole_in_the_middle_is_filled_exactly():
    made = Autoregressive(Space.grid(1, 4, 4, 2), size="tiny", net="any-order").eval()
    filled = likely.fill(made, torch.ones(2, 1, 4, 4, dtype=torch.int64), boxes=[(1, 1, 3, 3)], draws=3)
    assert filled.exact
    assert (filled.effective == torch.inf).all()
    assert int((filled.x == 0).sum()) == int((filled.x[..., 1:3, 1:3] == 0).sum()) > 0
