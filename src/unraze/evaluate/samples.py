"""The samples that are evaluated, drawn in parts: a stopped evaluation finds those it has.

A part is one batch, a file that is called by its first and last image and is there only once it is
whole. The noise of an image depends on its number alone, and a batch is always the same images but
for the last, so that samples drawn in one go and in several are the same bytes, and more samples
begin with the fewer; those of a last batch that is not full are drawn again for more.
"""

import time
from collections.abc import Generator
from pathlib import Path

import numpy as np
from torch import Tensor

from unraze.config import SampleConfig
from unraze.data import Images, to_uint8
from unraze.errors import UnrazeError
from unraze.evaluate.kept import read_arrays, write_arrays
from unraze.evaluate.stage import Stage
from unraze.generate import Classes, Model, class_of, generate, plan_of
from unraze.ranks import Ranks
from unraze.rng import permutation

__all__ = [
    "BATCH",
    "as_bytes",
    "classes_drawn",
    "draw_share",
    "drawn",
    "in_proportion",
    "labels_asked",
    "to_draw",
]

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
) -> Generator[Stage, None, tuple[float, np.ndarray]]:
    """The seconds it took, and images 0 … count-1 of a seed, uint8 (count, C, H, W).

    They are kept in `folder` as they are made. The stages count network steps of a batch. Raises
    `InputError` as `generate` does, `UnrazeError` where what is drawn is not finite or cannot be
    written.
    """
    pixels = np.empty((count, *model.shape), dtype=np.uint8)
    parts = _parts(count)
    seconds = 0.0
    for number, part in enumerate(parts):
        done = number, len(parts)
        spent, images = yield from _part(model, settings, part, done, seed, classes, folder)
        seconds += spent
        pixels[part.start : part.stop] = images
    return round(seconds, 1), pixels


def draw_share(
    model: Model,
    settings: SampleConfig,
    *,
    count: int,
    seed: int,
    classes: Classes,
    folder: Path,
    ranks: Ranks,
) -> Generator[Stage, None, None]:
    """Draws this rank's share of the parts that `drawn` asks for, and then finds there, where all
    ranks have one disk. Raises as `drawn` does."""
    parts = _parts(count)
    own = ranks.share(len(parts))
    for number in own:
        done = number - own.start, len(own)
        yield from _part(model, settings, parts[number], done, seed, classes, folder)


def _part(
    model: Model,
    settings: SampleConfig,
    part: range,
    done: tuple[int, int],
    seed: int,
    classes: Classes,
    folder: Path,
) -> Generator[Stage, None, tuple[float, np.ndarray]]:
    """The seconds that a part took, and its images: those that are kept, or drawn and kept now.

    So many parts of so many are `done`.
    """
    found = _kept(folder, model, part)
    if found is not None:
        return found
    states = plan_of(model, settings).states
    began = time.monotonic()
    moments = generate(
        model,
        len(part),
        seed=seed,
        settings=settings,
        classes=classes,
        batch=BATCH,
        first=part.start,
    )
    for moment in moments:
        yield Stage("sampling", done[0] * states + moment.done, states * done[1])
        x = moment.x
    found = time.monotonic() - began, as_bytes(x, part)
    write_arrays(_file(folder, part), pixels=found[1], seconds=found[0])
    return found


def in_proportion(model: Model, held_out: Images) -> Classes:
    """The held-out images' classes in an order of chance, which samples are asked to be of in turn;
    None of a model without classes, and of one of clusters, which are drawn in proportion.

    Asked for evenly, samples would differ from real images wherever classes are not as frequent as
    each other, however good the model is.
    """
    if not model.config.train.classes or held_out.labels is None:
        return None
    order = permutation(0, "evaluate-classes", len(held_out))
    return tuple(held_out.labels[order].tolist())


def classes_drawn(model: Model) -> str | None:
    """What `in_proportion` asks for, in words; None of a run without classes."""
    if model.clusters is not None:
        return "of clusters, as often as in training"
    return "as held out" if model.num_classes else None


def to_draw(model: Model, count: int, folder: Path) -> int:
    """How many of the images 0 … count-1 are not in the folder yet."""
    return sum(len(part) for part in _parts(count) if _kept(folder, model, part) is None)


def labels_asked(model: Model, classes: Classes, count: int, seed: int) -> np.ndarray | None:
    """The class (count,) that each image was asked to be of; None where there was none to ask."""
    labels = [class_of(model, classes, number, seed) for number in range(count)]
    if any(label is None for label in labels):
        return None
    return np.array(labels, dtype=np.int64)


def _parts(count: int) -> list[range]:
    return [range(first, min(first + BATCH, count)) for first in range(0, count, BATCH)]


def _file(folder: Path, part: range) -> Path:
    return folder / f"images-{part.start:05d}-{part.stop - 1:05d}.npz"


def _kept(folder: Path, model: Model, part: range) -> tuple[float, np.ndarray] | None:
    """The seconds that a part took, and its images; None where it is not there, or damaged."""
    found = read_arrays(
        _file(folder, part),
        pixels=((len(part), *model.shape), np.dtype(np.uint8)),
        seconds=((), np.dtype(np.float64)),
    )
    return None if found is None else (float(found["seconds"]), found["pixels"])


def as_bytes(x: Tensor, part: range) -> np.ndarray:
    """Samples x (B, C, H, W) of these numbers as bytes; raises `UnrazeError` for not-a-number."""
    try:
        return to_uint8(x)
    except ValueError as error:
        raise UnrazeError(
            f"sampling: images {part.start} to {part.stop - 1} hold not-a-number; "
            "the weights are damaged or training diverged: evaluate an older checkpoint"
        ) from error
