"""The autoencoder's bound against exact likelihoods: quadrature over one latent, and probabilistic PCA."""

import math

import pytest
import torch
from scipy import stats
from torch import nn

from likely.checks import check_model, tiny_data
from likely.errors import UsageError
from likely.families import build, vae
from likely.families.vae import VAE
from likely.nets.autoencoder import ConvDecoder, ConvEncoder
from likely.noise import Noise, log_mean_exp
from likely.space import Space, Support

GRID = Space.grid(1, 2, 2, 3)
FIXED, VARIABLE = Space.sequence(4, 2), Space.sequence(4, 2, variable=True)


def trained(space: Space, x: torch.Tensor, steps: int = 80, **options) -> VAE:
    torch.manual_seed(0)
    model = VAE(space, size="tiny", **options)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        model(x).mean().backward()
        optimiser.step()
    return model.eval()


def structured(space: Space, n: int = 128) -> torch.Tensor:
    """Examples whose entries depend on each other."""
    first = torch.randint(0, space.levels, (n, *[1] * len(space.shape)))
    noise = torch.randint(0, space.levels, (n, *space.shape))
    return torch.where(torch.rand(n, *space.shape) < 0.8, first, noise)


@torch.no_grad()
def exact(model: VAE, x: torch.Tensor) -> torch.Tensor:
    """log p(x) of a model with one latent, by quadrature."""
    z = torch.linspace(-9, 9, 1801)[:, None]
    log_pz = -0.5 * z.double().square().sum(1) - 0.5 * math.log(2 * math.pi) + math.log(0.01)
    return torch.stack([(model._log_given_z(row.expand(len(z), *row.shape), z, None) + log_pz).logsumexp(0) for row in x])


@pytest.fixture(scope="module")
def small() -> VAE:
    torch.manual_seed(1)
    return trained(GRID, structured(GRID), latent=1)


def test_quadrature_sums_to_one_and_bounds_it_from_below(small):
    x = GRID.enumerate()
    p = exact(small, x)
    assert p.exp().sum().item() == pytest.approx(1, abs=1e-5)
    elbo = torch.stack([small.log_prob(x, seed=s).nats for s in range(60)])
    stderr = elbo.std(0) / math.sqrt(len(elbo))
    assert bool((elbo.mean(0) <= p + 4 * stderr).all())
    assert elbo.mean(0).exp().sum().item() <= 1


def test_the_bound_grows_with_draws_to_the_likelihood(small):
    x = GRID.enumerate()
    bounds = [torch.stack([small.log_prob(x, draws=k, seed=s).nats for s in range(8)]).mean().item() for k in (1, 4, 16, 256)]
    assert bounds == sorted(bounds)
    assert bounds[0] < bounds[-1] - 1e-3
    assert bounds[-1] == pytest.approx(exact(small, x).mean().item(), abs=0.05)


def test_samples_follow_the_likelihood(small):
    n, x = 20_000, GRID.enumerate()
    torch.manual_seed(0)
    code = (small.sample(n).flatten(1) * torch.tensor([27, 9, 3, 1])).sum(1)
    counts, expected = torch.bincount(code, minlength=81).double(), n * exact(small, x).exp()
    often = expected > 5
    chi = ((counts - expected).square() / expected)[often].sum().item()
    assert stats.chi2.sf(chi, df=int(often.sum()) - 1) > 1e-3


def test_decoding_in_chunks_changes_nothing(small, monkeypatch):
    x = GRID.enumerate()[:7]
    whole = small.log_prob(x, draws=5).nats
    monkeypatch.setattr(vae, "_AT_ONCE", 3 * 4 * small.heads.width)
    assert torch.allclose(small.log_prob(x, draws=5).nats, whole, atol=1e-5)
    assert small.sample(8).shape == (8, 1, 2, 2)
    assert small.sample(0).shape == (0, 1, 2, 2)


def test_encode_gives_the_terms_of_the_bound(small):
    x = GRID.enumerate()
    torch.manual_seed(0)
    r = small.encode(x, draws=3)
    mean, log_sigma = (v.repeat(3, 1) for v in small._posterior(x, None))
    log_q = torch.distributions.Normal(mean, log_sigma.exp()).log_prob(r.value).sum(1)
    assert torch.allclose(r.nats, small._log_given_z(x.repeat(3, 1, 1, 1), r.value, None) - log_q, atol=1e-4)
    assert r.draws == 3
    assert not r.exact


# -- gradients ------------------------------------------------------------------------------------


def gradients(model: VAE, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def plain_loss(model: VAE, x: torch.Tensor) -> torch.Tensor:
    z, nats = model._encode(x, None, Noise(x, model.draws))
    return -log_mean_exp(nats + vae._log_normal(z).double().sum(1), model.draws).mean()


def test_training_gradients_are_those_of_the_bound(small):
    """The decoder's to the digit on equal noise; the encoder's, doubly reparameterised, on average."""
    x = GRID.enumerate()[::9]
    torch.manual_seed(5)
    ours = gradients(small, small(x).mean())
    torch.manual_seed(5)
    plain = gradients(small, plain_loss(small, x))
    for name in (n for n in ours if n.startswith("decoder")):
        assert torch.allclose(ours[name], plain[name], atol=1e-5)
    many = x.repeat(2000, 1, 1, 1)
    ours, plain = gradients(small, small(many).mean()), gradients(small, plain_loss(small, many))
    encoder = [n for n in ours if n.startswith("encoder")]
    ours, plain = (torch.cat([g[n].flatten() for n in encoder]) for g in (ours, plain))
    assert torch.nn.functional.cosine_similarity(ours, plain, dim=0).item() > 0.98
    assert (ours.norm() / plain.norm()).item() == pytest.approx(1, abs=0.1)


class Linear(nn.Module):
    """A decoder of one normal per entry: mean W z, one sigma for all."""

    def __init__(self, w: torch.Tensor, sigma: float) -> None:
        super().__init__()
        self.w, self.log_sigma = nn.Parameter(w), nn.Parameter(torch.tensor([math.log(sigma)]))

    def forward(self, z: torch.Tensor, given: None = None) -> torch.Tensor:
        mean = z @ self.w.T
        return torch.stack([torch.zeros_like(mean), mean, self.log_sigma.expand_as(mean)], -1)


class Inverse(nn.Module):
    """The posterior of probabilistic PCA: mean M^-1 W' x, covariance sigma^2 M^-1 (diagonal in the principal basis)."""

    def __init__(self, w: torch.Tensor, sigma: float) -> None:
        super().__init__()
        m = (w.T @ w).diagonal() + sigma**2
        self.v, self.log_sigma = nn.Parameter(w.T / m[:, None]), nn.Parameter(0.5 * (sigma**2 / m).log())

    def forward(self, x: torch.Tensor, given: None = None) -> torch.Tensor:
        mean = x @ self.v.T
        return torch.cat([mean, self.log_sigma.expand_as(mean)], 1)


def test_a_linear_autoencoder_at_its_optimum_is_probabilistic_pca():
    torch.manual_seed(0)
    x = torch.randn(2000, 5) @ torch.randn(5, 5)
    x = x - x.mean(0)
    covariance = x.T @ x / len(x)
    values, vectors = torch.linalg.eigh(covariance)
    sigma2 = values[:3].mean()
    w = vectors[:, 3:] * (values[3:] - sigma2).sqrt()
    model = VAE(Space.reals(5), size="tiny", latent=2, components=1, draws=1)
    model.encoder, model.decoder = Inverse(w, sigma2.sqrt().item()), Linear(w, sigma2.sqrt().item())
    exact = torch.distributions.MultivariateNormal(torch.zeros(5), w @ w.T + sigma2 * torch.eye(5)).log_prob(x)
    for draws in (1, 7):
        assert torch.allclose(model.log_prob(x, draws=draws).nats, exact.double(), atol=1e-3)
    grads = gradients(model, model(x).mean())
    assert all(g.abs().max() < 1e-4 for n, g in grads.items() if n.startswith("encoder"))  # where q is exact, w is constant in z
    assert all(g.abs().max() < 0.1 for g in grads.values())


# -- sequences ------------------------------------------------------------------------------------


def prefixes() -> torch.Tensor:
    """Every string of 0 to 4 bits, padded with -1."""
    return VARIABLE.enumerate()


def test_a_prefix_has_the_mass_of_its_continuations():
    torch.manual_seed(2)
    model = trained(FIXED, structured(FIXED), latent=1, steps=40)
    full = exact(model, FIXED.enumerate())
    for prefix in prefixes():
        kept = prefix[prefix >= 0]
        continues = (FIXED.enumerate()[:, : len(kept)] == kept).all(1)
        assert exact(model, prefix[None]).item() == pytest.approx(full[continues].logsumexp(0).item(), abs=1e-5)
    bound = model.log_prob(prefixes(), draws=512).nats
    assert torch.allclose(bound, exact(model, prefixes()), atol=0.2)


def test_strings_of_all_lengths_sum_to_one():
    torch.manual_seed(3)
    x = prefixes()[torch.randint(0, 31, (128,))]
    model = trained(VARIABLE, x, latent=1, steps=40)
    assert exact(model, prefixes()).exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert model.log_prob(prefixes(), draws=64).nats.exp().sum().item() <= 1.01
    drawn = model.sample(500)
    VARIABLE.check(drawn)
    ended = (drawn < 0).long()
    assert bool((ended.diff(dim=1) >= 0).all())  # nothing follows an end
    assert len(ended.sum(1).unique()) > 1


# -- tables, grids, conditions --------------------------------------------------------------------


def test_mixed_tables_learn_their_dependence():
    """Two columns that repeat the first cost a bit or so less than apart, and missing cells are modelled."""
    torch.manual_seed(4)
    label = torch.randint(0, 3, (256,))
    number = torch.where(torch.rand(256) < 0.2, -1, label * 40 + torch.randint(0, 3, (256,)))
    x = torch.stack([label, number], 1)
    space = Space.columns(Support("nominal", 3), Support("decimal", missing=True)).standardised(x)
    model = trained(space, x, latent=2, steps=150, draws=1)
    apart = math.log(3) + 0.2 * math.log(5) + 0.8 * math.log(9 / 0.8)
    together = math.log(3) + 0.2 * math.log(5) + 0.8 * math.log(3 / 0.8)
    nats = -model.log_prob(x, draws=64).nats.mean().item()
    assert together - 0.1 < nats < apart - 0.3
    drawn = model.sample(2000)
    space.check(drawn)
    assert (drawn[:, 1] == -1).double().mean().item() == pytest.approx(0.2, abs=0.07)


def test_a_condition_conditions():
    torch.manual_seed(5)
    given = torch.randint(0, 3, (128, 1))
    x = given.view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    model = VAE(GRID, given=Space.label(3), size="tiny")
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(50):
        optimiser.zero_grad()
        model(x, given).mean().backward()
        optimiser.step()
    right, wrong = model.log_prob(x, given, draws=8).nats.mean(), model.log_prob(x, (given + 1) % 3, draws=8).nats.mean()
    assert right > wrong + 1
    assert bool((model.sample(20, torch.tensor([[2]])) == 2).float().mean() > 0.8)
    with pytest.raises(UsageError, match="no `given` was passed"):
        model.log_prob(x)


@pytest.mark.parametrize("space", [Space.grid(2, 9, 17, 4), Space.grid(1, 30, 8), Space.sequence(37, 5), Space.grid(1, 3, 3, 2)], ids=str)
def test_convolutions_serve_any_extent_and_keep_examples_apart(space):
    torch.manual_seed(6)
    encoder = ConvEncoder(space, given=None, size="tiny", out=6)
    decoder = ConvDecoder(space, inputs=3, given=None, size="tiny", out=5)
    x = torch.randint(0, 2, (4, *space.shape)).to(space.dtype)
    h, y = encoder(x), decoder(encoder(x)[:, :3])
    assert h.shape == (4, 6)
    assert y.shape == (4, *space.shape, 5)
    assert torch.allclose(encoder(x[:1]), h[:1], atol=1e-5)
    assert torch.allclose(decoder(h[:1, :3]), y[:1], atol=1e-5)


def test_nominal_channels_and_missing_pixels_of_a_grid():
    space = Space("grid", (2, 3, 3), (Support("nominal", 4), Support("ordinal", 5, missing=True, center=2.5, scale=2.0)))
    x = torch.stack([torch.randint(0, 4, (6, 3, 3)), torch.randint(-1, 5, (6, 3, 3))], 1)
    for word in ("dense", "conv"):
        model = VAE(space, size="tiny", net=word)
        model(x).sum().backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
        space.check(model.sample(3))


@pytest.mark.parametrize("halvings", [1, 2])
def test_latents_may_be_a_grid(halvings):
    space = Space.grid(2, 7, 4, 5)
    model = build("vae", space, size="tiny", latent=3, halvings=halvings).eval()
    side = -(-7 // 2**halvings), -(-4 // 2**halvings)
    x = model.sample(5)
    z = model.encode(x, draws=2)
    assert model.latent.shape == (3, *side)
    assert z.value.shape == (10, 3, *side)
    assert model.decode(z.value[:5]).shape == x.shape
    assert model.posterior(x).event_shape == (3, *side)
    # an encoder that says the prior: the bound is E log p(x | z)
    torch.nn.init.zeros_(model.encoder.last.weight)
    torch.nn.init.zeros_(model.encoder.last.bias)
    noise = Noise(x, 1, 0)
    z = noise.normal(3, *side).float()
    with torch.no_grad():
        assert torch.allclose(model.log_prob(x).nats, model._log_given_z(x, z, None), atol=1e-4)


def test_a_grid_of_latents_keeps_the_contract():
    check_model("vae", tiny_data()["grid"], latent=2, halvings=1)


def test_beta_weighs_the_divergence_and_leaves_the_bound_alone():
    space = Space.grid(1, 2, 2, 3)
    x = space.enumerate()[::7]
    plain, light = (build("vae", space, size="tiny", draws=1, dropout=0.0, beta=beta).eval() for beta in (1.0, 0.25))
    light.load_state_dict(plain.state_dict())
    assert torch.equal(plain.log_prob(x).nats, light.log_prob(x).nats)
    losses = []
    for model in (plain, light):
        torch.manual_seed(0)
        losses.append(model(x))
    torch.manual_seed(0)
    lifted = plain.encode(x)
    z = lifted.value
    log_q = plain.posterior(x).log_prob(z)
    log_prior = torch.distributions.Normal(0, 1).log_prob(z).sum(1)
    assert torch.allclose(losses[0] - losses[1], 0.75 * (log_q - log_prior).double(), atol=1e-4)


def test_latents_of_a_table_are_no_grid():
    with pytest.raises(UsageError, match="no grid"):
        build("vae", tiny_data()["columns"].space, size="tiny", halvings=1)
