"""What ONE example is, and the measure its likelihood is taken in.

A `Space` has a layout (grid C x H x W, sequence L or, of real vectors, C x L, columns D, set N x D) and one
`Support` per channel or column. It is the only place of dequantization, standardisation and their log-volumes,
whose formulas are in `relaxation.py`.
"""

import itertools
import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from likely import pointsets, relaxation
from likely.errors import DataError
from likely.noise import Noise
from likely.relaxation import Relaxed, Within
from likely.support import MISSING, Support, from_grid, to_grid

__all__ = ["MISSING", "Relaxed", "Space", "Support", "from_grid", "to_grid"]

Layout = Literal["grid", "sequence", "columns", "set"]


@dataclass(frozen=True)
class Space:
    """What one example is: layout, shape, and a support per channel (grid) or column.

    Attributes:
        layout: "grid" (shape C, H, W), "sequence" (L,) or, of real vectors, (C, L), "columns" (D,) or "set" (N, D).
        shape: of one example; the length of sequences and sets is the MAXIMUM.
        supports: one per channel of a grid, per column of a table or set; one for a sequence, or one per channel.
        variable: examples may be shorter than the maximum; the rest is padded with -1 (NaN where
            real), and the likelihood includes the length.
        unordered: sets only: log N! is counted, so that the likelihood is that of the set.
        lengths: shares of the sets of 1, 2, ... points where their number varies, learnt from the training split.
    """

    layout: Layout
    shape: tuple[int, ...]
    supports: tuple[Support, ...]
    variable: bool = False
    unordered: bool = False
    lengths: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        ranks, rank = {"grid": (3,), "sequence": (1, 2), "columns": (1,), "set": (2,)}, len(self.shape)
        if rank not in ranks.get(self.layout, ()) or min(self.shape) < 1:
            raise DataError(
                f"A {self.layout} space cannot have the shape {self.shape}.",
                "Grids are (C, H, W), sequences (L,) or (C, L), columns (D,), sets (N, D).",
            )
        symbols = self.layout == "sequence" and rank == 1
        want = 1 if symbols else self.shape[-1 if self.layout == "set" else 0]
        if len(self.supports) != want:
            raise DataError(f"A {self.layout} space of shape {self.shape} needs {want} supports, got {len(self.supports)}.")

    # -- construction ---------------------------------------------------------------------------

    @classmethod
    def grid(cls, channels: int, height: int, width: int, levels: int | None = None) -> "Space":
        """Images: `levels` integer values per channel, or real ones where it is None."""
        return cls("grid", (channels, height, width), (Support.number(levels),) * channels)

    @classmethod
    def columns(cls, *supports: Support) -> "Space":
        """A table with one support per column."""
        return cls("columns", (len(supports),), supports)

    @classmethod
    def reals(cls, dims: int) -> "Space":
        """Vectors of `dims` real numbers, which have a density."""
        return cls.columns(*(Support("real", name=f"x{i}") for i in range(dims)))

    @classmethod
    def sequence(cls, length: int, levels: int = 256, *, variable: bool = False) -> "Space":
        """Strings over `levels` symbols, of exactly (or, if `variable`, at most) `length`."""
        return cls("sequence", (length,), (Support("nominal", levels),), variable=variable)

    @classmethod
    def series(cls, channels: int, length: int) -> "Space":
        """Sequences of exactly `length` vectors of `channels` real numbers, which have a density."""
        return cls("sequence", (channels, length), (Support("real"),) * channels)

    @classmethod
    def tokens(cls, length: int, vocabulary: tuple[str, ...]) -> "Space":
        """Texts of `length` tokens; a token is spelt with a character chr(b) for each of its bytes b."""
        return cls("sequence", (length,), (Support("nominal", len(vocabulary), "token", categories=vocabulary),))

    @classmethod
    def points(cls, count: int, dims: int, levels: int | None = None, *, variable: bool = False, unordered: bool = True) -> "Space":
        """Sets of exactly (or at most) `count` points in `dims` dimensions."""
        return cls("set", (count, dims), (Support.number(levels),) * dims, variable=variable, unordered=unordered)

    @classmethod
    def label(cls, categories: tuple[str, ...] | int) -> "Space":
        """One class label, as used for `given`."""
        names = tuple(map(str, range(categories))) if isinstance(categories, int) else categories
        return cls.columns(Support("nominal", len(names), "label", categories=names))

    # -- measure --------------------------------------------------------------------------------

    @property
    def dims(self) -> int:
        return math.prod(self.shape)

    @property
    def discrete(self) -> bool:
        """Whether likelihoods are masses (of integers) and not densities."""
        return all(s.kind != "real" for s in self.supports)

    @property
    def dtype(self) -> torch.dtype:
        return torch.int64 if self.discrete else torch.float32

    @property
    def levels(self) -> int | None:
        """The common number of levels of all entries, if they have one."""
        states = {s.states for s in self.supports}
        return states.pop() if len(states) == 1 else None

    @property
    def unit(self) -> str:
        if not self.discrete:
            units = {"grid": "nats/dim (density)", "columns": "nats/row (density)", "set": "nats/set (density)"}
            return units.get(self.layout, "nats (density)")
        byte = "bits/byte" if self.textual else "bits/symbol"
        return {"grid": "bits/dim", "columns": "bits/row", "sequence": byte, "set": "bits/set"}[self.layout]

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Spellings of the tokens that a text's symbols are; none where symbols are bytes, or stand for themselves."""
        return self.supports[0].categories if self.layout == "sequence" else ()

    @property
    def textual(self) -> bool:
        """Whether an example is a text: its symbols are bytes, or tokens, which spell them."""
        return self.layout == "sequence" and (bool(self.vocabulary) or self.levels == 256)

    def sizes(self, x: Tensor) -> Tensor:
        """What each symbol of sequences counts for, shaped like x: a token for its bytes, any other for 1, padding for 0."""
        if not self.vocabulary:
            return (x >= 0).long()
        lengths = torch.tensor([len(spelling) for spelling in self.vocabulary], device=x.device)
        return lengths[x.clamp_min(0)].masked_fill(x < 0, 0)

    @property
    def nats_per_unit(self) -> float:
        """Nats of one example -> `unit`: divide by this.

        Raises: DataError for tokens, which differ in bytes: see `nats_per_unit_of`.
        """
        if self.vocabulary:
            raise DataError("Windows of tokens differ in bytes, so no one number turns nats into bits/byte.", "Use nats_per_unit_of(x).")
        per = self.dims if self.layout in ("grid", "sequence") else 1
        return per * (math.log(2) if self.discrete else 1.0)

    def nats_per_unit_of(self, x: Tensor) -> Tensor:
        """The same for each example, float64 [batch]: a text counts its own bytes, however short it is."""
        if self.layout != "sequence" or not self.discrete:
            return torch.full((len(x),), self.nats_per_unit, dtype=torch.float64, device=x.device)
        return math.log(2) * self.sizes(x).sum(1).clamp_min(1).double()

    # -- data of this space ---------------------------------------------------------------------

    def check(self, x: Tensor) -> None:
        """Raise a `DataError` that names what is wrong if `x` is not a batch of this space."""
        if tuple(x.shape[1:]) != self.shape or x.ndim != len(self.shape) + 1:
            raise DataError(f"Got data of shape {tuple(x.shape)}, expected [batch, {', '.join(map(str, self.shape))}].")
        if x.is_floating_point() == self.discrete:
            want = "integers (torch.int64)" if self.discrete else "floats (torch.float32)"
            raise DataError(f"Got values of type {x.dtype}, expected {want}.", "Load the data with `likely.load` or convert it.")
        if len(x) == 0:
            return
        if self.layout == "set":
            pointsets.check(self, x)
            return
        low, high = x.flatten(2).amin((0, 2)) if x.ndim > 2 else x.amin(0), x.flatten(2).amax((0, 2)) if x.ndim > 2 else x.amax(0)
        for i, s in enumerate(self.supports):
            lo, hi = (low[i], high[i]) if len(self.shape) > 1 or self.layout == "columns" else (low.min(), high.max())
            floor = MISSING if s.missing or self.layout == "sequence" else 0
            if s.states is not None and (lo < floor or hi >= s.levels):
                raise DataError(
                    f"Values {int(lo)}..{int(hi)} in entry {s.name or i} are outside 0..{s.levels - 1}.",
                    "Was the data loaded with other levels?",
                )
            if s.kind == "decimal" and not s.missing and bool((x[:, i] == MISSING).any()):
                raise DataError(f"Missing cells in column {s.name or i}, which had none when the model's schema was read.")
            if s.kind == "real" and not s.missing and not bool(torch.isfinite(lo) & torch.isfinite(hi)):
                raise DataError(f"NaN or infinite values in entry {s.name or i}.", "Remove or impute them first.")

    def canonical(self, x: Tensor) -> Tensor:
        """Examples as `enumerate` lists them: the points of unordered sets in lexicographic order, anything else as it is."""
        return pointsets.sorted_points(x) if self.unordered else x

    def standardised(self, x: Tensor) -> "Space":
        """This space with centers and scales learnt from the training examples `x`, per channel or column, and a table's atoms."""
        if not self.numbers:
            return self
        by_entry = x.transpose(1, -1) if self.layout == "set" else x
        supports = [s.standardised(by_entry[:, i]) for i, s in enumerate(self.supports)]
        if self.layout == "set" and self.variable:
            return replace(self, supports=tuple(supports), lengths=pointsets.shares(self, x))
        if self.layout == "columns":
            supports = [s.with_atoms(x[:, i]) for i, s in enumerate(supports)]
        return replace(self, supports=tuple(supports))

    def enumerate(self, limit: int = 2**18) -> Tensor:
        """Every example of a small discrete space, [states, *shape]; proofs sum over it.

        Raises: DataError if there are more than `limit`, or infinitely many.
        """
        if self.layout == "set":
            return pointsets.enumerated(self, [replace(self, variable=False)._values(i) for i in range(self.shape[1])], limit)
        per_entry = [self._values(i) for i in range(self.dims)]
        if math.prod(len(v) for v in per_entry) > limit:
            raise DataError(f"This space has more than {limit} states.")
        rows = torch.tensor(list(itertools.product(*per_entry)), dtype=torch.int64).view(-1, *self.shape)
        if self.variable:  # what follows an end is padding, too
            ended = (rows < 0).long().cummax(1).values.bool()
            rows = rows[(ended == (rows < 0)).flatten(1).all(1)]
        return rows

    def _values(self, entry: int) -> list[int]:
        per_channel = self.dims // len(self.supports)
        s = self.supports[entry if self.layout == "set" else entry // per_channel]
        if s.states is None:
            raise DataError("Only spaces of finitely many levels can be enumerated.")
        return list(range(-1 if s.missing or self.variable else 0, s.levels))

    # -- symbols --------------------------------------------------------------------------------

    @property
    def with_end(self) -> "Space":
        """The space of the symbols of strings that are predicted: of variable length, one more, their end."""
        if not self.variable or self.layout != "sequence":
            return self
        return replace(self, supports=(replace(self.supports[0], levels=self.supports[0].levels + 1),), variable=False)

    def ended(self, x: Tensor) -> Tensor:
        """Strings with the end in place of the padding where the length varies."""
        return x.masked_fill(x < 0, self.supports[0].levels) if self.variable else x

    def padded(self, symbols: Tensor) -> Tensor:
        """The inverse of `ended`."""
        return symbols.masked_fill(symbols == self.supports[0].levels, MISSING) if self.variable else symbols

    # -- relaxation -----------------------------------------------------------------------------

    @property
    def numbers(self) -> list[int]:
        """Entries that are numbers."""
        return [i for i, s in enumerate(self.supports) if s.numeric]

    @property
    def flags(self) -> list[int]:
        """Numeric entries that may be missing; each is relaxed with a flag."""
        return [i for i in self.numbers if self.supports[i].missing]

    @property
    def nominals(self) -> list[int]:
        return [i for i, s in enumerate(self.supports) if not s.numeric]

    @property
    def relaxed(self) -> "Space":
        """The real space that `relax` lands in: numbers first, then missing flags, then nominal codes."""
        if self.layout == "sequence" and self.nominals:
            raise DataError("Sequences of symbols cannot be relaxed to reals yet.", "Use a model of them, such as autoregressive.")
        if {"ordinal", "decimal"} & {s.kind for s in self.supports} and not self.discrete:
            raise DataError(
                "Reals beside numbers on a grid cannot be relaxed: one has a density, the other a mass.", "Give the reals a precision."
            )
        width = len(self.numbers) + len(self.flags) + sum(self.supports[i].codes for i in self.nominals)
        shape = (self.shape[0], width) if self.layout == "set" else (width, *self.shape[1:])
        return Space(self.layout, shape, (Support("real"),) * width, self.variable, self.unordered, self.lengths)

    def relax(self, x: Tensor, draws: int = 1, noise: Noise | None = None, within: Within | None = None) -> Relaxed:
        """Lift a batch to centred, scaled reals of `self.relaxed`.

        Args:
            x: [batch, *shape].
            draws: copies of each example, draw-major; ignored where nothing is random, or given `noise`.
            noise: where the randomness comes from; torch's global generator by default.
            within: where in their cells numbers are lifted to, one row per draw of `noise`; uniform by default.
        """
        if self.layout == "set":
            return pointsets.relax(self, x, draws, noise)
        return relaxation.relax(self, x, draws, noise, within)

    def snap(self, u: Tensor) -> Tensor:
        """Put reals of `self.relaxed` back on the data's own values, [batch, *shape]."""
        return pointsets.snap(self, u) if self.layout == "set" else relaxation.snap(self, u)

    def cells(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Edges of each number's cell on the relaxed scale, [batch, numbers, ...] each, float64.

        The first and last cell of an ordinal are open (-inf, inf), so a family that integrates its
        density over cells has an exact mass. Missing cells are (-inf, inf): they integrate to one.
        """
        return relaxation.cells(self, x)

    def affine(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Center and scale of the numeric entries, float64, shaped to broadcast over `like` [batch, numbers, ...]."""
        return relaxation.affine(self, like)

    # -- storage --------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Space":
        lists = ("categories", "atoms", "shares")
        supports = tuple(Support(**(s | {name: tuple(s[name]) for name in lists})) for s in record["supports"])
        own = record["variable"], record["unordered"], tuple(record.get("lengths", ()))
        return cls(record["layout"], tuple(record["shape"]), supports, *own)

    def __str__(self) -> str:
        sizes = "x".join(map(str, self.shape))
        kinds = sorted({f"{s.kind}({s.states})" if s.states else s.kind for s in self.supports})
        return f"{self.layout} {sizes} of {', '.join(kinds)}"

    @property
    def named(self) -> str:
        """What it is called in a sentence, after an article: `table of 6 columns (decimal)`."""
        n, (_, _, kinds) = len(self.supports), str(self).partition(" of ")
        return f"table of {n} column{'s' * (n != 1)} ({kinds})" if self.layout == "columns" else str(self)
