"""Causal nets of grids: what each pixel sees, exactly; steps equal the whole; a state of bounded memory."""

import pytest
import torch

from likely.nets import NETS, net
from likely.nets.causal import CausalNet
from likely.nets.causal.inputs import features
from likely.space import Space, Support

NO_BLIND_SPOT = [word for word in NETS["causal", "grid"] if word != "pixelcnn"]
CONVOLUTIONAL = ["gated-pixelcnn", "pixelcnn++", "pixelcnn"]


def built(space: Space, word: str, given: Space | None = None, **options) -> CausalNet:
    """A tiny net in float64 with weights that are large enough for every dependence to show."""
    made = net(space, "causal", "tiny", word=word, given=given, out=2, **options).double().eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def seen(made: CausalNet, space: Space, place: int) -> torch.Tensor:
    """Which entries the parameters of the entry at a place of the order depend on, by gradient; in the order's places."""
    x = torch.randn(2, *space.shape, dtype=torch.float64, requires_grad=True)
    parameters = made(x).flatten(1, -2)[:, made.order[place]]
    return torch.autograd.grad(parameters.square().sum(), x)[0].abs().sum(0).flatten()[made.order] > 0


@pytest.mark.parametrize("word", NO_BLIND_SPOT)
@pytest.mark.parametrize("shape", [(1, 12, 14), (2, 4, 5)], ids=str)
def test_each_entry_sees_all_before_it(word, shape):
    space = Space.grid(*shape)
    made = built(space, word, **{"gated-pixelcnn": {"depth": 14}, "pixelcnn++": {"depth": 3}}.get(word, {}))
    for place in (0, 1, space.dims // 2, space.dims // 2 + 1, space.dims - 8, space.dims - 1):
        assert torch.equal(seen(made, space, place), torch.arange(space.dims) < place)


def test_the_blind_spot_of_masked_convolutions():
    """Unseen is the triangle of pixels more than i + 2 columns to the right in the i-th row above, at any depth."""
    space = Space.grid(1, 6, 14)
    made, row, column = built(space, "pixelcnn", depth=13), 5, 2
    i, j = row - torch.arange(6)[:, None], torch.arange(14) - column
    before = (i > 0) | (j < 0)
    blind = (i > 0) & (j > i + 2)
    assert torch.equal(seen(made, space, row * 14 + column).view(6, 14), (before & ~blind) & (i >= 0))
    assert int(blind.sum()) == 30


@pytest.mark.parametrize("n", [2, 6], ids=["compiled layers", "layers of products"])
@pytest.mark.parametrize("word", NETS["causal", "grid"])
def test_steps_equal_the_whole(word, n):
    """On a grid that pixelcnn++ halves once."""
    space, label = Space.grid(1, 12, 12, 3), torch.arange(n)[:, None] % 3
    made, x = built(space, word, Space.label(3)), torch.randint(3, (n, *space.shape))
    whole = made(x, label).flatten(1, -2)
    with torch.no_grad():
        state, last = made.init_state(n, label), None
        for place in made.order.tolist():
            state, stepped = made.step(state, last)
            last = x.flatten(1)[:, place]
            torch.testing.assert_close(stepped, whole[:, place], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("word", CONVOLUTIONAL)
def test_registers_do_not_grow_with_the_height(word):
    def held(height: int) -> int:
        made = built(Space.grid(1, height, 12, 2), word)
        with torch.no_grad():
            state, _ = made.step(made.init_state(1), None)
            for _ in range(2 * 12):
                state, _ = made.step(state, torch.ones(1, dtype=torch.int64))
        columns = [h for row in state.columns.values() for h in row]
        kept = [state.seen.rows, *(r.rows for r in state.registers.values()), *state.rows.values(), *columns]
        return sum(t.numel() for t in kept)

    assert held(14) == held(12)


def test_pixelcnn_plus_plus_halves_large_grids():
    resolutions = {side: len(built(Space.grid(1, side, side, 2), "pixelcnn++").down) for side in (8, 12, 16, 27, 28, 32)}
    assert resolutions == {8: 1, 12: 2, 16: 2, 27: 1, 28: 3, 32: 3}


@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("ordering", [0, 1, 2])
def test_orderings_of_made(ordering, levels):
    """Each sees exactly what it has before, and steps as the whole; entries of two levels are connected to outputs."""
    space = Space.grid(2, 2, 3, levels)
    made, x = built(space, "made", orderings=3), torch.randint(levels, (4, *space.shape))
    natural = made.order.tolist()
    assert (made.direct is not None) == (levels == 2)
    with made.under(ordering):
        whole, order = made(x).flatten(1, -2), made.order.tolist()
        assert (order == natural) == (ordering == 0)
        state, last = made.init_state(4), None
        for i, place in enumerate(order):
            other = x.flatten(1).clone()
            other[:, place] = (other[:, place] + 1) % levels
            changed = (made(other.view_as(x)).flatten(1, -2) != whole).any(-1).any(0)
            assert torch.equal(changed[order], torch.arange(space.dims) > i)
            state, stepped = made.step(state, last)
            last = x.flatten(1)[:, place]
            torch.testing.assert_close(stepped, whole[:, place], rtol=1e-9, atol=1e-9)
    assert made.order.tolist() == natural


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64], ids=str)
def test_features_of_entries_that_have_codes(dtype):
    """One, the number, whether it is missing, the code; a missing entry has neither number nor code."""
    support = Support("ordinal", 3, center=1.5, scale=0.5, missing=True)
    x = torch.tensor([[0, 2], [1, -1]]).to(dtype)
    x = x.masked_fill(x == -1, float("nan")) if dtype == torch.float64 else x
    expected = [[1, -2, 0, 1, 0, 0], [1, 2, 0, 0, 0, 1], [1, 0, 0, 0, 1, 0], [1, 0, 1, 0, 0, 0]]
    found = features(support, x, torch.float32).movedim(1, -1)
    assert torch.equal(found, torch.tensor(expected, dtype=torch.float32).view(2, 2, 6))
