r"""Layers whose parameters come from plain perceptrons, on a CPU: all that follow each other as one node of autograd.

    y = x with f(x_i; raw_i) at the places that move,      raw = perceptron(x)

`Layer` is what a bijection hands over that is of this kind; permutations between layers only change the names of entries. The passes
are compiled (`chain_passes`); where a derivative is itself to be differentiated, the same layers run as tensor operations.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from likely.bijections.base import Bijection, no_volume
from likely.bijections.elementwise import Affine, Compiled, Elementwise, Spline, arrays, compilable, with_graph
from likely.nets.perceptron import FAR, Perceptron, Unrolled

__all__ = ["Layer", "draw", "layer_of", "steps_of", "through", "unrolled_of"]


_NARROW = 128  # units; the products of wider nets are worth several threads, where torch has them


class Layer(NamedTuple):
    """The entries at `moved` of vectors are moved by what the perceptron says of them."""

    transform: Compiled
    plain: Perceptron
    moved: Tensor

    @property
    def kind(self) -> tuple[Any, ...]:
        """What layers of one pass have in common."""
        _, parameters, degrees, known, _ = self.plain
        return self.transform, len(parameters), parameters[0].size(0), degrees is None, None if known is None else known.size(0)


Step = Layer | Tensor  # a permutation is its order


def layer_of(net: nn.Module, transform: Elementwise, moved: Tensor | None, given: Tensor | None, n: int) -> Layer | None:
    """A layer, if net and transform are of the kind; None moves what the net reads."""
    made = getattr(net, "perceptron", None)
    if made is None or not isinstance(transform, Compiled):
        return None
    plain = made(given, n)
    return None if plain is None or plain.dropout else Layer(transform, plain, plain.reads if moved is None else moved)


@cache
def _libraries() -> list[Any]:
    """Of matrix products, which the passes call."""
    import scipy.linalg.cython_blas  # noqa: F401  # loads the one that numba takes
    from threadpoolctl import ThreadpoolController

    return [library for library in ThreadpoolController().lib_controllers if library.user_api == "blas"]


def _alone(run: Any, *arguments: Any) -> Any:
    """A compiled pass on one thread: products of this size would spend their time on handing out work."""
    several = [(library, n) for library in _libraries() if (n := library.get_num_threads()) > 1]
    for library, _ in several:
        library.set_num_threads(1)
    try:
        return run(*arguments)
    finally:
        for library, n in several:
            library.set_num_threads(n)


def steps_of(parts: Iterable[Bijection], x: Tensor, given: Tensor | None, *, inverse: bool = False) -> list[Step]:
    """What `through` takes of the parts at the beginning; nothing if there is no layer among them."""
    steps: list[Step] = []
    kind: tuple[Any, ...] | None = None
    if x.ndim != 2 or not compilable(x) or torch.is_autocast_enabled("cpu"):
        return steps
    for part in parts:
        step = part.step(given, x.size(0), inverse=inverse)
        if step is None:
            break
        if isinstance(step, Layer):
            mine = step.kind
            kind = kind or mine
            weight = step.plain.parameters[0]
            if mine != kind or weight.dtype != x.dtype or (weight.size(0) > _NARROW and torch.get_num_threads() > 1):
                break
        steps.append(step)
    return steps if kind else []


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


class _Plan(NamedTuple):
    """How layers go one after the other.

    Attributes:
        wiring: int64, of each step the order, or the entries that a layer reads and moves and the degrees of its net.
        table: how many entries each step permutes, reads and moves.
        shape: width and number of hidden layers, whether they have degrees; kind and size of the transform, its bound and
            least share; whether the inverse is meant.
    """

    steps: Sequence[Step]
    wiring: np.ndarray
    table: np.ndarray
    shape: tuple[Any, ...]


def through(steps: Sequence[Step], x: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """The image of vectors x [B, D] by layers and permutations, in the order in which they are met, and the log-determinant.

    The inverse of layers with degrees goes entry by entry, and has no gradient.
    """
    layers = [step for step in steps if isinstance(step, Layer)]
    plan = _planned(steps, layers[0], inverse)
    known = None if layers[0].plain.known is None else torch.stack([cast("Tensor", layer.plain.known) for layer in layers])
    parameters = [p for layer in layers for p in layer.plain.parameters]
    if inverse and layers[0].plain.degrees is not None:
        from likely.bijections import draw_passes

        has = [*_packed(plan, x, known, parameters), plan.shape]
        y, log_det = draw_passes.chain_inverse(*has)
        return torch.from_numpy(y), torch.from_numpy(log_det)
    if torch.is_grad_enabled():
        return cast("tuple[Tensor, Tensor]", _Through.apply(x, known, plan, *parameters))
    return _run(plan, x, known, parameters, keep=False)[:2]


def _planned(steps: Sequence[Step], first: Layer, inverse: bool) -> _Plan:
    wires, table = [], []
    for step in steps:
        if isinstance(step, Layer):
            wires += [step.plain.reads, step.moved, *(() if step.plain.degrees is None else (step.plain.degrees,))]
            table.append((0, step.plain.reads.numel(), step.moved.numel()))
        else:
            wires.append(step)
            table.append((step.numel(), 0, 0))
    parameters, transform = first.plain.parameters, first.transform
    shape = parameters[0].size(0), len(parameters) // 2 - 1, first.plain.degrees is not None, *_coded(transform), inverse
    return _Plan(steps, torch.cat(wires).numpy(), np.array(table), shape)


def _coded(transform: Any) -> tuple[int, int, float, float]:
    """Kind, size, bound and least share."""
    from likely.bijections import layer_passes  # numba takes a third of a second to import

    if isinstance(transform, Spline):
        return layer_passes.SPLINE, transform.size, transform.bound, transform.least
    return (layer_passes.AFFINE, 2, transform.bound, 0.0) if isinstance(transform, Affine) else (layer_passes.ADDITIVE, 1, 0.0, 0.0)


def _packed(plan: _Plan, x: Tensor, known: Tensor | None, parameters: Sequence[Tensor]) -> list[Any]:
    """Arrays as the passes take them."""
    weights, count = _flatten_dense_tensors(parameters), sum(isinstance(step, Layer) for step in plan.steps)
    known = x.new_empty(count, 0, plan.shape[0]) if known is None else known
    return [*arrays(x, weights, known), plan.wiring, plan.table, FAR]


def _run(plan: _Plan, x: Tensor, known: Tensor | None, parameters: Sequence[Tensor], *, keep: bool) -> tuple[Tensor, Tensor, Any]:
    """The results, and what the gradient needs."""
    from likely.bijections import chain_passes

    z, log_det, *kept = _alone(chain_passes.forward, *_packed(plan, x, known, parameters), keep, plan.shape)
    return torch.from_numpy(z), torch.from_numpy(log_det), kept


class _Through(torch.autograd.Function):
    """See above."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, known: Tensor | None, plan: _Plan, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        z, log_det, ctx.kept = _run(plan, x, known, parameters, keep=True)
        ctx.plan = plan
        ctx.save_for_backward(x, known, *parameters)
        return z, log_det

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from likely.bijections import chain_passes

        (x, known, *parameters), plan = ctx.saved_tensors, ctx.plan
        if torch.is_grad_enabled():  # create_graph
            inputs = [x, *parameters] if known is None else [x, known, *parameters]
            by_x, *rest = with_graph(_as_tensors(plan, x, known, parameters), inputs, grads)
            return by_x, None if known is None else rest.pop(0), None, *rest
        has = [*ctx.kept, 0 if known is None else known.shape[1], plan.shape, *arrays(*grads)]
        by_x, by_weight, by_known = map(torch.from_numpy, _alone(chain_passes.backward, *has))
        return by_x, None if known is None else by_known, None, *_unflatten_dense_tensors(by_weight, parameters)


def _as_tensors(plan: _Plan, x: Tensor, known: Tensor | None, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The same as tensor operations."""
    log_det, layer, each = no_volume(x), 0, 2 * (plan.shape[1] + 1)
    for step in plan.steps:
        if isinstance(step, Layer):
            mine = list(parameters[layer * each : (layer + 1) * each])
            plain = step.plain._replace(parameters=mine, known=None if known is None else known[layer])
            x, part = step.transform.tensors_among(x, step.moved, plain(x).view(len(x), step.transform.size, -1), plan.shape[-1])
            log_det, layer = log_det + part, layer + 1
        else:
            x = x.index_select(1, step.argsort() if plan.shape[-1] else step)
    return x, log_det
