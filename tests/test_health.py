"""The health check finds what was planted, each fault by the probe that is there for it, and nothing in what is sound."""

import math

import pytest
import torch
from torch import Tensor, nn

import likely
from likely.bijections import Bijection, Chain, Linear, per_example
from likely.errors import UsageError
from likely.health.mass import quadrature
from likely.invertible import Invertible
from likely.space import Space


class Saturating(Bijection):
    """z = a u / sqrt(1 + u^2): strictly monotone and smooth, and onto (-a, a) alone."""

    def __init__(self, a: float = 1.0) -> None:
        super().__init__()
        self.a = a

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.a * x / (1 + x.square()).sqrt(), per_example(math.log(self.a) - 1.5 * (1 + x.square()).log())

    def inverse(self, y: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        share = (y / self.a).clamp(-1 + 1e-9, 1 - 1e-9)
        x = share / (1 - share.square()).sqrt()
        return x, -per_example(math.log(self.a) - 1.5 * (1 + x.square()).log())


class Scale(Bijection):
    """y = 2 x, with `said` for the log-determinant of an entry, the same wrong value both ways."""

    def __init__(self, said: float = math.log(2)) -> None:
        super().__init__()
        self.said = said

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return 2 * x, per_example(torch.full_like(x, self.said))

    def inverse(self, y: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return y / 2, per_example(torch.full_like(y, -self.said))


class Shift(Bijection):
    """Far away and back: float32 keeps few digits of what was there."""

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return (x + 1e6) - 1e6, x.new_zeros(len(x), dtype=torch.float64)

    def inverse(self, y: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return y, y.new_zeros(len(y), dtype=torch.float64)


class Centred(Bijection):
    """What a batch norm in the wrong mode does."""

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x - x.mean(0), x.new_zeros(len(x), dtype=torch.float64)

    def inverse(self, y: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return y, y.new_zeros(len(y), dtype=torch.float64)


class Overflowing(Bijection):
    """The identity, but for a NaN beyond 100."""

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return torch.where(x.abs() > 100, math.nan, x), x.new_zeros(len(x), dtype=torch.float64)

    def inverse(self, y: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return y, y.new_zeros(len(y), dtype=torch.float64)


class Planted(Invertible):
    summary = "a flow with a fault"

    def __init__(self, space: Space, fault: nn.Module) -> None:
        super().__init__(space)
        assert isinstance(fault, Bijection)
        self.map = Chain([Linear(space.dims), fault])


def _report(fault: Bijection, dims: int = 2):
    return likely.check(Planted(Space.reals(dims), fault), torch.randn(100, dims))


def _mass(report, where: str) -> float:
    return float(next(r for r in report.readings if r.what.startswith("mass") and where in r.where).measured.split()[0])


@pytest.mark.parametrize("dims", [1, 2, 5])
def test_a_map_that_is_not_onto_passes_its_jacobians_and_is_caught_by_its_mass(dims):
    report = _report(Saturating(), dims)
    lost = math.erf(math.sqrt(0.5)) ** dims
    assert report.verdicts["log-determinant"] == "sound"
    assert report.verdicts["onto"] == report.verdicts["mass of the map"] == "broken"
    assert not report.sound
    assert _mass(report, "noise") == pytest.approx(lost, abs=0.04)
    if dims <= 2:
        assert _mass(report, "quadrature") == pytest.approx(lost, abs=0.02)


def test_a_map_that_loses_little_is_not_called_sound():
    """a = 3 loses the 0.8 % of noise in three dimensions that is farther out."""
    lost = 1 - math.erf(3 * math.sqrt(0.5)) ** 3
    report = _report(Saturating(3.0), 3)
    (reading,) = (r for r in report.readings if r.what == "mass of the map")
    mass, _, error = reading.measured.split(",")[0].split()
    assert abs(float(mass) - (1 - lost)) < 3 * float(error)
    assert reading.verdict == "doubtful"


def test_the_mass_of_a_lifted_table_is_not_said_to_be_that_of_its_states(tmp_path):
    x = torch.randn(100, 2).mul(1000).round()
    (tmp_path / "t.csv").write_text("a,b\n" + "\n".join(f"{a:.0f},{b:.0f}" for a, b in x.tolist()))
    data = likely.load(tmp_path / "t.csv")
    lines = dict(line.split(": ", 1) for _, line in likely.check(likely.fit(data, "flow", steps=5, progress=False).model, data).lines)
    assert lines["mass"] == "could not be told"
    assert "lifted to" in lines["mass of the map"]


def test_importance_sampling_meets_heavy_tails():
    """Of independent t's with two degrees of freedom: tails of |x|^-3, as those of a histogram."""

    class Heavy(Planted):
        def _log_prob(self, x, given, noise):
            nats = torch.distributions.StudentT(torch.tensor(2.0, dtype=torch.float64)).log_prob(x.double()).sum(1)
            return likely.LogProb(nats, "exact")

    x = torch.distributions.StudentT(2.0).sample((200, 3))
    report = likely.check(Heavy(Space.reals(3).standardised(x), Scale()), x)
    assert {r.verdict for r in report.readings if r.what == "mass"} == {"sound"}
    assert _mass(report, "importance") == pytest.approx(1, abs=0.1)


def test_a_volume_that_is_wrong_both_ways_is_caught_by_autograd_and_by_quadrature():
    report = _report(Scale(said=-math.log(2)))
    assert report.verdicts["round trip"] == report.verdicts["onto"] == "sound"
    assert report.verdicts["log-determinant"] == report.verdicts["mass"] == "broken"
    assert _mass(report, "quadrature") == pytest.approx(1 / 16, abs=0.01)
    assert _report(Scale()).sound


def test_what_only_float32_loses_is_seen_as_such():
    readings = [r for r in _report(Shift(), 3).readings if r.what == "round trip"]
    assert {r.verdict for r in readings if "float64" in r.where} == {"sound"}
    assert "sound" not in {r.verdict for r in readings if "float32" in r.where and "x 1" in r.where}


def test_a_map_that_looks_at_its_batch_is_caught():
    assert _report(Centred(), 3).verdicts["rows"] == "broken"


def test_what_is_no_number_far_out_is_caught():
    report = _report(Overflowing(), 3)
    assert report.verdicts["far probes"] == "broken"
    assert report.verdicts["log-determinant"] == "sound"


def test_a_sampler_of_another_density_is_caught_in_many_dimensions():
    class Cold(Planted):
        def sample(self, n, given=None, *, temperature=0.9, with_log_prob=False):
            return super().sample(n, given, temperature=temperature, with_log_prob=with_log_prob)

    x = torch.randn(100, 12)
    assert likely.check(Cold(Space.reals(12), Scale()), x).verdicts["samples and density"] == "broken"
    assert likely.check(Planted(Space.reals(12), Scale()), x).verdicts["samples and density"] == "sound"


def test_quadrature_finds_what_is_narrow():
    """A mixture of a wide and a very narrow normal, off the origin, integrates to one where hints have shown the peak."""
    points = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(2)), torch.distributions.Normal(torch.tensor([0.0, 0.3]), torch.tensor([1.0, 1e-3]))
    )
    mass, error, _ = quadrature(lambda u: points.log_prob(u[:, 0]).exp(), points.sample((32, 1)).double())
    assert mass == pytest.approx(1, abs=0.01)
    assert error < 0.02


@pytest.mark.parametrize(("dims", "family"), [(1, "gmm"), (2, "vae"), (3, "kde")])
def test_other_families_are_checked_as_far_as_it_makes_sense(dims, family):
    loaded = likely.load(torch.randn(300, dims))
    model = likely.fit(loaded, family, size="tiny", steps=20, progress=False).model
    report = likely.check(model, loaded)
    assert report.sound
    assert {"mass", "rows", "far probes"} <= set(report.verdicts)
    assert "round trip" not in report.verdicts


def test_enumerable_spaces_are_summed():
    from likely.checks import tiny_data

    data = tiny_data()["grid"]
    report = likely.check(likely.fit(data, "flow", size="tiny", steps=50, progress=False).model, data)
    assert "all 81 states" in {r.where for r in report.readings}
    assert report.sound


def test_the_command_line_shows_what_is_sound_and_fails_where_something_is_broken(run, tmp_path, monkeypatch):
    folder = tmp_path / "m"
    assert run("fit", "wine", "flow", "--size", "tiny", "--steps", 20, "--out", folder)[0] == 0
    code, out, err = run("show", folder, "--check")
    assert code == 0, err
    assert "round trip" in out
    assert "every noise comes from an example" in out
    monkeypatch.setattr(Linear, "inverse", lambda self, y, given=None: (y, -self._log_det(y)))
    code, out, err = run("show", folder, "--check", "--data", "wine")
    assert code == 6, err
    assert "broken" in out
    assert run("show", folder, "--data", "wine")[0] == 2


def test_a_check_needs_data():
    with pytest.raises(UsageError, match="Nothing to check"):
        likely.check(Planted(Space.reals(2), Scale()))
