"""What a model is conditioned on, as a person writes it: names and values."""

from typing import Any

import torch
from torch import Tensor

from likely.errors import DataError, UsageError, nearest
from likely.sources.captions import CAPTION, caption_bytes, fitting, padded
from likely.space import Space, Support

__all__ = ["given_values"]


def given_values(given: dict[str, Any] | str, space: Space | None) -> Tensor:
    """Rows of `given` from {"label": 3} or "label=3,size=1.5": categories by name or code, numbers as they are.

    Of a caption all that follows "caption=" is one string; {"caption": ["a cat", "a dog"]} is a row for each.

    Raises: UsageError for an unconditional model, or names and categories that it does not know; DataError for values that do not fit.
    """
    if space is None:
        raise UsageError("This model is unconditional, p(x); it takes no `given`.", "Fit one with --given.")
    text = space.layout == "sequence"
    names = [s.name or (CAPTION if text else f"x{i}") for i, s in enumerate(space.supports)]
    example = f"{names[0]}=a red square" if text else "label=3"
    pairs = given if isinstance(given, dict) else dict(_pair(part, example) for part in ([given] if text else given.split(",")))
    for name in pairs:
        if name not in names:
            raise UsageError(f"The model is not conditioned on '{name}'.", nearest(name, names))
    if missing := [name for name in names if name not in pairs]:
        raise UsageError(f"A value of {', '.join(missing)} is missing in `given`.")
    if text:
        return _strings(pairs[names[0]], space)
    row = [_code(pairs[name], support) for name, support in zip(names, space.supports, strict=True)]
    return torch.tensor([row], dtype=space.dtype)


def _strings(value: Any, space: Space) -> Tensor:
    """Codes of a string, or of each of several."""
    if not space.textual or space.vocabulary:
        raise UsageError(f"The model is conditioned on a {space.named}, not on text.", "Pass its symbols as a tensor [n, length].")
    texts = [caption_bytes(str(text)) for text in (value if isinstance(value, list | tuple) else [value])]
    if not texts or not all(texts):
        raise UsageError("An empty caption says nothing.", "For p(x), pass guidance=0 (--guidance 0) to a model fitted with --drop 0.1.")
    return fitting(padded(texts, max(map(len, texts))), space)


def _pair(part: str, example: str) -> tuple[str, str]:
    name, sign, value = part.partition("=")
    if not sign:
        raise UsageError(f"'{part}' is not of the form name=value.", f"For example: {example}.")
    return name.strip(), value.strip()


def _code(value: Any, support: Support) -> float | int:
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


def _named(support: Support) -> str:
    return f"By name: {', '.join(support.categories)}." if support.categories else ""
