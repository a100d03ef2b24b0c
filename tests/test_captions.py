"""Captions of images: read from both places, refused by name where they are wrong, written by a person, learnt from and drawn by."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import likely
from likely import families
from likely.errors import DataError, UsageError
from likely.evaluation.gallery import gallery
from likely.nets.reader import hashed_words
from likely.sources import given_values, load, read_split
from likely.sources.captions import padded
from likely.space import Space

WORDS = ("a cat", "two dogs, running", "étude")


def images(folder, n=9, side=4):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    paths = [folder / f"{i}.png" for i in range(n)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (side, side), dtype=np.uint8)).save(path)
    return paths


def beside(folder, n=9):
    for i, path in enumerate(images(folder, n)):
        path.with_suffix(".txt").write_text(f" {WORDS[i % 3]}\n", encoding="utf-8")
    return folder


def table(folder, rows, name="captions.csv", head="file,caption"):
    (folder / name).write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return folder


def spelt(given):
    return [bytes(row[row >= 0].tolist()).decode() for row in given]


def every(data):
    return sorted(spelt(torch.cat([split.given for split in data.splits.values()])))


# -- reading ------------------------------------------------------------------------------------


def test_texts_beside_images_and_tables_say_the_same(tmp_path):
    texts = load(beside(tmp_path / "texts"), given="caption")
    rows = [f'{i}.png,"{WORDS[i % 3]}"' for i in range(9)]
    lines = [json.dumps({"file_name": f"{i}.png", "text": WORDS[i % 3]}) for i in range(9)]
    images(tmp_path / "csv"), images(tmp_path / "json")
    by_row = load(table(tmp_path / "csv", rows), given="caption")
    by_line = load(table(tmp_path / "json", lines[1:], "metadata.jsonl", lines[0]), given="caption")
    assert texts.given.shape == (17,)
    assert texts.given == by_row.given == by_line.given
    assert every(texts) == sorted(WORDS * 3)
    for other in (by_row, by_line):
        assert torch.equal(texts.train.given, other.train.given)
        assert torch.equal(texts.train.x, other.train.x)
    assert "other_files" not in texts.card
    assert texts.card["caption_files"] == 9


def test_without_being_asked_for_they_change_nothing_but_what_is_counted(tmp_path):
    plain = load(beside(tmp_path))
    assert plain.given is None
    assert plain.space.layout == "grid"
    with pytest.raises(DataError) as error:
        load(tmp_path, given="label")
    assert error.value.hint == "It has: caption."


def test_sub_folders_are_labels_and_their_own_tables_name_files_below_them(tmp_path):
    for name in ("cats", "dogs"):
        images(tmp_path / name, 5)
        table(tmp_path / name, [f"{i}.png,{name} {i}" for i in range(5)], "metadata.csv", "file_name,text")
    assert load(tmp_path, given="label").given.supports[0].categories == ("cats", "dogs")
    assert every(load(tmp_path, given=["caption"])) == [f"{name} {i}" for name in ("cats", "dogs") for i in range(5)]
    with pytest.raises(UsageError, match="cannot be joined with label"):
        load(tmp_path, given=("label", "caption"))


def test_the_longest_are_cut_at_a_character_and_counted(tmp_path):
    for path in images(tmp_path):
        path.with_suffix(".txt").write_text("é" * 127 + "a€€" if path.stem == "3" else "short", encoding="utf-8")
    data = load(tmp_path, given="caption")
    assert data.given.shape == (255,)  # 254 + 1, and no part of a sign of three bytes
    assert data.card["captions_cut"] == 1


def test_tiles_have_the_caption_of_their_image(tmp_path):
    for i, path in enumerate(images(tmp_path, 6, side=8)):
        path.with_suffix(".txt").write_text(f"number {i}")
    assert every(load(tmp_path, given="caption", tile=4)) == sorted(f"number {i}" for i in range(6) for _ in range(4))


def test_images_without_a_caption_are_named_or_dropped(tmp_path):
    (beside(tmp_path) / "4.txt").write_text(" \n")
    with pytest.raises(DataError, match=r"1 of 9 images have no caption, such as .*4\.png"):
        load(tmp_path, given="caption")
    data = load(tmp_path, given="caption", missing_labels="drop")
    assert data.card["dropped_without_label"] == 1
    assert every(data) == sorted((*WORDS * 3,))[:5] + sorted((*WORDS * 3,))[6:]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (["0.png,a", "7.gif,b"], r"captions\.csv, row 2: there is no image '7\.gif'"),
        (["0.png,a", "captions.csv,b"], r"row 2: there is no image 'captions\.csv'"),
        (["0.png,a", "./0.png,b"], r"row 2: \./0\.png has a caption already"),
    ],
)
def test_rows_that_are_wrong_are_named(tmp_path, rows, told):
    images(tmp_path)
    with pytest.raises(DataError, match=told):
        load(table(tmp_path, rows), given="caption")
    assert load(tmp_path).given is None


def test_tables_that_are_wrong_and_both_kinds_at_once(tmp_path):
    images(tmp_path)
    with pytest.raises(DataError, match="no column 'text' or 'caption'"):
        load(table(tmp_path, ["0.png,a"], head="file,said"), given="caption")
    (tmp_path / "0.txt").write_text("a")
    with pytest.raises(DataError, match="8 of 9 images have no caption"):  # the table is of something else
        load(tmp_path, given="caption")
    with pytest.raises(DataError, match="both kinds"):
        load(table(tmp_path, ["1.png,a"]), given="caption")
    (tmp_path / "captions.csv").unlink()
    (tmp_path / "0.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"0\.txt, line 1, is not UTF-8"):
        load(tmp_path, given="caption")


def test_lists_and_pairs_in_memory(tmp_path):
    x = np.arange(9 * 16, dtype=np.uint8).reshape(9, 4, 4)
    listed = load(x, given=[*WORDS * 2, *WORDS])
    pairs = load((x, [*WORDS * 3]), given="caption")
    assert torch.equal(listed.test.given, pairs.test.given)
    assert listed.given == pairs.given
    assert "given" not in listed.card["options"]
    assert load(x, given=[*WORDS * 2, "a", "b", None], missing_labels="drop").card["dropped_without_label"] == 1
    with pytest.raises(DataError, match="Got 3 captions for 9 examples"):
        load(x, given=[*WORDS])
    with pytest.raises(DataError, match="Captions are strings, and '3' is none"):
        load((x, [3] * 9), given="caption")


def test_new_data_are_padded_to_the_models_length_and_not_cut(tmp_path):
    given = load(beside(tmp_path / "new"), given="caption").given
    assert read_split(tmp_path / "new", Space.grid(1, 4, 4, 256), Space.sequence(40, 256, variable=True)).given.shape == (9, 40)
    with pytest.raises(DataError, match="'two dogs, running' has 17 bytes, those of the model have at most 9"):
        read_split(tmp_path / "new", Space.grid(1, 4, 4, 256), Space.sequence(9, 256, variable=True))
    one = read_split(tmp_path / "new/2.png", Space.grid(1, 4, 4, 256), given)
    assert spelt(one.given) == ["étude"]
    images(tmp_path / "bare")
    assert read_split(tmp_path / "bare", Space.grid(1, 4, 4, 256), given).given is None
    table(tmp_path / "bare", [f"{i}.png,of {i}" for i in range(9)])
    assert spelt(read_split(tmp_path / "bare/5.png", Space.grid(1, 4, 4, 256), given).given) == ["of 5"]


# -- values as a person writes them -------------------------------------------------------------


def test_values_are_all_that_follows_the_name():
    space = Space.sequence(24, 256, variable=True)
    assert spelt(given_values("caption=two dogs, size=big", space)) == ["two dogs, size=big"]
    assert spelt(given_values({"caption": ["a  cat ", "étude"]}, space)) == ["a cat", "étude"]
    for wrong, told in (("a cat", "not of the form name=value"), ("label=3", "not conditioned on 'label'"), ("caption= ", "empty caption")):
        with pytest.raises(UsageError, match=told):
            given_values(wrong, space)
    with pytest.raises(DataError, match="has 25 bytes, those of the model have at most 24"):
        given_values({"caption": "x" * 25}, space)
    with pytest.raises(UsageError, match="not on text"):
        given_values("caption=a", Space.sequence(4, 3))


# -- models -------------------------------------------------------------------------------------


def two_words(n=200):
    """Bright images are called 'light', dark ones 'dark'."""
    bright = torch.arange(n) % 2
    x = (2 * bright[:, None, None] + torch.randint(0, 2, (n, 3, 3))).numpy()
    return load(x, levels=4, given=["light" if b else "dark" for b in bright])


def test_a_fit_tells_two_captions_apart():
    data = two_words()
    model = likely.fit(data, "autoregressive", size="tiny", steps=60, batch=64, seed=0, threads=1).model
    x, swapped = data.test.x, torch.cat([given_values({"caption": w}, data.given) for w in ("dark", "light")])
    light = (data.test.given[:, 0] == ord("l")).long()
    right, wrong = (model.log_prob(x, swapped[rows]).nats.mean() for rows in (light, 1 - light))
    assert right > wrong + 3
    drawn = likely.sample(model, 40, given={"caption": ["light"] * 20 + ["dark"] * 20})
    assert (drawn[:20] >= 2).float().mean() > 0.8
    assert (drawn[20:] < 2).float().mean() > 0.8


def test_galleries_show_what_images_were_drawn_by():
    data = two_words(9)
    assert gallery(data.space, data.test.x, data.given, data.test.given)["given"] == spelt(data.test.given)
    labels = Space.label(("cat", "dog"))
    assert gallery(data.space, data.test.x[:2], labels, torch.tensor([[1], [0]]))["given"] == ["dog", "cat"]


@pytest.mark.parametrize(("name", "side"), [("diffusion", 8), ("diffusion(net=dit)", 4)])
def test_guidance_by_captions_goes_from_the_unconditional_model_to_the_conditional(name, side):
    space, given = Space.grid(1, side, side, 4), Space.sequence(9, 256, variable=True)
    model = families.build(name, space, given=given, size="tiny", drop=0.1).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    values = given_values({"caption": ["a cat", "two dogs"]}, given)
    z, t = torch.randn(2, *model.lift.space.shape), torch.tensor([0.3, 0.6])
    with torch.no_grad():
        conditional, unconditional = (model.denoiser(g)(z, t)[0] for g in (values, None))
        for scale, wanted in ((0.0, unconditional), (1.0, conditional), (3.0, torch.lerp(unconditional, conditional, 3.0))):
            torch.testing.assert_close(model.denoiser(values, scale)(z, t)[0], wanted)
    assert (conditional - unconditional).abs().amax(tuple(range(1, z.ndim))).min() > 1e-3
    assert (conditional[0] - model.denoiser(values[[1, 0]])(z, t)[0][0]).abs().max() > 1e-3


def test_bytes_of_a_word_share_a_number_wherever_it_stands():
    numbers = hashed_words(padded([b"a red square", b"Square: red!"], 14)).tolist()
    (a, none, red), square = numbers[0][:3], numbers[0][6]
    assert none == 0
    assert len({0, a, red, square}) == 4
    assert numbers == [[a, 0, red, red, red, 0, *[square] * 6, 0, 0], [*[square] * 6, 0, 0, red, red, red, 0, 0, 0]]
    (umlaut,) = hashed_words(padded(["über".encode()], 5)).tolist()  # five bytes
    assert umlaut == [umlaut[0] or 1] * 5


def test_a_stored_model_is_sampled_scored_edited_and_shown_by_captions(run, tmp_path):
    folder = beside(tmp_path / "photos", 12)
    fit = ("fit", folder, "diffusion", "--given", "caption", "--size", "tiny", "--drop", ".2", "--steps", 2, "--out", tmp_path / "m")
    code, _, err = run(*fit)
    assert code == 0, err
    words = ("--given", "caption=two dogs, asleep", "-n", 3, "--guidance", 2, "--out", tmp_path / "a.png")
    code, out, err = run("sample", tmp_path / "m", *words)
    assert code == 0, err
    assert "3 examples" in out
    code, out, err = run("score", tmp_path / "m", folder)
    assert code == 0, err
    mean = re.search(r"mean <= ([\d.]+) \+- ([\d.]+) bits/dim over 12 examples", out)
    assert mean
    assert 0 < float(mean[2]) < float(mean[1])
    photo, edited = folder / "0.png", tmp_path / "b.png"
    assert run("edit", tmp_path / "m", photo, "--strength", ".5", "--given", "caption=a cat", "--out", edited)[0] == 0
    assert edited.is_file()
    assert "caption" in run("show", tmp_path / "m")[1]
    code, _, err = run("sample", tmp_path / "m", "--given", "caption=" + "x" * 18)
    assert (code, "18 bytes, those of the model have at most 17" in err) == (3, True)
