"""A model as a `torch.distributions.Distribution`, for code that is written for those, such as Pyro's."""

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Size, Tensor
from torch.distributions import Distribution, constraints

from likely.errors import UsageError

if TYPE_CHECKING:
    from likely.abilities import Likelihood
    from likely.model import Model
    from likely.space import Space

__all__ = ["ModelDistribution"]


class ModelDistribution(Distribution):
    """p(x), or p(x | given) with a batch of distributions, one for each row of `given`.

    Examples are in data units. log p is in nats, a mass where the space is discrete; of a model that has a bound it is the bound.
    Samples carry gradients (`has_rsample`) where the model is reparameterised and the space real.

    Args:
        model: has a likelihood, and draws.
        given: [*batch, *given shape]; the batch shape is () without it.
        draws: of a bound; see `Likelihood.log_prob`.

    Raises: UsageError for a conditional model without `given`, and for `given` where there is no condition.
    """

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore  (torch declares a property, and reads this)

    def __init__(self, model: "Likelihood", given: Tensor | None = None, *, draws: int = 1, batch_shape: Size | None = None) -> None:
        self.model, self.draws = cast("Model", model), draws
        space = model.given_space
        if given is None and space is not None:
            raise UsageError("The model is conditional, so it has no distribution without `given`.", f"Give {space}.")
        if given is not None and space is None:
            raise UsageError("The model is unconditional, it takes no `given`.")
        if given is not None and space is not None:
            outer = given.ndim - len(space.shape)
            batch_shape = given.shape[:outer] if batch_shape is None else batch_shape
            given = given.expand(*batch_shape, *given.shape[outer:])
        self.given = given
        super().__init__(batch_shape or Size(), Size(model.space.shape), validate_args=False)  # log_prob checks x itself, and says more

    def __repr__(self) -> str:
        shapes = f"batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)}"
        return f"{type(self).__name__}({self.model.called} of {self.model.space}, {shapes})"

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]  # a class attribute of torch's
        from likely.abilities import Reparameterised

        return isinstance(self.model, Reparameterised) and _real(self.model.space)

    @property
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        space = self.model.space
        if _real(space):
            return constraints.independent(constraints.real, len(space.shape))
        if space.levels is not None and not space.flags and not space.variable:
            return constraints.independent(constraints.integer_interval(0, space.levels - 1), len(space.shape))
        return constraints.dependent  # columns differ

    def expand(self, batch_shape: Any, _instance: Any = None) -> "ModelDistribution":
        return ModelDistribution(cast("Likelihood", self.model), self.given, draws=self.draws, batch_shape=Size(batch_shape))

    def _rows(self, shape: Size) -> Tensor | None:
        """`given` for examples [*shape], as rows."""
        if self.given is None:
            return None
        own = self.given.shape[len(self.batch_shape) :]
        return self.given.expand(*shape, *own).reshape(-1, *own)

    def log_prob(self, value: Tensor) -> Tensor:
        """Nats [*sample shape, *batch shape] of value [*sample shape, *batch shape, *event shape]."""
        outer = value.shape[: value.ndim - len(self.event_shape)]
        shape = torch.broadcast_shapes(outer, self.batch_shape)
        x = value.expand(*shape, *self.event_shape).reshape(-1, *self.event_shape)
        nats = cast("Likelihood", self.model).log_prob(x, self._rows(shape), draws=self.draws).nats
        return nats.view(shape).to(value.dtype if value.is_floating_point() else torch.get_default_dtype())

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = Size(sample_shape) + self.batch_shape
        with torch.no_grad():
            return self.model.sample(shape.numel(), self._rows(shape)).view(*shape, *self.event_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws that are functions of the model's weights.

        Raises: UsageError where there are none: see `has_rsample`.
        """
        from likely.abilities import Reparameterised

        if not isinstance(self.model, Reparameterised) or not _real(self.model.space):
            raise UsageError("Draws of this model have no gradient.", "Use sample(); reals of an invertible map have one.")
        shape = Size(sample_shape) + self.batch_shape
        return self.model.rsample(shape.numel(), self._rows(shape)).view(*shape, *self.event_shape)


def _real(space: "Space") -> bool:
    return all(s.kind == "real" and not s.missing for s in space.supports)
