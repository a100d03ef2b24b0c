"""Filters against a reference that spells out each definition on one small distribution at a time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from likely.decoding import UNFILTERED, Filter
from likely.errors import UsageError

PROBABILITIES = st.lists(st.floats(0.01, 1.0), min_size=2, max_size=6).map(lambda w: [v / sum(w) for v in w])


def reference(p, *, temperature=1.0, top_k=None, top_p=None, min_p=None, typical=None, greedy=False):
    """The filtered distribution, by sorting and counting in plain Python."""
    p = normalised([v ** (1 / temperature) for v in p])
    if greedy:
        top_k = 1
    if top_k is not None:
        p = only(p, sorted(range(len(p)), key=lambda i: -p[i])[:top_k])
    if top_p is not None:
        p = only(p, until(sorted(range(len(p)), key=lambda i: -p[i]), p, top_p))
    if min_p is not None:
        p = only(p, [i for i in range(len(p)) if p[i] >= min_p * max(p)])
    if typical is not None:
        entropy = -sum(v * math.log(v) for v in p if v > 0)
        alive = [i for i in range(len(p)) if p[i] > 0]
        p = only(p, until(sorted(alive, key=lambda i: abs(-math.log(p[i]) - entropy)), p, typical))
    return p


def until(order, p, mass):
    """The first of an order that together reach a mass."""
    kept, total = [], 0.0
    for i in order:
        kept.append(i)
        total += p[i]
        if total >= mass:
            break
    return kept


def only(p, kept):
    return normalised([v if i in kept else 0.0 for i, v in enumerate(p)])


def normalised(p):
    return [v / sum(p) for v in p]


WAYS = [
    {"temperature": 0.5},
    {"temperature": 3.0},
    {"top_k": 1},
    {"top_k": 3},
    {"top_p": 0.55},
    {"top_p": 1.0},
    {"min_p": 0.35},
    {"typical": 0.45},
    {"greedy": True},
    {"temperature": 0.8, "top_k": 4, "top_p": 0.83, "min_p": 0.11, "typical": 0.72},
]


@pytest.mark.parametrize("how", WAYS, ids=str)
@settings(max_examples=40, deadline=None)
@given(p=PROBABILITIES)
def test_a_filter_is_its_definition(how, p):
    got = Filter(**how)(torch.tensor(p, dtype=torch.float64).log()).softmax(-1)
    want = reference(p, **how)
    near = any(abs(a - b) < 1e-6 for i, a in enumerate(sorted(p)) for b in sorted(p)[i + 1 :])  # ties are settled by rounding
    if not near:
        assert got.tolist() == pytest.approx(want, abs=1e-6)
    assert (got > 0).any()


def test_of_equals_exactly_k_stay():
    assert (Filter(top_k=2)(torch.zeros(5)) > -math.inf).tolist() == [True, True, False, False, False]


@pytest.mark.parametrize("how", [{"top_p": 1e-9}, {"typical": 1e-9}, {"min_p": 1.0}, {"top_k": 1}, {"temperature": 1e-3}], ids=str)
def test_at_least_one_value_stays(how):
    logits = torch.randn(20, 7)
    assert (Filter(**how)(logits).softmax(-1).sum(-1) - 1).abs().max() < 1e-6
    assert ((Filter(**how)(logits) > -math.inf).sum(-1) >= 1).all()


def test_what_has_no_mass_never_gets_any():
    logits = torch.tensor([0.0, -math.inf, 1.0, -math.inf])
    for how in WAYS:
        assert Filter(**how)(logits).softmax(-1)[[1, 3]].sum() == 0


@pytest.mark.parametrize(
    "how",
    [{"temperature": 0.0}, {"temperature": math.inf}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}, {"min_p": -1.0}, {"typical": 2.0}],
)
def test_numbers_that_mean_nothing_are_refused(how):
    with pytest.raises(UsageError, match=next(iter(how))):
        Filter(**how)


def test_nothing_filtered_changes_nothing():
    logits = torch.randn(3, 5)
    assert torch.equal(UNFILTERED(logits), logits)
