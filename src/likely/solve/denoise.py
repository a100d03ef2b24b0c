"""A denoiser: what all numerics of diffusion ask of a model, and a way to watch it.

    denoise(z, t [B]) -> (m, V)      posterior mean and variance of each entry of the clean e, given z_t = alpha_t e + sigma_t eps

A model that knows no variance says zero. Guidance and inpainting wrap a denoiser in a denoiser, so that they compose with each
other and with every sampler.
"""

from collections.abc import Callable

from torch import Tensor

__all__ = ["Denoise", "Watched"]

Denoise = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Watched:
    """A denoiser that counts its calls, and shows each one.

    Args:
        denoise: to watch.
        see: called with (z, t, mean) after each call; the means are what a sampler takes the data to be as it goes.

    Attributes:
        calls: so far.
    """

    def __init__(self, denoise: Denoise, see: Callable[[Tensor, Tensor, Tensor], None] | None = None) -> None:
        self.denoise, self.see, self.calls = denoise, see, 0

    def __call__(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        mean, var = self.denoise(z, t)
        if self.see is not None:
            self.see(z, t, mean)
        return mean, var
