"""Runs side by side: which differences of their figures are real, and where the rulers disagree."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from unraze.errors import InputError
from unraze.evaluate.evaluation import Evaluation
from unraze.evaluate.figures import Figure
from unraze.evaluate.metrics import Difference, difference

__all__ = ["Comparison", "Pair", "compared", "require_comparable"]


@dataclass(frozen=True)
class Pair:
    """One figure of two evaluations, numbered in the order given: first less second.

    `better` is the number of the one that is really better; None where sampling explains the
    difference, or where one of them has no such figure.
    """

    space: str
    figure: str
    first: int
    second: int
    difference: Difference | None
    better: int | None


@dataclass(frozen=True)
class Comparison:
    """Every pair in every space, and what must be said besides."""

    pairs: tuple[Pair, ...]
    remarks: tuple[str, ...]


def compared(evaluations: Sequence[Evaluation]) -> Comparison:
    """All pairs of two or more evaluations; raises `InputError` where they are not comparable."""
    require_comparable(evaluations)
    pairs = []
    for place, space in enumerate(evaluations[0].spaces):
        for number, figure in enumerate(space.figures):
            for i, j in combinations(range(len(evaluations)), 2):
                a, b = (evaluations[k].spaces[place].figures[number] for k in (i, j))
                pairs.append(_pair(space.name, figure, i, j, a, b))
    return Comparison(tuple(pairs), tuple(_remarks(evaluations, pairs)))


def require_comparable(evaluations: Sequence[Evaluation]) -> None:
    """Raises `InputError` that names what differs: real images, feature weights, or counts."""
    if len(evaluations) < 2:
        raise InputError("give two runs or more to compare")
    first = evaluations[0]
    for other in evaluations[1:]:
        names = f"{first.subject.name} and {other.subject.name}"
        if not (first.spaces and other.spaces):
            raise InputError(f"{names}: one was evaluated without figures; evaluate it again")
        if first.against.fingerprint != other.against.fingerprint:
            raise InputError(
                f"{names}: were measured against different real images "
                f"({first.against.source}, {other.against.source}); figures of different data "
                "sets say nothing about each other"
            )
        if [s.hash for s in first.spaces] != [s.hash for s in other.spaces]:
            raise InputError(
                f"{names}: were measured in different feature spaces; evaluate both with the same "
                "--features"
            )
        if first.subject.generated != other.subject.generated:
            raise InputError(
                f"{names}: {first.subject.generated} and {other.subject.generated} samples; "
                "figures depend on that number: evaluate both with the same -n"
            )


def _pair(space: str, figure: Figure, i: int, j: int, a: Figure, b: Figure) -> Pair:
    try:
        found = difference(a, b)
    except InputError:  # comparable as a whole, so one has no value: too few images for it
        return Pair(space, figure.name, i, j, None, None)
    better = None
    if found.real:
        lower = i if found.value < 0 else j
        better = lower if figure.better == "lower" else i + j - lower
    return Pair(space, figure.name, i, j, found, better)


def _remarks(evaluations: Sequence[Evaluation], pairs: Sequence[Pair]) -> list[str]:
    said = []
    by_pair: dict[tuple[str, int, int], dict[str, int]] = {}
    for pair in pairs:
        if pair.better is not None:
            key = (pair.figure, pair.first, pair.second)
            by_pair.setdefault(key, {})[pair.space] = pair.better
    for (figure, _, _), better in by_pair.items():
        if len(set(better.values())) > 1:
            named = " and ".join(
                f"{evaluations[k].subject.name} in {space}" for space, k in better.items()
            )
            said.append(f"The feature spaces disagree on {figure}: better is {named}.")
    made = len(pairs)
    if made > 1:
        said.append(
            f"{made} differences are tested, each at 5 %: about {max(1, round(0.05 * made))} "
            "would be called real among equals."
        )
    seeds = {(e.subject.preset, e.subject.trained_seed) for e in evaluations}
    said.append(
        "A real difference is one between these two trained models; whether it is one between "
        "their recipes, other training seeds must show."
        + (" All were trained from different seeds or presets." if len(seeds) > 1 else "")
    )
    return said
