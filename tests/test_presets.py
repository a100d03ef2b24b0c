"""The classical flows by name: what each is made of, that each returns what it was given, and that its options can be changed."""

import pytest
import torch

import likely
from likely import families
from likely.bijections import ActNorm, Affine, Autoregressive, Coupling, Gaussianise, Inverse, Linear, Logit, Permute, Rest, Spline
from likely.errors import UsageError
from likely.families.flow import Flow
from likely.space import Space, Support

PRESETS = [name for name, family in families.FAMILIES.items() if family.preset and family.path.endswith(":Flow")]
LABEL = Space.label(3)
SPACES = {
    "vector": Space.reals(4),
    "one number": Space.reals(1),
    "table": Space.columns(Support("ordinal", 5), Support("nominal", 3, missing=True), Support("decimal", missing=True)),
    "image": Space.grid(1, 6, 4, 4),
    "colour image": Space.grid(3, 3, 2, 256),
}


def _examples(space, n):
    if not space.discrete:
        return torch.randn(n, *space.shape)
    return torch.stack([torch.randint(-1 if s.missing else 0, s.levels or 9, (n, *space.shape[1:])) for s in space.supports], 1)


def _build(name, space, **options):
    model = families.build(name, space, size="tiny", **options)
    assert isinstance(model, Flow)
    return model


def _count(model, kind):
    return sum(isinstance(module, kind) for module in model.modules())


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("layout", SPACES)
def test_every_preset_returns_what_it_was_given_and_learns(name, layout):
    space = SPACES[layout].standardised(_examples(SPACES[layout], 50))
    x, given = _examples(space, 6), torch.randint(0, 3, (6, 1))
    flow = _build(name, space, given=LABEL)
    flow.start(x, given)
    flow(x, given).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.parameters())
    for p in flow.parameters():
        torch.nn.init.normal_(p, std=0.02)
    flow.eval()
    with torch.no_grad():
        back = flow.decode(flow.encode(x, given).value, given)
    if space.discrete:
        assert (back == x).double().mean() > 0.995  # a draw may lie within rounding of its cell's edge
    else:
        torch.testing.assert_close(back, x, atol=1e-4, rtol=1e-3)


def test_the_presets_are_what_their_papers_say():
    image, vector = Space.grid(1, 16, 16, 256), Space.reals(6)
    nice = _build("nice", vector)
    assert _count(nice, Linear) == 0
    assert nice.map(torch.randn(9, 6))[1].unique().numel() == 1  # volume is the same everywhere
    realnvp = _build("realnvp", image)
    masks = [module.stay.flatten(1)[:, :4] for module in realnvp.modules() if isinstance(module, Coupling)]
    assert any((stay.diff(dim=1).abs() == 1).all() for stay in masks)  # of a checkerboard
    assert any((stay == stay[:, :1]).all() for stay in masks)  # of channels
    assert _count(realnvp, Rest) == 1
    assert _count(realnvp, Logit) == 1
    glow = _build("glow", image)
    assert _count(glow, Linear) == _count(glow, ActNorm) == _count(glow, Coupling) == 4  # two at each of two scales
    for name, kind in (("maf", Affine), ("nsf-ar", Spline)):
        layers = [module for module in _build(name, vector).modules() if isinstance(module, Autoregressive)]
        assert len(layers) == 2
        assert all(isinstance(layer.transform, kind) for layer in layers)
    assert _count(_build("maf", vector), Permute) == 2
    assert _count(_build("iaf", vector), Inverse) == 2
    assert _count(_build("flow", image), Gaussianise) == 1
    assert sum(_count(_build(name, image), Gaussianise) for name in ("nice", "realnvp", "glow", "nsf")) == 0


@pytest.mark.parametrize("name", ["realnvp", "glow", "nsf"])
def test_log_determinant_of_multi_scale_presets(name):
    flow = families.build(name, Space.grid(2, 12, 12), size="tiny", layers=2).double().eval()
    assert isinstance(flow, Flow)
    for p in flow.parameters():
        torch.nn.init.normal_(p, std=0.05)
    x = torch.randn(1, 2, 12, 12, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: flow.map(v[None])[0][0], x[0]).flatten(1)
    torch.testing.assert_close(flow.map(x)[1][0], torch.linalg.slogdet(jacobian).logabsdet)
    torch.testing.assert_close(flow.map.inverse(flow.map(x)[0])[0], x)


def test_options_of_a_preset_can_be_changed():
    space = Space.reals(3)
    assert _count(_build("nsf", space, layers=8), Coupling) == 8
    layers = [module for module in _build("maf", space, transform="spline").modules() if isinstance(module, Autoregressive)]
    assert all(isinstance(layer.transform, Spline) for layer in layers)
    with pytest.raises(UsageError, match="no option 'layer'"):
        _build("nsf", space, layer=8)
    with pytest.raises(UsageError, match="Unknown mixing 'lw'") as told:
        _build("maf", space, mixing="lw")
    assert "lu" in told.value.hint
    with pytest.raises(UsageError, match="has no scales"):
        _build("maf", Space.grid(1, 4, 4), multiscale=True)


def test_presets_are_listed_with_their_own_line_and_compared_on_demand():
    records = {record["name"]: record for record in likely.models()}
    assert {"nice", "realnvp", "glow", "maf", "iaf", "nsf", "nsf-ar"} <= set(PRESETS)
    assert len({records[name]["summary"] for name in [*PRESETS, "flow"]}) == len(PRESETS) + 1
    assert not set(PRESETS) & set(families.featured())
    assert records["maf"]["options"]["structure"].endswith("default autoregressive")
    assert records["flow"]["options"]["structure"].endswith("default coupling")


def test_logits_of_images_keep_the_whole_mass():
    """A logit that keeps away from the ends would lose some; over all images of two levels the bound's masses sum to nearly one."""
    space = Space.grid(1, 1, 2, 2)
    flow = _build("maf", space).eval()
    with torch.no_grad():
        nats = flow.log_prob(space.enumerate(), draws=4000).nats
    assert nats.exp().sum().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("flow", "bins", 0),
        ("nsf", "width", 0),
        ("flow", "layers", 0),
        ("flow", "dropout", 1.5),
        ("diffusion", "drop", 1.0),
        ("residual", "blocks", 0),
        ("gmm", "components", 0),
        ("kde", "kernels", 0),
        ("knn", "neighbours", 0),
        ("gaussianization", "components", 0),
        ("tarflow", "patch", 0),
        ("cnf", "steps", 0),
    ],
)
def test_counts_are_at_least_one_and_drops_below_it(name, option, value):
    with pytest.raises(UsageError, match=f"Option '{option}' of {name} cannot be {value}"):
        families.build(name, Space.reals(3), **{option: value})


@pytest.mark.parametrize(("name", "option"), [("diffusion", "steps"), ("idf", "layers"), ("pca", "rank"), ("score", "noise_levels")])
def test_0_is_taken_where_it_means_something(name, option):
    families.build(name, Space.grid(1, 2, 2, 4), size="tiny", **{option: 0})
