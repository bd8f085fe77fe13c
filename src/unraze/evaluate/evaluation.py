"""All of an evaluation in order, from a run or a folder of images to one result.

Every part is kept as soon as it is done: samples by batches, the other parts as JSON. The same
evaluation called again takes what is there and makes the rest; another one takes what it shares.
"""

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from pydantic import TypeAdapter

from unraze import __version__
from unraze.config import SampleConfig
from unraze.data import Images
from unraze.errors import InputError, UnrazeError
from unraze.evaluate import likelihood, metrics
from unraze.evaluate.chosen import labels_for
from unraze.evaluate.features import FeatureSpace
from unraze.evaluate.figures import Figure, Number
from unraze.evaluate.intervals import checked
from unraze.evaluate.kept import features_of_images, features_of_pixels, found_part, kept_part
from unraze.evaluate.memorisation import Memorisation, memorisation
from unraze.evaluate.nearest_training import Points, first_of_kind
from unraze.evaluate.noise_levels import Levels, noise_levels
from unraze.evaluate.places import Places
from unraze.evaluate.reference import Reference
from unraze.evaluate.samples import drawn, in_proportion, labels_asked
from unraze.evaluate.stage import Stage
from unraze.generate import Model
from unraze.run import Run, saw_others

__all__ = [
    "EVALUATION",
    "PARTS",
    "Evaluation",
    "InSpace",
    "OfClass",
    "Part",
    "Subject",
    "evaluate_images",
    "evaluate_run",
    "require_enough",
]

T = TypeVar("T")
Array = np.ndarray[Any, Any]
Makes = Callable[[], Generator[Stage, None, T]]
Part = Literal["figures", "memorisation", "levels", "bound", "flow"]
PARTS: tuple[Part, ...] = get_args(Part)
"""What an evaluation consists of; the last three need the network, not its samples."""

FEWEST = {"figures": 7, "memorisation": 1, "levels": 2, "bound": 2, "flow": 2}
"""The fewest real images, and of parts that need samples the fewest of these, without which it
cannot be measured at all."""
OF_SAMPLES = ("figures", "memorisation")
UNKNOWN = (
    "Which images this model was trained on is not known: copies were looked for among the "
    "training part of those named, and likelihoods flatter it where it was trained on the rest."
)
MAY_HAVE_SEEN = (
    "The weights that this run began with may have been trained on the images that it holds out, "
    "which flatters every figure, and on others, among which no copies were looked for."
)
SAW_OTHERS = (
    "This run was trained on other images before those of now took their place "
    "(`--accept-changed-data`): what it holds out now may have been among them, which flatters "
    "every figure, and among those that are gone no copies were looked for."
)
CHOSEN = (
    "This checkpoint was chosen by the held-out images that it is measured against, as the best of "
    "its training, which flatters it a little; `unraze eval FOLDER --against IMAGES` holds samples "
    "against others."
)
FEWEST_OF_A_CLASS = 20
"""Fewer images of a class than this, real or generated, have no figure of their own."""


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a run, by its checkpoint and how it is sampled; or images from anywhere.

    `seed` is that of the samples, `trained_seed` that of the training.
    """

    kind: Literal["run", "images"]
    name: str
    generated: int
    preset: str = ""
    step: int | None = None
    checkpoint: str = ""
    raw: bool = False
    seed: int | None = None
    trained_seed: int | None = None
    classes: int | str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Against:
    """The real images, and those that features were learned from and copies are looked for in."""

    source: str
    real: int
    fingerprint: str
    training: int
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class OfClass:
    """One class of a conditional run: KID against real images of it, and how many of its samples
    the feature network takes for that class, beside the same share of real images."""

    name: str
    kid: Figure | None
    agreement: Number
    agreement_real: Number
    generated: int
    real: int


@dataclass(frozen=True)
class InSpace:
    """The figures in one feature space; `hash` is the SHA-256 of the weights that make it."""

    name: str
    hash: str
    about: str
    figures: tuple[Figure, ...]
    classes: tuple[OfClass, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """Everything that was measured; a part that was never asked for is None or empty.

    `seconds` are those that each part took when it was made, be that now or in an earlier call.
    """

    unraze: str
    made: str
    subject: Subject
    against: Against
    spaces: tuple[InSpace, ...] = ()
    memorisation: Memorisation | None = None
    levels: Levels | None = None
    bounds: tuple[likelihood.Bound, ...] = ()
    flow: likelihood.Flow | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


EVALUATION = TypeAdapter(Evaluation)
"""Reads and writes an evaluation as JSON."""


def require_enough(generated: str, count: int, reference: Reference, parts: Sequence[Part]) -> None:
    """Raises `InputError` where a part cannot be measured of so few images.

    `generated` is what the message calls the images whose number is `count`. `DataError` where
    nearly all training images are the same.
    """
    real = reference.held_out
    for part in parts:
        least = FEWEST[part]
        if len(real) < least:
            raise InputError(
                f"{real.source}: {len(real)} held-out images are too few for {part}, which "
                f"needs {least}; train with more images or a larger --held-out, or leave it out: "
                f"--skip {part}"
            )
        if part in OF_SAMPLES and count < least:
            raise InputError(
                f"{generated}: too few for {part}; give at least {least}, a thousand for figures "
                f"that say much, or leave it out: --skip {part}"
            )
    if "memorisation" in parts:
        first_of_kind(reference.training.pixels, reference.flip)


def evaluate_run(
    model: Model,
    reference: Reference,
    spaces: Sequence[FeatureSpace],
    *,
    subject: Subject,
    settings: SampleConfig,
    parts: Sequence[Part],
    places: Places,
) -> Generator[Stage, None, tuple[Evaluation, Array | None]]:
    """Draws `subject.generated` samples and measures them, and the network itself, part by part.

    Samples of a conditional run are of classes in the proportions of the held-out images.

    Parts that are not among `parts` are taken where they were made before. Returns the samples too,
    None where none were drawn. Raises `InputError` and `UnrazeError` as the parts do.
    """
    count, seconds = subject.generated, dict[str, float]()
    classes = in_proportion(model, reference.held_out)
    real = yield from _real_features(spaces, reference, parts)
    samples: Array | None = None
    if "figures" in parts or "memorisation" in parts:
        seconds["sampling"], samples = yield from drawn(
            model,
            settings,
            count=count,
            seed=subject.seed or 0,
            classes=classes,
            folder=places.samples,
        )
    asked = labels_asked(model, classes, count, subject.seed or 0)
    labels = asked if model.config.train.classes else None
    measured = yield from _of_samples(
        samples, labels, real, reference, spaces, parts, places, seconds
    )
    yield from _of_network(model, reference, parts, places, measured, seconds)
    result = _whole(subject, reference, measured, seconds)
    return replace(result, remarks=(*result.remarks, *_of_its_training(model))), samples


def _of_its_training(model: Model) -> Iterator[str]:
    """What the run's history says against what its held-out images say."""
    if not model.data:
        yield UNKNOWN
        return
    begun, run = model.config.begun, Run(Path(model.run))
    if begun is not None and not begun.unseen:
        yield MAY_HAVE_SEEN
    if saw_others(run):
        yield SAW_OTHERS
    if model.folder is not None and model.folder.parent == run.best:
        yield CHOSEN


def evaluate_images(
    images: Images,
    reference: Reference,
    spaces: Sequence[FeatureSpace],
    *,
    subject: Subject,
    parts: Sequence[Part],
    places: Places,
) -> Generator[Stage, None, Evaluation]:
    """Measures images from any program, by the parts that need no network."""
    seconds: dict[str, float] = {}
    real = yield from _real_features(spaces, reference, parts)
    measured = yield from _of_samples(
        images.pixels, None, real, reference, spaces, parts, places, seconds
    )
    return _whole(subject, reference, measured, seconds)


def _real_features(
    spaces: Sequence[FeatureSpace], reference: Reference, parts: Sequence[Part]
) -> Generator[Stage, None, dict[str, Array]]:
    """The held-out images' features by the spaces' hashes: first, for if they are not as they
    should be, nothing has been drawn or written yet."""
    found: dict[str, Array] = {}
    for space in spaces if "figures" in parts or "memorisation" in parts else ():
        name = f"{space.name}: held-out images"
        found[space.hash] = yield from features_of_images(space, reference.held_out, name)
        if "figures" in parts:
            checked(found[space.hash], found[space.hash])
    return found


def _of_samples(
    samples: Array | None,
    labels: Array | None,
    real: Mapping[str, Array],
    reference: Reference,
    spaces: Sequence[FeatureSpace],
    parts: Sequence[Part],
    places: Places,
    seconds: dict[str, float],
) -> Generator[Stage, None, dict[str, Any]]:
    """The parts that are measured on samples, by their names in `Evaluation`."""
    measured: dict[str, Any] = {}
    of_spaces: list[InSpace | None] = []
    known: dict[str, Array] = {}

    def ours(space: FeatureSpace) -> Generator[Stage, None, Array]:
        """The samples' features, which figures and memorisation share."""
        assert samples is not None
        if space.hash not in known:
            name = f"{space.name}: samples"
            known[space.hash] = yield from features_of_pixels(space, samples, name)
        return known[space.hash]

    for space in spaces:

        def figures(space: FeatureSpace = space) -> Generator[Stage, None, InSpace]:
            assert samples is not None
            generated = yield from ours(space)
            return (
                yield from _in_space(space, samples, generated, labels, real[space.hash], reference)
            )

        file, asked = places.figures(space), "figures" in parts
        of_spaces.append((yield from _part("figures", asked, file, _IN_SPACE, figures, seconds)))
    if None not in of_spaces:
        measured["spaces"] = tuple(of_spaces)

    def copies() -> Generator[Stage, None, Memorisation]:
        assert samples is not None
        points = []
        for space in spaces:
            generated = yield from ours(space)
            points.append((yield from _points(space, generated, real[space.hash], reference)))
        training, unseen = reference.training.pixels, reference.held_out.pixels
        return (yield from memorisation(samples, training, unseen, points, flip=reference.flip))

    name, file = "memorisation", places.memorisation(spaces)
    measured[name] = yield from _part(name, name in parts, file, _MEMORISATION, copies, seconds)
    return measured


def _points(
    space: FeatureSpace, generated: Array, real: Array, reference: Reference
) -> Generator[Stage, None, Points]:
    """With the features of the training images, which are kept as those of held-out ones are."""
    training = reference.training
    learned = yield from features_of_images(space, training, f"{space.name}: training images")
    turned = None
    if reference.flip:
        name = f"{space.name}: mirrored training images"
        turned = yield from features_of_images(space, training, name, mirrored=True)
    return Points(space.name, generated, learned, real, turned)


def _of_network(
    model: Model,
    reference: Reference,
    parts: Sequence[Part],
    places: Places,
    measured: dict[str, Any],
    seconds: dict[str, float],
) -> Generator[Stage, None, None]:
    """The parts that are measured on the network itself are put into `measured`."""
    training, held_out = reference.training, reference.held_out
    told = cache(lambda: labels_for(model, held_out))

    def levels() -> Generator[Stage, None, Levels]:
        made = yield from noise_levels(
            model,
            training.pixels,
            held_out.pixels,
            training_labels=labels_for(model, training),
            held_out_labels=told(),
        )
        losses = [loss for row in made.rows for loss in (row.training, row.held_out)]
        return _finite("loss by noise level", losses, made)

    def bound() -> Generator[Stage, None, tuple[likelihood.Bound, ...]]:
        made = yield from likelihood.bound(model, held_out.pixels, labels=told())
        return _finite("variational bound", [one.bits for one in made], made)

    def flow() -> Generator[Stage, None, likelihood.Flow]:
        made = yield from likelihood.flow(model, held_out.pixels, labels=told())
        return _finite("likelihood by the flow", [made.bits, made.error], made)

    def part(
        name: Part, adapter: TypeAdapter[tuple[float, T]], make: Makes[T]
    ) -> Generator[Stage, None, T | None]:
        return _part(name, name in parts, places.of_network(name), adapter, make, seconds)

    measured["levels"] = yield from part("levels", _LEVELS, levels)
    measured["bounds"] = (yield from part("bound", _BOUNDS, bound)) or ()
    measured["flow"] = yield from part("flow", _FLOW, flow)


_IN_SPACE = TypeAdapter(tuple[float, InSpace])
_MEMORISATION = TypeAdapter(tuple[float, Memorisation])
_LEVELS = TypeAdapter(tuple[float, Levels])
_BOUNDS = TypeAdapter(tuple[float, tuple[likelihood.Bound, ...]])
_FLOW = TypeAdapter(tuple[float, likelihood.Flow])


def _part(
    name: str,
    asked: bool,
    file: Path,
    adapter: TypeAdapter[tuple[float, T]],
    make: Makes[T],
    seconds: dict[str, float],
) -> Generator[Stage, None, T | None]:
    """A part as it was kept, or else made where it is asked for; its seconds are added."""

    def timed() -> Generator[Stage, None, tuple[float, T]]:
        began = time.monotonic()
        result = yield from make()
        return time.monotonic() - began, result

    found = (yield from kept_part(file, adapter, timed)) if asked else found_part(file, adapter)
    if found is None:
        return None
    seconds[name] = round(seconds.get(name, 0.0) + found[0], 1)
    return found[1]


def _finite(name: str, values: Iterable[float], made: T) -> T:
    """What was made; raises `UnrazeError` where one of its numbers is none: the weights are bad."""
    if all(map(math.isfinite, values)):
        return made
    raise UnrazeError(
        f"{name}: is not-a-number; the weights are damaged or training diverged: evaluate an older "
        "checkpoint"
    )


def _in_space(
    space: FeatureSpace,
    samples: Array,
    generated: Array,
    labels: Array | None,
    real: Array,
    reference: Reference,
) -> Generator[Stage, None, InSpace]:
    yield Stage(f"{space.name}: figures", 0, 1)
    figures = metrics.all_figures(real, generated)
    of_classes: tuple[OfClass, ...] = ()
    if labels is not None and reference.held_out.labels is not None:
        of_classes = tuple(_of_classes(space, samples, generated, labels, real, reference))
    yield Stage(f"{space.name}: figures", 1, 1)
    return InSpace(space.name, space.hash, space.about, figures, of_classes)


def _of_classes(
    space: FeatureSpace,
    samples: Array,
    generated: Array,
    labels: Array,
    real: Array,
    reference: Reference,
) -> list[OfClass]:
    theirs = reference.held_out.labels
    assert theirs is not None
    guessed = space.classify(samples)
    guessed_real = space.classify(reference.held_out.pixels)
    found = []
    for number in np.unique(labels).tolist():
        ours, others = labels == number, theirs == number
        enough = min(ours.sum(), others.sum()) >= FEWEST_OF_A_CLASS
        found.append(
            OfClass(
                name=reference.held_out.class_names[number],
                kid=metrics.kid(real[others], generated[ours]) if enough else None,
                agreement=_share(guessed, ours, number),
                agreement_real=_share(guessed_real, others, number),
                generated=int(ours.sum()),
                real=int(others.sum()),
            )
        )
    return found


def _share(probabilities: Array | None, chosen: Array, number: int) -> float:
    """How many of the chosen are taken for class `number`; NaN where that cannot be said."""
    if probabilities is None or not chosen.any():
        return float("nan")
    return float((probabilities[chosen].argmax(1) == number).mean())


def _whole(
    subject: Subject, reference: Reference, measured: dict[str, Any], seconds: dict[str, float]
) -> Evaluation:
    held_out = reference.held_out
    channels, height, width = held_out.pixels.shape[1:]
    against = Against(
        source=held_out.source,
        real=len(held_out),
        fingerprint=held_out.fingerprint,
        training=len(reference.training),
        shape=(channels, height, width),
    )
    return Evaluation(
        unraze=__version__,
        made=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        subject=subject,
        against=against,
        seconds=seconds,
        remarks=_remarks(subject, against, measures_samples=bool(measured.get("spaces"))),
        **measured,
    )


def _remarks(subject: Subject, against: Against, *, measures_samples: bool) -> tuple[str, ...]:
    said = [
        "Intervals cover the drawing of samples and of real images, not training: another seed of "
        "the training gives another model.",
    ]
    if subject.generated < 10_000 and measures_samples:
        said.append(
            f"{subject.generated} samples: Fréchet distances fall as samples grow in number; "
            "published ones are of 50,000 and of other features, so do not put them side by side."
        )
    if subject.settings.get("sampler") == "consistency":
        said.append(
            "A distilled network jumps along the flow and knows no mean of x_0: loss by noise "
            "level, bound and likelihood by the flow are those of the run that it was made of."
        )
    if against.real < 1000:
        said.append(f"Only {against.real} held-out images: the intervals are wide for that reason.")
    return tuple(said)
