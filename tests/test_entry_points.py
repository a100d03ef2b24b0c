"""A family from another package, registered through an entry point: built, checked, stored, compared like ours."""

import shutil
import sys
from pathlib import Path

import pytest

import likely
from likely import families
from likely.checks import LawBroken, Room, check_model, tiny_data

HERE = Path(__file__).parent


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package with an entry point, as pip would install it."""
    site = tmp_path / "site"
    (site / "stranger-0.1.dist-info").mkdir(parents=True)
    (site / "stranger-0.1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 0.1\n")
    (site / "stranger-0.1.dist-info/entry_points.txt").write_text("[likely.families]\nstranger = stranger_package:Independent\n")
    shutil.copy(HERE / "strangers.py", site / "stranger_package.py")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))
    families.registry.cache_clear()
    yield site
    families.registry.cache_clear()
    sys.modules.pop("stranger_package", None)


def test_a_strangers_family_is_listed_and_keeps_the_contract(installed):
    assert "stranger" in families.names()
    assert "likelihood" in next(m for m in likely.models() if m["name"] == "stranger")["abilities"]
    findings = check_model("stranger", tiny_data()["grid"])
    assert {"mass is one", "samples follow", "store keeps"} <= {f.law for f in findings}


@pytest.mark.slow
def test_a_strangers_family_stands_on_the_board(installed, tmp_path):
    rows = likely.compare(tiny_data()["grid"], ["stranger", "histogram"], minutes=0.05, out=tmp_path / "board", jobs=1)
    assert {row.model: row.error for row in rows} == {"stranger": "", "histogram": ""}


def test_a_lie_is_found_out(installed, monkeypatch):
    """The contract is not vacuous: claims that are wrong in any of these ways break a law."""
    import stranger_package

    honest = stranger_package.Independent._nats
    for lie, law in ((lambda s, x: honest(s, x) + 0.1, "mass is one"), (lambda s, x: honest(s, x.flip(-1)), "samples follow")):
        with monkeypatch.context() as patch:
            patch.setattr(stranger_package.Independent, "_nats", lie)
            with pytest.raises(LawBroken, match=law):
                check_model("stranger", tiny_data()["grid"], room=Room(steps=300))
