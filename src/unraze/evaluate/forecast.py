"""How long an evaluation will take: a call of each kind is measured here and multiplied.

That takes a second or so. What other programs do meanwhile is not foreseen.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch

from unraze.config import SampleConfig
from unraze.data import Images
from unraze.evaluate import likelihood, noise_levels
from unraze.evaluate.evaluation import Part
from unraze.evaluate.feature_networks import at_working_size
from unraze.evaluate.feature_training import Recipe, encoded, network, steps_of, trained
from unraze.evaluate.features import MOST, FeatureSpace
from unraze.evaluate.kept import has_features
from unraze.evaluate.memorisation import REFERENCES
from unraze.evaluate.nearest import neighbours
from unraze.evaluate.places import Places
from unraze.evaluate.reference import Reference
from unraze.evaluate.samples import BATCH, to_draw
from unraze.generate import Model, calls_of, class_of, denoiser_of

__all__ = ["call_time", "features_time", "network_time", "samples_time", "sampling_time"]

Array = np.ndarray[Any, Any]
Extract = Callable[[Array], Array]

TRIED = 256
"""Images that a measurement is of: a whole call of the package's own feature networks."""
TRIED_OF_SLOW = 32
SLOW_SECONDS = 0.5
PAIR_SECONDS = 25e-9
"""What a pair of images costs the figures in all, of 64 features, on one core of 2020's machines;
a few seconds for 2,000 and 10,000, so that it need not be measured."""
FRECHET_SECONDS = 1.0
"""The same of both Fréchet distances, whatever the images."""


def features_time(recipes: Sequence[Recipe], training: Images) -> float:
    """Seconds of training these networks, by ten steps of each."""
    seconds = 0.0
    for recipe in recipes:
        some = slice(4 * recipe.batch)
        pixels = at_working_size(training.pixels[some])
        labels = None if training.labels is None else training.labels[some]
        steps = trained(recipe, pixels, labels, len(training.class_names))
        first, began = next(steps).done, time.perf_counter()
        made = next(steps).done - first
        took = (time.perf_counter() - began) / made
        steps.close()
        seconds += took * steps_of(recipe, min(len(training), MOST))
    return seconds


def sampling_time(model: Model, settings: SampleConfig, *, count: int, places: Places) -> float:
    """Seconds of drawing those samples that are not there yet, by one network call."""
    left = to_draw(model, count, places.samples)
    return left * calls_of(model, settings) * call_time(model, settings.dtype) if left else 0.0


def network_time(
    model: Model, reference: Reference, parts: Sequence[Part], places: Places
) -> float:
    """Seconds of noise levels, bound and flow, so far as they are asked for and not there yet."""
    real = len(reference.held_out)
    images = min(noise_levels.IMAGES, real, len(reference.training))
    calls: dict[Part, float] = {
        "levels": 2 * noise_levels.LEVELS * images,
        "bound": likelihood.BOUND_CALLS * min(1.0, real / likelihood.IMAGES),
        "flow": likelihood.FLOW_CALLS * min(1.0, real / likelihood.FLOW_IMAGES),
    }
    left = [calls[p] for p in calls if p in parts and not places.of_network(p).is_file()]
    return sum(left) * call_time(model, "float32") if left else 0.0


def samples_time(
    spaces: Sequence[FeatureSpace | Recipe],
    reference: Reference,
    parts: Sequence[Part],
    places: Places,
    *,
    count: int,
) -> float:
    """Seconds of figures and of memorisation, so far as they are asked for and not there yet.

    A space that is not there yet is given by the recipe of its network.
    """
    made = [space for space in spaces if isinstance(space, FeatureSpace)]
    whole = len(made) == len(spaces)
    real, known = len(reference.held_out), len(reference.training)
    some = min(real, REFERENCES)
    copies = "memorisation" in parts and not (whole and places.memorisation(made).is_file())
    seconds = 0.0
    for space in spaces:
        there = isinstance(space, FeatureSpace) and places.figures(space).is_file()
        figures = "figures" in parts and not there
        images = _to_extract(space, reference, count, copies=copies) if figures or copies else 0
        if images:
            seconds += images * _an_image(_extract(space, reference), reference.held_out.pixels)
        seconds += figures * (FRECHET_SECONDS + PAIR_SECONDS * real * (real + 2 * count))
    if copies:
        searched = (count + some + min(known, REFERENCES)) * known * (1 + reference.flip)
        seconds += searched * (_a_search(reference) + len(spaces) * _a_search(reference, 64))
    return seconds


def _to_extract(
    space: FeatureSpace | Recipe, reference: Reference, count: int, *, copies: bool
) -> int:
    """Images whose features are to be taken: the samples, and the real ones that are not kept."""
    real = [(reference.held_out, False)]
    if copies:
        real += [(reference.training, turned) for turned in (False, True)[: 1 + reference.flip]]
    return count + sum(
        len(images)
        for images, turned in real
        if isinstance(space, Recipe) or not has_features(space, images, mirrored=turned)
    )


def call_time(model: Model, dtype: Literal["auto", "float32", "bfloat16"]) -> float:
    """Seconds of a network call, an image."""
    labels = [class_of(model, None, k, seed=0) for k in range(BATCH)]
    denoise = denoiser_of(model, SampleConfig(guidance=1.0, dtype=dtype), labels)
    x = torch.zeros(BATCH, *model.shape, device=next(model.network.parameters()).device)
    t = model.schedule.times[-1] / 2
    with torch.no_grad():
        denoise(x, t)
        return _seconds(lambda: denoise(x, t)) / BATCH


def _extract(space: FeatureSpace | Recipe, reference: Reference) -> Extract:
    """The space's features, or those of an untrained network of its recipe."""
    if isinstance(space, FeatureSpace):
        return space.extract
    training = reference.training
    pixels = at_working_size(training.pixels[:1])
    net = network(space, pixels.shape[1:], len(training.class_names)).eval()
    return lambda pixels: encoded(net, at_working_size(pixels))


def _an_image(extract: Extract, pixels: Array) -> float:
    """Seconds of one image's features."""
    few, some = pixels[:TRIED_OF_SLOW], pixels[:TRIED]
    seconds = _seconds(lambda: extract(few))
    if seconds > SLOW_SECONDS or len(some) < TRIED:
        return seconds / len(few)
    return _seconds(lambda: extract(some)) / len(some)


def _a_search(reference: Reference, width: int | None = None) -> float:
    """Seconds of looking up one image among one, as it is or of so many numbers."""
    known, asked = (
        images.pixels.reshape(len(images), -1)[:most, :width]
        for images, most in ((reference.training, 8192), (reference.held_out, 2048))
    )
    k = min(2, len(known))
    neighbours(asked[:1], known[:k], k=k)  # what is done once is done now
    return _seconds(lambda: neighbours(asked, known, k=k)) / (len(known) * len(asked))


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
