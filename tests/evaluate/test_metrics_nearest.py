"""Nearest neighbours are exact, also where float32 products cannot tell them apart."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from sklearn.neighbors import NearestNeighbors

from unraze.evaluate import nearest
from unraze.evaluate.nearest import neighbours


def by_scikit_learn(query, reference, k):
    brute = NearestNeighbors(n_neighbors=k, algorithm="kd_tree").fit(reference.astype(float))
    return brute.kneighbors(query.astype(float))


@pytest.mark.parametrize(("n", "m", "d", "k"), [(1, 1, 1, 1), (30, 500, 12, 3), (1500, 40, 5, 40)])
def test_neighbours_are_those_of_scikit_learn(n, m, d, k) -> None:
    rng = np.random.default_rng(0)
    query, reference = (rng.standard_normal((c, d)).astype(np.float32) for c in (n, m))
    distance, index = by_scikit_learn(query, reference, k)
    found = neighbours(query, reference, k=k)
    assert np.array_equal(found[0], index)
    assert found[1] == pytest.approx(distance, rel=1e-12)


def test_bytes_are_numbers_and_a_copy_is_at_distance_0() -> None:
    reference = np.random.default_rng(1).integers(0, 256, (600, 64)).astype(np.uint8)
    index, distance = neighbours(reference, reference)
    assert np.array_equal(index[:, 0], np.arange(600))
    assert (distance[:, 0] == 0).all()
    assert distance[:, 1] == pytest.approx(by_scikit_learn(reference, reference, 2)[0][:, 1])


def test_what_float32_cannot_tell_apart_is_told_apart() -> None:
    # references that are nearly one place, far from their mean: their products are all but equal
    rng = np.random.default_rng(2)
    query = np.array([[1000.0, 0], [-1000, 0]])
    reference = np.repeat(query, 200, axis=0) + 1e-3 * rng.standard_normal((400, 2))
    distance, index = by_scikit_learn(query, reference, 2)
    found = neighbours(query, reference)
    assert np.array_equal(found[0], index)
    assert found[1] == pytest.approx(distance, rel=1e-9)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), queries=st.integers(1, 9), references=st.integers(1, 9))
def test_the_size_of_the_blocks_is_nothing_to_the_result(seed, queries, references) -> None:
    rng = np.random.default_rng(seed)
    query, reference = rng.standard_normal((23, 4)), rng.standard_normal((31, 4))
    expected = neighbours(query, reference, k=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "QUERIES", queries)
        patch.setattr(nearest, "REFERENCES", references)
        found = neighbours(query, reference, k=3)
    assert np.array_equal(found[0], expected[0])
    assert found[1] == pytest.approx(expected[1], rel=1e-12)


def test_of_equally_near_ones_the_smaller_index_comes_first() -> None:
    reference = np.array([[1.0], [-1], [5], [1], [-1]])
    index, distance = neighbours(np.zeros((1, 1)), reference, k=4)
    assert index.tolist() == [[0, 1, 3, 4]]
    assert distance.tolist() == [[1, 1, 1, 1]]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"query \(2, 3\), reference \(2, 4\)"):
        neighbours(np.zeros((2, 3)), np.zeros((2, 4)), k=1)
    for k in (0, 3):
        with pytest.raises(ValueError, match=f"k = {k}: give 1 to 2"):
            neighbours(np.zeros((2, 3)), np.zeros((2, 3)), k=k)
    with pytest.raises(ValueError, match="reference: holds a value that is not finite"):
        neighbours(np.zeros((2, 3)), np.full((2, 3), np.nan), k=1)
