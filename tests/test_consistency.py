"""Consistency models against the closed form of a Gaussian: its ends of paths, what draws from them, and where tuning begins."""

import numpy as np
import pytest
import torch
from torch import nn

import likely
from exact import gaussian
from likely import families
from likely.errors import UsageError
from likely.families.consistency import Consistency
from likely.families.flow_matching import FlowMatching
from likely.space import Space


class Ends(nn.Module):
    """The net whose f is the end of the flow of N(mean, covariance) along straight paths, plus a shift.

    Along an axis of variance v the flow is linear, z_0 = m + (v / ((1 - s)^2 v + s^2))^(1/2) (z - (1 - s) m).
    """

    def __init__(self, path, exact) -> None:
        super().__init__()
        self.path, self.mean = path, exact.means[0].float()
        self.variances, self.axes = exact.variances[0].float(), exact.axes[0].float()
        self.shift = nn.Parameter(torch.zeros(2))

    def forward(self, u, t, given=None):
        s = self.path.noise(t, u)
        z = u * torch.hypot(1 - s, s)
        spread = ((1 - s).square() * self.variances + s.square()).sqrt()
        along = (z - (1 - s) * self.mean) @ self.axes * self.variances.sqrt() / spread
        return (z - (self.mean + along @ self.axes.T + self.shift)) * self.path.span / s


class Says(nn.Module):
    """A net that is a function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, u, t, given=None):
        return self.function(u, t, given)


def perfect(**options):
    model = Consistency(Space.reals(2), size="tiny", **options)
    exact = gaussian(model.path.schedule, (2,))
    model.net = Ends(model.path, exact)
    return model, exact


def test_exact_ends_are_constant_along_the_flow():
    model, exact = perfect()
    end = exact.sample(5).float()
    net, path = model.net, model.path
    for t in (0.05, 0.4, 1.0):
        times = torch.full((5,), t)
        s = path.noise(times, end)
        spread = ((1 - s).square() * net.variances + s.square()).sqrt()
        z = (1 - s) * net.mean + ((end - net.mean) @ net.axes * spread / net.variances.sqrt()) @ net.axes.T
        torch.testing.assert_close(model.end(z, times, None), end, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 3])
def test_exact_ends_draw_exactly(steps):
    model, exact = perfect()
    calls = []
    model.net.register_forward_hook(lambda *_: calls.append(1))
    x = model.sample(20_000, steps=steps)
    assert len(calls) == steps
    torch.testing.assert_close(x.double().T.cov(), exact.covariance, rtol=0, atol=0.04)
    torch.testing.assert_close(x.double().mean(0), exact.mean, rtol=0, atol=0.04)


def test_no_gradient_leads_away_from_exact_ends_where_rungs_are_many():
    torch.manual_seed(0)
    x = torch.as_tensor(perfect()[1].sample(20_000)).float()

    def gradient(rungs, shift):
        model, _ = perfect(rungs=rungs)
        (model.net.shift.data,) = (torch.full((2,), shift),)
        model.zero_grad()
        model(x).mean().backward()
        return model.net.shift.grad

    # the mean of unit vectors, n of them: a shift alone turns none at r > 0, where both ends have it, and all at r = 0
    assert gradient(50, 0.0).abs().max() < 4 / len(x) ** 0.5
    assert (gradient(2, 0.3) > 0.1).all()
    assert (gradient(2, -0.3) < -0.1).all()


def test_steps_of_an_exact_teacher_stay_on_the_path_as_rungs_grow():
    x = perfect()[1].sample(500).float()

    def loss(rungs):
        model, exact = perfect(rungs=rungs)
        teacher = FlowMatching(Space.reals(2), size="tiny")

        def velocity(u, t, given=None):
            s = model.path.noise(t, u)
            z = u * torch.hypot(1 - s, s)
            return (z - exact(z, t)[0].to(z)) * model.path.span / s

        teacher.net = Says(velocity)
        model.learn_from(teacher)
        assert not [name for name in model.state_dict() if "teacher" in name]
        torch.manual_seed(0)
        return model(x).mean().item()

    coarse, fine = loss(50), loss(400)
    assert fine < coarse / 6 < 0.01  # a step of Euler's is off by its square
    assert perfect()[0](x).mean() > 5 * coarse  # lines leave the path


def test_the_lowest_rung_is_denoising(monkeypatch):
    model = Consistency(Space.reals(2), size="tiny", rungs=2)
    t, eps, x = torch.linspace(0.01, 0.5, 30), torch.randn(30, 2), torch.randn(30, 2)
    monkeypatch.setattr("likely.families.consistency.stratified", lambda *_: t.double())
    monkeypatch.setattr("likely.families.consistency.torch.randn_like", lambda _: eps)
    said = model.end(torch.lerp(x, eps, model.path.noise(t, x)), t, None)
    torch.testing.assert_close(model(x), ((said - x).square().mean(1) + 1e-6).sqrt() - 1e-3)


def test_tuning_begins_from_flow_matching_and_keeps_its_size_and_net():
    torch.manual_seed(0)
    start = families.build("flow-matching", Space.reals(2), size="tiny", net="plain", width=24, coupling="ot")
    for p in start.parameters():
        nn.init.normal_(p, std=0.2)
    model = families.tuned_from(start, "consistency", rungs=8)
    assert isinstance(model, Consistency)
    assert (model.rungs, model.size) == (8, "tiny")
    assert isinstance(start, FlowMatching)
    z, t = torch.randn(4, 2), torch.rand(4)
    mean = start.posterior(z / start.scale(t, z), t, None).mean
    torch.testing.assert_close(model.end(z, t, None), mean)


def test_what_has_another_net_cannot_be_begun_from():
    with pytest.raises(UsageError, match="their nets differ"):
        families.tuned_from(families.build("meanflow", Space.reals(2), size="tiny"), "consistency")
    with pytest.raises(UsageError, match="least is two"):
        Consistency(Space.reals(2), rungs=1)
    with pytest.raises(UsageError, match="least is one"):
        Consistency(Space.reals(2), size="tiny").sample(2, steps=0)


def test_fit_begins_another_family_and_goes_on_with_the_same(tmp_path):
    data = likely.load("moons", count=200)
    likely.fit(data, "flow-matching", size="tiny", steps=2, out=tmp_path / "start", progress=False)
    tuned = likely.fit(data, "consistency", start=tmp_path / "start", steps=1, rungs=4, progress=False).model
    assert (tuned.config["model"], tuned.rungs, tuned.size) == ("consistency", 4, "tiny")
    assert likely.fit(data, start=tmp_path / "start", steps=1, progress=False).model.config["model"] == "flow-matching"
    with pytest.raises(UsageError, match="keeps its size"):
        likely.fit(data, start=tmp_path / "start", size="small", steps=1, progress=False)


def test_a_family_that_is_named_is_not_mistaken_for_none(run, tmp_path):
    """The default family, named, begins from a fitted model as any other does: not at all, where their nets differ."""
    np.save(tmp_path / "few.npy", np.random.default_rng(0).normal(size=(12, 2)))
    start, fit = tmp_path / "start", ("fit", tmp_path / "few.npy", "--steps", 1)
    assert run(*fit[:2], "flow-matching", *fit[2:], "--size", "tiny", "--out", start)[0] == 0
    code, _, err = run(*fit[:2], "autoregressive", *fit[2:], "--from", start, "--out", tmp_path / "a")
    assert (code, "cannot begin from a 'flow-matching'" in err) == (2, True), err
    code, _, err = run(*fit, "--from", start, "--size", "tiny", "--out", tmp_path / "b")
    assert (code, "keeps its size" in err) == (2, True), err
    code, _, err = run(*fit, "--from", start, "--width", 9, "--out", tmp_path / "c")
    assert (code, "keeps its options: width" in err) == (2, True), err
    code, out, err = run(*fit, "--from", start, "--out", tmp_path / "d")
    assert (code, likely.open(tmp_path / "d").config["model"]) == (0, "flow-matching"), err + out
    code, _, err = run(*fit, "--from", tmp_path / "nowhere")
    assert (code, "not a stored model" in err) == (4, True), err
