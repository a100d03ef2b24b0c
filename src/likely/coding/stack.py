"""A stack of coded symbols: constriction's asymmetric numeral systems, its panics turned into our errors.

Last in, first out: what is pushed first is popped last. That is what lets codecs compose, bits-back
included; a codec that codes in an order pushes in the reverse of it.

References:
    | Asymmetric numeral systems (Duda, 2009) | https://arxiv.org/abs/0902.0271
    | Understanding entropy coding with asymmetric numeral systems (Bamler, 2022) | https://arxiv.org/abs/2201.01741
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from likely.coding.integer import PRECISION, claim_bits, claim_bits_of_normal
from likely.errors import LikelyError, StoreError

__all__ = ["Stack"]

_DIGIT = 12  # bits that one uniform symbol covers at most
_DIGITS = 5  # and so ranges up to 2**72


@contextmanager
def _boundary(doing: str) -> Iterator[None]:
    """The coder's errors as ours; a Rust panic is a BaseException, which no `except Exception` would meet."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, LikelyError) or not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
            raise
        reason = str(error).partition("\n")[0]
        raise LikelyError(f"The entropy coder failed while {doing}: {reason}") from error


class Stack:
    """Symbols in, 32-bit words out.

    Attributes:
        claim: sum of -log2 p over what was pushed, less what was popped, in bits, p being that of
            the integer tables: the length that the words should have.
        borrowed: bits of it that say nothing, see `borrow`.
    """

    def __init__(self, words: bytes = b"") -> None:
        import constriction

        if len(words) % 4:
            raise StoreError(f"A coded stream has whole 32-bit words, not {len(words)} bytes.", "Is the file cut short?")
        stream = constriction.stream  # pyright: ignore[reportAttributeAccessIssue]  # a module made in Rust
        self._models = stream.model
        with _boundary("reading a stream"):
            coder = stream.stack.AnsCoder
            self._coder = coder(np.frombuffer(words, dtype="<u4").astype(np.uint32)) if words else coder()
        self.claim, self.borrowed = 0.0, 0

    def __len__(self) -> int:
        """Bits on the stack, whole words."""
        return self._coder.num_bits()

    def to_bytes(self) -> bytes:
        """The words, little-endian."""
        return self._coder.get_compressed().astype("<u4").tobytes()

    def push(self, symbols: Tensor, table: Tensor) -> None:
        """Push symbols [n] under their tables of counts [n, K], so that the first row is popped first.

        Raises: LikelyError for a symbol outside its table.
        """
        if len(symbols) == 0:
            return
        if int(symbols.min()) < 0 or int(symbols.max()) >= table.shape[-1]:
            raise LikelyError(f"Symbols {int(symbols.min())}..{int(symbols.max())} are outside a table of {table.shape[-1]}.")
        if table.shape[-1] > 1:
            self._encode(symbols, self._models.Categorical(perfect=False), _probabilities(table))
        self.claim += claim_bits(table, symbols).sum().item()

    def pop(self, table: Tensor) -> Tensor:
        """Pop one symbol under each table of counts [n, K] -> [n] int64."""
        if len(table) == 0 or table.shape[-1] == 1:
            return torch.zeros(len(table), dtype=torch.int64)
        symbols = self._decode(self._models.Categorical(perfect=False), _probabilities(table))
        self.claim -= claim_bits(table, symbols).sum().item()
        return symbols

    def push_uniform(self, offsets: Tensor, sizes: Tensor) -> None:
        """Push integers 0 <= offset < size <= 2**60, int64 [n] each: the leading bits, then 12-bit digits."""
        low, width, lead = _digits(sizes)
        for shift, bits in reversed(list(zip(low, width, strict=True))):
            self._push_range((offsets >> shift) & ((1 << bits) - 1), 1 << bits)
        self._push_range(offsets >> (low[0] + width[0]), lead)

    def pop_uniform(self, sizes: Tensor) -> Tensor:
        """Pop what `push_uniform` pushed for `sizes` [n] -> offsets [n]."""
        _, width, lead = _digits(sizes)
        offsets = self._pop_range(lead)
        for bits in width:
            offsets = (offsets << bits) | self._pop_range(1 << bits)
        return offsets

    def push_normal(self, symbols: Tensor, mean: Tensor, std: Tensor, reach: int) -> None:
        """Push integers from -reach to reach, [n], of normals whose mass in the cells about them is coded; mean and std [n] in cells."""
        if len(symbols):
            self._encode(symbols, self._models.QuantizedGaussian(-reach, reach), _float64(mean), _float64(std))
            self.claim += claim_bits_of_normal(symbols, mean, std, reach).sum().item()

    def pop_normal(self, mean: Tensor, std: Tensor, reach: int) -> Tensor:
        """Pop what `push_normal` pushed -> [n] int64."""
        if not len(mean):
            return torch.zeros(0, dtype=torch.int64)
        symbols = self._decode(self._models.QuantizedGaussian(-reach, reach), _float64(mean), _float64(std))
        self.claim -= claim_bits_of_normal(symbols, mean, std, reach).sum().item()
        return symbols

    def borrow(self, words: int) -> None:
        """Push so many 32-bit words of pseudo-random bits, for codecs that first take off bits to put them back later."""
        self.push_uniform(_random_words(words), torch.full((words,), 2**32))
        self.borrowed += 32 * words

    def give_back(self, words: int) -> None:
        """Pop what was borrowed. Raises: StoreError if it is not what it was, as in a stream that is damaged."""
        if not torch.equal(self.pop_uniform(torch.full((words,), 2**32)), _random_words(words)):
            raise StoreError("A coded stream does not end as it began.", "Is the file damaged, or of another model?")
        self.borrowed -= 32 * words

    def _push_range(self, digits: Tensor, ranges: Tensor) -> None:
        coded = ranges > 1  # a range of one costs nothing, and the coder panics at it
        if bool(coded.any()):
            self._encode(digits[coded], self._models.Uniform(), _int32(ranges[coded]))
            self.claim += ranges[coded].double().log2().sum().item()

    def _pop_range(self, ranges: Tensor) -> Tensor:
        coded = ranges > 1
        digits = torch.zeros_like(ranges)
        if bool(coded.any()):
            digits[coded] = self._decode(self._models.Uniform(), _int32(ranges[coded]))
            self.claim -= ranges[coded].double().log2().sum().item()
        return digits

    def _encode(self, symbols: Tensor, model: Any, *parameters: np.ndarray) -> None:
        with _boundary("pushing symbols"):
            self._coder.encode_reverse(_int32(symbols), model, *parameters)

    def _decode(self, model: Any, *parameters: np.ndarray) -> Tensor:
        with _boundary("popping symbols"):
            return torch.from_numpy(self._coder.decode(model, *parameters).astype(np.int64))


def _random_words(count: int) -> Tensor:
    return torch.from_numpy(np.random.Generator(np.random.PCG64(0)).integers(0, 2**32, count))


def _int32(values: Tensor) -> np.ndarray:
    return np.ascontiguousarray(values.cpu().numpy(), dtype=np.int32)


def _float64(values: Tensor) -> np.ndarray:
    return np.ascontiguousarray(values.cpu().numpy(), dtype=np.float64)


def _probabilities(table: Tensor) -> np.ndarray:
    # the coder reads memory as if it were contiguous, whatever the strides say
    return np.ascontiguousarray(table.cpu().numpy(), dtype=np.float64) * 2.0**-PRECISION


def _digits(sizes: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Lowest bit and width of each digit, from the top, and the range of what leads them; all [n]."""
    bits = torch.frexp((sizes - 1).double()).exponent.long()
    tail = (bits - _DIGIT).clamp_min(0)
    high = [(tail - _DIGIT * j).clamp_min(0) for j in range(_DIGITS + 1)]
    return high[1:], [a - b for a, b in itertools.pairwise(high)], ((sizes - 1) >> tail) + 1
