"""What every reader returns (`Examples`), and the way from there to a `Data` with its three splits.

The split is a function of the seed and the number of examples alone; files, or whatever else the
reader calls a group, stay whole. The card says how to make the same split again, and holds a
fingerprint of it that `check_fingerprint` compares.
"""

import hashlib
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from likely.dataset import Data, Split, Truth, permutation_split
from likely.errors import DataError, UsageError, nearest
from likely.noise import row_hash
from likely.sources.augmenting import check_augment
from likely.sources.tokens import check_size
from likely.space import Space

__all__ = ["PARTS", "PERMUTED", "Examples", "Options", "card_of", "into_data"]

PARTS = ("train", "valid", "test")
PERMUTED = "numpy.random.default_rng(seed).permutation of {}: test the last fifth, validation the last tenth of what is before it"


_UNCONDITIONAL = "Leave `given` out to fit p(x)."
_CAPTIONS = "Put photo.txt beside photo.png, or a metadata.csv with columns file_name and text into the folder; or pass a list of strings."


@dataclass(frozen=True)
class Options:
    """How to read a source; `likely.load` documents each."""

    levels: int | None = None
    given: Any = None
    seed: int = 0
    layout: str | None = None
    window: int = 128
    tile: int | None = None
    resize: int | tuple[int, int] | None = None
    precision: int | None = None
    missing: tuple[str, ...] = ()
    nominal: tuple[str, ...] = ()
    header: bool | None = None
    augment: tuple[str, ...] = ()
    missing_labels: str = "error"
    count: int | None = None
    tokens: int | str | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        sizes = {"levels": self.levels, "window": self.window, "tile": self.tile, "count": self.count, "precision": self.precision}
        for name, value in sizes.items():
            if value is not None and value < (name != "precision"):
                raise UsageError(f"{name}={value} is too small.")
        if self.tokens is not None:
            check_size(self.tokens)
        if self.missing_labels not in ("error", "drop"):
            raise UsageError(f"Unknown missing_labels='{self.missing_labels}'.", nearest(self.missing_labels, ("error", "drop")))

    def record(self) -> dict[str, Any]:
        """The options that differ from the default, as plain JSON values; arrays are left out."""
        plain = {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), str | int | tuple | list) and v != f.default}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in plain.items()}


@dataclass(frozen=True)
class Examples:
    """Examples of one space before they are split.

    Attributes:
        x: [n, *space.shape].
        labels: what the source knows besides x, [n, *label_space.shape]; becomes `given` when asked for.
        known: which rows of `labels` are there, bool [n]; all where None.
        group: number of the file each row is from, [n]; a split keeps groups whole.
        part: 0, 1, 2 (train, valid, test) of each row where the source says so, [n].
        weights: how many times each row counts, [n]; once where None.
        notes: what was counted while reading, for the card.
    """

    space: Space
    x: Tensor
    labels: Tensor | None = None
    label_space: Space | None = None
    known: Tensor | None = None
    group: Tensor | None = None
    part: Tensor | None = None
    weights: Tensor | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    truth: Truth | None = None

    def rows(self, keep: Tensor) -> "Examples":
        """The examples at `keep`."""
        picked = {f: v[keep] for f in ("x", "labels", "known", "group", "part", "weights") if (v := getattr(self, f)) is not None}
        return replace(self, **picked)


def into_data(examples: Examples, options: Options, name: str, source: str) -> Data:
    """Split, count duplicates, standardise on the training split, and write the card."""
    check_augment(options.augment, examples.space)
    if options.tokens is not None:
        raise UsageError(f"Tokens are parts of texts, and {name} is a {examples.space.named}.", "Leave `tokens` out.")
    examples, dropped = _conditioned(examples, options)
    index = _split(examples, options.seed)
    splits = {p: _taken(examples, i) for p, i in zip(PARTS, index, strict=True)}
    asked: dict[str, Any] = {"augment": list(options.augment)} if options.augment else {}
    if hasattr(options.given, "shape"):
        asked["given"] = "an array in memory"
    card = {**card_of(source, options, _method(examples), splits), **examples.notes, **dropped, **asked}
    given = examples.label_space
    if given is not None and examples.labels is not None:
        given = given.standardised(splits["train"].given)  # type: ignore[arg-type]
    return Data(examples.space, **splits, given=given, name=name, card=card, truth=examples.truth).standardised()


def _taken(examples: Examples, index: Tensor) -> Split:
    labels, weights = (None if values is None else values[index] for values in (examples.labels, examples.weights))
    return Split(examples.x[index], labels, weights=weights)


def card_of(source: str, options: Options, method: str, splits: dict[str, Split]) -> dict[str, Any]:
    """What every card says: the source, how it was read and split, and what repeats."""
    of = {part: _hashes(split) for part, split in splits.items()}
    sizes = {part: len(split.x if split.stream is None else split.stream) for part, split in splits.items()}
    split = {"method": method, "seed": options.seed, "sizes": sizes, "fingerprint": _fingerprint(of)}
    return {"source": source, "options": options.record(), "split": split, "duplicates": _duplicates(of)}


def _method(examples: Examples) -> str:
    if examples.part is not None:
        return "as the source says; validation, if it has none, by a seeded permutation of the training rows"
    return PERMUTED.format("rows" if examples.group is None else "files")


def _conditioned(examples: Examples, options: Options) -> tuple[Examples, dict[str, Any]]:
    """Keep the labels only where `given` asks for them; rows without one are an error, or dropped and counted."""
    if options.given is None:
        return replace(examples, labels=None, label_space=None, known=None), {}
    asked = {options.given} if isinstance(options.given, str) else set(options.given) if isinstance(options.given, list | tuple) else set()
    held = [] if examples.label_space is None else [s.name for s in examples.label_space.supports]
    if examples.labels is None or examples.label_space is None or not asked <= {"label", *held}:
        held += ["caption"] if "caption_files" in examples.notes else []
        hint = _CAPTIONS if "caption" in asked else f"It has: {', '.join(held)}." if held else _UNCONDITIONAL
        raise DataError(f"This source has nothing to condition on called '{options.given}'.", hint)
    if examples.known is None or bool(examples.known.all()):
        return examples, {}
    lost = int((~examples.known).sum())
    if options.missing_labels != "drop":
        first = int((~examples.known).nonzero()[0])
        raise DataError(
            f"{lost} of {len(examples.x)} examples have no label (the first is number {first}).",
            "Label them, pass --missing-labels drop (missing_labels=), or leave `given` out.",
        )
    return examples.rows(examples.known), {"dropped_without_label": lost}


def _split(examples: Examples, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    if examples.part is not None:
        return _split_as_told(examples.part, seed)
    groups = torch.arange(len(examples.x)) if examples.group is None else examples.group.unique()
    if len(groups) < 3:
        what = "example" if examples.group is None else "file"
        plural = "s" if len(groups) != 1 else ""
        raise DataError(f"Got {len(groups)} {what}{plural}; at least 3 are needed, one each to train, validate and test.")
    parts = permutation_split(len(groups), seed)
    if examples.group is None:
        return parts
    where = torch.empty(len(groups), dtype=torch.int64)
    for number, part in enumerate(parts):
        where[part] = number
    of_row = where[torch.searchsorted(groups, examples.group)]
    return tuple((of_row == number).nonzero()[:, 0] for number in range(3))  # type: ignore[return-value]


def _split_as_told(part: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    train, valid, test = ((part == number).nonzero()[:, 0] for number in range(3))
    if not len(valid):
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(train)))
        cut = len(train) - -(-len(train) // 10)
        train, valid = train[order[:cut]], train[order[cut:]]
    for name, rows in zip(PARTS, (train, valid, test), strict=True):
        if not len(rows):
            raise DataError(f"The source's own split leaves no {name} examples.")
    return train, valid, test


def _hashes(split: Split) -> np.ndarray:
    """A 64-bit content hash of each example; for a text, of each window at a multiple of its length."""
    return torch.cat([row_hash(part) for part in split.apart().x.split(256)]).numpy()


def _fingerprint(hashes: dict[str, np.ndarray]) -> str:
    """What identifies the examples and how they are split, as 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in PARTS:
        digest.update(hashes[part].astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def _duplicates(hashes: dict[str, np.ndarray]) -> dict[str, int]:
    """Examples that repeat an earlier one of their split, and those of a split that an earlier split has, too."""
    within = {f"within_{part}": len(h) - len(np.unique(h)) for part, h in hashes.items()}
    pairs = (("valid", "train"), ("test", "train"), ("test", "valid"))
    return {**within, **{f"{a}_in_{b}": int(np.isin(hashes[a], hashes[b]).sum()) for a, b in pairs}}
