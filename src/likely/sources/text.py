"""Text -> one stream of bytes per split, and all of its overlapping windows as examples.

Text is bytes: nothing is decoded, so any file can be read. One text is split contiguously: test is
its last tenth, validation the last twentieth of what is before it. Several files are split by file.
Asked for, the bytes of each split are then put together to tokens, whose vocabulary is learnt from
the training split: the same bytes are tested, whatever the tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from likely.dataset import Data, Split, permutation_split
from likely.errors import DataError, UsageError
from likely.sources.examples import PARTS, PERMUTED, Options, card_of
from likely.sources.files import list_files, read_bytes
from likely.sources.tokens import encode, learn
from likely.space import MISSING, Space

__all__ = ["prompt_of", "text_data", "text_files", "windows"]

_LEAST_BYTES = 100


def text_files(path: Path) -> list[bytes]:
    """The contents of a text file, or of each file of a folder."""
    return [read_bytes(p) for p in (list_files(path) if path.is_dir() else [path])]


def text_data(texts: Sequence[bytes], options: Options, name: str, source: str) -> Data:
    """Split texts, and cut each split into overlapping windows (a view of its stream)."""
    if options.given is not None:
        raise DataError(f"A text has nothing to condition on called '{options.given}'.", "Leave `given` out to fit p(x).")
    if sum(map(len, texts)) < _LEAST_BYTES:
        raise DataError(f"The text has {sum(map(len, texts))} bytes; at least {_LEAST_BYTES} are needed.")
    parts, method = _contiguous(texts[0]) if len(texts) == 1 else _by_file(texts, options.seed)
    if not all(parts):
        raise DataError("A split of the text is empty.", "Join the files, or give more of them.")
    vocabulary = () if options.tokens is None else learn(parts[0], options.tokens)
    streams = [encode(part, vocabulary) for part in parts]
    window = min(options.window, *map(len, streams))
    splits = {part: Split(s.unfold(0, window, 1), stream=s) for part, s in zip(PARTS, streams, strict=True)}
    card = {**card_of(source, options, method, splits), "window": window, "files": len(texts), **_not_utf8(texts)}
    if vocabulary:
        card |= {"tokens": len(vocabulary), "bytes_per_token": round(sum(map(len, parts)) / sum(map(len, streams)), 3)}
    space = Space.tokens(window, vocabulary) if vocabulary else Space.sequence(window)
    return Data(space, splits["train"], splits["valid"], splits["test"], name=name, card=card)


def _contiguous(text: bytes) -> tuple[list[bytes], str]:
    test = len(text) - len(text) // 10
    valid = test - test // 20
    method = "contiguous: test the last tenth, validation the last twentieth of what is before it"
    return [text[:valid], text[valid:test], text[test:]], method


def _by_file(texts: Sequence[bytes], seed: int) -> tuple[list[bytes], str]:
    if len(texts) < 3:
        raise DataError(f"Got {len(texts)} texts; one is split contiguously, several by file, for which at least 3 are needed.")
    parts = permutation_split(len(texts), seed)
    return [b"".join(texts[i] for i in part.sort().values.tolist()) for part in parts], PERMUTED.format("files")


def _not_utf8(texts: Sequence[bytes]) -> dict[str, Any]:
    """How many texts are not UTF-8: they are read as bytes all the same."""
    count = sum(not _is_utf8(text) for text in texts)
    return {"not_utf8": count} if count else {}


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def windows(text: bytes, space: Space) -> Tensor:
    """Consecutive windows of a text in the symbols of `space`, [windows, length], the last one padded with -1."""
    stream, length = encode(text, space.vocabulary), space.dims
    padded = torch.cat([stream, stream.new_full((-len(stream) % length,), MISSING)])
    return padded.view(-1, length)


def prompt_of(text: object, space: Space) -> Tensor:
    """What a text begins or ends with, as symbols [m] of `space`; a string as UTF-8.

    Raises: UsageError if the space has no bytes.
    """
    if not space.textual:
        raise UsageError(f"A {space} has no strings to begin or end with.", "Prompts and stops are for models of texts.")
    return encode(text if isinstance(text, bytes) else str(text).encode(), space.vocabulary)
