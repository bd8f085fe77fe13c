"""A small evaluation in the middle of training: cheap, unbiased, the same noise every time.

KID in the first feature space, of few samples drawn in few steps. It has no bias by their number,
as the Fréchet distance has, and as every evaluation of a run starts from the same noise, steps of
one run can be compared more closely than the interval says.
"""

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch

from unraze.config import Config
from unraze.data import Images, to_uint8
from unraze.errors import InputError
from unraze.evaluate.features import FeatureSpace, spaces
from unraze.evaluate.figures import Figure
from unraze.evaluate.kept import features_of_images
from unraze.evaluate.metrics import kid
from unraze.evaluate.stage import Stage
from unraze.generate import Model, changed, sample

__all__ = ["CALLS", "SHARE", "Ruler", "affordable", "quality", "require_worth", "ruler"]

SHARE = 0.1
"""The most of the training time that these evaluations may take."""
CALLS = 25
"""Network calls a sample, by DDIM, whatever the run is sampled with otherwise."""
FEWEST, MOST = 100, 1000


@dataclass(frozen=True, eq=False)
class Ruler:
    """What every evaluation of a run is measured with: a space, real features there, how many
    samples, and every how many steps."""

    space: FeatureSpace
    real: np.ndarray
    count: int
    every: int


def affordable(every: int, batch: int, calls: int = CALLS) -> int:
    """Samples whose drawing takes `SHARE` of `every` training steps; a forward pass is taken for a
    third of a training step."""
    return int(SHARE * every * batch * 3 / calls)


def require_worth(config: Config) -> None:
    """Raises `InputError` where so few samples are affordable that they would say nothing."""
    every, batch = config.train.eval_every, config.train.batch
    if every is None or affordable(every, batch) >= FEWEST:
        return
    least = -(-FEWEST * CALLS * 10 // (3 * batch))
    raise InputError(
        f"train.eval_every = {every}: drawing the {FEWEST} samples that say something takes more "
        f"than {SHARE:.0%} of so few steps; give at least {least}"
    )


def ruler(config: Config, training: Images, held_out: Images) -> Generator[Stage, None, Ruler]:
    """The first feature space of the data set and the held-out images' features in it."""
    every = config.train.eval_every
    assert every is not None
    space, _ = yield from spaces(training, held_out)
    real = yield from features_of_images(space, held_out, "features of held-out images")
    return Ruler(space, real, min(MOST, affordable(every, config.train.batch)), every)


def quality(model: Model, by: Ruler) -> Figure | None:
    """KID of `by.count` samples of noise that is the same every time; None where what is drawn is
    not finite."""
    settings = changed(
        model.config.sample,
        {
            "sampler": "ddim",
            "steps": min(CALLS, model.schedule.steps),
            "eta": 0.0,
            "clip": "clip",
            "guidance": 1.0,
        },
    )
    drawn = sample(model, by.count, seed=model.config.train.seed, settings=settings)
    if not bool(torch.isfinite(drawn).all()):
        return None
    return kid(by.real, by.space.extract(to_uint8(drawn)))
