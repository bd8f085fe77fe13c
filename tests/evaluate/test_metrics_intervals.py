"""Intervals of the figures: the jackknife is exact, and 95 % intervals hold 95 % of the time."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from unraze.evaluate import gaussian, manifold
from unraze.evaluate.figures import Figure
from unraze.evaluate.gaussian import FRECHET, FRECHET_INFINITY
from unraze.evaluate.intervals import grouped, jackknife, normal, wilson
from unraze.evaluate.metrics import (
    density_coverage,
    difference,
    frechet,
    frechet_infinity,
    kid,
    precision_recall,
)

SHARES = ("precision", "recall", "coverage")

# the parts they are made of


@settings(deadline=None)
@given(n=st.integers(1, 2000), count=st.integers(1, 60), seed=st.integers(0, 99))
def test_groups_part_the_images_evenly_however_they_are_joined(n, count, seed) -> None:
    x = np.random.default_rng(seed).permutation(n)[:, None].astype(float)
    groups = grouped(x, count)
    assert len(groups.sizes) == min(n, count)
    assert np.array_equal(np.sort(groups.x[:, 0]), np.arange(n))
    assert np.array_equal(
        np.concatenate([groups.part(j) for j in range(len(groups.sizes))]), groups.x
    )
    assert np.array_equal(np.bincount(groups.of), groups.sizes)
    for joined in (1, 2, 3, 4):
        together = np.convolve(groups.sizes, np.ones(joined, dtype=int), mode="full")
        whole = together[joined - 1 : len(groups.sizes)]
        assert len(whole) == 0 or np.ptp(whole) <= 1


def test_the_jackknife_of_a_mean_of_single_images_is_the_textbooks_variance() -> None:
    x = np.random.default_rng(1).standard_normal(30)
    without = (x.sum() - x) / 29
    found = jackknife(float(x.mean()), without, np.ones(30, dtype=int))
    assert found == pytest.approx(x.var(ddof=1) / 30, rel=1e-12)


def test_the_jackknife_of_a_mean_is_unbiased_with_unequal_groups() -> None:
    rng = np.random.default_rng(2)
    found = []
    for _ in range(2000):
        groups = grouped(rng.standard_normal((70, 1)), 48)  # of one or two images
        assert set(groups.sizes) == {1, 2}
        sums = np.add.reduceat(groups.x[:, 0], groups.starts)
        without = (sums.sum() - sums) / (70 - groups.sizes)
        found.append(jackknife(float(groups.x.mean()), without, groups.sizes))
    assert abs(np.mean(found) - 1 / 70) < 4 * stats.sem(found)


def test_two_means_have_welchs_interval() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal(12), 3 * rng.standard_normal(20) + 1
    expected = stats.ttest_ind(x, y, equal_var=False).confidence_interval()
    parts = tuple((float(z.var(ddof=1) / len(z)), len(z) - 1) for z in (x, y))
    assert normal(x.mean() - y.mean(), parts) == pytest.approx(tuple(expected), rel=1e-10)


@pytest.mark.parametrize(("hits", "of"), [(0, 20), (3, 20), (50, 50), (700, 1000)])
def test_a_binomial_share_has_wilsons_interval(hits: int, of: int) -> None:
    share, many = hits / of, 10**9
    expected = stats.binomtest(hits, of).proportion_ci(method="wilson")
    found = wilson(share, ((share * (1 - share) / of, many),), of)
    assert found == pytest.approx(tuple(expected), rel=1e-6, abs=1e-9)


# the figures without each group, taken again from the images


def left_out(module, monkeypatch, measure, x, y) -> list[tuple[np.ndarray, np.ndarray]]:
    """(without, sizes) of every call of the jackknife."""
    calls = []

    def spy(value, without, sizes):
        calls.append((without.copy(), sizes))
        return jackknife(value, without, sizes)

    with monkeypatch.context() as patch:
        patch.setattr(module, "jackknife", spy)
        measure(x, y)
    return calls


def again(figure: Callable, x, y) -> tuple[list[float], list[float]]:
    """A figure without each group of x, and without each group of y."""
    gx, gy = grouped(x), grouped(y)
    return (
        [figure(gx.x[gx.of != j], gy.x) for j in range(len(gx.sizes))],
        [figure(gx.x, gy.x[gy.of != j]) for j in range(len(gy.sizes))],
    )


@pytest.mark.parametrize(("n", "m", "d"), [(40, 100, 3), (100, 60, 5)])
def test_frechet_without_each_group_is_frechet_of_the_other_images(n, m, d, monkeypatch) -> None:
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((n, d)), 1.3 * rng.standard_normal((m, d)) + 0.2
    calls = left_out(gaussian, monkeypatch, frechet, x, y)
    for (without, _), expected in zip(
        calls, again(lambda a, b: frechet(a, b).value, x, y), strict=True
    ):
        assert without == pytest.approx(expected, rel=1e-9)


def share(which: str, k: int) -> Callable:
    def figure(real, generated) -> float:
        centres, points = (generated, real) if which == "recall" else (real, generated)
        own = NearestNeighbors(n_neighbors=k, algorithm="kd_tree").fit(centres).kneighbors()[0]
        inside = cdist(centres, points) <= own[:, -1:]
        match which:
            case "density":
                return inside.sum(axis=0).mean() / k
            case "coverage":
                return inside.any(axis=1).mean()
            case _:
                return inside.any(axis=0).mean()

    return figure


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(("n", "m", "d"), [(40, 100, 3), (150, 60, 8)])
def test_neighbours_without_each_group_are_those_of_the_other_images(
    n, m, d, k, monkeypatch
) -> None:
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((n, d)), 0.8 * rng.standard_normal((m, d)) + 0.3
    check_neighbours(x, y, k, monkeypatch)


def test_neighbours_are_right_where_a_group_holds_all_of_them(monkeypatch) -> None:
    # the images of a group lie together, so that few of another are among the nearest
    rng = np.random.default_rng(6)
    x, y = rng.standard_normal((1000, 2)), 0.3 * rng.standard_normal((100, 2))
    groups = grouped(np.arange(1000.0)[:, None])
    places = rng.standard_normal((48, 2))[groups.of[np.argsort(groups.x[:, 0])]]
    x = places + 0.01 * x
    assert len(np.unique(grouped(places).x[grouped(places).of == 7], axis=0)) == 1
    check_neighbours(x, y, 5, monkeypatch)


def check_neighbours(x, y, k, monkeypatch) -> None:
    for measure, names in (
        (precision_recall, ("precision", "recall")),
        (density_coverage, ("density", "coverage")),
    ):
        calls = left_out(manifold, monkeypatch, lambda a, b, f=measure: f(a, b, k=k), x, y)
        for first, name in zip((0, 2), names, strict=True):
            # recall's balls are the generated's, whose part comes first
            pair = calls[first : first + 2][:: -1 if name == "recall" else 1]
            for (without, _), expected in zip(pair, again(share(name, k), x, y), strict=True):
                assert without == pytest.approx(expected, rel=1e-12), name


# coverage


def gaussian_kid(d: int, scale: float, shift: float) -> float:
    """KID of N(0, 1) and N(shift e₁, scale²) in d dimensions, by the moments of (x·y/d + 1)³."""
    eye, m = np.eye(d), shift * np.eye(d)[0]
    second = np.outer(m, m) + (scale**2 - 1) * eye
    third = np.einsum("i,j,k->ijk", m, m, m)
    for axes in ("i,jk->ijk", "j,ik->ijk", "k,ij->ijk"):
        third = third + scale**2 * np.einsum(axes, m, eye)
    return float(3 * (m @ m) / d + 3 * (second**2).sum() / d**2 + (third**2).sum() / d**3)


def gaussians(rng, n: int, m: int, d: int, scale: float, shift: float):
    x, y = rng.standard_normal((n, d)), scale * rng.standard_normal((m, d))
    return x, y + shift * np.eye(d)[0]


def simulated(measure: Callable, draw: Callable, times: int) -> dict[str, list[Figure]]:
    found: dict[str, list[Figure]] = {}
    for _ in range(times):
        measured = measure(*draw())
        for one in measured if isinstance(measured, tuple) else (measured,):
            found.setdefault(one.name, []).append(one)
    return found


def held(figures: list[Figure], target: float) -> float:
    return float(np.mean([one.low <= target <= one.high for one in figures]))


def at_least(share: float, times: int) -> float:
    """What a coverage of `share` falls below once in a thousand such simulations."""
    return float(stats.binom.ppf(1e-3, times, share)) / times


def width(figures: list[Figure]) -> float:
    """The intervals' mean half-width over 1.96 true standard deviations."""
    halves = [(one.high - one.low) / 2 for one in figures]
    return float(np.mean(halves) / 1.96 / np.std([one.value for one in figures]))


def mean(figures: list[Figure]) -> float:
    return float(np.mean([one.value for one in figures]))


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1.3, 0.4)])
def test_intervals_hold_their_targets(scale: float, shift: float) -> None:
    rng = np.random.default_rng(10)
    times, enough = 60, at_least(0.95, 60)

    def draw():
        return gaussians(rng, 120, 90, 3, scale, shift)

    fd = simulated(frechet, draw, times)[FRECHET]
    assert held(fd, mean(fd)) >= enough
    limit = simulated(frechet_infinity, draw, 25)[FRECHET_INFINITY]
    assert held(limit, 3 * (scale - 1) ** 2 + shift**2) >= at_least(0.95, 25)
    for measure in (precision_recall, density_coverage):
        for figures in simulated(measure, draw, times).values():
            assert held(figures, mean(figures)) >= enough


@pytest.mark.parametrize("wide", [1.0, 1.5])
def test_kids_interval_holds_the_populations_value(wide: float) -> None:
    # uniform features of one dimension: no long tails, and moments m₁ = 0, m₂ = wide²/3, m₃ = 0
    rng = np.random.default_rng(11)
    times, truth = 300, 3 * ((wide**2 - 1) / 3) ** 2

    def draw():
        return rng.uniform(-1, 1, (60, 1)), wide * rng.uniform(-1, 1, (90, 1))

    figures = simulated(kid, draw, times)["KID"]
    assert held(figures, truth) >= at_least(0.94, times)
    assert 0.9 < width(figures) < 1.6


@pytest.mark.parametrize("scale", [1.0, 1.3])
def test_equal_runs_against_the_same_reals_are_seldom_called_different(scale: float) -> None:
    rng = np.random.default_rng(12)
    times, called = 60, {}
    for _ in range(times):
        x, y, z = (s * rng.standard_normal((100, 3)) for s in (1, scale, scale))
        for measure in (frechet, kid, precision_recall, density_coverage):
            one, other = (np.atleast_1d(np.array(measure(x, w), dtype=object)) for w in (y, z))
            for a, b in zip(one, other, strict=True):
                called[a.name] = called.get(a.name, 0) + difference(a, b).real
    assert max(called.values()) <= stats.binom.ppf(0.999, times, 0.05), called


def test_a_difference_that_is_there_is_found() -> None:
    rng = np.random.default_rng(13)
    x, good, bad = (s * rng.standard_normal((400, 3)) for s in (1, 1.05, 2))
    for measure in (frechet, frechet_infinity, kid):
        found = difference(measure(x, bad), measure(x, good))
        assert found.real
        assert found.z > 1.96
    for a, b in zip(precision_recall(x, bad), precision_recall(x, good), strict=True):
        assert difference(a, b).real == (a.name == "precision")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "m", "d", "scale", "shift"),
    [
        (200, 200, 4, 1, 0),
        (200, 400, 4, 0.8, 0.3),
        (300, 300, 8, 1.2, 0.3),
        (100, 100, 16, 0.9, 0.2),
    ],
)
def test_intervals_hold_their_targets_at_length(n, m, d, scale, shift) -> None:
    rng = np.random.default_rng([20, n, m, d])
    times, enough = 300, at_least(0.95, 300)

    def draw():
        return gaussians(rng, n, m, d, scale, shift)

    fd = simulated(frechet, draw, times)[FRECHET]
    assert held(fd, mean(fd)) >= enough
    assert 0.9 < width(fd) < 1.6
    limit = simulated(frechet_infinity, draw, 150)[FRECHET_INFINITY]
    truth = d * (scale - 1) ** 2 + shift**2
    assert held(limit, truth) >= at_least(0.95, 150)
    assert 0.9 < width(limit) < 1.7
    for measure in (precision_recall, density_coverage):
        for name, figures in simulated(measure, draw, times).items():
            assert held(figures, mean(figures)) >= enough
            assert 0.9 < width(figures) < (5 if name in SHARES else 1.7), name


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "shift"), [(0.8, 0.3), (1.3, 0.0), (1.0, 0.0)])
@pytest.mark.parametrize(("n", "share"), [(200, 0.89), (1000, 0.94)])
def test_kids_interval_with_long_tails_is_as_the_docstring_says(n, share, scale, shift) -> None:
    rng = np.random.default_rng([21, n])
    times = 400

    def draw():
        return gaussians(rng, n, n, 4, scale, shift)

    figures = simulated(kid, draw, times)["KID"]
    truth = gaussian_kid(4, scale, shift)
    assert abs(mean(figures) - truth) < 4 * stats.sem([one.value for one in figures])
    assert held(figures, truth) >= at_least(share, times)
