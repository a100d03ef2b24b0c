"""Layers with plain perceptrons and chains of them, one node of autograd, against tensor operations; compiled draws against steps."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import likely
from likely.bijections import Additive, Affine, Autoregressive, Chain, Coupling, Elementwise, MixtureCDF, Permute, Spline, mask
from likely.bijections.fused import steps_of, unrolled_of
from likely.bijections.layer_passes import WIDE
from likely.errors import UsageError
from likely.families import build
from likely.nets import net
from likely.space import Space

LABEL = Space.label(3)
TRANSFORMS = [Additive(), Affine(1.5), Spline(4)]


def _layer(kind: str, transform: Elementwise, given: Space | None = None, dims: int = 5, **how: Any) -> Any:
    torch.manual_seed(0)
    options: dict[str, Any] = {"given": given, "out": transform.size, "width": 9, "depth": 1, "dropout": 0.0, "residual": False, **how}
    space, moves = Space.reals(dims), mask("alternate", (dims,), 1)
    layer = (
        Coupling(moves, transform, net(space, "coupling", moves=moves, **options))
        if kind == "coupling"
        else Autoregressive(transform, net(space, "ordered", **options))
    )
    for p in layer.parameters():
        nn.init.normal_(p, std=1.5 / options["width"] ** 0.5)
    return layer.double()


def _case(given: Space | None, rows: int = 7, dims: int = 5) -> tuple[Tensor, Tensor | None]:
    x = 2 * torch.randn(rows, dims, dtype=torch.float64)
    x[0] *= 20
    return x.requires_grad_(), None if given is None else torch.arange(rows)[:, None] % 3


def _as_tensors(layer: Any, x: Tensor, given: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
    """The layer by its parts, none of them compiled."""
    places = torch.arange(x.shape[1]) if isinstance(layer, Autoregressive) else layer.moved
    return layer.transform.tensors_among(x, places, layer.net(x, given), inverse)


def _gradients(pair: tuple[Tensor, Tensor], inputs: list[Tensor], cotangents: list[Tensor]) -> tuple[Tensor, ...]:
    """Of both results; the log-determinant of a shift is a constant."""
    return torch.autograd.grad(sum((t * c).sum() for t, c in zip(pair, cotangents, strict=True)), inputs)


@pytest.mark.parametrize("given", [None, LABEL], ids=["", "given"])
@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
@pytest.mark.parametrize(("kind", "inverse"), [("coupling", False), ("coupling", True), ("ordered", False)])
def test_values_and_gradients_are_those_of_the_parts(kind, inverse, transform, given):
    layer, (x, label) = _layer(kind, transform, given), _case(given)
    assert steps_of([layer], x, label, inverse=inverse)
    made, expected = (layer.inverse if inverse else layer)(x, label), _as_tensors(layer, x, label, inverse)
    with torch.no_grad():
        without_graph = (layer.inverse if inverse else layer)(x, label)
    cotangents = [torch.randn_like(t) for t in expected]
    found, known = (_gradients(pair, [x, *layer.parameters()], cotangents) for pair in (made, expected))
    for ours, theirs in zip((*made, *without_graph, *found), (*expected, *expected, *known), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize(("rows", "width"), [(3, 9), (300, 9), (300, WIDE + 2)])
@pytest.mark.parametrize("given", [None, LABEL], ids=["", "given"])
@pytest.mark.parametrize(("kind", "inverse"), [("coupling", False), ("coupling", True), ("ordered", False)])
def test_a_chain_of_layers_and_permutations_is_its_parts(kind, inverse, given, rows, width):
    def layer(transform: Elementwise) -> Any:
        return _layer(kind, transform, given, width=width)

    parts: list[Any] = [Permute(5, "random"), layer(Affine(1.5)), Permute(5, "random"), Permute(5, "reverse")]
    parts += [layer(Affine(1.5)), Permute(5, "random"), layer(Spline(4))]
    chain, (x, label) = Chain(parts).double(), _case(given, rows)
    assert len(steps_of(parts, x, label)) == 6  # the spline goes alone
    made = (chain.inverse if inverse else chain)(x, label)
    y, log_det = x, torch.zeros(rows, dtype=torch.float64)
    for part in parts[::-1] if inverse else parts:
        if isinstance(part, Permute):
            y = part.inverse(y)[0] if inverse else part(y)[0]
        else:
            y, more = _as_tensors(part, y, label, inverse)
            log_det = log_det + more
    cotangents = [torch.randn_like(t) for t in made]
    found, known = (_gradients(pair, [x, *chain.parameters()], cotangents) for pair in (made, (y, log_det)))
    for ours, theirs in zip((*made, *found), (y, log_det, *known), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
def test_gradients_can_be_differentiated(transform):
    layer, (x, _) = _layer("ordered", transform), _case(None, rows=3)

    def curvature(result: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        (slope,) = torch.autograd.grad(result[0].sin().sum() + result[1].sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), [x, *layer.parameters()], allow_unused=True, materialize_grads=True)

    for ours, theirs in zip(curvature(layer(x)), curvature(_as_tensors(layer, x, None, False)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)
    order = torch.tensor([3, 1, 4, 0, 2])
    chain = Chain([layer, Permute(5, "random")])
    chain.parts[1].order = order  # type: ignore[assignment]
    y, log_det = _as_tensors(layer, x, None, False)
    for ours, theirs in zip(curvature(chain(x)), curvature((y[:, order], log_det)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


def test_weights_that_were_changed_before_the_gradient_are_noticed():
    layer, (x, _) = _layer("coupling", Affine()), _case(None)
    loss = layer(x)[0].sum()
    with torch.no_grad():
        layer.net.body.layers[1].weight.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("rows", [1, 300])
@pytest.mark.parametrize("given", [None, LABEL], ids=["", "given"])
@pytest.mark.parametrize("transform", [Affine(1.5), Spline(4)], ids=lambda t: type(t).__name__)
@pytest.mark.parametrize(("dims", "how"), [(1, {}), (2, {"depth": 2}), (9, {}), (9, {"depth": 2, "residual": True}), (5, {"depth": 0})])
def test_a_compiled_draw_is_that_of_the_steps(dims, how, transform, given, rows):
    layer, (y, label) = _layer("ordered", transform, given, dims, width=21, **how), _case(given, rows, dims)
    modulated = given is not None and how.get("residual", False)
    assert (unrolled_of(layer.net, transform, y, label) is None) == modulated
    with torch.no_grad():
        made, expected = layer.inverse(y, label), layer._by_steps(y, label)
    for ours, theirs in zip(made, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("given", [None, LABEL], ids=["", "given"])
@pytest.mark.parametrize("transform", [Affine(1.5), Spline(4)], ids=lambda t: type(t).__name__)
def test_a_compiled_draw_through_a_chain_is_that_of_its_parts(transform, given):
    layers = [_layer("ordered", transform, given, depth=depth, width=11) for depth in (2, 2, 0)]
    parts: list[Any] = [layers[0], Permute(5, "random"), Permute(5, "reverse"), layers[1], Permute(5, "random"), layers[2]]
    (y, label), chain = _case(given, 300), Chain(parts).double()
    with torch.no_grad():
        assert len(steps_of(parts[:5], y, label, inverse=True)) == 5
        made, x, log_det = chain.inverse(y, label), y, torch.zeros(300, dtype=torch.float64)
        for part in parts[::-1]:
            x, more = part.inverse(x) if isinstance(part, Permute) else part._by_steps(x, label)
            log_det = log_det + more
    for ours, theirs in zip(made, (x, log_det), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-7)


def test_what_is_not_of_the_kind_goes_by_its_parts():
    x, _ = _case(None)
    for layer in (_layer("coupling", Affine(), residual=True), _layer("ordered", MixtureCDF(3)), _layer("coupling", Affine(), dropout=0.5)):
        assert not steps_of([layer], x, None)
    assert not steps_of([_layer("ordered", Affine())], x.float(), None)


def test_dropout_is_of_the_hidden_units_while_training():
    layer, (x, _) = _layer("coupling", Affine(), dropout=0.5), _case(None)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    assert steps_of([layer], x, None)
    assert torch.equal(layer(x)[0], layer(x)[0])


@pytest.mark.parametrize("name", ["realnvp", "maf"])
def test_plain_flows_learn_dependence(name):
    x = torch.randn(400, 3) @ torch.tensor([[1.0, 0.9, 0.0], [0.0, 0.4, 0.3], [0.0, 0.0, 0.1]])
    model = likely.fit(x.numpy(), name, steps=100, size="tiny", residual=False, progress=False).model
    independent = torch.distributions.Normal(x.mean(0), x.std(0)).log_prob(x).sum(1)
    assert model.log_prob(x).nats.mean() > independent.mean() + 0.3


def test_scales_have_no_plain_nets():
    with pytest.raises(UsageError, match="Convolutional nets are residual"):
        build("realnvp", Space.grid(1, 8, 8), size="tiny", residual=False)
