"""Paths between examples: they begin and end there, keep the norm, and are straight in a straight latent space."""

import math

import pytest
import torch

import likely
from likely.errors import DataError, UsageError
from likely.latents import spherical
from likely.space import Space


def test_the_spherical_path_keeps_the_norm_and_an_even_pace():
    a, b = torch.randn(5, 40, dtype=torch.float64), torch.randn(5, 40, dtype=torch.float64)
    a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    path = spherical(a, b, torch.linspace(0, 1, 9))
    torch.testing.assert_close(path.norm(dim=2), torch.ones(9, 5, dtype=torch.float64))
    steps = (path[1:] * path[:-1]).sum(2).acos()
    torch.testing.assert_close(steps, steps[:1].expand_as(steps))
    torch.testing.assert_close(path[[0, -1]], torch.stack([a, b]))


def test_the_path_between_equal_and_opposite_latents_is_the_line():
    a = torch.randn(2, 3)
    for b in (a, -a, torch.zeros(2, 3)):
        path = spherical(a, b, torch.tensor([0.0, 0.5, 1.0]))
        assert path.isfinite().all()
        torch.testing.assert_close(path[0], a)
        torch.testing.assert_close(path[2], b)


def test_a_flow_at_its_start_takes_the_known_path():
    """Its map is linear then, and what is decoded is the image of the arc."""
    flow = likely.build("flow", Space.reals(2), size="tiny").eval()
    path = likely.interpolate(flow, torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 3)
    torch.testing.assert_close(path, torch.tensor([[1.0, 0.0], [math.sqrt(0.5)] * 2, [0.0, 1.0]]), atol=1e-5, rtol=0)


def test_ends_of_discrete_paths_are_the_examples_and_several_go_at_once():
    space = Space.grid(1, 4, 4, 5)
    x = torch.randint(0, 5, (64, 1, 4, 4))
    flow = likely.build("flow", space, given=Space.label(2), size="tiny").eval()
    flow.start(x, torch.zeros(64, 1, dtype=torch.int64))
    path = likely.interpolate(flow, x[:3], x[3:6], 4, given={"label": 1})
    assert path.shape == (4, 3, 1, 4, 4)
    assert torch.equal(path[0], x[:3])
    assert torch.equal(path[-1], x[3:6])
    space.check(path.flatten(0, 1))


def test_what_has_no_path_is_refused():
    flow = likely.build("flow", Space.reals(2), size="tiny")
    with pytest.raises(UsageError, match="no two ends"):
        likely.interpolate(flow, torch.zeros(2), torch.ones(2), 1)
    with pytest.raises(DataError):
        likely.interpolate(flow, torch.zeros(3), torch.ones(3))
    with pytest.raises(UsageError, match="no latent space"):
        likely.interpolate(likely.build("histogram", Space.grid(1, 2, 2, 3)), torch.zeros(1, 2, 2), torch.zeros(1, 2, 2))


def test_the_command_line_draws_the_way_between_two_test_examples(run, tmp_path):
    code, _, err = run("fit", "bars-and-stripes", "flow", "--steps", 2, "--size", "tiny", "--out", tmp_path / "m")
    assert code == 0, err
    code, out, err = run("sample", tmp_path / "m", "--between", "0,3", "-n", 5, "--out", tmp_path / "way.png")
    assert code == 0, err
    assert "5 examples" in out
    assert (tmp_path / "way.png").exists()
    for wrong, code in (("0,9999", 2), ("0", 2)):
        assert run("sample", tmp_path / "m", "--between", wrong, "--out", tmp_path / "w.png")[0] == code
