"""A small evaluation in the middle of training: cheap, unbiased, the same noise every time.

KID in the first feature space, of few samples drawn in few steps. It has no bias by their number,
as the Fréchet distance has, and as every evaluation of a run starts from the same noise, steps of
one run can be compared more closely than the interval says.
"""

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from unraze import run as runs
from unraze.config import Config
from unraze.data import Images, evenly, to_uint8
from unraze.errors import InputError
from unraze.evaluate.features import FeatureSpace, first_space, to_train
from unraze.evaluate.figures import Figure
from unraze.evaluate.forecast import features_time
from unraze.evaluate.kept import features_of_images
from unraze.evaluate.metrics import kid
from unraze.evaluate.samples import in_proportion
from unraze.evaluate.stage import Stage
from unraze.generate import Model, quick, sample
from unraze.ranks import ALONE, Ranks
from unraze.run import Run

__all__ = [
    "CALLS",
    "SHARE",
    "Cost",
    "Ruler",
    "affordable",
    "every_of",
    "quality",
    "require_worth",
    "ruler",
    "told",
]

SHARE = 0.1
"""The most of the training time that these evaluations may take."""
CALLS = 25
"""Network calls a sample, by DDIM, whatever the run is sampled with otherwise; of a distilled run
those that it was distilled to."""
FEWEST, MOST = 100, 1000
"""Samples of an evaluation."""
FORWARD = 1 / 3
"""What a forward pass is taken for: so much of a training step's image, in the same dtype."""
FEWEST_REAL = 50
"""Held-out images without which these evaluations would say nothing."""
MOST_REAL = 5000
"""Held-out images, at most, that they are held against; taken evenly."""


@dataclass(frozen=True, eq=False)
class Ruler:
    """What every evaluation of a run is measured with: a space, real features there, how many
    samples, every how many steps, and the held-out images themselves."""

    space: FeatureSpace
    real: np.ndarray
    count: int
    every: int
    held_out: Images


class Cost:
    """A stopwatch, in seconds, of the time that evaluations take and of all the rest."""

    def __init__(self, rest: float = 0.0, evaluating: float = 0.0) -> None:
        self.rest, self.evaluating = rest, evaluating
        self.last = time.perf_counter()

    @classmethod
    def before(cls, run: Run, batch: int) -> "Cost":
        """What the logs of a run say of the steps that it has made."""
        paces = (row.get("images_per_second", 0.0) for row in runs.read_rows(run.stats))
        spent = (row.get("seconds", 0.0) for row in runs.read_rows(run.quality))
        return cls(sum(batch / pace for pace in paces if pace > 0), sum(spent))

    @contextmanager
    def of_evaluation(self) -> Iterator[None]:
        """What is done in this context is an evaluation."""
        began = time.perf_counter()
        self.rest += began - self.last
        yield
        self.last = time.perf_counter()
        self.seconds = self.last - began
        self.evaluating += self.seconds

    @property
    def share(self) -> float:
        """The evaluations' share of the time so far."""
        return self.evaluating / (self.evaluating + self.rest)


def affordable(config: Config, steps: float) -> int:
    """Samples whose drawing takes `SHARE` of so many training steps."""
    return int(SHARE * steps * config.train.batch / _cost(config))


def _cost(config: Config) -> float:
    """What a sample takes, in images of a training step."""
    return FORWARD * quick(config, CALLS).steps


def require_worth(config: Config, held_out: Images) -> None:
    """Raises `InputError` where so few samples are affordable that they would say nothing, or so
    few images are held out."""
    every, steps = config.train.eval_every, config.train.steps
    if every is not None and len(held_out) < FEWEST_REAL:
        raise InputError(
            f"train.eval_every = {every}: {len(held_out)} held-out images of {held_out.source} are "
            f"too few to judge by; hold out at least {FEWEST_REAL}, or train without --eval-every"
        )
    if every is None or affordable(config, _interval(every, steps)) >= FEWEST:
        return
    least = math.ceil(FEWEST * _cost(config) / (SHARE * config.train.batch))
    too_dear = f"drawing the {FEWEST} samples that say something takes more than {SHARE:.0%}"
    if steps is not None and steps < least:
        raise InputError(
            f"train.eval_every = {every}: {too_dear} of the run's {steps} steps; give --steps "
            f"{least} --eval-every {least}, or evaluate the run when it is done: unraze eval RUN"
        )
    if steps is not None:  # the last evaluation is at the end, however close the one before
        least = math.ceil(steps / (steps // least))
    raise InputError(
        f"train.eval_every = {every}: {too_dear} of the {_interval(every, steps):.0f} steps from "
        f"one evaluation to the next; give --eval-every {least}"
    )


def every_of(config: Config) -> int:
    """Every how many steps a run is evaluated: as it asks, or more rarely, where minutes turned out
    to be so few steps that it would take more than `SHARE` of them; once at least."""
    every, steps = config.train.eval_every, config.train.steps
    assert every is not None
    assert steps is not None
    if affordable(config, _interval(every, steps)) >= FEWEST:
        return every
    times = affordable(config, steps) // FEWEST
    return math.ceil(steps / max(1, times))


def told(config: Config, training: Images) -> str:
    """What is done before the first evaluation, and how long it takes."""
    said = "making ready to evaluate on held-out images"
    if (every := every_of(config)) != config.train.eval_every:
        said += (
            f", every {every} steps in place of {config.train.eval_every}: more often would take "
            f"more than {SHARE:.0%} of the {config.train.steps} steps"
        )
    recipes = to_train(training, first=True)
    if not recipes:
        return said
    seconds = features_time(recipes, training)
    return f"{said}: training a feature network, once, takes about {seconds:.0f} s"


def ruler(config: Config, training: Images, held_out: Images) -> Generator[Stage, None, Ruler]:
    """The first feature space of the data set and the held-out images' features in it."""
    every, steps = every_of(config), config.train.steps
    space = yield from first_space(training, held_out)
    real = yield from features_of_images(space, held_out, "features of held-out images")
    chosen = evenly(len(real), MOST_REAL)
    count = affordable(config, _interval(every, steps))
    return Ruler(space, real[chosen], min(MOST, max(FEWEST, count)), every, held_out)


def _interval(every: int, steps: int | None) -> float:
    """Steps for each evaluation: there is one every so many, and one at the end."""
    return every if steps is None else steps / math.ceil(steps / every)


def quality(
    model: Model, by: Ruler, ranks: Ranks = ALONE, *, stop: Callable[[], bool] = lambda: False
) -> Figure | None:
    """KID of `by.count` samples of noise that is the same every time; None where what is drawn is
    not finite. Each of several `ranks` draws its share, and finds the features of that. Raises
    `generate.Stopped` where it is to stop meanwhile."""
    settings = quick(model.config, CALLS)
    drawn = sample(
        model,
        by.count,
        seed=model.config.train.seed,
        settings=settings,
        classes=in_proportion(model, by.held_out),
        ranks=ranks,
        stop=stop,
    )
    if ranks.any(not bool(torch.isfinite(drawn).all())):
        return None
    own = np.empty((0, by.space.dim), dtype=np.float32)
    if len(drawn):
        own = by.space.extract(to_uint8(drawn))
    features = ranks.joint(torch.from_numpy(own), by.count)
    return ranks.first(lambda: kid(by.real, features.numpy()))
