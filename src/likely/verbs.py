"""The verbs of the command line as functions: fit, sample, score, show, models, data, open.

Each takes what a person has at hand: a source or a `Data`, a stored model's folder or a `Model`.
"""

import inspect
import json
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from likely import families, sources, store, train
from likely.abilities import ClosedForm, Coded, Drawn, Fillable, Latent, Likelihood, Primed, Traced, Varied, Weighted
from likely.dataset import Data, Split
from likely.errors import UsageError
from likely.evaluation.measure import held_out_bits, log_prob
from likely.inputs import as_data, as_given, as_model, built_in_test, card_of, check_options, reading_options, that_draws
from likely.logprob import LogProb, of_text
from likely.model import Model, expand_given
from likely.noise import seeded
from likely.space import Space
from likely.variational_bound import Terms, VariationalBound

__all__ = ["abilities", "data", "families_with", "fit", "models", "open", "sample", "score", "show", "stream", "terms"]

_DEFAULT = "autoregressive"
_LENGTH = 500  # symbols that a text goes on for, unless told
_ABILITIES: dict[str, type] = {
    "likelihood": Likelihood,
    "latent": Latent,
    "codec": Coded,
    "fill": Fillable,
    "trace": Traced,
    "vary": Varied,
    "closed form": ClosedForm,
    "weights": Weighted,
}


def open(folder: str | Path, *, device: str = "cpu") -> Model:
    """Load a stored model, ready to use."""
    return store.open_model(folder, device=device)


def fit(
    source: Any,
    model: str | Model | None = None,
    *,
    given: Any = None,
    out: str | Path | None = None,
    start: Model | str | Path | None = None,
    **how: Any,
) -> train.Run:
    """Fit a family to data; with `out`, the model and `run.json` with its test likelihood are left there.

    Args:
        source: a `Data`, or anything that `likely.load` reads.
        model: a registered name (see `likely.models()`), or a model to continue from; by default that of `start`, else "autoregressive".
        given: what to condition on, such as "label"; p(x) by default.
        start: a fitted model, or its folder, to go on from, in its size; another family that is named begins from its
            weights: their nets must be the same.
        how: budget (`minutes`, `steps` or `epochs`), `size`, `seed`, `device`, ... and the family's own options:
            see `likely.train.fit`.

    Returns: a `Run` with `model`, `seconds`, `steps`, `curve`.
    """
    if "size" in how and (start is not None or isinstance(model, Model)):
        raise UsageError("A fitted model keeps its size.", "Leave `size` out, or fit anew.")
    data = as_data(source, given=given)
    if start is not None and not isinstance(model, Model):
        model = _begun(as_model(start), model, how)
    model = _DEFAULT if model is None else model
    if train.is_main_process():
        for line in data.repeats():
            warnings.warn(line, UserWarning, stacklevel=2)
    run = train.fit(data, model, out=out, **how)
    if out is not None and train.is_main_process():
        _record_test(run, data, Path(out))
    return run


def _begun(start: Model, name: str | None, how: dict[str, Any]) -> Model:
    """The model itself where no other family is asked for; options of the family that is are taken out of `how`."""
    if name in (None, start.config["model"]):
        return start
    own = families.option_names(families.family_class(name))
    return families.tuned_from(start, name, **{option: how.pop(option) for option in list(how) if option in own})


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
    with_log_prob: bool = False,
    **how: Any,
) -> Any:
    """Draw n examples, [n, *shape] in data units; with `out`, also write them in the data's own format.

    Args:
        given: for a conditional model: a tensor, or values such as {"label": 3}.
        out: a `.png`, folder, `.txt`, `.csv` or `.npz`, as the data allow; what is there is kept unless `overwrite`.
        with_log_prob: return a `Drawn`, (x, log_prob), how likely the model holds each: after a prompt of what follows it, and without
            regard to filters or a temperature. Tables get it as a last column `log_prob` in nats, .npz files as an array.
        how: options of the family's sampler; of texts `prompt`, a string or bytes, `length`, how many symbols they go on for,
            and `stop`, a string (or several) at whose end a text ends; what is then left of its row is -1.

    Raises: UsageError for what the family does not do, such as `with_log_prob` of one whose likelihood does not come with its draws.
    """
    if n < 1:
        raise UsageError(f"Cannot draw {n} examples.", "Ask for at least one.")
    model = as_model(model)
    if out is not None:
        sources.check_path(out, model.space, overwrite=overwrite)
    values, how = as_given(given, model), _sampling(model, how)
    with seeded(seed):
        x, found = _drawn(model, n, values, how, with_log_prob)
    if out is not None:
        sources.write(x, model.space, out, overwrite=overwrite, log_prob=None if found is None else found.nats)
    return x if found is None else Drawn(x, found)


def _drawn(model: Model, n: int, given: Tensor | None, how: dict[str, Any], scored: bool) -> tuple[Tensor, LogProb | None]:
    """Examples and, if they are to be scored, their log-probabilities, as the sampler gives both."""
    sampler: Any = model.sample
    if not scored:
        return sampler(n, given, **how), None
    if "with_log_prob" not in inspect.signature(sampler).parameters:
        raise UsageError(f"{model.called} draws without log-probabilities.", "Draw first; `score` says how likely examples are.")
    x, found, *_ = sampler(n, given, with_log_prob=True, **how)
    return x, of_text(found if isinstance(found, LogProb) else LogProb(found, "exact"), model.space)


def _sampling(model: Model, how: dict[str, Any]) -> dict[str, Any]:
    """Options of the model's sampler, checked; strings as symbols."""
    check_options(that_draws(model).sample, how, "sampler", without=("with_log_prob",))  # `sample` itself takes that one
    symbols = {name: how[name] for name in ("prompt", "stop") if how.get(name) is not None}
    return {**how, **{name: _symbols(text, model.space) for name, text in symbols.items()}}


def _symbols(text: Any, space: Space) -> Any:
    if isinstance(text, Tensor):
        return text
    return [_symbols(part, space) for part in text] if isinstance(text, list | tuple) else sources.prompt_of(text, space)


@torch.no_grad()
def stream(model: Model | str | Path, n: int = 1, *, given: Any = None, seed: int = 0, **how: Any) -> Iterator[tuple[int, bytes]]:
    """Texts as they are written: (number of the text, its next bytes), the prompt first.

    One text comes symbol by symbol; several, and those of a beam search, are drawn side by side and come whole.
    By default a text goes on for 500 symbols, where the model can go on at all. Arguments are those of `sample`.
    """
    model = as_model(model)
    writer = model if isinstance(model, Primed) and model.goes_on else None
    if writer is not None and "beam" not in how:
        how = {"length": _LENGTH, **how}
    if n != 1 or "beam" in how or writer is None:
        for i, row in enumerate(sample(model, n, given=given, seed=seed, **how)):
            yield i, sources.decode(row, model.space.vocabulary)
        return
    values, how = as_given(given, model), _sampling(model, how)
    prompt, length = how.pop("prompt", torch.zeros(0, dtype=torch.int64)), how.pop("length")
    if length < 0:
        raise UsageError(f"Cannot draw {length} symbols.")
    yield 0, sources.decode(prompt, model.space.vocabulary)
    with seeded(seed):
        for symbols in islice(writer.follow(prompt[None], values, **how), length):
            yield 0, sources.decode(symbols, model.space.vocabulary)


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

    Returns: one record per example: `example` (its row), `nats` (log p), `bits` in `unit` (of a bound that several draws tighten
        beside them `bits_by_one_draw`), `kind`, `how`, `rank`
        (1 is the least likely), and `percentile`: the share of examples that are likelier.

    Raises: UsageError for a model without a likelihood.
    """
    if draws is not None and draws < 1:
        raise UsageError(f"Cannot take {draws} draws of a bound.", "Ask for at least one, or leave it to the family.")
    fitted = as_model(model)
    if not isinstance(fitted, Likelihood):
        raise UsageError(
            f"{fitted.called} has no likelihood, so it cannot score.", f"Those that have: {', '.join(families_with('likelihood'))}."
        )
    split = _split_to_score(model, fitted, source, given, read)
    draws = draws or fitted.bound_draws
    result = of_text(log_prob(fitted, split, draws=draws, seed=seed), fitted.space)
    per = fitted.space.nats_per_unit_of(split.x)
    bits = -result.nats / per
    loose = -log_prob(fitted, split, draws=1, seed=seed).nats / per if draws > 1 and result.kind == "lower bound" else None
    order = result.nats.argsort().tolist()
    likelier = len(order) - torch.searchsorted(result.nats[order], result.nats, right=True)
    return [
        {
            "example": i,
            "nats": result.nats[i].item(),
            "bits": bits[i].item(),
            **({} if loose is None else {"bits_by_one_draw": loose[i].item()}),
            "unit": fitted.space.unit,
            "kind": result.kind,
            "how": result.how,
            "rank": rank + 1,
            "percentile": likelier[i].item() / len(order),
        }
        for rank, i in enumerate(order)
    ]


def _split_to_score(model: Model | str | Path, fitted: Model, source: Any, given: Any, read: dict[str, Any]) -> Split:
    """The examples, with the values of `given` that were passed, else with those that their source holds."""
    values = as_given(given, fitted)
    split = _found_to_score(model, fitted, source, read, fitted.given_space if values is None else None)
    if values is not None:
        split = Split(split.x, expand_given(values, len(split.x)), split.stream)
    return split.apart()


def _found_to_score(model: Model | str | Path, fitted: Model, source: Any, read: dict[str, Any], given: Space | None) -> Split:
    source = built_in_test(source, model)
    if isinstance(source, Split):
        return source
    if isinstance(source, Tensor):
        return Split(source)
    if source is not None:
        return sources.read_split(source, fitted.space, given, **reading_options(model, read))
    if not (card := card_of(model)):
        raise UsageError("Nothing to score.", "Pass data (--data of `likely show`), or a folder that holds its data's card.")
    return sources.rebuild(card).test


def show(folder: str | Path) -> str:
    """The card of a stored model: what it is, what it was fitted to, what it reached. The files are verified first."""
    store.read_config(folder)
    return (Path(folder) / "card.md").read_text()


def terms(model: Model | str | Path, source: Any = None, *, given: Any = None, n: int = 64, seed: int = 0, **read: Any) -> Terms:
    """Every term of a diffusion model's bound on n examples, drawn at random; arguments as of `score`.

    Raises: UsageError for a model of another bound.
    """
    fitted = as_model(model)
    if not isinstance(fitted, VariationalBound):
        raise UsageError(f"{fitted.called} has no bound of L_T + L_t + L_0.", "Those that have: ddpm, diffusion, vdm.")
    split = _split_to_score(model, fitted, source, given, read)
    order = torch.randperm(len(split.x), generator=torch.Generator().manual_seed(seed))[:n]
    return fitted.terms(*split.rows(order), seed=seed)


def models() -> list[dict[str, Any]]:
    """All registered families: `name`, `summary`, `layouts`, `abilities`, `options`, `sizes`, and whether
    comparisons take it by default, `featured`."""
    return [_described(name) for name in families.names()]


def _described(name: str) -> dict[str, Any]:
    cls, registered = families.family_class(name), families.registry()[name]
    words = families.option_words(cls)
    options = {
        option: _option(p.replace(default=registered.preset.get(option, p.default)), words.get(option, ()))
        for option, p in families.option_names(cls).items()
    }
    return {
        "name": name,
        "summary": registered.summary or cls.summary,
        "layouts": sorted(cls.layouts),
        "abilities": abilities(cls),
        "options": options,
        "sizes": {size: {k: v for k, v in chosen.items() if k not in registered.preset} for size, chosen in cls.sizes.items()},
        "featured": name in families.featured(),
    }


def _option(parameter: Any, words: tuple[str, ...]) -> str:
    kind = (
        parameter.annotation
        if isinstance(parameter.annotation, str)
        else getattr(parameter.annotation, "__name__", str(parameter.annotation))
    )
    default = parameter.default if parameter.default is not None else "by data" if words else "by size or data"
    return f"{', '.join(words) or kind}; default {default}"


def abilities(cls: type[Model]) -> list[str]:
    """What a family can do besides being fitted and sampled."""
    return [name for name, ability in _ABILITIES.items() if issubclass(cls, ability)]


def families_with(ability: str) -> list[str]:
    """Names of the families that have an ability."""
    return [name for name in families.names() if ability in abilities(families.family_class(name))]


def data(source: Any, **read: Any) -> dict[str, Any]:
    """What is in a data set: counts, entropies, bits under trivial models, duplicates, numbers that repeat, what was skipped."""
    return sources.describe(as_data(source, **read))
