"""The registry: family name -> "module:Class" and the options it presets. Nothing is imported until asked for.

Others register theirs through the entry point group `likely.families`:

    [project.entry-points."likely.families"]
    mine = "my_package.mine:Mine"
"""

import inspect
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args

from likely.errors import UsageError, nearest
from likely.names import Named, parse, slug, split_names
from likely.nets import net_options, net_words

if TYPE_CHECKING:
    from likely.model import Model
    from likely.space import Space

__all__ = [
    "FAMILIES",
    "Family",
    "build",
    "check_kind",
    "family_class",
    "featured",
    "names",
    "option_hint",
    "option_names",
    "option_words",
    "parsed",
    "slug",
    "split_names",
    "tuned_from",
]


_OF_NETS = {"gates", "inner", "kv_heads", "levels", "orderings", "patch", "vector", "width", "window"}
_PARTS = {"bins", "blocks", "components", "kernels", "latent", "layers", "neighbours", "stages"}
_TURNS = {"chains", "draws", "moves", "noise_steps", "rungs", "steps", "temperatures"}
_COUNTS = frozenset(_OF_NETS | _PARTS | _TURNS)  # at least 1, unless a size or a name of the family has 0; others may be 0, for none
_DROPS = frozenset({"drop", "dropout", "gram_dropout"})  # shares that are left out: never all


@dataclass(frozen=True)
class Family:
    """Where a family's class lives, the options its name presets, and the members that it is made of by default.

    A name that presets options has a `summary` of its own.

    A comparison takes the `featured` ones if it is not told which; the others are there for who asks for them.
    """

    path: str
    preset: dict[str, Any] = field(default_factory=dict)
    members: tuple[str, ...] = ()
    featured: bool = True
    summary: str = ""


def _flow(summary: str, **preset: Any) -> Family:
    """A classical flow: options of `flow`, and nothing else."""
    return Family("likely.families.flow:Flow", {"marginals": "none", **preset}, featured=False, summary=f"flow of {summary}")


_FLOWS = {
    "nice": _flow("additive couplings, and a scaling at the end", transform="additive", mixing="none", multiscale=False),
    "realnvp": _flow(
        "affine couplings: on images checkerboards and channels, by scales",
        transform="affine",
        mixing="none",
        masks="checkerboard",
        marginals="logit",
        normalise="each",
        multiscale=True,
    ),
    "glow": _flow(
        "affine couplings, ActNorm and 1x1 convolutions; images by scales",
        transform="affine",
        masks="halves",
        normalise="each",
        multiscale=True,
    ),
    "maf": _flow(
        "masked autoregressive affine maps: scored in a pass, drawn entry by entry",
        structure="autoregressive",
        transform="affine",
        mixing="reverse",
        marginals="logit",
        normalise="each",
    ),
    "iaf": _flow(
        "inverse autoregressive affine maps: drawn in a pass, scored entry by entry",
        structure="inverse",
        transform="affine",
        mixing="reverse",
        normalise="each",
    ),
    "nsf": _flow("spline couplings joined by P L U x; images by scales", multiscale=True),
    "nsf-ar": _flow("autoregressive splines joined by P L U x: the tightest of points, drawn entry by entry", structure="autoregressive"),
}

FAMILIES: dict[str, Family] = {
    "histogram": Family("likely.families.histogram:Histogram"),
    "independent": Family(
        "likely.families.histogram:Histogram", {"joint": False}, featured=False, summary="smoothed counts of each entry alone"
    ),
    "gmm": Family("likely.families.gmm:GaussianMixture"),
    "kde": Family("likely.families.kde:KernelDensity"),
    "knn": Family("likely.families.knn:NearestNeighbours"),
    "pca": Family("likely.families.pca:ProbabilisticPCA"),
    "ngram": Family("likely.families.ngram:NGram"),
    "autoregressive": Family("likely.families.autoregressive:Autoregressive"),
    "mixture": Family("likely.families.mixture:Mixture", members=("ngram", "autoregressive")),
    "flow": Family("likely.families.flow:Flow"),
    **_FLOWS,
    "idf": Family("likely.families.integer_flow:IntegerFlow", featured=False),
    "gaussianization": Family("likely.families.gaussianization:Gaussianization", featured=False),
    "cnf": Family("likely.families.continuous_flow:ContinuousFlow", featured=False),
    "residual": Family("likely.families.residual_flow:ResidualFlow", featured=False),
    "tarflow": Family("likely.families.tarflow:TarFlow", featured=False),
    "vae": Family("likely.families.vae:VAE"),
    "gan": Family("likely.families.gan:GAN"),
    "energy": Family("likely.families.energy:Energy"),
    "diffusion": Family("likely.families.diffusion:Diffusion"),
    "masked-diffusion": Family("likely.families.masked_diffusion:MaskedDiffusion", featured=False),
    "stacked": Family("likely.families.stacked:Stacked", members=("vae", "diffusion"), featured=False),
    "vdm": Family(
        "likely.families.diffusion:Diffusion",
        {"steps": 0, "schedule": "learnt"},
        featured=False,
        summary="diffusion in continuous time with a learnt schedule: the tightest bound",
    ),
    "ddpm": Family("likely.families.ddpm:DDPM", featured=False),
    "score": Family("likely.families.score:ScoreModel", featured=False),
    "edm": Family(
        "likely.families.score:ScoreModel",
        {"sde": "karras", "objective": "v", "times": "lognormal"},
        featured=False,
        summary="scores by EDM's recipe: lognormal noise levels, errors weighed evenly, drawn by Heun's method; likelihood by the ODE",
    ),
    "flow-matching": Family("likely.families.flow_matching:FlowMatching", featured=False),
    "meanflow": Family("likely.families.meanflow:MeanFlow", featured=False),
    "consistency": Family("likely.families.consistency:Consistency", featured=False),
}


@cache
def registry() -> dict[str, Family]:
    """Our families and those that installed packages register."""
    theirs = {point.name: Family(point.value) for point in entry_points(group="likely.families")}
    return {**theirs, **FAMILIES}


def names() -> list[str]:
    """Names of all registered families."""
    return list(registry())


def featured() -> list[str]:
    """Names of those that a comparison takes by default."""
    return [name for name, family in registry().items() if family.featured]


def parsed(name: str) -> Named:
    """A name taken apart, with the members that the registry knows where it says none: "mixture" -> ngram, autoregressive.

    Raises: UsageError for brackets that do not match, for an unknown name (the hint suggests the nearest), and for
        members of a family that has none.
    """
    named = parse(name)
    if named.own not in registry():
        raise UsageError(f"Unknown model '{named.own}'.", nearest(named.own, registry()))
    usual = registry()[named.own].members
    if named.members and not usual:
        raise UsageError(f"Model '{named.own}' is not made of others, as '{name}' says.", "mixture(...) and stacked(...) are.")
    return named if named.members else named._replace(members=list(usual))


def family_class(name: str) -> "type[Model]":
    """The class behind a name.

    Raises: UsageError for an unknown name; the hint suggests the nearest.
    """
    own, members, _ = parsed(name)
    module, _, attribute = registry()[own].path.partition(":")
    cls = getattr(import_module(module), attribute)
    return cls.made_of([family_class(member) for member in members]) if members else cls


def option_names(cls: "type[Model]") -> dict[str, inspect.Parameter]:
    """The constructor's keyword-only options, the family's config, and those that it hands on to its net."""
    parameters = inspect.signature(cls).parameters.values()
    own = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ("given", "size", "members")}
    return own | (net_options(cls.net_role) if cls.net_role else {})


def option_words(cls: "type[Model]") -> dict[str, tuple[str, ...]]:
    """What each option of a family that is a word can be, as far as it says so."""
    return cls.words | (net_words(cls.net_role) if cls.net_role else {})


def check_kind(owner: str, option: str, value: Any, annotation: Any, hint: str = "") -> None:
    """Raise a UsageError for a value that is not of the plain kind which an option's annotation says."""
    kinds = set(get_args(annotation)) or {annotation}
    wanted = kinds | {int} if float in kinds else kinds
    if not kinds <= {int, float, str, bool, NoneType}:
        return
    if not isinstance(value, tuple(wanted)) or (isinstance(value, bool) and bool not in kinds):
        told = " or ".join(sorted(kind.__name__ for kind in wanted - {NoneType}))
        raise UsageError(f"Option '{option}' of {owner} is {value!r}, not {told}.", hint)


def _check_option(name: str, option: str, value: Any, parameter: inspect.Parameter) -> None:
    """Whether a value is of the kind that the constructor says; numbers are sizes, counts and shares, never negative."""
    check_kind(name, option, value, parameter.annotation, f"See: likely models {name}")
    if not isinstance(value, int | float):
        return
    if not 0 <= value < math.inf:
        raise UsageError(f"Option '{option}' of {name} cannot be {value}.", "Give a number that is not negative.")
    if option in _DROPS and value >= 1:
        raise UsageError(f"Option '{option}' of {name} cannot be {value}.", "Give a share below 1.")
    if option in _COUNTS and value == 0 and 0 not in _usual(name, option, parameter):
        raise UsageError(f"Option '{option}' of {name} cannot be 0.", "Give 1 or more.")


def _usual(name: str, option: str, parameter: inspect.Parameter) -> list[Any]:
    """What an option is in a family's sizes, and in all names of it."""
    sizes, path = family_class(name).sizes.values(), registry()[name].path
    presets = [family.preset for family in registry().values() if family.path == path]
    return [parameter.default, *(each[option] for each in (*sizes, *presets) if option in each)]


def build(name: str, space: "Space", *, given: "Space | None" = None, size: str = "small", **options: Any) -> "Model":
    """Construct a registered family for a space; `model.config` records how, for the store.

    Raises: UsageError for an unknown name, size or option, or a layout the family does not model.
    """
    cls, (own, parts, inside) = family_class(name), parsed(name)
    known, chosen = option_names(cls), inside | options
    for option in chosen:
        if option not in known:
            raise UsageError(f"Model '{name}' has no option '{option}'.", option_hint(option, known, parts))
        _check_option(own, option, chosen[option], known[option])
    if space.layout not in cls.layouts:
        others = [n for n in FAMILIES if space.layout in family_class(n).layouts]
        raise UsageError(f"Model '{name}' does not model {space.layout} data.", f"Those that do: {', '.join(others) or 'none yet'}.")
    members = {"members": _members(cls, parts, space, given, size)} if parts else {}
    model = cls(space, given=given, size=size, **{**registry()[own].preset, **chosen}, **members)
    model.config = {"model": name, "size": size, "options": options}
    return model


def tuned_from(start: "Model", name: str, **options: Any) -> "Model":
    """A registered family with the weights of a fitted model, of its size, and with those of its options that both have.

    Raises: UsageError if their nets differ.
    """
    from likely.abilities import Tuned

    known = option_names(family_class(name))
    kept = {option: value for option, value in start.config["options"].items() if option in known}
    model = build(name, start.space, given=start.given_space, size=start.config["size"], **{**kept, **options})
    mine, theirs = ({key: value.shape for key, value in m.state_dict().items()} for m in (model, start))
    if mine != theirs:
        raise UsageError(
            f"Model '{name}' cannot begin from a '{start.config['model']}': their nets differ.", "consistency begins from flow-matching."
        )
    model.load_state_dict(start.state_dict())
    if isinstance(model, Tuned):
        model.learn_from(start)
    return model


def option_hint(option: str, known: Collection[str], parts: list[str]) -> str:
    """What to do about an option that is not known, of a family with such parts."""
    owners = [own for own in (parsed(part).own for part in parts) if option in option_names(family_class(own))]
    if owners:
        return f"An option of a part is written in its brackets: {owners[0]}({option}=...)."
    return nearest(option, known) if known else "It has none."


def _members(cls: Any, names: list[str], space: "Space", given: "Space | None", size: str) -> "list[Model]":
    """The models that a model of such a class is made of, each where those before it leave it."""
    members: list[Model] = []
    for name in names:
        where, known = cls.place(space, given, members)
        members.append(build(name, where, given=known, size=size))
    return members
