"""Values that repeat have masses of their own: exact, from the training split, in every verb of a model of a table."""

import math

import pytest
import torch

import likely
from likely import Space
from likely.families.autoregressive import Autoregressive
from likely.heads import AtomicMixture, Heads, LogisticMixture
from likely.space import MISSING
from likely.support import Support, from_grid

ROUND = torch.tensor([0, 0, 0, 500, 500, 1000, 1000, 1000, 1000, 37, 61])
ORDINAL = Support("ordinal", 2000, "a", missing=True, center=400.0, scale=300.0).with_atoms(ROUND)
DECIMAL = Support("decimal", 0, "b", decimals=3, center=5.0, scale=40.0).with_atoms(from_grid(torch.tensor([-7, -7, -7, 12, 12, 99])))


def test_atoms_are_the_values_that_repeat():
    assert ORDINAL.atoms == (1000, 0, 500)
    assert ORDINAL.shares == pytest.approx((3.5 / 11, 2.5 / 11, 1.5 / 11))
    assert DECIMAL.atoms == (-7, 12)
    assert Support("nominal", 3).with_atoms(ROUND % 3).atoms == ()
    assert Support("ordinal", 9, missing=True).with_atoms(torch.tensor([MISSING] * 4)).atoms == ()
    assert len(Support("decimal").with_atoms(torch.arange(500).repeat(2)).atoms) == 128


def test_a_space_keeps_its_atoms():
    space = Space.columns(ORDINAL, DECIMAL)
    assert Space.from_json(space.to_json()) == space


@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_masses_sum_to_one(spread):
    head = AtomicMixture((ORDINAL,), 3)
    params = spread * torch.randn(1, head.width)
    every = torch.tensor([*range(2000), MISSING])
    total = head.log_mass(params.expand(len(every), -1)[:, None], every[:, None]).double().logsumexp(0)
    assert total.item() == pytest.approx(0.0, abs=1e-4)


def test_zero_parameters_mean_the_shares_of_the_training_split():
    heads = Heads(Space.columns(DECIMAL), components=3)
    x = from_grid(torch.tensor([[-7], [12], [13]]))
    p = heads.log_mass(torch.zeros(3, 1, heads.width), x).exp()[:, 0].tolist()
    assert p[0] == pytest.approx(2.5 / 6 + p[2], abs=0.01)
    assert p[1] == pytest.approx(1.5 / 6 + p[2], abs=0.01)
    assert 0 < p[2] < 0.05


def test_columns_together_equal_columns_alone():
    plain = Support("ordinal", 500, "c", center=250.0, scale=100.0)
    space = Space.columns(ORDINAL, DECIMAL, plain, ORDINAL)
    heads = Heads(space, components=3)
    assert isinstance(heads.at(2), LogisticMixture)
    assert not isinstance(heads.at(2), AtomicMixture)
    params = torch.randn(6, 4, heads.width)
    x = torch.stack(
        [ROUND[:6], from_grid(torch.tensor([-7, 12, 99, 3, -7, 40])), ROUND[:6] // 3, torch.tensor([MISSING, *ROUND[:5].tolist()])], 1
    )
    together = heads.log_mass(params, x)
    for i in range(4):
        head = heads.at(i)
        alone = head.log_mass(params[:, i : i + 1, : head.width], x[:, i : i + 1])[:, 0]
        assert torch.allclose(together[:, i], alone, atol=1e-6)


def test_draws_follow_the_masses():
    torch.manual_seed(0)
    heads, n = Heads(Space.columns(ORDINAL, DECIMAL), components=3), 20_000
    params = torch.randn(1, 2, heads.width)
    x = heads.sample(params.expand(n, -1, -1))
    for column, values in enumerate(([0, 500, 1000, MISSING, 400], from_grid(torch.tensor([-7, 12, 5])).tolist())):
        each = torch.zeros(len(values), 2, dtype=torch.int64)
        each[:, column] = torch.tensor(values)
        p = heads.log_mass(params.expand(len(values), -1, -1), each)[:, column].double().exp()
        share = (x[:, column, None] == torch.tensor(values)).double().mean(0)
        assert ((share - p).abs() < 5 * (p * (1 - p) / n).sqrt() + 1e-4).all()
        alone = heads.sample_at(column, params[:, column].expand(n, -1))
        assert ((alone[:, None] == torch.tensor(values)).double().mean(0) - p).abs().max() < 0.02


def test_gradients_are_finite_and_reach_everything():
    head = AtomicMixture((ORDINAL, DECIMAL), 3)
    params = torch.zeros(3, 2, head.width, requires_grad=True)
    x = torch.tensor([[1000, 11], [37, 12], [MISSING, 1]])
    head.log_mass(params, x).sum().backward()
    assert params.grad.isfinite().all()
    assert (params.grad[0, 0, 9:12] != 0).all()


def test_a_model_of_a_table_fills_and_scores_with_atoms():
    made = Autoregressive(Space.columns(ORDINAL, DECIMAL), size="tiny").eval()
    x = made.sample(50)
    assert made.log_prob(x).nats.isfinite().all()
    known = torch.tensor([[True, False]]).expand(50, -1)
    filled = made.fill(x, known, draws=2)
    assert torch.equal(filled.x[:, :, 0], x[:, 0].expand(2, -1))
    repeated = sum((filled.x[..., 1] == v).double().mean().item() for v in from_grid(torch.tensor(DECIMAL.atoms)).tolist())
    assert repeated > 0.3 * math.fsum(DECIMAL.shares)


def test_ranks_of_a_score_count_what_is_likelier():
    made = Autoregressive(Space.columns(ORDINAL), size="tiny").eval()
    rows = likely.score(made, torch.tensor([[1000], [37], [1000], [1999]]))
    assert [r["percentile"] for r in rows] == [0.75, 0.5, 0.0, 0.0]
    assert likely.score(made, torch.tensor([[5]]))[0]["percentile"] == 0.0
