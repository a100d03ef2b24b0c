"""Heads: masses sum to one, samples follow them, narrow and far cells keep their precision."""

import math

import pytest
import torch
from scipy import stats

from likely.decoding import Filter
from likely.errors import UsageError
from likely.families.autoregressive import Autoregressive
from likely.heads import Bernoulli, Categorical, Heads, LogisticMixture, NormalMixture, head_for
from likely.nets import NETS
from likely.space import Space, Support, from_grid

DECIMAL = Support("decimal", decimals=1, center=3.0, scale=4.0, missing=True)
ORDINAL = Support("ordinal", 9, center=4.0, scale=2.0)


def values(s: Support, reach: int = 4000) -> torch.Tensor:
    codes = from_grid(torch.arange(-reach, reach)) if s.kind == "decimal" else torch.arange(s.levels)
    return torch.cat([codes, torch.tensor([-1])]) if s.missing else codes


def all_masses(s: Support, **how) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One random distribution over a support: its params, its values and their log-masses."""
    head, x = head_for(s, **how), values(s)
    params = torch.randn(head.width, generator=torch.Generator().manual_seed(1))
    return params, x, head.log_mass(params.expand(len(x), -1), x)


SUPPORTS = [
    (Support("nominal", 2), {}),
    (Support("ordinal", 2), {}),
    (Support("ordinal", 2), {"categorical_up_to": 0}),
    (Support("nominal", 5, missing=True), {}),
    (ORDINAL, {}),
    (ORDINAL, {"categorical_up_to": 0}),
    (Support("ordinal", 300, center=150.0, scale=87.0, missing=True), {}),
    (DECIMAL, {}),
    (DECIMAL, {"components": 1}),
]


@pytest.mark.parametrize(("support", "how"), SUPPORTS, ids=str)
def test_masses_sum_to_one(support, how):
    _, _, nats = all_masses(support, **how)
    assert nats.double().exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("support", "how"), SUPPORTS, ids=str)
def test_samples_follow_the_masses(support, how):
    params, x, nats = all_masses(support, **how)
    torch.manual_seed(0)
    n, head = 40_000, head_for(support, **how)
    drawn, counts = head.sample(params.expand(n, -1)).unique(return_counts=True)
    observed = torch.zeros(len(x), dtype=torch.float64)
    where = {v: i for i, v in enumerate(x.tolist())}
    observed[[where[v] for v in drawn.tolist()]] = counts.double()
    expected = n * nats.double().exp()
    frequent = expected > 10
    observed = torch.cat([observed[frequent], observed[~frequent].sum()[None]])
    expected = torch.cat([expected[frequent], expected[~frequent].sum()[None] + 1e-9])
    chi = ((observed - expected).square() / expected)[expected > 1].sum().item()
    assert stats.chi2.sf(chi, df=int((expected > 1).sum()) - 1) > 1e-3


@pytest.mark.parametrize(("support", "how"), [case for case in SUPPORTS if case[0].states], ids=str)
def test_logits_are_those_of_all_states(support, how):
    params, x, nats = all_masses(support, **how)
    heads = Heads(Space.columns(support), **how)
    logits = heads.logits_at(0, params[None])
    torch.testing.assert_close(logits.log_softmax(-1)[0], nats)
    assert torch.equal(heads.value_at(0, torch.arange(support.states)), x)
    assert torch.equal(heads.state_at(0, x), torch.arange(support.states))


def test_what_has_no_end_of_values_has_no_logits():
    for support in (DECIMAL, Support("real")):
        with pytest.raises(UsageError, match="cannot be listed"):
            head_for(support).logits(torch.zeros(1, head_for(support).width))


def test_the_density_of_reals_integrates_to_one():
    s = Support("real", center=2.0, scale=3.0)
    head = head_for(s, components=3)
    params = torch.randn(head.width, generator=torch.Generator().manual_seed(2))
    x = torch.linspace(-300, 300, 600_001)
    density = head.log_mass(params.expand(len(x), -1), x).double().exp()
    assert torch.trapezoid(density, x.double()).item() == pytest.approx(1, abs=1e-4)
    drawn = head.sample(params.expand(20_000, -1))
    cdf = torch.cumulative_trapezoid(density, x.double())
    p = stats.kstest(drawn.numpy(), lambda v: cdf[((torch.as_tensor(v) + 300) * 1000).long().clamp(0, len(cdf) - 1)].numpy()).pvalue
    assert p > 1e-3


def test_one_normal_is_the_normal():
    head = head_for(Support("real", center=2.0, scale=3.0), components=1)
    x = torch.tensor([-1.0, 2.0, 7.5])
    params = torch.tensor([0.3, 0.5, math.log(0.7)]).expand(3, -1)
    assert torch.allclose(head.log_mass(params, x), torch.distributions.Normal(2 + 3 * 0.5, 3 * 0.7).log_prob(x))


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e8])
@pytest.mark.parametrize("sigmas", [0.0, 5.0, 50.0])
def test_narrow_and_far_cells_have_the_logistic_mass(scale, sigmas):
    """A cell 1e-8 wide on the standardised scale, and one 50 logistic scales out, against the closed form."""
    head = head_for(Support("decimal", center=0.5, scale=scale), components=1)
    x = from_grid(torch.tensor([math.floor(sigmas * scale)]))
    params = torch.zeros(1, 3, requires_grad=True)
    nats = head.log_mass(params, x)
    z, w = (math.floor(sigmas * scale) - 0.5) / scale, 1 / scale
    want = -math.log1p(math.exp(-z - w)) - math.log1p(math.exp(z)) + math.log(-math.expm1(-w))
    assert nats.item() == pytest.approx(want, abs=2e-6 * (1 + sigmas))
    nats.sum().backward()
    assert torch.isfinite(params.grad).all()


def test_neighbouring_cells_of_a_spike_share_its_mass():
    """A component narrower than float32 could place: eight cells around the spike hold all of the mass."""
    s = Support("decimal", center=1e9, scale=1e8)
    head = head_for(s, components=1)
    x = torch.arange(10**9 - 40, 10**9 + 40)
    params = torch.tensor([0.0, 0.0, -30.0]).expand(len(x), -1)
    assert head.log_mass(params, x).double().exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("push", [1e3, -1e3])
def test_extreme_outputs_stay_finite_with_finite_gradients(push):
    space = Space.columns(DECIMAL, Support("ordinal", 256, center=128.0, scale=70.0), Support("nominal", 3), Support("real", missing=True))
    heads = Heads(space)
    params = torch.full((4, 4, heads.width), push, requires_grad=True)
    x = torch.tensor([[5.0, 0, 0, 1.5], [-1, 255, 1, math.nan], [1e6, 3, 2, -1e4], [-1e6, 200, 2, 0.0]])
    nats = heads.log_mass(params, x)
    assert torch.isfinite(nats).all()
    nats.sum().backward()
    assert torch.isfinite(params.grad).all()


def test_columns_together_equal_columns_apart():
    supports = [
        Support("nominal", 3),
        DECIMAL,
        Support("nominal", 90),
        ORDINAL,
        Support("nominal", 4, missing=True),
        Support("ordinal", 400),
    ]
    space = Space.columns(*supports)
    heads = Heads(space)
    params = torch.randn(50, len(supports), heads.width, generator=torch.Generator().manual_seed(3))
    x = heads.sample(params)
    space.check(x)
    nats = heads.log_mass(params, x)
    for i in range(len(supports)):
        alone = heads.at(i)
        assert torch.allclose(nats[:, i], alone.log_mass(params[:, i, : alone.width], x[:, i]), atol=1e-6)


def test_many_columns_are_few_computations():
    supports = [Support("nominal", 2 + i % 9) for i in range(32)] + [Support("decimal", scale=1.0 + i) for i in range(32)]
    assert len(Heads(Space.columns(*supports)).groups) <= 5


def test_channels_of_a_grid_keep_their_own_scale():
    space = Space.grid(2, 3, 3, 256).standardised(torch.randint(0, 256, (50, 2, 3, 3)) // torch.tensor([1, 9]).view(2, 1, 1))
    heads = Heads(space)
    x = torch.randint(0, 20, (5, 2, 3, 3))
    params = torch.zeros(5, 2, 3, 3, heads.width)
    for c in range(2):
        assert torch.allclose(heads.log_mass(params, x)[:, c], heads.at(c).log_mass(params[:, c], x[:, c]))
    assert heads.sample(params).shape == x.shape


def test_missing_reals_come_and_go():
    space = Space.columns(Support("real", missing=True), Support("decimal", missing=True), Support("nominal", 2))
    heads = Heads(space)
    torch.manual_seed(0)
    x = heads.sample(torch.zeros(4000, 3, heads.width))
    for i in range(2):
        assert torch.isnan(x[:, i]).double().mean().item() == pytest.approx(0.5, abs=0.05)
    assert torch.isfinite(heads.log_mass(torch.zeros(4000, 3, heads.width), x)).all()


def test_kinds():
    assert isinstance(head_for(Support("real")), NormalMixture)
    assert isinstance(head_for(Support("ordinal", 256)), LogisticMixture)
    assert isinstance(head_for(Support("ordinal", 256), categorical_up_to=256), Categorical)
    assert isinstance(head_for(Support("ordinal", 2)), Bernoulli)
    assert isinstance(head_for(Support("nominal", 2)), Bernoulli)
    assert isinstance(head_for(Support("nominal", 1, missing=True)), Categorical)
    assert isinstance(head_for(Support("nominal", 2), bernoulli=False), Categorical)


# -- two states ------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", NETS["causal", "grid"])
def test_binary_images_need_one_output_each_and_keep_every_ability(word):
    made = Autoregressive(Space.grid(1, 2, 3, 2), size="tiny", net=word).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = made.space.enumerate()
    masses = made.log_prob(x).nats.exp().detach()
    assert made.net(x).shape[-1] == 1
    assert masses.sum().item() == pytest.approx(1, abs=1e-5)
    best = masses.topk(3)
    found = made.sample(3, beam=64, with_log_prob=True)
    assert torch.equal(found.x, x[best.indices])
    torch.testing.assert_close(found.log_prob.exp(), best.values, rtol=1e-4, atol=1e-6)
    assert torch.equal(made.sample(1, greedy=True), made.sample(1, beam=1))
    assert torch.equal(made.codec().decompress(made.codec().compress(x), len(x)), x)
    drawn = made.sample(500, top_p=0.6, with_log_prob=True)
    assert (drawn.filtered_log_prob >= drawn.log_prob - 1e-5).all()


def test_strings_over_one_symbol_end():
    made = Autoregressive(Space.sequence(4, 1, variable=True), size="tiny").eval()
    x = made.space.enumerate()
    assert len(x) == 5
    assert made.log_prob(x).nats.exp().sum().item() == pytest.approx(1, abs=1e-5)
    made.space.check(made.sample(50))
    assert torch.equal(made.codec().decompress(made.codec().compress(x), len(x)), x)


@pytest.mark.parametrize("how", [{"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.5}], ids=str)
def test_mixtures_over_finitely_many_levels_are_filtered_too(how):
    made = Autoregressive(Space.grid(1, 1, 2, 5), size="tiny", head="mixture", components=3).eval()
    x = made.space.enumerate()
    drawn = made.sample(200, with_log_prob=True, **how)
    levels = made.heads.logits_at(0, made.net(drawn.x).flatten(1, 3)).detach()  # [200, pixels, levels]
    each = Filter(**how)(levels.double()).log_softmax(-1).gather(-1, drawn.x.flatten(1)[..., None])
    torch.testing.assert_close(drawn.filtered_log_prob, each.sum((1, 2)), rtol=1e-4, atol=1e-4)
    best = made.log_prob(x).nats.topk(2)
    assert torch.equal(made.sample(2, beam=25), x[best.indices])


# -- coupled channels ------------------------------------------------------------------------------

TINY_RGB = Space.grid(3, 1, 2, 4)


def coupled(space: Space = TINY_RGB, **options) -> Autoregressive:
    made = Autoregressive(space, size="tiny", head="coupled", components=3, **options)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return made


def test_masses_of_coupled_channels_sum_to_one_and_draws_follow_them():
    torch.manual_seed(0)
    made, x, n = coupled(), TINY_RGB.enumerate(), 20_000
    masses = made.log_prob(x).nats.exp()
    assert masses.sum().item() == pytest.approx(1, abs=1e-5)
    drawn = made.sample(n).flatten(1) @ 4 ** torch.arange(5, -1, -1)
    counts, wanted = torch.bincount(drawn, minlength=len(x)).double(), n * masses.detach()
    often = wanted > 5
    observed, expected = [torch.cat([v[often], v[~often].sum()[None]]) for v in (counts, wanted)]
    assert stats.chi2.sf(((observed - expected).square() / expected).sum().item(), len(observed) - 1) > 1e-3


def test_coupled_channels_are_one_mixture():
    """The sum over one choice of component per pixel, computed from the net's outputs directly."""
    space = Space.grid(3, 1, 1, 6)
    made = coupled(space)
    x = space.enumerate()
    outputs = made.net.net(x).unflatten(-1, (5, 3))[:, :, 0, 0]  # weights, means, log-scales, two coefficients
    u = (x.flatten(1).double() + 0.5 - 3) / (6 / math.sqrt(12))
    joint = outputs[:, 0, 0].log_softmax(-1).double()
    for c in range(3):
        mean = outputs[:, c, 1] + sum(outputs[:, c, 3 + b].tanh() * u[:, b, None] for b in range(c))
        alone = [
            torch.cat([torch.zeros(len(x), 1), mean[:, k : k + 1] + spread, outputs[:, c, 2, k : k + 1] - math.log(3)], 1)
            for k, spread in enumerate((-1.5, 0.0, 1.5))
        ]
        one = head_for(space.supports[c], components=1, categorical_up_to=0)
        joint = joint + torch.stack([one.log_mass(a, x[:, c, 0, 0]) for a in alone], 1)
    torch.testing.assert_close(made.log_prob(x).nats, joint.logsumexp(1), rtol=1e-5, atol=1e-5)


def test_coupled_channels_step_as_the_whole_and_code():
    made = coupled(Space.grid(3, 2, 2, 5), net="pixelcnn++")
    x = made.sample(40)
    assert torch.equal(made.codec().decompress(made.codec().compress(x), 40), x)
    made = made.double().eval()
    whole = made.net(x).flatten(1, -2)
    state, last = made.net.init_state(40), None
    for place in made.conditionals.order:
        state, stepped = made.net.step(state, last)
        last = x.flatten(1)[:, place]
        torch.testing.assert_close(stepped, whole[:, place], rtol=1e-9, atol=1e-9)


def test_what_cannot_be_coupled_is_refused():
    with pytest.raises(UsageError, match="colour images"):
        coupled(Space.grid(1, 2, 2, 4))
    with pytest.raises(UsageError, match="Unknown head"):
        Autoregressive(TINY_RGB, size="tiny", head="softmax")
