"""Models of noisy data in double precision: they train, draw, score and carry there, and what they draw is of the space's own type."""

import pytest
import torch

from likely import families
from likely.space import Space

NAMES = ["diffusion", "ddpm", "vdm", "score", "flow-matching", "meanflow", "consistency"]
SPACES = {"reals": Space.reals(2), "grid": Space.grid(1, 8, 8, 16), "points": Space.points(3, 2)}
CASES = [(name, word) for name in NAMES for word in SPACES if families.family_class(name).serves(SPACES[word])]


@pytest.mark.parametrize(("name", "word"), CASES, ids=str)
def test_a_model_of_double_precision_draws_and_learns(name, word):
    space = SPACES[word]
    model = families.build(name, space, size="tiny").double().eval()
    x = model.sample(4)
    assert x.dtype == space.dtype
    space.check(x)
    model.train()(x).mean().backward()


@pytest.mark.parametrize(("name", "word"), [("ddpm", "reals"), ("diffusion", "points"), ("vdm", "reals"), ("score", "reals")])
def test_a_likelihood_of_double_precision_is_that_of_single(name, word):
    space = SPACES[word]
    model = families.build(name, space, size="tiny").eval()
    model.tolerance = 0.1
    x = model.sample(2)
    with torch.no_grad():
        single, double = model.log_prob(x).nats, model.double().log_prob(x).nats
    torch.testing.assert_close(single, double, rtol=1e-3, atol=1e-3)


def test_latents_are_carried_to_and_from_by_a_model_of_double_precision():
    space = SPACES["points"]
    model = families.build("diffusion", space, size="tiny").double().eval()
    model.tolerance = 0.1
    x = model.sample(2)
    back = model.decode(model.encode(x).value)
    assert back.dtype == space.dtype
    torch.testing.assert_close(back, x, rtol=0, atol=0.2)
