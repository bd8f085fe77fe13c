"""The pictures that a training run leaves on its way."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from unraze import __version__, checkpoint, pictures, rng, run as runs
from unraze.config import Config
from unraze.data import Images
from unraze.generate import Model, Stopped, dtype_of, quick, sample
from unraze.run import Run
from unraze.step import Trainee, plain

__all__ = [
    "averaged_model",
    "is_previewed",
    "preview",
    "preview_interval",
    "remove_previews_after",
    "share_of",
    "write_reals",
]

SHARE = 0.04
"""Of the training time, what previews may take."""
CALLS = 25
"""Network calls an image."""
FORWARD = 1 / 3
"""What a forward pass is taken for: so much of a training step's image."""


def share_of(config: Config) -> float:
    """Of the time of a run, what its previews take: `SHARE`, or more where they are so close that
    two pictures each, one a side, are more than that."""
    if config.train.preview_every is None:
        return SHARE
    least = _pair(config) / config.train.batch
    return max(SHARE, least / (config.train.preview_every + least))


def _pair(config: Config) -> float:
    """What a picture on either side takes, in images of a training step."""
    return 2 * quick(config, CALLS).steps * FORWARD


def preview_interval(config: Config) -> int:
    """Steps from one preview to the next: as configured, or so that eight fit in the budget."""
    assert config.train.steps is not None
    return config.train.preview_every or max(1, math.ceil(config.train.steps / 8))


def is_previewed(run: Run, step: int) -> bool:
    """Whether there is a preview of this step."""
    return _file(run, step).exists()


def preview(
    trainee: Trainee, run: Run, step: int, stop: Callable[[], bool] = lambda: False
) -> bool:
    """Images from fixed noise at this step: as trained on the left, averaged on the right. False
    where it was to stop meanwhile; then there is none.

    The recipe holds the hashes of both, as a checkpoint of this step has them. Of several ranks
    each draws its share, and the first one writes.
    """
    ranks = trainee.ranks
    config = trainee.config
    settings = quick(trainee.config, CALLS)
    affordable = SHARE * preview_interval(config) * config.train.batch / _pair(config)
    count = max(1, min(32, int(affordable)))
    sides, hashes = [], []
    for weights in (trainee.network.state_dict(), trainee.average):
        model = _model(trainee, plain(trainee, weights), run)
        if ranks.is_first:
            hashes.append(checkpoint.hash_of(model.network.state_dict()))
        try:
            drawn = sample(
                model, count, seed=config.train.seed, settings=settings, ranks=ranks, stop=stop
            )
        except Stopped:
            return False
        if ranks.any(not bool(torch.isfinite(drawn).all())):
            if ranks.is_first:
                runs.log(run, f"no preview at step {step}: the images drawn are not finite")
            return True
        sides.append(pictures.grid(pictures.pixels_of(ranks.joint(drawn, count))))
    if not ranks.is_first:
        return True
    pictures.write_png(
        pictures.beside(sides),
        _file(run, step),
        {
            "unraze": __version__,
            "kind": "preview",
            "run": run.path.name,
            "step": step,
            "checkpoint": hashes[1],
            "checkpoint as trained": hashes[0],
            "threads": torch.get_num_threads(),
            "dtype": dtype_of(model, settings),
            "left": "weights as trained",
            "right": "their average",
            "seed": config.train.seed,
            "settings": settings.model_dump(mode="json"),
        },
    )
    return True


def remove_previews_after(run: Run, step: int) -> None:
    """Removes the previews of a course that is given up from this step on."""
    for file in run.samples.glob("step-*.png"):
        number = file.stem.removeprefix("step-")
        if number.isdecimal() and int(number) > step:
            file.unlink()


def _file(run: Run, step: int) -> Path:
    return run.samples / f"step-{step:08d}.png"


def averaged_model(trainee: Trainee, run: Run) -> Model:
    """The averaged weights as they are now, to sample from."""
    return _model(trainee, plain(trainee, trainee.average), run)


def _model(trainee: Trainee, network: nn.Module, run: Run) -> Model:
    channels, height, width = trainee.images.pixels.shape[1:]
    return Model(
        config=trainee.config,
        network=network.eval(),
        schedule=trainee.schedule,
        shape=(channels, height, width),
        class_names=tuple(trainee.images.class_names),
        num_classes=trainee.num_classes,
        sigma_data=trainee.config.loss.sigma_data or 1.0,
        run=str(run.path),
        clusters=trainee.clusters,
    )


def write_reals(run: Run, images: Images) -> None:
    """Up to 64 of the training images, to look at beside the previews."""
    order = rng.permutation(0, "reals", len(images.pixels))[:64]
    shown = np.asarray(images.pixels[np.sort(order)]).transpose(0, 2, 3, 1)
    picture = pictures.grid(shown)
    pictures.write_png(
        picture,
        run.path / "reals.png",
        {"unraze": __version__, "kind": "reals", "run": run.path.name, "source": images.source},
    )
