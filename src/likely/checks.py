r"""`check_model`: the contract that every family keeps, ours or a stranger's, as laws over tiny spaces.

On an enumerable space a likelihood can be proved: an exact one sums to 1, a lower bound (its logs
averaged over draws) to at most 1, an estimate to 1 within its error; samples follow what the model
claims; and by KL(p || q) >= 0 no model may claim more than the data's own entropy allows.

The laws are in `likely.laws`. One applies where the model has the ability it speaks of.

    from likely.checks import check_model
    check_model("my-family")        # over every tiny data set whose layout the family claims
"""

from dataclasses import dataclass

from likely.dataset import Data
from likely.enumeration import Room, enumerable_data, tiny_data
from likely.families import family_class
from likely.laws import LAWS, LawBroken, Trial
from likely.model import Model

__all__ = ["LAWS", "Finding", "LawBroken", "Room", "check_model", "enumerable_data", "tiny_data"]


@dataclass(frozen=True)
class Finding:
    """One law on one data set: what was measured."""

    law: str
    data: str
    measured: str

    def __str__(self) -> str:
        return f"{self.data}: {self.law}: {self.measured}"


def check_model(name: str, data: Data | None = None, *, room: Room | None = None, **options: object) -> list[Finding]:
    """Fit a registered family, in size "tiny", and hold it to every law that applies.

    Args:
        data: any `Data`; every tiny data set that the family models by default.
        options: of the family.

    Raises: LawBroken at the first law that does not hold.
    """
    room = room or Room()
    if data is None:
        every = [d for d in tiny_data().values() if family_class(name).serves(d.space)]
        return [finding for d in every for finding in check_model(name, d, room=room, **options)]
    model = _fitted(name, data, room, options)
    trial = Trial(model, data, room)
    return [Finding(law, data.name, told) for law, check in LAWS.items() if (told := check(trial)) is not None]


def _fitted(name: str, data: Data, room: Room, options: dict[str, object]) -> Model:
    from likely.train import fit

    return fit(data, name, size="tiny", steps=room.steps, seed=room.seed, progress=False, **options).model  # type: ignore[arg-type]
