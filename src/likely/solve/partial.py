"""Which entries are shown in training, so that any others can be drawn given them, and what is said of those that are.

Half of the examples are shown nothing of, which is the model of whole examples. Of the others any share is known, all shares being alike
likely: single entries at random, and of every second grid a rectangle, or all but a rectangle.

References:
    | A deep and tractable density estimator (orderless training; Uria et al., 2014) | https://arxiv.org/abs/1310.1757
    | Palette: image-to-image diffusion models (inpainting by conditional training; Saharia et al., 2022) | https://arxiv.org/abs/2111.05826
    | CSDI: conditional score-based diffusion models for probabilistic time series imputation (Tashiro et al., 2021) | https://arxiv.org/abs/2107.03502
"""

from dataclasses import replace

import torch
from torch import Tensor

from likely.solve.posterior import Lift, Posterior
from likely.space import Space

__all__ = ["pinned", "random_known"]

_LEAST = 1e-6  # a deviation that leaves no doubt


def random_known(space: Space, n: int, device: torch.device) -> Tensor:
    """Which entries of n examples are shown, bool [n, *space.shape]; all channels of a pixel alike, and all coordinates of a point."""
    sides = {"grid": space.shape[1:], "set": space.shape[:1]}.get(space.layout, space.shape)
    share, coin = torch.rand(2, n, *[1] * len(sides), device=device)
    known = torch.rand(n, *sides, device=device) < share
    if space.layout == "grid":
        known = torch.where(coin < 0.5, known, (coin < 0.75) ^ _inside(n, sides, device))
    known &= torch.rand_like(share) < 0.5
    known = {"grid": known[:, None], "set": known[..., None]}.get(space.layout, known)
    return known.expand(n, *space.shape)


def _inside(n: int, sides: tuple[int, ...], device: torch.device) -> Tensor:
    """Rectangles between corners at random, bool [n, *sides]."""
    inside = torch.ones(n, *sides, dtype=torch.bool, device=device)
    for axis, side in enumerate(sides, 1):
        low, high = (torch.rand(2, n, 1, device=device) * (side + 1)).floor().sort(0).values
        place = torch.arange(side, device=device)
        inside &= ((place >= low) & (place < high)).view(n, *[side if a == axis else 1 for a in range(1, 1 + len(sides))])
    return inside


def pinned(lift: Lift, posterior: Posterior, known: Tensor) -> Posterior:
    """A posterior that knows some entries, NaN where unknown: their mean is what they are, with all but no variance."""
    there = ~known.isnan()
    mean, var = torch.where(there, known.to(posterior.mean), posterior.mean), posterior.var.masked_fill(there, _LEAST**2)
    if posterior.log_mass is None or lift.levels is None:
        return replace(posterior, mean=mean, var=var)
    if lift.space.layout == "set":  # whose log-masses have their coordinates first
        known, there = known.mT, there.mT
    count = len(lift.finite)
    sure = lift.levels.decoded(known[:, :count].nan_to_num(0.0), _LEAST).log_mass
    assert sure is not None
    log_mass = torch.where(there[:, :count].unsqueeze(2), sure.to(posterior.log_mass), posterior.log_mass)
    return Posterior(mean, var, log_mass)
