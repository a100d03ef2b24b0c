r"""Bits-back coding of a Markov chain: x <- z_0 <- z_1 <- ... <- z_T, latents that are normal given either neighbour.

What is to be sent is x, but a model of latents codes x and z together, at -log p(x, z). So z is not chosen but decoded, from bits
that are on the stack already, by the code of q(z | x): the receiver, who finds out x and z, encodes them again and has the bits back. The
net cost is -log p(x, z) + log q(z | x), the variational bound in expectation. In a chain (Bit-Swap) the levels take turns, so that no more
than two levels' bits are ever off the stack:

    take off z_0 ~ q(z_0 | x),          put on x ~ p(x | z_0)
    take off z_k ~ q(z_k | z_{k-1}),    put on z_{k-1} ~ p(z_{k-1} | z_k)            k = 1..T;  then put on z_T ~ N(0, 1)

    q(z_k | z_{k-1}) = N(a z_{k-1}, s^2),    a = alpha_k / alpha_{k-1},  s^2 = rho_k sigma_k^2,  rho_k = 1 - SNR_k / SNR_{k-1}
    p(z_{k-1} | z_k) = N((1 - rho_k) z_k / a + rho_k alpha_{k-1} m,  rho_k sigma_{k-1}^2 + (rho_k alpha_{k-1})^2 V)

Level k is rounded to a grid of 32 cells per deviation, the smaller of those of z_k given z_{k-1} and of z_k given z_{k+1} and x. So the
code of z_{k-1} sees z_k with the variance of its rounding more, 1/12 cell^2, for which it pays 1 / (24 * 32^2) nats; with what 24 bits of
precision cost, a level adds about 10^-4 bits per entry.

The first example finds no bits to take off. Pseudo-random ones are borrowed then, once for a message, and their length is part of it.
Examples are coded in groups, each of which takes off no more than is there: they are small at first, and grow with the message.

References:
    | Practical lossless compression with latent variables using bits back coding (Townsend et al., 2019) | https://arxiv.org/abs/1901.04866
    | Bit-Swap: recursive bits-back coding for lossless compression with hierarchical latent variables (Kingma et al., 2019) | https://arxiv.org/abs/1905.06845
    | Variational diffusion models (Kingma et al., 2021) | https://arxiv.org/abs/2107.00630
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from likely.coding.codec import Codec
from likely.coding.normal import normal
from likely.coding.stack import Stack
from likely.errors import StoreError

__all__ = ["Chain", "Rung", "chained", "in_groups", "rungs"]

_CELLS = 32  # per deviation
_CUT = 4.5  # deviations, beyond which a level's noise does not go: its outermost cells still have several counts
_SEEN = 8.0  # deviations, beyond which an entry is coded by an escape
_ENTROPY = 0.5 * math.log2(2 * math.pi * math.e)  # of a standard normal, bits
_SIZES = 16  # of groups, powers of two, so that a size takes few bits
_BORROWED = 2**10  # bits at least, which let short examples begin in groups of several
_SPARE = 6.0, 32.0  # bits that are taken off beyond the mean: deviations of their sum, and what the coder keeps to itself


@dataclass(frozen=True)
class Rung:
    """A level of noise z = alpha e + sigma eps and its grid.

    Attributes:
        alpha, sigma: of the variance-preserving scale.
        shrink, noise: a and s, of the level given the one before; of the first given e.
        fall: rho, the share of the level's noise that the one before does not have.
        cell: width of the cells.
        up, down: cells in the windows of z given the level before, and given the next one.
    """

    alpha: float
    sigma: float
    shrink: float
    noise: float
    fall: float
    cell: float
    up: int
    down: int


def rungs(log_snrs: Sequence[float]) -> list[Rung]:
    """The levels of a chain, from the cleanest, by their log-SNR."""
    made, falls = [], [1.0, *(-math.expm1(later - sooner) for sooner, later in pairwise(log_snrs)), 1.0]
    alpha_before = 1.0
    for k, log_snr in enumerate(log_snrs):
        alpha, sigma = math.sqrt(1 / (1 + math.exp(-log_snr))), math.sqrt(1 / (1 + math.exp(log_snr)))
        noise, back = sigma * math.sqrt(falls[k]), sigma * math.sqrt(falls[k + 1])
        cell = min(noise, back) / _CELLS
        # what e may add to the way back, if no more is known of it than its own noisy value says and its deviation is one
        later = log_snrs[k + 1] if k + 1 < len(log_snrs) else -math.inf
        widest = math.hypot(back, falls[k + 1] * alpha / math.sqrt(1 + math.exp(later)))
        up, down = (math.ceil(deviations * width / cell) for deviations, width in ((_CUT, noise), (_SEEN, widest)))
        made.append(Rung(alpha, sigma, alpha / alpha_before, noise, falls[k], cell, up, down))
        alpha_before = alpha
    return made


@dataclass(frozen=True)
class Chain:
    """What a diffusion model says at the levels of its chain.

    Attributes:
        lift: codes of x [n, *shape] -> e [n, *shape] float64.
        denoise: (z [n, *shape], number of the level) -> mean and variance of e.
        decoder: z_0 -> the codec of x given it.
    """

    rungs: list[Rung]
    lift: Callable[[Tensor], Tensor]
    denoise: Callable[[Tensor, int], tuple[Tensor, Tensor]]
    decoder: Callable[[Tensor], Codec]

    def value(self, k: int, z: Tensor) -> Tensor:
        """Integers of level k -> their reals."""
        return z.double() * self.rungs[k].cell

    def up(self, k: int, before: Tensor) -> Codec:
        """Of level k given the one before, or e."""
        rung = self.rungs[k]
        mean = before * (rung.shrink / rung.cell)
        return normal(mean, torch.full_like(mean, rung.noise / rung.cell), rung.up, open_ends=False)

    def down(self, k: int, z: Tensor) -> Codec:
        """Of level k - 1 given level k, integers."""
        rung, below, there = self.rungs[k], self.rungs[k - 1], self.value(k, z)
        mean, var = self.denoise(there, k)
        mean = (1 - rung.fall) / rung.shrink * there + rung.fall * below.alpha * mean
        std = (rung.fall * below.sigma**2 + (rung.fall * below.alpha) ** 2 * var).sqrt()
        return normal(mean / below.cell, std / below.cell, below.down)

    def prior(self, n: int, shape: Sequence[int]) -> Codec:
        """Of the last level."""
        last = self.rungs[-1]
        mean = torch.zeros(n, *shape, dtype=torch.float64)
        return normal(mean, torch.full_like(mean, 1 / last.cell), last.down)

    @property
    def bits_taken(self) -> float:
        """Bits of an entry that are off the stack at most before they are put back, in the mean."""
        cells = [(rung.sigma / rung.cell, rung.noise / rung.cell) for rung in self.rungs]
        return max(math.log2(sooner[0]) + math.log2(later[1]) for sooner, later in pairwise(cells)) + 2 * _ENTROPY


def chained(chain: Chain, shape: Sequence[int]) -> Codec:
    """A codec of codes x [n, *shape], all of them in lockstep."""
    last = len(chain.rungs) - 1

    @torch.no_grad()
    def push(stack: Stack, x: Tensor) -> None:
        z = chain.up(0, chain.lift(x)).pop(stack, len(x))
        chain.decoder(chain.value(0, z)).push(stack, x)
        for k in range(1, last + 1):
            below, z = z, chain.up(k, chain.value(k - 1, z)).pop(stack, len(x))
            chain.down(k, z).push(stack, below)
        chain.prior(len(x), shape).push(stack, z)

    @torch.no_grad()
    def pop(stack: Stack, n: int) -> Tensor:
        z = chain.prior(n, shape).pop(stack, n)
        for k in range(last, 0, -1):
            below = chain.down(k, z).pop(stack, n)
            chain.up(k, chain.value(k - 1, below)).push(stack, z)
            z = below
        x = chain.decoder(chain.value(0, z)).pop(stack, n)
        chain.up(0, chain.lift(x)).push(stack, z)
        return x

    return Codec(push, pop)


def in_groups(part: Callable[[slice], Codec], shape: Sequence[int], bits: float, most: int) -> Codec:
    """A codec of examples [n, *shape] by groups that each take off what those before them have left.

    Args:
        part: the codec of some of the examples in lockstep.
        bits: of an entry, that are taken off before they are put back, in the mean.
        most: examples in a group.

    A message may be pushed in several calls and popped in one.
    """
    entries = math.prod(shape)
    need = entries * bits + _SPARE[0] * math.sqrt(entries) + _SPARE[1]
    words, kinds = math.ceil(max(need, _BORROWED) / 32), torch.tensor([2 * _SIZES])

    def push(stack: Stack, x: Tensor) -> None:
        start = 0
        while start < len(x):
            borrows = len(stack) < need
            if borrows:
                stack.borrow(words)
            size = min(most, len(x) - start, int(len(stack) / need))
            power = min(max(size, 1).bit_length(), _SIZES) - 1
            rows = slice(start, start + 2**power)
            part(rows).push(stack, x[rows])
            stack.push_uniform(torch.tensor([2 * power + borrows]), kinds)
            start = rows.stop

    def pop(stack: Stack, n: int) -> Tensor:
        parts, left = [], n
        while left:
            power, borrowed = divmod(int(stack.pop_uniform(kinds)), 2)
            size = 2**power
            if size > left:
                raise StoreError(f"The next {size} examples were coded together, {left} of them cannot be decoded.", "Decode all of them.")
            parts.append(part(slice(left - size, left)).pop(stack, size))
            if borrowed:
                stack.give_back(words)
            left -= size
        return torch.cat([torch.zeros(0, *shape, dtype=torch.int64), *reversed(parts)])

    return Codec(push, pop)
