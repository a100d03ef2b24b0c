"""Laws over every bijection: round trip by scale and type, log-determinant against autograd's Jacobian, onto-ness, gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from likely.bijections import (
    ActNorm,
    Additive,
    Affine,
    Autoregressive,
    Bijection,
    Chain,
    Coupling,
    Domains,
    Elementwise,
    Flatten,
    Inverse,
    Linear,
    Logit,
    MixtureCDF,
    Orthogonal,
    Permute,
    Rest,
    Softplus,
    Spline,
    Squeeze,
    mask,
    per_example,
)
from likely.checks import Room, tiny_data
from likely.families.flow import Flow
from likely.laws import LAWS, LawBroken, Trial
from likely.nets import net
from likely.space import Space

LABEL = Space.label(3)


def _coupling(
    space: Space, transform: Elementwise, word: str, given: Space | None = None, masks: str = "alternate", **how: Any
) -> Coupling:
    moves = mask(masks, space.shape, 1)
    return Coupling(moves, transform, net(space, "coupling", "tiny", word=word, given=given, out=transform.size, moves=moves, **how))


def _ordered(dims: int, transform: Elementwise, by: str = "steps", given: Space | None = None, **how: Any) -> Autoregressive:
    return Autoregressive(transform, net(Space.reals(dims), "ordered", "tiny", given=given, out=transform.size, **how), by)


def _perturbed(bijection: Bijection, scale: float = 0.1) -> Bijection:
    """Random weights: a bijection must be one whatever they are."""
    for p in bijection.parameters():
        nn.init.normal_(p, std=scale)
    return bijection.eval()


def _domains() -> Domains:
    low, high = torch.tensor([-1.0, -torch.inf, -1.0, -torch.inf]), torch.tensor([torch.inf, 2.0, 2.0, torch.inf])
    return Domains(low, high, ["x0", "x1", "x2", "x3"])


def _jacobian(bijection: Bijection, way: str, row: Tensor) -> Tensor:
    """[dims, dims] by autograd."""
    go = getattr(bijection, way)
    return torch.autograd.functional.jacobian(lambda v: go(v[None])[0].flatten(), row).view(row.numel(), row.numel())


CASES = {
    "actnorm": (lambda: ActNorm(3), (3,)),
    "actnorm on a grid": (lambda: ActNorm(2), (2, 2, 3)),
    "linear": (lambda: Linear(5), (5,)),
    "linear on a grid": (lambda: Linear(3), (3, 2, 2)),
    "orthogonal": (lambda: Orthogonal(5), (5,)),
    "orthogonal on a grid": (lambda: Orthogonal(3), (3, 2, 2)),
    "reversed": (lambda: Permute(5, "reverse"), (5,)),
    "permuted grid": (lambda: Permute(3, "random"), (3, 2, 2)),
    "additive coupling": (lambda: _coupling(Space.reals(5), Additive(), "mlp"), (5,)),
    "affine coupling": (lambda: _coupling(Space.reals(5), Affine(), "mlp"), (5,)),
    "logistic mixture coupling": (lambda: _coupling(Space.reals(5), MixtureCDF(3), "mlp"), (5,)),
    "normal mixture coupling": (lambda: _coupling(Space.reals(5), MixtureCDF(3, "normal"), "mlp", masks="halves"), (5,)),
    "spline coupling": (lambda: _coupling(Space.reals(5), Spline(5), "mlp"), (5,)),
    "spline coupling of one number": (lambda: _coupling(Space.reals(1), Spline(5), "mlp"), (1,)),
    "convolutional coupling": (lambda: _coupling(Space.grid(2, 2, 2), Spline(4), "conv"), (2, 2, 2)),
    "checkerboard coupling": (lambda: _coupling(Space.grid(2, 2, 3), Affine(), "conv", masks="checkerboard"), (2, 2, 3)),
    "affine autoregressive": (lambda: _ordered(5, Affine()), (5,)),
    "affine autoregressive by iteration": (lambda: _ordered(5, Affine(), "iteration"), (5,)),
    "spline autoregressive": (lambda: _ordered(4, Spline(4)), (4,)),
    "spline autoregressive by iteration": (lambda: _ordered(4, Spline(4), "iteration"), (4,)),
    "mixture autoregressive": (lambda: _ordered(4, MixtureCDF(3)), (4,)),
    "autoregressive of one number": (lambda: _ordered(1, Spline(4)), (1,)),
    "plain additive coupling": (lambda: _coupling(Space.reals(5), Additive(), "mlp", dropout=0.0, residual=False), (5,)),
    "plain affine coupling": (lambda: _coupling(Space.reals(5), Affine(), "mlp", dropout=0.0, residual=False), (5,)),
    "plain spline coupling": (lambda: _coupling(Space.reals(5), Spline(5), "mlp", dropout=0.0, residual=False), (5,)),
    "plain coupling of one number": (lambda: _coupling(Space.reals(1), Affine(), "mlp", residual=False), (1,)),
    "plain affine autoregressive": (lambda: _ordered(5, Affine(), residual=False), (5,)),
    "plain spline autoregressive": (lambda: _ordered(4, Spline(4), depth=2, residual=False), (4,)),
    "plain autoregressive by iteration": (lambda: _ordered(5, Affine(), "iteration", residual=False), (5,)),
    "inverse autoregressive": (lambda: Inverse(_ordered(4, Affine())), (4,)),
    "softplus": (lambda: Softplus(-1.0), (3,)),
    "logit": (lambda: Logit(-1.0, 2.0), (2, 2, 2)),
    "logit of some": (lambda: Logit(-1.0, 2.0, [0, 2]), (3,)),
    "domains": (_domains, (4,)),
    "flatten": (lambda: Flatten((2, 2, 2)), (2, 2, 2)),
    "squeeze": (lambda: Squeeze(), (1, 4, 2)),
    "rest": (lambda: Rest((4, 1, 2), Chain([ActNorm(2), Flatten((2, 1, 2))])), (4, 1, 2)),
    "chain": (lambda: Chain([Linear(4), _coupling(Space.reals(4), Spline(4), "mlp"), ActNorm(4)]), (4,)),
}
# of those that are for a part of the line: how numbers get there
DOMAINS = {
    "softplus": lambda x: x.abs() - 0.9,
    "logit": lambda x: 1.4 * x.tanh() + 0.5,
    "logit of some": lambda x: 1.4 * x.tanh() + 0.5,
    "domains": lambda x: torch.stack([x[:, 0].abs() - 0.9, 1.9 - x[:, 1].abs(), 1.4 * x[:, 2].tanh() + 0.5, x[:, 3]], 1),
}
TRIANGULAR = [name for name in CASES if "autoregressive" in name]


@pytest.fixture(params=CASES, ids=lambda name: name.replace(" ", "-"))
def case(request: pytest.FixtureRequest) -> tuple[Bijection, Tensor]:
    make, shape = CASES[request.param]
    torch.manual_seed(0)
    return _perturbed(make()), DOMAINS.get(request.param, lambda x: x)(2 * torch.randn(16, *shape))


@pytest.mark.parametrize("scale", [1, 3, 10, 100])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 5e-5), (torch.float64, 1e-13)], ids=["float32", "float64"])
def test_round_trip(case, scale, dtype, error, request):
    bijection, x = case
    name = request.node.callspec.params["case"]
    x = DOMAINS.get(name, lambda x: x)(scale * x).to(dtype)
    error *= 20 if name == "convolutional coupling" else 1  # whose splines become steep: slopes of 1e-3 magnify rounding
    bijection = bijection.to(dtype)
    y, log_det = bijection(x)
    back, log_det_back = bijection.inverse(y)
    assert y.dtype == back.dtype == dtype
    assert log_det.dtype == log_det_back.dtype == torch.float64
    assert (back - x).abs().max() < error * scale
    torch.testing.assert_close(log_det_back, -log_det, atol=100 * error * scale, rtol=0)


@pytest.mark.parametrize("way", ["forward", "inverse"])
def test_log_determinant_is_that_of_autograds_jacobian(case, way):
    bijection, x = case
    bijection, x = bijection.double(), x.double()
    x = bijection(x)[0].detach() if way == "inverse" else x
    log_det = getattr(bijection, way)(x)[1]
    expected = torch.linalg.slogdet(torch.stack([_jacobian(bijection, way, row) for row in x[:4]])).logabsdet
    torch.testing.assert_close(log_det[:4], expected, atol=1e-8, rtol=1e-8)


def test_rows_do_not_see_each_other(case):
    bijection, x = case
    alone = bijection(x[:1])
    for one, many in zip(alone, bijection(x), strict=True):
        torch.testing.assert_close(one, many[:1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("way", ["forward", "inverse"])
def test_gradient_reaches_every_parameter_either_way(case, way):
    bijection, x = case
    if not list(bijection.parameters()):
        return
    x = bijection(x)[0].detach() if way == "inverse" else x
    y, log_det = getattr(bijection, way)(x)
    (y.double().square().sum() + log_det.sum()).backward()
    for name, p in bijection.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.any() or (x[0].numel() == 1 and "first" in name), name  # what reads an only entry reads nothing


def _fault(bijection: Bijection, y: Tensor) -> float:
    """How far the inverse of y is from being one, as a share of y; a map that is not onto cannot return what it does not reach."""
    back = bijection(bijection.inverse(y)[0])[0]
    return ((back - y).abs() / (1 + y.abs())).nan_to_num(torch.inf).max().item()


def test_every_map_is_onto(case, request):
    bijection, x = case
    y = bijection.double()(x.double())[0].detach()
    far = 10.0 if request.node.callspec.params["case"] in DOMAINS else 1e3  # an end of a domain is reached to rounding
    probes = torch.cat([far * torch.ones_like(y[:1]), -far * torch.ones_like(y[:1]), far * torch.randn_like(y).sign(), torch.randn_like(y)])
    assert _fault(bijection, probes) < 1e-9


class _Bounded(Bijection):
    """y = tanh(x): every Jacobian is right, but the map ends at 1, as that of a block neural autoregressive flow did."""

    def forward(self, x, given=None):
        y = x.tanh()
        return y, per_example((1 - y.square()).log())

    def inverse(self, y, given=None):
        x = y.clamp(-1 + 1e-7, 1 - 1e-7).atanh()
        return x, -self(x)[1]


def test_a_map_that_is_not_onto_is_caught():
    bad = _Bounded()
    x = torch.randn(4, 2, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: bad(v[None])[0][0], x[0])
    torch.testing.assert_close(bad(x)[1][0], torch.linalg.slogdet(jacobian).logabsdet)  # no test of Jacobians sees it
    assert _fault(bad, torch.randn(100, 2, dtype=torch.float64)) > 0.1
    data = tiny_data()["points"]
    flow = Flow(data.space, size="tiny").eval()
    good = LAWS["mass is one"](Trial(flow, data, Room()))
    assert good is not None
    for planted in (Chain([bad, flow.map]), Chain([flow.map, bad])):
        flow.map = planted
        with pytest.raises(LawBroken, match="integrates to 0"):
            LAWS["mass is one"](Trial(flow, data, Room()))


@pytest.mark.parametrize("name", TRIANGULAR, ids=lambda name: name.replace(" ", "-"))
def test_an_autoregressive_jacobian_is_exactly_triangular(name):
    make, (dims,) = CASES[name]
    bijection = _perturbed(make(), 0.5).double()
    for way in ("forward", "inverse"):
        jacobian = _jacobian(bijection, way, torch.randn(dims, dtype=torch.float64))
        assert (jacobian.triu(1) == 0).all()
        assert (jacobian.diagonal() > 0).all()
        assert dims == 1 or jacobian.tril(-1).any()


@pytest.mark.parametrize("by", ["coupling", "steps", "iteration"])
def test_one_row_of_given_serves_all(by):
    bijection = _coupling(Space.reals(4), Spline(4), "mlp", given=LABEL) if by == "coupling" else _ordered(4, Spline(4), by, LABEL)
    bijection = _perturbed(bijection)
    x, label = torch.randn(6, 4), torch.tensor([[2]])
    for go in (bijection.forward, bijection.inverse):
        for one, each in zip(go(x, label), go(x, label.expand(6, 1)), strict=True):
            torch.testing.assert_close(one, each, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("by", ["coupling", "steps", "iteration"])
def test_conditional_maps_use_given(by):
    bijection = _coupling(Space.reals(4), Spline(4), "mlp", given=LABEL) if by == "coupling" else _ordered(4, Spline(4), by, LABEL)
    bijection = _perturbed(bijection)
    x, labels = torch.randn(3, 4), torch.arange(3)[:, None]
    y, _ = bijection(x, labels)
    torch.testing.assert_close(bijection.inverse(y, labels)[0], x, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(bijection(x[:1].expand(3, -1), labels)[0].std(0), torch.zeros(4))


def test_actnorm_leaves_the_scale_of_a_channel_that_stands_still():
    layers = Chain([ActNorm(2), ActNorm(2), ActNorm(2)])
    layers.start(torch.stack([torch.randn(64), torch.full((64,), 3.0)], 1))
    y, log_det = layers(torch.tensor([[0.0, 4.0]]))
    torch.testing.assert_close(y[0, 1].item(), 1.0)
    assert log_det.abs().item() < 2
