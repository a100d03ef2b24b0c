"""What all models of noisy data do alike: guidance, fills, latents and traces, on perfect nets of Gaussians and on small fitted models."""

import math

import pytest
import torch
from torch import nn

import likely
from exact import gaussian
from likely import families
from likely.errors import UsageError
from likely.families.flow_matching import FlowMatching
from likely.solve.inpainting import INPAINTERS
from likely.space import Space, Support

NAMES = ["ddpm", "diffusion", "vdm", "score", "flow-matching", "meanflow"]
GRID = Space.grid(1, 3, 3, 4)
MIXED = Space.columns(Support("nominal", 3, missing=True), Support("decimal", missing=True, decimals=1), Support("ordinal", 4))


def perturbed(name, space=GRID, **options):
    torch.manual_seed(0)
    model = families.build(name, space, size="tiny", **options)
    for p in model.parameters():
        if p.count_nonzero() == 0:
            nn.init.normal_(p, std=0.1)
    return model.eval()


class PerfectVelocity(nn.Module):
    """What `FlowMatching` asks of its net, of an exact denoiser."""

    def __init__(self, model, exact) -> None:
        super().__init__()
        self.scale, self.exact, self.rates, self.schedule = model.scale, exact, model.schedule.rates, model.schedule
        self.where = nn.Parameter(torch.zeros(1))

    def forward(self, z, t, given=None):
        z = z * self.scale(t, z)
        (alpha, sigma), (fall, rise) = self.schedule(t.double()), self.rates(t.double())
        alpha, sigma, fall, rise = (v.view(-1, *[1] * (z.ndim - 1)).to(z) for v in (alpha, sigma, fall, rise))
        mean = self.exact(z, t)[0]
        return fall * mean + rise * (z - alpha * mean) / sigma


def perfect(shape=(3,), **options):
    model = FlowMatching(Space.reals(*shape) if len(shape) == 1 else Space.grid(*shape), size="tiny", **options).eval()
    exact = gaussian(model.schedule, shape)
    model.net = PerfectVelocity(model, exact)
    return model, exact


# --- guidance ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES[:-1])
def test_guidance_one_is_conditional_and_zero_unconditional_to_the_bit(name):
    model = perturbed(name, given=Space.label(2), drop=0.5)
    label = torch.ones(5, 1, dtype=torch.int64)

    def drawn(given, guidance, seed=3):
        torch.manual_seed(seed)
        plan = model.plan(None, 6, "log-snr", guidance, {})
        with torch.no_grad():
            return model.drawn(plan, 5, given)

    conditional, unconditional = drawn(label, 1.0), drawn(None, 1.0)
    torch.manual_seed(3)
    assert torch.equal(model.sample(5, label, steps=6, guidance=1.0), conditional)
    assert torch.equal(drawn(label, 0.0), unconditional)
    GRID.check(drawn(label, 3.0))


def test_more_guidance_overstates_what_is_given():
    x = torch.cat([torch.zeros(200, 1, 2, 2), torch.full((200, 1, 2, 2), 3)]).long()
    x = torch.where(torch.rand(x.shape) < 0.35, torch.randint(0, 4, x.shape), x)
    space, given = Space.grid(1, 2, 2, 4), Space.label(2)
    label = (torch.arange(400) // 200)[:, None]
    torch.manual_seed(0)
    model = families.build("diffusion", space, given=given, size="tiny", drop=0.3)
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(60):
        rows = torch.randint(0, 400, (64,))
        optimiser.zero_grad()
        model(x[rows], label[rows]).mean().backward()
        optimiser.step()
    ones = torch.ones(1, 1, dtype=torch.int64)
    means = [model.eval().sample(400, ones, guidance=g, steps=8).double().mean().item() for g in (-1.0, 0.0, 1.0, 3.0)]
    assert means[0] < means[1] - 0.3  # below 0 it leans away from what is given
    assert means[1] < means[2] - 0.3
    assert means[2] < means[3]


def test_guiding_what_cannot_be_guided_is_one_clear_line():
    with pytest.raises(UsageError, match="unconditional"):
        perturbed("diffusion").sample(2, guidance=2.0)
    with pytest.raises(UsageError, match="--drop") as caught:
        perturbed("diffusion", given=Space.label(2)).sample(2, torch.zeros(1, 1, dtype=torch.int64), guidance=2.0)
    assert "\n" not in str(caught.value)


# --- fill --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", INPAINTERS)
@pytest.mark.parametrize("name", NAMES)
def test_known_entries_come_back_to_the_bit(name, method):
    model = perturbed(name)
    x, known = torch.randint(0, 4, (3, *GRID.shape)), torch.rand(3, *GRID.shape) < 0.5
    filled = model.fill(x, known, draws=2, method=method, steps=4, **({"resamplings": 2} if method == "repaint" else {}))
    assert filled.x.shape == (2, 3, *GRID.shape)
    assert torch.equal(torch.where(known, filled.x, 0), torch.where(known, x, 0).expand(2, -1, -1, -1, -1))
    GRID.check(filled.x.flatten(0, 1))
    assert not filled.exact
    assert method in filled.how


@pytest.mark.parametrize("method", INPAINTERS)
def test_mixed_tables_with_missing_cells_are_filled(method):
    model = perturbed("diffusion", MIXED)
    x = torch.tensor([[0, 13, 3], [-1, -1, 0], [2, -7, 1]])
    known = torch.tensor([[True, False, True], [True, True, False], [False, False, True]])
    filled = model.fill(x, known, draws=3, method=method, steps=4)
    assert torch.equal(torch.where(known, filled.x, 0), torch.where(known, x, 0).expand(3, -1, -1))
    MIXED.check(filled.x.flatten(0, 1))


def test_the_command_line_takes_the_methods_of_the_model(run, tmp_path):
    space = Space.columns(*(Support("decimal", decimals=1, name=name) for name in "ab"))
    likely.save(families.build("diffusion", space, size="tiny"), tmp_path / "m")
    holes = tmp_path / "holes.csv"
    holes.write_text("a,b\n0.5,\n1.5,2.0\n")
    code, out, err = run(
        "edit", tmp_path / "m", holes, "--method", "repaint", "--steps", "3", "--resamplings", "2", "--out", tmp_path / "done.csv"
    )
    assert code == 0, err
    assert "repaint at 3 noise levels" in out + err
    code, _, err = run("edit", tmp_path / "m", holes, "--method", "repant", "--out", tmp_path / "no.csv")
    assert code == 2
    assert "repaint" in err


def test_what_is_unknown_is_not_looked_at():
    model = perturbed("score")
    x, known = torch.randint(0, 4, (3, *GRID.shape)), torch.rand(3, *GRID.shape) < 0.5
    results = []
    for other in (x, torch.where(known, x, 3 - x)):
        torch.manual_seed(4)
        results.append(model.fill(other, known, steps=4).x)
    assert torch.equal(*results)


def test_fills_of_a_gaussian_have_its_conditional_moments():
    model, exact = perfect()
    x = torch.tensor([[0.9, 0.0, 0.0]])
    known = torch.tensor([[True, False, False]])
    filled = model.fill(x, known, draws=4000, steps=64).x[:, 0, 1:].double()
    mean, covariance = exact.means[0], exact.covariances[0]
    gain = covariance[1:, 0] / covariance[0, 0]
    torch.testing.assert_close(filled.mean(0), mean[1:] + gain * (0.9 - mean[0]), rtol=0, atol=0.05)
    torch.testing.assert_close(filled.T.cov(), covariance[1:, 1:] - gain[:, None] * covariance[0, 1:], rtol=0.06, atol=0.03)


# --- latents and traces ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3,), (1, 2, 2)], ids=["vectors", "images"])
def test_decoding_and_encoding_are_inverse(shape):
    model, _ = perfect(shape, tolerance=1e-4)
    z = torch.randn(2, model.lift.space.dims)
    x = model.decode(z)
    assert x.shape == (2, *shape)
    again = model.encode(x)
    torch.testing.assert_close(again.value, z, rtol=0, atol=5e-3)
    torch.testing.assert_close(model.decode(again.value), x, rtol=0, atol=5e-3)


def test_latents_of_levels_decode_to_what_they_were():
    model = perturbed("diffusion")
    model.tolerance = 1e-3
    x = torch.randint(0, 4, (4, *GRID.shape))
    again = model.decode(model.encode(x).value)
    assert (again == x).double().mean() > 0.9  # neighbouring levels are 5 deviations of the first noise apart: 1 % cross the middle


@pytest.mark.parametrize("name", NAMES)
def test_a_trace_begins_with_noise_and_ends_with_the_example(name):
    model = perturbed(name)
    torch.manual_seed(5)
    frames = [x for x, hidden in model.trace(64) if not hidden.any()]
    torch.manual_seed(5)
    assert torch.equal(frames[-1], model.sample(64))
    assert len(frames) == max(2, model.usual[1])  # a frame a call, the last of which is the decoder's
    for frame in frames:
        GRID.check(frame)
    # of noise the outer two of four levels, .67 deviations from the middle on, are drawn half the time
    if name != "meanflow":
        assert 0.35 < ((frames[0] == 0) | (frames[0] == 3)).double().mean() < 0.65


@pytest.mark.parametrize("name", ["score", "ddpm"])
def test_fitted_models_take_every_sampler_by_name(name):
    model = perturbed(name, steps=24) if name == "ddpm" else perturbed(name)
    for sampler, options in (
        ("langevin", {"corrections": 2}),
        ("heun", {"churn": 4.0}),
        ("ddim", {"eta": 1.0}),
        ("ancestral", {"variance": "small"}),
    ):
        GRID.check(model.sample(3, sampler=sampler, steps=4, **options))
    with pytest.raises(UsageError, match="no option 'eta'"):
        model.sample(3, sampler="heun", eta=0.5)


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": "ddim", "eta": 2.0},
        {"sampler": "euler", "churn": -1},
        {"sampler": "langevin", "corrections": 0},
        {"guidance": math.inf},
        {"guidance": -math.inf},
        {"guidance": math.nan},
    ],
)
def test_numbers_that_mean_nothing_to_a_sampler_are_refused(options):
    model = perturbed("score", given=Space.label(2), drop=0.5)
    with pytest.raises(UsageError, match=str(list(options)[-1])):
        model.sample(1, torch.ones(1, 1, dtype=torch.int64), steps=3, **options)


def test_a_model_says_how_often_it_called_its_net():
    model, calls = perturbed("flow-matching", given=Space.label(2), drop=0.5), []
    model.net.register_forward_hook(lambda *_: calls.append(1))
    for options in ({}, {"sampler": "heun", "steps": 5}, {"guidance": 2.0, "steps": 3}, {"guidance": 0.0, "steps": 1}):
        calls.clear()
        model.sample(2, torch.ones(1, 1, dtype=torch.int64), **options)
        assert model.drawn_by == f"{options.get('sampler', 'dpm-solver')}, {len(calls)} call{'s' * (len(calls) > 1)} of the net"


def test_a_trace_takes_the_options_of_a_sampler():
    model, how = perturbed("score"), {"sampler": "ddim", "grid": "karras", "steps": 4, "eta": 0.5}
    torch.manual_seed(2)
    *_, (last, _) = model.trace(3, **how)
    torch.manual_seed(2)
    assert torch.equal(last, model.sample(3, **how))


def test_a_likelihood_says_that_it_leaves_out_what_is_given():
    model = perturbed("diffusion", given=Space.label(2), drop=0.5)
    x, label = model.sample(2, torch.ones(1, 1, dtype=torch.int64)), torch.ones(1, 1, dtype=torch.int64)
    assert "without what is given" in model.log_prob(x).how
    assert "without" not in model.log_prob(x, label).how


def test_ddpm_says_v_of_tables_and_eps_of_images():
    assert families.build("ddpm", MIXED, size="tiny").prediction == "v"
    assert families.build("ddpm", GRID, size="tiny").prediction == "eps"


# --- variations --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_no_noise_gives_an_example_back_and_all_noise_another(name):
    model = perturbed(name)
    torch.manual_seed(1)
    x = model.sample(20)
    assert (model.vary(x, strength=0.0) == x).double().mean() > 0.95
    assert not torch.equal(model.vary(x, strength=1.0), x)
    with pytest.raises(UsageError, match="from 0 to 1"):
        model.vary(x, strength=1.5)


def test_variations_follow_the_law_of_the_data_and_are_the_liker_the_less_noise():
    model, _ = perfect()
    torch.manual_seed(2)
    x = model.sample(4000, steps=40)
    kinship = []
    for strength in (0.3, 0.6, 1.0):
        like = model.vary(x, strength=strength, steps=60)
        torch.testing.assert_close(like.T.cov(), x.T.cov(), atol=0.1, rtol=0.05)
        kinship.append(torch.corrcoef(torch.stack([x[:, 0], like[:, 0]]))[0, 1].item())
    assert kinship[0] > kinship[1] + 0.05
    assert kinship[1] > kinship[2] + 0.05
    assert abs(kinship[2]) < 0.06


def test_what_was_trained_with_coupled_noise_varies_nothing():
    with pytest.raises(UsageError, match="coupling=independent"):
        perturbed("flow-matching", coupling="ot").vary(torch.zeros(1, 1, 3, 3, dtype=torch.int64))


# --- what is asked for and cannot be -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["score", "flow-matching", "meanflow"])
def test_a_tolerance_of_nothing_is_refused(name):
    with pytest.raises(UsageError, match=r"tolerance of 0\.0"):
        families.build(name, GRID, size="tiny", tolerance=0.0)
    assert families.build(name, GRID, size="tiny", tolerance=0.02).tolerance == 0.02


def test_more_rows_than_fit_at_once_are_filled_each_by_its_own(monkeypatch):
    monkeypatch.setattr("likely.partly_known.CHUNK", 4 * GRID.dims)
    model = perturbed("diffusion", given=Space.label(2))
    torch.manual_seed(3)
    x, known, label = torch.randint(4, (5, *GRID.shape)), torch.rand(5, *GRID.shape) < 0.5, torch.arange(5)[:, None] % 2
    filled = model.fill(x, known, label, draws=3, steps=4)
    assert filled.x.shape == (3, 5, *GRID.shape)
    assert torch.equal(filled.x[:, known], x[known].expand(3, -1))
