"""Some of a set of images, evenly taken and checked, as a trained model is asked about them."""

from typing import Any

import numpy as np

from unraze.data import evenly
from unraze.errors import DataError, InputError
from unraze.generate import Model

__all__ = ["chosen_for"]

Array = np.ndarray[Any, Any]


def chosen_for(
    model: Model, pixels: Array, labels: Array | None, most: int, *, names: tuple[str, str]
) -> tuple[Array, list[int | None]]:
    """At most so many of the images, evenly over the set, and what to tell the model of each.

    That is its label where the model was trained with classes, else None. `pixels` are uint8
    (N, C, H, W), `names` what messages call them and the labels. Raises `DataError` for images of
    another shape than the model's or fewer than 2, `InputError` where needed labels are missing.
    """
    name, name_of_labels = names
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != model.shape:
        raise DataError(
            f"{name}: {pixels.dtype} {pixels.shape}; give uint8 (N, C, H, W) of the model's shape, "
            f"{model.shape}"
        )
    if len(pixels) < 2:
        raise DataError(f"{name}: holds {len(pixels)} images; an interval takes at least 2")
    chosen = evenly(len(pixels), most)
    if not model.num_classes:
        return pixels[chosen], [None] * len(chosen)
    if labels is None or len(labels) != len(pixels):
        raise InputError(
            f"{name_of_labels}: this run was trained with classes; give one label for each of the "
            f"{len(pixels)} images"
        )
    return pixels[chosen], [int(label) for label in labels[chosen]]
