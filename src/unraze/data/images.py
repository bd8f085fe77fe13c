"""The images as the rest of the package sees them: bytes, and their way to floats and back.

x = p / 127.5 - 1,   p in 0 … 255,   x in [-1, 1]
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from unraze.config import DataConfig
from unraze.errors import DataError

__all__ = [
    "Images",
    "Split",
    "absent_classes",
    "at_once",
    "batch",
    "classes",
    "evenly",
    "fingerprint",
    "to_float",
    "to_uint8",
]

_CHUNK = 1024
_CHUNK_BYTES = 2**28

Split = Literal["train", "held-out", "test"]


def to_float(pixels: np.ndarray[Any, Any]) -> Tensor:
    """x = p/127.5 - 1: bytes of any shape become a float32 tensor in [-1, 1], always a copy."""
    _need_bytes(pixels)
    floats = np.array(pixels, dtype=np.float32, subok=False)
    return torch.from_numpy(floats).div_(127.5).sub_(1.0)


def to_uint8(x: Tensor) -> np.ndarray[Any, Any]:
    """p = round((x + 1)·127.5), cut off at 0 and 255: a tensor in [-1, 1] becomes bytes.

    Undoes `to_float` exactly. Raises `ValueError` where x holds not-a-number.
    """
    x = x.detach().cpu().to(torch.float32)
    if bool(torch.isnan(x).any()):
        raise ValueError("x holds not-a-number, which is no grey level: see what made it diverge")
    return np.asarray(((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy())


def batch(
    images: Images, indices: np.ndarray[Any, Any], flips: np.ndarray[Any, Any] | None = None
) -> Tensor:
    """Images `indices` as a float32 tensor (B, C, H, W) in [-1, 1].

    Arguments:
        indices: int64 (B,), from 0 to N-1, repeats allowed.
        flips: bool (B,): which of them are mirrored left to right; None mirrors none.
    """
    x = to_float(images.pixels[indices])
    if flips is not None:
        mirrored = torch.from_numpy(np.asarray(flips, dtype=bool))
        x[mirrored] = x[mirrored].flip(-1)
    return x


def fingerprint(
    pixels_hash: hashlib._Hash, shape: Sequence[int], labels: np.ndarray[Any, Any] | None
) -> str:
    """SHA-256, in hex, of the pixels' bytes (already in `pixels_hash`), the shape and the labels.

    The same images in the same order have the same fingerprint wherever they were read from.
    """
    whole = pixels_hash.copy()
    whole.update(f"shape {tuple(int(n) for n in shape)} labels ".encode())
    whole.update(b"none" if labels is None else labels.astype("<i8").tobytes())
    return whole.hexdigest()


def classes(
    labels: np.ndarray[Any, Any], class_names: Sequence[str], count: int, source: str
) -> tuple[np.ndarray[Any, Any], tuple[str, ...]]:
    """Labels as int64 (count,), and a name for each class; numbers are names where none are given.

    Raises `DataError` where labels are not one integer an image, or have no name.
    """
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{source}: labels are {labels.dtype} {labels.shape}; give one integer for each of the "
            f"{count} images"
        )
    low, high = int(labels.min()), int(labels.max())
    known = len(class_names) or 65_536
    if low < 0 or high >= known:
        raise DataError(
            f"{source}: labels run from {low} to {high}; number the classes from 0 to {known - 1}"
        )
    return labels.astype(np.int64), tuple(class_names or [str(i) for i in range(high + 1)])


@dataclass(frozen=True, eq=False)
class Images:
    """A set of images of one shape, as bytes.

    Arguments:
        pixels: uint8 (N, C, H, W), in memory or mapped from a file; C is 1 (grey) or 3 (RGB).
        labels: int64 (N,), class numbers from 0; None where there are no classes.
        class_names: one for each class number.
        names: one for each image, for messages.
        source: where they come from, for messages.
        fingerprint: SHA-256 of pixels, shape and labels, in hex.
        skipped: names of the unreadable files that were left out.
        held_back: how many images of the source are held out of these.
        origin: how `load` read them, so that they can be read again; None for one's own arrays.
        split: which part of the origin they are.
    """

    pixels: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any] | None
    class_names: tuple[str, ...]
    names: Sequence[str]
    source: str
    fingerprint: str
    skipped: tuple[str, ...] = ()
    held_back: int = 0
    origin: DataConfig | None = None
    split: Split = "train"

    @property
    def held_out(self) -> float:
        """The share of the source that was to be held out when they were loaded."""
        return 0.0 if self.origin is None else self.origin.held_out

    def __len__(self) -> int:
        return len(self.pixels)

    @staticmethod
    def from_arrays(
        pixels: np.ndarray[Any, Any],
        *,
        labels: np.ndarray[Any, Any] | None = None,
        class_names: Sequence[str] = (),
        names: Sequence[str] | None = None,
        source: str = "array",
        skipped: Sequence[str] = (),
    ) -> Images:
        """Images from one's own bytes (N, C, H, W), checked; no pixel is copied.

        `labels` are integers (N,); where `class_names` is empty the classes are called by their
        numbers, and so are the images where `names` is absent. Raises `DataError`.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
            raise DataError(
                f"{source}: pixels are {pixels.dtype} {pixels.shape}; give uint8 (N, C, H, W) "
                "with C = 1 or 3 (`to_uint8` makes them from a tensor in [-1, 1])"
            )
        if 0 in pixels.shape:
            raise DataError(f"{source}: holds no pixels, its shape is {pixels.shape}; give images")
        count = len(pixels)
        if names is not None and len(names) != count:
            raise DataError(f"{source}: {len(names)} names for {count} images; give one for each")
        if labels is not None:
            labels, class_names = classes(labels, class_names, count, source)
        digest = hashlib.sha256()
        for first in range(0, count, _CHUNK):
            digest.update(np.ascontiguousarray(pixels[first : first + _CHUNK]).data)
        return Images(
            pixels=pixels,
            labels=labels,
            class_names=tuple(class_names) if labels is not None else (),
            names=tuple(f"number {i}" for i in range(count)) if names is None else tuple(names),
            source=source,
            fingerprint=fingerprint(digest, pixels.shape, labels),
            skipped=tuple(skipped),
        )


def absent_classes(images: Images) -> tuple[str, ...]:
    """The classes of which there is no image."""
    if images.labels is None:
        return ()
    there = set(np.unique(images.labels).tolist())
    return tuple(name for i, name in enumerate(images.class_names) if i not in there)


def at_once(shape: Sequence[int], most: int, *, itemsize: int = 1) -> int:
    """How many images of a shape are handled at a time: `most`, or as many as make 256 MiB, or 1.

    A set of a few kilobytes can hold hundreds of pictures of a hundred million pixels each.
    """
    return max(1, min(most, _CHUNK_BYTES // (math.prod(shape) * itemsize)))


def evenly(count: int, most: int) -> np.ndarray[Any, Any]:
    """At most so many of 0 … count-1, evenly spaced from the first to the last: int64."""
    return np.asarray(np.linspace(0, count - 1, min(count, most)).round(), dtype=np.int64)


def _need_bytes(pixels: np.ndarray[Any, Any]) -> None:
    if pixels.dtype != np.uint8:
        raise ValueError(f"pixels are {pixels.dtype}; give uint8, 0 … 255")
