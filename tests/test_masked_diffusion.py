"""Discrete diffusion: both bounds by enumeration, what is drawn by chi-square, and fillings of any mask."""

import itertools
import math

import pytest
import torch
from numpy.polynomial.legendre import leggauss
from scipy.stats import chi2

import likely
from likely import families
from likely.checks import Room, check_model, tiny_data
from likely.enumeration import index_of
from likely.errors import UsageError
from likely.families.masked_diffusion import MaskedDiffusion
from likely.heads import Heads
from likely.nets import NETS, net
from likely.solve.absorbing import AbsorbingNoise
from likely.solve.uniform import UniformNoise
from likely.space import Space, Support

ROOM = Room(steps=40, draws=25, samples=1000)
TEXT = Space.sequence(3, 3)
STRINGS = Space.sequence(3, 2, variable=True)
TABLE = Space.columns(
    Support("nominal", 2, "flag", missing=True), Support("ordinal", 3, "size", center=1.5, scale=0.9), Support("nominal", 2, "answer")
)
GRID = Space.grid(2, 2, 2, 3)


def awake(made):
    """In float64, with random weights that are large enough for every dependence to show."""
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made.double().eval()


def model(space, **options):
    return awake(MaskedDiffusion(space, size="tiny", **options))


def chi_square(count, p):
    """Tail probability of counts under p; rare states together."""
    expected = p / p.sum() * count.sum()
    common = expected >= 5
    count, expected = (torch.cat([v[common], v[~common].sum()[None]]) for v in (count.double(), expected))
    return float(chi2.sf(((count - expected).square() / expected.clamp_min(1e-9)).sum().item(), len(count) - 1))


def subsets(entries):
    return [torch.tensor(mask) for mask in itertools.product([False, True], repeat=entries) if any(mask)]


@torch.no_grad()
def missed(made, states):
    """{mask: -log p [states, entries] of what it hides}, of all masks."""
    symbols, entries = made.space.ended(states), states[0].numel()
    found = {}
    for mask in subsets(entries):
        hidden = mask.view(states.shape[1:]).expand_as(states)
        found[tuple(mask.tolist())] = made.noise.missed(symbols, hidden, made._predict(None)).flatten(1)
    return found


def in_order(found, order, entries):
    """-log p [states] of revealing entries in an order."""
    hidden, total = [True] * entries, 0.0
    for place in order:
        total = total + found[tuple(hidden)][:, place]
        hidden[place] = False
    return total


def orders_of(entries):
    return list(itertools.permutations(range(entries)))


def mixture(found, entries):
    """p [states] of one entry at a time in random order."""
    return torch.stack([(-in_order(found, order, entries)).exp() for order in orders_of(entries)]).mean(0)


# -- masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [TEXT, TABLE, STRINGS], ids=str)
def test_the_bound_is_the_mean_over_orders_over_masks_and_over_time(space):
    made, states, n = model(space), space.enumerate(), 3
    found = missed(made, states)
    orders = torch.stack([in_order(found, order, n) for order in orders_of(n)])
    masks = sum(nats.sum(1) / (sum(mask) * math.comb(n, sum(mask))) for mask, nats in found.items())
    nodes, weights = (torch.from_numpy(v) for v in leggauss(4))  # exact: a polynomial in t
    time = 0.0
    for t, w in zip((nodes + 1) / 2, weights / 2, strict=True):
        time = time + w / t * sum(t ** sum(mask) * (1 - t) ** (n - sum(mask)) * nats.sum(1) for mask, nats in found.items())
    torch.testing.assert_close(masks, orders.mean(0), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(time, orders.mean(0), rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        drawn = made.log_prob(states, draws=200)
    assert ((drawn.nats + orders.mean(0)).abs() < 4.5 * drawn.stderr + 1e-9).all()
    assert (orders.mean(0) + mixture(found, n).log() >= -1e-9).all()  # a bound of what is drawn
    assert mixture(found, n).sum().item() == pytest.approx(1, abs=1e-6)
    assert (-orders.mean(0)).exp().sum() < 1


def test_no_net_codes_a_language_below_its_entropy():
    states = TEXT.enumerate()
    log_p = (1.5 * torch.randn(27, dtype=torch.float64)).log_softmax(0)
    entropy = -(log_p.exp() * log_p).sum()

    def predict(x, hidden):
        """The language's own conditionals, of each row."""
        seen = hidden == 0
        fits = ((states[None] == x[:, None]) | ~seen[:, None]).all(-1)
        joint = torch.where(fits, log_p, -math.inf)
        each = [torch.stack([torch.where(states[:, i] == k, joint, -math.inf).logsumexp(1) for k in range(3)], -1) for i in range(3)]
        return torch.stack(each, 1)

    noise = AbsorbingNoise(TEXT, Heads(TEXT))
    total = sum(
        noise.missed(states, mask.expand(27, 3), predict).sum(1) / (mask.sum() * math.comb(3, int(mask.sum()))) for mask in subsets(3)
    )
    torch.testing.assert_close(total, -log_p, rtol=1e-9, atol=1e-9)  # perfect conditionals agree in every order: no gap
    worse = missed(model(TEXT), states)
    bound = torch.stack([in_order(worse, order, 3) for order in orders_of(3)]).mean(0)
    assert (log_p.exp() * bound).sum() > entropy


@pytest.mark.parametrize("space", [TEXT, TABLE, STRINGS], ids=str)
def test_draws_one_at_a_time_follow_the_mean_over_orders(space):
    made, states = model(space), space.enumerate()
    x = made.sample(20_000)
    assert (x[:, None] == states).all(-1).any(1).all()
    assert chi_square(torch.bincount(index_of(x, states), minlength=len(states)), mixture(missed(made, states), 3)) > 1e-3


def test_draws_of_two_calls_follow_their_own_law():
    """After one entry, the two others at once: independent given it."""
    made, states = model(TEXT), TEXT.enumerate()
    found, p = missed(made, states), 0.0
    for order in orders_of(3):
        hidden = [place != order[0] for place in range(3)]
        p = p + (-found[True, True, True][:, order[0]] - found[tuple(hidden)].sum(1)).exp() / 6
    assert p.sum().item() == pytest.approx(1, abs=1e-6)
    assert chi_square(torch.bincount(index_of(made.sample(20_000, steps=2), states), minlength=27), p) > 1e-3
    assert chi_square(torch.bincount(index_of(made.sample(20_000), states), minlength=27), p) < 1e-6  # which is another


def test_temperature_tempers_each_entry_and_confident_is_another_law():
    made, states = model(Space.sequence(1, 40)), Space.sequence(1, 40).enumerate()
    log_p = -missed(made, states)[(True,)][:, 0]
    for temperature in (1.0, 0.5):
        count = torch.bincount(made.sample(100_000, temperature=temperature)[:, 0], minlength=40)
        assert chi_square(count, (log_p / temperature).softmax(0)) > 1e-3
    made, states = model(TEXT), TEXT.enumerate()
    count = torch.bincount(index_of(made.sample(20_000, order="confident"), states), minlength=27)
    assert chi_square(count, mixture(missed(made, states), 3)) < 1e-6


def test_a_shorter_text_counts_the_orders_that_begin_with_it():
    made = model(TEXT)
    x = torch.tensor([[2, 1, -1]])
    found = missed(made, torch.tensor([[2, 1, 0]]))
    both = [found[True, True, True][:, a] + found[a != 0, a != 1, True][:, b] for a, b in ((0, 1), (1, 0))]
    with torch.no_grad():
        drawn = made.log_prob(x, draws=300)
    assert (drawn.nats + torch.stack(both).mean()).abs() < 4.5 * drawn.stderr


@pytest.mark.parametrize("noise", ["absorbing", "uniform"])
def test_beginnings_of_texts_have_no_more_than_all_mass(noise):
    made = model(TEXT, noise=noise)
    beginnings = torch.tensor([[a, b, -1] for a in range(3) for b in range(3)])
    with torch.no_grad():
        drawn = made.log_prob(beginnings, draws=200)
    assert drawn.nats.exp().sum() < 1
    assert made.log_prob(torch.full((1, 3), -1)).nats.item() == 0.0


@pytest.mark.parametrize("options", [{}, {"noise": "uniform"}, {"order": "confident"}], ids=str)
def test_a_trace_has_a_state_per_call_and_masks_that_shrink(options):
    order = {"order": options.pop("order")} if "order" in options else {}
    made, calls = model(GRID, **options), []
    made.net.register_forward_hook(lambda *_: calls.append(1))
    states = list(made.trace(5, steps=4, **order))
    assert len(states) == len(calls) == 4
    masked = [hidden.flatten(1).sum(1).unique().tolist() for _, hidden in states]
    assert masked == ([[6], [4], [2], [0]] if "noise" not in options else [[0]] * 4)
    for (x, hidden), (later, _) in itertools.pairwise(states if "noise" not in options else []):
        assert torch.equal(x[~hidden], later[~hidden])
    GRID.check(states[-1][0])


# -- uniform noise --------------------------------------------------------------------------------

PAIRS = Space.sequence(2, 3)


def chance(noise, time):
    """q(x_t | x_0) of one entry, [x_0, x_t]."""
    a = noise.kept(torch.tensor([time])).item()
    return a * torch.eye(3, dtype=torch.float64) + (1 - a) / 3


def perfect(noise, log_p, states):
    """What the other entry says of each under a law of pairs: the best that a net can do."""

    def predict(x, share):
        rows = []
        for noisy, t in zip(x, (share[:, 0].double() * noise.steps).tolist(), strict=True):
            q, joint = chance(noise, t), log_p.exp().view(3, 3)
            rows.append(torch.stack([(joint @ q[:, noisy[1]]).log(), (q[:, noisy[0]] @ joint).log()]))
        return torch.stack(rows)

    return predict


def whole_bound(noise, predict, states):
    """The bound of each pair, all terms and all noise enumerated; nats [9]."""
    total = torch.zeros(len(states), dtype=torch.float64)
    for t in range(1, noise.steps + 1):
        time = torch.full((len(states),), t)
        logits, q = predict(states, noise._share(time, states)), chance(noise, t)
        for i, x in enumerate(states):
            weight = q[x[0], states[:, 0]] * q[x[1], states[:, 1]]
            total[i] += (weight * noise.divergence(logits, x.expand_as(states), states, time, time - 1).sum(1)).sum()
    return total


def law_of_pairs():
    return (1.5 * torch.randn(9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).log_softmax(0)


def test_a_step_is_bayes_rule():
    noise = UniformNoise(PAIRS, PAIRS, 8)
    logits = torch.randn(1, 2, 3, dtype=torch.float64)
    g, time, before = logits.softmax(-1), torch.tensor([5]), torch.tensor([3])
    start, whole = chance(noise, 3), chance(noise, 5)
    b = (noise.kept(time) / noise.kept(before)).item()
    leap = b * torch.eye(3, dtype=torch.float64) + (1 - b) / 3
    torch.testing.assert_close(start @ leap, whole)
    for noisy in itertools.product(range(3), repeat=2):
        log_p = noise._log_step(noise._log_g(logits), torch.tensor([noisy]), time, before)[0]
        for i, j in enumerate(noisy):
            posterior = g[0, i] * whole[:, j] / (g[0, i] * whole[:, j]).sum()  # of x_0
            each = start * leap[:, j] / whole[:, j, None]  # q(x_s | x_t, x_0), [x_0, x_s]
            torch.testing.assert_close(log_p[i].exp(), posterior @ each)
            code, rows = torch.arange(3)[:, None].expand(3, 2), torch.tensor([noisy]).expand(3, 2)
            kl = noise.divergence(logits.expand(3, 2, 3), code, rows, time.expand(3), before.expand(3))
            torch.testing.assert_close(kl[:, i], (each * (each.log() - log_p[i])).sum(1))


def test_with_a_perfect_net_the_bound_comes_to_the_truth():
    states, log_p = PAIRS.enumerate(), law_of_pairs()
    gaps = []
    for steps in (1, 4, 16, 64):
        noise = UniformNoise(PAIRS, PAIRS, steps)
        bound = whole_bound(noise, perfect(noise, log_p, states), states)
        assert (-bound).exp().sum() <= 1 + 1e-9
        gaps.append((log_p.exp() * (bound + log_p)).sum().item())
    assert all(later < 0.4 * earlier for earlier, later in itertools.pairwise(gaps))
    assert 0 < gaps[-1] < 0.01


def test_terms_are_the_bound_on_average():
    states, log_p, noise = PAIRS.enumerate(), law_of_pairs(), UniformNoise(PAIRS, PAIRS, 4)
    predict = perfect(noise, log_p, states)
    n = 300
    rows = states.repeat(n, 1)
    terms = noise.term(rows, torch.ones_like(rows, dtype=torch.bool), torch.rand(len(rows)).double(), torch.rand(len(rows), 2, 2), predict)
    terms = terms.view(n, 9)
    assert ((terms.mean(0) - whole_bound(noise, predict, states)).abs() < 4.5 * terms.std(0) / n**0.5).all()


def test_draws_under_uniform_noise_follow_its_chain():
    made, states = model(PAIRS, noise="uniform", noise_steps=4), PAIRS.enumerate()
    noise, p = made.noise, torch.full((9,), 1 / 9, dtype=torch.float64)
    with torch.no_grad():
        for t in range(4, 0, -1):
            time = torch.full((9,), t)
            logits = made.net(states, noise._share(time, states))
            step = noise._log_step(noise._log_g(logits), states, time, time - 1).exp()
            p = p @ torch.einsum("ni,nj->nij", step[:, 0], step[:, 1]).flatten(1)
    assert chi_square(torch.bincount(index_of(made.sample(20_000), states), minlength=9), p) > 1e-3


@pytest.mark.parametrize("data", ["columns", "sequence-variable"])
def test_uniform_noise_keeps_the_contract(data):
    assert "mass is one" in {finding.law for finding in check_model("masked-diffusion", tiny_data()[data], room=ROOM, noise="uniform")}


# -- unknown entries ------------------------------------------------------------------------------


@pytest.mark.parametrize(("space", "place"), [(TEXT, 1), (TABLE, 1), (STRINGS, 2)], ids=str)
def test_fills_follow_the_orders_that_begin_with_what_is_known(space, place):
    made, states = model(space), space.enumerate()
    x = states[-1:]
    known = (torch.arange(3) == place)[None]
    filled = made.fill(x, known, draws=10_000)
    assert filled.exact == (space is not TABLE)  # a flag that may be missing is the likelier there by the answer
    assert torch.equal(filled.x[:, :, place], x[:, place].expand(10_000, 1))
    if not filled.exact:
        assert (filled.x >= 0).all()
        return
    fits = states[:, place] == x[0, place]
    found = missed(made, states[fits])
    first = tuple(i != place for i in range(3))
    a, b = (i for i in range(3) if i != place)
    last = [found[tuple(i == k for i in range(3))][:, k] for k in (a, b)]
    p = ((-found[first][:, a] - last[1]).exp() + (-found[first][:, b] - last[0]).exp()) / 2
    count = torch.bincount(index_of(filled.x[:, 0], states[fits]), minlength=int(fits.sum()))
    assert p.sum().item() == pytest.approx(1, abs=1e-6)
    assert chi_square(count, p) > 1e-3


@pytest.mark.parametrize(("options", "how"), [({}, {"steps": 1}), ({}, {"order": "confident"}), ({"noise": "uniform"}, {})], ids=str)
def test_fills_that_are_not_exact_say_so(options, how):
    made = model(GRID, **options)
    x, known = torch.randint(3, (4, 2, 2, 2)), torch.rand(4, 2, 2, 2) < 0.4
    filled = made.fill(x, known, draws=3, **how)
    assert not filled.exact
    assert filled.how
    assert torch.equal(filled.x[:, known], x[known].expand(3, -1))
    GRID.check(filled.x.flatten(0, 1))


def test_gaps_of_a_text_are_filled_by_name():
    made = families.build("masked-diffusion", Space.sequence(16), size="tiny")
    filled = likely.fill(made, "to be or ___ to b_, that is the q_estion", draws=2)
    spelt = [likely.sources.decode(row) for row in filled.x[:, 0]]
    assert all(text.startswith(b"to be or ") and text.endswith(b"estion") and text[12:17] == b" to b" for text in spelt)


def test_decimals_reals_and_missing_cells_have_their_whole_mass():
    space = Space.columns(
        Support("decimal", name="price", decimals=2, missing=True, center=3.0, scale=200.0, atoms=(100,), shares=(0.4,)),
        Support("nominal", 3, "kind"),
    )
    made = model(space)
    price = torch.cat([torch.tensor([-1]), torch.arange(0, 30_000), -2 - torch.arange(30_000)])
    x = torch.stack([price, torch.ones_like(price)], 1)
    with torch.no_grad():
        log_p = -made.noise.missed(x, torch.tensor([True, False]).expand_as(x), made._predict(None))[:, 0]
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-2)
    made = model(Space.columns(Support("real", name="x", missing=True), Support("real", name="y")))
    x = torch.tensor([[float("nan"), 1.0], [0.5, -1.0]])
    assert made.log_prob(x).nats.isfinite().all()
    assert made.fill(x, ~x.isnan()).x.isfinite().all()


# -- nets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layout", "word"), [(layout, w) for (role, layout), ws in NETS.items() if role == "bidirectional" for w in ws])
@pytest.mark.parametrize("given", [Space.label(3), Space.sequence(4, 5, variable=True)], ids=str)
def test_a_net_sees_what_is_not_hidden_and_no_more(layout, word, given):
    space = {"grid": GRID, "columns": TABLE, "sequence": Space.sequence(5, 3)}[layout]
    made = awake(net(space, "bidirectional", "tiny", word=word, given=given, out=4))
    where = torch.randint(2, (1, *given.shape))
    x, hidden = torch.randint(2, (1, *space.shape)), torch.zeros(1, *space.shape)
    hidden.view(-1)[0] = 1
    base = made(x, hidden, where)
    assert base.shape == (1, *space.shape, 4)
    for place in range(space.dims):
        other = x.clone()
        other.view(-1)[place] = 1 - other.view(-1)[place]
        assert torch.equal(made(other, hidden, where), base) == (place == 0)
    assert not torch.equal(made(x, hidden, 1 - where), base)


def test_what_means_nothing_is_refused():
    with pytest.raises(UsageError, match="Unknown noise"):
        MaskedDiffusion(TEXT, noise="gaussian")
    with pytest.raises(UsageError, match="continuous time"):
        MaskedDiffusion(TEXT, noise_steps=4)
    with pytest.raises(UsageError, match="finitely many"):
        MaskedDiffusion(Space.reals(2), noise="uniform")
    with pytest.raises(UsageError, match="do not divide"):
        MaskedDiffusion(TEXT, width=10, heads=4)
    with pytest.raises(UsageError, match="Unknown order"):
        model(TEXT).sample(1, order="left")
    with pytest.raises(UsageError, match="no order"):
        model(TEXT, noise="uniform").sample(1, order="confident")
    with pytest.raises(UsageError, match="0 steps"):
        next(model(TEXT).trace(1, steps=0))
    with pytest.raises(UsageError, match="Padding"):
        model(TEXT).fill(torch.tensor([[0, -1, -1]]), torch.ones(1, 3, dtype=torch.bool))
