"""Many small pictures in one: edge to edge, to be taken apart again by the page."""

import io
import math
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["MOST_BYTES", "columns_of", "png", "sprite"]

Array = np.ndarray[Any, Any]

MOST_BYTES = 2**26
"""Of the frames that one drawing keeps in memory."""


def columns_of(count: int) -> int:
    """The columns of a sprite of so many pictures: about a square."""
    return math.ceil(math.sqrt(count))


def sprite(pixels: Array, columns: int) -> bytes:
    """A PNG of pictures uint8 (N, H, W, C), row by row; what is left of the last row is black."""
    count, height, width, channels = pixels.shape
    rows = -(-count // columns)
    whole = np.zeros((rows * columns, height, width, channels), dtype=np.uint8)
    whole[:count] = pixels
    laid = whole.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return png(laid.reshape(rows * height, columns * width, channels))


def png(pixels: Array) -> bytes:
    """A PNG of one picture uint8 (H, W, C)."""
    out = io.BytesIO()
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    picture.save(out, format="PNG", compress_level=1)  # it goes no farther than this machine
    return out.getvalue()
