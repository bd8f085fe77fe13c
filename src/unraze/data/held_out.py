"""Which images are held out of training: a function of each one's own bytes, and of nothing else.

    u = blake2b-64(pixels, salt) / 2⁶⁴,    held out where u < share

So u is uniform over different images: about that share is held out, whatever their order and
whichever others lie beside them. Images of the same pixels are on the same side, and what a smaller
share holds out, a larger one does too.
"""

import hashlib
from typing import Any

import numpy as np

from unraze.data.found import counted
from unraze.errors import DataError

__all__ = ["FEWEST", "cannot_hold_out", "held_out", "is_too_few"]

FEWEST = 20
"""Of fewer images than this none is held out of training."""

LARGEST = 0.5
"""The largest share, as `unraze.config.DataConfig` bounds it."""

_SALT = b"unraze held-out"


def held_out(pixels: np.ndarray[Any, Any], share: float) -> np.ndarray[Any, Any]:
    """Which of the images, uint8 (n, C, H, W), are held out: bool (n,)."""
    below = share * 2.0**64
    return np.array([_number(one) < below for one in pixels], dtype=bool)


def is_too_few(kept: int, held: int) -> bool:
    """Whether a set that is divided into `kept` and `held` images is not to be divided at all.

    It has fewer than `FEWEST`, or one of the sides would be empty.
    """
    return kept + held < FEWEST or not kept or not held


def cannot_hold_out(source: str, share: float, kept: int, held: int) -> DataError:
    """The error for held-out images that are asked of a set that has none."""
    count = kept + held
    if share == 0:
        why = "has no test part of its own, and held_out = 0 holds no images back from training"
        remedy = "train with a share of them held out, --held-out 0.1 for example"
    elif count < FEWEST:
        why = f"has {counted(count, 'image')}; of fewer than {FEWEST} none is held out of training"
        remedy = "add images"
    elif not held:
        why = f"none of its {count} images falls into the share held_out = {share:g}"
        remedy = "add other images"
        if share < LARGEST:
            remedy = f"train with a larger share, at most {LARGEST:g}, or add images"
    else:
        why = f"held_out = {share:g} would hold out all of its {count} images, so it holds out none"
        remedy = "add other images: nearly all of these are the same"
    return DataError(f"{source}: {why}; {remedy}, or give other images to compare with")


def _number(pixels: np.ndarray[Any, Any]) -> int:
    data = np.ascontiguousarray(pixels).data
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, salt=_SALT).digest(), "little")
