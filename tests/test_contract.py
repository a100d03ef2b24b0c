"""Every registered family, held to every law that applies, over every tiny data set of its layouts."""

import inspect

import pytest
import torch

import likely
from likely import families
from likely.abilities import ClosedForm, Likelihood
from likely.checks import Room, check_model, tiny_data
from likely.errors import DataError, UsageError
from likely.space import Space

DATA = tiny_data()
CASES = [(name, data) for name in families.FAMILIES for data in DATA if families.family_class(name).serves(DATA[data].space)]
# each likelihood is a differential equation, solved by hundreds of calls of the net, or a sample takes as many
SOLVED = ("score", "edm", "flow-matching", "meanflow", "cnf", "vdm", "ddpm", "diffusion")
LONGEST = ("score", "meanflow", "vdm", "stacked")


def _usual(name: str, data: str) -> bool:
    """Of those families that a comparison takes all data, of images those with labels; of the others the points, or what is given if they
    model none. Names that are options of another family wait for room: `test_presets` holds their parts; and so do the longest."""
    if families.FAMILIES[name].preset or name in LONGEST:
        return False
    if families.FAMILIES[name].featured:
        return data not in ("grid", "grid-channels")
    return data == ("points" if families.family_class(name).serves(DATA["points"].space) else "grid-given")


USUAL = [case for case in CASES if _usual(*case)]  # all of them with room
LEAST = Room(steps=30, draws=2, samples=300)
FEW, MANY = Room(steps=60, draws=20, samples=1000), Room(steps=1000, draws=2000, samples=20_000)
SOME = Room(steps=1000, draws=100, samples=5000)


@pytest.fixture(scope="module", autouse=True)
def _first_step() -> None:
    """What only the first fit of a process pays for is no case's own: torch imports its compiler there, numba compiles."""
    likely.fit(DATA["grid"], "autoregressive", size="tiny", steps=1, progress=False)
    ngram = likely.fit(DATA["sequence"], "ngram", size="tiny", progress=False).model
    ngram.log_prob(DATA["sequence"].test.x[:2])
    ngram.sample(2)


@pytest.mark.parametrize(("name", "data"), USUAL, ids=lambda v: v)
def test_family_keeps_the_contract(name, data):
    findings = check_model(name, DATA[data], room=LEAST if name in SOLVED else FEW)
    assert {"samples belong", "store keeps"} <= {finding.law for finding in findings}


@pytest.mark.parametrize("data", ["columns", pytest.param("grid-given", marks=pytest.mark.slow)])
def test_flow_keeps_the_contract_however_it_dequantizes(data):
    findings = check_model("flow", DATA[data], room=LEAST, dequantization="variational")
    assert {"samples belong", "mass is one", "rows are independent"} <= {finding.law for finding in findings}


@pytest.mark.parametrize("name", ["autoregressive", "flow", "vae", "energy", "diffusion"])
def test_given_is_a_row_for_each_example_or_one_for_all_and_in_range(name):
    model = families.build(name, Space.grid(1, 2, 2, 4), given=Space.label(3), size="tiny").eval()
    x, given = torch.randint(4, (5, 1, 2, 2)), torch.tensor([[0], [1], [2]])
    with pytest.raises(DataError, match="Got 3 rows of `given` for 5 examples"):
        model.log_prob(x, given)
    assert torch.equal(model.log_prob(x, given[:1]).nats, model.log_prob(x, given[:1].expand(5, 1)).nats)
    with pytest.raises(DataError, match="Got 3 rows of `given` for 5 examples"):
        model.sample(5, given)
    for label in (99, -1):
        with pytest.raises(DataError, match=r"outside 0\.\.2"):
            model.sample(1, torch.tensor([[label]]))


@pytest.mark.parametrize("name", ["histogram", "flow", "energy", "vdm", "flow-matching"])
def test_of_no_examples_there_are_no_likelihoods_of_their_kind(name):
    x = torch.zeros(1, 1, 2, 2, dtype=torch.int64)
    model = families.build(name, Space.grid(1, 2, 2, 4), size="tiny").eval()
    none, one = model.log_prob(x[:0]), model.log_prob(x)
    assert none.nats.shape == (0,)
    assert none.kind == one.kind


@pytest.mark.parametrize("data", DATA)
def test_none_are_drawn_of_the_right_shape_and_type(data):
    for name in families.FAMILIES:
        if (name, data) not in CASES:
            continue
        model = families.build(name, DATA[data].space, given=DATA[data].given, size="tiny")
        options = {"with_log_prob": True} if "with_log_prob" in inspect.signature(model.sample).parameters else {}
        for how in ({}, options) if name in ("histogram", "flow", "autoregressive") else ({},):
            drawn = model.sample(0, None if DATA[data].given is None else DATA[data].test.given[:1], **how)
            x = drawn if isinstance(drawn, torch.Tensor) else drawn[0]
            assert x.shape == (0, *model.space.shape), name
            assert x.dtype == model.space.dtype, name
            assert all(len(part) == 0 for part in ([x] if drawn is x else drawn))
        with pytest.raises(UsageError, match="Cannot draw -1"):
            model.sample(-1)


FAR = torch.tensor([[m, -m, 0.0] for m in (1e3, 1e10, 1e20, 1e30)])


LONG = ("gmm", "energy", "score", "flow-matching", "meanflow")  # to fit, or to score
REALS = [
    n for n in families.FAMILIES if families.family_class(n).serves(Space.reals(3)) and issubclass(families.family_class(n), Likelihood)
]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in REALS])
def test_far_out_log_p_is_low_and_never_nan(name):
    model = families.build(name, Space.reals(3), size="tiny").eval()
    torch.manual_seed(0)
    if isinstance(model, ClosedForm):
        model = likely.fit(torch.randn(60, 3), name, size="tiny", progress=False).model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
        nats = model.log_prob(FAR).nats
    assert (nats < -20).all(), nats


@pytest.mark.slow
@pytest.mark.parametrize(("name", "data"), CASES, ids=lambda v: v)
def test_family_keeps_the_contract_with_room(name, data):
    check_model(name, DATA[data], room=SOME if name in SOLVED else MANY)
