"""What a family may do besides what every `Model` does: a small ABC for each ability.

A family inherits exactly the abilities it has, so that the type says what a model can do and no
method raises "not supported". Public methods check their input and are final; a family writes the
underscored ones.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor, nn

from likely.dataset import Data
from likely.logprob import LogProb
from likely.model import Batches, Model, expand_given, in_double
from likely.noise import Noise
from likely.space import Relaxed, Space

if TYPE_CHECKING:
    from likely.coding import Codec
    from likely.distribution import ModelDistribution

__all__ = [
    "Amortised",
    "ClosedForm",
    "Coded",
    "Combined",
    "Drawn",
    "Fillable",
    "Filled",
    "Latent",
    "Likelihood",
    "Phase",
    "Primed",
    "Reparameterised",
    "Starts",
    "Stepwise",
    "Traced",
    "Tuned",
    "Varied",
    "Weighted",
]


class Drawn(NamedTuple):
    """Examples [n, *shape], and how likely the model holds each."""

    x: Tensor
    log_prob: LogProb


class Likelihood(ABC):
    """Says how likely data are.

    Class data:
        bound_draws: draws that evaluation tightens a bound with.
        bound_sampler: arguments of `sample` for the sampler that the bound belongs to, where the default is another.
    """

    bound_draws: ClassVar[int] = 1
    bound_sampler: ClassVar[dict[str, Any]] = {}
    space: Space
    given_space: Space | None

    @final
    def log_prob(self, x: Tensor, given: Tensor | None = None, *, draws: int = 1, seed: int = 0) -> LogProb:
        """log p(x) or log p(x | given) of each example, in nats of the data's own measure.

        Args:
            x: [batch, *shape] in data units.
            given: [batch, *given shape] for a conditional model; one row serves all.
            draws: draws of a bound (dequantizations, importance samples); more are tighter.
            seed: of the bound's noise, which depends on it and each row's content alone.

        Raises: DataError for what is not of the model's spaces, or another number of rows of `given`.
        """
        self.space.check(x)
        if self.given_space is not None and given is not None:
            self.given_space.check(given)
        given = expand_given(given, len(x))
        if len(x) == 0:  # of no examples it is of the kind that it is of any
            any_given = None if given is None else given.new_zeros(1, *given.shape[1:])
            return self.log_prob(x.new_zeros(1, *x.shape[1:]), any_given, draws=draws, seed=seed)[:0]
        found = self._log_prob(x, given, Noise(x, draws, seed))
        far = found.nats.isnan() | (found.nats == torch.inf)
        if bool(far.any()):
            found = self._of_far(found, far, x, given, Noise(x[far], draws, seed))
        if self.given_space is None or given is not None:
            return found
        return replace(found, how="; ".join(part for part in ("without what is given", found.how) if part))

    @abstractmethod
    def _log_prob(self, x: Tensor, given: Tensor | None, noise: Noise) -> LogProb: ...

    @torch.no_grad()
    def _of_far(self, found: LogProb, far: Tensor, x: Tensor, given: Tensor | None, noise: Noise) -> LogProb:
        """What was found, in double precision where rows are so far out that single precision overflowed. Weights of NaN still give NaN."""
        assert isinstance(self, Model)
        with in_double(self):
            again = self._log_prob(x[far], given if given is None else given[far], noise)
        return found.with_rows(far, again)

    @final
    def scored(self, x: Tensor, given: Tensor | None = None) -> Drawn:
        """What the model drew, and how likely it holds each, where that does not come with the draw."""
        return Drawn(x, self.log_prob(x, expand_given(given, len(x)), draws=self.bound_draws))

    @final
    def distribution(self, given: Tensor | None = None, *, draws: int = 1) -> "ModelDistribution":
        """The model as a `torch.distributions.Distribution`; its batch shape is that of `given` [*batch, *given shape], () without it."""
        from likely.distribution import ModelDistribution

        return ModelDistribution(self, given, draws=draws)


class Primed(ABC):
    """Has conditionals, so that a long stretch of symbols is one sequence and can follow what is known.

    Attributes:
        adapts: whether it learns a stretch as it goes, each symbol after it has been predicted.
    """

    adapts: bool = False

    @property
    def backward(self) -> bool:
        """Whether it reads a stretch from its end, so that what is before it tells nothing."""
        return False

    @property
    @abstractmethod
    def goes_on(self) -> bool:
        """Whether it can follow a prompt, however long: it reads from left to right, and nothing ends what it reads."""

    @abstractmethod
    def log_prob_after(self, stretch: Tensor, prefix: Tensor) -> Tensor:
        """log p of each symbol of `stretch` [n] given those before it, `prefix` [m] first; nats [n], float64."""

    @abstractmethod
    def follow(
        self, prompt: Tensor, given: Tensor | None = None, *, stop: Tensor | Sequence[Tensor] | None = None, **keep: Any
    ) -> Iterator[Tensor]:
        """Symbols [n] that follow `prompt` [n, m], one after another without end, or until each text has met a `stop`.

        `keep` filters them (see `decoding.Filter`); a text that has stopped goes on with -1.
        """


class Stepwise(Primed):
    """Has the whole distribution of each next symbol of a string, so that others can be mixed with it at each step.

    Symbols are those of `space.with_end`; logits need not be normalised.
    """

    @abstractmethod
    def logits(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        """x [B, L] -> logits [B, L, symbols] at each place given the symbols before it."""

    @abstractmethod
    def logits_after(self, stretch: Tensor, prefix: Tensor) -> Iterator[Tensor]:
        """Blocks [n, symbols] that join to logits at each place of `stretch` given what is before it, `prefix` first."""

    @abstractmethod
    def init_state(self, n: int, given: Tensor | None = None) -> Any:
        """State before the first symbol of n strings."""

    @abstractmethod
    def step(self, state: Any, x_i: Tensor | None) -> tuple[Any, Tensor]:
        """Take the previous symbols [n] (None at first), give the next ones' logits [n, symbols]."""


class Latent(ABC):
    """Has a latent space in which log p(x) >= E[log p(z) + nats]."""

    @property
    @abstractmethod
    def latent(self) -> Space: ...

    @abstractmethod
    def encode(self, x: Tensor, given: Tensor | None = None, draws: int = 1, noise: Noise | None = None) -> Relaxed:
        """z, draw-major [draws * batch, *latent shape], with a flow's log-det or log p(x|z) - log q(z|x) as nats.

        `noise` is where the randomness comes from (and how many draws); torch's global generator by default.
        """

    @abstractmethod
    def decode(self, z: Tensor, given: Tensor | None = None) -> Tensor:
        """Latents to examples in data units."""


class Amortised(Latent):
    """Knows the distribution of latents given an example, so that they can be drawn without their nats."""

    @abstractmethod
    def posterior(self, x: Tensor, given: Tensor | None = None) -> torch.distributions.Distribution:
        """q(z | x), batch shape [batch], event shape that of `latent`."""


class Reparameterised(ABC):
    """Draws examples that are differentiable functions of its weights."""

    @abstractmethod
    def rsample(self, n: int, given: Tensor | None = None) -> Tensor:
        """n examples of a real space, [n, *shape] in data units, with gradients."""


class Traced(ABC):
    """Shows examples in the making."""

    @abstractmethod
    def trace(self, n: int, given: Tensor | None = None, *, steps: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """(x [n, *shape] in data units, which of its entries are hidden) after each call of the net, the last being examples."""


class Tuned(ABC):
    """Learns from a fitted model whose weights it begins from.

    Class data:
        share: of the budget that fitting its own teacher gets.
    """

    share: ClassVar[float] = 0.5

    def first(self) -> Model | None:
        """Its own teacher, to be fitted before it; None for a family that has to be given one, or a model that needs none."""
        return None

    @abstractmethod
    def learn_from(self, teacher: Model) -> None:
        """Train against a model of the same net."""


class Varied(ABC):
    """Draws others like an example."""

    @abstractmethod
    def vary(self, x: Tensor, given: Tensor | None = None, *, strength: float = 0.5) -> Tensor:
        """Others like x [n, *shape], the less so the greater the strength: 0 gives x all but back, 1 anything."""


class Coded(ABC):
    """Has a codec whose message length is the coded claim."""

    space: Space

    @property
    def codable(self) -> bool:
        """Whether this one has: what it can code may hang on its data and options; by default they have to be discrete."""
        return self.space.discrete

    @abstractmethod
    def codec(self, given: Tensor | None = None) -> "Codec": ...


@dataclass(frozen=True)
class Filled:
    """Examples whose unknown entries were drawn.

    Attributes:
        x: [draws, batch, *shape]; known entries bit for bit.
        exact: whether from a conditional p(unknown | known) that the model has as such, that of the ordering that `how` names
            (which, of a net that knows every ordering, need not be the one that log_prob speaks of).
        effective: effective number of samples that each rests on, [draws, batch]; infinite where exact.
        how: the method, and what it approximates.
    """

    x: Tensor
    exact: bool
    effective: Tensor
    how: str


class Fillable(ABC):
    """Draws unknown entries given known ones."""

    @abstractmethod
    def fill(self, x: Tensor, known: Tensor, given: Tensor | None = None, draws: int = 1) -> Filled:
        """Entries of x [batch, *shape] where `known`, of the same shape, is False are drawn anew; what they hold is not looked at."""


class ClosedForm(ABC):
    """Is fitted without gradients. Whatever `solve` learns lives in buffers (of any shape), so that it is stored."""

    @abstractmethod
    def solve(self, train: Batches, valid: Batches) -> None:
        """Fit by counts, EM or a bandwidth search; hyperparameters are chosen on `valid`."""


class Weighted(ClosedForm):
    """Examples may count more or less than once."""

    @abstractmethod
    def solve(self, train: Batches, valid: Batches, weights: Tensor | None = None, judging: Tensor | None = None) -> None:
        """Fit; each training example counts `weights` [n] times, once by default. One of weight 2 is as two equal ones.

        Those of the validation split that choose hyperparameters count `judging` times.
        """


@dataclass(frozen=True)
class Phase:
    """A part of fitting a model that is made of others.

    Attributes:
        member: number of the one that is fitted.
        data: what it is fitted to.
        share: of the budget that is left; closed forms need none.
    """

    member: int
    data: Data
    share: float


class Combined(ABC):
    """Is made of other models, which are fitted one after another; what joins them lives in buffers.

    Class data:
        hands_on: whether options of `sample` are those of the last member's.
    """

    hands_on: ClassVar[bool] = False
    members: nn.ModuleList

    @classmethod
    @abstractmethod
    def made_of(cls, members: Sequence[type[Model]]) -> type[Model]:
        """The class of such a model of these members, by what they can do."""

    @classmethod
    @abstractmethod
    def place(cls, space: Space, given: Space | None, before: Sequence[Model]) -> tuple[Space, Space | None]:
        """Space, and that of `given`, of the member that comes after those `before` it."""

    @abstractmethod
    def phases(self, data: Data) -> Iterator[Phase]:
        """What is fitted to what, in turn; what joins the members is fitted between, when those of the phases before are there."""


class Starts(ABC):
    """Wants one batch before the first step (ActNorm, k-means); the same batch on all ranks."""

    @abstractmethod
    def start(self, x: Tensor, given: Tensor | None = None) -> None: ...
