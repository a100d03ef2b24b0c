"""x0, eps, v, score and velocity say each other, at both ends, too; EDM's preconditioning is v."""

from itertools import permutations

import pytest
import torch

from exact import gaussian
from likely.errors import UsageError
from likely.solve.noise import SCALINGS, noise_schedule
from likely.solve.parametrisation import PARAMETRISATIONS, convert, denoiser, preconditioning

SHAPE = "rectified"  # its rates are finite at both ends


def parts(noise, t, *shape):
    """e, eps and what each parametrisation is of them by its definition."""
    e, eps = torch.randn(2, len(t), *shape, dtype=torch.float64)
    wide = lambda v: v.view(-1, *[1] * len(shape))  # noqa: E731
    (alpha, sigma), (alpha_rate, sigma_rate) = ([wide(v) for v in pair] for pair in (noise(t), noise.rates(t)))
    scale = (alpha**2 + sigma**2).sqrt()
    said = {
        "x0": e,
        "eps": eps,
        "v": (alpha * eps - sigma * e) / scale,
        "score": -eps / sigma,
        "velocity": alpha_rate * e + sigma_rate * eps,
    }
    return alpha * e + sigma * eps, said


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(("source", "target"), list(permutations(PARAMETRISATIONS, 2)))
def test_all_twenty_conversions(source, target, scaling):
    noise, t = noise_schedule(SHAPE, 12.0, -12.0, scaling=scaling), torch.linspace(0, 1, 21, dtype=torch.float64)
    z, said = parts(noise, t, 2, 3)
    torch.testing.assert_close(convert(said[source], source, target, z, noise, t), said[target], rtol=1e-9, atol=1e-9)
    back = convert(convert(said[source], source, target, z, noise, t), target, source, z, noise, t)
    torch.testing.assert_close(back, said[source], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_in_single_precision_what_is_known_stays_known_at_both_ends(scaling):
    noise, t = noise_schedule(SHAPE, 12.0, -12.0, scaling=scaling), torch.tensor([0.0, 1.0], dtype=torch.float64)
    z, said = parts(noise, t, 4)
    single = {name: value.float() for name, value in said.items()}
    for source, target in permutations(PARAMETRISATIONS, 2):
        got = convert(single[source], source, target, z.float(), noise, t)
        assert got.isfinite().all()
        # e is not to be had from eps in noise (t = 1), nor eps from e in data (t = 0); all else keeps its digits
        noisy = {"eps", "score"} | ({"velocity"} if scaling == "ve" else set())  # sigma' eps, where alpha' = 0
        sure = [row for row, lost in enumerate((source == "x0", source in noisy)) if not lost]
        torch.testing.assert_close(got[sure].double(), said[target][sure], rtol=2e-3, atol=2e-3)


def test_v_is_that_of_progressive_distillation_and_velocity_that_of_flow_matching():
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    z, said = parts(noise_schedule("cosine", 9.0, -9.0), t, 2)
    alpha, sigma = (v[:, None] for v in noise_schedule("cosine", 9.0, -9.0)(t))
    torch.testing.assert_close(said["v"], alpha * said["eps"] - sigma * said["x0"])
    straight = noise_schedule("rectified", 30.0, -30.0, scaling="rectified")
    z, said = parts(straight, t, 2)
    torch.testing.assert_close(convert(said["x0"], "x0", "velocity", z, straight, t), said["eps"] - said["x0"], rtol=1e-5, atol=1e-5)


def test_the_score_of_an_exact_denoiser_is_the_gradient_of_its_log_density():
    noise = noise_schedule("linear", 6.0, -5.0, scaling="sub-vp")
    law, t = gaussian(noise), torch.rand(8, dtype=torch.float64)
    z = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(law.log_prob(z, t).sum(), z)
    torch.testing.assert_close(convert(law(z, t)[0], "x0", "score", z, noise, t), slope)
    by_score = denoiser(lambda z, t: slope, "score", noise)
    torch.testing.assert_close(by_score(z, t)[0], law(z, t)[0])


@pytest.mark.parametrize("scaling", SCALINGS)
def test_preconditioning_makes_inputs_and_targets_of_variance_one_and_is_v(scaling):
    noise, t = noise_schedule("karras", scaling=scaling), torch.linspace(0, 1, 5, dtype=torch.float64)
    at = preconditioning(noise, t)
    z, said = parts(noise, t, 20_000)
    wide = {name: value[:, None] for name, value in at._asdict().items()}
    target = (said["x0"] - wide["skip"] * z) / wide["out"]
    torch.testing.assert_close(target, -said["v"], rtol=1e-6, atol=1e-6)
    for v in (target, wide["into"] * z):
        torch.testing.assert_close(v.var(1), torch.ones(5).double(), rtol=0, atol=0.05)
    if scaling == "ve":  # EDM's own table, sigma_data = 1
        _, sigma = noise(t)
        torch.testing.assert_close(tuple(at), (1 / (1 + sigma**2), sigma / (1 + sigma**2).sqrt(), (1 + sigma**2) ** -0.5, sigma.log() / 4))


def test_an_unknown_parametrisation_is_refused():
    one = torch.ones(1, dtype=torch.float64)
    for names in (("noise", "x0"), ("x0", "noise"), ("noise", "noise")):
        with pytest.raises(UsageError, match="noise"):
            convert(one, *names, one, noise_schedule("cosine"), one / 2)
