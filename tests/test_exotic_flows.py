"""Gaussianization, continuous, residual and transformer flows: against autograd's Jacobian, closed forms and quadrature."""

import itertools
import math
import re

import pytest
import torch
from torch import Tensor, nn

from likely.bijections import Bijection
from likely.bijections.continuous import Continuous
from likely.bijections.gaussianization import Marginals, Rotation
from likely.bijections.residual import Contraction, Residual
from likely.errors import UsageError
from likely.families.continuous_flow import ContinuousFlow
from likely.families.gaussianization import Gaussianization
from likely.families.residual_flow import ResidualFlow
from likely.families.tarflow import Patches, TarFlow
from likely.invertible import Invertible
from likely.nets.velocity import VelocityMLP
from likely.solve.ode import runge_kutta
from likely.space import Space

FAMILIES = {"gaussianization": Gaussianization, "cnf": ContinuousFlow, "residual": ResidualFlow, "tarflow": TarFlow}


def _shaken(module: nn.Module, std: float = 0.3) -> nn.Module:
    torch.manual_seed(0)
    for p in module.parameters():
        nn.init.normal_(p, std=std)
    return module.eval()


def _log_det(bijection: Bijection, x: Tensor) -> Tensor:
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda v: bijection(v[None])[0].flatten(), row) for row in x])
    return torch.linalg.slogdet(jacobian.flatten(2).view(len(x), x[0].numel(), -1)).logabsdet


@pytest.mark.parametrize("space", [Space.reals(3), Space.grid(2, 2, 4)], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_maps_return_and_have_the_determinant_of_autograds_jacobian(name, space):
    flow = _shaken(FAMILIES[name](space, size="tiny"), 0.12 if name == "cnf" else 0.3).double()
    x = torch.randn(3, *space.shape, dtype=torch.float64)
    y, log_det = flow.map(x)
    back, log_det_back = flow.map.inverse(y)
    # the equation of a continuous flow is solved, and its determinant with it: both to the error of its steps
    tolerance = {"atol": 1e-4, "rtol": 1e-4} if name == "cnf" else {"atol": 1e-7, "rtol": 1e-6}
    torch.testing.assert_close(back, x, **tolerance)
    torch.testing.assert_close(log_det_back, -log_det, **tolerance)
    torch.testing.assert_close(log_det, _log_det(flow.map, x), **tolerance)


@pytest.mark.parametrize("name", FAMILIES)
def test_draws_carry_gradients_through_the_inverse(name):
    flow = _shaken(FAMILIES[name](Space.reals(3), size="tiny")).double()
    if isinstance(flow, ContinuousFlow):
        flow.carried.tolerance = 1e-6
    z = torch.randn(1, 3, dtype=torch.float64)
    inverse = torch.autograd.functional.jacobian(lambda v: flow.map.inverse(v)[0][0], z)[:, 0]
    x = flow.map.inverse(z)[0].detach()
    forward = torch.autograd.functional.jacobian(lambda v: flow.map(v)[0][0], x)[:, 0]
    torch.testing.assert_close(inverse @ forward, torch.eye(3, dtype=torch.float64), atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_densities_integrate_to_one_in_base_space(name):
    """sum over a grid of noise z of p(x(z)) |dx/dz| is the mass of the image; that of the normal's own grid beside it."""
    flow: Invertible = _shaken(FAMILIES[name](Space.reals(2), size="tiny"), 0.6 if name == "cnf" else 0.3)  # type: ignore[assignment]
    ticks = torch.linspace(-6, 6, 41)
    with torch.no_grad():
        x, log_volume = flow.map.inverse(torch.cartesian_prod(ticks, ticks))
        log_prob = flow.log_prob(x)
    mass = (log_prob.nats + log_volume).exp().sum().item() * (ticks[1] - ticks[0]).item() ** 2
    assert mass == pytest.approx(1, abs=5e-3)
    assert log_prob.kind == ("numerical" if name == "cnf" else "exact")


# -- gaussianization ------------------------------------------------------------------------------


def test_a_start_alone_is_nearer_to_a_normal_than_a_normals_fit():
    torch.manual_seed(0)
    x = torch.randn(256, 2).exp() @ torch.randn(2, 2)
    flow = Gaussianization(Space.reals(2), size="tiny").eval()
    flow.start(x)
    normal = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov())
    with torch.no_grad():
        assert flow.log_prob(x).nats.mean() > normal.log_prob(x).mean() + 0.3


def test_marginals_of_a_normal_start_as_its_standardisation():
    x = 3 * torch.randn(4000, 2, generator=torch.Generator().manual_seed(0)) + 5
    y = Marginals(2, 1).start(x)
    torch.testing.assert_close(y, (x - x.mean(0)) / x.std(0, correction=0), atol=1e-3, rtol=1e-3)


def test_rotations_are_orthogonal_and_start_at_their_axes():
    rotation = Rotation(5, 4)
    torch.testing.assert_close(rotation._matrix(), rotation.axes, atol=1e-5, rtol=0)
    matrix = _shaken(rotation)._matrix()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(5), atol=1e-5, rtol=0)


def test_large_images_are_refused():
    with pytest.raises(UsageError, match="1024"):
        Gaussianization(Space.grid(3, 32, 32, 256))


# -- continuous -----------------------------------------------------------------------------------


def test_runge_kutta_has_order_four():
    matrix = torch.tensor([[0.3, -1.0], [0.8, -0.2]], dtype=torch.float64)
    y = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    truth = y @ torch.linalg.matrix_exp(matrix).T
    by = [[k / n for k in range(n + 1)] for n in (4, 8, 16)]
    errors = [(runge_kutta(lambda t, s: (s[0] @ matrix.T,), (y,), times)[0] - truth).abs().max().item() for times in by]
    assert [math.log2(a / b) for a, b in itertools.pairwise(errors)] == pytest.approx([4, 4], abs=0.15)


class _Linear(nn.Module):
    """The velocity A z, whose flow is exp(A) z with log-determinant tr A."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = matrix

    def conditioner(self, given, batch):
        return None

    def forward(self, z, t, embedding, along):
        return z @ self.matrix.T, (along @ self.matrix.T).expand(len(z), -1, -1)


@pytest.mark.parametrize("dims", [3, 20])
def test_a_linear_equation_has_its_closed_form(dims):
    torch.manual_seed(0)
    matrix = 0.3 * torch.randn(dims, dims, dtype=torch.float64)
    flow = Continuous(dims, VelocityMLP(dims), steps=16)
    flow.velocity = _Linear(matrix)  # type: ignore[assignment]
    x = torch.randn(4, dims, dtype=torch.float64)
    probes = flow.signs(torch.rand(4, 4000, dims))
    assert (probes is None) == (dims == 3)
    end = flow.passage(x, None, probes, 1e-7)
    torch.testing.assert_close(end.z, x @ torch.linalg.matrix_exp(matrix).T, atol=1e-5, rtol=1e-5)
    error = 0.0 if probes is None else 4 * end.log_det.std(1) / math.sqrt(4000)
    assert ((end.log_det.mean(1) - matrix.trace()).abs() <= error + 1e-9).all()
    assert (end.calls > 1).all()
    z, log_det = flow.marched(x, None, probes)  # sixteen steps of any lengths
    torch.testing.assert_close(z, end.z, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(log_det, end.log_det, atol=1e-3, rtol=1e-3)


def test_hutchinsons_trace_agrees_with_the_exact_one():
    flow = _shaken(Continuous(5, VelocityMLP(5, width=16, depth=2), steps=4), 0.5)
    x = torch.randn(6, 5)
    exact = flow.passage(x, None, None, 1e-6).log_det[:, 0]
    each = flow.passage(x, None, torch.where(torch.rand(6, 4000, 5) < 0.5, -1.0, 1.0), 1e-4).log_det
    assert each.std() > 0.05
    assert ((each.mean(1) - exact).abs() < 4.5 * each.std(1) / math.sqrt(4000)).all()


def test_a_numerical_density_tells_its_error_and_its_probes():
    flow = _shaken(ContinuousFlow(Space.reals(20), size="tiny"), 0.2)
    x = torch.randn(5, 20)
    with torch.no_grad():
        claim, again, alone = flow.log_prob(x), flow.log_prob(x), flow.log_prob(x[2:3])
    assert claim.kind == "numerical"
    assert re.search(r"tolerance 0\.0001, \d+ calls, halving the steps changed nats by \d\.\de", claim.how)
    assert "8 probes" in claim.how
    assert claim.stderr is not None
    assert (claim.stderr > 0).all()
    assert torch.equal(claim.nats, again.nats)
    torch.testing.assert_close(alone.nats, claim.nats[2:3], atol=1e-4, rtol=0)


# -- residual -------------------------------------------------------------------------------------


def test_residual_maps_contract_whatever_the_weights():
    g = _shaken(Contraction(4, width=16, depth=2, bound=0.9), 3.0)
    weights, _ = g.prepared(None, 2)
    assert math.prod(torch.linalg.matrix_norm(w, 2).item() for w in weights) < 0.9001
    x, y = torch.randn(500, 4), torch.randn(500, 4)
    gap = g.linearised(x, weights, None)[0] - g.linearised(y, weights, None)[0]
    assert (gap.norm(dim=1) < 0.9 * (x - y).norm(dim=1)).all()


def test_an_inverse_tells_its_iterations_and_stays_within_what_contraction_allows():
    residual = _shaken(Residual(4, Contraction(4, width=16)), 1.0).double()
    y = torch.randn(8, 4, dtype=torch.float64)
    with torch.no_grad():
        x, _ = residual.inverse(y)
        torch.testing.assert_close(residual(x)[0], y, atol=1e-9, rtol=0)
    assert 1 < residual.iterations < math.log(1e-13) / math.log(0.98)


def test_a_map_that_does_not_contract_has_no_such_inverse():
    """A planted mistake: without the bound the iteration does not end, and says so."""
    residual = _shaken(Residual(2, Contraction(2, width=16)), 3.0)
    residual.g.bound = 1e9
    with pytest.raises(Exception, match="not found"), torch.no_grad():
        residual.inverse(torch.randn(4, 2))


def test_the_series_agrees_with_the_exact_determinant():
    residual = _shaken(Residual(5, Contraction(5, width=16, bound=0.8)), 0.3)
    x = torch.randn(6, 5)
    exact = residual.passage(x, None, None)[1][:, 0]
    each = residual.passage(x, None, torch.rand(6, 4000, 6))[1]
    assert exact.abs().max() > 0.1
    assert ((each.mean(1) - exact).abs() < 4.5 * each.std(1) / math.sqrt(4000)).all()


def test_many_entries_make_an_estimate_with_its_error():
    flow = _shaken(ResidualFlow(Space.reals(70), size="tiny"), 0.2)
    with torch.no_grad():
        claim = flow.log_prob(torch.randn(3, 70))
    assert claim.kind == "estimate"
    assert claim.stderr is not None
    assert (claim.stderr > 0).all()


# -- transformer ----------------------------------------------------------------------------------


def test_patches_are_squares():
    patches = Patches((1, 4, 4), 2)
    x = torch.arange(16.0).view(1, 1, 4, 4)
    y, _ = patches(x)
    assert y[0, :4].tolist() == [0, 1, 4, 5]
    assert torch.equal(patches.inverse(y)[0], x)


def test_each_patch_sees_the_patches_before_it_alone():
    flow = _shaken(TarFlow(Space.grid(1, 4, 4), size="tiny", patch=2, blocks=1)).double()
    jacobian = torch.autograd.functional.jacobian(lambda v: flow.map(v[None])[0][0], torch.randn(1, 4, 4, dtype=torch.float64))
    order = Patches((1, 4, 4), 2)(torch.arange(16.0).view(1, 1, 4, 4))[0][0].long()
    seen = jacobian.flatten(1)[:, order] != 0
    patch = torch.arange(16) // 4
    assert torch.equal(seen, (patch[:, None] > patch) | torch.eye(16, dtype=torch.bool))
