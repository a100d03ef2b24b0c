"""Every registered family, held to every law that applies, over every tiny data set of its layouts."""

import pytest

import likely
from likely import families
from likely.checks import Room, check_model, tiny_data

DATA = tiny_data()
CASES = [(name, data) for name in families.FAMILIES for data in DATA if families.family_class(name).serves(DATA[data].space)]
# each likelihood is a differential equation, solved by hundreds of calls of the net, or a sample takes as many
SOLVED = ("score", "flow-matching", "meanflow", "cnf", "vdm", "ddpm", "diffusion")


def _usual(name: str, data: str) -> bool:
    """Of those families that a comparison takes all data, of images those with labels; of the others the points, or what is given if they
    model none."""
    if families.FAMILIES[name].featured:
        return data not in ("grid", "grid-channels")
    return data == ("points" if families.family_class(name).serves(DATA["points"].space) else "grid-given")


USUAL = [case for case in CASES if _usual(*case)]  # all of them with room
OPTIONS = [(data, {"dequantization": "variational"}) for data in ("grid-given", "columns")]  # of `flow`: other ways to the same law
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


@pytest.mark.parametrize(("data", "options"), OPTIONS, ids=str)
def test_flow_keeps_the_contract_however_it_dequantizes(data, options):
    findings = check_model("flow", DATA[data], room=LEAST, **options)
    assert {"samples belong", "mass is one", "rows are independent"} <= {finding.law for finding in findings}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "data"), CASES, ids=lambda v: v)
def test_family_keeps_the_contract_with_room(name, data):
    check_model(name, DATA[data], room=SOME if name in SOLVED else MANY)
