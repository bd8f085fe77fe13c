"""Precision and recall, density and coverage: whose images lie within reach of the others'.

The ball of an image x_i reaches to its k-th nearest among its own kind, at radius r_k(x_i).

    precision = mean_j 1[some i: |y_j - x_i| ≤ r_k(x_i)]        recall: real and generated exchanged
    density   = mean_j #{i: |y_j - x_i| ≤ r_k(x_i)}/k
    coverage  = mean_i 1[some j: |y_j - x_i| ≤ r_k(x_i)]        x real, y generated

(Kynkäänniemi et al. 2019, arXiv:1904.06991, eq. 1-2; Naeem et al. 2020, arXiv:2002.09797, eq.
3-5). Neighbours are exact, distances in float64 by |x|² + |y|² - 2 x·y about the reals' mean.
What is nearer than 1e-6 of an image's norm counts as the same place, and a distance equal to a
radius as within it: a copy is always within reach.

The jackknife leaves out groups of both kinds. Without a group of the balls' own kind its balls are
gone, and a ball with j of its k nearest in that group reaches further, to the next that are left:
these radii are kept for the few groups that matter to each ball, so one pass over the distances
gives the figures without each group, exactly.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from unraze.errors import InputError
from unraze.evaluate.figures import Figure
from unraze.evaluate.intervals import (
    Groups,
    checked,
    grouped,
    jackknife,
    normal,
    rows_at_once,
    wilson,
)

__all__ = ["density_coverage", "precision_recall"]

Array = np.ndarray[Any, Any]
Parts = tuple[tuple[float, int], ...]

SAME, ROUNDING = 1e-6, 1e-9
"""Relative distance of one place to itself; relative rounding of a squared distance."""


def precision_recall(real: Array, generated: Array, *, k: int = 3) -> tuple[Figure, Figure]:
    """(precision, recall) of features (N, d) and (N', d), shares from 0 to 1.

    Both depend on both counts: of more images the balls are more and smaller. Precision averages
    over the generated, so that their count moves it little and the reals' does; recall the other
    way round. Compare them at equal counts only; a note says where the two differ. The intervals
    (Wilson's, at the count that the jackknife's variance is worth) are for the figures' means at
    these counts, and hold them more often than in 95 of 100: they are 1.5 to 2 times too wide, and
    up to 4 times for shares near 1.

    Raises `InputError` for features that are not finite or of different widths, for k below 1,
    and for too few images for k neighbours beside a left-out group: k + 2 suffice up to 48.
    """
    x, y = _prepared(real, generated, k)
    figures = []
    for name, own, other in (("precision", x, y), ("recall", y, x)):
        within, without = _within(_balls(own, k), other)
        parts = (
            _part(float((within > 0).mean()), (without > 0).mean(axis=0), own),
            _part(float((within > 0).mean()), _left_out(within > 0, other), other),
        )
        value = float((within > 0).mean())
        figures.append(_share(name, value, parts, x, y, of=len(other.x)))
    return figures[0], figures[1]


def density_coverage(real: Array, generated: Array, *, k: int = 5) -> tuple[Figure, Figure]:
    """(density, coverage) of features (N, d) and (N', d).

    Density starts at 0, is 1 for equal distributions, and above 1 where samples crowd among the
    reals; the generated count does not move it. Coverage is a share; it rises with the generated
    count, to 1, and falls with the reals': compare it at equal counts only; a note says where the
    two differ. For equal distributions its mean is 1 - Π_{i<k} (N-1-i)/(N+N'-1-i), near 1 - 2⁻ᵏ
    at N = N'. The intervals (normal for density, Wilson's for coverage) are for the figures' means
    at these counts, and hold them at least in 95 of 100: density's are up to 1.5 times too wide,
    coverage's 1.5 to 4 times.

    Raises `InputError` for features that are not finite or of different widths, for k below 1,
    and for too few images for k neighbours beside a left-out group: k + 2 suffice up to 48.
    """
    x, y = _prepared(real, generated, k)
    balls = _balls(x, k)
    within, without = _within(balls, y)
    value = float(within.mean() / k)
    parts = (
        _part(value, without.mean(axis=0) / k, x),
        _part(value, _left_out(within / k, y), y),
    )
    low, high = normal(value, parts)
    density = _figure("density", value, max(0.0, low), high, x, y)
    covered, without_real, without_generated = _covered(balls, y)
    parts = (_part(covered, without_real, x), _part(covered, without_generated, y))
    return density, _share("coverage", covered, parts, x, y, of=len(x.x))


@dataclass(frozen=True)
class _Balls:
    """The balls of one sample, with squared radii a little enlarged against rounding.

    Arguments:
        groups: the sample, N images in G groups.
        radius: (N,), to the k-th nearest.
        group: int64 (N, k), the groups of the k nearest.
        beyond: (N, k), the radius without that group; -inf where the group has been named before
            or is the ball's own.
    """

    groups: Groups
    radius: Array
    group: Array
    beyond: Array


def _balls(groups: Groups, k: int) -> _Balls:
    """Every image's ball, exact with and without each group."""
    n = len(groups.x)
    radius, group, beyond = np.empty(n), np.empty((n, k), dtype=np.int64), np.empty((n, k))
    for rows, squared in _distances(groups.x, groups.x):
        index = np.arange(rows.start, rows.stop)
        squared[index - rows.start, index] = np.inf
        radius[rows], group[rows], beyond[rows] = _reach(squared, index, groups.of, k)
    slack = SAME**2 * (groups.x**2).sum(axis=1)
    radius = radius * (1 + ROUNDING) + slack
    return _Balls(groups, radius, group, beyond * (1 + ROUNDING) + slack[:, None])


def _reach(squared: Array, index: Array, of: Array, k: int) -> tuple[Array, Array, Array]:
    """radius, group and beyond of the images `index` from their squared distances (B, N)."""
    n = squared.shape[1]
    kept = min(n - 1, 2 * k + 6)
    nearest = np.argpartition(squared, kept - 1, axis=1)[:, :kept]
    there = np.take_along_axis(squared, nearest, axis=1)
    order = np.argsort(there, axis=1, kind="stable")
    there = np.take_along_axis(there, order, axis=1)
    groups = of[np.take_along_axis(nearest, order, axis=1)]
    beyond = np.full((len(index), k), -np.inf)
    for slot in range(k):
        named = groups[:, slot]
        others = (groups != named[:, None]).cumsum(axis=1)
        reach = np.take_along_axis(there, (others == k).argmax(axis=1)[:, None], axis=1)[:, 0]
        for row in np.flatnonzero(others[:, -1] < k):  # most of those kept are of one group
            reach[row] = np.partition(squared[row, of != named[row]], k - 1)[k - 1]
        before = (groups[:, :slot] == named[:, None]).any(axis=1)
        beyond[:, slot] = np.where(before | (named == of[index]), -np.inf, reach)
    return there[:, k - 1], groups[:, :k], beyond


def _within(balls: _Balls, points: Groups) -> tuple[Array, Array]:
    """In how many balls each point lies: (M,), and (M, G) without each group of balls."""
    groups = balls.groups
    within = np.empty(len(points.x), dtype=np.int64)
    without = np.empty((len(points.x), len(groups.sizes)), dtype=np.int32)
    furthest = np.maximum(balls.radius, balls.beyond.max(axis=1))
    for rows, squared in _distances(points.x, groups.x):
        inside = squared <= balls.radius
        by_group = np.add.reduceat(inside, groups.starts, axis=1, dtype=np.int32)
        within[rows] = by_group.sum(axis=1)
        left = within[rows, None] - by_group
        row, ball = np.nonzero((squared <= furthest) & ~inside)
        distance = squared[row, ball]
        for slot in range(balls.group.shape[1]):
            reached = distance <= balls.beyond[ball, slot]
            np.add.at(left, (row[reached], balls.group[ball[reached], slot]), 1)
        without[rows] = left
    return within, without


def _covered(balls: _Balls, points: Groups) -> tuple[float, Array, Array]:
    """The share of balls with a point inside: whole, without each ball group, each point group."""
    groups = balls.groups
    n, own = len(groups.x), groups.of
    nearest = np.empty((n, len(points.sizes)))
    for rows, squared in _distances(groups.x, points.x):
        nearest[rows] = np.minimum.reduceat(squared, points.starts, axis=1)
    reached = nearest <= balls.radius[:, None]
    from_groups = reached.sum(axis=1)
    without_points = ((from_groups[:, None] - reached) > 0).mean(axis=0)
    radii = np.repeat(balls.radius[:, None], len(groups.sizes), axis=1)
    for slot in range(balls.group.shape[1]):
        row = np.flatnonzero(balls.beyond[:, slot] > -np.inf)
        radii[row, balls.group[row, slot]] = balls.beyond[row, slot]
    inside = nearest.min(axis=1)[:, None] <= radii
    inside[np.arange(n), own] = False
    without_balls = inside.sum(axis=0) / (n - groups.sizes)
    return float((from_groups > 0).mean()), without_balls, without_points


def _distances(points: Array, centres: Array) -> Iterator[tuple[slice, Array]]:
    """Rows of the points, and their squared distances (B, N) to all centres, a block at a time."""
    to_centres = (centres**2).sum(axis=1)
    step = rows_at_once(len(centres))
    for first in range(0, len(points), step):
        rows = slice(first, min(first + step, len(points)))
        squared = points[rows] @ centres.T
        squared *= -2
        squared += to_centres
        squared += (points[rows] ** 2).sum(axis=1)[:, None]
        yield rows, np.maximum(squared, 0, out=squared)


def _prepared(real: Array, generated: Array, k: int) -> tuple[Groups, Groups]:
    if k < 1:
        raise InputError(f"k = {k}: give 1 or more neighbours")
    real, generated = checked(real, generated)
    origin = real.mean(axis=0)
    x, y = grouped(real - origin), grouped(generated - origin)
    for name, groups in (("real", x), ("generated", y)):
        most = len(groups.x) - int(groups.sizes.max()) - 1
        if most < k:
            raise InputError(
                f"{name}: {len(groups.x)} images are too few for k = {k} neighbours; "
                f"give at least {k + 2} images, or a smaller k"
            )
    return x, y


def _part(value: float, without: Array, groups: Groups) -> tuple[float, int]:
    return jackknife(value, without, groups.sizes), len(groups.sizes) - 1


def _left_out(values: Array, groups: Groups) -> Array:
    """The mean (G,) of values (N,) without each group."""
    sums = np.add.reduceat(values, groups.starts, dtype=np.float64)
    return np.asarray((sums.sum() - sums) / (len(values) - groups.sizes))


def _share(name: str, value: float, parts: Parts, x: Groups, y: Groups, *, of: int) -> Figure:
    low, high = wilson(value, parts, of)
    return _figure(name, value, low, high, x, y)


def _figure(name: str, value: float, low: float, high: float, x: Groups, y: Groups) -> Figure:
    return Figure(
        name=name,
        value=value,
        low=low,
        high=high,
        floor=float("nan"),
        better="higher",
        generated=len(y.x),
        real=len(x.x),
        note="" if len(x.x) == len(y.x) else "unequal counts: it depends on both",
    )
