"""What a figure owes to the sampling of images: groups of images, the jackknife, 95 % intervals.

    θ_j = h_j θ - (h_j - 1) θ_(-j),   h_j = n/m_j,   Var θ ≈ (1/G) Σ_j (θ_j - θ_J)²/(h_j - 1)

the delete-a-group jackknife with G groups of m_j of the n images (Busing, Meijer & van der Leeden
1999, "Delete-m jackknife for unequal m", eq. 3-5): θ_(-j) is the figure without group j, θ_J the
jackknife's own estimate. No image is ever doubled, as a bootstrap would, which puts duplicates at
distance zero. For two samples the variances add. What the figure owes to images singly is met;
what it owes to pairs is counted about twice, to p of them p times (Efron & Stein 1981, theorem 2
and section 4), so where that matters the interval is too wide, not too narrow: near equal
distributions up to 1.5 times for the Fréchet distance; for shares of nearest neighbours 1.5 to 2
times, and up to 4 for shares near 1.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

from unraze.errors import InputError
from unraze.rng import permutation

__all__ = [
    "GROUPS",
    "Groups",
    "checked",
    "grouped",
    "jackknife",
    "normal",
    "rows_at_once",
    "standard_error",
    "wilson",
]

Array = np.ndarray[Any, Any]

GROUPS = 48
"""Groups that a sample is divided into: many enough for a variance, and split in 2, 3 and 4."""


ENTRIES = 4_000_000
"""Numbers of a matrix of pairs that are held at once (32 MB)."""


@dataclass(frozen=True)
class Groups:
    """A sample put in order of its groups.

    Arguments:
        x: float64 (N, d), the images of group 0 first.
        starts: int64 (G,), where each group begins.
        sizes: int64 (G,), its images.
    """

    x: Array
    starts: Array
    sizes: Array

    @property
    def of(self) -> Array:
        """The group (N,) of each image."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    def part(self, group: int) -> Array:
        """The images of one group."""
        return self.x[self.starts[group] : self.starts[group] + self.sizes[group]]


def checked(real: Array, generated: Array) -> tuple[Array, Array]:
    """Both as float64 (N, d). Raises `InputError` for another shape, width or not-a-number."""
    pair = []
    for name, features in (("real", real), ("generated", generated)):
        x = np.ascontiguousarray(features, dtype=np.float64)
        if x.ndim != 2 or 0 in x.shape:
            raise InputError(f"{name}: features of shape {x.shape}; give (images, features)")
        bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
        if len(bad):
            raise InputError(
                f"{name}: {len(bad)} of {len(x)} images have features that are not finite, the "
                f"first is image {bad[0]}; mend the feature network, or leave those images out"
            )
        pair.append(x)
    if pair[0].shape[1] != pair[1].shape[1]:
        raise InputError(
            f"real has {pair[0].shape[1]} features an image, generated {pair[1].shape[1]}; "
            "take both from the same feature space"
        )
    return pair[0], pair[1]


def grouped(x: Array, count: int = GROUPS) -> Groups:
    """`count` random groups, or one an image where there are fewer; always the same for one N.

    Random, for images often come sorted by class, and groups of one class each would be far more
    unlike one another than independent images are. Their sizes differ by one at most, and so do
    those of any equal number of groups side by side.
    """
    count = min(count, len(x))
    order = permutation(0, "evaluate-groups", len(x))
    ends = np.arange(1, count + 1) * len(x) // count  # larger groups spread evenly over the order
    sizes = np.diff(ends, prepend=0)
    return Groups(x[order], ends - sizes, sizes)


def rows_at_once(columns: int) -> int:
    """Rows of a matrix of pairs that are worked on at once."""
    return max(1, ENTRIES // columns)


def jackknife(value: float, without: Array, sizes: Array) -> float:
    """The variance of a figure, from its values (G,) without each group of `sizes` (G,)."""
    h = sizes.sum() / sizes
    own = len(sizes) * value - ((1 - 1 / h) * without).sum()
    pseudo = h * value - (h - 1) * without
    return float(((pseudo - own) ** 2 / (h - 1)).mean())


def standard_error(values: Array) -> float:
    """That of the mean of independent numbers (N,)."""
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def normal(value: float, parts: tuple[tuple[float, int], ...]) -> tuple[float, float]:
    """value ± t √V, V the sum of the parts' variances, each given with its degrees of freedom."""
    variance = sum(part for part, _ in parts)
    half = float(_quantile(parts) * variance**0.5)
    return value - half, value + half


def wilson(share: float, parts: tuple[tuple[float, int], ...], count: int) -> tuple[float, float]:
    """An interval for a share, inside [0, 1] and not empty at its ends (Wilson 1927).

    (p + t²/2n ± t √(p(1-p)/n + t²/4n²))/(1 + t²/n) at the effective count n = p(1-p)/V, which is
    at most the `count` of images that the share is of.
    """
    variance = sum(part for part, _ in parts)
    spread = share * (1 - share)
    n = min(spread / variance, count) if variance > 0 and spread > 0 else float(count)
    t = _quantile(parts)
    middle = share + t**2 / (2 * n)
    half = t * (spread / n + t**2 / (4 * n**2)) ** 0.5
    low, high = (middle - half) / (1 + t**2 / n), (middle + half) / (1 + t**2 / n)
    return max(0.0, min(low, share)), min(1.0, max(high, share))


def _quantile(parts: tuple[tuple[float, int], ...]) -> float:
    """Student's 97.5 % quantile at Welch's degrees of freedom, (Σ V_i)²/Σ (V_i²/f_i)."""
    total = sum(part for part, _ in parts)
    freedom = min(f for _, f in parts)
    if total > 0:
        shares = [(part / total, f) for part, f in parts]
        return float(scipy.special.stdtrit(1 / sum(share**2 / f for share, f in shares), 0.975))
    return float(scipy.special.stdtrit(freedom, 0.975))
