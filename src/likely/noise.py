"""Random numbers: a seeded context, and noise that depends on a row's content and nothing else.

A bound's Monte Carlo noise is a pure function of (seed, hash of the row, draw), so a reported
likelihood does not depend on the order of the examples, on the batch, or on the rank.
"""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

__all__ = ["Noise", "log_mean_exp", "reseed", "row_hash", "seeded"]

_GOLDEN = -7046029254386353131  # 2**64 / golden ratio, as int64
_MIX_1 = -4658895280553007687  # multipliers of SplitMix64
_MIX_2 = -7723592293110705685


def reseed(seed: int) -> None:
    """Seed torch's global generators; where only the CPU's is there, without the cost of preparing others."""
    (torch if torch.accelerator.is_available() else torch.default_generator).manual_seed(seed)


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Run a block under its own random state (torch, numpy, python); None leaves the state alone."""
    if seed is None:
        yield
        return
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        reseed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def _shift_right(bits: Tensor, by: int) -> Tensor:
    """Logical right shift of int64 (torch's own shift carries the sign)."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _mix(bits: Tensor) -> Tensor:
    """SplitMix64's finaliser: every input bit changes every output bit."""
    bits = (bits ^ _shift_right(bits, 30)) * _MIX_1
    bits = (bits ^ _shift_right(bits, 27)) * _MIX_2
    return bits ^ _shift_right(bits, 31)


def row_hash(x: Shaped[Tensor, "batch ..."], seed: int = 0) -> Int64[Tensor, " batch"]:
    """A 64-bit hash of each row's content, [batch, ...] -> int64 [batch]; equal on every device."""
    flat = x.detach().reshape(len(x), -1)
    values = flat.double().view(torch.int64) if flat.is_floating_point() else flat.long()
    place = _mix(torch.arange(1, values.shape[1] + 1, device=x.device) * _GOLDEN)
    return _mix(_mix(values + place).sum(1) + _signed(seed * _GOLDEN))


def _signed(number: int) -> int:
    """Any integer wrapped to int64."""
    return (number + 2**63) % 2**64 - 2**63


class Noise:
    """Noise for `draws` copies of each row of a batch, draw-major: [draws * batch, *shape].

    With a seed it is a pure function of (seed, row content, draw, number of the call); without
    one it comes from torch's global generator, as training wants.
    """

    def __init__(self, x: Tensor, draws: int = 1, seed: int | None = None) -> None:
        self.draws, self.batch, self.device = draws, len(x), x.device
        self._keys = None if seed is None else row_hash(x, seed)
        self._calls = 0

    def uniform(self, *shape: int) -> Tensor:
        """Uniform on the open interval (0, 1), float64."""
        if self._keys is None:
            u = torch.rand(self.draws * self.batch, *shape, device=self.device, dtype=torch.float64)
            return u.clamp_min(2.0**-54)
        self._calls += 1
        size = math.prod(shape)
        place = torch.arange(self.draws * size, device=self.device).view(self.draws, 1, size)
        bits = _mix(self._keys[None, :, None] + _mix((place + 1) * _GOLDEN + self._calls))
        # 2**-53 (k + 1/2) stays inside (0, 1) in float64 for all k < 2**52
        u = (_shift_right(bits, 12).double() + 0.5) * 2.0**-52
        return u.reshape(self.draws * self.batch, *shape)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal, float64."""
        if self._keys is None:
            return torch.randn(self.draws * self.batch, *shape, device=self.device).double()
        return torch.special.ndtri(self.uniform(*shape))

    def of(self, rows: Tensor) -> "Noise":
        """Noise of one draw for each of these rows (of draws * batch), as if each were an example: for a model of what was drawn there."""
        noise = Noise(rows)
        if self._keys is not None:
            noise._keys = _mix(self._keys[rows % self.batch] + (rows // self.batch + 1) * _GOLDEN)
        return noise

    def repeat(self, x: Tensor) -> Tensor:
        """`x` once per draw, in the order of the noise."""
        return x if self.draws == 1 else x.repeat(self.draws, *[1] * (x.ndim - 1))


def log_mean_exp(nats: Float[Tensor, " rows"], draws: int) -> Float[Tensor, " batch"]:
    """log of the mean over draws of exp(nats), [draws * batch] -> [batch]."""
    return nats.view(draws, -1).logsumexp(0) - math.log(draws)
