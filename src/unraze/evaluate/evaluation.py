"""All of an evaluation in order, from a run or a folder of images to one result.

Every part is kept in the evaluation's folder as soon as it is done: samples by batches, the other
parts as JSON. The same evaluation called again takes what is there and makes the rest.
"""

import hashlib
import json
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from pydantic import TypeAdapter

from unraze import __version__
from unraze.config import SampleConfig
from unraze.data import Images
from unraze.errors import InputError
from unraze.evaluate import likelihood, metrics
from unraze.evaluate.features import FeatureSpace
from unraze.evaluate.figures import Figure, Number
from unraze.evaluate.kept import features_of_images, features_of_pixels, kept_part
from unraze.evaluate.memorisation import Memorisation, memorisation
from unraze.evaluate.noise_levels import Levels, noise_levels
from unraze.evaluate.reference import Reference
from unraze.evaluate.samples import drawn, labels_asked
from unraze.evaluate.stage import Stage
from unraze.generate import Classes, Model

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
    "key_of",
]

T = TypeVar("T")
Part = Literal["figures", "memorisation", "levels", "bound", "flow"]
PARTS: tuple[Part, ...] = get_args(Part)
"""What an evaluation consists of; the last three need the network, not its samples."""

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
    """Everything that was measured; a part that was not asked for is None or empty."""

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


def key_of(
    subject: Subject, reference: Reference, spaces: Sequence[FeatureSpace], fingerprint: str = ""
) -> str:
    """Eight hex digits that tell one evaluation from another; `fingerprint` of given images."""
    what = {
        "subject": TypeAdapter(Subject).dump_python(subject, mode="json"),
        "real": reference.held_out.fingerprint,
        "training": reference.training.fingerprint,
        "spaces": [space.hash for space in spaces],
        "images": fingerprint,
        "unraze": __version__,
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]


def evaluate_run(
    model: Model,
    reference: Reference,
    spaces: Sequence[FeatureSpace],
    *,
    subject: Subject,
    settings: SampleConfig,
    classes: Classes,
    parts: Sequence[Part],
    folder: Path,
) -> Generator[Stage, None, Evaluation]:
    """Draws `subject.generated` samples and measures them, and the network itself, part by part.

    `folder` keeps what is done. Raises `InputError` and `UnrazeError` as the parts do.
    """
    count, seed = subject.generated, subject.seed or 0
    seconds: dict[str, float] = {}
    samples: np.ndarray | None = None
    if "figures" in parts or "memorisation" in parts:
        drawing = drawn(
            model,
            settings,
            count=count,
            seed=seed,
            classes=classes,
            folder=folder / "samples",
        )
        samples = yield from _timed(seconds, "sampling", drawing)
    labels = labels_asked(model, classes, count) if model.num_classes else None
    measured = yield from _of_samples(samples, labels, reference, spaces, parts, folder, seconds)

    training, held_out = reference.training, reference.held_out
    if "levels" in parts:

        def levels() -> Generator[Stage, None, Levels]:
            return noise_levels(
                model,
                training.pixels,
                held_out.pixels,
                training_labels=training.labels,
                held_out_labels=held_out.labels,
            )

        measured["levels"] = yield from _timed(
            seconds, "levels", kept_part(folder / "levels.json", TypeAdapter(Levels), levels)
        )
    if "bound" in parts:

        def bound() -> Generator[Stage, None, tuple[likelihood.Bound, ...]]:
            return likelihood.bound(model, held_out.pixels, labels=held_out.labels)

        adapter = TypeAdapter(tuple[likelihood.Bound, ...])
        measured["bounds"] = yield from _timed(
            seconds, "bound", kept_part(folder / "bound.json", adapter, bound)
        )
    if "flow" in parts:

        def flow() -> Generator[Stage, None, likelihood.Flow]:
            return likelihood.flow(model, held_out.pixels, labels=held_out.labels)

        measured["flow"] = yield from _timed(
            seconds, "flow", kept_part(folder / "flow.json", TypeAdapter(likelihood.Flow), flow)
        )
    return _whole(subject, reference, measured, seconds)


def evaluate_images(
    images: Images,
    reference: Reference,
    spaces: Sequence[FeatureSpace],
    *,
    subject: Subject,
    parts: Sequence[Part],
    folder: Path,
) -> Generator[Stage, None, Evaluation]:
    """Measures images from any program, by the parts that need no network."""
    seconds: dict[str, float] = {}
    measured = yield from _of_samples(
        images.pixels, None, reference, spaces, parts, folder, seconds
    )
    return _whole(subject, reference, measured, seconds)


def _of_samples(
    samples: np.ndarray | None,
    labels: np.ndarray | None,
    reference: Reference,
    spaces: Sequence[FeatureSpace],
    parts: Sequence[Part],
    folder: Path,
    seconds: dict[str, float],
) -> Generator[Stage, None, dict[str, Any]]:
    measured: dict[str, Any] = {}
    if samples is None:
        return measured
    if "figures" in parts:

        def figures() -> Generator[Stage, None, tuple[InSpace, ...]]:
            found = []
            for place, space in enumerate(spaces):
                one = _in_space(space, place + 1, samples, labels, reference)
                found.append((yield from one))
            return tuple(found)

        measured["spaces"] = yield from _timed(
            seconds,
            "figures",
            kept_part(folder / "figures.json", TypeAdapter(tuple[InSpace, ...]), figures),
        )
    if "memorisation" in parts:

        def copies() -> Generator[Stage, None, Memorisation]:
            return memorisation(
                samples,
                reference.training.pixels,
                reference.held_out.pixels,
                spaces,
                flip=reference.flip,
            )

        measured["memorisation"] = yield from _timed(
            seconds,
            "memorisation",
            kept_part(folder / "memorisation.json", TypeAdapter(Memorisation), copies),
        )
    return measured


def _in_space(
    space: FeatureSpace,
    number: int,
    samples: np.ndarray,
    labels: np.ndarray | None,
    reference: Reference,
) -> Generator[Stage, None, InSpace]:
    name = f"features {number}"
    real = yield from features_of_images(space, reference.held_out, f"{name}, real images")
    generated = yield from features_of_pixels(space, samples, f"{name}, samples")
    yield Stage(f"figures {number}", 0, 1)
    figures = metrics.all_figures(real, generated)
    of_classes: tuple[OfClass, ...] = ()
    if labels is not None and reference.held_out.labels is not None:
        of_classes = tuple(_of_classes(space, samples, generated, labels, real, reference))
    yield Stage(f"figures {number}", 1, 1)
    return InSpace(space.name, space.hash, space.about, figures, of_classes)


def _of_classes(
    space: FeatureSpace,
    samples: np.ndarray,
    generated: np.ndarray,
    labels: np.ndarray,
    real: np.ndarray,
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


def _share(probabilities: np.ndarray | None, chosen: np.ndarray, number: int) -> float:
    """How many of the chosen are taken for class `number`; NaN where that cannot be said."""
    if probabilities is None or not chosen.any():
        return float("nan")
    return float((probabilities[chosen].argmax(1) == number).mean())


def _timed(
    seconds: dict[str, float], name: str, part: Generator[Stage, None, T]
) -> Generator[Stage, None, T]:
    began = time.monotonic()
    result = yield from part
    seconds[name] = round(time.monotonic() - began, 1)
    return result


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
        remarks=_remarks(subject, against),
        **measured,
    )


def _remarks(subject: Subject, against: Against) -> tuple[str, ...]:
    said = [
        "Intervals cover the drawing of samples and of real images, not training: another seed of "
        "the training gives another model.",
    ]
    if subject.generated < 10_000:
        said.append(
            f"{subject.generated} samples: Fréchet distances fall as samples grow in number; "
            "published ones are of 50,000 and of other features, so do not put them side by side."
        )
    if against.real < 1000:
        said.append(f"Only {against.real} held-out images: the intervals are wide for that reason.")
    return tuple(said)


def require_enough(count: int, parts: Sequence[Part]) -> None:
    """Raises `InputError` where no figure can bear so few images."""
    if "figures" in parts and count < 10:
        raise InputError(f"{count} images: no figure means anything below 10; give more")
