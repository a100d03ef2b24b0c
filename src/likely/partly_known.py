r"""What models of noisy data do alike with an example of which a part is known: draw the rest.

Any of them can, by walks from noise that are held to what is known (`solve.inpainting`): approximations, one of which is exact for Gaussian
data. One that has learnt to (`inpaint`) is shown what is known, beside the noise, and draws from the conditional that it has learnt:

    p(e | z_t, e_known, given)    trained on parts at random (`solve.partial`); of every second example nothing is shown, p(e | z_t, given)

What it is shown goes beside whatever else is given, as a lifted example, NaN where it is unknown. Known entries
cost nothing in the loss. With none, the bound, samplers, latents and codes are those of any other model.

References:
    | Palette: image-to-image diffusion models (Saharia et al., 2022) | https://arxiv.org/abs/2111.05826
    | RePaint: inpainting using denoising diffusion probabilistic models (Lugmayr et al., 2022) | https://arxiv.org/abs/2201.09865
"""

import math
from abc import ABC
from typing import Any

import torch
from torch import Tensor, nn

from likely.abilities import Fillable, Filled
from likely.denoising import CHUNK, Denoising, rows
from likely.errors import UsageError, nearest
from likely.model import evaluating
from likely.nets import net as build_net
from likely.nets.partial import PartlyShown, Shown, Told
from likely.noise import Noise
from likely.solve.inpainting import INPAINTERS
from likely.solve.partial import pinned, random_known
from likely.solve.posterior import Posterior
from likely.solve.samplers import GRIDS, find_sampler, grid
from likely.space import Space

__all__ = ["PartlyKnown"]

_CONDITIONAL, _SAMPLER = "conditional", "dpm-solver-sde"


class PartlyKnown(Denoising, Fillable, ABC):
    """Draws entries given others.

    Attributes:
        inpaint: whether it learns to. Its net may be told what is known of lifted examples, `Shown`, beside what is given.
    """

    inpaint: bool = False

    # -- learnt ---------------------------------------------------------------------------------

    def build(self, word: str | None, given: Space | None, out: int, options: dict[str, Any]) -> nn.Module:
        """The denoiser of lifted examples; one that is shown what is known of them, if the model learns to inpaint."""
        space, axis = self.lift.space, 2 if self.lift.space.layout == "set" else 1
        if not self.inpaint:
            return build_net(space, "denoiser", self.size, word=word, given=given, out=out, **options)
        extra = space.shape[axis - 1]
        return PartlyShown(build_net(space, "denoiser", self.size, word=word, given=given, out=out, extra=extra, **options), axis)

    def shown(self, e: Tensor, given: Tensor | None) -> Told:
        """What the net is told in training: if the model learns to inpaint, entries at random of lifted examples e, too."""
        if not self.inpaint:
            return given
        return Shown(e.masked_fill(~self.lift.entries_of(random_known(self.space, len(e), e.device)), math.nan), given)

    def heeding(self, posterior: Posterior, told: Told) -> Posterior:
        """A posterior that has the entries which are shown."""
        return pinned(self.lift, posterior, told.known) if isinstance(told, Shown) else posterior

    def unknown(self, v: Tensor, e: Tensor, told: Told) -> Tensor:
        """v where lifted examples e have an entry that is not shown, 0 elsewhere: what is known, and the padding of sets, costs nothing."""
        v = v.masked_fill(e.isnan(), 0.0)
        return told.unknown(v) if isinstance(told, Shown) else v

    # -- fill -----------------------------------------------------------------------------------

    def fill(
        self,
        x: Tensor,
        known: Tensor,
        given: Tensor | None = None,
        draws: int = 1,
        *,
        method: str | None = None,
        steps: int = 24,
        resamplings: int = 10,
    ) -> Filled:
        """See `Fillable.fill`: an approximation for any mask, by walks from noise that are held to what is known.

        Args:
            method: "conditional", the default of a model that learnt to inpaint: its net is shown what is known; or
                "posterior", "repaint" or "replacement" (see `solve.inpainting`), of which "posterior" is exact for Gaussian data.
            steps: noise levels.
            resamplings: of "repaint": how often each step is walked.
        """
        method = method or (_CONDITIONAL if self.inpaint else "posterior")
        self._check(method)
        x = torch.where(known, x, torch.zeros((), dtype=x.dtype, device=x.device))  # what is unknown is not looked at
        options: dict[str, Any] = {"resamplings": resamplings} if method == "repaint" else {}
        options |= {} if self.gaussian else {"sampler": "dpm-solver"}
        copies, mask, given = (_copied(v, draws) for v in (x, known, given))
        size, times = max(1, CHUNK // self.lift.space.dims), grid(GRIDS[0], self.schedule, steps)
        parts = [slice(i, i + size) for i in range(0, max(len(copies), 1), size)]
        with evaluating(self), torch.no_grad():
            drawn = torch.cat([self._held(method, times, copies[p], mask[p], rows(given, p.start, size), options) for p in parts])
        filled = torch.where(mask, copies, drawn).view(draws, *x.shape)
        sure = torch.full((draws, len(x)), math.inf, dtype=torch.float64, device=x.device)
        return Filled(filled, False, sure, f"{method} at {steps} noise levels, an approximation of p(unknown | known)")

    def _check(self, method: str) -> None:
        """Raise a UsageError for a method that is unknown, or not for this model."""
        if method == _CONDITIONAL and not self.inpaint:
            raise UsageError(
                f"This model has not learnt to fill by the method '{method}'.", "Fit it with --inpaint, or leave --method out."
            )
        if method not in (*INPAINTERS, _CONDITIONAL):
            raise UsageError(f"Unknown method '{method}' of filling.", nearest(method, [*INPAINTERS, _CONDITIONAL]))
        if method in ("repaint", "replacement") and not self.gaussian:
            raise UsageError(f"The method '{method}' adds noise, which is wrong where noise was coupled to examples.", "Take posterior.")

    def _held(self, method: str, times: Tensor, x: Tensor, known: Tensor, given: Tensor | None, options: dict[str, Any]) -> Tensor:
        """Examples by a walk from noise that is held to the known entries of x, or whose net is shown them."""
        e, there = self.lift(x, Noise(x))[0], self.lift.entries_of(known)
        z = (self.schedule.prior_scale * torch.randn_like(e)).masked_fill(e.isnan(), math.nan)  # absent points of sets stay absent
        if method == _CONDITIONAL:
            told: Told = Shown(e.masked_fill(~there, math.nan), given)
            z = find_sampler(_SAMPLER)(self.denoiser(told), self.schedule, z, times)
        else:
            told = given
            z = INPAINTERS[method](self.denoiser(told), self.schedule, z, times, e, there, **options)
        return self.decoded(z, times[-1].expand(len(z)).to(z.device), told)


def _copied(v: Tensor | None, draws: int) -> Any:
    return None if v is None else v.repeat(draws, *[1] * (v.ndim - 1))
