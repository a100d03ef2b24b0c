"""What the numbers mean, in words: the definitions of the report, and sentences about each model."""

from dataclasses import dataclass

from likely.report.leaderboard import Entry

__all__ = ["DEFINITIONS", "KINDS", "MEASURES", "Measure", "closeness", "sentence"]

KINDS = {
    "exact": ("=", "exact", "The model computes the probability of every example, and this is its code length."),
    "lower bound": ("<=", "bound", "The model bounds the probability from below: the true code length is no larger than this."),
    "numerical": ("~", "numerical", "Exact up to the error of a numerical solver, which is stated."),
    "estimate": (
        "~",
        "estimate",
        "Rests on an estimated normalising constant and tends to be optimistic, so it is listed apart and never ranked.",
    ),
    "": ("–", "none", "The model has no likelihood; look at the quality of its samples."),
}


@dataclass(frozen=True)
class Measure:
    """A measure of quality: its key in a row, a short heading, how it is printed, what it says."""

    key: str
    heading: str
    form: str
    meaning: str


MEASURES = (
    Measure(
        "c2st_auc",
        "C2ST AUC",
        ".2f",
        "How well a classifier tells drawn from real examples: 0.5 is a coin toss, 1 is always. "
        "The better of boosted trees and a kernel machine, cross-validated.",
    ),
    Measure(
        "c2st_accuracy", "C2ST accuracy", ".2f", "The same classifier's share of right answers: 0.5 where it can but guess, 1 at worst."
    ),
    Measure(
        "energy_distance",
        "energy distance",
        ".4f",
        "Distance between the two distributions, 0 if they are equal; an unbiased estimate, so it can come out slightly negative.",
    ),
    Measure("kernel_mmd", "kernel MMD²", ".4f", "Another distance, with a Gaussian kernel of the median bandwidth; 0 if they are equal."),
    Measure("precision", "precision", ".2f", "Share of drawn examples that lie among real ones: are they good?"),
    Measure("recall", "recall", ".2f", "Share of real examples that lie among drawn ones: are they varied?"),
    Measure(
        "density",
        "density",
        ".2f",
        "How many real neighbourhoods a drawn example lies in, about 1 if the distributions are equal; robust to outliers.",
    ),
    Measure("coverage", "coverage", ".2f", "Share of real examples that have a drawn one in their neighbourhood; robust to outliers."),
    Measure(
        "near_copies",
        "near copies",
        ".2f",
        "Share of drawn examples that are nearer to a training example than 95 % of held-out real ones are: 0.05 is right, 1 is reciting.",
    ),
    Measure(
        "nearest_train",
        "nearest training",
        ".2f",
        "Median distance of drawn examples to the nearest training example; compare with that of held-out real examples.",
    ),
)

DEFINITIONS = {
    "Bits": "The mean number of bits that a perfect compressor, driven by the model, needs: per dimension of an image, per byte of a text, "
    "per row of a table. Lower is better. The numbers of all families are in the measure of the data as stored, so they compare. "
    "Data without a grid (floats) have a density instead, in nats.",
    "±": "Standard error of the mean over test examples (1-kilobyte blocks of a text); with several seeds, the standard deviation of runs.",
    "real data": "The one floor: training examples measured as if a model had drawn them. No model should be expected to do better.",
    "independent entries": "The other floor: each entry drawn from its own marginal, without any dependence between entries. "
    "A model that scores like this has learnt the marginals only.",
    "p": "Share of random relabellings of drawn and real that give at least this distance; it shows when you point at a distance. "
    "A small p says that the difference is not chance; a large p does not prove equality.",
    "neighbourhood": "The ball around an example that reaches its fifth nearest neighbour of the same set.",
    "train": "Wall-clock seconds of fitting, evaluation not included.",
    "samples/s, log p/s": "Examples drawn, and test examples scored (with all draws of a bound), per second of wall clock.",
    "memory": "Peak memory of the model's own process, libraries included (of the accelerator where there is one).",
}


def closeness(entry: Entry, key: str) -> float | None:
    """Where a measure lies between the floors: 0 as independent entries, 1 as real data; None where that says nothing."""
    if key in ("near_copies", "nearest_train"):
        return None
    value, real, independent = (entry.measure(key, which) for which in ("value", "real", "independent"))
    if value is None or real is None or independent is None or abs(real - independent) < 1e-3 * (abs(real) + abs(independent)):
        return None
    return min(1.0, max(0.0, (value - independent) / (real - independent)))


def sentence(entry: Entry) -> str:
    """What a newcomer should take from a model's measures."""
    parts = [p for p in (_told_apart(entry), _covered(entry), _copies(entry)) if p]
    return " ".join(parts)


_UNFAIR = 0.65  # of the test of real data against real data


def _told_apart(entry: Entry) -> str:
    auc = entry.measure("c2st_auc")
    if auc is None:
        return ""
    real = entry.measure("c2st_auc", "real")
    if real is not None and real > _UNFAIR:  # neighbours in a text, say, that are told from each other
        return f"A classifier tells even real examples from each other (AUC {real:.2f}), so that of these (AUC {auc:.2f}) says little."
    grades = ((0.55, "cannot tell its examples from real ones"), (0.65, "hardly tells its examples from real ones"))
    grades += ((0.8, "often tells its examples from real ones"), (0.95, "mostly tells its examples from real ones"))
    verdict = next((words for limit, words in grades if auc < limit), "tells nearly all of its examples from real ones")
    return f"A classifier {verdict} (AUC {auc:.2f})."


def _covered(entry: Entry) -> str:
    coverage, real = entry.measure("coverage"), entry.measure("coverage", "real")
    if coverage is None or real is None:
        return ""
    return f"They reach {coverage:.0%} of the real examples (real data: {real:.0%})."


def _copies(entry: Entry) -> str:
    copies, real = entry.measure("near_copies"), entry.measure("near_copies", "real")
    if copies is None or real is None:
        return ""
    if copies > max(0.2, 2 * real):
        return f"{copies:.0%} are suspiciously close to training examples."
    return "No sign of copying."
