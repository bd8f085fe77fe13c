"""The images of the benchmarks: to train on, to choose by and to claim by, and how alike two are.

Nothing is chosen by what is claimed by: of Fashion-MNIST the last 5,000 training images are set
aside to choose by, and its 10,000 test images are what claims are made on. Of other images a fifth
is held out, of which one half is chosen by and one half claimed by.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kept
import numpy as np

from unraze.config import DataConfig
from unraze.data import Images, load
from unraze.evaluate.features import FeatureSpace, spaces
from unraze.evaluate.figures import Figure
from unraze.evaluate.gaussian import FEWEST_PER_FEATURE, FRECHET
from unraze.evaluate.memorisation import memorisation
from unraze.evaluate.metrics import frechet, kid, with_floor
from unraze.evaluate.nearest_training import Points
from unraze.evaluate.stage import finish

__all__ = ["FASHION", "Material", "copies", "figures", "material", "test_images"]

Array = np.ndarray[Any, Any]

FASHION = "fashion-mnist"
VALIDATION = 5000
HELD_OUT = 0.2


@dataclass(frozen=True)
class Material:
    """What all are trained on, what is chosen by, and what claims are made on.

    `name` begins the names of the cells; `measure` is what is compared: where the images are too
    few for a Fréchet distance, KID.
    """

    name: str
    training: Images
    validation: Array
    test: Array
    spaces: tuple[FeatureSpace, ...]
    measure: str


def material(source: str, size: int | None = None, *, samples: int) -> Material:
    """A data set in three parts and its feature spaces.

    Fashion-MNIST has two that are shipped; other images may take minutes of training for theirs.
    `samples` are the generated ones that will be held against them.
    """
    data = DataConfig(source=source, size=size and (size, size), held_out=HELD_OUT)
    if source == FASHION:
        whole, test = load(data), load(data, split="test")
        most = len(whole) - VALIDATION
        part, validation, testing = whole.pixels[:most], whole.pixels[most:], test.pixels
        name = ""
    else:
        whole, test = load(data), load(data, split="held-out")
        part, validation, testing = whole.pixels, test.pixels[::2], test.pixels[1::2]
        name = f"{kept.slug(Path(source).resolve().name)}-{whole.pixels.shape[2]}px-"
    found = finish(spaces(whole, test))
    fewest = min(len(validation) // 2, len(testing) // 2, samples)
    enough = fewest >= FEWEST_PER_FEATURE * max(space.dim for space in found)
    labels = None if whole.labels is None else whole.labels[: len(part)]
    training = Images.from_arrays(
        part, labels=labels, class_names=whole.class_names, source=f"{source}, {len(part):,}"
    )
    return Material(name, training, validation, testing, found, FRECHET if enough else "KID")


def figures(of: Material, theirs: Array, ours: Array) -> list[Figure]:
    """Of samples' features (N, D) against those of real images: Fréchet's distance where it is
    compared, and KID, each with its floor."""
    distances = with_floor(frechet, theirs, ours) if of.measure == FRECHET else ()
    return [*distances, *with_floor(kid, theirs, ours)]


def copies(drawn: Array, of: Material, held_out: Array) -> dict[str, Any]:
    """Whether samples are copies of training images, by their pixels, and where images are few in
    each feature space as well; and how sure that is."""
    spaces = () if of.measure == FRECHET else of.spaces
    known = of.training.pixels
    points = [Points(space.name, *map(space.extract, (drawn, known, held_out))) for space in spaces]
    found = finish(memorisation(drawn, known, held_out, points, flip=False))
    said = {
        one.space: {
            "d1/d2 < 1/3": {"samples": one.share, "held-out images": one.share_held_out},
            "closer": one.closer,
            "closer_ratio": one.closer_ratio,
            "detectable": one.detectable,
        }
        for one in found.spaces
    }
    return {"verdict": found.verdict, "spaces": said}


def test_images() -> tuple[Array, tuple[FeatureSpace, ...]]:
    """Fashion-MNIST's test images, and the feature spaces to hold samples against them in."""
    data = DataConfig(source=FASHION)
    whole, test = load(data), load(data, split="test")
    return test.pixels, finish(spaces(whole, test))
