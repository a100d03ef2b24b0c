"""Categorical tables from counts, smoothed by pseudo-counts that are chosen on held-out counts."""

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from likely.solve.labels import shrink

__all__ = ["Counts", "pooled", "uniform"]

_PSEUDO = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class Counts(nn.Module):
    """Categorical tables log p [labels, entries, states] of entries that are independent given the label."""

    log_p: Tensor

    def __init__(self, labels: int, prior: Tensor) -> None:
        super().__init__()
        self.register_buffer("log_p", prior.log().expand(labels, *prior.shape).clone())

    def log_prob(self, code: Tensor, label: Tensor) -> Tensor:
        """code [B, entries], label [B] -> nats [B, entries]."""
        return self.log_p[label[:, None], torch.arange(code.shape[1], device=code.device), code]

    def sample(self, label: Tensor, among: Tensor | None = None) -> Tensor:
        """Codes [B, entries], by inverting each label's cumulative table; of those states [entries, states] that are asked for."""
        code = torch.empty(len(label), self.log_p.shape[1], dtype=torch.int64, device=label.device)
        for y in label.unique().tolist():
            p = self.log_p[y].exp()
            cdf = (p if among is None else p * among).cumsum(-1)
            u = torch.rand(len(cdf), int((label == y).sum()), dtype=cdf.dtype, device=cdf.device) * cdf[:, -1:]
            code[label == y] = torch.searchsorted(cdf, u, right=True).clamp_max(cdf.shape[1] - 1).T
        return code

    def count(self, codes: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """How often (code [B, entries], label [B]) occurs, in the shape of the tables, float64."""
        labels, entries, states = self.log_p.shape
        total = torch.zeros(self.log_p.numel(), dtype=torch.float64)
        for code, label in codes:
            index = (label[:, None] * entries + torch.arange(entries)) * states + code
            total += torch.bincount(index.flatten(), minlength=len(total))
        return total.view(labels, entries, states)

    def fit(self, train: Tensor, valid: Tensor, prior: Tensor) -> Tensor:
        """Counts of both splits -> the smoothed tables; the code length of the validation split, nats [entries]."""
        ways = itertools.product(_PSEUDO, _PSEUDO if len(train) > 1 else _PSEUDO[:1])
        fits = [_smoothed(train, prior, *way) for way in ways]
        costs = torch.stack([-(valid * log_p.nan_to_num(neginf=0.0)).sum((0, 2)) for log_p in fits])
        best = int(costs.sum(1).argmin())
        self.log_p = fits[best]
        return costs[best]


def uniform(states: list[int]) -> Tensor:
    """Uniform probabilities [entries, most states]; zero for states that an entry lacks."""
    count = torch.tensor(states, dtype=torch.float64)[:, None]
    return (torch.arange(max(states, default=1)) < count) / count


def pooled(counts: Tensor, uniform: Tensor, groups: int) -> Tensor:
    """The prior of each entry: counts of all entries of its group (a channel), smoothed by one."""
    together = counts.sum(0).view(groups, -1, counts.shape[-1]).sum(1)
    return shrink(together.repeat_interleave(counts.shape[1] // groups, 0), uniform, 1.0)


def _smoothed(counts: Tensor, prior: Tensor, entry: float, label: float) -> Tensor:
    """log p of each label's tables, shrunk towards those of all labels, these towards the prior."""
    together = shrink(counts.sum(0), prior, entry)
    return (shrink(counts, together, label) if len(counts) > 1 else together[None]).log()
