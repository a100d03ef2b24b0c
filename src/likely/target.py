r"""Fit a flow q to a density that is known up to a constant, p(x) / Z: a posterior, a Boltzmann distribution.

Training minimises the reverse Kullback-Leibler divergence over draws of q,

    KL(q || p / Z) = E_q [log q(x) - log p(x)] + log Z,      so    ELBO = E_q [log p(x) - log q(x)] <= log Z

by its path gradient: x moves with the weights, q is evaluated under fixed ones. The part that is left out has mean zero, and where q equals
p so does what is left ("sticking the landing"). Reverse KL would rather miss a mode than cover a valley, so p^beta is fitted first, beta
growing to 1. Importance weights w = p(x) / q(x) then correct what is wrong with q, as far as q reaches:

    Z = E_q [w],      log mean w  is below log Z in expectation (Jensen), by about Var(w) / (2 n Z^2)

The weights' effective number and the shape k of their tail say whether that can be relied on: above 0.7 it cannot. A mode that q never
visits shows in neither; other seeds, and a start that is wide enough, may find it.

References:
    | Variational inference with normalizing flows (Rezende and Mohamed, 2015) | https://arxiv.org/abs/1505.05770
    | Sticking the landing (Roeder et al., 2017) | https://arxiv.org/abs/1703.09194
    | Path-gradient estimators for continuous normalizing flows (Vaitl et al., 2022) | https://arxiv.org/abs/2206.09016
    | Pareto smoothed importance sampling (Vehtari et al., 2024) | https://arxiv.org/abs/1507.02646
    | A new and efficient estimation method for the generalized Pareto distribution (Zhang and Stephens, 2009)
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from likely import families
from likely.errors import DataError, UsageError
from likely.invertible import Invertible, log_normal
from likely.noise import seeded
from likely.space import Space
from likely.training.progress import Progress, ProgressCallback

__all__ = ["TargetFit", "fit_target", "tail_shape"]

LogDensity = Callable[[Tensor], Tensor]
_COLDEST = 0.05  # beta at which training begins
_CLIP = 10.0
_REPORT_SECONDS = 0.5
_AT_ONCE = 2**18  # entries of samples that are weighed at once
_FEW, _FAR = 0.1, 5.0  # share of effective samples below which, and nats between ELBO and log Z above which, q is no likeness of p


@dataclass(frozen=True)
class TargetFit:
    """A flow that was fitted to an unnormalised log-density, draws of it, and what their importance weights say.

    Attributes:
        model: the flow q, a `Model` like any other.
        samples: [n, dims], of q; with `weights`, of p / Z.
        log_weights: log p(x) - log q(x) of each, nats [n], float64; -inf where p is 0.
    """

    model: Invertible
    samples: Tensor
    log_weights: Tensor

    @property
    def weights(self) -> Tensor:
        """Self-normalised, [n]."""
        return self.log_weights.softmax(0)

    @property
    def log_z(self) -> float:
        """log mean w, nats: of expectation below log Z, the less the more weights are effective."""
        return (self.log_weights.logsumexp(0) - math.log(len(self.log_weights))).item()

    @property
    def stderr(self) -> float:
        """Standard error of `log_z` by the delta method, as far as q reaches."""
        return math.sqrt(max(len(self.weights) * self.weights.square().sum().item() - 1, 0) / len(self.weights))

    @property
    def elbo(self) -> float:
        """E_q [log w], nats: below log Z, too, by KL(q || p / Z)."""
        return self.log_weights.mean().item()

    @property
    def elbo_stderr(self) -> float:
        return self.log_weights.std().item() / math.sqrt(len(self.log_weights))

    @property
    def effective(self) -> float:
        """Effective number of samples, (sum w)^2 / sum w^2."""
        return 1 / self.weights.square().sum().item()

    @property
    def k_hat(self) -> float:
        """Shape of the weights' Pareto tail: below 0.5 their variance is finite, above 0.7 nothing can be relied on."""
        return tail_shape(self.log_weights)

    def mean(self, of: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        """E_p of a function of examples [n, dims] -> [n, ...], by self-normalised weights; of x itself by default."""
        value = of(self.samples)
        return (self.weights.view(-1, *[1] * (value.ndim - 1)) * value).sum(0)

    def resample(self, n: int, seed: int = 0) -> Tensor:
        """n of the samples, drawn with replacement by their weights: [n, dims], of p / Z."""
        generator = torch.Generator().manual_seed(seed)
        return self.samples[torch.multinomial(self.weights, n, replacement=True, generator=generator)]

    def doubts(self) -> Iterator[str]:
        """What the weights hold against q, if anything."""
        n, nowhere, gap = len(self.samples), int(self.log_weights.isneginf().sum()), self.log_z - self.elbo
        if nowhere:
            yield f"p is 0 at {nowhere} of the samples, so the ELBO is -inf"
        elif not gap < _FAR:
            yield f"the ELBO is {gap:.1f} nats below log Z: q is far from p"
        if not self.effective >= _FEW * n:
            yield f"{self.effective / n:.1%} of the samples are effective: q misses most of p"
        if not self.k_hat < 0.7:
            yield "k is above 0.7: the weights' tail is too heavy for the error to be relied on"

    def __str__(self) -> str:
        return (
            f"log Z about {self.log_z:.4f} +- {self.stderr:.4f} nats, in expectation from below; "
            f"ELBO {self.elbo:.4f} +- {self.elbo_stderr:.4f} <= log Z; {self.effective:.0f} effective of {len(self.samples)} samples, "
            f"k = {self.k_hat:.2f} ({'; '.join(self.doubts()) or 'as it should be'})"
        )


def fit_target(
    log_density: LogDensity,
    dims: int,
    model: str = "nsf",
    *,
    steps: int = 1000,
    batch: int = 256,
    lr: float = 3e-3,
    anneal: float = 0.5,
    samples: int = 8192,
    size: str = "tiny",
    seed: int = 0,
    device: str = "cpu",
    progress: bool | ProgressCallback = True,
    **options: Any,
) -> TargetFit:
    """Fit a flow to an unnormalised log-density on R^dims, and weigh draws of it.

    Args:
        log_density: x [n, dims], float32 -> log p(x) + any constant, nats [n]; differentiable; -inf where p is 0.
        model: a registered family of invertible maps; one whose inverse is a single pass, such as `nsf` or `iaf`, is fast here.
        steps, batch, lr: of Adam on the path gradient; the rate falls to zero along a cosine.
        anneal: share of the steps over which beta grows to 1; 0 fits p itself from the start.
        samples: that are weighed in the end.
        size, options: of the family.
        progress: show a bar, or a function that is called with a record of each report (`step`, `train`: minus the ELBO at beta, ...).

    Returns: a `TargetFit` with samples, log weights, log Z with its standard error, ELBO, effective sample size and tail.

    Raises: UsageError for a family that is no invertible map, or a log-density without a gradient; DataError for one of another shape, NaN
        or +inf at any draw, or finite at none.
    """
    if type(dims) is not int or dims < 1 or steps < 1 or batch < 2 or samples < 2 or not 0 <= anneal <= 1:
        raise UsageError("dims and steps must be positive integers, batch and samples 2 at least, anneal between 0 and 1.")
    with seeded(seed):
        flow = families.build(model, Space.reals(dims), size=size, **options)
        if not isinstance(flow, Invertible):
            raise UsageError(f"'{model}' is no invertible map, so it cannot be fitted to a density.", "Choose a flow, such as nsf or flow.")
        flow = flow.to(device).eval()
        _train(flow, log_density, steps, batch, lr, anneal, Progress(model, progress if callable(progress) else None, bool(progress)))
        return _weighed(flow, log_density, samples)


def _train(flow: Invertible, log_density: LogDensity, steps: int, batch: int, lr: float, anneal: float, progress: Progress) -> None:
    optimiser = torch.optim.Adam(flow.parameters(), lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    begin = last = time.perf_counter()
    with progress:
        for step in range(steps):
            beta = min(1.0, _COLDEST + (1 - _COLDEST) * step / (anneal * steps)) if anneal else 1.0
            x = flow.rsample(batch)
            log_p = _checked(log_density(x), len(x))
            if not log_p.requires_grad:
                raise UsageError(
                    "The log-density has no gradient by x.", "Compute it by torch from x itself, without detach, item or numpy."
                )
            loss = (_log_q_of_fixed_weights(flow, x) - beta * log_p).nan_to_num(0.0, 0.0, 0.0).mean()
            optimiser.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(flow.parameters(), _CLIP)
            if bool(norm.isfinite()):
                optimiser.step()
            schedule.step()
            now = time.perf_counter()
            if now - last > _REPORT_SECONDS or step == steps - 1:
                speed, last = (step + 1) / (now - begin), now
                record = {"step": step + 1, "train": loss.item(), "unit": "nats", "beta": beta, "steps_per_s": speed}
                progress.update({**record, "seconds_left": (steps - step - 1) / speed}, (step + 1) / steps)


def _checked(nats: Tensor, n: int) -> Tensor:
    """log p of n draws. Where it is -inf, a draw says nothing of where to go."""
    if nats.shape != (n,):
        raise DataError(f"The log-density gave shape {tuple(nats.shape)} for {n} points, not [{n}].", "Return one value for each row of x.")
    if wrong := int((nats.isnan() | nats.isposinf()).sum()):
        raise DataError(f"The log-density is NaN or +inf at {wrong} of {n} draws.", "Return -inf where p is 0.")
    if not bool(nats.isfinite().any()):
        raise DataError("The log-density is finite at none of the flow's draws.", "Does it lie far from the origin? Shift and scale it.")
    return nats


def _log_q_of_fixed_weights(flow: Invertible, x: Tensor) -> Tensor:
    """log q(x) whose gradient flows through x alone."""
    fixed = {name: value.detach() for name, value in flow.map.named_parameters()}
    z, log_det = torch.func.functional_call(flow.map, fixed, (x,))
    return log_det + log_normal(z)


@torch.no_grad()
def _weighed(flow: Invertible, log_density: LogDensity, n: int) -> TargetFit:
    xs: list[Tensor] = []
    weights: list[Tensor] = []
    for first in range(0, n, rows := max(2, _AT_ONCE // flow.space.dims)):
        x, log_q = flow.sample(min(rows, n - first), with_log_prob=True)
        xs.append(x)
        weights.append(_checked(log_density(x), len(x)).double() - log_q.nats)
    return TargetFit(flow, torch.cat(xs), torch.cat(weights))


def tail_shape(log_weights: Tensor) -> float:
    """Shape k of the generalised Pareto distribution of the largest min(n / 5, 3 sqrt n) weights, by Zhang and Stephens.

    The estimate is drawn towards 0.5 by as much as ten observations would; -inf where all weights are equal.
    """
    n = len(log_weights)
    count = math.ceil(min(0.2 * n, 3 * math.sqrt(n)))
    largest = (log_weights - log_weights.max()).exp().sort().values[-count - 1 :]
    excess = (largest[1:] - largest[0]).double()
    if count < 5 or not bool(excess[0] > 0) or excess[-1] < 1e-9:
        excess = excess[excess > 1e-12]
        if len(excess) < 5:
            return -math.inf
    m, x = len(excess), excess
    grid = 30 + int(math.sqrt(m))
    b = 1 - (grid / (torch.arange(1, grid + 1, dtype=torch.float64) - 0.5)).sqrt()
    b = b / (3 * x[max(0, int(m / 4 + 0.5) - 1)]) + 1 / x[-1]
    k = torch.log1p(-b[:, None] * x).mean(1)
    profile = m * ((-b / k).log() - k - 1)
    shape = torch.log1p(-(profile.nan_to_num(-math.inf).softmax(0) * b).sum() * x).mean().item()
    return (m * shape + 10 * 0.5) / (m + 10)
