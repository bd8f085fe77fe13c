"""A set of images in numbers, and at a glance."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from unraze.data.images import Images, at_once, evenly

__all__ = ["Stats", "contact_sheet", "stats"]

_CHUNK = 1024
_GAP = 2
_WHITE = 255


@dataclass(frozen=True)
class Stats:
    """Numbers of a set of images; those of pixels are of x = p/127.5 - 1, in [-1, 1].

    Arguments:
        count: N.
        size: (H, W).
        channels: 1 or 3.
        mean: of each channel.
        spread: standard deviation of each channel, over all pixels of all images.
        sigma_data: root mean square of all values, sqrt(mean x²), which EDM's weighting needs.
        classes: images of each class, by its name; empty where there are no classes.
        skipped: unreadable files that were left out.
    """

    count: int
    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    spread: tuple[float, ...]
    sigma_data: float
    classes: dict[str, int]
    skipped: int


def stats(images: Images) -> Stats:
    """Size, mean, spread and classes of all images, exact: from the counts of the 256 levels."""
    count, channels, height, width = images.pixels.shape
    levels = np.zeros((channels, 256), dtype=np.int64)
    many = at_once(images.pixels.shape[1:], _CHUNK, itemsize=8)
    for first in range(0, count, many):
        part = images.pixels[first : first + many]
        for channel in range(channels):
            levels[channel] += np.bincount(part[:, channel].reshape(-1), minlength=256)
    x = np.arange(256) / 127.5 - 1
    share = levels / levels.sum(axis=1, keepdims=True)
    mean = share @ x
    spread = np.sqrt((share * (x - mean[:, None]) ** 2).sum(axis=1))
    classes: dict[str, int] = {}
    if images.labels is not None:
        sizes = np.bincount(images.labels, minlength=len(images.class_names))
        classes = dict(zip(images.class_names, sizes.tolist(), strict=True))
    return Stats(
        count=count,
        size=(height, width),
        channels=channels,
        mean=tuple(mean.tolist()),
        spread=tuple(spread.tolist()),
        sigma_data=float(np.sqrt((share @ x**2).mean())),
        classes=classes,
        skipped=len(images.skipped),
    )


def contact_sheet(images: Images, columns: int = 16, limit: int = 256) -> np.ndarray[Any, Any]:
    """At most `limit` images, evenly from the whole set, row by row: uint8 (height, width, C).

    Raises `ValueError` where `columns` or `limit` is below 1.
    """
    if columns < 1 or limit < 1:
        raise ValueError(f"columns = {columns}, limit = {limit}: give numbers from 1")
    count, channels, height, width = images.pixels.shape
    shown = evenly(count, limit)
    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    sheet = np.full(
        (_GAP + rows * (height + _GAP), _GAP + columns * (width + _GAP), channels),
        _WHITE,
        dtype=np.uint8,
    )
    for place, number in enumerate(shown.tolist()):
        top = _GAP + place // columns * (height + _GAP)
        left = _GAP + place % columns * (width + _GAP)
        sheet[top : top + height, left : left + width] = images.pixels[number].transpose(1, 2, 0)
    return sheet
