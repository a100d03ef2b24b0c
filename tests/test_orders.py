"""Orders of the user's choice, and the net that takes any: nothing looks ahead, steps equal the whole, masses sum to one."""

import pytest
import torch

from likely import families, store
from likely.checks import Room, check_model, tiny_data
from likely.dataset import Data, Split
from likely.errors import UsageError
from likely.evaluation.stretch import stretch_bits
from likely.families.autoregressive import Autoregressive
from likely.nets import NETS, net
from likely.nets.causal import CausalNet
from likely.nets.causal.inputs import raster
from likely.nets.causal.ordered import places_of
from likely.space import Space, Support

GRID = Space.grid(2, 2, 3, 3)
TABLE = Space.columns(
    Support("nominal", 3, "colour", missing=True),
    Support("ordinal", 4, "size", center=2.0, scale=1.2),
    Support("nominal", 2, "flag"),
    Support("ordinal", 11, "price", center=5.5, scale=3.2),
)
TEXT = Space.sequence(4, 3)
LABEL = Space.label(3)
PERMUTED = [3, 1, 0, 2]
CASES = [
    *((GRID, word, order) for word in NETS["causal", "grid"] for order in ("transposed", "reverse")),
    *((GRID, word, torch.randperm(12, generator=torch.Generator().manual_seed(1)).tolist()) for word in ("made", "any-order", "rnn")),
    *((TABLE, word, order) for word in NETS["causal", "columns"] for order in ("reverse", ["flag", "price", "colour", "size"])),
    *((TEXT, word, order) for word in NETS["causal", "sequence"] for order in ("reverse", PERMUTED)),
]


def awake(made):
    """In float64, with random weights that are large enough for every dependence to show."""
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return made.double().eval()


def model(space, word=None, **options):
    return awake(Autoregressive(space, size="tiny", net=word, categorical_up_to=10, **options))


def symbols(space, n):
    levels = (
        torch.tensor([s.levels for s in space.supports]).repeat_interleave(space.dims // len(space.supports))
        if len(space.supports) > 1
        else space.supports[0].levels
    )
    return (torch.rand(n, space.dims) * levels).long().view(n, *space.shape)


def check_causal(made: CausalNet, x: torch.Tensor, given: torch.Tensor | None = None, *, sees_all: bool = True) -> None:
    """Steps equal the whole, and an entry changes the parameters of those after it alone: of all of them, where `sees_all`."""
    order, flat = made.order.tolist(), x.flatten(1)
    whole = made(x, given).flatten(1, -2)
    state, last = made.init_state(len(x), given), None
    for i, place in enumerate(order):
        state, stepped = made.step(state, last)
        torch.testing.assert_close(stepped, whole[:, place], rtol=1e-9, atol=1e-9)
        last = flat[:, place]
        other = flat.clone()
        other[:, place] = torch.where(last == 0, 1, 0)
        changed = ((made(other.view_as(x), given).flatten(1, -2) - whole).abs() > 1e-12).any(-1).any(0)[order]
        assert not changed[: i + 1].any()
        assert not sees_all or changed[i + 1 :].all()


@pytest.mark.parametrize(("space", "word", "order"), CASES, ids=str)
def test_an_order_is_walked_and_nothing_looks_ahead(space, word, order):
    made = model(space, word, order=order, given=LABEL)
    assert made.conditionals.order == places_of(space, order).tolist()
    assert made.conditionals.order != raster(space).tolist()
    sees_all = word not in ("gated-pixelcnn", "pixelcnn++", "pixelcnn")
    check_causal(made.net, symbols(space, 6), torch.tensor([[0], [1], [2]] * 2), sees_all=sees_all)


@pytest.mark.parametrize(("space", "word", "order"), [case for case in CASES if case[0] is not GRID], ids=str)
def test_masses_sum_to_one_and_filling_meets_what_leads(space, word, order):
    made = model(space, word, order=order)
    states = made.space.enumerate()
    p = made.log_prob(states).nats.exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    known = torch.zeros(1, space.dims, dtype=torch.bool)
    known[0, made.conditionals.order[: 3 if space is TABLE else 2]] = True
    filled = made.fill(states[-1:], known, draws=1000)
    assert filled.exact
    fits = ((states == states[-1]) | ~known).all(1) & ((states >= 0) | known).all(1)
    share = torch.stack([(filled.x[:, 0] == s).all(1).double().mean() for s in states[fits]])
    assert (share - p[fits] / p[fits].sum()).abs().sum() / 2 < 0.1


def test_words_are_permutations():
    grid = Space.grid(2, 2, 3)
    place = torch.arange(12).view(2, 2, 3)
    assert places_of(grid, "transposed").tolist() == place.permute(2, 1, 0).flatten().tolist()
    assert places_of(grid, "columns-first").tolist() == place.permute(2, 1, 0).flatten().tolist()
    assert places_of(grid, "reverse").tolist() == place.flip(1, 2).permute(1, 2, 0).flatten().tolist()
    assert places_of(TABLE, "flag, price,colour,size").tolist() == places_of(TABLE, [2, 3, 0, 1]).tolist() == [2, 3, 0, 1]
    assert places_of(TEXT, "reverse").tolist() == [3, 2, 1, 0]


@pytest.mark.parametrize(
    ("space", "options", "told"),
    [
        (GRID, {"order": "spiral"}, "Unknown order 'spiral'"),
        (GRID, {"order": list(range(12))[::-1]}, None),
        (GRID, {"order": list(range(12))[::-1], "net": "pixelcnn"}, "looks at neighbours"),
        (GRID, {"order": [0, 1]}, "2 entries, an example 12"),
        (TABLE, {"order": ["flag", "price", "colour", "colour"]}, "no permutation"),
        (TABLE, {"order": ["flag", "price", "colour", "sise"]}, "No column is named 'sise'"),
        (TABLE, {"order": [0, 1, 2, 4]}, "no permutation"),
        (TABLE, {"order": [0, 1, 2.0, 3]}, "No column is named 2.0"),
        (Space.sequence(3, 3, variable=True), {"order": "reverse"}, "end comes last"),
        (Space.grid(3, 2, 2, 256), {"order": list(range(12))[::-1], "net": "made", "head": "coupled"}, "own order"),
        (Space.grid(3, 2, 2, 256), {"net": "any-order", "head": "coupled"}, "own order"),
        (Space.sequence(3, 3), {"net": "any-order", "orderings": 2}, "read in one order"),
    ],
    ids=str,
)
def test_orders_that_cannot_be_are_refused_in_one_line(space, options, told):
    if told is None:
        Autoregressive(space, size="tiny", **options)
        return
    with pytest.raises(UsageError, match=told) as caught:
        Autoregressive(space, size="tiny", **options)
    assert "\n" not in str(caught.value)


def test_channels_stay_coupled_in_a_turned_grid():
    space = Space.grid(3, 2, 2, 5)
    made = model(space, head="coupled", order="transposed")
    x = symbols(space, 4)
    assert torch.isfinite(made.log_prob(x).nats).all()
    assert torch.equal(made.codec().decompress(made.codec().compress(x), 4), x)


@pytest.mark.parametrize("options", [{"order": ["flag", "price", "colour", "size"]}, {"net": "any-order", "order": "reverse"}], ids=str)
def test_a_stored_model_keeps_its_order(options, tmp_path):
    made = families.build("autoregressive", TABLE, size="tiny", **options).eval()
    twin = store.open_model(store.save(made, tmp_path / "model"))
    assert twin.conditionals.order == made.conditionals.order
    x = symbols(TABLE, 5)
    assert torch.equal(twin.log_prob(x).nats, made.log_prob(x).nats)
    assert torch.equal(twin.codec().decompress(made.codec().compress(x), 5), x)


def test_several_orderings_keep_the_first_in_the_users_order():
    made = model(TABLE, "made", orderings=3, order="reverse")
    assert made.conditionals.order == [3, 2, 1, 0]
    with made.net.under(1):
        assert made.conditionals.order != [3, 2, 1, 0]
    assert made.conditionals.order == [3, 2, 1, 0]
    assert made.log_prob(TABLE.enumerate()).nats.exp().sum().item() == pytest.approx(1, abs=1e-5)


# -- texts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["dilated", "transformer", "any-order"])
def test_a_text_is_scored_from_its_end_as_one_sequence(word):
    """Its first bytes are those that come last: each given half a window after it, or all there is."""
    made = model(TEXT, word, order="reverse", adapt=False)
    text = torch.randint(3, (11,))
    nats = made.log_prob_after(text, text[:3])
    for i in range(11):
        end = min(11, 11 - (10 - i) // 2 * 2 + 2)
        window = text[max(0, end - 4) : end]
        begin = end - len(window)
        padded = torch.cat([torch.zeros(4 - len(window), dtype=torch.int64), window])[None]
        each = made._log_masses(padded, None)[0, 4 - len(window) :]
        assert nats[i].item() == pytest.approx(each[i - begin].item(), abs=1e-6)
    data = Data(TEXT, *(Split(part.unfold(0, 4, 1), stream=part) for part in torch.randint(3, (300,)).split(100)))
    value, _ = stretch_bits(made, data)
    assert value.how == "one sequence, from its end"


def test_what_is_not_read_in_order_cannot_be_continued_mixed_or_padded():
    for order in ("reverse", PERMUTED):
        made = model(TEXT, order=order)
        with pytest.raises(UsageError, match="left to right"):
            made.sample(1, prompt=torch.tensor([0]))
        with pytest.raises(UsageError, match="left to right"):
            next(made.follow(torch.zeros(1, 1, dtype=torch.int64)))
        with pytest.raises(UsageError, match="left to right"):
            made.logits(torch.zeros(1, 4, dtype=torch.int64))
        with pytest.raises(UsageError, match="Padding"):
            made.log_prob(torch.tensor([[0, 1, -1, -1]]))
    with pytest.raises(UsageError, match="left to right"):
        made.log_prob_after(torch.zeros(9, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))


# -- any order ------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [GRID, TABLE, TEXT], ids=str)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_any_order_is_causal_in_random_orders(space, seed):
    made = awake(net(space, "causal", "tiny", word="any-order", given=LABEL, out=3))
    order = torch.randperm(space.dims, generator=torch.Generator().manual_seed(seed))
    bound, x, given = made.ordered(order), symbols(space, 6), torch.tensor([[0], [1], [2]] * 2)
    assert bound.order.tolist() == order.tolist()
    check_causal(bound, x, given)
    assert torch.equal(made(x, given), made.ordered(made.order)(x, given))


def test_training_takes_another_order_for_each_example():
    made = model(TABLE, "any-order")
    x = symbols(TABLE, 1).expand(64, -1)
    assert (made(x) == made(x)[0]).all()
    made.train()
    torch.manual_seed(0)
    losses = made(x)
    assert len(losses.unique()) > 12  # of 24 orders
    assert not torch.equal(losses, made(x))


def test_any_order_learns_what_all_orders_need():
    """x_2 = x_1 and x_3 a coin: each is known from the other, whichever comes first."""
    torch.manual_seed(0)
    made = Autoregressive(Space.columns(*[Support("nominal", 2)] * 3), size="tiny", net="any-order")
    optimiser = torch.optim.Adam(made.parameters(), 2e-2)
    coins = torch.randint(2, (80, 32, 2))
    for a in coins:
        loss = made(torch.stack([a[:, 0], a[:, 0], a[:, 1]], 1)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    known = torch.tensor([[False, True, True]])
    for value in (0, 1):
        filled = made.fill(torch.tensor([[0, value, 0]]), known, draws=100)
        assert (filled.x[:, 0, 0] == value).double().mean() > 0.9


def test_any_order_mixes_orderings_as_probabilities():
    made = model(TABLE, "any-order", orderings=3)
    states = TABLE.enumerate()
    p = made.log_prob(states).nats.exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    each = torch.stack([made._log_mass(states, None, ordering).exp() for ordering in range(3)])
    torch.testing.assert_close(p, each.mean(0))
    assert (each[0] - each[1]).abs().max() > 1e-3 * each.max()


@pytest.mark.parametrize("options", [{"net": "any-order"}, {"net": "any-order", "order": "reverse"}, {"order": "reverse"}], ids=str)
@pytest.mark.parametrize("data", ["grid-channels", "columns"])
def test_orders_keep_the_contract(data, options):
    findings = check_model("autoregressive", tiny_data()[data], room=Room(steps=10, samples=500), **options)
    assert "fills follow" in {finding.law for finding in findings}
