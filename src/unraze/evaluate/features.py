"""Features from the data set itself: two networks, trained on its training images once.

Where the images have labels both are classifiers, of different design and seed; where not, both
are self-supervised, of different objective too. A generator is judged in both, so that one that
was tuned to the first is found out by the second.

A network is trained when it is first asked for and kept in `cache_folder()/features` under a key
of the training images and of the way it is made; those for Fashion-MNIST come with the package.
The hash of its weights is to stand beside every figure: figures of different hashes are not
comparable.
"""

import warnings
from collections.abc import Generator
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from unraze.data import Images, to_float
from unraze.data.cache import cache_folder, key
from unraze.errors import CheckpointError, InputError, UnrazeError
from unraze.evaluate.feature_files import Score, read, weights_hash, write
from unraze.evaluate.feature_networks import DIM, Net, at_working_size, working_size
from unraze.evaluate.feature_training import Recipe, encoded, moved, network, trained
from unraze.evaluate.stage import Stage
from unraze.rng import generator, permutation

__all__ = [
    "CLASSIFIERS",
    "FASHION_MNIST",
    "FEWEST",
    "SELF_SUPERVISED",
    "FeatureSpace",
    "first_space",
    "make",
    "spaces",
    "to_train",
]

Array = np.ndarray[Any, Any]

DESIGN = 4
"""Raised whenever networks, training or scores change: what was kept is then made anew."""
FEWEST = 16
"""Training images without which no network is trained."""
MOST = 60_000
"""Training images that networks are trained on, at most, drawn at random; the same ones always."""
MOST_SCORED = 10_000
AMONG = 256
"""Images among which a moved copy is looked for, to score a network without labels."""
BLOCK = 256
NOT_SCORED = Score(0.0, 0, "")

CLASSIFIERS = (
    Recipe("residual classifier", "labels", "residual", seed=2, steps=4500, batch=64, lr=3e-3),
    Recipe("depthwise classifier", "labels", "depthwise", seed=3, steps=4500, batch=64, lr=3e-3),
)
SELF_SUPERVISED = (
    Recipe("contrast", "contrast", "residual", seed=1, steps=2000, batch=64, lr=4e-3),
    Recipe("fill-in", "fill in", "depthwise", seed=4, steps=800, batch=128, lr=3e-3),
)

FASHION_MNIST = "eab147ec8a2c9877eded26f4b9ed96b60d5ddfda732a77c18f7836534e4e0aa5"
"""The fingerprint of Fashion-MNIST's 60,000 training images with their labels."""
SHIPPED = (CLASSIFIERS[0], CLASSIFIERS[1], SELF_SUPERVISED[0])
"""The networks whose weights for Fashion-MNIST come with the package."""


class Extract(Protocol):
    """uint8 (N, C, H, W) -> float32 (N, dim)."""

    def __call__(self, pixels: Array) -> Array: ...


class Classify(Protocol):
    """uint8 (N, C, H, W) -> probabilities float32 (N, K), or None where there are no classes."""

    def __call__(self, pixels: Array) -> Array | None: ...


@dataclass(frozen=True, eq=False)
class FeatureSpace:
    """Where images become points.

    Arguments:
        name: what it is called.
        hash: SHA-256, in hex, of the weights.
        dim: numbers an image.
        about: what it is, and what it scored on held-out images.
        extract: uint8 (N, C, H, W) -> float32 (N, dim); an image's features do not depend on the
            other images. Raises `InputError` where the images are not as the network needs them.
        classify: uint8 (N, C, H, W) -> float32 (N, K), or None where it is no classifier.
    """

    name: str
    hash: str
    dim: int
    about: str
    extract: Extract
    classify: Classify


def spaces(
    training: Images, held_out: Images | None, *, labels: bool = True
) -> Generator[Stage, None, tuple[FeatureSpace, FeatureSpace]]:
    """The two feature spaces of a data set, trained where they are not kept.

    Arguments:
        training: the images that the generator was trained on, at least 16 of any size.
        held_out: what the networks are scored on, for `about`; None leaves the score out.
        labels: whether labels are used where there are any, of at least two classes.

    A few minutes at most on two cores for 60,000 images of 28 x 28; the steps do not depend on a
    clock. Warns where a kept file is damaged, or where one cannot be kept. Raises `InputError` for
    too few images, or where held-out images are of another shape.
    """
    _require_fit(training, held_out)
    first, second = _recipes(training, labels=labels)
    one = yield from _space(first, training, held_out)
    two = yield from _space(second, training, held_out)
    return one, two


def first_space(training: Images, held_out: Images | None) -> Generator[Stage, None, FeatureSpace]:
    """The first of `spaces` alone; the other one is not trained. Raises as that does."""
    _require_fit(training, held_out)
    return (yield from _space(_recipes(training, labels=True)[0], training, held_out))


def to_train(training: Images, *, first: bool = False) -> tuple[Recipe, ...]:
    """Those of the networks that `spaces`, or `first_space`, trains, for they are kept nowhere."""
    recipes = _recipes(training, labels=True)[: 1 if first else None]
    left = [recipe for recipe in recipes if not _is_shipped(recipe, training)]
    return tuple(recipe for recipe in left if not _file(recipe, training).is_file())


def make(
    recipe: Recipe, training: Images, held_out: Images | None
) -> Generator[Stage, None, tuple[Net, Score]]:
    """Trains one network and scores it, whether or not it is kept somewhere."""
    pixels, labels = yield from _pool(training, recipe.name)
    net = yield from trained(recipe, pixels, labels, len(training.class_names))
    return net, _score(recipe, net, held_out)


def _space(
    recipe: Recipe, training: Images, held_out: Images | None
) -> Generator[Stage, None, FeatureSpace]:
    """One space: from the package, from the cache, or trained."""
    if _is_shipped(recipe, training):
        return _shipped(recipe, training, held_out)
    file = _file(recipe, training)
    kept: tuple[Net, Score] | None = None
    if file.is_file():
        try:
            kept = read(file, _blank(recipe, training), recipe)
        except CheckpointError as error:
            warnings.warn(f"{error}; the features are trained anew", stacklevel=2)
    if kept is None:
        net, score = yield from make(recipe, training, held_out)
        _keep(file, net, recipe, score)
    else:
        net, score = kept
        if held_out is not None and score.held_out != held_out.fingerprint:
            score = _score(recipe, net, held_out)
            _keep(file, net, recipe, score)
    return _as_space(recipe, net, score if held_out is not None else NOT_SCORED, training)


def _require_fit(training: Images, held_out: Images | None) -> None:
    if len(training) < FEWEST:
        raise InputError(
            f"{training.source}: {len(training)} images are too few to train features on; give at "
            f"least {FEWEST}, or features by a file (onnx:FILE)"
        )
    if held_out is not None and held_out.pixels.shape[1:] != training.pixels.shape[1:]:
        raise InputError(
            f"held-out images are {_shape(held_out.pixels)}, training images "
            f"{_shape(training.pixels)}; give images of one shape"
        )


def _recipes(training: Images, *, labels: bool) -> tuple[Recipe, Recipe]:
    return CLASSIFIERS if labels and _has_classes(training) else SELF_SUPERVISED


def _is_shipped(recipe: Recipe, training: Images) -> bool:
    return training.fingerprint == FASHION_MNIST and recipe in SHIPPED


def _file(recipe: Recipe, training: Images) -> Path:
    """Where the cache has a network, or would have it."""
    slug = recipe.name.replace(" ", "-")
    name = key("features", DESIGN, training.fingerprint, asdict(recipe))
    return cache_folder() / "features" / f"{name}-{slug}.safetensors"


def _shipped(recipe: Recipe, training: Images, held_out: Images | None) -> FeatureSpace:
    slug = recipe.name.replace(" ", "-")
    file = resources.files("unraze.evaluate") / "weights" / f"fashion-mnist-{slug}.safetensors"
    try:
        net, score = read(Path(str(file)), _blank(recipe, training), recipe)
    except CheckpointError as error:
        raise UnrazeError(f"{error}; it came with the package: install unraze again") from error
    if held_out is not None and score.held_out != held_out.fingerprint:
        score = _score(recipe, net, held_out)
    return _as_space(recipe, net, score if held_out is not None else NOT_SCORED, training)


def _blank(recipe: Recipe, training: Images) -> Net:
    channels, height, width = training.pixels.shape[1:]
    shape = (channels, *working_size((height, width)))
    return network(recipe, shape, len(training.class_names))


def _as_space(recipe: Recipe, net: Net, score: Score, training: Images) -> FeatureSpace:
    shape = training.pixels.shape[1:]

    def seen(pixels: Array) -> Array:
        if pixels.dtype != np.uint8 or pixels.shape[1:] != shape or pixels.size == 0:
            raise InputError(
                f"images are {pixels.dtype} {pixels.shape}; the {recipe.name} was trained on "
                f"images of {_shape(training.pixels)}: give uint8 (N, {', '.join(map(str, shape))})"
            )
        return at_working_size(pixels)

    def extract(pixels: Array) -> Array:
        return encoded(net, seen(pixels))

    def classify(pixels: Array) -> Array | None:
        if recipe.objective != "labels":
            return None
        out = torch.from_numpy(encoded(net, seen(pixels), head=True))
        probabilities: Array = out.softmax(dim=1).numpy()
        return probabilities

    return FeatureSpace(
        name=recipe.name,
        hash=weights_hash(net, recipe),
        dim=DIM,
        about=f"{DIM} features of {_described(recipe)}, trained on the training images; "
        f"{_said(recipe, score)}",
        extract=extract,
        classify=classify,
    )


def _described(recipe: Recipe) -> str:
    match recipe.objective:
        case "labels":
            return f"a {recipe.design} network that tells the classes apart"
        case "contrast":
            return f"a {recipe.design} network that knows an image again after it was moved"
        case "fill in":
            return f"a {recipe.design} network that fills in what was blanked in an image"


def _said(recipe: Recipe, score: Score) -> str:
    if score.count == 0:
        return "not scored, for want of held-out images"
    if recipe.objective == "labels":
        return f"right on {score.share:.2%} of {score.count} held-out images"
    return (
        f"finds the moved copy of {score.share:.2%} of {score.count} held-out images, each among "
        f"{min(AMONG, score.count)}"
    )


def _score(recipe: Recipe, net: Net, held_out: Images | None) -> Score:
    """Accuracy of a classifier; for others the share of images whose moved copy is, in features,
    by the cosine, nearer than that of any other of 256."""
    if held_out is None:
        return NOT_SCORED
    every = permutation(0, "evaluate-features-score", len(held_out))
    chosen = np.sort(every[:MOST_SCORED])
    pixels = at_working_size(held_out.pixels[chosen])
    if recipe.objective == "labels":
        if held_out.labels is None:
            return Score(0.0, 0, held_out.fingerprint)
        right = encoded(net, pixels, head=True).argmax(1) == held_out.labels[chosen]
        return Score(float(right.mean()), len(chosen), held_out.fingerprint)
    found = 0
    for number, first in enumerate(range(0, len(pixels), AMONG)):
        part = to_float(pixels[first : first + AMONG])
        copy = moved(part, generator(0, "evaluate-features-copies", number), strong=True)
        with torch.inference_mode():
            likeness = _unit(net.features(part)) @ _unit(net.features(copy)).T
        found += int((likeness.argmax(1) == torch.arange(len(part))).sum())
    return Score(found / len(pixels), len(pixels), held_out.fingerprint)


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=1)


def _pool(training: Images, name: str) -> Generator[Stage, None, tuple[Array, Array | None]]:
    """Training pixels (at most 60,000) at their working size, and their labels."""
    pixels, labels = training.pixels, training.labels
    count = min(len(training), MOST)
    chosen = np.sort(permutation(0, "evaluate-features-pool", len(training))[:count])
    size = working_size((pixels.shape[2], pixels.shape[3]))
    if count == len(training) and size == pixels.shape[2:]:
        return pixels, labels
    out = np.empty((count, pixels.shape[1], *size), dtype=np.uint8)
    for first in range(0, count, BLOCK):
        out[first : first + BLOCK] = at_working_size(pixels[chosen[first : first + BLOCK]])
        yield Stage(f"features: {name}, reading images", min(first + BLOCK, count), count)
    return out, None if labels is None else labels[chosen]


def _has_classes(training: Images) -> bool:
    return training.labels is not None and len(np.unique(training.labels)) > 1


def _keep(file: Path, net: Net, recipe: Recipe, score: Score) -> None:
    try:
        write(file, net, recipe, score)
    except OSError as error:
        warnings.warn(
            f"{file}: cannot be written ({error.strerror or error}); the features are trained "
            "again next time: make room, or set UNRAZE_CACHE to another folder",
            stacklevel=2,
        )


def _shape(pixels: Array) -> str:
    return " x ".join(str(n) for n in pixels.shape[1:])
