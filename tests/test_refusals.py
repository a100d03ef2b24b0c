"""What a family, a net or a verb refuses, in one line that says what and what to do instead."""

import pytest

from likely import families
from likely.errors import UsageError
from likely.space import Space


@pytest.mark.parametrize("heads", [0, 3])
@pytest.mark.parametrize(
    ("name", "space", "options"),
    [
        ("tarflow", Space.reals(3), {}),
        ("masked-diffusion", Space.sequence(4, 3), {}),
        ("diffusion", Space.points(3, 2), {}),
        ("diffusion", Space.grid(1, 4, 4, 2), {"net": "dit"}),
        ("autoregressive", Space.sequence(4, 3), {}),
        ("autoregressive", Space.sequence(4, 3), {"net": "any-order"}),
    ],
    ids=str,
)
def test_heads_that_do_not_divide_a_width_are_refused(name, space, options, heads):
    with pytest.raises(UsageError, match=f"{heads} heads do not divide a width of"):
        families.build(name, space, size="tiny", heads=heads, **options)


def test_a_unet_without_heads_attends_to_nothing_and_with_some_splits_its_width():
    families.build("diffusion", Space.grid(1, 4, 4, 2), size="tiny", heads=0)
    with pytest.raises(UsageError, match="3 heads do not divide a width of 16"):
        families.build("diffusion", Space.grid(1, 4, 4, 2), size="tiny", heads=3)
