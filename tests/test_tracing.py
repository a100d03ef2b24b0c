"""Examples in the making: from what is hidden or noise to what `sample` draws, and the files that show it."""

import pytest
import torch
from PIL import Image

import likely
from likely import families, sources
from likely.checks import tiny_data
from likely.errors import UsageError
from likely.noise import seeded
from likely.tracing import trace

DATA = tiny_data()


def model(name: str, data: str):
    torch.manual_seed(0)
    return families.build(name, DATA[data].space, size="tiny").eval()


def test_the_last_frame_is_what_sample_draws():
    net = model("diffusion", "grid")
    x, hidden = trace(net, 3, 5, seed=4)
    assert x.shape == (5, 3, *net.space.shape)
    assert not hidden.any()
    with seeded(4):
        assert torch.equal(x[-1], net.sample(3))


def test_masks_fall_frame_by_frame():
    x, hidden = trace(model("masked-diffusion", "sequence"), 2, 3)
    left = hidden.flatten(2).sum(2)
    assert (left.diff(dim=0) <= 0).all()
    assert left[0].min() > 0
    assert not left[-1].any()
    assert x.shape == hidden.shape


def test_a_model_whose_examples_come_at_once_says_which_do_not():
    with pytest.raises(UsageError, match="nothing to show"):
        trace(model("vae", "grid"))
    with pytest.raises(UsageError, match="show no way"):
        trace(model("diffusion", "grid"), 2, 1)


@pytest.mark.parametrize("suffix", [".png", ".gif", ".webp", ".npz"])
def test_images_become_strips_and_animations(tmp_path, suffix):
    space, path = likely.Space.grid(1, 5, 4, 17), tmp_path / f"way{suffix}"
    x = torch.randint(17, (6, 3, 1, 5, 4))
    assert "6 frames of 3" in sources.write_frames(x, torch.zeros_like(x, dtype=torch.bool), space, path)
    if suffix != ".npz":
        with Image.open(path) as image:
            frames, (width, height) = getattr(image, "n_frames", 1), image.size
        assert frames == (1 if suffix == ".png" else 6)
        assert (width > height) == (suffix == ".png")  # of a strip, a row for each of three and a column for each of six
    with pytest.raises(UsageError, match="exists"):
        sources.write_frames(x, x < 0, space, path)


def test_what_is_hidden_of_a_text_is_underlined(tmp_path):
    path = tmp_path / "way.txt"
    x = torch.tensor([[list(b"abc")], [list(b"abc")]])
    hidden = torch.tensor([[[True, False, True]], [[False] * 3]])
    sources.write_frames(x, hidden, likely.Space.sequence(3), path)
    assert path.read_bytes() == b"--- 1 of 2 ---\n_b_\n--- 2 of 2 ---\nabc\n"
    with pytest.raises(UsageError, match=r"\.txt"):
        sources.check_frames_path(tmp_path / "way.png", likely.Space.sequence(3))


@pytest.mark.parametrize(("data", "file"), [("columns", "trace.npz"), ("grid", "trace.png"), ("set-variable", "trace.npz")])
def test_every_kind_of_data_has_a_name_that_it_can_be_shown_under(run, tmp_path, monkeypatch, data, file):
    likely.save(model("diffusion", data), tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    code, out, err = run("sample", "m", "-n", 2, "--trace", 3)
    assert code == 0, err
    assert file in out
    assert (tmp_path / file).exists()
    code, out, err = run("sample", "m", "--trace", 3, "--out", "way.csv")
    assert code == 2
    assert ".npz holds the arrays" in err
