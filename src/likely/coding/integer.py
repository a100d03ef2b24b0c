"""Integer probability tables that are equal on every machine: logits -> counts that sum to 2**24.

Two machines rarely agree on the last bit of a logit or of exp. So logits are rounded to multiples
of 2**-8 (which costs less than 1e-6 bit a symbol), and exp(-d / 256) is read from a table of
integers that is built with integer arithmetic alone. Every symbol keeps at least one count, so
every symbol can be coded.

References:
    | Integer networks for data compression with latent-variable models (Balle et al., 2019) | https://openreview.net/forum?id=S1zz2i0cY7
"""

from functools import cache

import torch
from torch import Tensor

from likely.errors import LikelyError, UsageError

__all__ = ["LARGEST_ALPHABET", "PRECISION", "claim_bits", "claim_bits_of_normal", "counts"]

PRECISION = 24
LARGEST_ALPHABET = 2**16
_STEPS = 256  # logits are multiples of 1 / 256
_BITS = 30  # of the integer exponential
_GUARD = 192  # bits of the fixed-point arithmetic that builds it


@cache
def _exponentials() -> Tensor:
    """round(2**30 exp(-d / 256)) for d = 0, 1, ... until it is zero, int64."""
    one = term = total = 1 << _GUARD
    for k in range(1, 40):  # Taylor series of exp(-1 / 256)
        term = -term // (k * _STEPS)
        total += term
    table, power = [], one
    while power >> (_GUARD - _BITS - 1):
        table.append((power + (1 << (_GUARD - _BITS - 1))) >> (_GUARD - _BITS))
        power = power * total >> _GUARD
    return torch.tensor([*table, 0], dtype=torch.int64)


def counts(logits: Tensor) -> Tensor:
    """Counts of each symbol, [..., K] int64: at least 1 each, 2**24 in all.

    Args:
        logits: [..., K], unnormalised, float64 where tables must be equal on two machines; -inf
            for a symbol that should not occur.

    Raises: LikelyError for NaN or +inf; UsageError for an alphabet larger than 2**16.
    """
    k = logits.shape[-1]
    if not 1 <= k <= LARGEST_ALPHABET:
        raise UsageError(f"Cannot build a table of {k} symbols.", f"An alphabet has 1 to {LARGEST_ALPHABET}.")
    if bool((torch.isnan(logits) | torch.isposinf(logits)).any()):
        raise LikelyError("Cannot code with logits that are NaN or infinite.", "Has the model's training diverged?")
    exponential = _exponentials()
    top = logits.double().amax(-1, keepdim=True).clamp_min(-1e300)  # all -inf is uniform
    steps = torch.round(logits.double().clamp_min(-1e300) * _STEPS) - torch.round(top * _STEPS)
    weights = exponential[(-steps).clamp_max(len(exponential) - 1).long()]
    table = 1 + weights * (2**PRECISION - k) // weights.sum(-1, keepdim=True)
    best = table.argmax(-1, keepdim=True)
    return table.scatter_add(-1, best, 2**PRECISION - table.sum(-1, keepdim=True))


def claim_bits(table: Tensor, symbols: Tensor) -> Tensor:
    """Code length of each symbol under its table, bits, float64: [..., K] and [...] -> [...]."""
    return PRECISION - table.gather(-1, symbols[..., None])[..., 0].double().log2()


def claim_bits_of_normal(symbols: Tensor, mean: Tensor, std: Tensor, reach: int) -> Tensor:
    """Code length of integers -reach..reach under normals, bits, float64 [n]: a count for each, the others by the mass of its cell."""
    return PRECISION - (_counts_below(symbols + 1, mean, std, reach) - _counts_below(symbols, mean, std, reach)).log2()


def _counts_below(symbols: Tensor, mean: Tensor, std: Tensor, reach: int) -> Tensor:
    """Of the 2**24 counts those of smaller integers; what is beyond the reach goes to the outermost ones."""
    mass = torch.special.ndtr((symbols.double() - 0.5 - mean) / std)
    below = ((2**PRECISION - 1 - 2 * reach) * mass).floor() + symbols + reach
    return below.masked_fill(symbols <= -reach, 0.0).masked_fill(symbols > reach, 2.0**PRECISION)
