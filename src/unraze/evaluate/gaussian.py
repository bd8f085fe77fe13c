"""The Fréchet distance between the Gaussians that fit two sets of features.

    FD = |m - m'|² + Tr(C + C' - 2 (C C')^{1/2})

(Heusel et al. 2017, arXiv:1706.08500, eq. 6), m the means, C the covariances with N - 1. With
C = R Rᵀ and C' = R' R'ᵀ the eigenvalues of C C' are the squares of the singular values of Rᵀ R',
so that Tr (C C')^{1/2} = Σ_i s_i(Rᵀ R'): real, and exact to rounding where features are dependent.

Finite samples are further apart than what they are drawn from. Where both are drawn from one
distribution whose covariance has the eigenvalues λ, FD = 0, yet to first order

    E[FD_N] = (1/N + 1/N') (½ Σ_ij λ_i λ_j/(λ_i + λ_j) + 5/4 Σ_i λ_i) ≤ (1/N + 1/N') (d + 5)/4 Tr C

which is why FD_N is compared at equal N only, and why it is refused below N = 4 d: there this may
be an eighth of the images' whole variance. It is nearly linear in 1/N as long as N > d, so that a
line through FD at several N leads to N = ∞ (Chong & Forsyth 2020, arXiv:1911.07023).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from unraze.errors import InputError
from unraze.evaluate.figures import Figure
from unraze.evaluate.intervals import (
    GROUPS,
    Groups,
    checked,
    grouped,
    jackknife,
    normal,
    rows_at_once,
)

__all__ = [
    "FEWEST_PER_FEATURE",
    "FRECHET",
    "FRECHET_INFINITY",
    "MOST_SIZES",
    "frechet",
    "frechet_infinity",
]

Array = np.ndarray[Any, Any]

FRECHET, FRECHET_INFINITY = "Fréchet distance", "Fréchet distance, N = ∞"
"""What the two figures are called."""

FEWEST_PER_FEATURE = 4
"""Images a feature that `frechet` asks for."""

MOST_SIZES = 4
"""Sample sizes that `frechet_infinity` looks at: N, N/2, N/3, N/4."""

WIDE, FEW_GROUPS = 512, 12
"""With more features than this, there are this many groups: each costs about 40 d³ operations."""


def frechet(real: Array, generated: Array) -> Figure:
    """The Fréchet distance FD_N of features (N, d) and (N', d), in squared features.

    The interval is for E[FD_N], what samples of these sizes give on average, bias included: not for
    the distance of the populations, which `frechet_infinity` estimates. It is a jackknife over
    groups of both samples. In another order the images have the same value, but fall into other
    groups, so that the interval differs a little.

    Raises `InputError` for features that are not finite or of different widths, and for fewer
    than 4 d images of either kind.
    """
    real, generated = checked(real, generated)
    d = real.shape[1]
    for name, x in (("real", real), ("generated", generated)):
        if len(x) < FEWEST_PER_FEATURE * d:
            raise InputError(
                f"{name}: {len(x)} images are too few for a Fréchet distance of {d} features, "
                f"which asks for {FEWEST_PER_FEATURE} × {d} = {FEWEST_PER_FEATURE * d}; take more "
                f"images, or the distance extrapolated to N = ∞ (from {_fewest(d)} images on), "
                "or KID"
            )
    return _figure(FRECHET, real, generated, sizes=1)


def frechet_infinity(real: Array, generated: Array) -> Figure:
    """The Fréchet distance of the populations, extrapolated from features (N, d) and (N', d).

    A line FD = a + b k is fitted by least squares to FD at N/k and N'/k, k = 1 … K, K = 4 or as
    many as leave d + 1 images in a part; at each k it is the mean over k disjoint parts, so that
    all images count alike. The figure is a, its interval is for the populations' distance: a
    jackknife over groups of both samples. (Chong & Forsyth shrink the generated sample alone, for
    their reals are many.) Near 0 it may be negative, as an unbiased estimate of 0 must. What is
    left of the bias is downwards: below 1 % of the variance Tr C from N = 3 d on with 16 features
    or more, 3 % at N = 4 d and 1 % at 8 d with as few as 4. The parts, and so the figure, differ a
    little where the images come in another order.

    Raises `InputError` for features that are not finite or of different widths, and for fewer
    than 2 (d + 1), or 12, images of either kind.
    """
    real, generated = checked(real, generated)
    d = real.shape[1]
    for name, x in (("real", real), ("generated", generated)):
        if len(x) < _fewest(d):
            raise InputError(
                f"{name}: {len(x)} images are too few to extrapolate a Fréchet distance of {d} "
                f"features, which asks for {_fewest(d)}; take more images, or KID"
            )
    sizes = min(MOST_SIZES, min(len(real), len(generated)) // (d + 1))
    return _figure(FRECHET_INFINITY, real, generated, sizes=sizes)


def _figure(name: str, real: Array, generated: Array, *, sizes: int) -> Figure:
    value, parts = _estimate(real, generated, sizes)
    low, high = normal(value, parts)
    note = ""
    if sizes > 1:
        least = min(len(real), len(generated))
        note = f"extrapolated to N = ∞ from N = {least} … {least // sizes}"
    elif len(real) != len(generated):
        note = "unequal counts: it depends on both"
    return Figure(
        name=name,
        value=value,
        low=low if sizes > 1 else max(0.0, low),
        high=high,
        floor=float("nan"),
        better="lower",
        generated=len(generated),
        real=len(real),
        note=note,
    )


def _estimate(
    real: Array, generated: Array, sizes: int
) -> tuple[float, tuple[tuple[float, int], ...]]:
    """Σ_k w_k mean_p FD(part p of k), and each sample's share of its variance with its freedom.

    w are the least squares weights of a line's value at k = 0. A group lies in one part of each k,
    and only that part's distance changes without it.
    """
    origin, at_once = real.mean(axis=0), rows_at_once(real.shape[1] ** 2)
    sides = [_sums(grouped(x - origin, _groups(x, sizes))) for x in (real, generated)]
    changes = [np.zeros(len(side.count)) for side in sides]
    value = 0.0
    for k, weight in enumerate(_weights(sizes), start=1):
        for p in range(k):
            ranges = [_part(len(side.count), k, p) for side in sides]
            sums = [side.over(part) for side, part in zip(sides, ranges, strict=True)]
            fits = [_gaussians(*one) for one in sums]
            distance = float(_distances(*fits))
            value += weight / k * distance
            for side, part, (n, s, q), other, change in zip(
                sides, ranges, sums, reversed(fits), changes, strict=True
            ):
                for start in range(part.start, part.stop, at_once):
                    j = slice(start, min(start + at_once, part.stop))
                    left = _gaussians(n - side.count[j], s - side.first[j], q - side.second[j])
                    change[j] += weight / k * (_distances(left, other) - distance)
    parts = tuple(
        (jackknife(value, value + change, side.count), len(change) - 1)
        for change, side in zip(changes, sides, strict=True)
    )
    return float(value), parts


@dataclass(frozen=True)
class _Sums:
    """Of each group: its count (G,), Σ x (G, d), Σ x xᵀ (G, d, d)."""

    count: Array
    first: Array
    second: Array

    def over(self, part: slice) -> tuple[Array, Array, Array]:
        return (
            self.count[part].sum(),
            self.first[part].sum(axis=0),
            self.second[part].sum(axis=0),
        )


@dataclass(frozen=True)
class _Gaussians:
    """One or several: mean (…, d), a root R (…, d, d) of the covariance R Rᵀ, and that one's trace
    (…)."""

    mean: Array
    root: Array
    trace: Array


def _sums(groups: Groups) -> _Sums:
    count, d = len(groups.sizes), groups.x.shape[1]
    first, second = np.empty((count, d)), np.empty((count, d, d))
    for j in range(count):
        x = groups.part(j)
        first[j], second[j] = x.sum(axis=0), x.T @ x
    return _Sums(groups.sizes, first, second)


def _gaussians(count: Array, first: Array, second: Array) -> _Gaussians:
    mean = first / count[..., None]
    outer = first[..., :, None] * mean[..., None, :]
    covariance = (second - outer) / (count - 1)[..., None, None]
    values, axes = np.linalg.eigh(covariance)
    root = axes * np.sqrt(np.maximum(values, 0))[..., None, :]
    return _Gaussians(mean, root, np.trace(covariance, axis1=-2, axis2=-1))


def _distances(a: _Gaussians, b: _Gaussians) -> Array:
    product = np.swapaxes(a.root, -1, -2) @ b.root
    overlap = np.linalg.svd(product, compute_uv=False).sum(axis=-1)
    distances: Array = ((a.mean - b.mean) ** 2).sum(axis=-1) + a.trace + b.trace - 2 * overlap
    return distances


def _weights(sizes: int) -> Array:
    """The weights (K,) that make of y at 1 … K the value at 0 of the least squares line."""
    if sizes == 1:
        return np.ones(1)
    k = np.arange(1, sizes + 1)
    weights: Array = np.linalg.pinv(np.stack([np.ones(sizes), k], axis=1))[0]
    return weights


def _part(groups: int, k: int, p: int) -> slice:
    return slice(p * groups // k, (p + 1) * groups // k)


def _groups(x: Array, sizes: int) -> int:
    """As many groups as the sample and its width bear; where it is parted, a multiple of 12."""
    most = GROUPS if x.shape[1] <= WIDE else FEW_GROUPS
    return min(most, len(x)) if sizes == 1 else min(most, len(x) // FEW_GROUPS * FEW_GROUPS)


def _fewest(d: int) -> int:
    """Images that `frechet_infinity` asks for: two parts with covariances, and 12 groups."""
    return max(2 * (d + 1), FEW_GROUPS)
