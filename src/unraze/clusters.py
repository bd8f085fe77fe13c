"""Clusters of alike images, which a network is told where there are no classes.

A network that is told which part of the data an image is from has less to guess: it learns faster,
and so does one that is told parts that nobody named (Bao et al. 2022, "Why are conditional
generative models better than unconditional ones?", arXiv:2212.00362). The parts are k-means
clusters, found in seconds before training from the images as they look from afar:

    y = Λ^(-1/4) Vᵀ (s - m)       s: the image, averaged down to at most 16 x 16; m: the mean of s;
                                  V, Λ: its first principal axes, and their variances

half-way between s itself, in which brightness is nearly all, and its whitened form, in which noise
weighs as much. A sample is drawn by first drawing its cluster, as often as in the training images,
so that samples are of all the data.
"""

import hashlib
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import scipy
import torch
import torch.nn.functional as F

from unraze import files, rng, weights
from unraze.data import Images, to_float
from unraze.errors import CheckpointError, UnrazeError

__all__ = [
    "PER_CLUSTER",
    "Clusters",
    "clusters_for",
    "drawn",
    "find",
    "labelled",
    "nearest",
    "of_others",
    "read",
    "write",
]

PER_CLUSTER = 100
"""The fewest images, on average, that a cluster may have."""
FEWEST = 16
"""The fewest that any may have: of a cluster of one image a network would learn that image."""
SIDE, AXES, EXPONENT = 16, 64, 0.25
SOME, ROUNDS = 20_000, 20
"""Images that the centres are found from, at most, and rounds of Lloyd's iteration."""
CHUNK = 4096
BEFORE, OF = "before", "of"
"""The keys of `Clusters.before` and `Clusters.of` in a file."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Clusters:
    """K centres of clusters, and which of them each training image belongs to.

    Arguments:
        mean: float64 (D,), m.
        axes: float64 (D, d), V Λ^(-1/4).
        centres: float64 (K, d).
        labels: int64 (N,), of the training images in their order; each cluster has some, unless
            these are other images than it was found of.
        before: the hashes of those with the same centres, of the images before these.
        of: the images' fingerprint; empty where it is not known.
    """

    mean: Array
    axes: Array
    centres: Array
    labels: Array
    before: tuple[str, ...] = ()
    of: str = ""

    def __len__(self) -> int:
        return len(self.centres)

    @cached_property
    def shares(self) -> Array:
        """Each cluster's share of the training images (K,)."""
        found: Array = np.bincount(self.labels, minlength=len(self)) / len(self.labels)
        return found

    @cached_property
    def hash(self) -> str:
        """SHA-256 of all of it, in hex."""
        return hashlib.sha256(safetensors.numpy.save(_tensors(self))).hexdigest()


def clusters_for(asked: int, images: int) -> int:
    """How many clusters so many images can have: at least `PER_CLUSTER` in each, on average.

    0 where that leaves less than two.
    """
    most = min(asked, images // PER_CLUSTER)
    return most if most >= 2 else 0


def find(images: Images, count: int, *, seed: int = 0) -> Clusters:
    """At most `count` clusters, by Lloyd's iteration from images drawn by chance.

    Those that end with fewer than 16 images are dissolved.
    """
    pixels = images.pixels
    some = np.sort(rng.permutation(seed, "clusters", len(pixels))[:SOME])
    afar = _from_afar(pixels[some])
    mean = afar.mean(0)
    variances, axes = np.linalg.eigh((afar - mean).T @ (afar - mean) / len(afar))
    variances, axes = variances[::-1][:AXES], axes[:, ::-1][:, :AXES]
    axes = axes / np.maximum(variances, 1e-9) ** EXPONENT  # where nothing differs, y is near 0
    y = (afar - mean) @ axes
    start = y[rng.permutation(seed, "cluster starts", len(y))[:count]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of clusters left empty, which dissolve below
        centres, _ = scipy.cluster.vq.kmeans2(y, start, iter=ROUNDS, minit="matrix", missing="warn")
    none = np.empty(0, dtype=np.int64)
    found = Clusters(mean, np.ascontiguousarray(axes), centres, none, of=images.fingerprint)
    counts = np.bincount(nearest(found, pixels), minlength=len(centres))
    kept = counts >= min(FEWEST, counts.max())
    found = replace(found, centres=centres[kept])
    return replace(found, labels=nearest(found, pixels))


def nearest(clusters: Clusters, pixels: Array) -> Array:
    """The cluster int64 (N,) whose centre each image uint8 (N, C, H, W) is nearest to."""
    parts = []
    squares = np.square(clusters.centres).sum(1)
    for first in range(0, len(pixels), CHUNK):
        y = (_from_afar(pixels[first : first + CHUNK]) - clusters.mean) @ clusters.axes
        parts.append((squares - 2 * y @ clusters.centres.T).argmin(1))
    return np.concatenate(parts).astype(np.int64)


def drawn(clusters: Clusters, number: int, seed: int) -> int:
    """The cluster that sample `number` of a seed is of: any n of them are of all clusters, in
    proportion, as nearly as they can be.

    The quantile of n φ + u, modulo 1, φ the golden ratio: an additive recurrence.
    """
    begin = float(rng.uniform(seed, "clusters of samples", 1)[0])
    place = (begin + number * 0.6180339887498949) % 1.0
    return min(int(np.searchsorted(clusters.shares.cumsum(), place, "right")), len(clusters) - 1)


def labelled(images: Images, clusters: Clusters) -> Images:
    """The training images with their clusters for classes."""
    names = tuple(map(str, range(len(clusters))))
    return replace(images, labels=clusters.labels, class_names=names)


def of_others(clusters: Clusters, images: Images) -> Clusters:
    """The same clusters, told of other images than they were found of: each is of the nearest."""
    if clusters.of == images.fingerprint:
        return clusters
    labels = nearest(clusters, images.pixels)
    now = replace(clusters, labels=labels, of=images.fingerprint)
    if now.hash == clusters.hash:
        return now
    return replace(now, before=(*clusters.before, clusters.hash))


def write(path: Path, clusters: Clusters) -> None:
    """Keeps them in a file, whole or not at all; raises `UnrazeError`."""
    about = {BEFORE: " ".join(clusters.before), OF: clusters.of}
    try:
        files.write_whole(path, safetensors.numpy.save(_tensors(clusters), about))
    except OSError as error:
        raise UnrazeError(files.cannot_write(path, error)) from error


def read(path: Path, expected: str | None = None) -> Clusters:
    """What `write` wrote; raises `CheckpointError` where it is not there, damaged, or has another
    hash than `expected`, and had before the images were others."""
    remedy = "the network was told what is in it: bring it back, or train anew"
    try:
        data = weights.read(path)
        tensors = weights.parsed(data)
        known = {name: value.numpy() for name, value in tensors.items()}
        about = weights.metadata(data)
        before = tuple(about.get(BEFORE, "").split())
        found = Clusters(**known, before=before, of=about.get(OF, ""))
        _check(found)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); {remedy}") from error
    if expected is not None and expected not in (found.hash, *found.before):
        raise CheckpointError(f"{path}: is not that of this checkpoint; {remedy}")
    return found


def _check(clusters: Clusters) -> None:
    """Raises `ValueError` unless the parts are what they are said to be, and fit each other."""
    kinds = {"mean": ("f8", 1), "axes": ("f8", 2), "centres": ("f8", 2), "labels": ("i8", 1)}
    for name, (kind, dimensions) in kinds.items():
        value = getattr(clusters, name)
        if value.dtype != np.dtype(kind) or value.ndim != dimensions or 0 in value.shape:
            raise ValueError(f"{name} is {value.dtype} {value.shape}")
        if not np.isfinite(value).all():
            raise ValueError(f"{name} holds values that are not finite")
    if clusters.axes.shape != (len(clusters.mean), clusters.centres.shape[1]):
        raise ValueError(f"axes are {clusters.axes.shape}, centres {clusters.centres.shape}")
    if clusters.labels.min() < 0 or clusters.labels.max() >= len(clusters):
        raise ValueError(f"labels go beyond the {len(clusters)} clusters")


def _tensors(clusters: Clusters) -> dict[str, Array]:
    return {
        "mean": clusters.mean,
        "axes": clusters.axes,
        "centres": clusters.centres,
        "labels": clusters.labels,
    }


def _from_afar(pixels: Array) -> Array:
    """Images averaged down to at most 16 x 16, a row each: float64 (N, D)."""
    height, width = pixels.shape[2:]
    size = (min(height, SIDE), min(width, SIDE))
    parts = [
        F.adaptive_avg_pool2d(to_float(pixels[first : first + CHUNK]), size).flatten(1).double()
        for first in range(0, len(pixels), CHUNK)
    ]
    found: Array = torch.cat(parts).numpy()
    return found
