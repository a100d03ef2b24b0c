"""Score matching: three losses with one gradient, whose minimiser is the score; Fisher divergence in closed form."""

import math

import pytest
import torch

from exact import gaussian, rotated, two_bumps
from likely.solve.noise import noise_schedule
from likely.solve.score_matching import denoising, explicit, fisher_divergence, kernel_score, sliced

ALPHA, SIGMA = 0.8, 0.6
COVARIANCE, MEAN = rotated([0.2, 1.5]), torch.tensor([0.3, -0.5], dtype=torch.float64)
NOISY = ALPHA**2 * COVARIANCE + SIGMA**2 * torch.eye(2)  # of z = alpha e + sigma eps


def linear(weight, bias):
    return lambda z: z @ weight.T + bias


def the_true(covariance, mean):
    precision = torch.linalg.inv(covariance)
    return -precision, precision @ mean


def draws(n):
    e = MEAN + torch.randn(n, 2).double() @ torch.linalg.cholesky(COVARIANCE).T
    eps, probes = torch.randn(n, 2).double(), torch.randint(0, 2, (n, 2, 2)).double() * 2 - 1
    return e, eps, ALPHA * e + SIGMA * eps, probes


def losses(e, eps, z, probes):
    """All on the scale of the Fisher divergence."""
    return {
        "denoising": lambda score: denoising(score, e, eps, ALPHA, SIGMA) / SIGMA**2,
        "explicit": lambda score: explicit(score, z),
        "sliced": lambda score: sliced(score, z, probes, reduced=False),
        "sliced, reduced": lambda score: sliced(score, z, probes),
    }


def gradients(loss, weight, bias):
    """Of each row for the six parameters, [6, B]: the losses are quadratic in them, so central differences are exact."""
    flat, found = torch.cat([weight.flatten(), bias]), []
    for i in range(6):
        step = torch.zeros(6, dtype=torch.float64)
        step[i] = 0.5
        up, down = (linear(v[:4].view(2, 2), v[4:]) for v in (flat + step, flat - step))
        found.append((loss(up) - loss(down)).detach())
    return torch.stack(found)


@pytest.mark.parametrize("name", ["denoising", "sliced", "sliced, reduced"])
def test_all_losses_have_the_gradient_of_the_explicit_one_on_average(name):
    every = losses(*draws(20_000))
    weight, bias = torch.tensor([[-0.5, 0.3], [0.1, -1.0]], dtype=torch.float64), torch.tensor([0.2, 0.1], dtype=torch.float64)
    apart = gradients(every[name], weight, bias) - gradients(every["explicit"], weight, bias)
    assert (apart.mean(1).abs() <= 4 * apart.std(1) / math.sqrt(20_000) + 1e-9).all()
    assert (gradients(every["explicit"], weight, bias).mean(1).abs() > 0.05).any()


@pytest.mark.parametrize("name", ["denoising", "explicit", "sliced", "sliced, reduced"])
def test_the_true_score_is_their_minimiser(name):
    loss = losses(*draws(20_000))[name]
    slope = gradients(loss, *the_true(NOISY, ALPHA * MEAN))
    assert (slope.mean(1).abs() < 4 * slope.std(1) / math.sqrt(20_000)).all()


def test_less_their_minimum_they_are_the_fisher_divergence():
    every = losses(*draws(40_000))
    model, truth = linear(torch.tensor([[-0.5, 0.3], [0.1, -1.0]]).double(), torch.ones(2).double()), linear(*the_true(NOISY, ALPHA * MEAN))
    for loss in every.values():
        gap = loss(model) - loss(truth)
        assert abs(gap.mean().item() - fisher(model)) < 4 * gap.std().item() / 200


def fisher(model):
    """1/2 E |M z + c|^2 in closed form."""
    weight, bias = the_true(NOISY, ALPHA * MEAN)
    c = model(torch.zeros(2).double()) - bias
    m = torch.stack([model(axis) - model(torch.zeros(2).double()) for axis in torch.eye(2).double()], 1) - weight
    return 0.5 * ((m @ NOISY @ m.T).trace() + (m @ (ALPHA * MEAN) + c).square().sum()).item()


def test_fisher_divergence_of_two_gaussians_is_that_in_closed_form():
    z = draws(40_000)[2]
    model = linear(*the_true(torch.eye(2).double(), torch.zeros(2).double()))
    each = fisher_divergence(model, linear(*the_true(NOISY, ALPHA * MEAN)), z)
    assert abs(each.mean().item() - fisher(model)) < 4 * each.std().item() / 200
    assert fisher_divergence(model, model, z).max() == 0


def test_the_reduced_loss_varies_less_with_its_probes_where_scores_are_large():
    z = torch.tensor([4.0, -3.0], dtype=torch.float64).expand(4000, 2)
    probes = torch.randn(4000, 1, 2, dtype=torch.float64)
    spread = {reduced: sliced(linear(*the_true(NOISY, ALPHA * MEAN)), z, probes, reduced=reduced).std() for reduced in (True, False)}
    assert spread[True] < 0.5 * spread[False]


def test_losses_train_a_net_on_images_and_treat_rows_alike():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 8, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv2d(8, 2, 3, padding=1)).double()
    z, probes = torch.randn(5, 2, 3, 3, dtype=torch.float64), torch.randn(5, 18, 2, 3, 3, dtype=torch.float64)
    whole = {"explicit": explicit(net, z), "sliced": sliced(net, z, probes), "denoising": denoising(net, z, z, 0.5, 0.1)}
    torch.testing.assert_close(explicit(net, z[2:3]), whole["explicit"][2:3])
    for loss in whole.values():
        assert loss.shape == (5,)
        grads = torch.autograd.grad(loss.mean(), list(net.parameters()), allow_unused=True, retain_graph=True)
        assert all(g is not None and g.count_nonzero() > 0 for g in grads[:3])
    # signs along the axes, scaled to covariance I, are the exact trace
    axes = math.sqrt(18) * torch.eye(18, dtype=torch.float64).view(1, 18, 2, 3, 3).expand(5, -1, -1, -1, -1)
    torch.testing.assert_close(sliced(net, z, axes), whole["explicit"])


def test_the_kernel_score_is_that_of_the_noisy_data_and_comes_to_the_law():
    law = two_bumps(noise_schedule("linear", 0.0, -1.0))
    alpha, sigma = (v.item() for v in law.schedule(torch.zeros((), dtype=torch.float64)))
    z = alpha * law.sample(400) + sigma * torch.randn(400, 2).double()
    truth = lambda z: (alpha * law(z, torch.zeros(len(z)))[0] - z) / sigma**2  # noqa: E731
    missed = [fisher_divergence(kernel_score(law.sample(n), alpha, sigma), truth, z).mean().item() for n in (40, 4000)]
    assert missed[0] > 10 * missed[1]
    data = law.sample(3)
    there = z[:4].clone().requires_grad_()
    log_p = (-0.5 * (there[:, None] - alpha * data).square().sum(2) / sigma**2).logsumexp(1)
    torch.testing.assert_close(kernel_score(data, alpha, sigma)(z[:4]), torch.autograd.grad(log_p.sum(), there)[0])


def test_the_score_of_a_gaussian_at_every_level_is_a_fixed_point():
    exact = gaussian(noise_schedule("cosine", 5.0, -5.0))
    t = torch.full((500,), 0.4, dtype=torch.float64)
    alpha, sigma = (v.item() for v in exact.schedule(t[:1]))
    score = lambda z: (alpha * exact(z, t)[0] - z) / sigma**2  # noqa: E731
    e, eps = exact.sample(500), torch.randn(500, 3).double()
    best = denoising(score, e, eps, alpha, sigma)
    for factor in (0.8, 1.2):
        worse = denoising(lambda z: factor * score(z), e, eps, alpha, sigma) - best  # noqa: B023
        assert worse.mean() > 4 * worse.std() / math.sqrt(500)
