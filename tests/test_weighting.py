"""Context-tree weighting against the mixture over all prunings, written out, and against closed forms."""

import itertools
import math

import numpy as np
import pytest
import torch

from likely.dataset import Data, Split
from likely.evaluation.measure import held_out_bits
from likely.families import build
from likely.solve import backoff, contexts
from likely.space import Space
from likely.train import fit


def text_of(n, symbols, sequences=2, seed=0):
    """Sequences of which the later ones repeat the first in part; each begins with a start."""
    text = np.random.default_rng(seed).integers(0, symbols, n)
    text[n // 2 :] = text[: n - n // 2]
    text[:: n // sequences] = symbols
    return text


def weighed(text, order, symbols):
    """The tree that has read a text, and nats of its places, each predicted before it was counted."""
    empty = contexts.new_tree(order, symbols, capacity=16, weighted=True)
    return backoff.adapted(contexts.extended(empty, np.asarray(text), count=False), blend_of(order))


def blend_of(order):
    return backoff.blend_of("ctw", *backoff.unlearnt(order + 1))


def prunings(node, order, start):
    """[(nodes that might have been leaves earlier or were, leaves)]: every tree of contexts below a node."""
    if len(node) == order or start in node:
        return [(0, [node])]
    below = itertools.product(*(prunings((*node, s), order, start) for s in range(start + 1)))
    split = [(1 + sum(cost for cost, _ in parts), [leaf for _, leaves in parts for leaf in leaves]) for parts in below]
    return [(1, [node]), *split]


def krichevsky_trofimov(zeros, ones):
    """log of the block's probability, int q^ones (1 - q)^zeros / (pi sqrt(q (1 - q))) dq."""
    return math.lgamma(zeros + 0.5) + math.lgamma(ones + 0.5) - math.log(math.pi) - math.lgamma(zeros + ones + 1)


def decisions_of(s, symbols):
    """{decision: bit} on the way to a symbol in the heap with leaves K .. 2 K - 1."""
    leaf, way = symbols + s, {}
    while leaf > 1:
        way[leaf >> 1], leaf = leaf & 1, leaf >> 1
    return way


def nats_of_all_prunings(text, order, symbols):
    """log sum over prunings of 2^-cost times the estimates of its leaves, for each decision."""
    total, trees = 0.0, prunings((), order, symbols)
    for decision in range(1, symbols):
        bits = [(text[:t][::-1], decisions_of(s, symbols).get(decision)) for t, s in enumerate(text) if s != symbols]

        def nats(leaf, bits=bits):
            seen = [bit for history, bit in bits if bit is not None and tuple(history[: len(leaf)]) == leaf]
            return krichevsky_trofimov(seen.count(0), seen.count(1))

        nodes = {leaf: nats(leaf) for leaf in {leaf for _, leaves in trees for leaf in leaves}}
        total += np.logaddexp.reduce([sum(nodes[leaf] for leaf in leaves) - cost * math.log(2) for cost, leaves in trees])
    return total


@pytest.mark.parametrize(("symbols", "order", "n"), [(2, 1, 40), (2, 2, 80), (2, 3, 80), (3, 2, 60), (4, 1, 60), (5, 1, 50)])
def test_a_block_is_the_mixture_of_all_prunings(symbols, order, n):
    text = text_of(n, symbols)
    _, nats = weighed(text, order, symbols)
    assert nats.sum() == pytest.approx(nats_of_all_prunings(text.tolist(), order, symbols), abs=1e-10)


def test_a_prediction_is_the_ratio_of_two_blocks():
    text = text_of(30, 3).tolist()
    tree, _ = weighed(text, 2, 3)
    every = backoff.log_probs(tree, blend_of(2), np.array([*text, 0]), np.array([30]), every=True)[0]
    before = nats_of_all_prunings(text, 2, 3)
    assert every == pytest.approx([nats_of_all_prunings([*text, s], 2, 3) - before for s in range(3)], abs=1e-10)


def test_without_contexts_it_is_krichevsky_and_trofimovs_block():
    text = text_of(200, 2)
    _, nats = weighed(text, 0, 2)
    assert nats.sum() == pytest.approx(krichevsky_trofimov((text == 0).sum(), (text == 1).sum()), abs=1e-10)


@pytest.mark.parametrize("symbols", [1, 2, 3, 6, 256])
@pytest.mark.parametrize("order", [0, 3, 16])
def test_every_prediction_sums_to_one(symbols, order):
    text = text_of(300, symbols, sequences=3)
    tree, nats = weighed(text, order, symbols)
    every = backoff.log_probs(tree, blend_of(order), text, np.arange(300), every=True)
    assert np.allclose(np.exp(every).sum(1), 1, atol=1e-12)
    assert np.isfinite(every).all()
    assert (nats[text == symbols] == 0).all()


def test_counting_at_once_is_counting_in_parts():
    text = text_of(2000, 6, sequences=5)
    whole = contexts.extended(contexts.new_tree(5, 6, weighted=True), text)
    parts, _ = weighed(text[:700], 5, 6)
    parts, _ = backoff.adapted(contexts.extended(contexts.copied(parts), text[700:], count=False), blend_of(5))
    places = np.arange(1, 2000)
    assert np.array_equal(*(backoff.log_probs(tree, blend_of(5), text, places) for tree in (whole, parts)))


def test_a_source_of_known_order_is_learnt_to_its_entropy():
    """A binary Markov chain of order 2; deeper contexts cost next to nothing."""
    rng, ones = np.random.default_rng(0), {(0, 0): 0.9, (0, 1): 0.2, (1, 0): 0.6, (1, 1): 0.05}
    text, entropy = [2, 0, 0], 0.0
    for _ in range(6000):
        p = ones[text[-2], text[-1]]
        text.append(int(rng.random() < p))
        entropy -= math.log(p if text[-1] else 1 - p)
    excess = [-weighed(text, order, 2)[1][3:].sum() - entropy for order in (1, 2, 8)]
    redundancy = 4 * (0.5 * math.log(6000) + 1) + 7 * math.log(2)  # Willems, Shtarkov and Tjalkens' bound, starts aside
    assert excess[0] > 100
    assert 0 < excess[1] < redundancy
    assert 0 < excess[2] < redundancy + 10


def test_it_is_a_member_of_a_mixture():
    text = torch.from_numpy(text_of(700, 4, sequences=1)).long().clamp_max(3)
    parts = (text[:500], text[500:600], text[600:])
    data = Data(Space.sequence(8, 4), *(Split(part.unfold(0, 8, 1), stream=part) for part in parts))
    model = fit(data, "mixture(ngram(estimator=ctw,order=3), ngram(estimator=ppm,order=2))", progress=False, steps=1).model
    assert held_out_bits(model, data).kind == "exact"
    rows = data.test.x[:8]
    codec = model.codec()
    assert torch.equal(codec.decompress(codec.compress(rows), 8), rows)


def test_a_codec_costs_what_is_claimed():
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 3, (400, 12))).cumsum(1) % 5
    model = build("ngram", Space.sequence(12, 5), estimator="ctw", order=4)
    model.solve([(x[:300], None)], [(x[:20], None)])
    file = model.codec().compress(x[300:])
    assert torch.equal(model.codec().decompress(file, 100), x[300:])
    assert 8 * len(file) == pytest.approx(-model.log_prob(x[300:]).nats.sum().item() / math.log(2), rel=0.02)
