"""The nearest training image of every image, in a space of features or in pixels.

Training images that are equal, or each other's mirror image where training flipped, are one kind:
the nearest is d₁ away, and d₂ is the distance to the nearest of another kind.
"""

import hashlib
import math
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unraze.errors import DataError
from unraze.evaluate.nearest import neighbours
from unraze.evaluate.stage import Stage

__all__ = [
    "FEWEST",
    "Known",
    "Nearest",
    "Points",
    "first_of_kind",
    "known_points",
    "near",
    "near_others",
    "nearest_training",
    "numbered",
    "pixels_of",
    "require_images",
]

Array = np.ndarray[Any, Any]

FEWEST = 3
"""Distinct training images without which there is no second nearest of a training image."""
CHUNK = 4096
"""Images that are looked up between two stages."""


@dataclass(frozen=True, eq=False)
class Points:
    """Images as points of one space: numbers (N, d), one row an image.

    Arguments:
        space: its name.
        samples, training, held_out: those of the images, in their order; held_out may be empty.
        mirrored: those of the training images' mirror images; None where these do not count.
    """

    space: str
    samples: Array
    training: Array
    held_out: Array
    mirrored: Array | None = None


@dataclass(frozen=True, eq=False)
class Nearest:
    """Each sample's nearest training image, in the order in which samples were given.

    Arguments:
        training: its index (N,), the first of its duplicates.
        mirrored: whether it is nearest as its mirror image (N,).
        distance: d₁ (N,), Euclidean; in grey levels (0 to 255) for "pixels".
        ratio: d₁/d₂ (N,); 1 where both are 0.
    """

    training: Array
    mirrored: Array
    distance: Array
    ratio: Array


@dataclass(frozen=True, eq=False)
class Known:
    """The points (K, d) of distinct training images; of their mirror images where these count."""

    points: Array
    turned: Array | None


def nearest_training(
    generated: Array, training: Array, *, flip: bool
) -> Generator[Stage, None, Nearest]:
    """Every sample's nearest training image in pixels.

    Arguments:
        generated, training: uint8 (N, C, H, W), in any numbers.
        flip: mirror images of training images are training images.

    Raises `DataError` for images that do not fit together or too few distinct training images.
    """
    require_images(training, generated=generated)
    first = first_of_kind(training, flip)
    points = pixels_of(generated, training, generated[:0], flip=flip)
    known = known_points(points, first)
    return numbered((yield from near(known, points.samples, "nearest to samples, pixels")), first)


def pixels_of(generated: Array, training: Array, held_out: Array, *, flip: bool) -> Points:
    """The space of grey levels as they are, called "pixels"."""
    turned = _flat(training[..., ::-1]) if flip else None
    return Points("pixels", _flat(generated), _flat(training), _flat(held_out), turned)


def known_points(points: Points, first: Array) -> Known:
    """The points of the training images numbered `first`, each of another kind."""
    turned = None if points.mirrored is None else points.mirrored[first]
    return Known(points.training[first], turned)


def near_others(known: Known, some: Array, name: str) -> Generator[Stage, None, Nearest]:
    """The nearest other training images of the training images `some`."""
    return near(known, known.points[some], name, but=some)


def near(
    known: Known, query: Array, name: str, *, but: Array | None = None
) -> Generator[Stage, None, Nearest]:
    """The nearest of `known` to points (N, d), and how many times farther the next is.

    With `but`, query i is point but[i] itself, which does not count.
    """
    parts = []
    for start in range(0, len(query), CHUNK):
        rows = slice(start, start + CHUNK)
        parts.append(_two_nearest(query[rows], known, but=None if but is None else but[rows]))
        yield Stage(name, min(start + CHUNK, len(query)), len(query))
    return Nearest(
        np.concatenate([part.training for part in parts]),
        np.concatenate([part.mirrored for part in parts]),
        np.concatenate([part.distance for part in parts]),
        np.concatenate([part.ratio for part in parts]),
    )


def _two_nearest(query: Array, known: Known, *, but: Array | None = None) -> Nearest:
    """The nearest point and the nearest other one, of points and their mirror images.

    With `but`, query i is point but[i] itself, which does not count, nor does its mirror image.
    The nearest two of other numbers are among the nearest two, or three, of either kind.
    """
    k = 2 if but is None else 3
    index, distance = neighbours(query, known.points, k=k)
    mirrored = np.zeros(index.shape, dtype=bool)
    if known.turned is not None:
        more, farther = neighbours(query, known.turned, k=k)
        index = np.concatenate([index, more], axis=1)
        distance = np.concatenate([distance, farther], axis=1)
        mirrored = np.concatenate([mirrored, np.ones(more.shape, dtype=bool)], axis=1)
    if but is not None:
        distance = np.where(index == but[:, None], np.inf, distance)
    rows = np.arange(len(query))
    best = distance.argmin(1)
    nearest, d1 = index[rows, best], distance[rows, best]
    d2 = np.where(index == nearest[:, None], np.inf, distance).min(1)
    ratio = np.divide(d1, d2, out=np.ones_like(d1), where=d2 > 0)
    return Nearest(nearest, mirrored[rows, best], d1, ratio)


def numbered(near: Nearest, first: Array) -> Nearest:
    """With the numbers of all training images in place of those of the distinct ones."""
    return replace(near, training=first[near.training])


def require_images(training: Array, **given: Array) -> None:
    """Raises `DataError` unless all are uint8 (N, C, H, W) of one shape, none of them empty."""
    for name, pixels in {"training": training, **given}.items():
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != training.shape[1:]:
            raise DataError(
                f"{name}: {pixels.dtype} {pixels.shape}; give uint8 (N, C, H, W) of the training "
                f"images' shape, {training.shape[1:]}"
            )
        if len(pixels) == 0:
            raise DataError(f"{name}: holds no image; give at least one")


def first_of_kind(pixels: Array, flip: bool) -> Array:
    """The index of the first image of each kind (K,), rising; mirror images are one kind.

    Raises `DataError` where the kinds are too few.
    """
    seen: dict[bytes, int] = {}
    for i, image in enumerate(pixels):
        key = image.tobytes()
        if flip:
            key = min(key, image[..., ::-1].tobytes())
        seen.setdefault(hashlib.blake2b(key, digest_size=16).digest(), i)
    if len(seen) < FEWEST:
        raise DataError(
            f"training: holds {len(seen)} distinct image{'s' if len(seen) > 1 else ''}; "
            f"copying can be told from {FEWEST} on"
        )
    return np.array(list(seen.values()), dtype=np.int64)


def _flat(pixels: Array) -> Array:
    return np.ascontiguousarray(pixels).reshape(len(pixels), math.prod(pixels.shape[1:]))
