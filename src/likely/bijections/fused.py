r"""A layer whose parameters come from a plain perceptron, on a CPU: net, map and log-determinant as one node of autograd.

    y = x with f(x_i; raw_i) at the places that move,      raw = perceptron(x)

With a few dozen entries and units a layer is some ten small operations, and twice as many to differentiate it; what they cost is
that each is called, recorded and put away. Here the matrix products are torch's, all between them is done in place or in one
compiled pass (`transform.passed`), and the gradient is written out:

    g_raw, g_x  = the transform's (`transform.pulled`)
    g_W = g h^T,  g_b = sum g,  g <- (W^T g) where h > 0            through each linear map, backwards
    g_x += g seen'(x)                                              at the entries that the net reads

Where a derivative is itself to be differentiated, the same layer runs as tensor operations.
"""

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from likely.bijections.elementwise import Affine, Compiled, Elementwise, Spline, arrays, compilable, with_graph
from likely.nets.perceptron import FAR, Perceptron, Unrolled

__all__ = ["draw", "move", "perceptron_of", "unrolled_of"]


def perceptron_of(net: nn.Module, transform: Elementwise, x: Tensor, given: Tensor | None) -> Perceptron | None:
    """What `move` takes of a net, if it and the transform are of the kind."""
    made = getattr(net, "perceptron", None)
    if made is None or not isinstance(transform, Compiled) or not compilable(x) or torch.is_autocast_enabled("cpu"):
        return None
    plain = made(given, x.shape[0])
    return plain if plain is not None and not plain.dropout and plain.weights[0].dtype == x.dtype else None


def unrolled_of(net: nn.Module, transform: Elementwise, y: Tensor, given: Tensor | None) -> Unrolled | None:
    """What `draw` takes of a net, if it and the transform are of the kind."""
    made = getattr(net, "unrolled", None)
    if made is None or not isinstance(transform, Affine | Spline) or not compilable(y):
        return None
    unrolled = made(given, y.shape[0])
    return unrolled if unrolled is not None and unrolled.first.dtype == y.dtype else None


def draw(transform: Any, unrolled: Unrolled, y: Tensor) -> tuple[Tensor, Tensor]:
    """x with f(x_i; net(x_<i)) = y_i, and log |det dx/dy|; without a graph."""
    from likely.bijections import draw_passes

    *tensors, residual = unrolled
    shape = (transform.bins, transform.bound, transform.least) if isinstance(transform, Spline) else (0, transform.bound, 0.0)
    has = [*arrays(y, *tensors), residual, FAR, *shape]
    x, log_det = draw_passes.inverse(*has)
    return torch.from_numpy(x), torch.from_numpy(log_det)


def move(transform: Any, plain: Perceptron, x: Tensor, places: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Vectors x [B, D] with the entries at `places` moved by what the perceptron says of x, and the log-determinant [B]."""
    if torch.is_grad_enabled():
        return cast("tuple[Tensor, Tensor]", _Layer.apply(x, transform, plain, places, inverse, *plain.weights, *plain.biases))
    run = _run(transform, plain, x, places, inverse)
    return run.y, run.log_det


_below = torch.ops.aten.threshold_backward.grad_input


class _Run(NamedTuple):
    """What a layer computed: its results, what the transform kept, inputs and weights of the linear maps, slopes of what they see."""

    y: Tensor
    log_det: Tensor
    kept: Any
    inputs: list[Tensor]
    weights: list[Tensor]
    slope: np.ndarray


def _run(transform: Compiled, plain: Perceptron, x: Tensor, places: Tensor, inverse: bool) -> _Run:
    from likely.bijections import perceptron_passes  # numba takes a third of a second to import

    x = x.detach().contiguous()
    weights = plain.masked()
    h, slope = perceptron_passes.look(x.numpy(), plain.reads.numpy(), FAR)
    inputs = [torch.from_numpy(h)]
    for weight, bias in zip(weights, plain.biases, strict=True):
        inputs.append(torch.addmm(bias, inputs[-1], weight.t()))
        if len(inputs) <= len(weights):
            inputs[-1].relu_()
    inputs[-1] = inputs[-1].view(x.shape[0], transform.size, -1)
    return _Run(*transform.passed(x, places, inputs[-1], inverse), inputs, weights, slope)


class _Layer(torch.autograd.Function):
    """See above."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, transform: Compiled, plain: Perceptron, places: Tensor, inverse: bool, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        run = _run(transform, plain, x, places, inverse)
        ctx.layer, ctx.run = (transform, plain, places, inverse), run._replace(y=None, log_det=None)
        ctx.save_for_backward(x, run.y, *parameters)
        return run.y, run.log_det

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, y, *parameters), run = ctx.saved_tensors, ctx.run
        transform, plain, places, inverse = ctx.layer
        if torch.is_grad_enabled():  # create_graph
            return _differentiable(ctx, x, parameters, grads)
        *inputs, raw = run.inputs
        grad_x, g = transform.pulled(x, y, places, raw, inverse, run.kept, *grads)
        g, by_weight, by_bias = g.flatten(1), [], []
        for h, weight, mask, bias in reversed(list(zip(inputs, run.weights, plain.masks, plain.biases, strict=True))):
            by_weight.append(_outer(g, h, mask))
            by_bias.append(g if bias.shape == g.shape else g.sum(0).view(bias.shape))
            if h is not inputs[0]:
                g = g.mm(weight)
                _below(g, h, 0, grad_input=g)
            elif ctx.needs_input_grad[0]:
                _look_back(grad_x, g.mm(weight), plain.reads, run.slope)
        return grad_x, None, None, None, None, *reversed(by_weight), *reversed(by_bias)


def _outer(g: Tensor, h: Tensor, mask: Tensor | None) -> Tensor:
    """g^T h where the mask lets it; the narrow one first, which matrix products like better."""
    product = g.t().mm(h) if g.shape[1] <= h.shape[1] else h.t().mm(g).t()
    return product if mask is None else product.mul_(mask)


def _look_back(grad_x: Tensor, g: Tensor, reads: Tensor, slope: np.ndarray) -> None:
    """Add the gradient by what the net saw."""
    from likely.bijections import perceptron_passes

    perceptron_passes.look_back(g.numpy(), reads.numpy(), slope, grad_x.numpy())


def _differentiable(ctx: Any, x: Tensor, parameters: list[Tensor], grads: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """The gradients as tensor operations."""
    transform, plain, places, inverse = ctx.layer
    layers = len(plain.weights)
    plain = plain._replace(weights=parameters[:layers], biases=parameters[layers:])
    result = transform.tensors_among(x, places, plain(x).view(x.shape[0], transform.size, -1), inverse)
    by_x, *rest = with_graph(result, (x, *parameters), grads)
    return by_x, None, None, None, None, *rest
