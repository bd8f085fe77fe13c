"""A training as other tools show it: a reader of the reports, beside the run's own logs.

    loss, grad_norm, lr, images_per_second     a value a step
    quality/kid, /low, /high                   a value an evaluation
    preview                                    the pictures of samples/

What a run logs is in `stats.jsonl`, `quality.jsonl` and `samples/` whether it is tracked or not. So
what a track lacks of steps that are behind, because the run was not tracked then or was killed
before it was written, is taken from there; and what it has of steps that are made again, after a
crash or a rollback, is taken away.
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Literal, Protocol, get_args

import numpy as np
from PIL import Image

from unraze import run as runs
from unraze.errors import InputError
from unraze.interop.trackers.tensorboard import TensorBoard
from unraze.interop.trackers.trackio import Trackio
from unraze.run import Run
from unraze.train import Report

__all__ = ["NAMES", "Name", "Tracker", "require_tracker", "shown_by", "tracked", "tracks"]

Name = Literal["tensorboard", "trackio"]
NAMES: tuple[Name, ...] = get_args(Name)
OF_A_STEP = ("loss", "grad_norm", "lr", "images_per_second")
OF_AN_EVALUATION = ("kid", "low", "high")


class Tracker(Protocol):
    """What a tool's writer of one run has to be. What cannot be written is an `OSError`."""

    def steps(self) -> Mapping[str, set[int]]:
        """The steps that the track has, by the name of what they are values of."""

    def open(self, first: int) -> None:
        """Begins to write, from this step on; what there was of it, and later, does not count."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Adds the values of a step."""

    def picture(self, name: str, pixels: np.ndarray[Any, Any], step: int) -> None:
        """Adds a picture, uint8 (H, W, 3)."""

    def flush(self) -> None:
        """Has all of it where others may read it."""

    def close(self) -> None:
        """Ends what `open` began."""


TRACKERS: Mapping[Name, type[TensorBoard] | type[Trackio]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
}


def tracks(run: Run) -> tuple[Name, ...]:
    """The tools that a run has a track of, which is to go on."""
    return tuple(name for name in NAMES if TRACKERS[name].is_of(run))


def shown_by(run: Run, tracker: Name) -> str:
    """The command that shows a run's track."""
    return TRACKERS[tracker].shown_by(run)


def require_tracker(tracker: Name, given: str) -> None:
    """Raises `InputError` where its package is not installed; `given` begins the message."""
    try:
        TRACKERS[tracker].require()
    except ImportError as error:
        raise InputError(
            f"{given}: needs the package {tracker}, which is not installed; install it: "
            f'pip install "unraze[{tracker}]"'
        ) from error


def tracked(reports: Iterator[Report], run: Run, tracker: Name = "tensorboard") -> Iterator[Report]:
    """The reports of a run's training (`unraze.train.train`), each handed on once it is written.

    A track that cannot be written is told of in a report, and the training goes on without. Raises
    `InputError` where the tracker's package is not installed.
    """
    require_tracker(tracker, "tracking")
    track = _Track(run, TRACKERS[tracker](run))
    try:
        for report in reports:
            try:
                track.take(report)
            except OSError as error:
                why = f"{tracker}: its track cannot be written ({error.strerror or error})"
                yield Report("training", 0, 0, message=f"{why}; training goes on without the track")
                yield report
                break
            yield report
    finally:
        with suppress(OSError):  # which `take` met, and told of
            track.close()
    yield from reports  # none, but where the track could not be written


class _Track:
    """A track that is being written; `step` is the last one in it, `pictured` the steps whose
    previews are."""

    def __init__(self, run: Run, tracker: Tracker) -> None:
        self.run = run
        self.tracker = tracker
        self.is_open = False
        self.step = 0
        self.pictured: set[int] = set()

    def take(self, report: Report) -> None:
        """Writes what is new with this report, and with the moment before it."""
        is_step = report.phase == "training" and report.step > 0
        if not self.is_open:
            if not is_step and report.phase not in ("done", "stopped"):
                return
            self._begin(report.step if is_step else report.step + 1)
        elif is_step and report.step <= self.step:  # training went back
            self._begin(report.step)
        self._picture(self.step)  # a preview is made after the report of its step
        if is_step:
            self._scalars({name: getattr(report, name) for name in OF_A_STEP}, report.step)
            self.step = report.step
        elif report.phase == "evaluated":
            for row in runs.read_rows(self.run.quality):
                if row["step"] == report.step:
                    self._quality(row)
        if report.phase in ("done", "stopped"):
            self.close()
        elif report.phase == "saved":
            self.tracker.flush()

    def close(self) -> None:
        """Ends the track."""
        if self.is_open:
            self.is_open = False
            self.tracker.close()

    def _begin(self, step: int) -> None:
        """Opens the track to go on with this step, and writes what it lacks of those before it.

        What comes after the first thing that it lacks is written again: steps of a track rise.
        """
        self.close()
        known = self.tracker.steps()
        rows = [r for r in runs.read_rows(self.run.stats) if "loss" in r and r["step"] < step]
        evaluated = [r for r in runs.read_rows(self.run.quality) if r["step"] < step]
        pictures = [n for n in _previews(self.run) if n < step]
        lacking = {row["step"] for row in rows} - known.get("loss", set())
        lacking |= {row["step"] for row in evaluated} - known.get("quality/kid", set())
        lacking |= set(pictures) - known.get("preview", set())
        first = min(lacking, default=step)
        self.pictured = {number for number in known.get("preview", set()) if number < first}
        self.tracker.open(first)
        self.is_open = True
        for row in rows:
            if row["step"] >= first:
                self._scalars({name: row.get(name) for name in OF_A_STEP}, row["step"])
        for row in evaluated:
            if row["step"] >= first:
                self._quality(row)
        for number in pictures:
            self._picture(number)
        self.step = step - 1

    def _quality(self, row: Mapping[str, Any]) -> None:
        values = {f"quality/{name}": row.get(name) for name in OF_AN_EVALUATION}
        self._scalars(values, row["step"])

    def _scalars(self, values: Mapping[str, Any], step: int) -> None:
        finite = {
            name: value
            for name, value in values.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        if finite:
            self.tracker.scalars(finite, step)

    def _picture(self, step: int) -> None:
        """Adds the preview of a step, where there is one that is not in the track yet."""
        file = self.run.samples / f"step-{step:08d}.png"
        if step in self.pictured or not file.is_file():
            return
        with Image.open(file, formats=("PNG",)) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        self.tracker.picture("preview", pixels, step)
        self.pictured.add(step)


def _previews(run: Run) -> list[int]:
    """The steps of a run's previews, rising."""
    names = (re.fullmatch(r"step-(\d{8,})\.png", p.name) for p in run.samples.glob("step-*.png"))
    return sorted(int(found[1]) for found in names if found)
