"""Invertible maps with log-determinants: the parts of normalizing flows."""

from likely.bijections.base import Bijection, Chain, per_example
from likely.bijections.coupling import Coupling
from likely.bijections.elementwise import Affine, Elementwise, Spline
from likely.bijections.linear import ActNorm, Linear
from likely.bijections.marginal import Gaussianise
from likely.bijections.reshape import Flatten, Rest, Squeeze

__all__ = [
    "ActNorm",
    "Affine",
    "Bijection",
    "Chain",
    "Coupling",
    "Elementwise",
    "Flatten",
    "Gaussianise",
    "Linear",
    "Rest",
    "Spline",
    "Squeeze",
    "per_example",
]
