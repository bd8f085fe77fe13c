"""The nearest neighbours of points, exactly, by matrix products.

    ‖q - r‖² = ‖q‖² + ‖r‖² - 2 q·r

in float32 about the references' mean finds candidates quickly, but loses digits where q and r are
close. So more candidates are kept than asked for, their distances are taken again from q - r in
float64, and a bound on the rounding of the products says whether one that was left out could be
nearer; where it could, the query is done again in float64.
"""

from typing import Any

import numpy as np

__all__ = ["neighbours"]

Array = np.ndarray[Any, Any]

QUERIES, REFERENCES = 1024, 4096
"""Rows of a block of products: 16 MiB in float32."""
SPARE = 6
"""Candidates kept beyond those asked for."""
ROUNDING = 2.0**-24
"""The relative rounding of float32."""


def neighbours(query: Array, reference: Array, *, k: int = 2) -> tuple[Array, Array]:
    """The k nearest references of each query: indices int64 (N, k), distances float64 (N, k).

    Arguments:
        query: (N, d), numbers of any kind; bytes are numbers from 0 to 255.
        reference: (M, d), M ≥ k.
        k: how many, the nearest first; of equally near ones the smaller index first, and where
            more than k + 6 are equally near, any of them.

    Euclidean distances. Besides the arguments, memory is that of a few blocks and of N k numbers.
    Raises `ValueError` where shapes do not fit or a value is not finite.
    """
    _check(query, reference, k)
    keep = min(k + SPARE, len(reference))
    centre = np.rint(reference.mean(0, dtype=np.float64) * 1024) / 1024
    found, square, worst_norm = _candidates(query, reference, centre, keep, np.float32)
    index, distance = _exactly(query, reference, found, k)
    if keep < len(reference):
        norm = np.sqrt(_norms(query, centre))
        bound = ROUNDING * (query.shape[1] + 8) * (norm + worst_norm) ** 2
        doubtful = np.flatnonzero(distance[:, -1] ** 2 >= square - bound)
        if len(doubtful):
            again, _, _ = _candidates(query[doubtful], reference, centre, keep, np.float64)
            index[doubtful], distance[doubtful] = _exactly(query[doubtful], reference, again, k)
    return index, distance


def _candidates(
    query: Array, reference: Array, centre: Array, keep: int, dtype: type[np.floating[Any]]
) -> tuple[Array, Array, float]:
    """(N, keep) indices of the nearest by products, the largest ‖q - r‖² among them (N,), max ‖r‖.

    A block of references is searched only for those queries for which it holds one that is nearer
    than the farthest candidate so far: few, after the first blocks.
    """
    q = _centred(query, centre, dtype)
    q_square = _norms(query, centre)
    square = np.full((len(query), keep), np.inf)
    index = np.zeros((len(query), keep), dtype=np.int64)
    largest = 0.0
    for first in range(0, len(reference), REFERENCES):
        part = reference[first : first + REFERENCES]
        r = _centred(part, centre, dtype)
        r *= dtype(-2)
        r_square = _norms(part, centre)
        largest = max(largest, float(r_square.max()))
        for start in range(0, len(query), QUERIES):
            rows = slice(start, start + QUERIES)
            product = q[rows] @ r.T
            product += r_square.astype(dtype)
            farthest = square[rows].max(1) - q_square[rows]
            hit = np.flatnonzero(product.min(1) < farthest)
            if not len(hit):
                continue
            new = product[hit]
            few = min(keep, new.shape[1])
            nearest = np.argpartition(new, few - 1, axis=1)[:, :few]
            near = np.take_along_axis(new, nearest, 1) + q_square[rows][hit, None]
            both = np.concatenate([square[rows][hit], near], axis=1)
            which = np.concatenate([index[rows][hit], nearest + first], axis=1)
            best = np.argpartition(both, keep - 1, axis=1)[:, :keep]
            square[start + hit] = np.take_along_axis(both, best, 1)
            index[start + hit] = np.take_along_axis(which, best, 1)
    return index, square.max(1), float(np.sqrt(largest))


def _exactly(query: Array, reference: Array, index: Array, k: int) -> tuple[Array, Array]:
    """The k nearest of the candidates (N, c), by ‖q - r‖ in float64."""
    out_index = np.empty((len(query), k), dtype=np.int64)
    out = np.empty((len(query), k))
    rows = max(1, 2**22 // (index.shape[1] * query.shape[1]))
    for start in range(0, len(query), rows):
        those = np.sort(index[start : start + rows], axis=1)
        off = reference[those].astype(np.float64) - query[start : start + rows, None]
        distance = np.sqrt(np.einsum("nkd,nkd->nk", off, off))
        order = np.argsort(distance, axis=1, kind="stable")[:, :k]
        out_index[start : start + rows] = np.take_along_axis(those, order, 1)
        out[start : start + rows] = np.take_along_axis(distance, order, 1)
    return out_index, out


def _centred(x: Array, centre: Array, dtype: type[np.floating[Any]]) -> Array:
    """x - centre, taken in float64 and then rounded, block by block."""
    out = np.empty(x.shape, dtype=dtype)
    for start in range(0, len(x), QUERIES):
        np.subtract(
            x[start : start + QUERIES],
            centre,
            out=out[start : start + QUERIES],
            casting="same_kind",
        )
    return out


def _norms(x: Array, centre: Array) -> Array:
    """‖x - centre‖² (N,) in float64, block by block."""
    out = np.empty(len(x))
    for start in range(0, len(x), QUERIES):
        off = x[start : start + QUERIES] - centre
        out[start : start + QUERIES] = np.einsum("nd,nd->n", off, off)
    return out


def _check(query: Array, reference: Array, k: int) -> None:
    if query.ndim != 2 or reference.ndim != 2 or query.shape[1] != reference.shape[1]:
        raise ValueError(
            f"query {query.shape}, reference {reference.shape}: give (N, d) and (M, d)"
        )
    if not 1 <= k <= len(reference):
        raise ValueError(f"k = {k}: give 1 to {len(reference)}, the number of references")
    for name, values in (("query", query), ("reference", reference)):
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError(f"{name}: holds a value that is not finite")
