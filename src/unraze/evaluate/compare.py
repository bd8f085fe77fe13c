"""Evaluations side by side: which differences are real, and where the feature spaces disagree."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from unraze.errors import InputError
from unraze.evaluate.evaluation import Evaluation
from unraze.evaluate.figures import Figure
from unraze.evaluate.metrics import Difference, difference

__all__ = ["Comparison", "Pair", "compared", "letter", "require_comparable"]


@dataclass(frozen=True)
class Pair:
    """One figure of two evaluations, numbered in the order given: first less second.

    `better` is the number of the one that is really better; None where sampling explains the
    difference, or where `difference` is None: one of them has no such figure.
    """

    space: str
    figure: str
    first: int
    second: int
    difference: Difference | None
    better: int | None


@dataclass(frozen=True)
class Comparison:
    """Every pair in every space, and in words what follows, and what must be said besides."""

    pairs: tuple[Pair, ...]
    words: tuple[str, ...]
    remarks: tuple[str, ...]


def compared(evaluations: Sequence[Evaluation]) -> Comparison:
    """All pairs of two or more evaluations, which words call A, B and so on.

    Raises `InputError` where they are not comparable.
    """
    require_comparable(evaluations)
    pairs = []
    for place, space in enumerate(evaluations[0].spaces):
        for number, figure in enumerate(space.figures):
            for i, j in combinations(range(len(evaluations)), 2):
                a, b = (evaluations[k].spaces[place].figures[number] for k in (i, j))
                pairs.append(_pair(space.name, figure, i, j, a, b))
    words = (*_counted(pairs), *_disagreements(pairs))
    return Comparison(tuple(pairs), words, tuple(_remarks(evaluations, pairs)))


def letter(number: int) -> str:
    """What an evaluation is called: A … Z, then A2 … Z2 and so on."""
    round_, place = divmod(number, 26)
    return chr(ord("A") + place) + (str(round_ + 1) if round_ else "")


def require_comparable(evaluations: Sequence[Evaluation]) -> None:
    """Raises `InputError` that names what differs: real images, feature weights, or counts."""
    if len(evaluations) < 2:
        raise InputError("give two evaluated runs or more to compare")
    for evaluation in evaluations:
        if not evaluation.spaces:
            raise InputError(
                f"{evaluation.subject.name}: was evaluated without figures; evaluate it again "
                "without --skip figures"
            )
    first = evaluations[0]
    for other in evaluations[1:]:
        names = f"{first.subject.name} and {other.subject.name}"
        if first.against.fingerprint != other.against.fingerprint:
            raise InputError(
                f"{names}: were measured against different real images ({_real(first)}, "
                f"{_real(other)}), which says nothing about each other; measure samples of both "
                "against the same: unraze sample RUN, then unraze eval FOLDER --against IMAGES"
            )
        if [s.hash for s in first.spaces] != [s.hash for s in other.spaces]:
            raise InputError(
                f"{names}: were measured in different feature spaces ({_spaces(first)}; "
                f"{_spaces(other)}); evaluate both on one machine and with the same --features"
            )
        if first.subject.generated != other.subject.generated:
            raise InputError(
                f"{names}: {first.subject.generated} and {other.subject.generated} samples, and "
                "figures depend on that number; evaluate both with the same -n"
            )


def _real(evaluation: Evaluation) -> str:
    against = evaluation.against
    return f"{against.real} of {against.source}, fingerprint {against.fingerprint[:12]}…"


def _spaces(evaluation: Evaluation) -> str:
    return ", ".join(f"{space.name} {space.hash[:12]}…" for space in evaluation.spaces)


def _pair(space: str, figure: Figure, i: int, j: int, a: Figure, b: Figure) -> Pair:
    try:
        found = difference(a, b)
    except InputError:  # comparable as a whole, so one has no value: too few images for it
        return Pair(space, figure.name, i, j, None, None)
    better = None
    if found.real and not _crowded(a, b):
        lower = i if found.value < 0 else j
        better = lower if figure.better == "lower" else i + j - lower
    return Pair(space, figure.name, i, j, found, better)


def _crowded(a: Figure, b: Figure) -> bool:
    """Whether these are densities, of which the higher is above its floor: there samples crowd
    where real images are many, so that a higher one is no better."""
    top = a if a.value > b.value else b
    return a.name == "density" and top.alike > top.floor


def _counted(pairs: Sequence[Pair]) -> Iterator[str]:
    """For each two, in how many figures either is really better."""
    for i, j in sorted({(pair.first, pair.second) for pair in pairs}):
        of_these = [p for p in pairs if (p.first, p.second) == (i, j) and p.difference is not None]
        wins = {k: sum(p.better == k for p in of_these) for k in (i, j)}
        said = (
            f"{letter(i)} and {letter(j)}: of {len(of_these)} figures {letter(i)} is really better "
            f"in {wins[i]}, {letter(j)} in {wins[j]}; sampling explains the rest."
        )
        if any(p.difference.real and p.better is None for p in of_these if p.difference):
            said += " Above its floor a higher density is no better, as samples crowd there."
        yield said


def _disagreements(pairs: Sequence[Pair]) -> Iterator[str]:
    """The figures by which one of two is really better in one space, the other in another."""
    found: dict[tuple[str, int, int], dict[str, int]] = {}
    for pair in pairs:
        if pair.better is not None:
            key = (pair.figure, pair.first, pair.second)
            found.setdefault(key, {})[pair.space] = pair.better
    for (figure, _, _), better in found.items():
        if len(set(better.values())) > 1:
            named = ", ".join(f"{letter(k)} in {space}" for space, k in better.items())
            yield f"The feature spaces disagree on {figure}: better is {named}."


def _remarks(evaluations: Sequence[Evaluation], pairs: Sequence[Pair]) -> Iterator[str]:
    made = sum(pair.difference is not None for pair in pairs)
    if made > 1:
        yield (
            f"{made} differences are tested, each at 5 %: about {max(1, round(0.05 * made))} "
            "would be called real among equals."
        )
    seeds = [e.subject.seed for e in evaluations if e.subject.seed is not None]
    if len(seeds) > len(set(seeds)):
        yield (
            "Samples of one --seed begin with the same noise, so that models that are alike draw "
            "alike; the intervals take them as independent, and are rather too wide."
        )
    between = "these trained models"
    if drawn := list(_drawn_differently(evaluations)):
        yield f"They were drawn differently: {'; '.join(drawn)}."
        between = "these models as they were sampled, not between the models alone"
    yield (
        f"A real difference is one between {between}; whether it is one between their recipes, "
        "other seeds of the training must show."
    )


def _drawn_differently(evaluations: Sequence[Evaluation]) -> Iterator[str]:
    """What of drawing the samples differs between runs: "steps 10 (A), 25 (B)"."""
    drawings = {
        letter(number): {"weights": "raw" if e.subject.raw else "averaged", **e.subject.settings}
        for number, e in enumerate(evaluations)
        if e.subject.kind == "run"
    }
    for name in dict.fromkeys(key for drawing in drawings.values() for key in drawing):
        values = {run: drawing.get(name) for run, drawing in drawings.items()}
        if len({repr(value) for value in values.values()}) > 1:
            yield f"{name} {', '.join(f'{value} ({run})' for run, value in values.items())}"
