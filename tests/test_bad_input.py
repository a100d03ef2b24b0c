"""Bad input: every kind has one line that says what is wrong and what to do, or is skipped, counted and named."""

import gzip
import struct
import zlib

import numpy as np
import polars
import pytest
import torch
from PIL import Image

from likely.errors import DataError, LikelyError, UsageError
from likely.sources import load


def _saved(tmp_path, content, name="t.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def _fails(match, source, error=DataError, **options):
    """Loading fails with one line that matches."""
    with pytest.raises(error, match=match) as caught:
        load(source, **options)
    assert isinstance(caught.value, LikelyError)
    assert "\n" not in str(caught.value)


def _rows(n=12, columns="a,b"):
    return columns + "\n" + "".join(f"{i},{'xyz'[i % 3]}\n" for i in range(n))


# -- names and options --------------------------------------------------------------------------------------


def test_unknown_names_suggest_the_nearest():
    _fails("There is no data 'digit'.*Did you mean 'digits'", "digit")
    _fails("There is no data '/nowhere/images'", "/nowhere/images")
    _fails("Unknown layout 'gird'.*Did you mean 'grid'", np.zeros((9, 2, 2)), UsageError, layout="gird")
    _fails("A int cannot be read as data", 3)


# -- folders and images -------------------------------------------------------------------------


def test_options_out_of_range():
    _fails("tile=0 is too small", "digits", UsageError, tile=0)
    _fails("precision=-1 is too small", "wine", UsageError, precision=-1)
    _fails("Did you mean 'drop'", "digits", UsageError, missing_labels="dropp")


def _images(folder, n=40):
    folder.mkdir(exist_ok=True)
    for i in range(n):
        Image.fromarray(np.full((4, 4), i, np.uint8)).save(folder / f"{i:03d}.png")
    return folder


def test_empty_folder(tmp_path):
    _fails("is empty", tmp_path)
    (tmp_path / ".hidden").write_text("x")
    _fails("is empty", tmp_path)


def test_folder_of_tables(tmp_path):
    _saved(tmp_path, _rows())
    _fails("t.csv is another kind of data", tmp_path)


def test_one_example(tmp_path):
    _fails("Got 1 example; at least 3", _images(tmp_path / "one", 1))
    _fails("Got 1 example; at least 3", np.zeros((1, 4, 4), np.uint8))
    _fails("Got 1 example; at least 3", _saved(tmp_path, "a,b\n1,x\n"))
    assert [len(s) for s in load(np.zeros((3, 4, 4), np.uint8)).splits.values()] == [1, 1, 1]


def test_few_corrupt_images_are_skipped_counted_and_named(tmp_path):
    folder = _images(tmp_path / "images")
    content = (folder / "007.png").read_bytes()
    (folder / "007.png").write_bytes(content[: len(content) // 2])
    data = load(folder)
    assert data.card["skipped_damaged"] == ["007.png"]
    assert data.card["files"] == 39
    for name in ("008.png", "009.png"):
        (folder / name).write_bytes(b"not an image")
    _fails("3 of 40 images are damaged, such as 007.png, 008.png, 009.png", folder)


def test_folder_with_only_corrupt_images(tmp_path):
    _saved(tmp_path, b"", "a.png")
    _fails("1 of 1 images are damaged", tmp_path)


def test_mixed_sizes(tmp_path):
    folder = _images(tmp_path / "images")
    Image.new("L", (5, 4)).save(folder / "z.png")
    _fails("different sizes: 000.png is 4 x 4, z.png is 5 x 4.*tile", folder)
    _fails("No image is as large as a tile", folder, tile=64)


def test_sixteen_bit_palette_and_alpha_images_load(tmp_path):
    folder = _images(tmp_path / "images")
    Image.fromarray(np.full((4, 4), 513, np.uint16)).save(folder / "x.png")
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 255, 255, 255])
    palette.save(folder / "y.png")
    Image.new("RGBA", (4, 4), (1, 2, 3, 0)).save(folder / "z.png")
    card = load(folder).card
    assert (card["from_16_bit"], card["from_palette"], card["transparency_over_white"]) == (1, 1, 1)


def test_float_images_are_refused_by_name(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "f.tif")
    _fails("1 of 1 images are damaged, such as f.tif", tmp_path)


@pytest.mark.parametrize("side", [9000, 100000])
def test_decompression_bomb(tmp_path, side):
    """A header of many pixels is refused before anything is decoded: by our limit, and beyond pillow's own."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    _saved(tmp_path, png, "bomb.png")
    _fails("bomb.png", tmp_path)


def test_images_cannot_have_more_levels_than_bits(tmp_path):
    _fails("cannot have 1000 levels", _images(tmp_path / "images"), levels=1000)


# -- tables -------------------------------------------------------------------------------------


def test_ragged_rows(tmp_path):
    _fails("line 14, has 3 cells where 2 are expected", _saved(tmp_path, _rows() + "1,x,2\n"))
    _fails("line 14, has 1 cells where 2 are expected", _saved(tmp_path, _rows() + "1\n"))


def test_unclosed_quote(tmp_path):
    _fails("line 14: unexpected end of data", _saved(tmp_path, _rows() + '1,"x\n'))


def test_duplicate_headers(tmp_path):
    _fails("2 columns named 'a'", _saved(tmp_path, _rows(columns="a,a")))


def test_byte_order_marks_are_dropped(tmp_path):
    for encoding in ("utf-8-sig", "utf-16"):
        data = load(_saved(tmp_path, _rows().encode(encoding)))
        assert [s.name for s in data.space.supports] == ["a", "b"]


def test_mixed_types(tmp_path):
    _fails("Column 'a' mixes 12 numbers with 1 other values, such as 'old' in row 13.*missing", _saved(tmp_path, _rows() + "old,x\n"))
    data = load(_saved(tmp_path, _rows() + "old,x\n"), missing=("old",))
    assert data.card["missing_cells"] == {"a": 1}
    assert load(_saved(tmp_path, _rows() + "old,x\n"), nominal=("a",)).space.supports[0].levels == 14
    _fails("no column 'aa' to be nominal", _saved(tmp_path, _rows()), UsageError, nominal=("aa",))


def test_columns_without_content(tmp_path):
    text = "a,void,same\n" + "".join(f"{i},,7\n" for i in range(12))
    data = load(_saved(tmp_path, text))
    assert [s.name for s in data.space.supports] == ["a", "same"]
    assert data.card["dropped_empty_columns"] == ["void"]
    assert data.card["constant_columns"] == ["same"]
    relaxed = data.space.relax(data.train.x).value
    assert bool(relaxed.isfinite().all())
    _fails("Every cell of the table is missing", _saved(tmp_path, "a,b\n?,\nNA,nan\n"))


def test_large_integers_are_exact(tmp_path):
    values = [10**9 + 7 * i for i in range(12)]
    data = load(_saved(tmp_path, "v\n" + "\n".join(map(str, values)) + "\n"))
    assert sorted(torch.cat([s.x for s in data.splits.values()]).flatten().tolist()) == [v - 10**9 for v in values]
    _fails("needs 16 digits at 0 decimals", _saved(tmp_path, "v\n1\n2\n9007199254740993\n"))


def test_numbers_of_too_many_digits_ask_for_a_precision(tmp_path):
    path = _saved(tmp_path, "v\n1.5\n1e-300\n12345678901\n0.1\n")
    _fails("needs 311 digits at 300 decimals .as 1e-300 has.*--precision", path)
    assert load(path, precision=3).card["rounded_cells"] == 1
    _fails("needs 1000000005 digits", _saved(tmp_path, "v\n1e999999999\n1.25\n3.12345\n"))


def test_infinities_name_row_and_column(tmp_path):
    _fails("Column 'a' is infinite .-inf. in row 13", _saved(tmp_path, _rows() + "-inf,x\n"))
    frame = polars.DataFrame({"v": [1.0, 2.0, float("inf"), 3.0]})
    _fails("Column 'v' is infinite .inf. in row 3", frame)


def test_tables_without_rows_or_text(tmp_path):
    _fails("has a header and no rows", _saved(tmp_path, "a,b\n"))
    _fails("is empty", _saved(tmp_path, ""))
    _fails("0 rows", polars.DataFrame({"a": []}))
    _fails("line 2, is not UTF-8", _saved(tmp_path, b"a,b\n1,\xe9\n2,x\n"))
    _fails("no Parquet file", _saved(tmp_path, b"PAR1 no", "t.parquet"))


def test_tables_without_header(tmp_path):
    assert [s.name for s in load(_saved(tmp_path, "1,x\n2,y\n3,x\n4,y\n")).space.supports] == ["column1", "column2"]
    assert len(load(_saved(tmp_path, "u,x\n" * 9), header=False).train) == 6


def test_labels_missing_for_some_rows(tmp_path):
    path = _saved(tmp_path, _rows() + "3,?\n")
    _fails("1 of 13 examples have no label", path, given="b")
    assert load(path, given="b", missing_labels="drop").card["dropped_without_label"] == 1
    _fails("nothing to condition on called 'label'", "moons", given="label")
    _fails("nothing to condition on called 'caption'", np.zeros((9, 2, 2)), given="caption")
    _fails("Got 2 labels for 9 examples", (np.zeros((9, 2, 2)), [0, 1]))
    _fails("Not one example has a label", (np.zeros((9, 2, 2)), [None] * 9), given="label")


# -- text ---------------------------------------------------------------------------------------


def test_short_and_damaged_texts(tmp_path):
    _fails("has 5 bytes", _saved(tmp_path, "short", "a.txt"))
    packed = gzip.compress(bytes(5000))
    _fails("cannot be read", _saved(tmp_path, packed[:-12], "a.txt.gz"))
    assert load(_saved(tmp_path, b"\xff\xfe\xfd" * 200, "b.txt")).card["not_utf8"] == 1
    _fails("Got 2 texts", ["one text" * 20, "another text" * 20])
    assert load(b"abc" * 100).card["window"] == 13


# -- arrays -------------------------------------------------------------------------------------


def test_arrays_with_nan_or_nothing():
    x = np.random.rand(12, 3)
    x[4, 1] = np.nan
    x[5, 0] = np.inf
    _fails(r"2 values are NaN or infinite .the first at \(4, 1\)", x)
    _fails("empty array", np.zeros((0, 3)))
    _fails("Arrays of type <U1", np.array(["a", "b"]))
    _fails(r"shape \(3, 2, 2, 2, 2\) cannot be read as grid", np.zeros((3, 2, 2, 2, 2)))


def test_values_beyond_float32_are_named():
    x = np.random.rand(12, 3)
    x[4, 1] = -2.5e300
    for layout in ("columns", "set"):
        _fails(r"-2.5e\+300 \(at \(4, (0, )?1\)\), beyond the 3.4e38 of float32", x if layout == "columns" else x[:, None], layout=layout)
    _fails("Column 1 has the value", x)
    _fails("The array has the value", x[:, :, None, None], layout="grid")
    _fails("Column 1 has the value", (np.zeros((12, 2)), x))


def test_values_outside_the_levels():
    _fails(r"Values 0..5 are outside 0..3", np.arange(6).reshape(6, 1), levels=4)
    _fails("Values -1..4 are outside", np.arange(-1, 5).reshape(6, 1, 1))
    _fails("are not whole", np.random.rand(6, 2), levels=4)
    _fails("100001 levels are outside", np.full((6, 2, 2), 100000))
    assert "warning" in load(np.ones((9, 2))).card


def test_real_sequences_are_not_yet():
    _fails("Real-valued sequences .time series, audio. cannot be modelled yet", np.random.rand(9, 50), layout="sequence")


def test_packed_files_that_are_broken(tmp_path):
    _fails("no NumPy file that can be read without pickle", _saved(tmp_path, b"PK nothing", "a.npz"))
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
    _fails("no NumPy file that can be read without pickle", tmp_path / "o.npy")
    np.savez(tmp_path / "two.npz", a=np.zeros(3), b=np.zeros(3))
    _fails("does not say which array holds the examples.*it has a, b", tmp_path / "two.npz")
    _fails("is no IDX file", _saved(tmp_path, b"\1\2\3\4", "a.idx"))
    _fails("holds 1 bytes of values where its header says 4", _saved(tmp_path, b"\0\0\x08\1\0\0\0\4x", "b.idx"))


def test_datasets_of_odd_items():
    _fails("items have 3 parts", torch.utils.data.TensorDataset(*[torch.zeros(5, 2)] * 3))
    _fails("each must be .points >= 1, dimensions.", [np.zeros((2, 2)), np.zeros((3, 3))])
