"""Some of a set of images, evenly taken and checked, as a trained model is asked about them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from unraze.clusters import nearest
from unraze.data import Images, evenly
from unraze.errors import DataError, InputError
from unraze.generate import Model

__all__ = ["chosen_for", "label_nats", "labels_for"]

Array = np.ndarray[Any, Any]


def labels_for(model: Model, images: Images) -> Array | None:
    """What the model is told of each image (N,): its class, or the cluster it is nearest to; None
    of a model that is told nothing."""
    if model.clusters is not None:
        return nearest(model.clusters, images.pixels)
    return images.labels if model.num_classes else None


def label_nats(model: Model, labels: Sequence[int | None]) -> Array:
    """-ln p(c) of each image's cluster c, zeros of a model of none.

    As the cluster is a function of the image, -ln p(x) ≤ -ln p(c) - ln p(x|c): what is measured
    given the cluster becomes a bound for the image alone. A class is data, so given is given.
    p(c) = (n_c + 1)/(N + K), for a cluster of none of the N images may be that of a held-out one.
    """
    if model.clusters is None:
        return np.zeros(len(labels))
    count, clusters = len(model.clusters.labels), len(model.clusters.shares)
    p = (model.clusters.shares * count + 1) / (count + clusters)
    found: Array = -np.log(p[np.array(labels)])
    return found


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
