"""Nearest neighbours far from the origin, where float32 alone would see one place."""

import numpy as np
import pytest
from scipy.spatial import KDTree

from unraze.evaluate.nearest import neighbours


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e7])
def test_neighbours_do_not_depend_on_where_the_origin_is(offset: float) -> None:
    rng = np.random.default_rng(0)
    reference, query = (offset + rng.standard_normal((n, 3)) for n in (5000, 200))
    distance, index = KDTree(reference).query(query, k=2)
    found = neighbours(query, reference)
    assert np.array_equal(found[0], index)
    assert found[1] == pytest.approx(distance, rel=1e-9)


def test_neighbours_of_bytes_and_of_the_same_numbers_are_the_same() -> None:
    rng = np.random.default_rng(1)
    reference, query = (rng.integers(0, 256, (n, 20)).astype(np.uint8) for n in (5000, 1500))
    index, distance = neighbours(query, reference, k=3)
    for dtype in (np.float32, np.int64):
        other = neighbours(query.astype(dtype), reference.astype(dtype), k=3)
        assert np.array_equal(index, other[0])
        assert np.array_equal(distance, other[1])
