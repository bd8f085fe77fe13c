"""Fixing what depends on the machine's speed: the dtype, the steps that the minutes hold, and how
often to save.

Done once, before the first step, and written into the run: from there on nothing depends on time.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from unraze import ema, run as runs
from unraze.batches import looks_twice
from unraze.clusters import Clusters
from unraze.config import Config, updated
from unraze.data import Images
from unraze.evaluate import during
from unraze.hardware import has_bfloat16
from unraze.preview import share_of
from unraze.ranks import ALONE, Ranks
from unraze.run import Run
from unraze.step import Trainee, begin, clip, gradients

__all__ = [
    "Pace",
    "fastest",
    "fewest_steps",
    "fixed",
    "measured",
    "seconds_a_step",
    "share_of_steps",
    "told",
    "too_short",
]

SAVE_SECONDS = 60.0


def fewest_steps(size: tuple[int, int] | None) -> int:
    """Steps without which pictures of that size are blots: nothing is learned yet but levels of
    grey and their places (docs/speed.md, "Too short")."""
    return 300 if max(size or (0, 0)) <= 48 else 600


def measured(
    config: Config,
    images: Images,
    run: Run,
    clusters: Clusters | None = None,
    ranks: Ranks = ALONE,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Config, float] | None:
    """Fixes what depends on the machine's speed, steps and dtype, and writes it into the run; also
    the seconds that a step takes, of a network that is told these `clusters`, where it is. Several
    `ranks` measure together, and the first one fixes it, and alone asks whether to `stop`: None
    then, and nothing is fixed."""
    budget = 60 * config.train.minutes if config.train.minutes else math.inf
    most = config.train.steps // 20 if config.train.steps else 200
    longest = min(5.0, 0.03 * budget)
    seconds = seconds_a_step(config, images, most, longest, ranks, stop, clusters)
    return None if seconds is None else ranks.first(fixed, config, run, seconds)


def fixed(config: Config, run: Run, seconds: dict[str, float]) -> tuple[Config, float]:
    """What follows from the seconds that a step takes in each dtype, written into the run."""
    best = fastest(seconds)
    changes: dict[str, Any] = {"train.dtype": best}
    if config.train.checkpoint_every is None:
        changes["train.checkpoint_every"] = max(1, round(SAVE_SECONDS / seconds[best]))
    if config.train.minutes is not None:
        usable = 60 * config.train.minutes * share_of_steps(config)
        changes["train.steps"] = max(1, round(usable / seconds[best]))
    speed = ", ".join(f"{config.train.batch / s:.0f} images/s in {d}" for d, s in seconds.items())
    asked = f"; {config.train.minutes:g} minutes" if config.train.minutes else ""
    config = updated(config, changes)
    runs.write_config(run, config, note=f"measured: {speed}{asked}: {config.train.steps} steps")
    return config, seconds[best]


def share_of_steps(config: Config) -> float:
    """What of the time is left for steps, beside previews and evaluations."""
    return 1 - share_of(config) - (during.SHARE if config.train.eval_every else 0.0)


def told(config: Config, count: int, seconds: float, memory: int) -> str:
    """The budget in words: steps, images, epochs of `count` images, dtype, time with previews and
    evaluations, memory: the bytes of the device that measuring whole steps took."""
    steps, batch = config.train.steps or 0, config.train.batch
    words = f"{steps} step{'' if steps == 1 else 's'} of {batch} images"
    words += f", {steps * batch / count:.1f} epochs, {config.train.dtype}"
    minutes, rest = divmod(round(steps * seconds / share_of_steps(config)), 60)
    return f"{words}; about {minutes}:{rest:02}, {memory / 2**30:.1f} GiB of memory"


def too_short(config: Config, minutes: float | None, seconds: float | None) -> str | None:
    """What to say of a budget that is too few steps to learn anything, which were asked for
    themselves, or as minutes that turned out to be so few of these `seconds`; None where they
    suffice, or begin with what others have learned."""
    steps, fewest = config.train.steps or 0, fewest_steps(config.data.size)
    if steps >= fewest or config.begun is not None or config.distilled is not None:
        return None
    height, width = config.data.size or (0, 0)
    few = f"fewer than {fewest} learn next to nothing of {height} x {width} pictures"
    count = f"{steps} step{'' if steps == 1 else 's'}"
    if minutes is None or seconds is None:
        return f"TOO SHORT: {count}, and {few}: give --steps {fewest} or more"
    needed = math.ceil(fewest * seconds / share_of_steps(config) / 60)
    return (
        f"TOO SHORT: {minutes:g} minutes are {count} here, and {few}: give --minutes {needed}, "
        "or a smaller --size"
    )


class Pace:
    """Images a second of `batch` a step, smoothed over the last 20 steps or so."""

    def __init__(self, batch: int) -> None:
        self.batch, self.seconds = batch, 0.0
        self.restart()

    def restart(self) -> None:
        """The next step begins now: what was done since the last one is not counted."""
        self.last = time.perf_counter()

    def tick(self) -> None:
        """A step is done."""
        now = time.perf_counter()
        took, self.last = now - self.last, now
        self.seconds = took if self.seconds == 0 else 0.95 * self.seconds + 0.05 * took

    @property
    def images(self) -> float:
        """Images a second; NaN before the first step."""
        return self.batch / self.seconds if self.seconds else math.nan

    def left(self, steps: int) -> float:
        """Seconds that this many steps will take."""
        return steps * self.seconds


def seconds_a_step(
    config: Config,
    images: Images,
    most: int,
    seconds: float,
    ranks: Ranks,
    stop: Callable[[], bool],
    clusters: Clusters | None = None,
) -> dict[str, float] | None:
    """The median time of a step in each dtype that the run may be of, the first step left out; None
    where it was to stop meanwhile. Of a self-conditioned network the mean of two medians: half of
    its steps look twice, and take longer. A network that is told `clusters` is to be measured with
    them: where it is distilled, a guided teacher is asked twice.

    At most so many steps and `seconds` for each, of a run that is then thrown away. The dtypes take
    turns, step by step, so that what else the machine does meanwhile costs them alike.
    """
    scratch = begin(config, images, clusters=clusters, ranks=ranks)
    in_dtype = [
        replace(scratch, config=updated(config, {"train.dtype": dtype}))
        for dtype in _dtypes(config, ranks)
    ]
    each = len(in_dtype)
    kinds = 2 if config.loss.self_conditioning and config.distilled is None else 1
    times: list[float] = []
    started = time.monotonic()

    def kind_of(step: int) -> bool:
        return kinds == 2 and looks_twice(config.train, step)

    def what_next() -> Literal["stop", "step", "end"]:
        if stop():
            return "stop"
        rounds, begun = divmod(len(times), each)
        enough = rounds >= max(5, most) or time.monotonic() - started >= seconds * each
        every_kind = len({kind_of(1 + k) for k in range(1, rounds)}) == kinds
        return "end" if not begun and enough and every_kind else "step"

    while (then := ranks.first(what_next)) != "end":
        if then == "stop":
            return None
        rounds, turn = divmod(len(times), each)
        times.append(_seconds_of(in_dtype[turn], 1 + rounds))
    taken = np.reshape(times, (-1, each))[1:]
    kind = np.array([kind_of(2 + k) for k in range(len(taken))])
    medians = np.mean([np.median(taken[kind == one], axis=0) for one in set(kind)], axis=0)
    return {one.config.train.dtype: float(m) for one, m in zip(in_dtype, medians, strict=True)}


def fastest(seconds: dict[str, float]) -> str:
    """The dtype to train in, of those that a step takes these seconds in: bfloat16 is to earn what
    it leaves out."""
    return min(seconds, key=lambda d: seconds[d] * (1.1 if d == "bfloat16" else 1.0))


def _dtypes(config: Config, ranks: Ranks) -> list[str]:
    """Those that the run may be of: the one that it asks for, or all that every rank's device has
    in hardware."""
    if config.train.dtype != "auto":
        return [config.train.dtype]
    kind = torch.device(config.train.device).type
    able = ranks.each(lambda: has_bfloat16(kind))
    return ["float32", "bfloat16"] if all(able) else ["float32"]


def _seconds_of(scratch: Trainee, step: int) -> float:
    before = time.perf_counter()
    gradients(scratch, step)
    clip(scratch)
    scratch.optimizer.step()
    ema.update(scratch.average, scratch.network, 0.9)
    return time.perf_counter() - before
