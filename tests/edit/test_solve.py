"""Conjugate gradients."""

import torch
from hypothesis import given, strategies as st

from oracle import generic_covariance, normals
from unraze.edit.solve import conjugate_gradients


@given(st.integers(0, 1000), st.integers(1, 6))
def test_as_many_iterations_as_unknowns_solve_it(seed: int, d: int) -> None:
    matrix = generic_covariance(seed, [0.5 + k for k in range(d)])
    b = normals(seed + 1, 3, d)
    found = conjugate_gradients(lambda v: v @ matrix, b, d)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, b.T).T, rtol=1e-8, atol=1e-8)


def test_each_row_is_its_own_whatever_its_size() -> None:
    matrix = generic_covariance(3, [1.0, 2.0, 5.0])
    b = normals(4, 4, 3) * torch.tensor([[1e-9], [1.0], [1e6], [0.0]])
    found = conjugate_gradients(lambda v: v @ matrix, b, 3)
    wanted = torch.linalg.solve(matrix, b.T).T
    torch.testing.assert_close(
        found / wanted.abs().clamp(min=1e-30), wanted.sign(), rtol=0, atol=1e-6
    )
    assert torch.equal(found[3], torch.zeros(3, dtype=torch.float64))


def test_where_a_matrix_is_not_positive_it_ends_there() -> None:
    matrix = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
    b = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    found = conjugate_gradients(lambda v: v @ matrix, b, 5)
    assert torch.equal(found, torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]).double())
