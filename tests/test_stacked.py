"""Stacks against the change of variables, quadrature over latents and the bounds that they reduce to; their phases, names and storage."""

import math

import pytest
import torch

import likely
from likely import families
from likely.abilities import Latent, Likelihood
from likely.checks import check_model, tiny_data
from likely.dataset import Data, Split
from likely.errors import UsageError
from likely.families import build, stacked
from likely.logprob import LogProb
from likely.model import Model
from likely.noise import Noise, log_mean_exp
from likely.space import Space

DATA = tiny_data()
TINY = {"size": "tiny", "progress": False}


class Prior(Model, Likelihood):
    """Two normals over a latent, said to be a bound, so that it is joined as one."""

    summary = "two normals"

    def __init__(self, space, centers=(-1.0, 1.5), scale=0.6, kind="lower bound"):
        super().__init__(space)
        self.law = torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(torch.ones(len(centers))), torch.distributions.Normal(torch.tensor(centers), scale)
        )
        self.kind = kind

    def forward(self, x, given=None, *, turn=""):
        return -self.law.log_prob(x).sum(1)

    def sample(self, n, given=None):
        return self.law.sample((n, self.space.dims))

    def _log_prob(self, x, given, noise):
        return LogProb(self.law.log_prob(x).sum(1).double(), self.kind)


def stack_of(prior, space=None, **options):
    """A VAE of random weights, whose decoder heeds its latents, under a prior set by hand."""
    torch.manual_seed(1)
    first = build("vae", space or Space.grid(1, 1, 3, 2), size="tiny", dropout=0.0, **options).eval()
    with torch.no_grad():
        for p in first.decoder.parameters():
            p.mul_(2)
    second = prior(first.latent)
    return families.family_class("vae > gmm")(first.space, members=[first, second]).eval()


def moved(model, center=0.2, scale=0.8):
    model.center.fill_(center)
    model.scale.fill_(scale)
    return model


def truth_of(model, nodes=4001, reach=12.0):
    """log p(x) of every state, by quadrature over the one latent."""
    states, line = model.space.enumerate(), torch.linspace(-reach, reach, nodes)[:, None]
    with torch.no_grad():
        prior = model.second.law.log_prob(line).sum(1)
        z = (line * model.scale + model.center).float()
        log_p = torch.stack([model.first._log_given_z(x.expand(nodes, *x.shape), z, None) for x in states])
    return (log_p + prior).logsumexp(1) + math.log(2 * reach / (nodes - 1))


@pytest.mark.parametrize("kind", ["exact", "lower bound"])
@pytest.mark.parametrize("draws", [1, 8])
def test_bounds_lie_below_the_integral(kind, draws):
    model = moved(stack_of(lambda space: Prior(space, kind=kind), latent=1))
    truth = truth_of(model)
    assert truth.exp().sum().item() == pytest.approx(1, abs=1e-6)
    with torch.no_grad():
        nats = torch.stack([model.log_prob(model.space.enumerate(), draws=draws, seed=s).nats for s in range(100)])
    gap, error = truth - nats.mean(0), nats.std(0) / 10
    assert bool((gap > -4 * error).all())
    assert bool((gap > 0.02).any())  # or nothing were bounded


def test_many_draws_of_an_exact_prior_reach_the_integral():
    model = moved(stack_of(lambda space: Prior(space, kind="exact"), latent=1))
    with torch.no_grad():
        result = model.log_prob(model.space.enumerate(), draws=20_000)
    assert torch.allclose(result.nats, truth_of(model), atol=0.05)
    assert (result.kind, result.how) == ("lower bound", "z ~ q(z | x), K=20000")


def test_under_the_first_models_own_prior_its_own_bound_comes_back():
    model = stack_of(lambda space: Prior(space, centers=(0.0,), scale=1.0))
    x = model.space.enumerate()
    for draws in (1, 5):
        own = model.first.log_prob(x, draws=draws, seed=3)
        assert torch.allclose(model.log_prob(x, draws=draws, seed=3).nats, own.nats, atol=1e-5)


def test_an_invertible_first_and_an_exact_second_are_a_change_of_variables():
    data = DATA["points"]
    model = likely.fit(data, "nice > gmm", steps=20, **TINY).model
    x = data.test.x[:6]

    def standard(row):
        return model._encoded(row[None], None, Noise(row[None])).value[0]

    with torch.no_grad():
        result = model.log_prob(x)
        z = torch.stack([standard(row) for row in x])
        inner = model.second.log_prob(z).nats
    log_det = torch.stack([torch.autograd.functional.jacobian(standard, row).slogdet()[1] for row in x])
    assert result.kind == "exact"
    assert torch.allclose(result.nats, inner + log_det, atol=1e-4)


def test_noise_of_rows_is_a_function_of_their_example_and_draw():
    x = torch.arange(6).view(6, 1)
    rows = torch.arange(18)
    u = Noise(x, 3, 0).of(rows).normal(4)
    alone = Noise(x[2:3], 3, 0).of(torch.arange(3)).normal(4)
    assert torch.equal(u.view(3, 6, 4)[:, 2], alone)
    assert len(u.flatten().unique()) == u.numel()
    assert not torch.equal(Noise(x, 3, 1).of(rows).normal(4), u)


# -- phases --------------------------------------------------------------------------------------------


def test_the_first_is_the_model_that_it_would_be_alone_and_stands_still():
    data = DATA["grid"]
    run = likely.fit(data, "vae > diffusion", steps=20, **TINY)
    alone = likely.fit(data, "vae", steps=10, **TINY)
    assert run.steps == 20
    for name, tensor in alone.model.state_dict().items():
        assert torch.equal(tensor, run.model.first.state_dict()[name]), name
    assert run.curve == [] or {point["step"] for point in run.curve} <= {point["step"] for point in alone.curve}


def test_a_killed_run_does_not_fit_the_first_again(tmp_path):
    data, how = DATA["grid"], {"steps": 30, "seed": 3, "checkpoint_seconds": 0.0, **TINY}
    whole = likely.fit(data, "vae > diffusion", out=tmp_path / "whole", **how)

    class Killed(Exception):
        pass

    def kill(record):
        if (tmp_path / "killed/members/1").exists():
            raise Killed

    with pytest.raises(Killed):
        likely.fit(data, "vae > diffusion", out=tmp_path / "killed", **{**how, "progress": kill})
    assert (tmp_path / "killed/members/0/manifest.json").exists()
    units = []
    again = likely.fit(data, "vae > diffusion", out=tmp_path / "killed", **{**how, "progress": lambda record: units.append(record["unit"])})
    assert set(units) == {"nats/row (density)"}
    for mine, theirs in zip(whole.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    assert not list((tmp_path / "killed/members").iterdir())


def test_latents_are_drawn_afresh_and_standardised():
    data = DATA["grid-given"]
    model = build("vae > flow", data.space, given=data.given, size="tiny").eval()
    (_, whole, first), (_, latents, second) = ((p.member, p.data, p.share) for p in model.phases(data))
    n, draws = len(data.train), len(latents.train) // len(data.train)
    assert (whole, first, second) == (data, 0.5, 1.0)
    assert draws == stacked._DRAWS
    z = latents.train.x.view(draws, n, -1)
    assert torch.allclose(latents.train.x.mean(0), torch.zeros(4), atol=1e-4)
    assert torch.allclose(latents.train.x.std(0), torch.ones(4), atol=1e-3)
    assert bool((z[0] != z[1]).any(1).all())
    assert torch.equal(latents.train.given.view(draws, n, 1)[7], data.train.given)
    mean = model.first.posterior(data.train.x, data.train.given).mean
    seen = z.double().mean(0) * model.scale + model.center
    assert (seen - mean).abs().mean() < 3 / math.sqrt(draws)


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("vae > flow", (0.5, 1.0)),
        ("vae > gmm", (1.0, 0.0)),
        ("vae > vae > flow", (1 / 3, 1.0)),
        ("stacked(vae, flow, share=0.8)", (0.8, 1.0)),
    ],
)
def test_stages_share_the_budget(name, shares):
    data = DATA["grid"]
    model = build(name, data.space, size="tiny").eval()
    assert tuple(phase.share for phase in model.phases(data)) == pytest.approx(shares)


def test_epochs_are_of_the_data_and_not_of_their_latents():
    run = likely.fit(DATA["grid"], "vae > diffusion", epochs=2, **TINY)
    n = len(DATA["grid"].train)
    assert run.steps == math.ceil(n / run.model.first.recipe.batch) + math.ceil(n / run.model.second.recipe.batch)


def test_strings_of_a_text_are_encoded_once_each():
    stream = torch.randint(0, 5, (400,))
    parts = [Split(part.unfold(0, 8, 1), stream=part) for part in stream.split([200, 100, 100])]
    data = Data(Space.sequence(8, 5), *parts, name="text")
    model = build("vae > flow", data.space, size="tiny").eval()
    latents = [phase.data for phase in model.phases(data)][1]
    assert len(latents.train) == stacked._DRAWS * 25
    assert latents.train.stream is None


# -- what they can do ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("vae > gmm", "grid"),
        pytest.param("vae > gan", "grid-channels", marks=pytest.mark.slow),
        ("vae > flow", "columns"),
        pytest.param("vae > diffusion", "sequence-variable", marks=pytest.mark.slow),
        pytest.param("flow > gmm", "grid-given", marks=pytest.mark.slow),
        pytest.param("vae > vae > diffusion", "grid-given", marks=pytest.mark.slow),
    ],
)
def test_stacks_keep_the_contract(name, data):
    findings = check_model(name, DATA[data])
    assert {"samples belong", "store keeps", "parameters learn"} <= {finding.law for finding in findings}


def test_the_class_says_what_the_parts_can_do():
    can = {name: families.family_class(name) for name in ("vae > gan", "vae > diffusion", "vae > flow", "flow > gmm")}
    assert {name: issubclass(cls, Likelihood) for name, cls in can.items()} == {name: name != "vae > gan" for name in can}
    assert {name: issubclass(cls, Latent) for name, cls in can.items()} == {name: name in ("vae > flow", "vae > diffusion") for name in can}


def test_latents_of_both_go_there_and_back():
    data = DATA["points"]
    model = likely.fit(data, "flow > flow", steps=10, **TINY).model
    x = data.test.x[:5]
    with torch.no_grad():
        lifted = model.encode(x)
        density = LogProb(torch.distributions.Normal(0, 1).log_prob(lifted.value).sum(1).double(), "exact")
        assert torch.allclose(model.decode(lifted.value), x, atol=1e-3)
        assert torch.allclose(lifted.log_prob(density).nats, model.log_prob(x).nats, atol=1e-4)


def test_the_loss_is_minus_the_bound_and_reaches_the_first():
    data = DATA["grid"]
    model = likely.fit(data, "vae > gmm", steps=20, **TINY).model.requires_grad_(True)
    x = data.test.x[:4]
    torch.manual_seed(0)
    loss = model(x)
    torch.manual_seed(0)
    lifted = model._encoded(x, None, Noise(x))
    again = -log_mean_exp(lifted.nats + model.second.log_prob(lifted.value.detach()).nats, 1)
    assert torch.allclose(loss, again, atol=1e-6)
    loss.sum().backward()
    assert all(bool((p.grad != 0).any()) for p in model.first.decoder.parameters())


def test_a_mixture_has_a_gradient_in_its_examples():
    gmm = likely.fit(DATA["points"], "gmm", covariance="diag", **TINY).model
    x = DATA["points"].test.x[:3].clone()
    x[1] = x[0]  # equal rows are scored once where no gradient is asked for
    x.requires_grad_(True)
    gmm.log_prob(x).nats.sum().backward()
    step = torch.tensor([1e-3, 0.0])
    slope = (gmm.log_prob(x.detach() + step).nats - gmm.log_prob(x.detach() - step).nats) / 2e-3
    assert torch.allclose(x.grad[:, 0].double(), slope, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("net", ["dit", "unet"])
def test_a_grid_of_latents_is_diffused_as_a_grid(net):
    space = Space.grid(1, 8, 6, 3)
    x = torch.randint(0, 3, (40, 1, 8, 6))
    data = Data(space, Split(x), Split(x[:8]), Split(x[:8]))
    model = likely.fit(data, f"vae(halvings=1, latent=2) > diffusion(net={net})", steps=4, **TINY).model
    assert model.second.space.shape == (2, 4, 3)
    assert model.scale.shape == (2, 1, 1)
    assert model.sample(3).shape == (3, 1, 8, 6)
    with torch.no_grad():
        at_once, alone = model.log_prob(x[:4], draws=3).nats, model.log_prob(x[3:4], draws=3).nats
    assert torch.allclose(at_once[3:], alone, atol=1e-4)


def test_options_of_the_sampler_are_the_seconds():
    model = likely.fit(DATA["grid"], "vae > diffusion", steps=4, **TINY).model
    assert likely.sample(model, 3, sampler="ddim", steps=2).shape == (3, 1, 2, 2)
    with pytest.raises(UsageError, match="has no option 'temperature'"):
        likely.sample(model, 3, temperature=0.5)


# -- names ---------------------------------------------------------------------------------------------


def test_names_are_taken_apart():
    assert families.parsed("vae > diffusion") == ("stacked", ["vae", "diffusion"], {})
    assert families.parsed("vae>flow(layers=2)>gmm") == ("stacked", ["vae", "flow(layers=2) > gmm"], {})
    assert families.parsed("stacked(vae(latent=3), gmm, share=0.7)") == ("stacked", ["vae(latent=3)", "gmm"], {"share": 0.7})
    assert families.parsed("stacked") == ("stacked", ["vae", "diffusion"], {})
    assert families.parsed("vae(latent=3, net=dense)") == ("vae", [], {"latent": 3, "net": "dense"})
    assert families.split_names("vae > flow, mixture(ngram, autoregressive(net=rnn)), gmm") == [
        "vae > flow",
        "mixture(ngram, autoregressive(net=rnn))",
        "gmm",
    ]
    assert families.slug("vae(latent=3) > flow") == "vae-latent-3-flow"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gmm > flow", "gmm has no latents"),
        ("vae >", "Nothing stands on one side"),
        ("vae > flo", "Did you mean 'flow'"),
        ("stacked(vae)", "two parts, not 1"),
        ("stacked(vae, flow, share=1)", "cannot have 1 of the budget"),
        ("stacked(vae, gmm, latent=3)", r"vae\(latent=...\)"),
        ("vae(latnt=3) > gmm", "Did you mean 'latent'"),
        ("vae(latent=3 > gmm", "do not match"),
    ],
)
def test_names_that_cannot_be(name, message):
    with pytest.raises(UsageError, match=message):
        build(name, DATA["grid"].space, size="tiny")


def test_options_in_a_name_are_stored_with_it(tmp_path):
    data = DATA["grid"]
    run = likely.fit(data, "vae(latent=3) > flow(layers=2)", steps=4, out=tmp_path / "model", **TINY)
    twin = likely.open(tmp_path / "model")
    assert twin.latent.dims == twin.first.latent.dims == 3
    assert torch.equal(twin.log_prob(data.test.x[:4]).nats, run.model.log_prob(data.test.x[:4]).nats)


def test_the_command_line_fits_and_uses_a_stack(run, tmp_path):
    folder = tmp_path / "stack"
    code, out, _ = run("fit", "digits", "vae(latent=3) > gmm", "--steps", 2, "--size", "tiny", "--out", folder)
    assert code == 0
    assert "bits/dim" in out
    assert run("sample", folder, "-n", 4, "--out", tmp_path / "four.png")[0] == 0
    code, _, err = run("fit", "digits", "vae > gmm", "--latent", 3)
    assert code == 2
    assert "vae(latent=...)" in err
