"""How a model is named: a family, and in brackets its options and the models that it is made of.

flow                                    a family
vae(latent=16, depth=2)                 with options, as anywhere else written --latent 16 --depth 2
mixture(ngram, autoregressive)          made of others
vae > diffusion(net=unet)               one over the latents of the other: stacked(vae, diffusion(net=unet))
vae > vae > flow                        the same again: stacked(vae, stacked(vae, flow))
"""

import re
from ast import literal_eval
from typing import Any, NamedTuple

from likely.errors import UsageError

__all__ = ["Named", "parse", "plain_value", "slug", "split_names"]

_STACK = "stacked"
_TRUTHS = {"true": True, "yes": True, "false": False, "no": False}


class Named(NamedTuple):
    """A family's own name, the names of the models in its brackets, and the options there."""

    own: str
    members: list[str]
    options: dict[str, Any]


def parse(name: str) -> Named:
    """Take a name apart.

    Raises: UsageError for brackets that do not match.
    """
    stages = _split(name, ">")
    if not all(stages):
        raise UsageError(f"Nothing stands on one side of a '>' in '{name}'.", "Write vae > diffusion.")
    if len(stages) > 1:
        return Named(_STACK, [stages[0], " > ".join(stages[1:])], {})
    own, inside, rest = stages[0].partition("(")
    if inside and not rest.endswith(")"):
        raise _unclosed(name)
    parts = [part for part in _split(rest[:-1], ",") if part]
    options = {key.strip().replace("-", "_"): plain_value(value.strip()) for key, value in map(_option, parts) if key}
    return Named(own.strip(), [part for part in parts if not _option(part)[0]], options)


def split_names(names: str) -> list[str]:
    """Names that are separated by commas, but for those in brackets: "a, b(c, d)" -> ["a", "b(c, d)"]."""
    return _split(names, ",")


def plain_value(text: str) -> Any:
    """What is written as an option's value: a number, a truth (true, yes, false, no), None, or a word."""
    if text.lower() in _TRUTHS:
        return _TRUTHS[text.lower()]
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def slug(name: str) -> str:
    """A name as that of a file: "vae > flow" -> "vae-flow"."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.")


def _split(text: str, at: str) -> list[str]:
    """Pieces between the signs `at` that are in no brackets."""
    pieces, depth = [""], 0
    for sign in text:
        depth += (sign == "(") - (sign == ")")
        if depth < 0:
            raise _unclosed(text)
        if sign == at and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += sign
    if depth:
        raise _unclosed(text)
    return [piece.strip() for piece in pieces]


def _option(part: str) -> tuple[str, str]:
    """("latent", "16") of "latent=16"; ("", part) of a model's name."""
    key, sign, value = part.partition("=")
    return (key, value) if sign and "(" not in key and ">" not in key else ("", part)


def _unclosed(name: str) -> UsageError:
    return UsageError(f"The brackets of '{name}' do not match.", "Models made of others are written mixture(ngram, autoregressive).")
