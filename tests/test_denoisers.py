"""Nets that say what noisy reals were: shapes, what they start from, what they take as given."""

import pytest
import torch
from torch import nn

from likely.errors import UsageError
from likely.nets import net, net_words
from likely.nets.denoiser import as_grid
from likely.nets.dit import DiT
from likely.nets.known import Knowledge, TimeEmbedding
from likely.nets.unet import Stage, TextAttention, UNet
from likely.space import Space

GRID, SERIES, POINTS = Space.grid(2, 5, 7), Space.series(3, 11), Space.points(6, 2)
GIVEN = {
    "label": Space.label(3),
    "numbers": Space.reals(2),
    "text": Space.sequence(6, 5, variable=True),
    "image": Space.grid(1, 5, 7, 4),
    "real image": Space.grid(3, 2, 3),
}
BUILDS = [
    (GRID, "unet", {}),
    (GRID, "unet", {"block": "convnext"}),
    (GRID, "unet", {"fourier": True, "attention": 300, "heads": 2}),
    (GRID, "dit", {}),
    (GRID, "dit", {"positions": "rotary", "patch": 2}),
    (GRID, "dit", {"positions": "alibi"}),
    (SERIES, "unet1d", {}),
    (SERIES, "transformer", {"patch": 3}),
    (Space.reals(4), "mlp", {}),
    (Space.reals(4), "plain", {}),
    (Space.reals(4), "plain", {"waves": 0, "depth": 1}),
    (POINTS, "set-transformer", {}),
    (POINTS, "set-transformer", {"inducing": 3}),
    (Space.points(5, 2, variable=True), "set-transformer", {}),
]


def drawn(space: Space, n: int) -> torch.Tensor:
    return torch.randint(0, 2, (n, *space.shape)) if space.discrete else torch.randn(n, *space.shape)


def alive(model: nn.Module) -> nn.Module:
    """With random numbers where it starts at zero."""
    for p in model.parameters():
        if p.count_nonzero() == 0:
            nn.init.normal_(p, std=0.2)
    return model.eval()


@pytest.mark.parametrize(("space", "word", "options"), BUILDS, ids=str)
@pytest.mark.parametrize("given", [None, *GIVEN])
def test_every_net_is_zero_at_first_and_all_its_parameters_learn(space, word, options, given):
    torch.manual_seed(0)
    model = net(space, "denoiser", "tiny", word=word, given=GIVEN.get(given), out=2, **options)
    u, t = torch.randn(3, *space.shape), torch.rand(3)
    y = model(u, t, drawn(GIVEN[given], 3) if given else None)
    assert y.shape == (3, 2 * space.shape[0], *space.shape[1:])
    assert y.count_nonzero() == 0
    (y * torch.randn_like(y)).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    assert not [name for name, p in model.named_parameters() if p.ndim == 0 or "." not in name]


@pytest.mark.parametrize(("space", "word", "options"), BUILDS, ids=str)
@pytest.mark.parametrize("given", GIVEN)
def test_every_net_takes_each_kind_of_given(space, word, options, given):
    torch.manual_seed(0)
    model = alive(net(space, "denoiser", "tiny", word=word, given=GIVEN[given], out=1, **options))
    u, t = torch.randn(1, *space.shape).expand(2, *space.shape), torch.full((2,), 0.3)
    given = torch.stack([torch.zeros(GIVEN[given].shape), torch.ones(GIVEN[given].shape)]).to(GIVEN[given].dtype)
    one, other = model(u, t, given)
    assert (one - other).abs().max() > 1e-4
    with pytest.raises(UsageError, match="given"):
        model(u, t)


@pytest.mark.parametrize(("space", "word", "options"), BUILDS, ids=str)
def test_every_net_knows_its_time(space, word, options):
    torch.manual_seed(0)
    model = alive(net(space, "denoiser", "tiny", word=word, out=1, **options))
    early, late = model(torch.randn(1, *space.shape).expand(2, *space.shape), torch.tensor([0.1, 0.9]))
    assert (early - late).abs().max() > 1e-4


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("word", ["unet", "dit"])
def test_what_is_given_can_be_dropped(given, word):
    torch.manual_seed(0)
    model = alive(net(GRID, "denoiser", "tiny", word=word, given=GIVEN[given], out=1, drop=1.0))
    u, t, y = torch.randn(3, *GRID.shape), torch.rand(3), drawn(GIVEN[given], 3)
    without = model(u, t)
    assert not torch.equal(model(u, t, y), without)
    torch.testing.assert_close(model.train()(u, t, y), without)  # in training, where every example is shown without


def test_half_of_the_examples_are_shown_without():
    torch.manual_seed(0)
    knowledge = Knowledge(GIVEN["image"], 8, image=(5, 7), drop=0.5).train()
    there = knowledge(torch.rand(2000), drawn(GIVEN["image"], 2000)).image[:, -1, 0, 0]
    assert 0.45 < there.mean() < 0.55


@pytest.mark.parametrize("space", [Space.grid(2, 5, 7), Space.grid(1, 8, 6), Space.grid(1, 1, 9), SERIES], ids=str)
@pytest.mark.parametrize("patch", [1, 2, 3, 20])
def test_patches_join_to_what_they_were_cut_from(space, patch):
    model = DiT(space, size="tiny", out=1, patch=patch)
    u = as_grid(torch.randn(3, *space.shape))
    tokens, counts = model._patches(u)
    joined = model._joined(tokens, counts)
    torch.testing.assert_close(joined[..., : u.shape[2], : u.shape[3]], u)
    assert joined.square().sum() == pytest.approx(u.square().sum().item(), rel=1e-5)  # all else is zero


@pytest.mark.parametrize(
    ("side", "size", "tokens"), [(8, "small", 64), (28, "small", 49), (28, "base", 196), (29, "small", 64), (1, "base", 1)]
)
def test_patches_are_as_many_as_a_size_allows(side, size, tokens):
    model = DiT(Space.grid(1, side, side), size=size, out=1, width=8, depth=1, heads=2)
    assert model._patches(torch.randn(1, 1, side, side))[0].shape[1] == tokens


def test_a_sequence_is_a_grid_of_height_one():
    torch.manual_seed(0)
    flat, line = UNet(Space.grid(3, 1, 20), size="small", out=1, width=8), UNet(Space.series(3, 20), size="small", out=1, width=8)
    line.load_state_dict(alive(flat).state_dict())
    line.eval()
    u, t = torch.randn(2, 3, 20), torch.rand(2)
    torch.testing.assert_close(flat(u[:, :, None], t)[:, :, 0], line(u, t))
    assert {m.kernel_size for m in line.modules() if isinstance(m, nn.Conv2d)} == {(1, 3), (1, 1)}


def test_text_is_read_at_the_coarse_stages_of_a_u_net():
    model = UNet(Space.grid(1, 32, 32), given=GIVEN["text"], size="small", out=1, width=8)
    stages = [m for m in model.modules() if isinstance(m, Stage)]
    assert [isinstance(stage.text, TextAttention) for stage in stages] == [False, False, True]


def test_neighbouring_times_and_log_snrs_have_embeddings_of_their_own():
    embedding = TimeEmbedding(16)
    angle = torch.linspace(-5, 5, 2001)[:, None] * embedding.frequencies
    waves = torch.cat([angle.sin(), angle.cos()], 1)
    gaps = torch.cdist(waves, waves) + 9 * torch.eye(len(waves))
    assert gaps.min() > 0.1


def test_words_of_denoisers_are_listed_and_others_refused():
    assert {"resnet", "convnext"} <= set(net_words("denoiser")["block"])
    assert {"unet", "dit", "transformer", "unet1d", "mlp"} <= set(net_words("denoiser")["net"])
    with pytest.raises(UsageError, match="convnext"):
        UNet(GRID, out=1, block="convnet")
    with pytest.raises(UsageError, match="tiny"):
        UNet(GRID, out=1, size="huge")


# -- sets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inducing", [0, 3])
@pytest.mark.parametrize("variable", [False, True])
def test_permuted_points_have_permuted_outputs(inducing, variable):
    torch.manual_seed(0)
    space = Space.points(6, 2, variable=variable)
    model = alive(net(space, "denoiser", "tiny", out=3, inducing=inducing))
    u, t, order = torch.randn(4, 6, 2), torch.rand(4), torch.randperm(6)
    y = model(u, t).unflatten(1, (6, 3))
    torch.testing.assert_close(model(u[:, order], t).unflatten(1, (6, 3)), y[:, order])
    assert (y - y[:, order]).abs().max() > 1e-3


@pytest.mark.parametrize("inducing", [0, 3])
def test_padding_is_not_attended_to_and_gets_zeros(inducing):
    torch.manual_seed(0)
    most, few = (Space.points(n, 2, variable=True) for n in (6, 4))
    large, small = (alive(net(space, "denoiser", "tiny", out=1, inducing=inducing)) for space in (most, few))
    small.load_state_dict(large.state_dict() | {"count.weight": large.count.weight[:4]})
    u, t = torch.randn(3, 4, 2), torch.rand(3)
    padded = nn.functional.pad(u, (0, 0, 0, 2), value=float("nan"))
    y = large(padded, t)
    torch.testing.assert_close(y[:, :4], small(u, t))
    assert y[:, 4:].count_nonzero() == 0


def test_no_gradient_comes_from_padding():
    torch.manual_seed(0)
    model = alive(net(Space.points(3, 2, variable=True), "denoiser", "tiny", out=1)).train()
    u = torch.randn(2, 3, 2)
    u[0, 1:] = float("nan")
    (model(u, torch.rand(2)) - u).square().masked_fill(u.isnan(), 0.0).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
