"""The transformer's options and the recurrent net: steps equal the whole, nothing looks ahead, states are bounded, `given` is read."""

import itertools
import math

import pytest
import torch

from likely.errors import UsageError
from likely.families.autoregressive import Autoregressive
from likely.nets.causal import CausalNet, attention
from likely.nets.causal.attention import Place, Ring, SoftmaxAttention
from likely.nets.causal.rnn import RecurrentNet
from likely.nets.causal.transformer import CausalTransformer
from likely.nets.positions import KINDS, Positions
from likely.space import Space, Support

TEXT = Space.sequence(9, 5)
TABLE = Space.columns(
    Support("nominal", 3, missing=True), Support("real"), Support("nominal", 2), Support("ordinal", 40, center=20.0, scale=9.0)
)
GRID = Space.grid(2, 3, 4, 3)
SPACES = {"text": TEXT, "table": TABLE, "grid": GRID}
LABEL, VECTOR, CAPTION = Space.label(3), Space.reals(2), Space.sequence(4, 3, variable=True)
ATTENTIONS = [{"attention": "full"}, {"attention": "local", "window": 3}, {"attention": "linear"}]
OPTIONS = [
    {**attention, "positions": positions}
    for attention, positions in itertools.product(ATTENTIONS, KINDS)
    if (attention["attention"], positions) != ("linear", "alibi")
]
OTHERS = [
    {"heads": 4, "kv_heads": 2},
    {"heads": 4, "kv_heads": 1, "positions": "alibi", "window": 3},
    {"ffn": "swiglu", "norm": "rms"},
    {"ffn": "gelu"},
]


def ids(value: object) -> str | None:
    return "-".join(map(str, value.values())) if isinstance(value, dict) else None


def awake(net: CausalNet) -> CausalNet:
    """In float64, with random weights that are large enough for every dependence to show."""
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return net.double().eval()


def transformer(space: Space, *, given: Space | None = None, width: int = 16, **options) -> CausalTransformer:
    return awake(CausalTransformer(space, given=given, size="tiny", width=width, out=3, depth=2, **options))


def examples(space: Space, n: int) -> torch.Tensor:
    if space.layout == "columns":
        return torch.stack([torch.randint(2, (n,)), torch.randn(n), torch.randint(2, (n,)), torch.randint(40, (n,))], 1).double()
    return torch.randint(space.supports[0].levels, (n, *space.shape))


def stepped(net: CausalNet, x: torch.Tensor, given: torch.Tensor | None = None) -> torch.Tensor:
    """Parameters of entries in the net's order, one after the other."""
    state, last, parameters = net.init_state(len(x), given), None, []
    flat = x.flatten(1) if x.shape[1:] != net.order.shape else x
    for place in net.order.tolist() + list(range(len(net.order), flat.shape[1])):
        state, now = net.step(state, last)
        parameters.append(now)
        last = flat[:, place]
    return torch.stack(parameters, 1)


def whole(net: CausalNet, x: torch.Tensor, given: torch.Tensor | None = None) -> torch.Tensor:
    parameters = net(x, given).flatten(1, -2)
    return parameters[:, net.order] if parameters.shape[1] == len(net.order) else parameters


# -- the transformer --------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", SPACES)
@pytest.mark.parametrize("options", OPTIONS + OTHERS, ids=ids)
def test_steps_equal_the_whole(layout, options):
    net, x = transformer(SPACES[layout], **options), examples(SPACES[layout], 3)
    torch.testing.assert_close(stepped(net, x), whole(net, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-9), (torch.float32, 1e-4), (torch.bfloat16, 0.1)], ids=str)
@pytest.mark.parametrize("options", [o for o in OPTIONS + OTHERS if o.get("attention") != "linear"], ids=ids)
def test_steps_by_products_equal_those_that_are_compiled(options, dtype, within, monkeypatch):
    """Other devices than a CPU, and many streams on several threads, step by torch's own products."""
    net, x = transformer(TEXT, **options).to(dtype), torch.randint(5, (3, 12 if options.get("positions") != "learned" else 9))
    with torch.no_grad():
        compiled = stepped(net, x)
        monkeypatch.setattr(attention, "_may_compile", lambda keys: False)
        monkeypatch.setattr(attention, "_compiled", None)
        torch.testing.assert_close(stepped(net, x), compiled, rtol=within, atol=within)


@pytest.mark.parametrize(("streams", "threads", "compiled"), [(1, 8, True), (64, 8, False), (64, 1, True)])
def test_many_streams_on_several_threads_are_left_to_torch(streams, threads, compiled, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert attention._may_compile(torch.zeros(streams, 3, 2)) is compiled


def test_steps_with_gradients_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(attention, "_compiled", lambda *_: pytest.fail("A compiled function has no gradient."))
    net = transformer(TEXT)
    _, parameters = net.step(net.init_state(2), None)
    assert parameters.requires_grad


@pytest.mark.parametrize("layout", SPACES)
@pytest.mark.parametrize("options", OPTIONS, ids=ids)
def test_sees_exactly_what_is_before(layout, options):
    """Changing an entry changes the parameters of those after it that it reaches, and of no others."""
    space, net = SPACES[layout], transformer(SPACES[layout], ngrams=1, **options)
    x = examples(space, 1).flatten(1)[:, net.order]
    n, other = x.shape[1], x.repeat(x.shape[1], 1)
    other[range(n), range(n)] = torch.where(other.diagonal() == 1, 0, 1).to(x.dtype)
    back = net.order.argsort()
    base, moved = (whole(net, v[:, back].view(-1, *space.shape)) for v in (x, other))
    seen = ((moved - base).abs() > 1e-9).any(-1).T  # [place i, changed entry j]
    reach = 2 * (options["window"] - 1) + 1 if "window" in options else n
    assert torch.equal(seen, torch.ones_like(seen).tril(-1).triu(-reach))


@pytest.mark.parametrize("options", [o for o in OPTIONS if o["positions"] != "learned"], ids=ids)
def test_texts_of_any_length(options):
    """Beyond the training window, too, a step's state does not grow and agrees with the whole."""
    net, x = transformer(TEXT, **options), torch.randint(5, (2, 40))
    torch.testing.assert_close(stepped(net, x), net(x), rtol=1e-9, atol=1e-9)
    state = net.init_state(2)
    for cache in state.caches:
        assert not isinstance(cache, Ring) or cache.keys.shape[2] == options.get("window", 9)


def test_learned_positions_end():
    with pytest.raises(UsageError, match="9 places"):
        transformer(TEXT, positions="learned")(torch.randint(5, (1, 10)))


@pytest.mark.parametrize("length", [3, 4, 7, 12])
@pytest.mark.parametrize("kind", ["rotary", "alibi"])
def test_blocks_equal_a_band(kind, length):
    """Attention by blocks is softmax attention under a band of the window's width."""
    window, heads, width = 3, 2, 8
    attention = awake(SoftmaxAttention(width, heads, heads, window))
    positions = Positions(Space.sequence(20), kind, width=width, heads=heads).double()
    h = torch.randn(2, length, width, dtype=torch.float64)
    place = Place.whole(positions, length, window, h)
    q, k, v = attention.qkv(h).unflatten(-1, (3, heads, 4)).permute(2, 0, 3, 1, 4)
    i, j = torch.arange(length)[:, None], torch.arange(length)
    if place.turns is not None:
        q, k = (torch.view_as_real(torch.view_as_complex(t.unflatten(-1, (-1, 2))) * place.turns[:, 0]).flatten(-2) for t in (q, k))
    scores = q @ k.mT / 2 + (positions.bias(i, j, h.dtype) if kind == "alibi" else 0)
    band = scores.masked_fill((j > i) | (j <= i - window), -math.inf).softmax(-1) @ v
    torch.testing.assert_close(attention(h, place), attention.out(band.transpose(1, 2).flatten(2)))


def test_rotary_scores_depend_on_differences_alone():
    net = transformer(Space.sequence(30, 5), window=4, ngrams=1)
    x = torch.randint(5, (1, 30))
    reach = net.reach
    assert reach is not None
    torch.testing.assert_close(net(x)[:, 15 + reach :], net(x[:, 15:])[:, reach:])


def test_mistakes_are_told():
    for options, message in [
        ({"positions": "rotatory"}, "rotary"),
        ({"attention": "linear", "positions": "alibi"}, "no scores"),
        ({"heads": 3}, "do not divide"),
        ({"heads": 4, "kv_heads": 3}, "do not divide"),
        ({"norm": "batch"}, "norm"),
        ({"given_by": "nonsense"}, "given_by 'nonsense'"),
        ({"given": LABEL, "given_by": "cross"}, "attended"),
        ({"given": LABEL, "given_by": "prefix", "window": 3}, "loses sight"),
    ]:
        with pytest.raises(UsageError, match=message):
            transformer(TEXT, **options)


# -- the recurrent net ------------------------------------------------------------------------------


@pytest.mark.parametrize("ngrams", [1, 3])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("space", [TEXT, TABLE], ids=["text", "table"])
def test_recurrent_steps_equal_the_whole(space, cell, ngrams):
    net, x = awake(RecurrentNet(space, size="tiny", out=3, depth=2, cell=cell, ngrams=ngrams)), examples(space, 3)
    torch.testing.assert_close(stepped(net, x), whole(net, x), rtol=1e-9, atol=1e-9)


def test_an_unknown_cell():
    with pytest.raises(UsageError, match="gru"):
        RecurrentNet(TEXT, out=3, cell="gur")


# -- given ------------------------------------------------------------------------------------------

NETS = [
    *(("transformer", given, {"given_by": way}) for given in (LABEL, VECTOR, CAPTION) for way in ("start", "film", "prefix")),
    ("transformer", CAPTION, {"given_by": "cross"}),
    ("dilated", CAPTION, {}),
    *(("rnn", given, {"cell": cell}) for given in (LABEL, VECTOR, CAPTION) for cell in ("lstm", "gru")),
    ("rnn", CAPTION, {"attend": False}),
]


@pytest.mark.parametrize(("word", "given", "options"), NETS, ids=ids)
def test_given_is_read_alike_by_both_ways(word, given, options):
    model = Autoregressive(Space.sequence(4, 3), given=given, size="tiny", net=word, **options)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    values = {LABEL: [[0], [2]], VECTOR: [[0.0, 1.0], [2.0, -1.0]], CAPTION: [[2, 0, 1, -1], [-1] * 4]}[given]
    values = torch.tensor(values)
    every = model.space.enumerate()
    for value in values:
        masses = model.log_prob(every, value.expand(len(every), -1)).nats.exp()
        assert masses.sum().item() == pytest.approx(1, abs=1e-5)
    x = every[:2]
    changed = (model.log_prob(x, values).nats - model.log_prob(x, values.flip(0)).nats).abs()
    assert bool((changed > 1e-4).all())
    net, values = model.net.double().eval(), values.double() if values.is_floating_point() else values
    torch.testing.assert_close(stepped(net, x, values), net(x, values), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layout", SPACES)
@pytest.mark.parametrize("options", [o for o in OPTIONS if "window" not in o] + [{"heads": 4, "kv_heads": 2}, {"ngrams": 1}], ids=ids)
def test_a_prefix_is_kept_by_the_caches_and_places_stay_right(layout, options):
    """Also of texts longer than the window, where positions go on: the oldest leave the ring, the prefix first."""
    space, caption = SPACES[layout], torch.tensor([[2, 0, 1, -1], [-1, -1, -1, -1], [1, 1, 2, 0]])
    net, x = transformer(space, given=CAPTION, given_by="prefix", **options), examples(space, 3)
    torch.testing.assert_close(stepped(net, x, caption), whole(net, x, caption), rtol=1e-9, atol=1e-9)
    plain = transformer(space, **options)
    assert plain.positions.longest == net.positions.longest
    if layout == "text" and options.get("positions") != "learned":
        x = torch.randint(5, (3, 40))
        torch.testing.assert_close(stepped(net, x, caption), net(x, caption), rtol=1e-9, atol=1e-9)


def test_every_entry_attends_to_a_prefix():
    net, x = transformer(TEXT, given=CAPTION, given_by="prefix", ngrams=1), examples(TEXT, 1)
    one, other = net(x, torch.tensor([[2, 0, 1, -1]])), net(x, torch.tensor([[2, 0, 1, 1]]))
    assert ((one - other).abs().amax(-1) > 1e-6).all()


def test_a_text_goes_on_after_its_window_with_its_prefix():
    made = Autoregressive(Space.sequence(6, 5), given=CAPTION, size="tiny", net="transformer", given_by="prefix")
    drawn = made.sample(2, torch.tensor([[2, 0, 1, -1]]), length=20)
    assert drawn.shape == (2, 20)
    assert made.conditionals.net.room == 6


@pytest.mark.parametrize(("word", "given", "options"), NETS, ids=ids)
def test_every_parameter_learns(word, given, options):
    model = Autoregressive(Space.sequence(4, 3), given=given, size="tiny", net=word, **options)
    value = {LABEL: torch.tensor([[0], [2]]), VECTOR: torch.randn(2, 2), CAPTION: torch.tensor([[2, 0, 1, -1], [0, -1, -1, -1]])}[given]
    model(torch.tensor([[0, 1, 2, 0], [1, 2, 0, 0]]), value).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("word", ["gated-pixelcnn", "transformer"])
def test_images_of_a_caption(word):
    model = Autoregressive(Space.grid(1, 2, 2, 2), given=CAPTION, size="tiny", net=word)
    every = model.space.enumerate()
    caption = torch.tensor([[1, 2, -1, -1]]).expand(len(every), -1)
    assert model.log_prob(every, caption).nats.exp().sum().item() == pytest.approx(1, abs=1e-5)


def reversal(options: dict, steps: int = 75, length: int = 6) -> float:
    """Bits per symbol of a string given the same string backwards, after some steps."""
    torch.manual_seed(0)
    space = Space.sequence(length, 8)
    model = Autoregressive(space, given=space, size="tiny", width=32, **options)
    optimiser = torch.optim.Adam(model.parameters(), 2e-2)
    for _ in range(steps):
        x = torch.randint(8, (16, length))
        loss = model(x, x.flip(1)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x = torch.randint(8, (200, length))
    return -model.log_prob(x, x.flip(1)).nats.mean().item() / length / math.log(2)


def test_attention_cures_the_bottleneck():
    """What one state cannot hold, attention reads where it stands."""
    cured, bottleneck = reversal({"net": "rnn", "cell": "gru"}), reversal({"net": "rnn", "cell": "gru", "attend": False})
    assert cured < 1.2
    assert bottleneck > cured + 0.5
