"""The likelihood of a text's whole test stretch as ONE sequence: every byte once, none left out.

Of tokens it is the likelihood of one segmentation, a lower bound, and still counted per byte.

A model of conditionals (`Primed`) reads the training and validation bytes before it as its first
context, as a compressor would that had just coded them. Where the model adapts to the symbols that
are behind it, `how` says so. Any other likelihood model scores
consecutive independent windows, the last one shorter: also every byte once, but each window
starts cold, and `how` says so.
"""

import math

import torch
from torch import Tensor

from likely.abilities import Likelihood, Primed
from likely.dataset import Data
from likely.errors import DataError
from likely.logprob import Bits, LogProb, of_text

__all__ = ["BLOCK", "stretch_bits"]

BLOCK = 1024  # symbols that share a standard error's unit: neighbours are not independent
_ROWS = 64  # windows that go through a model at once


@torch.no_grad()
def stretch_bits(model: Likelihood, data: Data) -> tuple[Bits, LogProb]:
    """(mean code length per byte, log p of each block of 1024 symbols, or nearly so many, in nats).

    The standard error is that of the mean over blocks.

    Raises: DataError if the data are no text.
    """
    stretch = data.test.stream
    if stretch is None:
        raise DataError(f"{data.name} has no test stretch.", "Only texts have one.")
    if isinstance(model, Primed):
        before = [s.stream for s in (data.train, data.valid) if s.stream is not None]
        nats = model.log_prob_after(stretch.long(), torch.cat(before).long() if before else stretch[:0].long())
        how = "one sequence, " + ("from its end" if model.backward else "primed") + ", adapting to it as it goes" * model.adapts
        blocks, sizes = LogProb(_sums(nats), "exact", how=how), _sums(model.space.sizes(stretch.long()))
    else:
        blocks, sizes = _windows(model, stretch.long())
    blocks = of_text(blocks, model.space)
    return _bits(blocks, sizes, model.space.unit), blocks


def _sums(of_symbols: Tensor) -> Tensor:
    return torch.stack([block.double().sum() for block in of_symbols.split(BLOCK)])


def _windows(model: Likelihood, stretch: Tensor) -> tuple[LogProb, Tensor]:
    """log p of blocks of consecutive windows, and how many bytes (or symbols) each block has."""
    length = model.space.shape[0]
    windows = torch.nn.functional.pad(stretch, (0, -len(stretch) % length), value=-1).view(-1, length)
    parts = [model.log_prob(x, draws=model.bound_draws) for x in windows.split(_ROWS)]
    per_block = max(1, round(BLOCK / length))

    def joined(values: list[Tensor]) -> Tensor:
        return torch.stack([v.double().sum() for v in torch.cat(values).split(per_block)])

    how = f"independent windows of {length}"
    log_prob = LogProb(joined([p.nats for p in parts]), parts[0].kind, how="; ".join(h for h in (parts[0].how, how) if h))
    return log_prob, joined([model.space.sizes(windows).sum(1)])


def _bits(blocks: LogProb, sizes: Tensor, unit: str) -> Bits:
    """Total bits over total bytes; the error of that ratio by its residuals over blocks."""
    code = -blocks.nats / math.log(2)
    mean, n = (code.sum() / sizes.sum()).item(), len(code)
    residual = (code - mean * sizes) / sizes.mean()
    stderr = (residual.square().sum() / max(n - 1, 1) / n).sqrt().item() if n > 1 else math.nan
    return Bits(mean, unit, blocks.kind, stderr, int(sizes.sum()), blocks.how)
