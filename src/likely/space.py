r"""What ONE example is, and the measure its likelihood is taken in.

A `Space` has a layout (grid C x H x W, sequence L, columns D, set N x D) and one `Support` per
channel or column. It is the only place of dequantization, standardisation and their log-volumes:

    log p(x) >= E_q(u|x) [ log p(u) - log q(u|x) ]        (an equality where u is a function of x)

`relax` draws u ~ q(u|x) and returns -log q(u|x) in nats; `snap` is the way back. Per support:

    real      u = (x - center) / scale,                    nats = -log scale          (exact)
    ordinal,  u = (i + U - center) / scale, U ~ U[0, 1),   nats = -log scale          (a bound)
    decimal   where x is the integer i on the data's grid
    nominal   K <= 16: K normals whose largest is swapped into place x,
              nats = -log K - sum log N(u_k)               (argmax surjection, a bound)
              K = 2 or K > 16: one half-normal per binary digit of x, its sign the digit,
              nats = -sum log 2 N(u_b)
    missing   of a number: a half-normal flag as above and u ~ N(0, 1), nats = -log N(u);
              of a nominal: one more category

References:
    | RNADE: The real-valued neural autoregressive density-estimator (Uria et al., 2013) | https://arxiv.org/abs/1306.0186
    | Argmax flows and multinomial diffusion (Hoogeboom et al., 2021) | https://arxiv.org/abs/2102.05379
"""

import itertools
import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from likely.errors import DataError
from likely.logprob import LogProb
from likely.noise import Noise, log_mean_exp

__all__ = ["MISSING", "Relaxed", "Space", "Support", "from_grid", "to_grid"]

Layout = Literal["grid", "sequence", "columns", "set"]
MISSING = -1  # the code of a missing cell in an integer table; NaN in a real one
_ARGMAX_UP_TO = 16
_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class Support:
    """The values that one channel or column can take.

    `ordinal` and `nominal` have `levels` values 0..levels-1. `decimal` is the unbounded grid
    (origin + i) / 10**decimals, i in Z; its code is `from_grid(i)`, which steps over -1, the code
    of a missing cell. `real` has a density. `center` and `scale` standardise numbers, in grid
    steps for ordinal and decimal; they are learnt from the training split.
    """

    kind: Literal["ordinal", "nominal", "decimal", "real"]
    levels: int = 0
    name: str = ""
    missing: bool = False
    categories: tuple[str, ...] = ()
    decimals: int = 0
    origin: int = 0
    center: float = 0.0
    scale: float = 1.0

    @property
    def numeric(self) -> bool:
        return self.kind != "nominal"

    @property
    def states(self) -> int | None:
        """Number of distinct values, the missing one included; None if there is no end of them."""
        return self.levels + self.missing if self.kind in ("ordinal", "nominal") else None

    @property
    def codes(self) -> int:
        """Real dimensions that a nominal's states are relaxed to."""
        states = self.levels + self.missing
        return states if 2 < states <= _ARGMAX_UP_TO else max(1, (states - 1).bit_length())


@dataclass(frozen=True)
class Relaxed:
    """Discrete data lifted to the reals: `value` [draws * batch, ...], draw-major, and -log q(u|x) in `nats`."""

    value: Tensor
    nats: Tensor
    exact: bool
    draws: int = 1

    def log_prob(self, log_density: Tensor, *, how: str = "") -> LogProb:
        """log p(x) from the model's log-density at `value`, the draws joined by log mean exp."""
        nats = log_mean_exp(log_density.double() + self.nats, self.draws)
        if self.exact:
            return LogProb(nats, "exact", how=how)
        dequantized = f"uniform dequantization, K={self.draws}"
        return LogProb(nats, "lower bound", how="; ".join(h for h in (how, dequantized) if h))


def to_grid(code: Tensor) -> Tensor:
    """Code of a decimal cell -> grid index; codes step over -1, so that -1 can mean missing."""
    return torch.where(code >= 0, code, code + 1)


def from_grid(index: Tensor) -> Tensor:
    """Grid index -> code of a decimal cell."""
    return torch.where(index >= 0, index, index - 1)


def _normal_nats(u: Tensor) -> Tensor:
    """-log N(u; 0, 1)."""
    return 0.5 * u.square() + _LOG_SQRT_2PI


def _flat_sum(nats: Tensor) -> Tensor:
    return nats.double().flatten(1).sum(1)


@dataclass(frozen=True)
class Space:
    """What one example is: layout, shape, and a support per channel (grid) or column.

    Attributes:
        layout: "grid" (shape C, H, W), "sequence" (L,), "columns" (D,) or "set" (N, D).
        shape: of one example; for sequences and sets the first number is the MAXIMUM length.
        supports: one per channel of a grid, per column of a table or set; one for a sequence.
        variable: examples may be shorter than the maximum; the rest is padded with -1 (NaN where
            real), and the likelihood includes the length.
        unordered: sets only: log N! is counted, so that the likelihood is that of the set.
    """

    layout: Layout
    shape: tuple[int, ...]
    supports: tuple[Support, ...]
    variable: bool = False
    unordered: bool = False

    def __post_init__(self) -> None:
        rank = {"grid": 3, "sequence": 1, "columns": 1, "set": 2}.get(self.layout)
        if rank is None or len(self.shape) != rank or min(self.shape) < 1:
            raise DataError(
                f"A {self.layout} space cannot have the shape {self.shape}.",
                "Grids are (C, H, W), sequences (L,), columns (D,), sets (N, D).",
            )
        want = {"grid": self.shape[0], "sequence": 1, "columns": self.shape[0], "set": self.shape[-1]}[self.layout]
        if len(self.supports) != want:
            raise DataError(f"A {self.layout} space of shape {self.shape} needs {want} supports, got {len(self.supports)}.")

    # -- construction ---------------------------------------------------------------------------

    @classmethod
    def grid(cls, channels: int, height: int, width: int, levels: int | None = None) -> "Space":
        """Images: `levels` integer values per channel, or real ones where it is None."""
        return cls("grid", (channels, height, width), (_number(levels),) * channels)

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
    def points(cls, count: int, dims: int, levels: int | None = None, *, variable: bool = False, unordered: bool = True) -> "Space":
        """Sets of exactly (or at most) `count` points in `dims` dimensions."""
        return cls("set", (count, dims), (_number(levels),) * dims, variable=variable, unordered=unordered)

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
            return {"grid": "nats/dim (density)", "columns": "nats/row (density)"}.get(self.layout, "nats (density)")
        byte = "bits/byte" if self.levels == 256 else "bits/symbol"
        return {"grid": "bits/dim", "columns": "bits/row", "sequence": byte, "set": "bits/set"}[self.layout]

    @property
    def nats_per_unit(self) -> float:
        """Nats of one example -> `unit`: divide by this."""
        per = self.dims if self.layout in ("grid", "sequence") else 1
        return per * (math.log(2) if self.discrete else 1.0)

    # -- data of this space ---------------------------------------------------------------------

    def check(self, x: Tensor) -> None:
        """Raise a `DataError` that names what is wrong if `x` is not a batch of this space."""
        if tuple(x.shape[1:]) != self.shape or x.ndim != len(self.shape) + 1:
            raise DataError(f"Got data of shape {tuple(x.shape)}, expected [batch, {', '.join(map(str, self.shape))}].")
        if x.is_floating_point() == self.discrete:
            want = "integers (torch.int64)" if self.discrete else "floats (torch.float32)"
            raise DataError(f"Got values of type {x.dtype}, expected {want}.", "Load the data with `likely.load` or convert it.")
        if len(x) == 0 or self.layout == "set":
            return
        low, high = x.flatten(2).amin((0, 2)) if x.ndim > 2 else x.amin(0), x.flatten(2).amax((0, 2)) if x.ndim > 2 else x.amax(0)
        for i, s in enumerate(self.supports):
            lo, hi = (low.min(), high.max()) if self.layout == "sequence" else (low[i], high[i])
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

    def standardised(self, x: Tensor) -> "Space":
        """This space with centers and scales learnt from the training examples `x`, per channel or column."""
        if self.layout == "sequence":
            return self
        by_entry = x.transpose(1, -1) if self.layout == "set" else x
        return replace(self, supports=tuple(_standardised(s, by_entry[:, i]) for i, s in enumerate(self.supports)))

    def enumerate(self, limit: int = 2**18) -> Tensor:
        """Every example of a small discrete space, [states, *shape]; proofs sum over it.

        Raises: DataError if there are more than `limit`, or infinitely many.
        """
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
        s = self.supports[entry % len(self.supports) if self.layout == "set" else entry // per_channel]
        if s.states is None:
            raise DataError("Only spaces of finitely many levels can be enumerated.")
        return list(range(-1 if s.missing or self.variable else 0, s.levels))

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
        if self.layout in ("sequence", "set"):
            raise DataError(
                f"{self.layout.capitalize()} data cannot be relaxed to reals yet.",
                "Use a model of discrete symbols, such as autoregressive.",
            )
        width = len(self.numbers) + len(self.flags) + sum(self.supports[i].codes for i in self.nominals)
        return Space(self.layout, (width, *self.shape[1:]), (Support("real"),) * width)

    def relax(self, x: Tensor, draws: int = 1, noise: Noise | None = None) -> Relaxed:
        """Lift a batch to centred, scaled reals of `self.relaxed`.

        Args:
            x: [batch, *shape].
            draws: copies of each example, draw-major; ignored where nothing is random, or given `noise`.
            noise: where the randomness comes from; torch's global generator by default.
        """
        exact = not self.discrete and not self.flags
        noise = noise or Noise(x, draws)
        noise = Noise(x, 1) if exact else noise
        x = noise.repeat(x)
        blocks, nats = [], x.new_zeros(len(x), dtype=torch.float64)
        if self.numbers:
            value, extra = self._relax_numbers(x, noise)
            blocks.append(value)
            nats = nats + extra
        for i in self.nominals:
            value, extra = _relax_nominal(x[:, i], self.supports[i], noise)
            blocks.append(value)
            nats = nats + extra
        return Relaxed(torch.cat(blocks, 1).to(torch.get_default_dtype()), nats, exact, noise.draws)

    def _relax_numbers(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        x = x[:, self.numbers] if self.nominals else x
        lost = torch.isnan(x) if x.is_floating_point() else x < 0
        number = x.double() if x.is_floating_point() else self._grid_index(x).double()
        if self.discrete:
            number = number + noise.uniform(*x.shape[1:])
        center, scale = self._affine(x)
        value, nats = (number - center) / scale, -scale.log().expand_as(number)
        if not self.flags:
            return value, _flat_sum(nats)
        is_lost = torch.zeros_like(lost)
        which = [self.numbers.index(i) for i in self.flags]
        is_lost[:, which] = lost[:, which] & (x[:, which] == MISSING if self.discrete else lost[:, which])
        filler = noise.normal(*x.shape[1:])
        value, nats = torch.where(is_lost, filler, value), torch.where(is_lost, _normal_nats(filler), nats)
        flag, flag_nats = _relax_sign(is_lost[:, which], noise)
        return torch.cat([value, flag], 1), _flat_sum(nats) + flag_nats

    def _grid_index(self, x: Tensor) -> Tensor:
        """Codes of the numeric entries -> grid indices (only decimals step over -1)."""
        decimal = self._per_number([self.supports[i].kind == "decimal" for i in self.numbers], x)
        return torch.where(decimal.bool(), to_grid(x), x)

    def _affine(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Center and scale of the numeric entries, float64, shaped to broadcast over `like`."""
        supports = [self.supports[i] for i in self.numbers]
        return self._per_number([s.center for s in supports], like), self._per_number([s.scale for s in supports], like)

    def _per_number(self, values: list[Any], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=like.device).view(-1, *[1] * (like.ndim - 2))

    def cells(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Edges of each number's cell on the relaxed scale, [batch, numbers, ...] each, float64.

        The first and last cell of an ordinal are open (-inf, inf), so a family that integrates its
        density over cells has an exact mass. Missing cells are (-inf, inf): they integrate to one.
        """
        codes = x[:, self.numbers]
        index, (center, scale) = self._grid_index(codes).double(), self._affine(codes)
        levels = self._per_number([s.levels if s.kind == "ordinal" else math.inf for s in (self.supports[i] for i in self.numbers)], codes)
        lost = codes == MISSING
        lower = torch.where(lost | ((index <= 0) & levels.isfinite()), -math.inf, (index - center) / scale)
        upper = torch.where(lost | (index >= levels - 1), math.inf, (index + 1 - center) / scale)
        return lower, upper

    def snap(self, u: Tensor) -> Tensor:
        """Put reals of `self.relaxed` back on the data's own values, [batch, *shape]."""
        count, flags = len(self.numbers), self.flags
        number, rest = u[:, :count].double(), u[:, count + len(flags) :]
        out = torch.empty(len(u), *self.shape, dtype=self.dtype, device=u.device)
        if count:
            center, scale = self._affine(number)
            out[:, self.numbers] = self._snap_numbers(number * scale + center, u[:, count : count + len(flags)] > 0)
        for i in self.nominals:
            block, rest = rest[:, : self.supports[i].codes], rest[:, self.supports[i].codes :]
            out[:, i] = _snap_nominal(block, self.supports[i])
        return out

    def _snap_numbers(self, value: Tensor, lost: Tensor) -> Tensor:
        supports = [self.supports[i] for i in self.numbers]
        if not self.discrete:
            out, empty = value.to(self.dtype), math.nan
        else:
            top = self._per_number([s.levels - 1 if s.kind == "ordinal" else 2.0**52 for s in supports], value)
            bottom = self._per_number([0.0 if s.kind == "ordinal" else -(2.0**52) for s in supports], value)
            out, empty = from_grid(value.floor().clamp(bottom, top).long()), MISSING
        for j, i in enumerate(self.flags):
            k = self.numbers.index(i)
            out[:, k] = out[:, k].masked_fill(lost[:, j], empty)
        return out

    # -- storage --------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Space":
        supports = tuple(Support(**{**s, "categories": tuple(s["categories"])}) for s in record["supports"])
        return cls(record["layout"], tuple(record["shape"]), supports, record["variable"], record["unordered"])

    def __str__(self) -> str:
        sizes = "x".join(map(str, self.shape))
        kinds = sorted({f"{s.kind}({s.states})" if s.states else s.kind for s in self.supports})
        return f"{self.layout} {sizes} of {', '.join(kinds)}"


def _number(levels: int | None) -> Support:
    """An ordinal of `levels`, scaled as if its values were uniform; or a real."""
    if levels is None:
        return Support("real")
    return Support("ordinal", levels, center=levels / 2, scale=levels / math.sqrt(12))


def _standardised(s: Support, x: Tensor) -> Support:
    if not s.numeric:
        return s
    there = torch.isfinite(x) if s.kind == "real" else x != MISSING
    present = x if there.all() else x[there]  # selecting is slow on large images, which miss nothing
    if present.numel() == 0:
        return s
    number = present.double() if s.kind == "real" else (to_grid(present) if s.kind == "decimal" else present).double() + 0.5
    variance = number.var(correction=0).item() + (0.0 if s.kind == "real" else 1 / 12)
    return replace(s, center=number.mean().item(), scale=math.sqrt(variance) or 1.0)


def _relax_sign(positive: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """One half-normal per bit, its sign the bit, and the nats of the density 2 N(u)."""
    u = noise.normal(*positive.shape[1:]).abs()
    return torch.where(positive, u, -u), _flat_sum(_normal_nats(u) - math.log(2))


def _relax_nominal(code: Tensor, s: Support, noise: Noise) -> tuple[Tensor, Tensor]:
    """Codes [batch, ...] -> reals [batch, s.codes, ...] and nats; a missing cell is the last state."""
    states = s.levels + s.missing
    code = torch.where(code < 0, states - 1, code)
    if s.codes != states:
        digits = torch.stack([(code >> b) & 1 for b in range(s.codes)], 1)
        return _relax_sign(digits.bool(), noise)
    u = noise.normal(states, *code.shape[1:])
    place, top = code[:, None], u.argmax(1, keepdim=True)
    largest, displaced = u.gather(1, top), u.gather(1, place)
    u = u.scatter(1, top, displaced).scatter(1, place, largest)
    return u, _flat_sum(_normal_nats(u).sum(1, keepdim=True) - math.log(states))


def _snap_nominal(u: Tensor, s: Support) -> Tensor:
    states = s.levels + s.missing
    if s.codes == states:
        code = u.argmax(1)
    else:
        place = torch.tensor([1 << b for b in range(s.codes)], device=u.device).view(-1, *[1] * (u.ndim - 2))
        code = ((u > 0) * place).sum(1).clamp_max(states - 1)
    return torch.where(code == states - 1, MISSING, code) if s.missing else code
