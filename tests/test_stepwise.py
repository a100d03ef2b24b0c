"""Walks entry by entry, against enumeration: filtered draws, beam search, filling under any mask, prompts."""

import itertools
import math

import pytest
import torch
from scipy import stats

from likely.decoding import Filter, Stops
from likely.errors import UsageError
from likely.families.autoregressive import Autoregressive
from likely.nets import NETS
from likely.space import Space, Support
from likely.stepwise import select

TABLE = Space.columns(Support("nominal", 3, missing=True), Support("ordinal", 4, missing=True), Support("nominal", 2))
SPACES = {
    "grid": Space.grid(2, 2, 2, 3),
    "table": TABLE,
    "sequence": Space.sequence(4, 3),
    "strings": Space.sequence(3, 3, variable=True),
}
CASES = [(name, word) for name, space in SPACES.items() for word in NETS["causal", space.layout]]
OF_ONE_ORDER = [(name, word) for name, word in CASES if word != "any-order" or name == "strings"]


def model(space, net=None, **options):
    """Random weights, large enough for every dependence to show."""
    made = Autoregressive(space, size="tiny", net=net, **options).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def pmf(made):
    x = made.space.enumerate()
    return x, made.log_prob(x).nats.exp().detach()


def tail(drawn, x, p):
    """Tail probability of the chi-square statistic of draws against p over states x."""
    place = {tuple(row): i for i, row in enumerate(x.flatten(1).tolist())}
    counts = torch.bincount(torch.tensor([place[tuple(row)] for row in drawn.flatten(1).tolist()]), minlength=len(x)).double()
    expected = p / p.sum() * len(drawn)
    common = expected >= 5
    counts = torch.cat([counts[common], counts[~common].sum()[None]])
    expected = torch.cat([expected[common], expected[~common].sum()[None]]).clamp_min(1e-9)
    return stats.chi2.sf(((counts - expected).square() / expected).sum().item(), max(1, len(counts) - 1))


# -- states ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "net"), CASES)
def test_a_selected_state_is_that_of_the_selected_examples(name, net):
    made = model(SPACES[name], net).double()
    walk, index = made.conditionals, torch.tensor([2, 0, 0])
    x = made._symbols(made.sample(3))[0].flatten(1)
    one, two = made.net.init_state(3), made.net.init_state(3)
    last_one = last_two = None
    half = made.space.dims // 2
    for i, place in enumerate(walk.order):
        if i == half:
            two, last_two, x_two = select(two, index), last_two[index], x[index]
        one, a = made.net.step(one, last_one)
        two, b = made.net.step(two, last_two)
        torch.testing.assert_close(b, a if i < half else a[index], rtol=1e-9, atol=1e-9)
        last_one, last_two = x[:, place], (x if i < half else x_two)[:, place]


# -- filtered draws -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{}, {"temperature": 0.6}, {"top_k": 2}, {"top_p": 0.7}, {"min_p": 0.4}, {"typical": 0.6}], ids=str)
def test_draws_say_how_likely_they_were_under_model_and_filter(how):
    made = model(SPACES["sequence"])
    x, p = pmf(made)
    filtered = torch.ones(len(x)).double()
    parameters = made.net(x).detach()
    for i in range(4):
        filtered *= Filter(**how)(parameters[:, i, :3].double()).softmax(-1).gather(1, x[:, i : i + 1])[:, 0]
    assert filtered.sum().item() == pytest.approx(1, abs=1e-6)
    drawn = made.sample(3000, with_log_prob=True, **how)
    place = (drawn.x @ torch.tensor([27, 9, 3, 1])).long()
    torch.testing.assert_close(drawn.log_prob, p[place].log(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(drawn.filtered_log_prob, filtered[place].log(), rtol=1e-4, atol=1e-4)
    assert tail(drawn.x, x, filtered) > 1e-4
    assert made.log_prob(x).nats.exp().sum().item() == pytest.approx(1, abs=1e-5)  # the model's own stays unfiltered


def test_greedy_is_a_beam_of_one_and_takes_the_likeliest_each_time():
    made = model(SPACES["grid"])
    greedy = made.sample(2, greedy=True)
    assert torch.equal(greedy[0], greedy[1])
    assert torch.equal(made.sample(1, beam=1), greedy[:1])
    assert torch.equal(made.sample(2, top_k=1), greedy)


# -- beam search ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPACES)
def test_a_wide_beam_finds_the_likeliest_examples_in_order(name):
    made = model(SPACES[name], categorical_up_to=10)
    x, p = pmf(made)
    best = p.argsort(descending=True)[:5]
    found = made.sample(5, beam=len(x), with_log_prob=True)
    torch.testing.assert_close(found.log_prob, p[best].log(), rtol=1e-4, atol=1e-4)
    assert torch.equal(found.x, x[best])


def test_a_narrow_beam_equals_a_reference():
    made = model(SPACES["sequence"])
    x, _ = pmf(made)
    log_p = made.net(x).detach().double()[..., :3].log_softmax(-1)
    beams = [((), 0.0)]
    for i in range(4):
        grown = []
        for symbols, total in beams:
            row = next(j for j, v in enumerate(x.tolist()) if tuple(v[:i]) == symbols)
            grown += [((*symbols, k), total + log_p[row, i, k].item()) for k in range(3)]
        beams = sorted(grown, key=lambda b: -b[1])[:2]
    found = made.sample(2, beam=2, with_log_prob=True)
    assert [tuple(row) for row in found.x.tolist()] == [symbols for symbols, _ in beams]
    assert found.log_prob.tolist() == pytest.approx([total for _, total in beams], abs=1e-4)


def test_each_given_has_a_beam_of_its_own():
    label = Space.label(2)
    made = model(SPACES["sequence"], given=label)
    given = torch.tensor([[0], [1], [0]])
    found = made.sample(3, given, beam=9, with_log_prob=True)
    for i in range(3):
        alone = made.sample(1, given[i : i + 1], beam=9, with_log_prob=True)
        assert torch.equal(found.x[i], alone.x[0])
    with pytest.raises(UsageError, match="finds 2 examples, not 3"):
        made.sample(3, given[:1], beam=2)
    with pytest.raises(UsageError, match="cannot be listed"):
        model(Space.reals(2)).sample(1, beam=2)


def test_a_beam_takes_no_filter():
    made = model(SPACES["sequence"])
    for how in ({"temperature": 0.5}, {"top_k": 2}, {"greedy": True}):
        with pytest.raises(UsageError, match=next(iter(how))):
            made.sample(1, beam=2, **how)


@pytest.mark.parametrize("prompt", [None, torch.tensor([2, 0])], ids=["none", "two"])
def test_a_beam_of_no_symbols_is_the_prompt(prompt):
    found = model(SPACES["sequence"]).sample(3, beam=4, prompt=prompt, length=0, with_log_prob=True)
    assert found.x.tolist() == [[] if prompt is None else [2, 0]] * 3
    assert found.log_prob.tolist() == [0, 0, 0]


# -- filling --------------------------------------------------------------------------------------


def conditional(made, x, known):
    """States and the true p(unknown | known) of one example, missing cells left out."""
    states, p = pmf(made)
    fits = ((states == x) | ~known).flatten(1).all(1)
    if made.space.layout == "columns":
        fits &= ((states >= 0) | known).all(1)
    return states[fits], p[fits]


@pytest.mark.parametrize("name", SPACES)
def test_where_known_entries_lead_the_fill_is_exact(name):
    made = model(SPACES[name], categorical_up_to=10)
    x = made.sample(1)
    order, flat = made.conditionals.order, torch.zeros(made.space.dims, dtype=torch.bool)
    flat[order[:2]] = True
    known = flat.view(x.shape)
    filled = made.fill(x, known, draws=3000)
    assert filled.exact
    assert (filled.effective == math.inf).all()
    assert tail(filled.x[:, 0], *conditional(made, x, known)) > 1e-4


def test_cells_that_may_be_missing_weigh_by_their_chance_to_be_there():
    made = model(SPACES["table"], categorical_up_to=10)
    x, known = torch.tensor([[0, 0, 0]]), torch.zeros(1, 3, dtype=torch.bool)
    filled = made.fill(x, known, draws=2000, particles=32)
    assert not filled.exact
    states, p = conditional(made, x, known)
    share = torch.stack([(filled.x[:, 0] == s).all(1).double().mean() for s in states])
    assert (share - p / p.sum()).abs().sum() / 2 < 0.08


@pytest.mark.parametrize(("name", "net"), OF_ONE_ORDER)
def test_particles_weigh_what_is_known_later(name, net):
    made = model(SPACES[name], net, categorical_up_to=10)
    x = made.sample(1)
    if made.space.variable:
        x = torch.tensor([[0, 1, 2]])
    flat = torch.ones(made.space.dims, dtype=torch.bool)
    flat[made.conditionals.order[:2]] = False  # all that is known comes later
    known = flat.view(x.shape)
    filled = made.fill(x, known, draws=500, particles=64)
    assert not filled.exact
    assert torch.equal(filled.x[:, known], x[known].expand(500, -1))
    assert (filled.effective <= 64).all()
    states, p = conditional(made, x, known)
    share = torch.stack([(filled.x[:, 0] == s).flatten(1).all(1).double().mean() for s in states])
    assert (share - p / p.sum()).abs().sum() / 2 < 0.12  # total variation; some 0.04 of it from the number of draws


def disagreeing(space):
    """A `made` of two orderings whose conditionals are far from agreeing."""
    torch.manual_seed(0)
    made = model(space, "made", orderings=2, categorical_up_to=10)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.33)
    return made


@pytest.mark.parametrize("unknown", [[0, 2], [3, 7]], ids=["no-ordering-leads", "one-leads"])
def test_a_mixture_of_orderings_fills_by_their_evidence(unknown):
    """Against enumeration, where either ordering alone would be off."""
    made = disagreeing(SPACES["grid"])
    known = torch.ones(8, dtype=torch.bool)
    known[unknown] = False
    known = known.view(1, 2, 2, 2)

    def off(x):
        """How far the ordering that is nearer to the mixture is from it."""
        states, p = conditional(made, x, known)
        alone = [made._log_mass(states, None, ordering).softmax(0).detach() for ordering in range(2)]
        return min((q - p / p.sum()).abs().sum().item() / 2 for q in alone)

    x = max(made.sample(10).split(1), key=off)
    assert off(x) > 0.1
    filled = made.fill(x, known, draws=1000, particles=32)
    assert not filled.exact
    assert "2 orderings" in filled.how
    assert (filled.effective > 1).all()
    states, p = conditional(made, x, known)
    share = torch.stack([(filled.x[:, 0] == s).flatten(1).all(1).double().mean() for s in states])
    assert (share - p / p.sum()).abs().sum() / 2 < 0.08


def test_the_evidence_of_an_ordering_is_the_mass_of_what_is_known():
    made = disagreeing(SPACES["grid"])
    x, known = made.sample(1).flatten(1), torch.zeros(8, dtype=torch.bool)
    known[made.net.orders[0][:3]] = True
    states = made.space.enumerate()
    fits = ((states.flatten(1) == x) | ~known).all(1)
    for ordering in range(2):
        exact = made._log_mass(states[fits], None, ordering).logsumexp(0).item()
        with made.net.under(ordering), torch.no_grad():
            leads = made.conditionals.leads(known)
            told = made.conditionals._walked(x.expand(50, -1), known, None, 200)
        assert leads == (ordering == 0)
        assert torch.isinf(told.effective).all() == leads
        assert told.evidence.logsumexp(0).item() - math.log(50) == pytest.approx(exact, abs=1e-5 if leads else 0.1)


@pytest.mark.parametrize("name", ["grid", "table", "sequence"])
def test_a_net_of_any_order_begins_with_what_is_known(name):
    """It fills exactly under the conditional of that order, whatever the mask."""
    made = model(SPACES[name], "any-order", categorical_up_to=10)
    x = made.sample(1).clamp_min(0)
    known = torch.arange(made.space.dims) >= made.space.dims - 2 - (name == "grid")  # of the table only the first cell, then, is unknown
    filled = made.fill(x, known.view(x.shape), draws=3000)
    assert filled.exact
    assert "begins with what is known" in filled.how
    states = made.space.enumerate()
    walk = made.conditionals.toward(known)
    assert walk.order[: int(known.sum())] == known.nonzero()[:, 0].tolist() or name == "grid"
    with torch.no_grad():
        p = made.heads.log_mass(walk.net(states), states).double().flatten(1).sum(1).exp()
    fits = ((states == x) | ~known.view(x.shape)).flatten(1).all(1) & ((states >= 0) | known.view(x.shape)).flatten(1).all(1)
    assert tail(filled.x[:, 0], states[fits], p[fits]) > 1e-4


def test_rows_with_masks_of_their_own_are_filled_each_under_its_own():
    made = model(SPACES["table"])
    x = torch.tensor([[0, -1, 1], [-1, 2, 0], [1, 3, 1]])
    filled = made.fill(x, x >= 0, draws=20)
    assert torch.equal(filled.x[:, x >= 0], x[x >= 0].expand(20, -1))
    assert (filled.x >= 0).all()
    assert torch.isinf(filled.effective[:, 2]).all()  # nothing was unknown
    assert not torch.isinf(filled.effective[:, 1]).any()  # the first column was, with others after it


def test_given_stays_with_its_row_under_every_mask():
    made = model(SPACES["sequence"], given=Space.label(2))
    x, given = torch.zeros(4, 4, dtype=torch.int64), torch.tensor([[0], [1], [0], [1]])
    known = torch.tensor([[True, False, False, False]] * 2 + [[False, False, False, False]] * 2)
    filled = made.fill(x, known, given, draws=800).x
    for i in range(4):
        alone = made.fill(x[i : i + 1], known[i : i + 1], given[i : i + 1], draws=800).x[:, 0]
        assert (filled[:, i].double().mean(0) - alone.double().mean(0)).abs().max() < 0.2


def test_known_entries_that_cannot_be_are_told_by_an_effective_number_of_zero():
    made = model(Space.sequence(2, 2))
    with torch.no_grad():
        made.net.last.weight.zero_()
        made.net.last.bias.fill_(-torch.inf)  # only zeros can be
    filled = made.fill(torch.ones(1, 2, dtype=torch.int64), torch.tensor([[False, True]]), particles=8)
    assert filled.effective.item() == 0.0
    assert filled.x[0, 0, 1] == 1


def test_what_unknown_entries_hold_is_not_looked_at():
    made = model(SPACES["table"])
    known = torch.tensor([[True, False, True]])
    x = torch.tensor([[1, 99, 0]])
    assert made.fill(x, known).x[0, 0, [0, 2]].tolist() == [1, 0]
    with pytest.raises(UsageError, match="bool"):
        made.fill(x, known.long())


# -- prompts and texts of any length --------------------------------------------------------------


def test_a_prompt_leads_and_what_follows_has_its_conditional():
    made = model(SPACES["sequence"])
    prompt = torch.tensor([2, 0])
    drawn = made.sample(3000, prompt=prompt, with_log_prob=True)
    assert (drawn.x[:, :2] == prompt).all()
    states, p = pmf(made)
    fits = (states[:, :2] == prompt).all(1)
    assert tail(drawn.x, states[fits], p[fits]) > 1e-4
    place = (drawn.x @ torch.tensor([27, 9, 3, 1])).long()
    torch.testing.assert_close(drawn.log_prob, (p[place] / p[fits].sum()).log(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("net", NETS["causal", "sequence"])
@pytest.mark.parametrize("length", [0, 1, 30])
def test_a_text_goes_on_as_long_as_is_asked_for(net, length):
    made = model(Space.sequence(6, 3), net)
    for prompt in (None, torch.tensor([1, 2]), torch.randint(3, (50,))):
        drawn = made.sample(2, prompt=prompt, length=length)
        begin = 0 if prompt is None else len(prompt)
        assert drawn.shape == (2, begin + length)
        assert prompt is None or (drawn[:, :begin] == prompt).all()


def test_a_net_of_limited_reach_follows_a_long_prompt_as_if_it_had_read_it_all():
    made = model(Space.sequence(8, 3), "dilated").double()
    prompt = torch.randint(3, (1, 40))
    with torch.no_grad():
        whole = made.net(torch.cat([prompt, torch.zeros(1, 1, dtype=torch.int64)], 1))[:, -1]
        _, parameters = next(made.conditionals.follow(prompt))
    torch.testing.assert_close(parameters, whole, rtol=1e-9, atol=1e-9)


def test_a_net_that_ends_begins_anew_with_what_came_last():
    made = model(Space.sequence(6, 3), "transformer", positions="learned")
    walked = [symbols for symbols, _ in itertools.islice(made.conditionals.follow(torch.zeros(2, 1, dtype=torch.int64)), 40)]
    assert torch.stack(walked, 1).shape == (2, 40)
    seeded = itertools.islice(made.follow(torch.zeros(2, 0, dtype=torch.int64), greedy=True), 9)
    assert all((symbols == symbols[0]).all() for symbols in seeded)


def test_prompts_that_cannot_be_are_refused():
    made = model(SPACES["sequence"])
    with pytest.raises(UsageError, match=r"outside 0\.\.2"):
        made.sample(1, prompt=torch.tensor([3]))
    with pytest.raises(UsageError, match="Pass length"):
        made.sample(1, prompt=torch.zeros(5, dtype=torch.int64))
    with pytest.raises(UsageError, match="no prompt or length"):
        model(SPACES["grid"]).sample(1, prompt=torch.tensor([0]))
    with pytest.raises(UsageError, match="Cannot draw -1"):
        made.sample(1, length=-1)


def cut(row, stops):
    """A string up to the end of the first stop in it, padded."""
    text = "".join(map(str, row))
    ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
    end = min(ends, default=len(row))
    return (*row[:end], *[-1] * (len(row) - end))


@pytest.mark.parametrize("stops", [["01"], ["2", "01"], ["0000"]], ids=str)
def test_a_stop_ends_a_text_and_only_what_is_returned_counts(stops):
    """Draws of texts that stop follow the model's masses, summed over all that would have followed; so do their log-probabilities."""
    made = model(SPACES["sequence"], "rnn")
    x, p = pmf(made)
    masses: dict[tuple[int, ...], float] = {}
    for row, mass in zip(x.tolist(), p.tolist(), strict=True):
        masses[cut(row, stops)] = masses.get(cut(row, stops), 0.0) + mass
    torch.manual_seed(0)
    drawn = made.sample(2000, stop=[torch.tensor(list(map(int, stop))) for stop in stops], with_log_prob=True)
    padded = [(*row, *[-1] * (4 - len(row))) for row in drawn.x.tolist()]
    torch.testing.assert_close(drawn.log_prob, torch.tensor([math.log(masses[row]) for row in padded]).double(), rtol=1e-4, atol=1e-4)
    assert tail(torch.tensor(padded), torch.tensor(list(masses)), torch.tensor(list(masses.values())).double()) > 1e-4


def test_a_beam_finds_the_likeliest_texts_that_stop():
    made = model(SPACES["sequence"], "rnn")
    x, p = pmf(made)
    masses: dict[tuple[int, ...], float] = {}
    for row, mass in zip(x.tolist(), p.tolist(), strict=True):
        masses[cut(row, ["1", "20"])] = masses.get(cut(row, ["1", "20"]), 0.0) + mass
    best = sorted(masses, key=masses.__getitem__, reverse=True)[:4]
    found = made.sample(4, beam=81, stop=[torch.tensor([1]), torch.tensor([2, 0])], with_log_prob=True)
    assert [tuple(row) for row in found.x.tolist()] == best
    torch.testing.assert_close(found.log_prob.exp(), torch.tensor([masses[row] for row in best]).double(), rtol=1e-4, atol=1e-6)


def test_a_stop_is_looked_for_after_the_prompt():
    made = model(SPACES["sequence"], "rnn")
    stop = torch.tensor([1, 1])
    drawn = made.sample(50, prompt=stop, length=30, stop=stop)
    ends = [next((i for i in range(2, 31) if row[i : i + 2] == [1, 1]), 30) for row in drawn.tolist()]
    assert [int((row >= 0).sum()) for row in drawn] == [min(end + 2, drawn.shape[1]) for end in ends]
    followed = torch.stack(list(itertools.islice(made.follow(stop.expand(4, 2), stop=stop, greedy=True), 60)), 1)
    assert ((followed < 0).long().diff(dim=1) >= 0).all()


def test_a_stop_is_found_wherever_tokens_are_cut():
    stops = Stops([torch.tensor([0, 1, 2])], Space.tokens(4, ("a", "b", "c", "xab", "cd", "abc")), 4)
    for symbols, met in [([3, 3, 5, 0], [0, 0, 1, 0]), ([4, 2, 0, 1], [1, 1, 1, 0]), ([0, 0, 0, 4], [1, 1, 1, 1])]:
        stops.take(torch.tensor(symbols))
        assert stops.met == [bool(one) for one in met]


def test_stops_that_cannot_be_are_refused():
    made = model(SPACES["sequence"])
    with pytest.raises(UsageError, match="empty string"):
        made.sample(1, stop=torch.zeros(0, dtype=torch.int64))
    with pytest.raises(UsageError, match="no prompt or length"):
        model(SPACES["grid"]).sample(1, stop=torch.tensor([0]))


def test_a_string_that_has_ended_stays_so():
    made = model(SPACES["strings"])
    drawn = made.sample(200, prompt=torch.tensor([1]))
    assert (drawn[:, 0] == 1).all()
    made.space.check(drawn)
    ended = drawn < 0
    assert (ended.long().diff(dim=1) >= 0).all()
