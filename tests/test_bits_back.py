"""Bits-back coding of diffusion: what comes back, how long it is beside the bound, and what is borrowed for it."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from likely import families
from likely.checks import tiny_data
from likely.coding import Stack, counts
from likely.coding.bits_back import rungs
from likely.coding.integer import claim_bits_of_normal
from likely.coding.normal import normal
from likely.errors import LikelyError, StoreError, UsageError
from likely.noise import seeded
from likely.space import Space, Support

DATA = tiny_data()
GRID = Space.grid(1, 3, 3, 4)
NAMES = ["diffusion", "vdm", "ddpm"]


def perturbed(name, space=GRID, **options):
    torch.manual_seed(0)
    model = families.build(name, space, size="tiny", **options)
    for p in model.parameters():
        if p.count_nonzero() == 0:
            nn.init.normal_(p, std=0.1)
    model.steps = min(model.steps or 8, 8)
    return model.eval()


# --- normals on a grid -------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.2, 3.0, 200.0])
def test_masses_of_a_normal_sum_to_one_and_are_those_of_the_coder(spread):
    reach, mean, std = 40, torch.tensor(0.37, dtype=torch.float64), torch.tensor(spread, dtype=torch.float64)
    symbols = torch.arange(-reach, reach + 1)
    bits = claim_bits_of_normal(symbols, mean, std, reach)
    assert (-bits).exp2().sum().item() == pytest.approx(1, abs=1e-12)
    stack, every = Stack(), symbols.repeat(50)
    stack.push_normal(every, mean.expand(len(every)), std.expand(len(every)), reach)
    assert stack.claim == pytest.approx(50 * bits.sum().item(), rel=1e-9)
    assert len(stack) == pytest.approx(stack.claim, abs=64)


def test_integers_near_and_far_from_their_normals_come_back():
    generator = torch.Generator().manual_seed(0)
    mean, std = 300 * torch.randn(400, 3, generator=generator, dtype=torch.float64), torch.rand(400, 3, generator=generator).double() * 60
    x = (mean + std * torch.randn(400, 3, generator=generator)).round().long()
    x[::7] += torch.tensor([10_000, -123_456_789, 31])
    stack = Stack()
    stack.push(torch.tensor([2]), counts(torch.zeros(1, 5)))
    codec = normal(mean, std, 30)
    codec.push(stack, x)
    assert torch.equal(codec.pop(stack, 400), x)
    assert stack.pop(counts(torch.zeros(1, 5))).tolist() == [2]


def test_a_normal_costs_its_entropy_and_numbers_that_differ_in_their_last_bits_are_coded_alike():
    generator = torch.Generator().manual_seed(1)
    mean, std = 1e3 * torch.rand(20_000, generator=generator, dtype=torch.float64), torch.full((20_000,), 32.0).double()
    x = (mean + std * torch.randn(20_000, generator=generator).double()).round().long()
    stack = Stack()
    normal(mean, std, 256).push(stack, x)
    assert stack.claim / len(x) == pytest.approx(math.log2(32 * math.sqrt(2 * math.pi * math.e)), abs=0.02)
    assert torch.equal(normal(mean * (1 + 1e-13), std * (1 - 1e-13), 256).pop(stack, len(x)), x)


def test_a_normal_of_nothing_is_refused():
    nan = torch.tensor([math.nan], dtype=torch.float64)
    with pytest.raises(LikelyError, match="NaN"):
        normal(nan, nan.nan_to_num(1), 8)


# --- the chain ---------------------------------------------------------------------------------------


def test_steps_up_lead_to_the_marginals_of_every_level():
    made = rungs(torch.linspace(6, -5, 9).tolist())
    assert [rung.alpha**2 + rung.sigma**2 for rung in made] == pytest.approx([1.0] * 9)
    alpha, var = 1.0, 0.0
    for rung in made:
        alpha, var = rung.shrink * alpha, rung.shrink**2 * var + rung.noise**2
        assert (alpha, var) == pytest.approx((rung.alpha, rung.sigma**2))
    for sooner, later in pairwise(made):  # cells are small beside both neighbours' steps
        assert 32 * sooner.cell <= min(sooner.noise, math.sqrt(later.fall) * sooner.sigma) * (1 + 1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_images_come_back_and_leave_what_was_below(name):
    model, x = perturbed(name), torch.randint(0, 4, (9, *GRID.shape))
    stack = Stack()
    stack.push(torch.tensor([3, 1]), counts(torch.zeros(2, 7)))
    claimed = stack.claim
    model.codec().push(stack, x)
    assert len(stack) <= stack.claim + 64
    assert torch.equal(model.codec().pop(stack, 9), x)
    assert (stack.claim, stack.borrowed) == (pytest.approx(claimed, abs=1e-6), 0)
    assert stack.pop(counts(torch.zeros(2, 7))).tolist() == [3, 1]


def test_tables_with_missing_cells_come_back():
    space = Space.columns(Support("nominal", 3, missing=True), Support("ordinal", 5), Support("ordinal", 2, missing=True))
    x = torch.stack([torch.randint(-1, 3, (40,)), torch.randint(0, 5, (40,)), torch.randint(-1, 2, (40,))], 1)
    model = perturbed("diffusion", space)
    assert torch.equal(model.codec().decompress(model.codec().compress(x), 40), x)


@pytest.mark.parametrize("name", ["diffusion", "ddpm"])
def test_a_message_is_as_long_as_the_bound_and_what_is_stated_beside_it(name):
    model, n = perturbed(name), 160
    x, stack = torch.randint(0, 4, (n, *GRID.shape)), Stack()
    model.codec().push(stack, x)
    terms = [model.terms(x, seed=seed) for seed in range(4)]
    bound = sum(term.total for term in terms) / 4 * n * GRID.dims
    noise = 4 * terms[0].errors[3] * n * GRID.dims
    stated = n * GRID.dims * model.steps * 1e-4 + 5 * 40  # the grids, and a size for each of some 40 groups
    assert stack.borrowed == 1024
    assert stack.claim - stack.borrowed <= bound + noise + stated
    if name == "diffusion":  # a net that is wrong and sure of it, as that of `ddpm` here, costs less than its bound says, by escapes
        assert stack.claim - stack.borrowed >= bound - noise
        assert noise + stated < 0.15 * bound  # so that this says something


def test_a_chain_of_an_enumerable_truth_costs_at_least_its_entropy():
    truth, space = DATA["grid"].truth, DATA["grid"].space
    model = perturbed("diffusion", space)
    x = DATA["grid"].test.x[:120]
    stack = Stack()
    model.codec().push(stack, x)
    least = -truth.log_prob(x).sum().item() / math.log(2)
    assert stack.claim - stack.borrowed > least
    assert stack.claim - stack.borrowed < 1.5 * 120 * space.dims * math.log2(3)


# --- batches -----------------------------------------------------------------------------------------


def test_what_is_pushed_in_batches_is_popped_in_one_with_its_labels():
    model = perturbed("diffusion", given=Space.label(3))
    x, given = torch.randint(0, 4, (11, *GRID.shape)), torch.randint(0, 3, (11, 1))
    stack = Stack()
    for start in range(0, 11, 4):
        model.codec(given[start : start + 4]).push(stack, x[start : start + 4])
    assert stack.borrowed == 1024  # by the first batch alone
    assert torch.equal(model.codec(given).pop(stack, 11), x)
    assert stack.borrowed == 0
    one = model.codec(given[:1])
    assert torch.equal(one.decompress(one.compress(x), 11), x)


def test_a_group_cannot_be_torn_apart():
    model = perturbed("diffusion", Space.grid(1, 1, 2, 3))
    stack = Stack()
    model.codec().push(stack, torch.zeros(64, 1, 1, 2, dtype=torch.int64))
    with pytest.raises(StoreError, match="coded together"):
        model.codec().pop(stack, 1)


def test_nothing_is_borrowed_where_there_is_enough():
    model, stack = perturbed("diffusion"), Stack()
    stack.borrow(200)
    model.codec().push(stack, torch.zeros(2, *GRID.shape, dtype=torch.int64))
    assert stack.borrowed == 32 * 200
    assert len(model.codec().pop(stack, 2)) == 2
    stack.give_back(200)
    assert len(stack) == len(Stack())


def test_what_is_given_back_has_to_be_what_was_borrowed():
    stack = Stack()
    stack.borrow(3)
    stack.pop_uniform(torch.tensor([2**32]))
    stack.push_uniform(torch.tensor([5]), torch.tensor([2**32]))
    with pytest.raises(StoreError, match="damaged"):
        stack.give_back(3)


def test_no_examples_are_no_message():
    model, stack = perturbed("diffusion"), Stack()
    model.codec().push(stack, torch.zeros(0, *GRID.shape, dtype=torch.int64))
    assert len(stack) == len(Stack())
    assert model.codec().pop(stack, 0).shape == (0, *GRID.shape)


# --- claims ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "space", [Space.columns(Support("decimal", decimals=1), Support("nominal", 3)), Space.points(3, 2, 4), Space.reals(2)], ids=str
)
def test_what_is_dequantized_and_sets_are_not_coded_and_not_claimed(space):
    model = perturbed("diffusion", space)
    assert not model.codable
    with pytest.raises(UsageError, match="at most 256 values"):
        model.codec()


def test_coding_leaves_the_model_and_the_state_of_randomness_as_they_were():
    model, x = perturbed("diffusion"), torch.randint(0, 4, (3, *GRID.shape))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with seeded(1):
        first = model.codec().compress(x)
        after = torch.rand(1)
    with seeded(1):
        assert torch.rand(1) == after
    assert model.codec().compress(x) == first
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
