"""The samples that are evaluated, drawn in parts: a stopped evaluation finds those it has.

A part is one batch, a file `part-00000.npy` under its final name only once it is whole. The noise
of an image depends on its number alone, and a batch is always the same images, so that samples
drawn in one go and in several are the same bytes.
"""

from collections.abc import Generator
from pathlib import Path

import numpy as np
from torch import Tensor

from unraze.config import SampleConfig
from unraze.data import to_uint8
from unraze.errors import UnrazeError
from unraze.evaluate.kept import read_array, write_array
from unraze.evaluate.stage import Stage
from unraze.generate import Classes, Model, class_of, generate, steps_of

__all__ = ["BATCH", "drawn", "labels_asked"]

BATCH = 100
"""Images of one part."""


def drawn(
    model: Model,
    settings: SampleConfig,
    *,
    count: int,
    seed: int,
    classes: Classes,
    folder: Path,
) -> Generator[Stage, None, np.ndarray]:
    """Images 0 … count-1 of a seed, uint8 (count, C, H, W), kept in `folder` as they are made.

    The stages count network steps. Raises `InputError` as `generate` does, `UnrazeError` where
    what is drawn is not finite or cannot be written.
    """
    pixels = np.empty((count, *model.shape), dtype=np.uint8)
    calls = steps_of(model, settings).steps
    parts = [range(first, min(first + BATCH, count)) for first in range(0, count, BATCH)]
    total = calls * len(parts)
    for number, part in enumerate(parts):
        file = folder / f"part-{number:05d}.npy"
        kept = read_array(file, (len(part), *model.shape), np.dtype(np.uint8))
        if kept is None:
            for moment in generate(
                model,
                len(part),
                seed=seed,
                settings=settings,
                classes=classes,
                batch=BATCH,
                first=part.start,
            ):
                yield Stage("sampling", number * calls + moment.done, total)
                if moment.finished:
                    kept = _as_bytes(moment.x, part)
                    write_array(file, kept)
        assert kept is not None, "the last step of a sampler is the finished image"
        pixels[part.start : part.stop] = kept
        yield Stage("sampling", (number + 1) * calls, total)
    return pixels


def labels_asked(model: Model, classes: Classes, count: int) -> np.ndarray | None:
    """The class (count,) that each image was asked to be of; None where there was none to ask."""
    labels = [class_of(model, classes, number) for number in range(count)]
    if any(label is None for label in labels):
        return None
    return np.array(labels, dtype=np.int64)


def _as_bytes(x: Tensor, part: range) -> np.ndarray:
    try:
        return to_uint8(x)
    except ValueError as error:
        raise UnrazeError(
            f"sampling: images {part.start} to {part.stop - 1} hold not-a-number; "
            "the weights are damaged or training diverged: evaluate an older checkpoint"
        ) from error
