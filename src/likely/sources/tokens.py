"""Tokens: byte-level byte-pair encoding (BPE), or whole words, of which any bytes can be put together.

A vocabulary is a tuple of spellings in which the character chr(b) stands for the byte b. The 256 bytes come first, so every
string has a segmentation; then what was learnt, in order of merging (BPE) or of frequency (words). Nothing else is kept:
a text is cut into pieces (words with the blank before them, numbers, punctuation, blanks), a piece that is a token is that token,
and in any other piece the neighbours whose join comes first in the vocabulary are merged, over and over. Decoding joins the spellings.

The segmentation is one of many that spell the same bytes, so its log p is a lower bound of theirs:

    log p(bytes) = log sum_{t spells bytes} p(t) >= log p(encode(bytes))

References:
    | A new algorithm for data compression (BPE; Gage, 1994) | http://www.pennelynn.com/Documents/CUJ/HTML/94HTML/19940045.HTM
    | Neural machine translation of rare words with subword units (Sennrich et al., 2016) | https://arxiv.org/abs/1508.07909
    | Language models are unsupervised multitask learners (bytes as alphabet; Radford et al., 2019)
    | You should evaluate your language model on marginal likelihood over tokenisations (Cao and Rimell, 2021) | https://arxiv.org/abs/2109.02550
"""

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from likely.errors import UsageError

__all__ = ["BYTES", "WORDS", "check_size", "decode", "encode", "learn"]

BYTES = tuple(map(chr, range(256)))
WORDS = "words"
_OFTEN, _MOST_WORDS = 3, 2**16  # a word is a token if the training text has it so often; and no more than so many are
_LONGEST = 64  # bytes of a piece: merging takes more than linear time in them

# As GPT-2 cuts, over bytes: those beyond ASCII count as letters, as they mostly are in UTF-8.
_PIECES = re.compile(
    r"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z\x80-\xff]{1,N}| ?[0-9]{1,N}| ?[^\sA-Za-z0-9\x80-\xff]{1,N}|\s{1,N}(?!\S)|\s".replace(
        "N", str(_LONGEST)
    ),
    re.ASCII,
)


def check_size(size: int | str) -> None:
    """Raise a UsageError unless a vocabulary can be learnt of `size`."""
    if size != WORDS and (isinstance(size, str) or size < len(BYTES)):
        raise UsageError(f"Cannot learn {size!r} tokens.", f"Give a number from {len(BYTES)} on (the bytes are among them), or '{WORDS}'.")


def learn(text: bytes, size: int | str) -> tuple[str, ...]:
    """The vocabulary of a training text: at most `size` tokens by BPE, or its words of three and more occurrences."""
    check_size(size)
    return _words(text) if isinstance(size, str) else _merged(text, size)


def _merged(text: bytes, size: int) -> tuple[str, ...]:
    from tokenizers import Tokenizer, models, trainers

    learner: Any = trainers.BpeTrainer(vocab_size=size, min_frequency=2, initial_alphabet=list(BYTES), show_progress=False)
    bpe = Tokenizer(models.BPE())
    bpe.train_from_iterator(_pieces(text), learner)
    ids = bpe.get_vocab()
    return tuple(sorted(ids, key=lambda spelling: ids[spelling]))


def _words(text: bytes) -> tuple[str, ...]:
    often = [(-count, piece) for piece, count in Counter(_pieces(text)).items() if count >= _OFTEN and len(piece) > 1]
    return BYTES + tuple(piece for _, piece in sorted(often)[:_MOST_WORDS])


def _pieces(text: bytes) -> Iterator[str]:
    return (match[0] for match in _PIECES.finditer(text.decode("latin-1")))


def encode(text: bytes, vocabulary: tuple[str, ...] = ()) -> Tensor:
    """The text as token ids, int64 [tokens]; as its bytes where there is no vocabulary."""
    if not vocabulary:
        return torch.from_numpy(np.frombuffer(text, np.uint8).astype(np.int64))
    bpe = _segmenter(vocabulary)
    spell = cache(lambda piece: [token.id for token in bpe.tokenize(piece)])
    return torch.from_numpy(np.fromiter(chain.from_iterable(map(spell, _pieces(text))), np.int64))


@lru_cache(8)
def _segmenter(vocabulary: tuple[str, ...]) -> Any:
    """The merges are the pairs of tokens whose join is a token, ranked as their joins are."""
    from tokenizers import models

    ids = {spelling: i for i, spelling in enumerate(vocabulary)}
    pairs = [(token[:i], token[i:]) for token in vocabulary for i in range(1, len(token)) if token[:i] in ids and token[i:] in ids]
    return models.BPE(vocab=ids, merges=pairs, ignore_merges=True)


def decode(ids: Tensor, vocabulary: tuple[str, ...] = ()) -> bytes:
    """The bytes that token ids [tokens] spell; padding (-1) spells none."""
    known = ids[ids >= 0].tolist()
    return "".join(vocabulary[i] for i in known).encode("latin-1") if vocabulary else bytes(known)
