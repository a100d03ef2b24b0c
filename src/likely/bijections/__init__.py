"""Invertible maps with log-determinants: the parts of normalizing flows."""

from likely.bijections.autoregressive import Autoregressive
from likely.bijections.base import Bijection, Inverse, chunks, per_example
from likely.bijections.chain import Chain
from likely.bijections.coupling import MASKS, Coupling, mask
from likely.bijections.domains import Domains, Logit, Softplus, domains
from likely.bijections.elementwise import Affine, Elementwise, Spline
from likely.bijections.linear import ActNorm, Linear, Orthogonal, Permute
from likely.bijections.marginal import Gaussianise
from likely.bijections.monotone import Additive, MixtureCDF
from likely.bijections.reshape import Flatten, Rest, Squeeze

__all__ = [
    "MASKS",
    "ActNorm",
    "Additive",
    "Affine",
    "Autoregressive",
    "Bijection",
    "Chain",
    "Coupling",
    "Domains",
    "Elementwise",
    "Flatten",
    "Gaussianise",
    "Inverse",
    "Linear",
    "Logit",
    "MixtureCDF",
    "Orthogonal",
    "Permute",
    "Rest",
    "Softplus",
    "Spline",
    "Squeeze",
    "chunks",
    "domains",
    "mask",
    "per_example",
]
