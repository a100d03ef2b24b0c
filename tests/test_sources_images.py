"""Images: pillow's formats by stated rules, labels and splits from folders, tiles, and writing."""

import numpy as np
import pytest
import torch
from PIL import Image

from likely.errors import DataError, UsageError
from likely.sources import load, read, write
from likely.sources.images import image_examples, pixels
from likely.space import Space

RNG = np.random.default_rng(0)


def _save(folder, name, array, **how):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(path, **how)
    return path


def _grey(side=6):
    return RNG.integers(0, 256, (side, side), dtype=np.uint8)


def _folder(folder, n=10, side=6):
    for i in range(n):
        _save(folder, f"{i:02d}.png", _grey(side))
    return folder


# -- decoding -----------------------------------------------------------------------------------


def test_lossless_formats_keep_every_pixel(tmp_path):
    rgb = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for suffix in ("png", "bmp", "tif", "ppm"):
        assert np.array_equal(pixels(_save(tmp_path, f"a.{suffix}", rgb)), rgb.transpose(2, 0, 1))
    assert np.array_equal(pixels(_save(tmp_path, "g.png", _grey(4)))[0], np.asarray(Image.open(tmp_path / "g.png")))


def test_rules_are_applied_and_counted(tmp_path):
    from collections import Counter

    counts = Counter()
    sixteen = np.array([[0, 255, 256], [65535, 4660, 1]], dtype=np.uint16)
    assert np.array_equal(pixels(_save(tmp_path, "16.png", Image.fromarray(sixteen)), counts)[0], sixteen >> 8)
    palette = Image.new("P", (2, 2))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.putdata([0, 1, 2, 1])
    assert pixels(_save(tmp_path, "p.png", palette), counts)[:, 0, 0].tolist() == [255, 0, 0]
    alpha = np.zeros((1, 2, 4), np.uint8)
    alpha[0, 1] = (10, 20, 30, 255)
    assert pixels(_save(tmp_path, "a.png", alpha), counts)[:, 0].T.tolist() == [[255, 255, 255], [10, 20, 30]]
    assert pixels(_save(tmp_path, "c.tif", Image.new("CMYK", (2, 2), (0, 0, 0, 0))), counts)[:, 0, 0].tolist() == [255, 255, 255]
    assert pixels(_save(tmp_path, "b.png", Image.new("1", (2, 1), 1)), counts)[0].tolist() == [[255, 255]]
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right
    assert pixels(_save(tmp_path, "e.png", np.zeros((2, 5), np.uint8), exif=exif), counts).shape == (1, 5, 2)
    frames = [Image.new("L", (3, 3), v) for v in (9, 200)]
    frames[0].save(tmp_path / "m.tif", save_all=True, append_images=frames[1:])
    assert int(pixels(tmp_path / "m.tif", counts)[0, 0, 0]) == 9
    assert +counts == {
        "from_16_bit": 1, "from_palette": 1, "transparency_over_white": 1, "from_other_colours": 1, "turned_by_exif": 1,
        "animations_first_frame": 1,
    }  # fmt: skip


def test_grey_and_colour_together_are_colour(tmp_path):
    _folder(tmp_path, 4)
    _save(tmp_path, "colour.png", RNG.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    data = load(tmp_path)
    assert data.space == Space.grid(3, 6, 6, 256).standardised(data.train.x)


# -- folders ------------------------------------------------------------------------------------


def test_folders_give_labels(tmp_path):
    for i in range(12):
        _save(tmp_path, f"{'cat' if i % 2 else 'dog'}/{i}.png", np.full((4, 4), i % 2, np.uint8))
    data = load(tmp_path, given="label")
    assert data.given.supports[0].categories == ("cat", "dog")
    assert torch.equal(1 - data.train.x[:, 0, 0, 0], data.train.given[:, 0])
    _save(tmp_path, "stray.png", np.zeros((4, 4), np.uint8))
    assert load(tmp_path).given is None
    with pytest.raises(DataError, match="1 of 13 examples have no label"):
        load(tmp_path, given="label")
    assert load(tmp_path, given="label", missing_labels="drop").card["dropped_without_label"] == 1


def test_folders_named_train_and_test_are_the_split(tmp_path):
    for i in range(12):
        _save(tmp_path, f"{'test' if i < 3 else 'train'}/{'ab'[i % 2]}/{i}.png", np.full((4, 4), i, np.uint8))
    data = load(tmp_path, given="label")
    assert sorted(data.test.x[:, 0, 0, 0].tolist()) == [0, 1, 2]
    assert data.given.supports[0].categories == ("a", "b")


def test_sizes_are_mended_by_resize_or_tile(tmp_path):
    for i, (h, w) in enumerate([(8, 8), (10, 20), (4, 4), (16, 9), (8, 8), (9, 9)]):
        _save(tmp_path, f"{i}.png", np.full((h, w), i, np.uint8))
    with pytest.raises(DataError, match=r"different sizes: 0.png is 8 x 8, 1.png is 20 x 10"):
        load(tmp_path)
    resized = load(tmp_path, resize=(4, 6))
    assert resized.space.shape == (1, 4, 6)
    tiled = load(tmp_path, tile=8)
    assert tiled.card["smaller_than_a_tile"] == 1
    assert tiled.card["pixels_left_over"] == 10 * 20 - 2 * 64 + 16 + 16 * 9 - 2 * 64 + 81 - 64
    parts = [set(s.x.flatten().tolist()) for s in tiled.splits.values()]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 5  # no file is in two splits


def test_tiles_are_the_pixels(tmp_path):
    image = RNG.integers(0, 256, (9, 13, 3), dtype=np.uint8)
    path = _save(tmp_path, "big.png", image)
    from likely.sources.examples import Options

    x = image_examples([path], tmp_path, Options(tile=4)).x
    assert x.shape == (6, 3, 4, 4)
    assert torch.equal(x[4], torch.from_numpy(image[4:8, 4:8]).permute(2, 0, 1).long())
    assert len(load(path, tile=4).train) == 3


def test_levels_reduce_images(tmp_path):
    data = load(_folder(tmp_path), levels=4)
    full = load(tmp_path)
    assert torch.equal(data.train.x, full.train.x >> 6)


def test_other_files_are_counted(tmp_path):
    _folder(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    assert load(tmp_path).card["other_files"] == 1


# -- writing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 17, 100, 256])
def test_a_folder_of_samples_reads_back(tmp_path, levels):
    space = Space.grid(3, 4, 5, levels)
    x = torch.from_numpy(RNG.integers(0, levels, (12, 3, 4, 5)))
    said = write(x, space, tmp_path / "out")
    assert said.startswith("Wrote 12 PNG images")
    assert torch.equal(read(tmp_path / "out", space), x)
    write(x, space, tmp_path / "x.npz")
    assert torch.equal(read(tmp_path / "x.npz", space), x)


def test_a_folder_that_is_overwritten_holds_the_new_set_alone(tmp_path):
    space, x = Space.grid(1, 2, 2, 2), torch.zeros(5, 1, 2, 2).long()
    write(x, space, tmp_path / "out")
    for other in ("mine.png", "00007.txt", "1.png"):
        (tmp_path / "out" / other).write_bytes(b"")
    write(x[:2], space, tmp_path / "out", overwrite=True)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"00000.png", "00001.png", "mine.png", "00007.txt", "1.png"}
    texts = Space.sequence(3, 256)
    write(torch.full((4, 3), 65), texts, tmp_path / "texts")
    write(torch.full((1, 3), 66), texts, tmp_path / "texts", overwrite=True)
    assert {p.name: p.read_text() for p in (tmp_path / "texts").iterdir()} == {"00000.txt": "BBB"}


def test_one_picture_holds_every_image(tmp_path):
    space = Space.grid(1, 8, 8, 17)
    write(torch.full((10, 1, 8, 8), 16), space, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (3 * 33 - 1, 4 * 33 - 1)
    assert int((sheet == 255).sum()) == 10 * 32 * 32


def test_nothing_is_overwritten_unless_told(tmp_path):
    space, x = Space.grid(1, 2, 2, 2), torch.zeros(3, 1, 2, 2).long()
    write(x, space, tmp_path / "a.png")
    with pytest.raises(UsageError, match="exists"):
        write(x, space, tmp_path / "a.png")
    write(x, space, tmp_path / "a.png", overwrite=True)
    with pytest.raises(UsageError, match="cannot be written to"):
        write(x, space, tmp_path / "a.csv")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write(x, space, tmp_path / "file" / "a.png")


def test_text_samples_come_back(tmp_path):
    space = Space.sequence(8)
    x = torch.from_numpy(np.frombuffer(b"ab\xff\x00cdefgh\nijklm", np.uint8)[:16].astype(np.int64)).view(2, 8)
    write(x, space, tmp_path / "s.txt")
    assert (tmp_path / "s.txt").read_bytes() == b"ab\xff\x00cdef\ngh\nijklm\n"
    assert read(tmp_path / "s.txt", space).shape == (3, 8)
    assert read(b"0123456789", space)[1].tolist() == [56, 57, *[-1] * 6]
