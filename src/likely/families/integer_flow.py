r"""Integer discrete flow: a bijection of the levels onto themselves, so that the likelihood is an exact mass.

    log p(x) = log p(z),      z = f(x),      f a bijection of the grid {0..K-1}^D onto itself

f is a chain of couplings that shift some levels, around their circle, by a rounded function of the
others (see `bijections.integer`). Nothing is dequantized and there is no Jacobian. Stage by stage

    z = f_s(z);    half of the entries leave:   p(z_leave | z_rest),  logistic mixtures on 0..K-1, chosen by a net
                   the others go on to stage s + 1; what is left in the end has mixtures without a net's choice

On images those that leave lie between those that go on: coarse to fine. Shifts alone cannot turn a
variable entry into a certain one; the conditional scales of the mixtures do that.

Because f maps integers to integers, an example is coded by coding z: as many bits as -log2 p says, with one pass of
the nets in either direction, where an autoregressive code takes one per entry.

Nominal entries and cells that may be missing are levels like others, in the order of their codes.

References:
    | Integer discrete flows and lossless compression (Hoogeboom et al., 2019) | https://arxiv.org/abs/1905.07376
    | IDF++: analyzing and improving integer discrete flows (van den Berg et al., 2021) | https://arxiv.org/abs/2006.12459
    | PixelCNN++ (discretised logistic mixtures; Salimans et al., 2017) | https://arxiv.org/abs/1701.05517
"""

import copy
from collections.abc import Iterator
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from likely.abilities import Coded, Likelihood
from likely.bijections import Chain
from likely.bijections.integer import ModularCoupling, on_unit_scale
from likely.coding import Codec, Stack, categorical
from likely.heads.mixtures import LogisticMixture
from likely.logprob import LogProb
from likely.model import Model, Recipe, evaluating, expand_given
from likely.nets import net
from likely.noise import Noise
from likely.space import MISSING, Space, Support

__all__ = ["IntegerFlow"]

_VECTOR_UP_TO = 256  # entries; of more, on a grid, the nets are convolutional
_TABLE = 2**23  # probabilities that a codec has at once


class IntegerFlow(Model, Likelihood, Coded):
    """Couplings that shift levels around their circles, and mixtures of logistics for what they come to.

    Args:
        stages: after each half of the entries leave.
        layers: couplings in each stage; none by default, for where it was measured the gradient through rounding cost
            more than shifts gained: then f is the identity and the stages are the model.
        components: of the mixtures.
        width, depth, dropout: of the nets; those of more than 256 entries of a grid are convolutional, 32 channels wide if small.

    Raises: UsageError for entries without a finite number of levels.
    """

    summary = "bijections of integers: exact mass without dequantization, coded in one pass"
    finite_only = True
    recipe = Recipe(lr=2e-3, weight_decay=0.01, clip=40.0, ema=0.995, batch=64, bf16=False)
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"stages": 2, "layers": 1, "components": 4, "width": 32, "depth": 1, "dropout": 0.0},
        "small": {"stages": 6, "layers": 0, "components": 5, "width": 256, "depth": 1, "dropout": 0.2},
        "base": {"stages": 8, "layers": 0, "components": 10, "width": 512, "depth": 2, "dropout": 0.2},
    }
    levels: Tensor

    def __init__(
        self,
        space: Space,
        *,
        given: Space | None = None,
        size: str = "small",
        stages: int | None = None,
        layers: int | None = None,
        components: int | None = None,
        width: int | None = None,
        depth: int | None = None,
        dropout: float | None = None,
    ) -> None:
        super().__init__(space, given=given, size=size)
        chosen = self.options(size, stages=stages, layers=layers, components=components, width=width, depth=depth, dropout=dropout)
        per = space.dims // len(space.supports)
        supports = [_integer(s) for s in space.supports for _ in range(per)]
        self.register_buffer("levels", torch.tensor([float(s.levels) for s in supports]))
        sized = chosen if self._dense else {"width": width, "depth": depth, "dropout": dropout}  # convolutions have sizes of their own
        options = {name: sized[name] for name in ("width", "depth", "dropout") if sized[name] is not None}
        self._net = {"size": size, "given": given, **options}
        parts, here = [], torch.ones(space.dims, dtype=torch.bool)
        for leaves in _leaving(space, chosen["stages"]):
            couplings = Chain([self._coupling(here, i) for i in range(chosen["layers"])] if bool((here & ~leaves).any()) else [])
            head = LogisticMixture(tuple(s for s, leave in zip(supports, leaves.tolist(), strict=True) if leave), chosen["components"])
            parts.append(Stage(couplings, self.levels, here & ~leaves, leaves, self._built(leaves, head.width), head))
            here = here & ~leaves
        self.stages = nn.ModuleList(parts)

    @property
    def _dense(self) -> bool:
        return self.space.layout == "columns" or self.space.dims <= _VECTOR_UP_TO

    def _built(self, moves: Tensor, out: int) -> nn.Module:
        """A net that says `out` numbers of each entry that `moves`."""
        if self._dense:
            return net(Space.reals(self.space.dims), "coupling", out=out, moves=moves, **self._net)
        inner = net(Space.grid(*self.space.shape), "coupling", out=out, moves=moves.view(self.space.shape), **self._net)
        return _OnGrid(self.space.shape, inner)

    def _coupling(self, here: Tensor, turn: int) -> ModularCoupling:
        """Every other one of the entries that are here moves, and at the next turn the others."""
        moves = torch.zeros_like(here)
        moves[here.nonzero().squeeze(1)[turn % 2 :: 2]] = True
        return ModularCoupling(self.levels, here & ~moves, moves, self._built(moves, 1))

    # -- likelihood -----------------------------------------------------------------------------

    def forward(self, x: Tensor, given: Tensor | None = None, *, turn: str = "") -> Tensor:
        return -torch.stack([stage.log_mass(z, params) for stage, z, params in self._through(self._codes(x), given)]).sum(0)

    def _log_prob(self, x: Tensor, given: Tensor | None, noise: Noise) -> LogProb:
        with evaluating(self):
            each = [stage.log_mass(z, params).double() for stage, z, params in self._through(self._codes(x), given)]
        return LogProb(torch.stack(each).sum(0), "exact")

    def _through(self, z: Tensor, given: Tensor | None) -> Iterator[tuple["Stage", Tensor, Tensor]]:
        """Each stage with the levels as they are there, and the parameters of those that leave."""
        for stage in self._stages():
            z = stage.couplings(z, given)[0]
            yield stage, z, stage.parameters_of(z, given)

    def _stages(self) -> list["Stage"]:
        return cast("list[Stage]", list(self.stages))

    def _codes(self, x: Tensor) -> Tensor:
        """Levels as floats [B, D], a missing cell being the last."""
        flat = x.flatten(1)
        return torch.where(flat < 0, self.levels - 1, flat).to(self.levels)

    def _values(self, z: Tensor) -> Tensor:
        """The way back, [B, *shape]."""
        flat = z.long()
        for i, s in enumerate(self.space.supports):
            if s.missing:
                flat[:, i] = torch.where(flat[:, i] == s.levels, MISSING, flat[:, i])
        return flat.view(-1, *self.space.shape)

    # -- draws and codes ------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, n: int, given: Tensor | None = None, *, with_log_prob: bool = False) -> Any:
        """Draw n examples, [n, *shape]; with_log_prob: a `Drawn`."""
        given = expand_given(given, n)
        with evaluating(self):
            x = self._values(self._back(n, given, lambda stage, params: stage.head.sample(params)))
            return self.scored(x, given) if with_log_prob else x

    def _back(self, n: int, given: Tensor | None, take: Any) -> Tensor:
        """Levels of n examples, from the last stage to the first; `take` gives those that leave at one from their parameters."""
        z = self.levels.new_zeros(n, self.space.dims)
        for stage in reversed(self._stages()):
            z = z.index_copy(1, stage.leaving, take(stage, stage.parameters_of(z, given)).to(z))
            z = stage.couplings.inverse(z, given)[0]
        return z

    def codec(self, given: Tensor | None = None) -> Codec:
        """A codec of examples, by chunks of rows, in float64."""
        exact = copy.deepcopy(self).double().eval()
        rows = max(1, _TABLE // max(len(s.leaving) * s.states for s in self._stages()))

        def chunks(n: int) -> list[tuple[int, int]]:
            return [(first, min(n, first + rows)) for first in range(0, n, rows)]

        def of(first: int, last: int, n: int) -> Tensor | None:
            g = expand_given(given, n)
            return None if g is None else g[first:last].double() if g.is_floating_point() else g[first:last]

        @torch.no_grad()
        def push(stack: Stack, x: Tensor) -> None:
            for first, last in reversed(chunks(len(x))):
                for stage, z, params in exact._through(exact._codes(x[first:last]), of(first, last, len(x))):
                    categorical(stage.logits(params)).push(stack, z[:, stage.leaving].long())

        @torch.no_grad()
        def pop(stack: Stack, n: int) -> Tensor:
            parts = [
                exact._back(
                    last - first, of(first, last, n), lambda stage, params: categorical(stage.logits(params)).pop(stack, len(params))
                )
                for first, last in chunks(n)
            ]
            return torch.cat([exact._values(part) for part in parts]) if parts else torch.zeros(0, *self.space.shape, dtype=torch.int64)

        return Codec(push, pop)


class Stage(nn.Module):
    """Couplings of the entries that are here, and the distribution of those that leave given those that go on."""

    levels: Tensor
    stay: Tensor
    leaving: Tensor

    def __init__(self, couplings: Chain, levels: Tensor, stay: Tensor, leaves: Tensor, inner: nn.Module, head: LogisticMixture) -> None:
        super().__init__()
        self.couplings, self.net, self.head = couplings, inner, head
        self.register_buffer("levels", levels)
        self.register_buffer("stay", stay)
        self.register_buffer("leaving", leaves.nonzero().squeeze(1))

    @property
    def states(self) -> int:
        return max(s.levels for s in self.head.supports)

    def parameters_of(self, z: Tensor, given: Tensor | None) -> Tensor:
        """Of the mixtures of those that leave, [B, leaving, width]."""
        return self.net(on_unit_scale(z, self.levels) * self.stay, given).transpose(1, 2)

    def log_mass(self, z: Tensor, params: Tensor) -> Tensor:
        """log p of those that leave, [B]."""
        return self.head.log_mass(params, z[:, self.leaving]).sum(1)

    def logits(self, params: Tensor) -> Tensor:
        """log p of each level, [B, leaving, states]; -inf beyond an entry's own."""
        states = torch.arange(self.states, dtype=self.levels.dtype, device=params.device)
        each = params[:, :, None].expand(-1, -1, self.states, -1)
        nats = self.head.log_mass(each, states.expand(each.shape[:-1]))
        return nats.masked_fill(states >= self.levels[self.leaving, None], -torch.inf)


class _OnGrid(nn.Module):
    """A net of images, given them flat."""

    def __init__(self, shape: tuple[int, ...], inner: nn.Module) -> None:
        super().__init__()
        self.shape, self.inner = shape, inner

    def forward(self, flat: Tensor, given: Tensor | None = None) -> Tensor:
        return self.inner(flat.view(-1, *self.shape), given)


def _integer(s: Support) -> Support:
    """The support of an entry's codes: ordered levels, a missing cell being one more."""
    plain = s.kind == "ordinal" and not s.missing
    return Support("ordinal", s.levels, center=s.center, scale=s.scale) if plain else Support.number(s.levels + s.missing)


def _leaving(space: Space, stages: int) -> list[Tensor]:
    """Which entries leave at each stage, bool [D] each: every other one of a checkerboard, then of the rows, and so on."""
    sides = space.shape[1:] if space.layout == "grid" else space.shape
    places = torch.stack(torch.meshgrid(*[torch.arange(n) for n in sides], indexing="ij")).flatten(1)
    places = places.repeat(1, space.dims // places.shape[1])
    here, each = torch.ones(space.dims, dtype=torch.bool), []
    for stage in range(stages):
        even = stage % 2 == 0 or len(places) == 1
        leaves = here & ((places.sum(0) if even else places[0]) % 2 == 1)
        if bool(leaves.any()) and bool((here & ~leaves).any()):
            each.append(leaves)
            here = here & ~leaves
        if not even or len(places) == 1:
            places = places // 2
    return [*each, here]
