"""DDPM against its paper's closed forms, and the report of the bound's terms of every family that has one."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from exact import gaussian
from likely import families
from likely.errors import UsageError
from likely.families.ddpm import DDPM, VARIANCES
from likely.families.diffusion import Diffusion
from likely.noise import Noise
from likely.solve.diffusion import prior_kl
from likely.solve.parametrisation import PARAMETRISATIONS, convert
from likely.solve.posterior import Lift, Posterior
from likely.space import Space
from likely.verbs import terms

GRID, BYTES = Space.grid(1, 2, 2, 4), Space.grid(1, 2, 2, 256)


def paper(steps=1000):
    """beta, beta~ and alpha-bar, each [T], as the paper writes them."""
    beta = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)
    bar = (1 - beta).cumprod(0)
    before = torch.cat([bar.new_ones(1), bar[:-1]])
    return beta, beta * (1 - before) / (1 - bar), bar


class ExactLaw(nn.Module):
    """The net that says E[e | z_t] of an enumerable law, as x0; with `share` beside it, the logit of a learned variance."""

    def __init__(self, model: DDPM, states: torch.Tensor, log_p: torch.Tensor, share: float | None = None) -> None:
        super().__init__()
        self.schedule, self.log_p, self.share = model.schedule, log_p, share
        self.e = model.lift(states, Noise(states))[0].double().flatten(1)

    def forward(self, z, t, given=None):
        alpha, sigma = (c[:, None] for c in self.schedule(t.double()))
        nats = (alpha * z.double().flatten(1) @ self.e.T - 0.5 * alpha.square() * self.e.square().sum(1)) / sigma.square()
        mean = ((self.log_p + nats).softmax(1) @ self.e).view_as(z).to(z)
        return mean if self.share is None else torch.stack([mean, torch.full_like(mean, self.share)], 2).flatten(1, 2)


class Says(nn.Module):
    """A net that is a function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, z, t, given=None):
        return self.function(z, t)


def perturbed(space=GRID, **options):
    model = DDPM(space, size="tiny", **options)
    for p in model.parameters():
        if p.count_nonzero() == 0:
            nn.init.normal_(p, std=0.3)
    return model.eval()


def test_the_schedule_is_the_papers():
    _, _, bar = paper()
    model = DDPM(GRID)
    got = model.schedule.log_snr(torch.arange(1000, dtype=torch.float64) / 999).sigmoid()
    torch.testing.assert_close(got, bar, rtol=1e-6, atol=0)
    assert model.steps == 999
    assert model.times("ancestral", None).numel() == 1000


@pytest.mark.parametrize(("variance", "share"), [("small", 0.0), ("large", 1.0), ("learned", 0.3)])
def test_terms_are_the_divergences_of_the_papers_gaussians(variance, share):
    beta, tilde, bar = paper()
    model = DDPM(Space.reals(3), variance=variance)
    e, mean, z = (torch.randn(50, 3, dtype=torch.float64) for _ in range(3))
    k = torch.randint(1, 1000, (50,))  # from the paper's z_(k+1) to its z_k
    got = model.term_nats(k, e, e, Posterior(mean, model._variance(k / 999, torch.full_like(mean, share)))) / 1000
    beta, tilde, bar, before = (v[:, None] for v in (beta[k], tilde[k], bar[k], bar[k - 1]))

    def center(e):
        return (before.sqrt() * beta * e + (1 - beta).sqrt() * (1 - before) * z) / (1 - bar)

    own = (share * beta.log() + (1 - share) * tilde.log()).exp()
    expected = kl_divergence(Normal(center(e), tilde.sqrt()), Normal(center(mean), own.sqrt())).sum(1)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-9)


def test_the_prior_term_is_that_of_the_last_alpha_bar():
    _, _, bar = paper()
    e = torch.randn(7, 3, dtype=torch.float64)
    q = Normal(bar[-1].sqrt() * e, (1 - bar[-1]).sqrt())
    expected = kl_divergence(q, Normal(torch.zeros_like(e), torch.ones_like(e)))
    torch.testing.assert_close(prior_kl(e, DDPM(Space.reals(3)).schedule.end), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("variance", VARIANCES)
def test_the_decoders_bins_sum_to_one_whatever_the_net_says(variance):
    model = perturbed(BYTES, variance=variance)
    z = 2 * torch.randn(6, 1, 2, 2)
    mass = model.lift.levels.log_mass(model.posterior(z, torch.zeros(6), None)).double().exp()
    torch.testing.assert_close(mass.sum(2), torch.ones(6, 1, 2, 2, dtype=torch.float64), rtol=1e-5, atol=0)


@pytest.mark.parametrize("variance", VARIANCES)
def test_with_an_exact_denoiser_the_bound_is_above_the_code_length_of_every_image(variance):
    states = GRID.enumerate()
    log_p = (1.5 * torch.randn(len(states), dtype=torch.float64)).log_softmax(0)
    model = DDPM(GRID, steps=24, prediction="x0", variance=variance).eval()
    model.net = ExactLaw(model, states, log_p, 0.0 if variance == "learned" else None)
    claim = model.log_prob(states, draws=10)
    assert claim.kind == "lower bound"
    assert (claim.nats < log_p + 5 * claim.stderr).all()
    gap = log_p.exp() @ (log_p - claim.nats)
    error = (log_p.exp() * claim.stderr).square().sum().sqrt().item()
    assert gap > 4 * error  # fixed variances are loose
    assert gap < 12.0  # nats of four pixels; the law itself has at most 5.5


# --- terms -------------------------------------------------------------------------------------------

MODELS = [("ddpm", {"variance": v}) for v in VARIANCES] + [("diffusion", {"steps": 12}), ("vdm", {})]


@pytest.mark.parametrize(("name", "options"), MODELS, ids=str)
def test_the_terms_sum_to_the_likelihood(name, options):
    space = Space.grid(1, 3, 3, 8)
    model = families.build(name, space, size="tiny", **options).eval()
    for p in model.parameters():
        if p.count_nonzero() == 0:
            nn.init.normal_(p, std=0.1)
    x = torch.randint(0, 8, (48, 1, 3, 3))
    found, claim = model.terms(x), model.log_prob(x, draws=6)
    bits = -claim.nats.detach() / space.nats_per_unit
    error = math.hypot(claim.stderr.detach().square().mean().sqrt().item() / space.nats_per_unit / math.sqrt(len(x)), found.errors[1])
    assert abs(found.total - bits.mean().item()) < 4 * error
    assert found.total == pytest.approx(found.prior + found.steps.sum().item() + found.decoder)
    assert (len(found.steps), found.unit, found.n) == (model.steps or 126, "bits/dim", 48)
    assert found.prior >= 0
    assert (found.steps > -1e-6).all()


def test_terms_are_functions_of_the_rows():
    model, x = perturbed(), GRID.enumerate()[::16]
    once, again = model.terms(x), model.terms(x.flip(0))
    torch.testing.assert_close(once.steps, again.steps, rtol=1e-5, atol=1e-6)
    alone = [model.terms(row[None]) for row in x]
    torch.testing.assert_close(torch.stack([a.steps for a in alone]).mean(0), once.steps, rtol=1e-4, atol=1e-5)
    assert math.isnan(alone[0].errors[-1])
    assert model.terms(x, seed=1).total != once.total


def test_terms_of_a_perfect_net_of_a_gaussian_meet_its_density():
    model = Diffusion(Space.reals(1), size="tiny", steps=200).eval()  # a net at zero says N(0, 1)
    x = torch.randn(400, 1)
    found = model.terms(x)
    truth = -Normal(0.0, 1.0).log_prob(x).mean().item()
    assert found.unit.startswith("nats")
    assert abs(found.total - truth) < 0.02 + 4 * found.errors[1]


def test_the_report_names_every_part_and_refuses_other_families(run, tmp_path):
    code, _, _ = run("fit", "digits", "ddpm", "--size", "tiny", "--steps", "1", "--out", tmp_path / "m")
    assert code == 0
    code, out, _ = run("show", tmp_path / "m", "--terms")
    assert code == 0
    assert all(part in out for part in ("L_T", "L_t  1..2", "L_0", "sum", "bits/dim", "23 steps"))
    with pytest.raises(UsageError, match="no bound of L_T"):
        terms(families.build("histogram", GRID), torch.zeros(2, 1, 2, 2, dtype=torch.int64))


# --- uniform bytes, objectives -----------------------------------------------------------------------


def test_uniform_bytes_cost_eight_bits():
    # where a net weighs each level, one at zero says that all are alike
    model = Diffusion(BYTES, size="tiny", steps=256).eval()
    model.lift = Lift(BYTES, few=256)
    model.net = Says(lambda z, t: z.new_zeros(len(z), 256, *z.shape[2:]))
    found = model.terms(torch.randint(0, 256, (64, 1, 2, 2)))
    assert abs(found.total - 8) < 0.03 + 4 * found.errors[-1]
    assert found.total > 8 - 4 * found.errors[-1]


def test_the_hybrids_bound_reaches_the_variance_alone():
    model, x = perturbed(variance="learned", objective="hybrid"), GRID.enumerate()[::2]

    def gradients(objective):
        model.objective = objective
        torch.manual_seed(1)
        out = model.train()(x).mean()
        model.zero_grad()
        out.backward()
        final = [m for m in model.net.modules() if isinstance(m, nn.Conv2d) and m.out_channels == 2][-1]
        return final.weight.grad.clone()

    simple, hybrid = gradients("simple"), gradients("hybrid")
    torch.testing.assert_close(simple[0], hybrid[0], rtol=1e-4, atol=1e-7)
    assert simple[1].count_nonzero() == 0
    assert hybrid[1].abs().max() > 0


@pytest.mark.parametrize("prediction", PARAMETRISATIONS)
@pytest.mark.parametrize("objective", ["simple", "min-snr", "bound"])
def test_whatever_is_predicted_the_perfect_net_has_the_least_loss(prediction, objective):
    model = DDPM(Space.reals(2), steps=50, prediction=prediction, objective=objective)
    exact = gaussian(model.schedule, (2,))
    x = exact.sample(4000).float()

    def loss(off):
        model.net = Says(lambda z, t: convert(exact(z, t)[0] + off, "x0", prediction, z, model.schedule, t))
        torch.manual_seed(2)
        return model(x).mean().item()

    assert loss(0.0) < min(loss(0.1), loss(-0.1))


def test_nonsense_is_refused():
    with pytest.raises(UsageError, match="learned"):
        DDPM(GRID, objective="hybrid")
    with pytest.raises(UsageError, match="large"):
        DDPM(GRID, variance="larger")
    with pytest.raises(UsageError, match="two"):
        DDPM(GRID, steps=1)
