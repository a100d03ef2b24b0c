"""Codecs: round trips, lengths against the claim of the integer tables, golden bytes, refusals."""

import math
import sys
from decimal import Decimal, localcontext

import pytest
import torch
from torch import nn

from likely.coding import Codec, Stack, autoregressive, categorical, columns, counts, piecewise, prefixed
from likely.coding.integer import LARGEST_ALPHABET, _exponentials, claim_bits
from likely.errors import DataError, LikelyError, StoreError, UsageError
from likely.space import Space, Support


def _logits(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3


def _draw(logits):
    return torch.distributions.Categorical(logits=logits).sample()


def _round_trip(codec: Codec, x, claim=None):
    """Push, check the length (and the claim, in bits), pop; the stack is as it was."""
    stack = Stack()
    below = torch.tensor([3, 1, 4])
    stack.push(below, counts(torch.zeros(3, 7)))
    start, claimed = len(stack), stack.claim
    codec.push(stack, x)
    payload = len(stack) - start
    assert payload <= (stack.claim - claimed) * 1.001 + 128
    assert payload >= (stack.claim - claimed) - 64
    if claim is not None:
        assert stack.claim - claimed == pytest.approx(claim, rel=1e-3, abs=1e-2)
    again = codec.pop(stack, len(x))
    assert torch.equal(again, x)
    assert stack.claim == pytest.approx(claimed, abs=1e-6)
    assert torch.equal(stack.pop(counts(torch.zeros(3, 7))), below)


@pytest.mark.parametrize("shape", [(0, 3, 4), (1, 1, 1), (5, 2, 1), (1, 1, LARGEST_ALPHABET), (3, 1, LARGEST_ALPHABET), (64, 30, 17)])
def test_categorical_round_trip(shape):
    logits = _logits(*shape)
    x = _draw(logits) if shape[0] else torch.zeros(shape[:2], dtype=torch.int64)
    exact = -logits.log_softmax(-1).gather(-1, x[..., None]).sum() / math.log(2)
    _round_trip(categorical(logits), x, float(exact) if shape[2] < 1000 else None)


def test_one_table_for_all_rows_costs_what_it_says():
    """A table that is expanded over the batch has no memory of its own; the coder must not read past it."""
    logits = _logits(1, 20, 9)
    _round_trip(categorical(logits), _draw(logits.expand(500, -1, -1)))


def test_counts_are_positive_and_sum_to_two_to_the_24():
    for logits in (_logits(50, 17), _logits(2, LARGEST_ALPHABET), torch.tensor([[0.0, -math.inf, -1e9]]), torch.full((1, 5), -math.inf)):
        table = counts(logits)
        assert table.dtype == torch.int64
        assert (table >= 1).all()
        assert (table.sum(-1) == 2**24).all()


def test_counts_follow_the_logits():
    logits = _logits(200, 17)
    p = counts(logits).double() / 2**24
    torch.testing.assert_close(p, logits.softmax(-1), rtol=5e-3, atol=2e-6)
    kl = (logits.softmax(-1) * (logits.log_softmax(-1) - p.log())).sum(-1) / math.log(2)
    assert kl.mean() < 1e-5


def test_rounding_absorbs_the_noise_of_another_machine():
    logits = torch.round(_logits(100, 64) * 256) / 256
    assert torch.equal(counts(logits), counts(logits + 1e-6 * torch.randn(100, 64, dtype=torch.float64)))


def test_the_exponential_is_exact():
    with localcontext() as context:
        context.prec = 60
        want = [int((2**30 * (Decimal(-d) / 256).exp()).to_integral_value()) for d in range(0, 5400, 7)]
    table = _exponentials().tolist() + [0] * 100
    assert [table[d] for d in range(0, 5400, 7)] == want


def test_golden_table_and_bytes():
    logits = torch.tensor([[0.0, 1.0, -2.5, 0.125]], dtype=torch.float64)
    assert counts(logits).tolist() == [[3400661, 9243957, 279144, 3853454]]
    x = torch.tensor([[1, 0, 3, 2, 1, 1, 0, 2, 3, 3]])
    assert categorical(logits[None].expand(1, 10, 4)).compress(x).hex() == "98e335d39d860000"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_logits_are_refused(bad):
    with pytest.raises(LikelyError, match="NaN or infinite"):
        counts(torch.tensor([[0.0, bad]]))


def test_too_large_an_alphabet_is_refused():
    with pytest.raises(UsageError, match="65537"):
        counts(torch.zeros(1, LARGEST_ALPHABET + 1))


def test_a_symbol_outside_its_table_is_refused():
    with pytest.raises(LikelyError, match=r"0\.\.5 are outside a table of 5"):
        Stack().push(torch.tensor([0, 5]), counts(torch.zeros(2, 5)))


def test_a_panic_of_the_coder_is_our_error():
    """The coder panics at a uniform over one value; the panic is a BaseException and must not end the process."""
    import constriction

    stack = Stack()
    with pytest.raises(LikelyError, match="entropy coder failed"):
        stack._encode(torch.tensor([0]), constriction.stream.model.Uniform(), torch.tensor([1]).int().numpy())


def test_interrupts_are_not_swallowed():
    stack = Stack()

    class Interrupted:
        def encode_reverse(self, *args):
            raise KeyboardInterrupt

    stack._coder = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        stack.push(torch.tensor([0]), counts(torch.zeros(1, 2)))


def test_streams_that_are_cut_or_damaged_are_refused():
    with pytest.raises(StoreError, match="5 bytes"):
        Stack(b"12345")
    with pytest.raises(LikelyError, match="entropy coder failed"):
        Stack(b"\x01\0\0\0\0\0\0\0")  # a stream never ends in a zero word


def test_uniform_integers_of_any_width():
    sizes = torch.tensor([1, 2, 3, 4095, 4096, 4097, 2**24 + 1, 10**15, 2**59 + 7, 2**60])
    for offsets in (torch.zeros_like(sizes), sizes - 1, sizes // 3):
        stack = Stack()
        stack.push_uniform(offsets, sizes)
        assert stack.claim == pytest.approx(sizes.double().log2().sum().item(), rel=1e-3)
        assert len(stack) <= stack.claim * 1.001 + 64
        assert torch.equal(stack.pop_uniform(sizes), offsets)


def test_piecewise_integers():
    edges = torch.tensor([[-(2**60), -5, 0, 1, 7, 2**60]])
    log_p = torch.tensor([[[1e-3, 0.3, 0.4, 0.298, 1e-3]]], dtype=torch.float64).log()
    x = torch.tensor([-5, -1, 0, 0, 0, 3, 6, 7, -6, 10**15, -(10**15)])[:, None]
    _round_trip(piecewise(edges, log_p), x)
    with pytest.raises(DataError, match="outside"):
        piecewise(edges, log_p).push(Stack(), torch.tensor([[2**60]]))


def test_columns_and_prefixes_compose():
    a, b = _logits(1, 2, 5), _logits(1, 1, 3)
    x = torch.cat([_draw(a.expand(40, -1, -1))[:, :1], _draw(b.expand(40, -1, -1)), _draw(a.expand(40, -1, -1))[:, 1:]], 1)
    _round_trip(columns(([0, 2], categorical(a)), ([1], categorical(b))), x)
    strings = torch.randint(0, 3, (40, 6))
    strings[torch.arange(6) >= torch.randint(0, 7, (40, 1))] = -1
    body = lambda size, rows: categorical(b.expand(1, size, -1))  # noqa: E731
    _round_trip(prefixed(categorical(torch.zeros(1, 1, 7)), body, 6), strings)


class _Chain(nn.Module):
    """A Markov chain as a causal net: parameters of an entry are a row of a table, chosen by the last entry."""

    def __init__(self, states):
        super().__init__()
        self.table = nn.Embedding(states + 1, states)

    def init_state(self, n, given=None):
        return n

    def step(self, state, x_i):
        index = torch.zeros(state, dtype=torch.int64) if x_i is None else x_i + 2 if bool((x_i < 0).any()) else x_i + 1
        return state, self.table(index.clamp_max(len(self.table.weight) - 1))


@pytest.mark.parametrize("order", [None, [2, 0, 3, 1]])
def test_autoregressive(order):
    torch.manual_seed(0)
    space, net = Space.columns(*[Support("nominal", 4)] * 4), _Chain(4)
    x = torch.randint(0, 4, (30, 4))
    places = order or range(4)
    claim, last = 0.0, torch.zeros(30, dtype=torch.int64)
    for i in places:
        claim -= net.table(last).double().log_softmax(-1).gather(1, x[:, i : i + 1]).sum().item() / math.log(2)
        last = x[:, i] + 1
    dtypes = []

    def logits(place, parameters):
        dtypes.append(parameters.dtype)
        return parameters

    _round_trip(autoregressive(space, net, logits, order=order), x, claim)
    assert set(dtypes) == {torch.float64}
    assert net.table.weight.dtype == torch.float32


def test_autoregressive_codes_missing_cells_as_the_last_state():
    space = Space.columns(Support("nominal", 2, missing=True), Support("nominal", 3))
    x = torch.tensor([[-1, 2], [0, 0], [1, 2], [-1, 1]])
    _round_trip(autoregressive(space, _Chain(3), lambda place, parameters: parameters), x)


def test_the_coder_is_imported_only_where_it_is_used():
    import subprocess

    code = "import sys, likely.coding; sys.exit('constriction' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_claim_bits():
    table = torch.tensor([[2**23, 2**22, 2**22]])
    assert claim_bits(table.expand(3, -1), torch.arange(3)).tolist() == [1.0, 2.0, 2.0]
