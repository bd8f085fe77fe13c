"""What a training would take, before it begins: a few steps are measured."""

from collections.abc import Generator
from typing import Any

import torch

from unraze.config import Config, updated
from unraze.data import Images, load
from unraze.evaluate.stage import Stage
from unraze.hardware import memory, resident
from unraze.measure import fastest, seconds_a_step, share_of_steps, too_short
from unraze.ranks import ALONE
from unraze.step import network_of
from unraze.studio.work import Cancelled, Task, Work
from unraze.train import prepare, require_memory

__all__ = ["estimating"]

MEASURED = 3.0
"""Seconds."""


def estimating(wanted: Config) -> Work:
    """The work of estimating the training that this asks for."""

    def work(task: Task) -> Generator[Stage, None, dict[str, Any]]:
        yield Stage("reading", 0, 1)
        with task.aside():
            images = load(wanted.data, split="train", progress=task.progress("reading"))
        yield Stage("measuring", 0, 1)
        config = prepare(wanted, images)
        classes = len(images.class_names) if config.train.classes else config.train.clusters or 0
        weighing, step = require_memory(config, num_classes=classes)
        cancelled = task.job
        found = seconds_a_step(config, images, 5, MEASURED, ALONE, lambda: cancelled.cancelled)
        if found is None:
            raise Cancelled
        seconds = found[fastest(found)]
        return _told(config, images, classes, seconds, resident() + weighing + step)

    return work


def _told(
    config: Config, images: Images, classes: int, seconds: float, needed: int
) -> dict[str, Any]:
    with torch.device("meta"):
        network = network_of(config, num_classes=classes)
    minutes, batch, share = config.train.minutes, config.train.batch, share_of_steps(config)
    steps = config.train.steps or max(1, round(60 * (minutes or 0) * share / seconds))
    total = 60 * minutes if minutes else steps * seconds / share
    warning = too_short(updated(config, {"train.steps": steps}), minutes, seconds)
    count, channels, height, width = images.pixels.shape
    return {
        "images": count,
        "shape": [channels, height, width],
        "parameters": sum(p.numel() for p in network.parameters()),
        "memory_bytes": needed,
        "memory_there": memory(config.train.device),
        "seconds": total,
        "steps": steps,
        "images_per_second": batch / seconds,
        "flops_an_image": None,
        "words": (
            f"{steps:,} steps of {batch} images, {steps * batch / count:.1f} times all {count:,} "
            f"of them, in about {_clock(total)}; about {needed / 2**30:.1f} GiB of memory."
            f"{'' if warning is None else f' {warning}.'}"
        ),
    }


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
