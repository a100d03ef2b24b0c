"""What every family does: a `Model`, and the recipe that it is trained by."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from likely.errors import DataError, UsageError
from likely.space import Space

if TYPE_CHECKING:
    pass

__all__ = [
    "Batches",
    "Model",
    "Recipe",
    "evaluating",
    "expand_given",
    "in_double",
    "in_precision",
]

Batches = Iterable[tuple[Tensor, Tensor | None]]  # re-iterable: each pass yields (x, given) anew


@dataclass(frozen=True)
class Recipe:
    """How a family trains well unattended.

    Attributes:
        optimizer: "adamw", or "muon" for the matrices of linear maps and AdamW for the rest.
        lr: peak learning rate; a warm-up of `warmup` steps, then a cosine to zero over the budget.
        clip: largest gradient norm; larger ones are scaled down.
        ema: decay of the averaged weights that are evaluated and stored; 0 for none. It starts
            short and grows, so short runs are averaged over their tail only.
        batch: examples per step.
        bf16: whether bf16 autocast is allowed in training, where it measures faster.
        patience: evaluations on the validation split without a better one before training stops; 0 for never.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip: float = 1.0
    warmup: int = 50
    ema: float = 0.999
    batch: int = 64
    bf16: bool = True
    patience: int = 10
    optimizer: Literal["adamw", "muon"] = "adamw"


class Model(nn.Module, ABC):
    """A family of distributions over a `Space`, fitted by gradient steps on `forward`.

    Class data:
        summary: one line for `likely models`.
        layouts: the layouts of data that the family models.
        finite_only: whether only entries of finitely many levels.
        turns: names of the submodules that train in turn at each step; ("",) is the whole model.
        recipe: how it trains (an instance may override it, by its space); sizes: options of "tiny", "small" and "base".
        rank_buffers: names of buffers that differ by rank (replay buffers, persistent chains).
        net_role: role of the net that takes whatever options the constructor does not know; "" for none.
        words: what each option that is a word can be.
    """

    summary: ClassVar[str]
    layouts: ClassVar[frozenset[str]] = frozenset({"grid", "columns"})
    finite_only: ClassVar[bool] = False
    turns: ClassVar[tuple[str, ...]] = ("",)
    recipe: Recipe = Recipe()
    sizes: ClassVar[dict[str, dict[str, Any]]] = {"tiny": {}, "small": {}, "base": {}}
    rank_buffers: ClassVar[tuple[str, ...]] = ()
    net_role: ClassVar[str] = ""
    words: ClassVar[dict[str, tuple[str, ...]]] = {}

    def __init_subclass__(cls, **how: Any) -> None:
        super().__init_subclass__(**how)
        if not hasattr(cls.sample, "checks"):
            cls.sample = _checking(cls.sample)  # type: ignore[method-assign]

    def __init__(self, space: Space, *, given: Space | None = None, size: str = "small") -> None:
        super().__init__()
        if space.layout not in self.layouts:
            raise UsageError(f"{type(self).__name__} does not model {space.layout} data, only {', '.join(sorted(self.layouts))}.")
        if not self.serves(space):
            raise UsageError(
                f"{type(self).__name__} models entries of finitely many levels, not a {space.named}.", "`flow` models any numbers."
            )
        if size not in self.sizes:
            raise UsageError(f"Unknown size '{size}'.", f"Known: {', '.join(self.sizes)}.")
        self.space, self.given_space, self.size = space, given, size
        self.config: dict[str, Any] = {}  # how the registry built it: model, size, options

    @property
    def called(self) -> str:
        """What its users know it by: the name that it was built by, or its class."""
        return self.config.get("model") or type(self).__name__

    @classmethod
    def serves(cls, space: Space) -> bool:
        """Whether the family models data of this kind."""
        return space.layout in cls.layouts and not (cls.finite_only and any(s.states is None for s in space.supports))

    @classmethod
    def options(cls, size: str, **chosen: Any) -> dict[str, Any]:
        """Options of a size, overridden by those chosen (not None)."""
        if size not in cls.sizes:
            raise UsageError(f"Unknown size '{size}'.", f"Known: {', '.join(cls.sizes)}.")
        return {**cls.sizes[size], **{name: value for name, value in chosen.items() if value is not None}}

    @abstractmethod
    def forward(self, x: Tensor, given: Tensor | None = None, *, turn: str = "") -> Tensor:
        """Training loss of each example, [batch]; in nats where it means something."""

    @abstractmethod
    def sample(self, n: int, given: Tensor | None = None) -> Tensor:
        """Draw n examples in data units, [n, *shape]; `given` has n rows, or one for all. A family is asked for one at least.

        A family may add keyword-only options of its sampler, such as `temperature`.
        """


def _checking(sample: Callable[..., Any]) -> Callable[..., Any]:
    """A family's `sample`, asked for one example at least and told of `given` only what the model was fitted with, one row for each."""

    @wraps(sample)
    def checked(self: Model, n: int, given: Tensor | None = None, **options: Any) -> Any:
        if n < 0:
            raise UsageError(f"Cannot draw {n} examples.", "Ask for none or more.")
        if given is not None and self.given_space is not None:
            self.given_space.check(given)
        given = expand_given(given, n)
        if n:
            return sample(self, n, given, **options)
        if options:  # they say what is returned, and may be wrong
            return _none_of(sample(self, 1, None if given is None else given.new_zeros(1, *given.shape[1:]), **options))
        at = next((t.device for t in (*self.parameters(), *self.buffers())), None)
        return torch.empty(0, *self.space.shape, dtype=self.space.dtype, device=at)

    checked.checks = True  # type: ignore[attr-defined]
    return checked


def _none_of(drawn: Any) -> Any:
    """No rows of what was drawn, whether examples or examples with their log-probabilities."""
    if isinstance(drawn, tuple):
        return type(drawn)(*map(_none_of, drawn))
    return drawn[:0]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout, whatever mode the model is in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def in_precision(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """A module's numbers in another precision for a while, in which it computes; bit for bit as they were afterwards."""
    own = [(t, t.data) for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    try:
        for tensor, data in own:
            tensor.data = data.to(dtype)
        yield
    finally:
        for tensor, data in own:
            tensor.data = data


@contextmanager
def in_double(module: nn.Module) -> Iterator[None]:
    """All that a module computes, in double precision for a while, from how it lifts data to reals on."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with in_precision(module, torch.float64):
            yield
    finally:
        torch.set_default_dtype(usual)


def expand_given(given: Tensor | None, n: int) -> Tensor | None:
    """Rows of `given` for n examples: one row serves all.

    Raises: DataError if there are neither n rows nor one.
    """
    if given is None or len(given) == n:
        return given
    if len(given) != 1:
        raise DataError(f"Got {len(given)} rows of `given` for {n} examples.", "Give one row, or one per example.")
    return given.expand(n, *given.shape[1:])


def gather_batches(batches: Batches) -> tuple[Tensor, Tensor | None]:
    """All of re-iterable batches as one (x, given), for solvers that want the whole split in memory."""
    xs, givens = zip(*batches, strict=True)
    return torch.cat(list(xs)), None if givens[0] is None else torch.cat(_tensors(givens))


def _tensors(values: Sequence[Tensor | None]) -> list[Tensor]:
    return [v for v in values if v is not None]
