"""The optimiser of a recipe: AdamW for all, or Muon for the matrices of linear maps and AdamW for the rest.

Muon replaces the momentum of a matrix by the nearest matrix whose singular values are all one, and
scales it to the size of an AdamW step, so that both share a learning rate.

References:
    | Decoupled weight decay regularization (AdamW; Loshchilov and Hutter, 2019) | https://arxiv.org/abs/1711.05101
    | Muon: an optimizer for hidden layers in neural networks (Jordan et al., 2024) | https://kellerjordan.github.io/posts/muon/
    | Muon is scalable for LLM training (the common scale; Liu et al., 2025) | https://arxiv.org/abs/2502.16982
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from likely.model import Recipe

__all__ = ["Optimiser", "clip_gradients", "optimiser_of"]

_FEW = 2**20  # numbers, which are copied faster than their tensors are gone through


class Optimiser:
    """Several optimisers that step as one; their state is numbered through."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """{"state": {number of the parameter: its tensors}}."""
        slots = (part.state_dict()["state"].get(i, {}) for part in self.parts for i in range(_count(part)))
        return {"state": {i: slot for i, slot in enumerate(slots) if slot}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse; hyperparameters stay."""
        first = 0
        for part in self.parts:
            mine = {i - first: slot for i, slot in state["state"].items() if first <= i < first + _count(part)}
            part.load_state_dict({"state": mine, "param_groups": part.state_dict()["param_groups"]})
            first += _count(part)


def _count(part: torch.optim.Optimizer) -> int:
    return sum(len(group["params"]) for group in part.param_groups)


def optimiser_of(module: nn.Module, recipe: Recipe) -> Optimiser:
    """Weight decay acts on matrices and kernels only."""
    params = list(module.parameters())
    matrices = {id(m.weight) for m in module.modules() if isinstance(m, nn.Linear)} if recipe.optimizer == "muon" else set()
    turned, rest = [p for p in params if id(p) in matrices], [p for p in params if id(p) not in matrices]
    parts: list[torch.optim.Optimizer] = [_adamw(rest, recipe)] if rest else []
    if turned:
        parts.append(torch.optim.Muon(turned, lr=recipe.lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"))
    return Optimiser(*parts)


def _adamw(params: list[nn.Parameter], recipe: Recipe) -> torch.optim.AdamW:
    groups = [{"params": [p for p in params if p.ndim > 1]}, {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0}]
    groups = groups if recipe.weight_decay else [{"params": params}]  # one group is one call
    fused = params[0].device.type != "mps"
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=fused)


def clip_gradients(params: Sequence[Tensor], most: float) -> Tensor:
    """Scale the gradients so that their common norm is at most `most`; the norm that they had.

    Small models on a CPU have many small gradients, whose norm is that of a copy of all.
    """
    grads = [p.grad for p in params if p.grad is not None]
    kinds = {(g.dtype, g.device.type, g.layout) for g in grads}
    if kinds != {(torch.float32, "cpu", torch.strided)} or sum(g.numel() for g in grads) > _FEW:
        return nn.utils.clip_grad_norm_(params, most)
    norm = torch.cat([g.reshape(-1) for g in grads]).norm()
    if norm > most:
        torch._foreach_mul_(grads, most / (norm + 1e-6))  # pyright: ignore
    return norm
