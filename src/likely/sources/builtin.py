"""Data that needs no download: scikit-learn's digits and tables, and toys whose distribution is known."""

from collections.abc import Callable

import torch

from likely.sources.examples import Examples, Options
from likely.sources.toys import TOYS, bars_and_stripes, toy_examples
from likely.space import Space

__all__ = ["BUILTIN"]


def _digits(options: Options) -> Examples:
    """1,797 handwritten digits of 8 x 8 pixels with 17 levels, labelled 0 to 9."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.from_numpy(bunch.images).long()[:, None]
    return Examples(Space.grid(1, 8, 8, 17), x, torch.from_numpy(bunch.target).long()[:, None], Space.label(10))


BUILTIN: dict[str, Callable[[Options], Examples]] = {
    "digits": _digits,
    "bars-and-stripes": bars_and_stripes,
    **{name: (lambda options, name=name: toy_examples(name, options)) for name in TOYS},
}
