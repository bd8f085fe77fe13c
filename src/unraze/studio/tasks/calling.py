"""Quality against the number of network calls: KID in the run's first feature space."""

from collections.abc import Generator
from typing import Any

import numpy as np
import torch

from unraze import generate
from unraze.data import evenly, to_uint8
from unraze.errors import InputError
from unraze.evaluate.features import first_space
from unraze.evaluate.figures import Figure
from unraze.evaluate.kept import features_of_images
from unraze.evaluate.metrics import kid, with_floor
from unraze.evaluate.reference import of_run
from unraze.evaluate.samples import in_proportion
from unraze.evaluate.stage import Stage
from unraze.generate import Model
from unraze.run import Run
from unraze.studio.asked import Calls
from unraze.studio.held import Held
from unraze.studio.library import finite
from unraze.studio.work import Task, Work

__all__ = ["calling"]

MOST_REAL = 5000
AT_ONCE = 64


def calling(asked: Calls, run: Run, held: Held) -> Work:
    """The work of drawing and measuring at each number of calls."""

    def work(task: Task) -> Generator[Stage, None, None]:
        yield Stage("reading network and images", 0, 1)
        model = held.model(run)
        with task.aside():
            reference = of_run(model)
        space = yield from first_space(reference.training, reference.held_out)
        name = "features of held-out images"
        real = yield from features_of_images(space, reference.held_out, name)
        real = real[evenly(len(real), MOST_REAL)]
        points: list[dict[str, Any]] = []
        floor: dict[str, Any] | None = None
        for calls in sorted(set(asked.calls)):
            settings = generate.settings_of(model, calls)
            drawn = []
            steps = generate.generate(
                model,
                asked.count,
                seed=asked.seed,
                settings=settings,
                classes=in_proportion(model, reference.held_out),
                batch=AT_ONCE,
            )
            for moment in steps:
                if moment.finished:
                    drawn.append(to_uint8(_checked(moment.x)))
                yield Stage(f"{calls} calls", moment.done, moment.total)
            features = space.extract(np.concatenate(drawn))
            (figure,) = with_floor(kid, real, features)
            points.append(_point(generate.calls_of(model, settings), settings.sampler, figure))
            floor = {"value": finite(figure.floor)}
            task.job.result = _told(asked, model, points, floor)

    return work


def _checked(x: torch.Tensor) -> torch.Tensor:
    if not bool(torch.isfinite(x).all()):
        raise InputError("the network draws not-a-number; take an older checkpoint")
    return x


def _point(calls: int, sampler: str, figure: Figure) -> dict[str, Any]:
    return {
        "calls": calls,
        "sampler": sampler,
        "value": finite(figure.value),
        "low": finite(figure.low),
        "high": finite(figure.high),
    }


def _told(
    asked: Calls, model: Model, points: list[dict[str, Any]], floor: dict[str, Any] | None
) -> dict[str, Any]:
    tuned = sorted(model.tuning.settings) if model.tuning else []
    how = (
        "as `unraze tune` found where it was, else by the run's own sampler"
        if tuned
        else ("by the run's own sampler; `unraze tune RUN` looks for better ways in few calls")
    )
    return {
        "figure": "KID",
        "count": asked.count,
        "points": points,
        "floor": floor,
        "words": f"{asked.count} samples each, {how}; lower is better.",
    }
