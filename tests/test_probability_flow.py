"""The probability flow with perfect denoisers: densities in closed form on vectors and images, whatever the units and the batch."""

import math

import pytest
import torch

from exact import Mixture, gaussian, rotated, two_bumps
from likely.errors import LikelyError
from likely.solve.adaptive import dormand_prince, halved
from likely.solve.denoise import Watched
from likely.solve.noise import SCALINGS, noise_schedule
from likely.solve.probability_flow import decode, encode, log_density


def truth(exact, e):
    """log p_eps(e): that of z at t = 0, in the units of e."""
    first = torch.zeros(len(e), dtype=torch.float64)
    alpha = exact.schedule(first)[0]
    return exact.log_prob(alpha[0] * e, first) + math.prod(e.shape[1:]) * alpha.log()


def signs(*shape):
    return torch.randint(0, 2, shape).double() * 2 - 1


def test_steps_of_the_pair_are_of_order_five():
    # dy/dt = y: the tolerated error falls 2^5-fold as steps halve
    f = lambda t, y, rows: y  # noqa: E731
    one = torch.ones(1, 1, dtype=torch.float64)
    errors, calls = zip(*((abs(y.item() - math.e), n.item()) for y, n in (dormand_prince(f, one, 0.0, 1.0, 10.0**-k) for k in (5, 8, 11))))
    assert errors[0] < 1e-5
    assert errors[2] < 1e-10
    assert calls[2] / calls[0] > 3  # 10^(6/5) = 16 for the finest, less the steps that are too small at first


def test_solutions_and_calls_do_not_depend_on_the_batch_and_hard_rows_take_more():
    rate = torch.tensor([[0.1], [3.0], [15.0]], dtype=torch.float64)
    f = lambda t, y, rows: rate[rows] * torch.cos(rate[rows] * t[:, None]) * y  # noqa: E731
    y, calls = dormand_prince(f, torch.ones(3, 1, dtype=torch.float64), 0.0, 2.0, 1e-7)
    torch.testing.assert_close(y, (2 * rate).sin().exp(), rtol=1e-5, atol=0)
    assert calls[0] < calls[1] < calls[2]
    back, _ = dormand_prince(f, y, 2.0, 0.0, 1e-7)
    torch.testing.assert_close(back, torch.ones_like(back), rtol=1e-5, atol=0)
    for row in range(3):
        alone = lambda t, y, rows: f(t, y, rows + row)  # noqa: B023, E731
        one, n = dormand_prince(alone, torch.ones(1, 1, dtype=torch.float64), 0.0, 2.0, 1e-7)
        assert torch.equal(one[0], y[row])
        assert n[0] == calls[row]


def test_halving_every_step_gains_two_to_the_fifth_and_shows_the_error_before():
    rate = torch.tensor([[1.0], [3.0], [8.0]], dtype=torch.float64)
    f = lambda t, y, rows: rate[rows] * torch.cos(rate[rows] * t[:, None]) * y  # noqa: E731
    one, truth = torch.ones(3, 1, dtype=torch.float64), (2 * rate).sin().exp()
    for tolerance in (1e-6, 1e-8):
        way = halved(f, one, 0.0, 2.0, tolerance)
        before, after = (way.coarse - truth).abs(), (way.fine - truth).abs()
        assert torch.equal(way.coarse, dormand_prince(f, one, 0.0, 2.0, 10 * tolerance)[0])
        assert (before > 15 * after).all()
        torch.testing.assert_close((way.fine - way.coarse).abs(), before, rtol=0.1, atol=0)
        assert (way.calls > 3 * dormand_prince(f, one, 0.0, 2.0, 10 * tolerance)[1] // 2).all()


def test_what_cannot_be_solved_is_told():
    with pytest.raises(LikelyError, match="could not be solved"):
        dormand_prince(lambda t, y, rows: y / (0.5 - t[:, None]) ** 3, torch.ones(1, 1), 0.0, 1.0, 1e-6)
    with pytest.raises(LikelyError, match="could not be solved"):
        dormand_prince(lambda t, y, rows: y * math.nan, torch.ones(1, 1), 0.0, 1.0, 1e-6)


@pytest.mark.parametrize("shape", [(3,), (2, 2, 3)], ids=["vectors", "images"])
def test_densities_of_a_rotated_gaussian_are_those_in_closed_form(shape):
    exact = gaussian(noise_schedule("cosine", 8.0, -26.0), shape)
    e = exact.sample(6)
    got = log_density(exact, exact.schedule, e, tolerance=1e-8)
    torch.testing.assert_close(got.nats, truth(exact, e), rtol=0, atol=2e-5)
    assert got.stderr is None
    assert got.z.shape == e.shape
    assert got.error.max() < 1e-4
    assert "exact divergence" in got.how


def test_densities_of_two_bumps_are_those_in_closed_form_and_errors_are_told():
    exact = two_bumps(noise_schedule("linear", 8.0, -26.0))
    e = torch.cat([exact.sample(12), torch.tensor([[3.0, 3.0]])])  # one that is far from all
    rough, fine = (log_density(exact, exact.schedule, e, tolerance=tolerance) for tolerance in (1e-3, 1e-7))
    torch.testing.assert_close(fine.nats, truth(exact, e), rtol=0, atol=1e-5)
    assert (rough.calls < fine.calls).all()
    missed = (rough.nats - truth(exact, e)).abs()
    assert (missed < 2 * rough.error + 1e-4).all()
    assert rough.error.mean() > missed.mean() > fine.error.mean()
    assert f"tolerance 0.001, {rough.calls.double().mean().item():.0f} calls, halving the steps changed nats by" in rough.how


def test_a_density_is_that_of_the_data_with_the_first_noise():
    law = gaussian(noise_schedule("linear", 2.0, -26.0), (2,), [0.1, 0.5])  # a lot of noise at the start
    e = law.sample(5)
    noisy = torch.distributions.MultivariateNormal(law.mean, law.covariance + math.exp(-2) * torch.eye(2))
    torch.testing.assert_close(log_density(law, law.schedule, e, tolerance=1e-8).nats, noisy.log_prob(e), rtol=0, atol=1e-5)


def test_all_scalings_give_the_same_density_and_the_same_data():
    e = two_bumps(noise_schedule("linear")).sample(4)
    noises = [noise_schedule("cosine", 7.0, -9.0, scaling=scaling) for scaling in SCALINGS]
    nats = torch.stack([log_density(two_bumps(noise), noise, e).nats for noise in noises])
    torch.testing.assert_close(nats, nats[:1].expand_as(nats), rtol=0, atol=1e-9)
    u = torch.randn(4, 2, dtype=torch.float64)
    data = torch.stack([decode(two_bumps(noise), noise, noise.prior_scale * u).to for noise in noises])
    torch.testing.assert_close(data, data[:1].expand_as(data), rtol=0, atol=1e-9)


def test_a_schedule_between_the_same_ends_gives_the_same_density():
    e = two_bumps(noise_schedule("linear")).sample(4)
    noises = [noise_schedule(name, 7.0, -9.0) for name in ("linear", "tapered", "karras", "beta")]
    nats = torch.stack([log_density(two_bumps(noise), noise, e, tolerance=1e-6).nats for noise in noises])
    torch.testing.assert_close(nats, nats[:1].expand_as(nats), rtol=0, atol=1e-7)


@pytest.mark.parametrize("shape", [(4,), (1, 2, 2)], ids=["vectors", "images"])
def test_hutchinsons_estimate_is_unbiased_and_its_variance_falls_with_the_probes(shape):
    """A rotated covariance: where the Jacobian is diagonal, random signs are exact and show nothing."""
    noise = noise_schedule("linear", 6.0, -6.0)
    exact = gaussian(noise, shape, [0.02, 0.1, 1.0, 2.0])
    e = exact.sample(1).expand(512, *shape)
    exactly = log_density(exact, noise, e[:1], tolerance=1e-6).nats
    spread = {}
    for probes in (1, 4):
        got = log_density(exact, noise, e, probes=signs(512, probes, *shape), tolerance=1e-5)
        assert (got.nats.mean() - exactly).abs() < 4 * got.nats.std() / math.sqrt(512) + 1e-4
        spread[probes] = got.nats.var().item()
    assert spread[1] > 0.01
    assert spread[1] / spread[4] == pytest.approx(4, rel=0.35)
    assert got.stderr.mean().item() == pytest.approx(math.sqrt(spread[4]), rel=0.15)
    assert "Hutchinson" in got.how


def test_encoding_and_decoding_are_inverse_up_to_the_tolerance():
    noise = noise_schedule("cosine", 7.0, -7.0, scaling="sub-vp")
    exact = two_bumps(noise)
    e = exact.sample(8)
    missed = []
    for tolerance in (1e-3, 1e-5, 1e-8):
        z, calls = encode(exact, noise, e, tolerance=tolerance)
        back, more = decode(exact, noise, z, tolerance=tolerance)
        missed.append((back - e).abs().max().item())
        assert (calls > 6).all()
        assert (more > 6).all()
    assert missed[0] > 5 * missed[1] > 25 * missed[2]
    assert missed[2] < 1e-5


def test_encoding_a_gaussian_is_its_linear_map():
    noise = noise_schedule("linear", 8.0, -8.0)
    exact = gaussian(noise)
    e, ends = exact.sample(5), noise.at(torch.tensor([8.0, -8.0], dtype=torch.float64))
    (alpha, last_alpha), (sigma, last_sigma) = ends
    grown = ((last_alpha**2 * exact.variances + last_sigma**2) / (alpha**2 * exact.variances + sigma**2)).sqrt()[0]
    along = (alpha * (e - exact.mean)) @ exact.axes[0] * grown
    torch.testing.assert_close(
        encode(exact, noise, e, tolerance=1e-9).to, last_alpha * exact.mean + along @ exact.axes[0].T, rtol=0, atol=1e-6
    )


def test_no_number_depends_on_its_batch():
    noise = noise_schedule("tapered", 7.0, -7.0)
    exact = two_bumps(noise)
    e = torch.cat([exact.sample(6), 5 + exact.sample(2)])
    probes = signs(8, 2, 2)
    together = log_density(exact, noise, e, probes=probes, tolerance=1e-5)
    for rows in (slice(3, 4), slice(1, 7), torch.tensor([7, 2, 5])):
        some = log_density(exact, noise, e[rows], probes=probes[rows], tolerance=1e-5)
        for got, all_ in ((some.nats, together.nats), (some.error, together.error), (some.calls, together.calls), (some.z, together.z)):
            assert torch.equal(got, all_[rows])


def test_the_context_follows_the_rows_that_are_on_their_way():
    noise = noise_schedule("linear", 6.0, -6.0)
    means = torch.tensor([[2.0, 0.0], [-1.0, 0.5], [0.0, 0.0]], dtype=torch.float64)
    covariance = rotated([0.05, 0.4])

    def conditional(z, t, shift):
        mean, var = Mixture(noise, [1.0], torch.zeros(1, 2), covariance[None])(z - noise(t)[0][:, None] * shift, t)
        return mean + shift, var

    e = torch.randn(3, 2, dtype=torch.float64)
    together = log_density(conditional, noise, e, context=(means,), tolerance=1e-6)
    for row in range(3):
        alone = log_density(Mixture(noise, [1.0], means[row][None], covariance[None]), noise, e[row][None], tolerance=1e-6)
        torch.testing.assert_close(together.nats[row], alone.nats[0], rtol=0, atol=1e-6)


def test_calls_are_those_of_the_denoiser_and_single_precision_is_enough_for_a_rough_tolerance():
    noise = noise_schedule("linear", 6.0, -6.0)
    exact = gaussian(noise)
    watched = Watched(exact)
    e = exact.sample(1)
    got = log_density(watched, noise, e, tolerance=1e-6)
    assert watched.calls == got.calls.item()
    single = log_density(exact, noise, e.float(), tolerance=1e-4)
    assert single.z.dtype == torch.float32
    torch.testing.assert_close(single.nats, got.nats, rtol=0, atol=2e-3)
