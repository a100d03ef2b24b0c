r"""Losses that fit a score s(z) ~ grad log p(z), and the Fisher divergence that all of them minimise.

    Fisher      F = 1/2 E_p |s(z) - grad log p(z)|^2
    explicit    E_p [ tr ds/dz + 1/2 |s|^2 ]                 = F - 1/2 E_p |grad log p|^2, a constant of the data
    sliced      E_p [ v . (ds/dz) v + 1/2 (v . s)^2 ]        the same in expectation over v with E v v^T = I;
                                                             the second term may be its own expectation, 1/2 |s|^2
    denoising   E 1/2 |sigma s(z) + eps|^2                   = sigma^2 F + a constant, z = alpha e + sigma eps

Each takes a score as a function of z [B, ...], treats rows alike, and returns one number per row, with gradients. The constants are
unknown for data, but not differences: the mean difference of two models' losses estimates that of their Fisher divergences. A Fisher
divergence itself needs p's score: that of another model, or `kernel_score` for the noisy law of a finite set of data.

References:
    | Estimation of non-normalized statistical models by score matching (Hyvarinen, 2005) | https://jmlr.org/papers/v6/hyvarinen05a.html
    | A connection between score matching and denoising autoencoders (Vincent, 2011) | https://doi.org/10.1162/NECO_a_00142
    | Sliced score matching (Song et al., 2019) | https://arxiv.org/abs/1905.07088
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Score", "denoising", "explicit", "fisher_divergence", "kernel_score", "sliced"]

Score = Callable[[Tensor], Tensor]  # z [B, ...] -> [B, ...]


def denoising(score: Score, e: Tensor, eps: Tensor, alpha: float, sigma: float) -> Tensor:
    """1/2 |sigma s(alpha e + sigma eps) + eps|^2 of each row, [B]."""
    return 0.5 * (sigma * score(alpha * e + sigma * eps) + eps).square().flatten(1).sum(1)


def explicit(score: Score, z: Tensor) -> Tensor:
    """tr ds/dz + 1/2 |s|^2 of each row, [B]; one backward pass per entry."""
    z, s = _scored(score, z)
    axes = torch.eye(s[0].numel(), dtype=s.dtype, device=s.device).view(-1, *s.shape[1:])
    trace = torch.stack([(_pulled(s, z, axis.expand_as(s)) * axis).flatten(1).sum(1) for axis in axes]).sum(0)
    return trace + 0.5 * s.square().flatten(1).sum(1)


def sliced(score: Score, z: Tensor, probes: Tensor, *, reduced: bool = True) -> Tensor:
    """The sliced loss of each row, [B], the mean over its probes [B, K, ...]; one backward pass per probe.

    Args:
        probes: of mean zero and covariance I, such as random signs.
        reduced: whether the second term is 1/2 |s|^2 and not 1/2 (v . s)^2, which varies less where scores are large.
    """
    z, s = _scored(score, z)
    along = probes.to(s).unbind(1)
    trace = torch.stack([(_pulled(s, z, v) * v).flatten(1).sum(1) for v in along])
    squares = [s.square().flatten(1).sum(1)] if reduced else [(s * v).flatten(1).sum(1).square() for v in along]
    return trace.mean(0) + 0.5 * torch.stack(squares).mean(0)


def fisher_divergence(score: Score, truth: Score, z: Tensor) -> Tensor:
    """1/2 |s(z) - truth(z)|^2 of each row, [B]; its mean over z ~ p, the law of `truth`, is the Fisher divergence."""
    return 0.5 * (score(z) - truth(z)).double().square().flatten(1).sum(1)


def kernel_score(data: Tensor, alpha: float, sigma: float) -> Score:
    """The score of z = alpha e + sigma eps where e is one of `data` [n, ...], each as likely.

    It is that of the law the data are from only as n grows; with few data it is too sharp.
    """
    centers = alpha * data.flatten(1)

    def score(z: Tensor) -> Tensor:
        flat = z.flatten(1)
        share = (-0.5 * torch.cdist(flat / sigma, centers.to(flat) / sigma).square()).softmax(1)
        return ((share @ centers.to(flat) - flat) / sigma**2).view_as(z)

    return score


def _scored(score: Score, z: Tensor) -> tuple[Tensor, Tensor]:
    """z as a leaf, and its score."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        return z, score(z)


def _pulled(s: Tensor, z: Tensor, direction: Tensor) -> Tensor:
    """(ds/dz)^T times a direction, itself differentiable."""
    return torch.autograd.grad(s, z, direction, create_graph=True, materialize_grads=True)[0]
