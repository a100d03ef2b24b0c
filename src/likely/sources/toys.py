r"""Generated data whose distribution is known: what a model's likelihood and samples can be held against.

    moons, spirals      x = c_k(t) + s e with t ~ U[0, pi] along curve k, e ~ N(0, I); the integral over t by
                        Gauss-Legendre quadrature
    rings               x = R_k (cos a, sin a) + s e with a ~ U[0, 2 pi]: a density with a Bessel function,
                        p(x | k) = exp(-(r^2 + R_k^2) / 2 s^2) I_0(r R_k / s^2) / (2 pi s^2)
    8gaussians          a mixture of normals on a circle
    pinwheel            5 normals N((1.5, 0), diag(0.4, 0.1)^2), each turned by its place and then by 1.2 |x|: a
                        rotation that depends on |x| alone keeps areas, so the density needs no Jacobian
    checkerboard        uniform on 8 unit squares of [-2, 2]^2
    bars-and-stripes    4 x 4 binary images of whole rows, or of whole columns

Entropies are exact (checkerboard, bars-and-stripes) or -sum p log p on a grid finer than the noise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from torch import Tensor

from likely.dataset import Truth
from likely.sources.examples import Examples, Options
from likely.space import Space

__all__ = ["TOYS", "Toy", "bars_and_stripes", "toy_examples"]

Draw = Callable[[np.random.Generator, int], np.ndarray]


@dataclass(frozen=True)
class Toy:
    """A 2-D distribution: how to draw n points, its log-density, the box that holds it, and its finest scale."""

    draw: Draw
    log_density: Callable[[Tensor], Tensor]
    reach: float
    scale: float
    entropy: float | None = field(default=None)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density in nats of points [n, 2], float64 [n]."""
        return torch.cat([self.log_density(part) for part in x.double().split(4096)])

    def integrate(self, f: Callable[[Tensor], Tensor]) -> float:
        """The integral of f(log p) over the plane, by the midpoint rule."""
        points, area = self.lattice()
        return float(f(self.log_prob(points)).sum() * area)

    def lattice(self) -> tuple[Tensor, float]:
        """Midpoints [n, 2] of squares that cover the plane as far as there is mass, and the area of one."""
        step = self.scale / 2
        ticks = torch.arange(-self.reach + step / 2, self.reach, step, dtype=torch.float64)
        return torch.cartesian_prod(ticks, ticks), step * step


def _normal_mixture(x: Tensor, centers: Tensor, log_weights: Tensor, s: float) -> Tensor:
    """log sum_j w_j N(x; c_j, s^2 I) of points [n, 2]."""
    squares = torch.cdist(x, centers, compute_mode="donot_use_mm_for_euclid_dist").square()
    return (log_weights - squares / (2 * s * s)).logsumexp(1) - math.log(2 * math.pi * s * s)


def _along(curves: Callable[[np.ndarray], np.ndarray], nodes: int, s: float, reach: float) -> Toy:
    """Points along curves t in [0, pi] -> [curves, t, 2], each as likely, plus noise of standard deviation s; `nodes` of quadrature."""
    at, weights = np.polynomial.legendre.leggauss(nodes)
    path = curves(np.pi * (at + 1) / 2)
    centers = torch.from_numpy(path.reshape(-1, 2))
    log_weights = torch.from_numpy(np.tile(np.log(weights / 2), len(path))) - math.log(len(path))

    def draw(g: np.random.Generator, n: int) -> np.ndarray:
        k, t = g.integers(0, len(path), n), np.pi * g.random(n)
        return curves(t)[k, np.arange(n)] + s * g.normal(size=(n, 2))

    return Toy(draw, lambda x: _normal_mixture(x, centers, log_weights, s), reach, s)


def _moons(t: np.ndarray) -> np.ndarray:
    return np.stack([np.c_[np.cos(t), np.sin(t)], np.c_[1 - np.cos(t), 0.5 - np.sin(t)]])


def _spirals(t: np.ndarray) -> np.ndarray:
    """Two arms of radius 0.3 to 2.5, three quarters of a turn apart from where they start."""
    arm = (0.3 + 0.7 * t)[:, None] * np.c_[np.cos(2.5 * t), np.sin(2.5 * t)]
    return np.stack([arm, -arm])


def _gaussians(s: float = 0.2, radius: float = 2.0) -> Toy:
    angle = np.arange(8) * np.pi / 4
    places = radius * np.c_[np.cos(angle), np.sin(angle)]
    centers, log_weights = torch.from_numpy(places), torch.full((8,), -math.log(8), dtype=torch.float64)

    def draw(g: np.random.Generator, n: int) -> np.ndarray:
        return places[g.integers(0, 8, n)] + s * g.normal(size=(n, 2))

    return Toy(draw, lambda x: _normal_mixture(x, centers, log_weights, s), 3.6, s)


def _rings(s: float = 0.08, radii: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)) -> Toy:
    ring = torch.tensor(radii, dtype=torch.float64)

    def draw(g: np.random.Generator, n: int) -> np.ndarray:
        k, a = g.integers(0, len(radii), n), 2 * np.pi * g.random(n)
        return np.array(radii)[k, None] * np.c_[np.cos(a), np.sin(a)] + s * g.normal(size=(n, 2))

    def log_density(x: Tensor) -> Tensor:
        r = x.norm(dim=1, keepdim=True)
        bessel = torch.special.i0e(r * ring / s**2).log()  # i0e(z) = exp(-z) I_0(z)
        return (bessel - (r - ring).square() / (2 * s * s)).logsumexp(1) - math.log(2 * math.pi * s * s * len(radii))

    return Toy(draw, log_density, 2.7, s)


def _turned(x: Tensor, angle: Tensor) -> Tensor:
    """Points [..., 2] turned about the origin by `angle` [...]."""
    c, s = angle.cos(), angle.sin()
    return torch.stack([c * x[..., 0] - s * x[..., 1], s * x[..., 0] + c * x[..., 1]], -1)


def _pinwheel(arms: int = 5, twist: float = 1.2) -> Toy:
    places = torch.arange(arms) * (2 * math.pi / arms)
    mean, sd = torch.tensor([1.5, 0.0], dtype=torch.float64), torch.tensor([0.4, 0.1], dtype=torch.float64)

    def draw(g: np.random.Generator, n: int) -> np.ndarray:
        k, blade = g.integers(0, arms, n), mean + sd * torch.from_numpy(g.normal(size=(n, 2)))
        return _turned(blade, places[k] + twist * blade.norm(dim=1)).numpy()

    def log_density(x: Tensor) -> Tensor:
        blade = _turned(x[:, None], -places - twist * x.norm(dim=1, keepdim=True))
        z = (blade - mean) / sd
        return (-0.5 * z.square().sum(-1)).logsumexp(1) - math.log(2 * math.pi * 0.4 * 0.1 * arms)

    return Toy(draw, log_density, 4.0, 0.07)


def _checkerboard() -> Toy:
    def draw(g: np.random.Generator, n: int) -> np.ndarray:
        i = g.integers(0, 8, n)
        column = i % 4
        return np.c_[column, 2 * (i // 4) + column % 2] - 2 + g.random((n, 2))

    def log_density(x: Tensor) -> Tensor:
        cell = x.floor()
        dark = ((cell[:, 0] + cell[:, 1]) % 2 == 0) & (x.abs() < 2).all(1)
        return torch.where(dark, -math.log(8), -math.inf).double()

    return Toy(draw, log_density, 2.0, 0.1, entropy=math.log(8))


TOYS: dict[str, Callable[[], Toy]] = {
    "moons": lambda: _along(_moons, 96, 0.1, 3.0),
    "8gaussians": _gaussians,
    "checkerboard": _checkerboard,
    "rings": _rings,
    "pinwheel": _pinwheel,
    "spirals": lambda: _along(_spirals, 256, 0.1, 3.3),
}


@cache
def _truth(name: str) -> Truth:
    toy = TOYS[name]()
    entropy = toy.entropy if toy.entropy is not None else -toy.integrate(lambda log_p: torch.xlogy(log_p.exp(), log_p.exp()))
    return Truth(toy.log_prob, entropy)


def toy_examples(name: str, options: Options) -> Examples:
    """Points [n, 2] of a toy, 10,000 unless `count` says otherwise, drawn with `seed`."""
    n = options.count or 10_000
    x = TOYS[name]().draw(np.random.default_rng(options.seed), n).astype(np.float32)
    return Examples(Space.reals(2), torch.from_numpy(x), truth=_truth(name), notes={"drawn": n})


def bars_and_stripes(options: Options, side: int = 4) -> Examples:
    """Binary images [n, 1, 4, 4]: rows or columns (evenly likely), each line of it on or off (evenly likely)."""
    n = options.count or 5_000
    g = torch.Generator().manual_seed(options.seed)
    line = torch.randint(2, (n, 1, side, 1), generator=g).expand(n, 1, side, side)
    x = torch.where(torch.rand(n, 1, 1, 1, generator=g) < 0.5, line, line.transpose(2, 3)).contiguous()
    return Examples(Space.grid(1, side, side, 2), x, truth=Truth(_bars_log_prob, _bars_entropy(side)), notes={"drawn": n})


def _bars_log_prob(x: Tensor) -> Tensor:
    """Each of the two orientations gives 2^-side / 2 to each of its patterns; blank and full are in both."""
    rows, columns = (x == x[..., :1]).flatten(1).all(1), (x == x[..., :1, :]).flatten(1).all(1)
    return ((rows.double() + columns.double()) * 2.0 ** -(x.shape[-1] + 1)).log()


def _bars_entropy(side: int) -> float:
    once, twice = 2.0 ** -(side + 1), 2.0**-side
    return -(2 * twice * math.log(twice) + (2 ** (side + 1) - 4) * once * math.log(once))
