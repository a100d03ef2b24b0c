"""Autoregressive models: masses sum to one, draws follow them, steps equal the whole, no net looks ahead or is blind."""

import math

import pytest
import torch
from scipy import stats

from likely import families
from likely.abilities import Likelihood
from likely.dataset import Data, Split
from likely.decoding import Filter
from likely.errors import UsageError
from likely.evaluation.stretch import BLOCK, stretch_bits
from likely.families.autoregressive import Autoregressive
from likely.nets import NETS
from likely.space import Space, Support

TABLE = Space.columns(
    Support("nominal", 3, missing=True),
    Support("ordinal", 4, center=2.0, scale=1.2, missing=True),
    Support("nominal", 2),
    Support("ordinal", 3, center=1.5, scale=0.8),
)
MIXED = Space.columns(
    Support("decimal", decimals=1, center=3.0, scale=4.0, missing=True),
    Support("real", missing=True),
    Support("nominal", 3, missing=True),
    Support("real", center=2.0, scale=3.0),
)
FINITE = {
    "grid": Space.grid(1, 2, 3, 3),
    "channels": Space.grid(2, 2, 2, 3),
    "mixture": Space.grid(1, 2, 2, 11),
    "table": TABLE,
    "sequence": Space.sequence(3, 4),
    "strings": Space.sequence(3, 3, variable=True),
}
LABEL = Space.label(3)
CASES = [(name, word) for name, space in FINITE.items() for word in NETS["causal", space.layout]]


def model(space: Space, net: str | None = None, given: Space | None = None, **options) -> Autoregressive:
    """A tiny model with random weights that are large enough for every dependence to show."""
    made = Autoregressive(space, given=given, size="tiny", net=net, **options)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def finite(name: str, net: str | None = None, given: Space | None = None) -> Autoregressive:
    return model(FINITE[name], net, given, categorical_up_to=10)


@pytest.mark.parametrize("given", [None, LABEL], ids=["free", "given"])
@pytest.mark.parametrize(("name", "net"), CASES)
def test_masses_sum_to_one(name, net, given):
    made = finite(name, net, given)
    x = made.space.enumerate()
    label = None if given is None else torch.ones(len(x), 1, dtype=torch.int64)
    assert made.log_prob(x, label).nats.exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("name", "net"), CASES)
def test_draws_follow_the_masses(name, net):
    made, n = finite(name, net), 4000
    x = made.space.enumerate()
    expected = made.log_prob(x).nats.exp() * n
    drawn = made.sample(n)
    made.space.check(drawn)
    place = {tuple(row): i for i, row in enumerate(x.flatten(1).tolist())}
    counts = torch.bincount(torch.tensor([place[tuple(row)] for row in drawn.flatten(1).tolist()]), minlength=len(x))
    bins = (expected[expected.argsort()].cumsum(0) / 20).long()[expected.argsort().argsort()]  # of some 20 draws or one state
    observed, wanted = (torch.zeros(int(bins.max()) + 1).double().index_add(0, bins, v.double()) for v in (counts, expected.detach()))
    full = wanted > 5
    statistic = ((observed - wanted).square() / wanted)[full].sum()
    assert stats.chi2.sf(statistic.item(), int(full.sum())) > 1e-4


@pytest.mark.parametrize(
    ("space", "net"),
    [*((space, word) for space in [*FINITE.values(), MIXED, Space.grid(2, 2, 17, None)] for word in NETS["causal", space.layout])],
    ids=str,
)
def test_steps_equal_the_whole(space, net):
    made = model(space, net, LABEL).double().eval()
    label = torch.tensor([[0], [2], [1]])
    x = made._symbols(made.sample(3, label))[0]
    whole = made.net(x, label).flatten(1, -2)
    state, last = made.net.init_state(3, label), None
    for place in made.conditionals.order:
        state, stepped = made.net.step(state, last)
        last = x.flatten(1)[:, place]
        open_ = stepped.isfinite().all(1)  # after an end, only the end is possible
        torch.testing.assert_close(stepped[open_], whole[open_, place], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("space", "net"),
    [
        *((Space.grid(2, 4, 5), word) for word in ("gated-pixelcnn", "pixelcnn++", "made")),
        *((Space.reals(6), word) for word in NETS["causal", "columns"]),
    ],
    ids=str,
)
def test_sees_exactly_what_is_before(space, net):
    """The parameters of entry i depend on entry j if and only if j comes before i: no leak, no blind spot."""
    options = {"depth": 4} if space.layout == "grid" and net != "made" else {}
    made = model(space, net, **options).double().eval()
    x = torch.randn(1, *space.shape, dtype=torch.float64, requires_grad=True)
    order = made.conditionals.order
    parameters = made.net(x).flatten(1, -2)[0, order]
    seen = (
        torch.stack([torch.autograd.grad(p.square().sum(), x, retain_graph=True)[0].flatten()[made.conditionals.order] for p in parameters])
        != 0
    )
    assert torch.equal(seen, torch.ones_like(seen).tril(-1))


@pytest.mark.parametrize("net", NETS["causal", "sequence"])
def test_sequence_net_sees_exactly_what_is_before(net):
    made = model(Space.sequence(7, 5), net).double().eval()
    x = torch.randint(5, (1, 7))
    other = x.repeat(7, 1)
    other[range(7), range(7)] = (other.diagonal() + 1) % 5
    changed = ((made.net(other) - made.net(x)).abs() > 1e-9).any(-1)  # [changed entry j, place i]
    assert torch.equal(changed.T, torch.ones_like(changed).tril(-1).triu(-(made.net.reach or 7)))


@pytest.mark.parametrize("name", FINITE)
def test_codes_cost_what_the_model_claims(name):
    made = finite(name, given=LABEL)
    label = torch.full((60, 1), 2)
    x = made.sample(60, label)
    message = made.codec(label[:1]).compress(x)
    assert torch.equal(made.codec(label[:1]).decompress(message, 60), x)
    claim = -made.log_prob(x, label).nats.sum().item() / math.log(2)
    assert 8 * len(message) <= 1.001 * claim + 128


@pytest.mark.parametrize("given", [Space.reals(2), Space.grid(1, 2, 2), TABLE], ids=str)
def test_codes_under_any_given(given):
    made = model(FINITE["grid"], given=given)
    value = torch.randn(1, *given.shape) if not given.discrete else torch.zeros(1, *given.shape, dtype=torch.int64)
    x = made.sample(20, value)
    assert torch.equal(made.codec(value).decompress(made.codec(value).compress(x), 20), x)


def test_a_prefix_has_its_marginal():
    made = finite("sequence")
    x = made.space.enumerate()
    prefix = torch.tensor([[2, 1, -1]])
    begins = (x[:, :2] == prefix[:, :2]).all(1)
    assert made.log_prob(prefix).nats.exp().item() == pytest.approx(made.log_prob(x[begins]).nats.exp().sum().item(), rel=1e-5)


def test_density_of_reals_is_normalised():
    made = model(Space.columns(Support("real", center=2.0, scale=3.0)))
    x = torch.linspace(-100, 100, 20_001)[:, None]
    assert torch.trapezoid(made.log_prob(x).nats.exp(), x[:, 0].double()).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("net", NETS["causal", "columns"])
def test_mixed_tables_are_drawn_and_scored(net):
    made = model(MIXED, net)
    x = made.sample(200)
    MIXED.check(x)
    assert bool(x[:, 0].isnan().any() and x[:, 1].isnan().any() and (x[:, 2] == -1).any())
    assert bool(made.log_prob(x).nats.isfinite().all())


@pytest.mark.parametrize(("name", "net"), CASES)
def test_every_parameter_learns_and_rows_are_independent(name, net):
    made = finite(name, net, LABEL)
    x, label = made.space.enumerate()[-8:], torch.randint(3, (8, 1))
    made(x, label).mean().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in made.parameters())
    alone = torch.cat([made.log_prob(x[i : i + 1], label[i : i + 1]).nats for i in range(8)])
    torch.testing.assert_close(made.log_prob(x, label).nats, alone, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", FINITE)
def test_bf16_is_near(name):
    made = finite(name)
    x = made.space.enumerate()[:32]
    with torch.autocast("cpu", torch.bfloat16):
        rough = made(x)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, made(x), rtol=0.2, atol=0.2)


def test_likelihood_ignores_dropout():
    made = model(FINITE["grid"], dropout=0.5).train()
    x = made.space.enumerate()[:20]
    assert torch.equal(made.log_prob(x).nats, made.log_prob(x).nats)
    assert made.training
    assert not torch.equal(made(x), made(x))


def test_learns_a_known_distribution():
    """x_1 uniform, x_2 = x_1, x_3 a coin: two bits."""
    made = Autoregressive(Space.columns(*[Support("nominal", 2)] * 3), size="tiny")
    optimiser = torch.optim.Adam(made.parameters(), 5e-3)
    coins = torch.randint(2, (100, 32, 2))
    for a in coins:
        loss = made(torch.stack([a[:, 0], a[:, 0], a[:, 1]], 1)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    every = made.space.enumerate()
    true = every[every[:, 0] == every[:, 1]]
    assert -made.log_prob(true).nats.mean().item() / math.log(2) == pytest.approx(2, abs=0.1)


# -- orderings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [None, LABEL], ids=["free", "given"])
@pytest.mark.parametrize("name", ["grid", "table"])
def test_a_mixture_over_orderings_is_exact(name, given):
    made, n = model(FINITE[name], "made", given, orderings=3).eval(), 5000
    x = made.space.enumerate()
    label = None if given is None else torch.ones(len(x), 1, dtype=torch.int64)
    masses = made.log_prob(x, label).nats.exp()
    assert masses.sum().item() == pytest.approx(1, abs=1e-5)
    each = torch.stack([made._log_mass(x, label, ordering).exp() for ordering in range(3)])
    assert (each[0] - each[1]).abs().max() > 1e-3 * each.max()
    torch.testing.assert_close(masses, each.mean(0))
    place = {tuple(row): i for i, row in enumerate(x.flatten(1).tolist())}
    drawn = made.sample(n, None if label is None else label[:1]).flatten(1).tolist()
    counts = torch.bincount(torch.tensor([place[tuple(row)] for row in drawn]), minlength=len(x)).double()
    often = masses.detach() * n >= 5
    observed, wanted = ([*v[often].tolist(), v[~often].sum().item()] for v in (counts, masses.detach() * n))
    assert sum((o - w) ** 2 / w for o, w in zip(observed, wanted, strict=True)) < stats.chi2.isf(1e-4, len(wanted) - 1)


def test_a_mixture_over_orderings_has_no_codec():
    with pytest.raises(UsageError, match="orderings"):
        model(FINITE["grid"], "made", orderings=2).codec()


# -- filters --------------------------------------------------------------------------------------


def test_filters_keep_the_likeliest():
    logits = torch.tensor([0.1, 0.4, 0.3, 0.2]).log()
    assert Filter(top_k=2)(logits).isfinite().tolist() == [False, True, True, False]
    assert Filter(top_p=0.7)(logits).isfinite().tolist() == [False, True, True, False]
    assert Filter(top_p=0.71)(logits).isfinite().tolist() == [False, True, True, True]
    torch.testing.assert_close(Filter(temperature=0.5)(logits).softmax(-1), torch.tensor([0.01, 0.16, 0.09, 0.04]) / 0.3)


def test_top_1_is_greedy():
    made = finite("sequence")
    drawn = made.sample(5, top_k=1)
    assert bool((drawn == drawn[0]).all())
    first = made.net(drawn)[0, 0].argmax()
    assert drawn[0, 0] == first


def test_filters_are_refused_where_they_mean_nothing():
    with pytest.raises(UsageError, match="cannot be listed"):
        model(MIXED).sample(2, temperature=0.5)
    with pytest.raises(UsageError, match="top_k"):
        Filter(top_k=0)


def test_reals_and_decimals_have_no_codec_yet():
    with pytest.raises(UsageError, match="cannot be coded"):
        model(MIXED).codec()


# -- stretches of text ----------------------------------------------------------------------------


def text(train: int, test: int, window: int) -> Data:
    parts = torch.randint(4, (train + 50 + test,)).split([train, 50, test])
    return Data(Space.sequence(window, 4), *(Split(part.unfold(0, window, 1), stream=part) for part in parts))


@pytest.mark.parametrize("prefix", [0, 3, 50])
def test_a_stretch_is_one_sequence(prefix):
    """A net of bounded reach gives the very conditionals of the whole text, each symbol once."""
    made = model(Space.sequence(8, 4), "dilated", adapt=False)
    stream = torch.randint(4, (prefix + 61,))
    whole = made.net(stream[None]).log_softmax(-1)[0].gather(1, stream[:, None])[:, 0]
    assert made.net.reach < 20
    torch.testing.assert_close(made.log_prob_after(stream[prefix:], stream[:prefix]), whole[prefix:].double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prefix", [0, 3, 50])
def test_a_stretch_has_at_least_half_a_window_before_it(prefix):
    """A transformer scores each symbol once, given half a window of what is before it, or all there is."""
    made = model(Space.sequence(8, 4), "transformer", adapt=False)
    stream = torch.randint(4, (prefix + 21,))
    for i, value in enumerate(made.log_prob_after(stream[prefix:], stream[:prefix])):
        window = stream[max(0, prefix + i // 4 * 4 - 4) : prefix + i + 1]
        padded = torch.full((2, 8), -1)
        padded[0, : len(window)], padded[1, : len(window) - 1] = window, window[:-1]
        whole, before = made.log_prob(padded).nats
        assert value.item() == pytest.approx((whole - before).item(), abs=1e-5)


def test_stretch_bits_average_over_bytes():
    made, data = model(Space.sequence(16, 4), adapt=False), text(100, 2 * BLOCK + 300, 16)
    value, blocks = stretch_bits(made, data)
    nats = made.log_prob_after(data.test.stream, torch.cat([data.train.stream, data.valid.stream]))
    assert value.value == pytest.approx(-nats.mean().item() / math.log(2))
    assert (len(blocks), value.n, value.kind, value.how) == (3, 2 * BLOCK + 300, "exact", "one sequence, primed")
    assert 0 < value.stderr < value.value


def test_stretch_of_a_model_without_conditionals_is_windows():
    made, data = model(Space.sequence(16, 4)), text(100, BLOCK + 37, 16)

    class Unprimed(Likelihood):
        space, given_space = made.space, None

        def _log_prob(self, x, given, noise):
            return made._log_prob(x, given, noise)

    value, blocks = stretch_bits(Unprimed(), data)
    whole = made.log_prob(data.test.stream[:BLOCK].view(-1, 16)).nats.sum()
    assert blocks.nats[0].item() == pytest.approx(whole.item())
    assert (value.n, value.how) == (BLOCK + 37, "independent windows of 16")


def test_sizes_of_large_images():
    made = Autoregressive(Space.grid(3, 32, 32, 256), size="tiny")
    x = torch.randint(256, (2, 3, 32, 32))
    bits = made(x) / math.log(2) / made.space.dims
    assert bool((bits < 12).all())


def test_a_nets_own_options_are_handed_on_and_others_refused():
    space = Space.grid(1, 4, 4, 3)
    assert families.build("autoregressive", space, size="tiny", gates=4).net.stacks[0].link.in_features == 4
    with pytest.raises(UsageError, match="'made' has no option 'gates'"):
        families.build("autoregressive", Space.columns(*space.supports * 3), size="tiny", net="made", gates=4)
    with pytest.raises(UsageError, match="no option 'gate'"):
        families.build("autoregressive", space, gate=4)
