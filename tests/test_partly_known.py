"""Models that learn to draw entries given others: closed-form conditionals, known entries to the bit, and all that a whole model does."""

import math

import pytest
import torch
from torch import nn

import likely
from likely import families
from likely.errors import UsageError
from likely.nets.partial import Shown
from likely.solve.partial import pinned, random_known
from likely.solve.posterior import Lift
from likely.space import Space, Support

GRID = Space.grid(1, 3, 3, 4)
COLOUR = Space.grid(2, 4, 5, 256)
POINTS = Space.points(5, 2, variable=True)
MIXED = Space.columns(Support("nominal", 3, missing=True), Support("decimal", missing=True, decimals=1), Support("ordinal", 4))


def perturbed(name, space=GRID, **options):
    torch.manual_seed(0)
    model = families.build(name, space, size="tiny", inpaint=True, **options)
    for p in model.parameters():
        if p.count_nonzero() == 0:
            nn.init.normal_(p, std=0.1)
    return model.eval()


# --- what is shown -----------------------------------------------------------------------------------


def test_half_of_the_examples_are_shown_nothing_of_and_the_others_any_share():
    torch.manual_seed(0)
    for space in (GRID, COLOUR, MIXED, POINTS):
        known = random_known(space, 8000, torch.device("cpu"))
        assert known.shape == (8000, *space.shape)
        share = known.flatten(1).double().mean(1)
        some = share > 0
        assert 0.3 < some.double().mean() < 0.52  # half, less those of which chance or an empty rectangle shows nothing
        assert share[some].std() > 0.2
        assert 0.5 < known[some].double().mean() < 0.72


def test_channels_of_a_pixel_are_shown_together():
    known = random_known(COLOUR, 100, torch.device("cpu"))
    assert torch.equal(known[:, 0], known[:, 1])


@pytest.mark.parametrize("space", [GRID, Space.grid(1, 2, 2, 200), Space.reals(3)], ids=str)
def test_a_posterior_that_knows_an_entry_says_it_at_no_cost(space):
    lift = Lift(space)
    x = torch.randint(0, 4, (5, *space.shape)) if space.discrete else torch.randn(5, *space.shape)
    e, _ = lift(x, likely.noise.Noise(x))
    known = e.masked_fill(torch.rand(e.shape) < 0.5, math.nan)
    params = torch.randn(5, e.shape[1], lift.width, *e.shape[2:])
    free = lift.posterior(params, e, torch.full_like(e, 0.8), torch.full_like(e, 0.6))
    told, there = pinned(lift, free, known), ~known.isnan()
    assert torch.equal(told.mean[there], e[there])
    assert torch.equal(told.mean[~there], free.mean[~there])
    if space.discrete:
        cost = lift.entry_log_prob(told, e, x)
        assert cost[there].abs().max() < 1e-3
        assert torch.equal(cost[~there], lift.entry_log_prob(free, e, x)[~there])
        assert torch.equal(lift.draw(told)[there], x[there])


@pytest.mark.parametrize("name", ["diffusion", "vdm", "ddpm"])
def test_what_is_known_costs_nothing_in_training(name):
    model = perturbed(name)
    x = torch.randint(0, 4, (64, *GRID.shape))
    e, _ = model.lift(x, likely.noise.Noise(x))
    u = torch.linspace(0.02, 0.98, 64)
    alike = model._term(e, x, Shown(e), torch.randn_like(e), u)
    free = model._term(e, x, None, torch.randn_like(e), u)
    assert alike.abs().max() < 0.02 * free.abs().mean()


@pytest.mark.parametrize(
    ("name", "options"),
    [("flow-matching", {}), ("score", {}), *[("score", {"objective": word}) for word in ("likelihood", "sliced", "explicit")]],
)
def test_what_is_known_has_no_gradient_in_training(name, options, monkeypatch):
    """Of an example that is shown whole nothing is learnt; of one that is shown in part, from what is unknown alone."""
    model, x = perturbed(name, Space.reals(3), **options).train(), torch.randn(16, 3)
    monkeypatch.setattr("likely.partly_known.random_known", lambda space, n, device: torch.ones(n, 3, dtype=torch.bool))
    assert model(x).abs().max() == 0
    monkeypatch.setattr("likely.partly_known.random_known", lambda space, n, device: torch.tensor([True, False, True]).expand(n, 3))
    said = []
    model.net.register_forward_hook(lambda net, told, out: said.append(out) or out.retain_grad())
    model(x).sum().backward()
    assert said[0].grad[:, [0, 2]].abs().max() == 0
    assert said[0].grad[:, 1].abs().min() > 0


# --- with nothing known it is any other model --------------------------------------------------------


@pytest.mark.parametrize("space", [GRID, MIXED, POINTS, Space.reals(3)], ids=str)
def test_nothing_known_is_nothing_given(space):
    model = perturbed("diffusion", space)
    z = torch.randn(4, *model.lift.space.shape)
    t = torch.full((4,), 0.4)
    nothing = model.posterior(z, t, Shown(torch.full_like(z, math.nan)))
    assert torch.equal(model.posterior(z, t, None).mean, nothing.mean)
    space.check(model.sample(3, steps=3))
    assert model.train()(model.eval().sample(6, steps=3)).isfinite().all()


def test_bounds_latents_and_codes_are_of_whole_examples():
    model = perturbed("diffusion")
    x = torch.randint(0, 4, (3, *GRID.shape))
    assert model.log_prob(x).kind == "lower bound"
    assert model.terms(x).n == 3
    assert (model.decode(model.encode(x).value) == x).double().mean() > 0.8
    assert torch.equal(model.codec().decompress(model.codec().compress(x), 3), x)


# --- fills -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["diffusion", "vdm", "ddpm", "score", "flow-matching"])
def test_known_entries_come_back_to_the_bit_and_what_is_unknown_is_not_looked_at(name):
    model, x = perturbed(name), torch.randint(0, 4, (6, *GRID.shape))
    known = torch.rand(6, *GRID.shape) < 0.5
    results = []
    for other in (x, torch.where(known, x, 3 - x)):
        torch.manual_seed(1)
        results.append(model.fill(other, known, draws=2, steps=4))
    assert torch.equal(results[0].x, results[1].x)
    assert torch.equal(results[0].x[:, known], x[known].expand(2, -1))
    assert "conditional" in results[0].how
    assert not results[0].exact


@pytest.mark.parametrize("method", ["conditional", "posterior", "repaint", "replacement"])
@pytest.mark.parametrize("space", [POINTS, Space.points(4, 2, 6, variable=True)], ids=["reals", "levels"])
def test_sets_keep_their_known_points_and_how_many_they_are(space, method):
    model = perturbed("diffusion", space)
    torch.manual_seed(2)
    x = model.sample(40, steps=3)
    known = torch.rand(40, len(x[0]), 1).expand(x.shape) < 0.5
    absent = x.isnan() if x.is_floating_point() else x < 0
    known = known | absent
    filled = model.fill(x, known, draws=2, method=method, steps=4).x
    space.check(filled.flatten(0, 1))
    assert torch.equal(filled[:, known].nan_to_num(9), x[known].nan_to_num(9).expand(2, -1))
    assert torch.equal(filled.isnan() if x.is_floating_point() else filled < 0, absent.expand(2, -1, -1, -1))


def test_mixed_tables_with_missing_cells_are_filled():
    model = perturbed("diffusion", MIXED)
    x = torch.tensor([[0, 13, 3], [-1, -1, 0], [2, -7, 1]])
    known = torch.tensor([[True, False, True], [True, True, False], [False, False, True]])
    filled = model.fill(x, known, draws=3, steps=4)
    assert torch.equal(torch.where(known, filled.x, 0), torch.where(known, x, 0).expand(3, -1, -1))
    MIXED.check(filled.x.flatten(0, 1))


class PerfectlyTold(nn.Module):
    """What `Diffusion` asks of its net, of the exact p(e | z_t, some of e) of a Gaussian whose first entry is known, or nothing."""

    def __init__(self, model, covariance) -> None:
        super().__init__()
        self.level, self.covariance, self.where = model.level, covariance, nn.Parameter(torch.zeros(1))
        self.kind, self.path = model.config["model"], getattr(model, "path", None)

    def forward(self, z, t, known=None):
        alpha, sigma = (v[:, :1].double() for v in self.level(t, z))
        mean, var = torch.zeros_like(z).double(), torch.ones_like(z).double()
        known, given = known if isinstance(known, Shown) else (None, known)
        for i in range(len(z)):
            c, m = self.covariance, torch.zeros(3).double()
            if given is not None:  # a label moves the mean of all entries
                m = m + given[i].double()
            if known is not None and not known[i, 0].isnan():
                gain = c[:, 0] / c[0, 0]
                c, m = c - gain[:, None] * c[None, 0], m + gain * (known[i, 0].double() - m[0])
            k = alpha[i] * c @ torch.linalg.inv(alpha[i] ** 2 * c + sigma[i] ** 2 * torch.eye(3).double())
            mean[i], var[i] = m + k @ (z[i].double() - alpha[i] * m), (c - alpha[i] * k @ c).diagonal().clamp_min(1e-12)
        if self.path is not None:  # of flow matching: from the example through z to its noise
            s = self.path.noise(t, z).double()
            return (self.path.span / s * (z * torch.hypot(1 - s, s) - mean)).to(z)
        velocity = (alpha * z - mean) / sigma
        return (torch.stack([velocity, (var / sigma**2).log()], 2).flatten(1) if self.kind == "diffusion" else velocity).to(z)


def test_what_is_shown_goes_beside_what_is_given_and_neither_stands_for_the_other():
    model = perturbed("diffusion", Space.reals(3), given=Space.label(2))
    z, t, y = torch.randn(4, 3), torch.full((4,), 0.4), torch.tensor([[0], [1], [0], [1]])
    known = torch.tensor([0.3, math.nan, math.nan]).expand(4, -1)
    both, shown_only_one = model.posterior(z, t, Shown(known, y)).mean, model.posterior(z, t, Shown(known, y.flip(0))).mean
    assert torch.equal(both[:, 0], known[:, 0])
    assert not torch.equal(both[:, 1:], shown_only_one[:, 1:])
    assert not torch.equal(model.posterior(z, t, y).mean[:, 1:], both[:, 1:])
    with pytest.raises(UsageError, match="no `given` was passed"):
        model.posterior(z, t, Shown(known))


@pytest.mark.parametrize("name", ["diffusion", "score", "flow-matching"])
@pytest.mark.parametrize("label", [None, 1])
def test_fills_by_a_perfect_net_have_the_closed_form_moments(name, label):
    """Alone, and beside a label that is the mean of all entries."""
    model = perturbed(name, Space.reals(3), given=None if label is None else Space.label(2))
    covariance = torch.tensor([[1.0, 0.8, 0.5], [0.8, 1.0, 0.3], [0.5, 0.3, 1.0]], dtype=torch.float64)
    model.net = PerfectlyTold(model, covariance)
    x, known = torch.tensor([[1.2, 0.0, 0.0]]), torch.tensor([[True, False, False]])
    given, draws = None if label is None else torch.tensor([[label]]), 400
    drawn = model.fill(x, known, given, draws=draws, steps=16).x[:, 0, 1:].double()
    gain, mean = covariance[1:, 0], float(label or 0)
    spread = covariance[1:, 1:] - gain[:, None] * gain
    assert ((drawn.mean(0) - mean - (1.2 - mean) * gain).abs() < 4.5 * (spread.diagonal() / draws).sqrt()).all()
    assert ((drawn.T.cov() - spread).abs() < 0.25).all()


@pytest.mark.parametrize("name", ["diffusion", "flow-matching", pytest.param("score", marks=pytest.mark.slow)])
def test_a_net_that_learns_to_inpaint_comes_near_the_conditional_law(name):
    torch.manual_seed(0)
    mixing = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    model = families.build(name, Space.reals(2), size="tiny", inpaint=True, net="plain")
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    falling = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=350)
    for _ in range(350):
        optimiser.zero_grad()
        model(torch.randn(256, 2) @ mixing.T).mean().backward()
        optimiser.step()
        falling.step()
    drawn = {
        method: model.eval().fill(torch.tensor([[1.2, 0.0]]), torch.tensor([[True, False]]), draws=2000, method=method).x[:, 0, 1]
        for method in ("conditional", "replacement")
    }
    off = {method: abs(x.mean().item() - 0.96) / 0.6 for method, x in drawn.items()}  # in deviations of the conditional law
    assert off["conditional"] < 0.4
    assert off["replacement"] > off["conditional"] + 0.3
    assert drawn["conditional"].std().item() == pytest.approx(0.6, rel=0.25)


# --- what is asked for and cannot be -----------------------------------------------------------------


def test_what_cannot_be_is_one_clear_line():
    with pytest.raises(UsageError, match="whatever is known of them"):
        families.build("flow-matching", GRID, size="tiny", inpaint=True, coupling="ot")
    with pytest.raises(UsageError, match="unconditional"):
        perturbed("diffusion").sample(2, torch.zeros(2, 1, dtype=torch.int64), steps=2)
    plain = families.build("diffusion", GRID, size="tiny")
    x = torch.zeros(1, *GRID.shape, dtype=torch.int64)
    with pytest.raises(UsageError, match="--inpaint"):
        plain.fill(x, x > 0, method="conditional")
    with pytest.raises(UsageError, match="Unknown method"):
        plain.fill(x, x > 0, method="conditionally")


def test_the_command_line_fits_and_fills(run, tmp_path):
    rows = [f"{i % 7},{'ab'[i % 7 > 3]}\n" for i in range(60)]
    (tmp_path / "t.csv").write_text("".join(["n,letter\n", *rows]))
    code, _, err = run("fit", tmp_path / "t.csv", "diffusion", "--inpaint", "--size", "tiny", "--steps", 3, "--out", tmp_path / "m")
    assert code == 0, err
    (tmp_path / "holes.csv").write_text("n,letter\n6,\n,a\n")
    code, _, err = run("edit", tmp_path / "m", tmp_path / "holes.csv", "--out", tmp_path / "done.csv")
    assert code == 0, err
    assert "conditional at 24 noise levels" in err
    assert (tmp_path / "done.csv").read_text().startswith("n,letter\n6,")
