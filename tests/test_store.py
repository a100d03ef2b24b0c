"""A model on disk: what is stored comes back; what is damaged, foreign or full is said in one line."""

import errno
import json
import os

import pytest
import torch

from likely import families, store
from likely.errors import StoreError, UsageError
from likely.space import Space
from strangers import Independent


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setitem(families.FAMILIES, "independent", families.Family("strangers:Independent"))
    families.registry.cache_clear()
    yield families.build("independent", Space.grid(1, 2, 2, 3), spread=0.5).eval()
    families.registry.cache_clear()


def test_what_is_stored_comes_back(model, tmp_path):
    folder = store.save(model, tmp_path / "m", data={"source": "toy"}, run={"seconds": 1.5})
    back = store.open_model(folder)
    assert isinstance(back, Independent)
    assert back.space == model.space
    x = model.space.enumerate()
    assert torch.equal(model.log_prob(x).nats, back.log_prob(x).nats)
    assert "toy" in (folder / "card.md").read_text()
    assert sorted(p.name for p in folder.iterdir()) == ["card.md", "config.json", "manifest.json", "model.safetensors"]


def test_the_config_names_a_family_and_never_an_import_path(model, tmp_path):
    config = json.loads((store.save(model, tmp_path / "m") / "config.json").read_text())
    assert config["model"] == "independent"
    assert config["options"] == {"spread": 0.5}
    assert "strangers" not in json.dumps(config)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "card.md"])
def test_a_flipped_bit_is_noticed(model, tmp_path, name):
    folder = store.save(model, tmp_path / "m")
    body = bytearray((folder / name).read_bytes())
    body[len(body) // 2] ^= 1
    (folder / name).write_bytes(body)
    with pytest.raises(StoreError, match=f"{name} is damaged"):
        store.open_model(folder)


def test_missing_and_truncated_files_are_named(model, tmp_path):
    folder = store.save(model, tmp_path / "m")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:50])
    with pytest.raises(StoreError, match="damaged"):
        store.open_model(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(StoreError, match="damaged"):
        store.open_model(folder)
    with pytest.raises(StoreError, match="not a stored model"):
        store.open_model(tmp_path / "nothing")


def test_a_newer_format_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FORMAT", 2)
    folder = store.save(model, tmp_path / "m")
    monkeypatch.setattr(store, "FORMAT", 1)
    with pytest.raises(StoreError, match="Upgrade"):
        store.open_model(folder)


def test_a_foreign_folder_is_not_overwritten(model, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UsageError, match="not a folder of likely"):
        store.save(model, tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        store.save(model, tmp_path / "precious.txt")
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_an_unwritable_folder_is_refused_before_any_work(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="Cannot write"):
        store.save(model, tmp_path / "file" / "below")


def test_a_full_disk_leaves_what_was_there(model, tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    store.write_atomically(path, b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        store.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_model_outside_the_registry_is_not_stored(tmp_path):
    with pytest.raises(UsageError, match="registry"):
        store.save(Independent(Space.grid(1, 2, 2, 3)), tmp_path / "m")


def test_unknown_names_get_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'diffusion'"):
        families.build("difusion", Space.reals(2))
    with pytest.raises(UsageError, match="has no option"):
        families.build("histogram", Space.reals(2), depht=3)


def test_a_folder_that_another_rank_is_just_trying_can_be_claimed(tmp_path):
    (tmp_path / ".likely-probe").touch()
    assert store.claim_folder(tmp_path) == tmp_path
    (tmp_path / "theirs.txt").touch()
    with pytest.raises(UsageError, match="not a folder of likely"):
        store.claim_folder(tmp_path)
