r"""Gaussianization: the density of data that marginal maps and rotations carry, step by step, to a normal.

    x -> R_L Psi_L ( ... R_1 Psi_1(x) ),      Psi_l entry by entry, R_l orthogonal
    log p(x) = log N(z; 0, I) + sum_l sum_d log Psi_ld'

A step makes every marginal normal and then turns the axes, so that what was not yet normal shows in
the marginals again: a descent in KL(p || N) however simple the steps. They are fitted one after another
to a first batch, as in iterative Gaussianization, with the axes of independent components; from there they are trained
together by gradient. The parameters are few, for no net is in it: 3 K for each entry and step.

Conditioning on `given` shifts the parameters of the marginals; the axes are common to all.

References:
    | Iterative Gaussianization: from ICA to random rotations (Laparra et al., 2011) | https://arxiv.org/abs/1602.00229
    | Gaussianization flows (Meng et al., 2020) | https://arxiv.org/abs/2003.01941
"""

import math
from typing import Any, ClassVar

from likely.bijections import Chain, Flatten
from likely.bijections.gaussianization import Marginals, Rotation
from likely.bijections.marginal import histograms
from likely.errors import UsageError
from likely.invertible import Invertible
from likely.model import Recipe
from likely.space import Space

__all__ = ["Gaussianization"]

_ENTRIES = 1024  # that are rotated together; beyond, the axes alone are megabytes


class Gaussianization(Invertible):
    """Marginal maps and rotations in turn.

    Args:
        steps: of marginal map and rotation; one more marginal map ends them.
        components: normals in each marginal's mixture.
        reflections: learnt ones in each rotation.
        bounds: where numbers of a table end, as of `flow`.

    Raises: UsageError for data of more than 1024 entries.
    """

    summary = "marginal maps and rotations in turn: a flow of few parameters; a bound on discrete data"
    recipe = Recipe(lr=1e-2, clip=40.0, ema=0.995, batch=256, bf16=False)
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"steps": 2, "components": 5, "reflections": 2},
        "small": {"steps": 8, "components": 12, "reflections": 8},
        "base": {"steps": 16, "components": 24, "reflections": 32},
    }

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        bounds: str = "",
        steps: int | None = None,
        components: int | None = None,
        reflections: int | None = None,
    ) -> None:
        super().__init__(space, given=given, size=size)
        chosen = self.options(size, steps=steps, components=components, reflections=reflections)
        shape = space.relaxed.shape
        if (dims := math.prod(shape)) > _ENTRIES:
            raise UsageError(f"gaussianization rotates all entries together, at most {_ENTRIES}, not {dims}.", "flow models larger images.")

        def marginals() -> Marginals:
            return Marginals(dims, max(1, chosen["components"]), given=given)

        parts = [part for _ in range(chosen["steps"]) for part in (marginals(), Rotation(dims, min(dims, chosen["reflections"])))]
        self.map = Chain([*histograms(space, bounds), Flatten(shape), *parts, marginals()])
