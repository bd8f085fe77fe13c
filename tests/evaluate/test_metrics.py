"""The figures against closed forms, other libraries on the same features, and themselves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import linalg, stats
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors

from unraze.errors import InputError
from unraze.evaluate import intervals
from unraze.evaluate.figures import Figure
from unraze.evaluate.gaussian import FRECHET, FRECHET_INFINITY
from unraze.evaluate.metrics import (
    all_figures,
    density_coverage,
    difference,
    frechet,
    frechet_infinity,
    kid,
    precision_recall,
    with_floor,
)

NAMES = (FRECHET, FRECHET_INFINITY, "KID", "precision", "recall", "density", "coverage")


def pair(seed: int, n: int = 90, m: int = 70, d: int = 5, *, shift: float = 0.3):
    """Correlated features of two kinds: (n, d) and (m, d)."""
    rng = np.random.default_rng(seed)
    mix, other = rng.standard_normal((2, d, d)) / d**0.5
    x = rng.standard_normal((n, d)) @ (np.eye(d) + mix)
    return x, rng.standard_normal((m, d)) @ (np.eye(d) + mix + 0.3 * other) + shift


def values(x, y) -> dict[str, float]:
    figures = (frechet(x, y), kid(x, y), *precision_recall(x, y), *density_coverage(x, y))
    return {figure.name: figure.value for figure in figures}


# Fréchet distance


def test_in_one_dimension_it_is_the_distance_of_means_and_deviations() -> None:
    x, y = pair(1, d=1)
    expected = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert frechet(x, y).value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0])
def test_a_shifted_and_scaled_copy_has_the_closed_form(scale: float) -> None:
    x, _ = pair(2)
    shift = np.arange(5.0)
    expected = ((x.mean(0) * (1 - scale) - shift) ** 2).sum()
    expected += (1 - scale) ** 2 * np.trace(np.cov(x.T))
    assert frechet(x, scale * x + shift).value == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("d", [2, 5, 16])
def test_frechet_is_that_of_scipys_matrix_root(d: int) -> None:
    x, y = pair(3, 40 * d, 30 * d, d)
    a, b = np.cov(x.T), np.cov(y.T)
    root = linalg.sqrtm(a @ b)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * root.real)
    assert frechet(x, y).value == pytest.approx(expected, rel=1e-9)


def test_dependent_and_constant_features_are_no_trouble() -> None:
    x, y = pair(4)
    expected = 2 * frechet(x, y).value
    twice = [np.concatenate([z, z, np.ones((len(z), 1))], axis=1) for z in (x, y)]
    assert frechet(*twice).value == pytest.approx(expected, rel=1e-9)


def test_equal_sets_are_at_0_and_a_far_origin_costs_no_digits() -> None:
    x, y = pair(5)
    assert abs(frechet(x, x).value) < 1e-12
    far = frechet(x + 2.0**20, y + 2.0**20).value
    assert far == pytest.approx(frechet(x, y).value, rel=1e-8)


def test_frechet_between_equal_distributions_is_what_the_first_order_says() -> None:
    rng = np.random.default_rng(6)
    spectrum, n, m = np.array([4.0, 2, 1, 1, 0.5, 0.1]), 300, 600
    pairs = np.divide.outer(1, 1 / spectrum[:, None] + 1 / spectrum).sum()
    expected = (1 / n + 1 / m) * (pairs / 2 + 1.25 * spectrum.sum())
    found = [
        frechet(*(rng.standard_normal((c, 6)) * spectrum**0.5 for c in (n, m))).value
        for _ in range(100)
    ]
    assert abs(np.mean(found) - expected) < 4 * stats.sem(found) + 0.01 * expected


@pytest.mark.parametrize(("n", "d"), [(64, 16), (100, 16)])
def test_the_extrapolation_has_next_to_no_bias(n: int, d: int) -> None:
    rng = np.random.default_rng(7)
    found, plain = [], []
    for _ in range(40):
        x, y = rng.standard_normal((2, n, d))
        found.append(frechet_infinity(x, 1.2 * y).value / d)
        plain.append(frechet(x, 1.2 * y).value / d)
    truth = 0.2**2
    assert abs(np.mean(found) - truth) < 0.01 + 3 * stats.sem(found)
    assert np.mean(plain) > truth + 0.05 + 3 * stats.sem(plain)


def test_the_extrapolation_is_a_line_through_the_sizes() -> None:
    # sizes that groups divide: 96 images in 48 groups, so 2 x 48, 3 x 32 and 4 x 24 images
    x, y = pair(8, 96, 96, 3)
    xs, ys = (intervals.grouped(z).x for z in (x, y))
    means = [
        np.mean(
            [frechet(a, b).value for a, b in zip(np.split(xs, k), np.split(ys, k), strict=True)]
        )
        for k in (1, 2, 3, 4)
    ]
    _, at_0 = np.polyfit([1, 2, 3, 4], means, 1)
    figure = frechet_infinity(x, y)
    assert figure.value == pytest.approx(at_0, rel=1e-9)
    assert figure.note == "extrapolated to N = ∞ from N = 96 … 24"


# KID


def test_kid_is_that_of_scikit_learns_kernel() -> None:
    x, y = pair(10)
    n, m = len(x), len(y)
    xx, yy, xy = (polynomial_kernel(a, b, degree=3) for a, b in ((x, x), (y, y), (x, y)))
    expected = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    assert kid(x, y).value == pytest.approx(expected - 2 * xy.mean(), rel=1e-10)


def test_kid_of_two_points_is_the_kernels_difference() -> None:
    a, b = np.array([1.0, 2, -1]), np.array([0.5, 0, 3])
    figure = kid(np.tile(a, (6, 1)), np.tile(b, (8, 1)))
    k_aa, k_bb, k_ab = ((p @ q / 3 + 1) ** 3 for p, q in ((a, a), (b, b), (a, b)))
    assert figure.value == pytest.approx(k_aa + k_bb - 2 * k_ab, rel=1e-12)
    assert figure.high - figure.low < 1e-6


def population_kid(scale: float, shift: float) -> float:
    """KID of N(0, 1) and N(shift, scale²): of (xy + 1)³ by its moments."""
    moments = [shift, scale**2 + shift**2 - 1, shift**3 + 3 * shift * scale**2]
    return 3 * moments[0] ** 2 + 3 * moments[1] ** 2 + moments[2] ** 2


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.8, 0.3)])
@pytest.mark.parametrize(("n", "m"), [(8, 8), (20, 60)])
def test_kid_is_unbiased_at_any_counts(scale: float, shift: float, n: int, m: int) -> None:
    rng = np.random.default_rng(11)
    found = [
        kid(rng.standard_normal((n, 1)), scale * rng.standard_normal((m, 1)) + shift).value
        for _ in range(1500)
    ]
    assert abs(np.mean(found) - population_kid(scale, shift)) < 4 * stats.sem(found)


# precision, recall, density, coverage


def by_scikit_learn(real, generated, k: int) -> dict[str, float]:
    def radii(z):
        return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(z).kneighbors()[0][:, -1]

    apart = np.linalg.norm(real[:, None] - generated, axis=2)
    of_real, of_generated = apart <= radii(real)[:, None], apart <= radii(generated)
    return {
        "precision": of_real.any(axis=0).mean(),
        "recall": of_generated.any(axis=1).mean(),
        "density": of_real.sum(axis=0).mean() / k,
        "coverage": of_real.any(axis=1).mean(),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("d", [1, 5, 40])
def test_neighbour_figures_are_those_of_scikit_learns_neighbours(k: int, d: int) -> None:
    x, y = pair(20 + d, 130, 90, d)
    expected = by_scikit_learn(x, y, k)
    for figure in (*precision_recall(x, y, k=k), *density_coverage(x, y, k=k)):
        assert figure.value == pytest.approx(expected[figure.name], rel=1e-12)


def test_neighbours_on_a_line_by_hand() -> None:
    real, generated = np.arange(8.0)[:, None], np.array([[-0.5], [0.5], [1.5], [20], [21], [22]])
    precision, recall = precision_recall(real, generated, k=1)
    density, coverage = density_coverage(real, generated, k=1)
    assert precision.value == 3 / 6
    # radii of the generated are 1: of the reals, 0 1 2 are within reach
    assert recall.value == 3 / 8
    # each ball reaches 1: -0.5 is in that of 0, 0.5 in those of 0 and 1, 1.5 in those of 1 and 2
    assert density.value == 5 / 6
    assert coverage.value == 3 / 8


def test_a_copy_has_everything_and_a_stranger_nothing() -> None:
    x, _ = pair(30)
    shuffled = x[np.random.default_rng(0).permutation(len(x))] + 0.0
    for figure in (*precision_recall(x, shuffled), density_coverage(x, shuffled)[1]):
        assert figure.value == 1 == figure.high
        assert 0.8 < figure.low < 1
    for figure in (*precision_recall(x, x + 1000), *density_coverage(x, x + 1000)):
        assert figure.value == 0 == figure.low
    assert precision_recall(x, x + 1000)[0].high > 0.01


def test_one_repeated_image_has_precision_without_recall_or_coverage() -> None:
    x, _ = pair(31, 200)
    one = np.tile(x[:1], (200, 1))
    precision, recall = precision_recall(x, one)
    assert precision.value == 1
    assert recall.value == 1 / 200
    assert density_coverage(x, one)[1].value < 0.1


@pytest.mark.parametrize(("n", "m", "k"), [(40, 40, 5), (60, 30, 3)])
def test_equal_distributions_have_density_1_and_the_coverage_of_the_closed_form(n, m, k) -> None:
    rng = np.random.default_rng(32)
    found = np.array(
        [
            [f.value for f in density_coverage(*(rng.random((c, 2)) for c in (n, m)), k=k)]
            for _ in range(150)
        ]
    )
    missed = np.prod([(n - 1 - i) / (n + m - 1 - i) for i in range(k)])
    for column, expected in zip(found.T, (1, 1 - missed), strict=True):
        assert abs(column.mean() - expected) < 4 * stats.sem(column)


# an independent library of figures


class Features(torch.nn.Module):
    """The network whose features are its input."""

    num_features = 6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_frechet_and_kid_are_those_of_torchmetrics() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    x, y = pair(40, 150, 150, 6)
    fid = FrechetInceptionDistance(feature=Features())
    with pytest.warns(UserWarning, match="large memory footprint"):
        mmd = KernelInceptionDistance(feature=Features(), subsets=1, subset_size=150)
    for metric in (fid, mmd):
        metric.update(torch.from_numpy(x), real=True)
        metric.update(torch.from_numpy(y), real=False)
    assert frechet(x, y).value == pytest.approx(float(fid.compute()), rel=1e-9)
    assert kid(x, y).value == pytest.approx(float(mmd.compute()[0]), rel=1e-9)


# what must not matter


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.01, 100), far=st.floats(-100, 100))
def test_figures_do_not_depend_on_order_axes_origin_or_unit(seed, scale, far) -> None:
    x, y = pair(seed)
    rng = np.random.default_rng(seed)
    expected = values(x, y)
    shuffled = values(rng.permutation(x), rng.permutation(y))
    assert shuffled == pytest.approx(expected, rel=1e-9, abs=1e-9)
    turn = stats.ortho_group(5, seed=rng).rvs()
    turned = values(x @ turn, y @ turn)
    assert turned == pytest.approx(expected, rel=1e-9, abs=1e-9)
    moved = values((x + far) * scale, (y + far) * scale)
    del moved["KID"]  # knows its origin and unit
    moved[FRECHET] /= scale**2
    assert moved == pytest.approx({name: expected[name] for name in moved}, rel=1e-7, abs=1e-9)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_distances_are_symmetric_and_precision_is_recall_seen_from_the_other_side(seed) -> None:
    x, y = pair(seed)
    assert frechet(x, y).value == pytest.approx(frechet(y, x).value, rel=1e-9)
    assert frechet_infinity(x, y).value == pytest.approx(frechet_infinity(y, x).value, rel=1e-7)
    assert kid(x, y).value == pytest.approx(kid(y, x).value, rel=1e-9, abs=1e-12)
    precision, recall = precision_recall(x, y)
    back = precision_recall(y, x)
    assert (precision.value, recall.value) == (back[1].value, back[0].value)


@pytest.mark.parametrize("entries", [1, 700, 12_345])
def test_figures_do_not_depend_on_the_size_of_the_blocks(entries: int, monkeypatch) -> None:
    x, y = pair(50, 130, 90)
    whole = all_figures(x, y)
    monkeypatch.setattr(intervals, "ENTRIES", entries)
    assert intervals.rows_at_once(130) <= 94  # several blocks
    for one, other in zip(whole, all_figures(x, y), strict=True):
        assert (one.name, one.note) == (other.name, other.note)
        for field in ("value", "low", "high", "floor"):
            assert getattr(one, field) == pytest.approx(getattr(other, field), rel=1e-9, abs=1e-12)


def test_float32_features_are_computed_with_in_float64() -> None:
    x, y = (z.astype(np.float32) for z in pair(51))
    assert values(x, y) == values(x.astype(np.float64), y.astype(np.float64))


# floors


def test_the_floor_is_the_figure_between_halves_of_the_reals() -> None:
    x, y = pair(60, 400, 300, 4)
    (figure,) = with_floor(frechet, x, y)
    assert figure.value == frechet(x, y).value
    # twice the figure's own bias at these counts, and nothing else
    assert 0 < figure.floor < 0.2 < figure.value
    assert figure.note == "unequal counts: it depends on both"
    assert figure.halves == 200
    assert with_floor(frechet, x, y) == (figure,)  # always the same halves


def test_the_halves_are_disjoint_equal_and_real() -> None:
    x, y = pair(61, 41, 100, 4)
    seen = []

    def measure(real, generated):
        seen.append((real, generated))
        return kid(real, generated)

    (figure,) = with_floor(measure, x, y)
    (_, (first, second), (again, some)) = seen
    assert (figure.floor, figure.alike) == (kid(first, second).value, kid(first, some).value)
    rows = np.concatenate([first, second])
    assert len(first) == len(second) == len(some) == 20
    assert len(np.unique(rows, axis=0)) == 40
    assert (rows[:, None] == x).all(axis=2).any(axis=1).all()
    assert np.array_equal(first, again)
    assert (some[:, None] == y).all(axis=2).any(axis=1).all()


def test_a_floor_takes_no_more_images_than_were_generated() -> None:
    x, y = pair(62, 400, 50, 4)
    (figure,) = with_floor(kid, x, y)
    assert figure.halves == 50


def test_halves_that_are_too_few_leave_the_figure_without_a_floor() -> None:
    x, y = pair(63, 30, 30, 5)
    (figure,) = with_floor(frechet, x, y)
    assert np.isfinite(figure.value)
    assert np.isnan([figure.floor, figure.alike]).all()
    assert figure.halves == 0
    assert figure.note == "no floor: halves of 15 real images are too few"


# all figures


def test_all_figures_are_the_figures_with_their_floors() -> None:
    x, y = pair(70, 120, 110, 4)
    figures = all_figures(x, y)
    assert tuple(figure.name for figure in figures) == NAMES
    expected = {**values(x, y), FRECHET_INFINITY: frechet_infinity(x, y).value}
    assert {figure.name: figure.value for figure in figures} == expected
    for figure in figures:
        assert (figure.real, figure.generated) == (120, 110)
        assert figure.low <= figure.value <= figure.high
        assert np.isfinite(figure.floor)
        assert figure.halves == 60
        assert np.isfinite(figure.alike)
        lower_is_better = figure.name in NAMES[:3]
        assert figure.better == ("lower" if lower_is_better else "higher")


def test_a_distance_that_the_images_do_not_bear_is_named_and_the_rest_measured() -> None:
    x, y = pair(71, 60, 60, 20)
    plain, infinity, *others = all_figures(x, y)
    assert np.isnan([plain.value, plain.low, plain.high, plain.floor]).all()
    assert plain.note.startswith("not measured: real: 60 images are too few for a Fréchet distance")
    assert "asks for 4 × 20 = 80" in plain.note
    assert "extrapolated to N = ∞ (from 42 images on)" in plain.note
    assert "extrapolated" in infinity.note
    assert np.isfinite([figure.value for figure in (infinity, *others)]).all()
    with pytest.raises(InputError, match="no value or no interval"):
        difference(plain, plain)


def test_a_tiny_evaluation_still_has_what_it_can_have() -> None:
    x, y = pair(72, 7, 7, 20)
    figures = all_figures(x, y)
    assert tuple(figure.name for figure in figures) == NAMES
    assert np.isnan([figure.value for figure in figures[:2]]).all()
    assert np.isfinite([figure.value for figure in figures[2:]]).all()
    with pytest.raises(InputError, match=r"6 images are too few for k = 5.*at least 7"):
        all_figures(x[:6], y)


# what is refused

EVERY = (frechet, frechet_infinity, kid, precision_recall, density_coverage, all_figures)


@pytest.mark.parametrize("measure", EVERY)
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused_by_image(measure, which, bad) -> None:
    sets = list(pair(80))
    sets[which] = sets[which].copy()
    sets[which][[7, 9], 2] = bad
    name = ("real", "generated")[which]
    with pytest.raises(InputError, match=f"^{name}: 2 of .* first is image 7; .*") as caught:
        measure(*sets)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("measure", EVERY)
def test_other_widths_and_shapes_are_refused(measure) -> None:
    x, y = pair(81)
    with pytest.raises(InputError, match="real has 5 features an image, generated 4"):
        measure(x, y[:, :4])
    with pytest.raises(InputError, match=r"generated: features of shape \(70,\)"):
        measure(x, y[:, 0])
    with pytest.raises(InputError, match=r"real: features of shape \(0, 5\)"):
        measure(x[:0], y)


@pytest.mark.parametrize(
    ("measure", "enough"),
    [(frechet, 20), (frechet_infinity, 12), (kid, 4), (precision_recall, 5), (density_coverage, 7)],
)
def test_too_few_images_are_refused_and_the_fewest_do(measure, enough: int) -> None:
    x, y = pair(82)
    measure(x[:enough], y[:enough])
    for name, real, generated in (
        ("real", x[: enough - 1], y),
        ("generated", x, y[: enough - 1]),
    ):
        with pytest.raises(InputError, match=f"^{name}: {enough - 1} images are too few"):
            measure(real, generated)


@pytest.mark.parametrize("measure", [precision_recall, density_coverage])
def test_no_neighbours_are_refused(measure) -> None:
    with pytest.raises(InputError, match="k = 0"):
        measure(*pair(83), k=0)


# differences


def figure(value: float, low: float, high: float, **fields) -> Figure:
    whole = Figure("KID", value, low, high, float("nan"), "lower", generated=10, real=20)
    return replace(whole, **fields)


def test_with_symmetric_intervals_a_difference_is_the_z_test() -> None:
    found = difference(
        figure(5, 5 - 1.96 * 3, 5 + 1.96 * 3), figure(-7, -7 - 1.96 * 4, 1.96 * 4 - 7)
    )
    assert found.value == 12
    assert found.z == pytest.approx(12 / 5)
    assert (found.low, found.high) == pytest.approx((12 - 1.96 * 5, 12 + 1.96 * 5))
    assert found.real


def test_a_difference_of_shares_is_newcombes_example() -> None:
    # Newcombe 1998, table II, (a): 56/70 - 48/80, method 10: 0.0524 to 0.3339
    one, other = (
        stats.binomtest(hits, of).proportion_ci(method="wilson")
        for hits, of in ((56, 70), (48, 80))
    )
    found = difference(figure(56 / 70, *one), figure(48 / 80, *other))
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=6, max_size=6))
def test_a_difference_changes_sign_with_its_sides_and_agrees_with_its_z(numbers) -> None:
    (low, value, high), (low_b, value_b, high_b) = sorted(numbers[:3]), sorted(numbers[3:])
    a, b = figure(value, low, high), figure(value_b, low_b, high_b)
    there, back = difference(a, b), difference(b, a)
    assert there.value == -back.value
    assert there.z == -back.z
    assert (there.low, there.high) == (-back.high, -back.low)
    assert there.real == back.real
    assert there.z * there.value >= 0
    assert not difference(a, a).real
    if there.real:
        assert abs(there.z) > 1.96 * (1 - 1e-9)


def test_differences_of_unlike_things_are_refused() -> None:
    one = figure(1, 0, 2)
    with pytest.raises(InputError, match="KID and recall are different figures"):
        difference(one, figure(1, 0, 2, name="recall"))
    with pytest.raises(InputError, match=r"10 generated and 20 real .* 11 and 20"):
        difference(one, figure(1, 0, 2, generated=11))
    with pytest.raises(InputError, match=r"10 generated and 20 real .* 10 and 21"):
        difference(one, figure(1, 0, 2, real=21))
    with pytest.raises(InputError, match="no interval"):
        difference(one, figure(1, float("nan"), 2))
