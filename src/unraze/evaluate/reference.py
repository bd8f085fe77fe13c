"""What a generator is measured against: the images it learned from, and those it never saw.

Figures are taken against the held-out part alone: training images would reward copying. The
training part is what the feature networks learn from, and where copies are looked for.
"""

from dataclasses import dataclass
from typing import Literal

from unraze.config import DataConfig
from unraze.data import Images, load
from unraze.data.reading import Progress
from unraze.errors import CheckpointError, DataError, InputError
from unraze.generate import Model

__all__ = [
    "SHARE_OF_A_FOLDER",
    "Reference",
    "of_run",
    "of_run_against",
    "of_source",
    "require_same_shape",
]

SHARE_OF_A_FOLDER = 0.5
"""How much of images without a test part are the real ones; features are learned from the rest."""


@dataclass(frozen=True)
class Reference:
    """Real images in two parts, of one shape; `flip`: whether training also saw them mirrored."""

    training: Images
    held_out: Images
    flip: bool


def of_run(model: Model, *, progress: Progress | None = None) -> Reference:
    """The images that a run was trained on, and its held-out part; `progress` as of `load`.

    Raises `DataError` where they cannot be read, or where there is no held-out part, and
    `CheckpointError` where they are not those that the weights were trained on: what is held out
    now might then have been trained on.
    """
    if not model.data:
        raise CheckpointError(
            f"{model.run}: was made of weights that another program trained, on images that it "
            "does not say; say what it is to be held against: unraze eval RUN --against IMAGES"
        )
    data = model.config.data
    training = load(data, split="train", progress=progress)
    if model.data != training.fingerprint:
        raise CheckpointError(
            f"{model.run}: the images of {training.source} are not those it was trained on (their "
            f"fingerprint is {training.fingerprint[:12]}…, was {model.data[:12]}…): bring them and "
            "the run's config.toml back, or draw samples with `unraze sample` and evaluate these, "
            "`unraze eval FOLDER --against IMAGES`"
        )
    try:
        held_out = load(data, split="held-out", progress=progress)
    except DataError as error:
        raise DataError(
            f"{error}: draw samples with `unraze sample` and evaluate these, `unraze eval FOLDER "
            "--against IMAGES`"
        ) from error
    if model.config.train.classes:
        _require_labels(held_out, model)
    return Reference(training, held_out, data.flip)


def of_run_against(
    model: Model, source: str, *, skip_bad: bool = False, progress: Progress | None = None
) -> Reference:
    """Images for a model that does not say what it was trained on: of a source, at its own size.

    Whether these were trained on is not known: where they were, likelihoods flatter the model, and
    where they were not, copies are not found. Raises `InputError` for a model that knows its own
    images, `DataError` where these cannot be read or are not of the model's classes.
    """
    if model.data:
        raise InputError(f"{model.run}: is a run, which knows its own images; leave --against out")
    channels, height, width = model.shape
    assert channels in (1, 3)
    wanted: Literal[1, 3] = 1 if channels == 1 else 3
    found = of_source(
        DataConfig(source=source, size=(height, width), channels=wanted, skip_bad=skip_bad),
        progress=progress,
    )
    if model.config.train.classes:
        _require_labels(found.held_out, model)
    return found


def of_source(data: DataConfig, *, progress: Progress | None = None) -> Reference:
    """Images that are no run's: a known data set's two parts, or a folder's two halves.

    Raises `DataError` where they cannot be read or are too few to be divided.
    """
    halves = data.model_copy(update={"held_out": SHARE_OF_A_FOLDER})
    training = load(halves, split="train", progress=progress)
    return Reference(training, load(halves, split="held-out", progress=progress), data.flip)


def require_same_shape(images: Images, reference: Reference) -> None:
    """Raises `InputError` where images are of another size or channel count than the real ones."""
    ours, theirs = images.pixels.shape[1:], reference.held_out.pixels.shape[1:]
    if ours != theirs:
        shown = [f"{h} x {w} {'grey' if c == 1 else 'colour'}" for c, h, w in (ours, theirs)]
        raise InputError(
            f"{images.source}: images of {shown[0]}, but {reference.held_out.source} has "
            f"{shown[1]}; bring both to one shape with --size and --channels"
        )


def _require_labels(held_out: Images, model: Model) -> None:
    """Raises `DataError` where a conditional run's held-out images are not of its classes."""
    if held_out.labels is None:
        why = "have no labels"
    elif held_out.labels.max() >= model.num_classes:
        why = f"are of {held_out.labels.max() + 1} classes"
    else:
        return
    raise DataError(
        f"{held_out.source}: its held-out images {why}, while {model.run} was trained with "
        f"{model.num_classes} classes; give them the labels of these"
    )
