"""What a denoiser knows besides u: the time, and what is given.

    time         sines and cosines, and the time itself, through an MLP; it may be t in [0, 1] or a log-SNR, divided by 4 or so
    columns      labels and numbers, an embedding that is added to that of time
    sequences    a memory to attend to, and its mean, which is added to the embedding
    grids        concatenated to the input of nets of grids, stretched to its size; an embedding for others

Where a net is built to do without (`drop`), a missing text is the empty one, a missing image is blank and says so,
anything else has an embedding of its own; in training so many examples are shown without what is given.

References:
    | Attention is all you need (Vaswani et al., 2017) | https://arxiv.org/abs/1706.03762
    | Denoising diffusion probabilistic models (Ho et al., 2020) | https://arxiv.org/abs/2006.11239
    | Classifier-free diffusion guidance (Ho and Salimans, 2022) | https://arxiv.org/abs/2207.12598
    | GLIDE: Towards photorealistic image generation and editing with text-guided diffusion models (Nichol et al., 2021) | https://arxiv.org/abs/2112.10741
    | Image super-resolution via iterative refinement (by concatenation; Saharia et al., 2021) | https://arxiv.org/abs/2104.07636
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from likely.errors import UsageError
from likely.nets.conditioning import Conditioner
from likely.nets.reader import Reader, required
from likely.relaxation import context
from likely.space import Space

__all__ = ["Knowledge", "Known", "TimeEmbedding"]

_SLOWEST, _FASTEST, _FREQUENCIES = math.pi / 8, 64 * math.pi, 20
_FASTEST_OF_TWO = 2 * math.pi  # nets of two times are differentiated in time: what is fast would be all that the derivative sees


class TimeEmbedding(nn.Module):
    """t [B], within some units of 0, or several such times [B, times] -> embedding [B, width]."""

    frequencies: Tensor

    def __init__(self, width: int, times: int = 1) -> None:
        super().__init__()
        fastest = _FASTEST if times == 1 else _FASTEST_OF_TWO
        steps = torch.logspace(math.log2(_SLOWEST), math.log2(fastest), _FREQUENCIES, base=2)
        self.register_buffer("frequencies", steps, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(times * (2 * _FREQUENCIES + 1), width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        t = (t[:, None] if t.ndim == 1 else t).unsqueeze(2).to(self.frequencies)
        angle = t * self.frequencies
        return self.mlp(torch.cat([t, angle.sin(), angle.cos()], 2).flatten(1))


@dataclass(frozen=True)
class Known:
    """Of a batch: an embedding [B, width], a text's memory [B, S, width] with its filled places [B, S], images [B, C, H, W]."""

    embedding: Tensor
    memory: Tensor | None = None
    filled: Tensor | None = None
    image: Tensor | None = None


class Knowledge(nn.Module):
    """(t [B], given) -> `Known`.

    Args:
        image: height and width that an image which is given is stretched to and concatenated at; None for an embedding of it.
        drop: share of training examples that are shown without what is given; above 0 it can be done without.
        times: how many the model speaks of, t [B, times].

    Attributes:
        channels: of the image that is concatenated, 0 without.
        reads: whether a text is given.
    """

    def __init__(self, given: Space | None, width: int, *, image: tuple[int, int] | None = None, drop: float = 0.0, times: int = 1) -> None:
        super().__init__()
        self.given, self.drop, self.image = given, drop, image if given is not None and given.layout == "grid" else None
        self.reads = given is not None and given.layout == "sequence"
        self.time = TimeEmbedding(width, times)
        self.reader = Reader(given, width) if given is not None and self.reads else None
        self.conditioner = Conditioner(None if self.reads or self.image else given, width, dropout=drop)
        self.channels = _channels(given) + 1 if given is not None and self.image else 0

    def forward(self, t: Tensor, given: Tensor | None) -> Known:
        embedding = self.time(t)
        if self.reader is not None:
            memory, filled = self.reader(self._text(given, len(t)))
            pooled = (memory * filled[..., None]).sum(1) / filled.sum(1, keepdim=True)
            return Known(F.silu(embedding + pooled), memory, filled)
        if self.image is not None:
            return Known(F.silu(embedding), image=self._image(given, len(t)))
        extra = self.conditioner(given, len(t))
        return Known(F.silu(embedding if extra is None else embedding + extra))

    def _text(self, given: Tensor | None, batch: int) -> Tensor:
        """Strings to read, empty ones in place of what is missing."""
        if given is None and self.drop > 0:
            return torch.full((batch, 1), -1, device=self.time.frequencies.device)
        given = required(given)
        return given.masked_fill(self._dropped(given), -1)

    def _image(self, given: Tensor | None, batch: int) -> Tensor:
        """Values, flags of those unknown, and a channel of ones where there is an image at all."""
        assert self.given is not None
        assert self.image is not None
        if given is None:
            if self.drop == 0:
                raise UsageError(
                    "This model is conditional, p(x | given), but no `given` was passed.", "Pass the image it is conditioned on."
                )
            return torch.zeros(batch, self.channels, *self.image, device=self.time.frequencies.device)
        values = F.pad(_values(self.given, given), (0, 0, 0, 0, 0, 1), value=1.0)
        values = values if values.shape[2:] == self.image else F.interpolate(values, size=self.image, mode="bilinear")
        return values.masked_fill(self._dropped(values), 0.0)

    def _dropped(self, like: Tensor) -> Tensor:
        """Examples that are shown without, [B, 1...]."""
        share = self.drop if self.training else 0.0
        return torch.rand(len(like), *[1] * (like.ndim - 1), device=like.device) < share


def _channels(given: Space) -> int:
    """Of an image's values; those of real ones have a flag each."""
    return given.relaxed.shape[0] if given.discrete else 2 * given.shape[0]


def _values(space: Space, given: Tensor) -> Tensor:
    """An image's values, centred and scaled, 0 and flagged where unknown."""
    if space.discrete:
        return context(space, given)
    center, scale = space.affine(given)
    lost = given.isnan()
    return torch.cat([((given - center) / scale).masked_fill(lost, 0.0), lost], 1).to(torch.get_default_dtype())
