"""Which training images a drawn picture is nearest to."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np

from unraze.errors import CheckpointError
from unraze.evaluate.memorisation import RATIO
from unraze.evaluate.nearest import neighbours
from unraze.evaluate.stage import Stage
from unraze.studio.asked import Near
from unraze.studio.held import Held
from unraze.studio.library import Missing
from unraze.studio.sprites import columns_of, sprite
from unraze.studio.tasks.sampling import Drawing
from unraze.studio.work import Task, Work

__all__ = ["Neighbours", "nearness"]


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The picture, and the images that are nearest to it, uint8 (N, H, W, C)."""

    pixels: np.ndarray[Any, Any]

    def sprite(self) -> bytes:
        """All of them in one."""
        return sprite(self.pixels, columns_of(len(self.pixels)))


def nearness(asked: Near, shown: Drawing, held: Held) -> Work:
    """The work of looking through all training images."""

    def work(task: Task) -> Generator[Stage, None, dict[str, Any]]:
        model = shown.order.model
        if not model.data:
            raise CheckpointError("what this model was trained on is not known")
        if shown.final is None or asked.image >= len(shown.final):
            raise Missing("this picture is not drawn yet")
        yield Stage("reading the training images", 0, 1)
        progress = task.progress("reading the training images")
        with task.aside():
            images = held.images(model.config.data, "train", progress)
        yield Stage("looking", 0, 1)
        query = shown.final[asked.image].transpose(2, 0, 1)
        count = min(asked.count + 1, len(images))
        flat = images.pixels.reshape(len(images), -1)
        index, distance = neighbours(query.reshape(1, -1), flat, k=count)
        near, away = index[0], distance[0] / 127.5 / np.sqrt(query.size)
        kept = near[: asked.count]
        both = np.concatenate([query[None], images.pixels[kept]]).transpose(0, 2, 3, 1)
        task.job.shown = Neighbours(np.ascontiguousarray(both))
        ratio = float(away[0] / away[1]) if len(away) > 1 and away[1] > 0 else None
        labels = images.labels
        return {
            "neighbours": [
                {
                    "number": int(number),
                    "distance": float(away[place]),
                    "label": None if labels is None else images.class_names[labels[number]],
                }
                for place, number in enumerate(kept)
            ],
            "count": len(kept),
            "columns": columns_of(len(both)),
            "shape": list(model.shape),
            "ratio": ratio,
            "words": _words(float(away[0]), ratio, len(images)),
        }

    return work


def _words(nearest: float, ratio: float | None, count: int) -> str:
    said = (
        f"The nearest of {count:,} training images differs by {nearest:.3f} a pixel (root mean "
        "square, of values from -1 to 1)"
    )
    if ratio is None:
        return said + "."
    how = "is suspicious: it may be a copy" if ratio < RATIO else "is not the way of a copy"
    return f"{said}; that is {ratio:.2f} of the distance to the second nearest, which {how}."
