"""Counts of contexts against brute force, estimators against closed forms, and what a stretch may learn."""

import math
from collections import defaultdict

import numpy as np
import pytest
import torch

from likely.dataset import Data, Split
from likely.errors import UsageError
from likely.evaluation.stretch import stretch_bits
from likely.families import build
from likely.families.ngram import ESTIMATORS
from likely.solve import backoff, contexts
from likely.space import Space
from likely.train import fit

START = 3


def random_text(n, symbols=START, sequences=4, seed=0):
    """A text that repeats itself, of several sequences."""
    rng = np.random.default_rng(seed)
    text = rng.choice(symbols, n, p=np.arange(1, symbols + 1) / np.arange(1, symbols + 1).sum())
    text[n // 2 : n // 2 + n // 8] = text[: n // 8]
    text[:: n // sequences] = symbols
    return text.astype(np.int32)


def continuation_counts(text, order, start=START):
    """{context, nearest symbol first: {symbol: count}} by the definition: all occurrences at the end of a context, kinds of them above."""
    follows = defaultdict(list)
    for t, s in enumerate(text):
        if s != start:
            history = text[max(0, t - order) : t][::-1].tolist()
            history = history[: history.index(start) + 1] if start in history else history
            follows[tuple(history)].append(int(s))
    counts = {context: {s: ss.count(s) for s in set(ss)} for context, ss in follows.items()}
    for depth in reversed(range(order)):
        for context, seen in [(c, s) for c, s in counts.items() if len(c) == depth + 1]:
            above = counts.setdefault(context[:-1], {})
            for s in seen:
                above[s] = above.get(s, 0) + 1
    return counts


def kneser_ney(counts, discount, history, symbols=START):
    """Interpolated absolute discounting, by its formula."""
    p = np.full(symbols, 1 / symbols)
    for k in range(len(discount)):
        seen = counts.get(tuple(history[:k])) if k <= len(history) else None
        if not seen:
            break
        n = sum(seen.values())
        back = sum(discount[k, min(c, 3)] for c in seen.values()) / n
        p = np.array([max(0, seen.get(s, 0) - discount[k, min(seen.get(s, 0), 3)]) / n + back * p[s] for s in range(symbols)])
    return p


@pytest.mark.parametrize("order", [0, 1, 3, 16])
def test_kneser_ney_is_its_formula(order):
    text = random_text(400)
    tree, blend = backoff.estimate(contexts.new_tree(order, START, capacity=16), text, "kneser-ney")
    places = np.flatnonzero(text[1:] != START)[-60:] + 1
    every = backoff.log_probs(tree, blend, text, places, every=True)
    counts = continuation_counts(text, order)
    for t, row in zip(places, every, strict=True):
        history = text[max(0, t - order) : t][::-1].tolist() if order else []
        history = history[: history.index(START) + 1] if START in history else history
        assert np.allclose(np.exp(row), kneser_ney(counts, blend.discount, history), atol=1e-12)


def test_discounts_are_chen_and_goodmans():
    text = random_text(3000, symbols=5)
    _, blend = backoff.estimate(contexts.new_tree(3, 5), text, "kneser-ney")
    counts = [c for context, seen in continuation_counts(text, 3, 5).items() if len(context) == 3 for c in seen.values()]
    n = [counts.count(c) for c in range(5)]
    y = n[1] / (n[1] + 2 * n[2])
    assert blend.discount[3, 1:] == pytest.approx([c - (c + 1) * y * n[c + 1] / n[c] for c in (1, 2, 3)], abs=0.1)


def test_ppm_escapes_by_method_d():
    """After 0 1 came 2, after 1 also 0: 2 has 1/2, 0 half of the escape, and 1, the last one left, the rest."""
    text = np.array([START, 0, 1, 2, 1, 0, 0, 1], np.int32)
    tree, blend = backoff.estimate(contexts.new_tree(2, 3), text, "ppm")
    every = backoff.log_probs(tree, blend, np.array([START, 0, 1, 2]), np.array([3]), every=True)
    assert np.exp(every[0]) == pytest.approx([1 / 4, 1 / 4, 1 / 2])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_tables_sum_to_one_and_hold_the_target(estimator):
    text = random_text(2000)
    tree, blend = backoff.estimate(contexts.new_tree(5, START, weighted=estimator == "ctw"), text, estimator)
    every = backoff.log_probs(tree, blend, text, np.arange(len(text)), every=True)
    target = backoff.log_probs(tree, blend, text, np.arange(len(text)))[:, 0]
    assert np.allclose(np.exp(every).sum(1), 1, atol=1e-12)
    there = text != START
    assert np.allclose(every[there, text[there]], target[there], atol=1e-14)
    assert (target[~there] == 0).all()


@pytest.mark.parametrize("part", ["trust", "bias"])
def test_weights_go_up_the_gradient(part):
    text = random_text(1000)
    tree, blend = backoff.estimate(contexts.new_tree(2, START), text[:-1], "mixed")
    before = getattr(blend, part).copy()

    def nats(values):
        return backoff.log_probs(tree, blend._replace(**{part: values}), text, np.array([999]))[0, 0]

    def slope(index):
        step = np.zeros_like(before)
        step[index] = 1e-4
        return (nats(before + step) - nats(before - step)) / 2e-4

    gradient = np.array([slope(index) for index in np.ndindex(*before.shape)]).reshape(before.shape)
    backoff.adapted(contexts.extended(tree, text[-1:], count=False), blend)
    moved = getattr(blend, part) - before
    rate = blend.rates[0 if part == "trust" else 1]
    assert np.abs(gradient).max() > 0.01
    assert np.allclose(moved, rate * gradient, atol=1e-8)


def text_data(train=3000, test=600, window=16, symbols=6):
    parts = [torch.from_numpy(random_text(n, symbols, 1, seed)).long().clamp_max(symbols - 1) for seed, n in enumerate((train, 200, test))]
    return Data(Space.sequence(window, symbols), *(Split(part.unfold(0, window, 1), stream=part) for part in parts))


@pytest.mark.parametrize("estimator", ["mixed", "ctw"])
@pytest.mark.parametrize("adapt", [True, False])
def test_a_stretch_is_a_product_of_conditionals(adapt, estimator):
    data = text_data()
    model = fit(data, "ngram", progress=False, adapt=adapt, estimator=estimator).model
    before, stretch = torch.cat([data.train.stream, data.valid.stream]), data.test.stream[:200]
    whole = model.log_prob_after(stretch, before)
    halves = [model.log_prob_after(stretch[:70], before), model.log_prob_after(stretch[70:], torch.cat([before, stretch[:70]]))]
    assert torch.allclose(whole, torch.cat(halves), atol=1e-12)
    every = torch.cat(list(model.logits_after(stretch, before)))
    assert torch.allclose(every.exp().sum(1), torch.ones(200, dtype=torch.float64))
    assert torch.allclose(every.gather(1, stretch[:, None])[:, 0], whole, atol=1e-12)


@pytest.mark.parametrize("estimator", ["mixed", "ctw"])
def test_adapting_learns_a_repetition_and_says_so(estimator):
    data = text_data()
    repeated = data.test.stream[:100].repeat(4)
    adapting, static = (fit(data, "ngram", progress=False, order=6, adapt=adapt, estimator=estimator).model for adapt in (True, False))
    nats = [model.log_prob_after(repeated, data.train.stream)[200:].mean().item() for model in (adapting, static)]
    assert nats[0] > nats[1] + 0.3
    assert "adapting" in stretch_bits(adapting, data)[0].how
    assert "adapting" not in stretch_bits(static, data)[0].how


@pytest.mark.parametrize("estimator", ["mixed", "ctw"])
def test_adapting_leaves_the_model_as_it_was(estimator):
    data = text_data()
    model = fit(data, "ngram", progress=False, estimator=estimator).model
    first = model.log_prob_after(data.test.stream, data.train.stream)
    assert torch.equal(first, model.log_prob_after(data.test.stream, data.train.stream))


def test_each_symbol_of_a_text_is_counted_once():
    data = text_data()
    model = fit(data, "ngram", progress=False, order=3).model
    assert torch.equal(model.text[1:].long(), data.train.stream)


@pytest.mark.parametrize("estimator", ["mixed", "ctw"])
@pytest.mark.parametrize("space", [Space.sequence(5, 3), Space.sequence(5, 3, variable=True)], ids=str)
def test_steps_are_the_rows_logits(space, estimator):
    x = space.enumerate()[::7]
    model = build("ngram", space, size="tiny", order=3, estimator=estimator)
    model.solve([(x, None)], [(x[:20], None)])
    rows, state, last = model.logits(x), model.init_state(len(x)), None
    for i in range(space.dims):
        state, logits = model.step(state, last)
        before = (x[:, :i] >= 0).all(1)
        assert torch.allclose(logits[before], rows[before, i], atol=1e-12)
        last = space.ended(x)[:, i]


@pytest.mark.parametrize("estimator", ["mixed", "ctw"])
def test_labels_have_contexts_of_their_own(estimator):
    x = torch.tensor([[0, 1, 0, 1, 0, 1]] * 50 + [[1, 0, 0, 1, 1, 0]] * 50)
    y = torch.arange(2).repeat_interleave(50)[:, None]
    model = build("ngram", Space.sequence(6, 2), given=Space.label(2), size="tiny", order=4, estimator=estimator)
    model.solve([(x, y)], [(x[::10], y[::10])])
    right, wrong = model.log_prob(x, y).nats, model.log_prob(x, 1 - y).nats
    assert (right - wrong).min() > 1
    states = Space.sequence(6, 2).enumerate()
    for label in range(2):
        assert model.log_prob(states, torch.tensor([[label]])).nats.exp().sum().item() == pytest.approx(1)


def test_a_prefix_is_its_marginal():
    space = Space.sequence(4, 3)
    model = build("ngram", space, size="tiny", order=2)
    x = space.enumerate()
    model.solve([(x[::2], None)], [(x[1::5], None)])
    prefix = torch.tensor([[2, 0, -1, -1]])
    every = x[(x[:, :2] == prefix[:, :2]).all(1)]
    assert model.log_prob(prefix).nats.exp().item() == pytest.approx(model.log_prob(every).nats.exp().sum().item())


@pytest.mark.parametrize("options", [{"estimator": "katz"}, {"order": 17}])
def test_unknown_options_are_named(options):
    with pytest.raises(UsageError, match=next(iter(map(str, options.values())))):
        build("ngram", Space.sequence(4), **options)


def test_an_unread_model_is_uniform():
    model = build("ngram", Space.sequence(3, 4))
    assert model.log_prob(torch.tensor([[0, 1, 2]])).nats.item() == pytest.approx(-3 * math.log(4))


@pytest.mark.parametrize(("stream", "deep"), [("cycle", True), ("noise", False)])
def test_the_order_is_chosen_where_it_helps(stream, deep):
    rng = np.random.default_rng(0)
    text = torch.from_numpy(np.tile(rng.integers(0, 4, 40), 30) if stream == "cycle" else rng.integers(0, 4, 1200))
    split = Split(text.unfold(0, 8, 1), stream=text)
    held_out = split if deep else Split(split.x, stream=text.flip(0))
    model = fit(Data(Space.sequence(8, 4), split, held_out, split), "ngram", progress=False, adapt=False, estimator="kneser-ney").model
    assert (model.order > 2) == deep


@pytest.mark.parametrize("estimator", ["mixed", "ctw"])
@pytest.mark.parametrize("space", [Space.sequence(4, 2), Space.sequence(4, 1, variable=True)], ids=str)
def test_strings_over_two_symbols_keep_every_ability(space, estimator):
    """Its logits are one for each symbol, where heads of two states have one alone."""
    x = torch.randint(-1 if space.variable else 0, space.supports[0].levels, (60, 4)).cummin(1).values
    made = build("ngram", space, order=3, estimator=estimator)
    made.solve([(x, None)], [(x[:20], None)])
    every = space.enumerate()
    nats = made.log_prob(every).nats
    assert nats.exp().sum().item() == pytest.approx(1, abs=1e-6)
    drawn = made.sample(40, with_log_prob=True)
    torch.testing.assert_close(drawn.log_prob, made.log_prob(drawn.x).nats.double())
    best = nats.topk(2)
    found = made.sample(2, beam=32, with_log_prob=True)
    torch.testing.assert_close(found.log_prob, best.values.double())
    assert torch.equal(made.codec().decompress(made.codec().compress(every), len(every)), every)
    known = torch.tensor([[True, False, False, True]])
    assert made.fill(every[-1:], known, draws=3).x.shape == (3, 1, 4)
