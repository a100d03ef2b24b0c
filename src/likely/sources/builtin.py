"""Data that needs no download: scikit-learn's digits and tables, and toys whose distribution is known."""

from collections.abc import Callable
from typing import Any

import torch

from likely.sources.columns import Column
from likely.sources.examples import Examples, Options
from likely.sources.tables import table_examples
from likely.sources.toys import TOYS, bars_and_stripes, toy_examples
from likely.sources.toysets import circles, swarms
from likely.space import Space

__all__ = ["BUILTIN"]


def _digits(options: Options) -> Examples:
    """1,797 handwritten digits of 8 x 8 pixels with 17 levels, labelled 0 to 9."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    x = torch.from_numpy(bunch.images).long()[:, None]
    return Examples(Space.grid(1, 8, 8, 17), x, torch.from_numpy(bunch.target).long()[:, None], Space.label(10))


def _sklearn_table(bunch: Any, options: Options) -> Examples:
    """A scikit-learn table: its measurements on the grids of their decimals, and the column `class`."""
    columns = [Column.of(name, map(repr, values.tolist())) for name, values in zip(bunch.feature_names, bunch.data.T, strict=True)]
    classes = Column.of("class", (str(bunch.target_names[code]) for code in bunch.target))
    return table_examples([*columns, classes], options)


def _wine(options: Options) -> Examples:
    """178 wines of 3 growers: 13 chemical measurements."""
    from sklearn.datasets import load_wine

    return _sklearn_table(load_wine(), options)


def _breast_cancer(options: Options) -> Examples:
    """569 tumours, benign or malignant: 30 measurements of cell nuclei."""
    from sklearn.datasets import load_breast_cancer

    return _sklearn_table(load_breast_cancer(), options)


BUILTIN: dict[str, Callable[[Options], Examples]] = {
    "digits": _digits,
    "wine": _wine,
    "breast-cancer": _breast_cancer,
    "bars-and-stripes": bars_and_stripes,
    "swarms": swarms,
    "circles": circles,
    **{name: (lambda options, name=name: toy_examples(name, options)) for name in TOYS},
}
