"""The verbs of the command line as functions: fit, sample, score, show, models, data, open.

Each takes what a person has at hand: a source or a `Data`, a stored model's folder or a `Model`.
"""

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from likely import families, sources, store, train
from likely.dataset import Data, Split
from likely.errors import DataError, UsageError, nearest
from likely.evaluation.measure import held_out_bits, log_prob
from likely.logprob import of_text
from likely.model import ClosedForm, Coded, Fillable, Latent, Likelihood, Model, expand_given
from likely.noise import seeded
from likely.space import Space

__all__ = ["abilities", "as_data", "as_model", "data", "fit", "given_values", "models", "open", "sample", "score", "show"]

_READING = ("layout", "tile", "resize", "precision", "missing", "header")  # options of `load` that new data are read by, too
_ABILITIES: dict[str, type] = {
    "likelihood": Likelihood,
    "latent": Latent,
    "codec": Coded,
    "fill": Fillable,
    "closed form": ClosedForm,
}


def as_data(source: Any, **read: Any) -> Data:
    """`source` itself if it is a `Data`, else `likely.load(source, **read)`."""
    if isinstance(source, Data):
        if any(value not in (None, ()) for value in read.values()):
            raise UsageError(f"This data is loaded already; {', '.join(read)} cannot change it.", "Pass options to likely.load.")
        return source
    return sources.load(source, **read)


def as_model(model: Model | str | Path) -> Model:
    """A model, or the one stored in a folder."""
    return model if isinstance(model, Model) else store.open_model(model)


def open(folder: str | Path, *, device: str = "cpu") -> Model:
    """Load a stored model, ready to use."""
    return store.open_model(folder, device=device)


def fit(source: Any, model: str | Model = "autoregressive", *, given: Any = None, out: str | Path | None = None, **how: Any) -> train.Run:
    """Fit a family to data; with `out`, the model and `run.json` with its test likelihood are left there.

    Args:
        source: a `Data`, or anything that `likely.load` reads.
        model: a registered name (see `likely.models()`), or a model to continue from.
        given: what to condition on, such as "label"; p(x) by default.
        how: budget (`minutes`, `steps` or `epochs`), `size`, `seed`, `device`, ... and the family's own options:
            see `likely.train.fit`.

    Returns: a `Run` with `model`, `seconds`, `steps`, `curve`.
    """
    data = as_data(source, given=given)
    run = train.fit(data, model, out=out, **how)
    if out is not None and train.is_main_process():
        _record_test(run, data, Path(out))
    return run


def _record_test(run: train.Run, data: Data, folder: Path) -> None:
    """Add the test likelihood to `run.json`; None for a model that has none."""
    path = folder / "run.json"
    record = json.loads(path.read_text())
    if "test" in record:
        return
    with torch.no_grad():
        bits = held_out_bits(run.model, data) if isinstance(run.model, Likelihood) else None
    record["test"] = None if bits is None else {k: getattr(bits, k) for k in ("value", "unit", "kind", "how", "stderr", "n")}
    store.write_atomically(path, json.dumps(record).encode())


@torch.no_grad()
def sample(
    model: Model | str | Path,
    n: int = 64,
    *,
    given: Any = None,
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    **how: Any,
) -> Tensor:
    """Draw n examples, [n, *shape] in data units; with `out`, also write them in the data's own format.

    Args:
        given: for a conditional model: a tensor, or values such as {"label": 3}.
        out: a `.png`, folder, `.txt`, `.csv` or `.npz`, as the data allow; what is there is kept unless `overwrite`.
        how: options of the family's sampler; of texts `prompt`, a string or bytes, and `length`, how far they go on.
    """
    if n < 1:
        raise UsageError(f"Cannot draw {n} examples.", "Ask for at least one.")
    model = as_model(model)
    if out is not None:
        sources.check_path(out, model.space, overwrite=overwrite)
    values = given if given is None or isinstance(given, Tensor) else given_values(given, model.given_space)
    sampler: Any = model.sample
    keyword_only = [p.name for p in inspect.signature(sampler).parameters.values() if p.kind is p.KEYWORD_ONLY]
    known = [name for name in keyword_only if name != "with_log_prob"]  # of model.sample, which returns more than examples then
    for option in how:
        if option not in known:
            raise UsageError(f"This model's sampler has no option '{option}'.", nearest(option, known) if known else "It has none.")
    if "prompt" in how and not isinstance(how["prompt"], Tensor):
        how["prompt"] = sources.prompt_of(how["prompt"], model.space)
    with seeded(seed):
        x = sampler(n, values, **how)
    if out is not None:
        sources.write(x, model.space, out, overwrite=overwrite)
    return x


@torch.no_grad()
def score(
    model: Model | str | Path, source: Any = None, *, given: Any = None, draws: int | None = None, seed: int = 0, **read: Any
) -> list[dict[str, Any]]:
    """Log-likelihood of each example, least likely first: outliers on top.

    Args:
        source: a `Data` (its test split), a `Split`, a tensor in the model's codes, the name of a built-in data set (its
            test split), or a path that is read with the model's own schema and options; by default the test split that
            a stored model was evaluated on.
            A text is scored by windows, one after another.
        given: values for all examples; by default those that the source itself holds, such as a table's column.
        read: options of reading that differ from those of the fit, such as `precision` or `resize`.
        draws: of a bound; the family's own number by default.

    Returns: one record per example: `example` (its row), `nats` (log p), `bits` in `unit`, `kind`, `how`, `rank`
        (1 is the least likely), and `percentile`: the share of examples that are likelier.

    Raises: UsageError for a model without a likelihood.
    """
    fitted = as_model(model)
    if not isinstance(fitted, Likelihood):
        raise UsageError(
            f"{type(fitted).__name__} has no likelihood, so it cannot score.", f"Those that have: {', '.join(_with('likelihood'))}."
        )
    split = _split_to_score(model, fitted, source, given, read)
    result = of_text(log_prob(fitted, split, draws=draws or fitted.bound_draws, seed=seed), fitted.space)
    bits = -result.nats / fitted.space.nats_per_unit_of(split.x)
    order = result.nats.argsort().tolist()
    return [
        {
            "example": i,
            "nats": result.nats[i].item(),
            "bits": bits[i].item(),
            "unit": fitted.space.unit,
            "kind": result.kind,
            "how": result.how,
            "rank": rank + 1,
            "percentile": 1 - rank / len(order),
        }
        for rank, i in enumerate(order)
    ]


def _split_to_score(model: Model | str | Path, fitted: Model, source: Any, given: Any, read: dict[str, Any]) -> Split:
    """The examples, with the values of `given` that were passed, else with those that their source holds."""
    values = given if given is None or isinstance(given, Tensor) else given_values(given, fitted.given_space)
    split = _found_to_score(model, fitted, source, read)
    if values is not None:
        split = Split(split.x, expand_given(values, len(split.x)), split.stream)
    return split.apart()


def _found_to_score(model: Model | str | Path, fitted: Model, source: Any, read: dict[str, Any]) -> Split:
    if isinstance(source, Data):
        return source.test
    if isinstance(source, Split):
        return source
    if isinstance(source, Tensor):
        return Split(source)
    card = {} if isinstance(model, Model) else store.read_config(model)["data"]
    if isinstance(source, str) and sources.is_builtin(source) and not Path(source).exists():
        return sources.load(source, given=card.get("options", {}).get("given")).test
    if source is not None:
        options = {name: value for name, value in card.get("options", {}).items() if name in _READING} | read
        as_tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
        return sources.read_split(source, fitted.space, fitted.given_space, **as_tuples)
    if not card:
        raise UsageError("Nothing to score.", "Pass data, or the folder of a model that was stored with its data's card.")
    return sources.rebuild(card).test


def show(folder: str | Path) -> str:
    """The card of a stored model: what it is, what it was fitted to, what it reached. The files are verified first."""
    store.read_config(folder)
    return (Path(folder) / "card.md").read_text()


def models() -> list[dict[str, Any]]:
    """All registered families: `name`, `summary`, `layouts`, `abilities`, `options`, `sizes`."""
    return [_described(name) for name in families.names()]


def _described(name: str) -> dict[str, Any]:
    cls = families.family_class(name)
    options = {option: _option(p) for option, p in families.option_names(cls).items()}
    return {
        "name": name,
        "summary": cls.summary,
        "layouts": sorted(cls.layouts),
        "abilities": abilities(cls),
        "options": options,
        "sizes": cls.sizes,
    }


def _option(parameter: Any) -> str:
    kind = (
        parameter.annotation
        if isinstance(parameter.annotation, str)
        else getattr(parameter.annotation, "__name__", str(parameter.annotation))
    )
    return f"{kind}, default {'by size' if parameter.default is None else parameter.default}"


def abilities(cls: type[Model]) -> list[str]:
    """What a family can do besides being fitted and sampled."""
    return [name for name, ability in _ABILITIES.items() if issubclass(cls, ability)]


def _with(ability: str) -> list[str]:
    return [name for name in families.names() if ability in abilities(families.family_class(name))]


def data(source: Any, **read: Any) -> dict[str, Any]:
    """What is in a data set: counts, entropy per column, bits under trivial models, duplicates, what was skipped."""
    return sources.describe(as_data(source, **read))


def given_values(given: dict[str, Any] | str, space: Space | None) -> Tensor:
    """One row of `given` from {"label": 3} or "label=3,size=1.5": categories by name or code, numbers as they are.

    Raises: UsageError for an unconditional model, or names and categories that it does not know.
    """
    if space is None:
        raise UsageError("This model is unconditional, p(x); it takes no `given`.", "Fit one with --given.")
    pairs = given if isinstance(given, dict) else dict(_pair(part) for part in given.split(","))
    names = [s.name or f"x{i}" for i, s in enumerate(space.supports)]
    for name in pairs:
        if name not in names:
            raise UsageError(f"The model is not conditioned on '{name}'.", nearest(name, names))
    if missing := [name for name in names if name not in pairs]:
        raise UsageError(f"A value of {', '.join(missing)} is missing in `given`.")
    row = [_code(pairs[name], support) for name, support in zip(names, space.supports, strict=True)]
    return torch.tensor([row], dtype=space.dtype)


def _pair(part: str) -> tuple[str, str]:
    name, sign, value = part.partition("=")
    if not sign:
        raise UsageError(f"'{part}' is not of the form name=value.", "For example: label=3.")
    return name.strip(), value.strip()


def _code(value: Any, support: Any) -> float | int:
    """A category's code, by its name first; or a number on the support's grid."""
    if support.kind == "nominal" and str(value) in support.categories:
        return support.categories.index(str(value))
    try:
        number = float(value)
    except ValueError:
        raise UsageError(f"'{value}' is not a value of {support.name}.", nearest(str(value), support.categories)) from None
    if support.kind == "real":
        return number
    if support.kind == "decimal":
        index = round(number * 10**support.decimals) - support.origin
        return index if index >= 0 else index - 1
    if not 0 <= number < support.levels or number != int(number):
        raise DataError(f"{value} of {support.name} is outside 0..{support.levels - 1}.", _named(support))
    return int(number)


def _named(support: Any) -> str:
    return f"By name: {', '.join(support.categories)}." if support.categories else ""
