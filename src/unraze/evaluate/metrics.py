"""The figures of a generator from features of real and generated images, their floor, and whether
two of them differ.

A figure says little alone. Its floor is the same figure between two disjoint halves of the real
images, what a perfect generator would get. Halves hold half as many images, and most figures
depend on that number, so that beside the floor stands what the figure itself is at the floor's
counts: those two may be compared.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unraze.errors import InputError
from unraze.evaluate.figures import Figure
from unraze.evaluate.gaussian import FRECHET, FRECHET_INFINITY, frechet, frechet_infinity
from unraze.evaluate.intervals import checked
from unraze.evaluate.kernel import kid
from unraze.evaluate.manifold import density_coverage, precision_recall
from unraze.rng import permutation

__all__ = [
    "Difference",
    "Measure",
    "all_figures",
    "density_coverage",
    "difference",
    "frechet",
    "frechet_infinity",
    "kid",
    "precision_recall",
    "with_floor",
]

Array = np.ndarray[Any, Any]
Measure = Callable[[Array, Array], "Figure | tuple[Figure, ...]"]
"""Any of the figures' functions: (real, generated) -> one figure or several."""

NEED_A_COVARIANCE: tuple[tuple[str, Measure], ...] = (
    (FRECHET, frechet),
    (FRECHET_INFINITY, frechet_infinity),
)
"""Those whose need of images grows with the features."""


@dataclass(frozen=True)
class Difference:
    """How one figure of two runs differs.

    Arguments:
        name: the figure's.
        value: the first's less the second's.
        low, high: a 95 % interval of it.
        z: value over its standard error; beyond ±1.96 where the interval leaves 0 out.
        real: whether the interval leaves 0 out: a difference that sampling does not explain.
    """

    name: str
    value: float
    low: float
    high: float
    z: float
    real: bool


def all_figures(real: Array, generated: Array) -> tuple[Figure, ...]:
    """Every figure of features (N, d) and (N', d), with floors, always in the same order.

    The Fréchet distance as it is and extrapolated, KID, precision, recall, density, coverage. Where
    the images are too few for one of the Fréchet distances, its value is NaN and its note says how
    many it asks for.

    Raises `InputError` for features that are not finite or of different widths, and for fewer
    images of either kind than the others need, which is 7.
    """
    real, generated = checked(real, generated)
    figures: list[Figure] = []
    for name, measure in NEED_A_COVARIANCE:
        try:
            figures += with_floor(measure, real, generated)
        except InputError as error:  # checked above, so what is left is too few
            figures.append(_refused(name, str(error), real, generated))
    for measure in (kid, precision_recall, density_coverage):
        figures += with_floor(measure, real, generated)
    return tuple(figures)


def with_floor(measure: Measure, real: Array, generated: Array) -> tuple[Figure, ...]:
    """The figures of `measure`, each with its floor.

    The floor is measured between two disjoint random sets of as many real images as there are
    generated, or, where the reals do not suffice, halves of them; always the same ones. `alike` is
    the figure at those counts, between the floor's first set and as many of the generated. Where
    the halves are too few to measure, both are NaN and the note says so.

    Raises `InputError` as `measure` does.
    """
    figures = _several(measure(real, generated))
    size = min(len(real) // 2, len(generated))
    order = permutation(0, "evaluate-floor", len(real))
    first, second = real[order[:size]], real[order[size : 2 * size]]
    try:
        floors = _several(measure(first, second))
    except InputError:  # the same features were measured above, so this is for the halves' size
        word = f"no floor: halves of {size} real images are too few"
        return tuple(_noted(figure, word) for figure in figures)
    chosen = permutation(0, "evaluate-floor-generated", len(generated))[:size]
    alike = _several(measure(first, generated[chosen]))
    return tuple(
        replace(figure, floor=floor.value, alike=same.value, halves=size)
        for figure, floor, same in zip(figures, floors, alike, strict=True)
    )


def difference(a: Figure, b: Figure) -> Difference:
    """Whether a figure differs between two runs, a less b, by their intervals.

    low = a - b - √((a - low_a)² + (high_b - b)²), high alike (Newcombe 1998, "Interval estimation
    for the difference between independent proportions", method 10), which for symmetric intervals
    is the z-test. z is 1.96 value over the side of the interval that is towards 0.

    Both figures are taken to be independent, so the runs must have drawn from different noise. Of
    two equal generators measured against the same reals fewer than 5 of 100 pairs are called
    different, for what the reals do to both cancels. Only of two that err in opposite directions
    it does not, and the interval may then be too narrow, by √2 at most.

    Raises `InputError` for different figures or counts, and where an interval is missing.
    """
    if a.name != b.name:
        raise InputError(f"{a.name} and {b.name} are different figures; compare like with like")
    if (a.real, a.generated) != (b.real, b.generated):
        raise InputError(
            f"{a.name}: one is from {a.generated} generated and {a.real} real images, the other "
            f"from {b.generated} and {b.real}; evaluate both runs with the same counts"
        )
    if not np.isfinite([a.value, a.low, a.high, b.value, b.low, b.high]).all():
        raise InputError(
            f"{a.name}: one of the two has no value or no interval, so there is nothing to compare "
            "by; evaluate it again, with more images if its note says that they were too few"
        )
    value = a.value - b.value
    down = float(np.hypot(a.value - a.low, b.high - b.value))
    up = float(np.hypot(a.high - a.value, b.value - b.low))
    low, high = value - down, value + up
    return Difference(
        name=a.name,
        value=value,
        low=low,
        high=high,
        z=_z(value, down if value > 0 else up),
        real=low > 0 or high < 0,
    )


def _z(value: float, half: float) -> float:
    if value == 0:
        return 0.0
    return 1.96 * value / half if half > 0 else float(np.copysign(np.inf, value))


def _refused(name: str, reason: str, real: Array, generated: Array) -> Figure:
    nan = float("nan")
    return Figure(
        name=name,
        value=nan,
        low=nan,
        high=nan,
        floor=nan,
        better="lower",
        generated=len(generated),
        real=len(real),
        note=f"not measured: {reason}",
    )


def _several(measured: Figure | tuple[Figure, ...]) -> tuple[Figure, ...]:
    return measured if isinstance(measured, tuple) else (measured,)


def _noted(figure: Figure, word: str) -> Figure:
    return replace(figure, note="; ".join(filter(None, (figure.note, word))))
