"""A likelihood is a value with its kind: exact, a lower bound, numerical, or an estimate."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from likely.space import Space

__all__ = ["SYMBOLS", "Bits", "Kind", "LogProb", "bits", "compose", "format_bits", "of_text"]

Kind = Literal["exact", "lower bound", "numerical", "estimate"]

# How a code length of this kind is printed. A lower bound on log p is an upper bound on bits.
SYMBOLS: dict[Kind, str] = {"exact": "=", "lower bound": "<=", "numerical": "~", "estimate": "~"}
_WEAKNESS: tuple[Kind, ...] = ("exact", "numerical", "lower bound", "estimate")


def compose(*kinds: Kind) -> Kind:
    """The kind of a sum of terms: exact of exact is exact, otherwise the weakest of them."""
    return max(kinds, key=_WEAKNESS.index)


@dataclass(frozen=True)
class LogProb:
    """log p(x) of a batch, and how far to believe it.

    Attributes:
        nats: log-probability (mass) or log-density of each example, shape [batch], float64.
        kind: what the number is; composition by `compose`.
        stderr: standard error of each value where it is a Monte Carlo estimate, [batch].
        lower, upper: bounds on log p(x) where both sides are known, [batch].
        how: what the number rests on, such as "uniform dequantization, K=64".
    """

    nats: Float[Tensor, " batch"]
    kind: Kind
    stderr: Float[Tensor, " batch"] | None = None
    lower: Float[Tensor, " batch"] | None = None
    upper: Float[Tensor, " batch"] | None = None
    how: str = ""

    def __add__(self, other: "LogProb") -> "LogProb":
        """The joint log p of two parts, with the kind that both allow; standard errors add in squares."""
        errors = [e for e in (self.stderr, other.stderr) if e is not None]
        return LogProb(
            self.nats + other.nats,
            compose(self.kind, other.kind),
            stderr=torch.stack(errors).square().sum(0).sqrt() if errors else None,
            how="; ".join(dict.fromkeys(h for h in (self.how, other.how) if h)),
        )

    def __len__(self) -> int:
        return len(self.nats)

    def __getitem__(self, rows: slice | Tensor) -> "LogProb":
        """Those of some examples."""
        return replace(self, **{name: part[rows] for name, part in self._parts()})

    def with_rows(self, rows: Tensor, other: "LogProb") -> "LogProb":
        """The same with `other` in the place of those of some examples."""
        return replace(
            self,
            **{name: part.index_put((rows,), new.to(part)) for (name, part), (_, new) in zip(self._parts(), other._parts(), strict=True)},
        )

    def _parts(self) -> list[tuple[str, Tensor]]:
        """What there is for each example, by name."""
        each = [(name, getattr(self, name)) for name in ("nats", "stderr", "lower", "upper")]
        return [(name, part) for name, part in each if part is not None]

    def but(self, how: str) -> "LogProb":
        """The same values, resting on `how`."""
        return replace(self, how=how)


@dataclass(frozen=True)
class Bits:
    """The mean code length (or negative log-density) of a set of examples, ready to print.

    Attributes:
        value: mean over examples, in `unit`; lower is better.
        stderr: standard error of the mean, in `unit`.
        n: number of examples.
    """

    value: float
    unit: str
    kind: Kind
    stderr: float
    n: int
    how: str = ""

    def __str__(self) -> str:
        return f"{format_bits(self.value, self.kind, self.stderr)} {self.unit}"


def format_bits(value: float, kind: Kind, stderr: float | None = None) -> str:
    """`= 1.234`, `<= 1.234`, `~ 1.234 +- 0.005`: symbol, value, and the error where there is one."""
    error = f" +- {stderr:.3f}" if stderr is not None and math.isfinite(stderr) else ""
    return f"{SYMBOLS[kind]} {value:.3f}{error}"


def of_text(logprob: LogProb, space: "Space") -> LogProb:
    """log p of the bytes that tokens spell: at least that of the tokens, since other segmentations spell them, too."""
    if not space.vocabulary:
        return logprob
    how = "; ".join(h for h in (logprob.how, f"one segmentation ({len(space.vocabulary)} tokens)") if h)
    return replace(logprob, kind=compose(logprob.kind, "lower bound"), how=how)


def bits(logprob: LogProb, space: "Space", x: Tensor | None = None, weights: Tensor | None = None) -> Bits:
    """Mean code length of `logprob` in the unit of `space`.

    The unit is bits/dim for grids, bits/byte for byte sequences (bits/symbol else), bits/row for
    tables, and nats/row of density where the data have no grid. The standard error joins the
    spread between examples with the Monte Carlo error of each. Of tokens the examples x themselves
    are needed, since they differ in bytes. Where examples count `weights` [batch] times, the mean is weighed.
    """
    logprob = of_text(logprob, space)
    per = space.nats_per_unit if x is None else space.nats_per_unit_of(x).mean().item()
    value = -logprob.nats.double() / per
    n = len(value)
    share = torch.full_like(value, 1 / n) if weights is None else weights.double() / weights.sum()
    mean = share @ value
    variance = (share.square() @ (value - mean).square()).item() * n / (n - 1) if n > 1 else math.nan
    if logprob.stderr is not None and logprob.kind == "estimate":
        # An estimate shares one log Z: its error is common to all rows and does not average out.
        variance += (logprob.stderr.double().mean().item() / per) ** 2
    return Bits(mean.item(), space.unit, logprob.kind, math.sqrt(variance) if variance == variance else math.nan, n, logprob.how)
