"""What a family, a net or a verb refuses, in one line that says what and what to do instead."""

import pytest
import torch

import likely
from likely import families
from likely.dataset import Data, Split
from likely.errors import DataError, UsageError
from likely.space import Space, Support


@pytest.mark.parametrize("heads", [0, 3])
@pytest.mark.parametrize(
    ("name", "space", "options"),
    [
        ("tarflow", Space.reals(3), {}),
        ("masked-diffusion", Space.sequence(4, 3), {}),
        ("diffusion", Space.points(3, 2), {}),
        ("diffusion", Space.grid(1, 4, 4, 2), {"net": "dit"}),
        ("autoregressive", Space.sequence(4, 3), {}),
        ("autoregressive", Space.sequence(4, 3), {"net": "any-order"}),
    ],
    ids=str,
)
def test_heads_that_do_not_divide_a_width_are_refused(name, space, options, heads):
    with pytest.raises(UsageError, match=f"{heads} heads do not divide a width of"):
        families.build(name, space, size="tiny", heads=heads, **options)


def test_a_unet_without_heads_attends_to_nothing_and_with_some_splits_its_width():
    families.build("diffusion", Space.grid(1, 4, 4, 2), size="tiny", heads=0)
    with pytest.raises(UsageError, match="3 heads do not divide a width of 16"):
        families.build("diffusion", Space.grid(1, 4, 4, 2), size="tiny", heads=3)


def test_no_layers_are_none_or_refused_and_never_the_usual_number():
    for space, net in ((Space.grid(1, 2, 2, 3), "gated-pixelcnn"), (Space.grid(1, 2, 2, 3), "pixelcnn++"), (Space.sequence(4, 3), "rnn")):
        with pytest.raises(UsageError, match="depth 0 reads nothing"):
            families.build("autoregressive", space, size="tiny", net=net, depth=0)
    for name, options in (("autoregressive", {"net": "transformer"}), ("autoregressive", {"net": "any-order"}), ("vae", {})):
        none, one = (
            families.build(name, Space.grid(1, 2, 2, 3), size="tiny", depth=depth, **options).state_dict().keys() for depth in (0, 1)
        )
        assert len(none) < len(one)


def test_what_has_no_end_of_levels_is_named_as_a_table():
    space = Space.columns(Support("decimal", name="price", decimals=2), Support("decimal", name="size", decimals=2))
    with pytest.raises(UsageError, match=r"not a table of 2 columns \(decimal\)\. `flow` models any numbers"):
        families.build("idf", space)
    assert Space.columns(Support("real")).named == "table of 1 column (real)"
    assert Space.grid(1, 2, 2, 3).named == "grid 1x2x2 of ordinal(3)"


@pytest.mark.parametrize(
    ("space", "hint"),
    [(Space.reals(2), "Leave unknown cells empty"), (Space.grid(1, 1, 2, 3), "Pass --mask"), (Space.sequence(3, 2), "--prompt")],
    ids=str,
)
def test_filling_where_all_is_known_says_how_to_say_otherwise_here_and_there(space, hint):
    model = families.build("histogram", space)
    x = torch.zeros(1, *space.shape, dtype=space.dtype)
    with pytest.raises(DataError, match=f"Nothing is unknown.*{hint}.*in Python pass known="):
        likely.fill(model, x, torch.ones_like(x, dtype=torch.bool))


@pytest.mark.parametrize("name", ["diffusion", "vae > diffusion(drop=0.1)"])
@pytest.mark.parametrize("guidance", [float("nan"), float("inf"), 1e38])
def test_guidance_without_end_is_refused(name, guidance):
    torch.manual_seed(0)
    model = families.build(name, Space.reals(2), given=Space.label(2), size="tiny", **{"drop": 0.1} if name == "diffusion" else {}).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    label = torch.tensor([[0], [1]])
    with pytest.raises(UsageError, match="guidance"):
        model.sample(2, label, guidance=guidance)
    for finite in (-1.0, 0.0, 10.0):
        assert model.sample(2, label, guidance=finite).isfinite().all()


@pytest.mark.parametrize("name", ["gmm", "pca"])
@pytest.mark.parametrize(("labels", "told"), [(1, "there is 1"), (3, "of each of 3 labels there is 1")])
def test_a_variance_needs_two_examples(name, labels, told):
    given = torch.arange(labels)[:, None] if labels > 1 else None
    few = Split(torch.randn(labels, 2), given)
    data = Data(Space.reals(2), few, few, few, given=None if given is None else Space.label(labels))
    with pytest.raises(DataError, match=f"needs two training examples, and {told}"):
        likely.fit(data, name, size="tiny", progress=False)


def test_a_cell_that_no_row_of_the_fit_missed_is_named_with_what_to_do(tmp_path):
    whole, gappy = tmp_path / "whole.csv", tmp_path / "gappy.csv"
    whole.write_text("a,b\n" + "".join(f"{i / 10},{'xyz'[i % 3]}\n" for i in range(20)))
    gappy.write_text("a,b\n0.1,x\n,y\n")
    model = likely.fit(whole, "histogram", size="tiny", progress=False).model
    with pytest.raises(DataError, match=r"Column 'a' is missing in row 2; .* fill them first with `likely edit`"):
        likely.score(model, gappy)
    assert likely.fill(model, gappy).x.shape == (1, 2, 2)
