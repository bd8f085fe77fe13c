"""A training as TensorBoard shows it: a reader of the reports, beside the run's own logs.

    RUN/tensorboard/    loss, grad_norm, lr, images_per_second     a value a step
                        quality/kid, /low, /high                   a value an evaluation
                        preview                                    the pictures of samples/

What a run logs is in `stats.jsonl`, `quality.jsonl` and `samples/` whether it is tracked or not. So
what a track lacks of steps that are behind, because the run was not tracked then or was killed
before it was written, is taken from there; and what it has of steps that are made again, after a
crash or a rollback, is purged.
"""

import math
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unraze import run as runs
from unraze.errors import InputError
from unraze.run import Run
from unraze.train import Report

__all__ = ["FOLDER", "is_tracked", "require_tensorboard", "tracked"]

FOLDER = "tensorboard"
"""Where in a run its track is."""
OF_A_STEP = ("loss", "grad_norm", "lr", "images_per_second")
OF_AN_EVALUATION = ("kid", "low", "high")
FILES = "events.out.tfevents.*"


def is_tracked(run: Run) -> bool:
    """Whether the run has a track, which is to go on."""
    return (run.path / FOLDER).is_dir()


def require_tensorboard(given: str) -> None:
    """Raises `InputError` where the package is not installed; `given` begins the message."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"{given}: needs the package tensorboard, which is not installed; install it: "
            'pip install "unraze[tensorboard]"'
        ) from error


def tracked(reports: Iterator[Report], run: Run) -> Iterator[Report]:
    """The reports of a run's training (`unraze.train.train`), each handed on once it is written.

    A track that cannot be written is told of in a report, and the training goes on without. Raises
    `InputError` where tensorboard is not installed.
    """
    require_tensorboard("tracking")
    track = _Track(run)
    try:
        for report in reports:
            try:
                track.take(report)
            except OSError as error:
                why = f"{run.path / FOLDER}: cannot be written ({error.strerror or error})"
                yield Report("training", 0, 0, message=f"{why}; training goes on without the track")
                yield report
                break
            yield report
    finally:
        with suppress(OSError):  # which `take` met, and told of
            track.close()
    yield from reports  # none, but where the track could not be written


class _Track:
    """An event file that is being written; `step` is the last one that is in the track, `pictured`
    the steps whose previews are."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.writer: Any = None
        self.step = 0
        self.pictured: set[int] = set()

    def take(self, report: Report) -> None:
        """Writes what is new with this report, and with the moment before it."""
        is_step = report.phase == "training" and report.step > 0
        if self.writer is None:
            if not is_step and report.phase not in ("done", "stopped"):
                return
            self._begin(report.step if is_step else report.step + 1)
        elif is_step and report.step <= self.step:  # training went back
            self._open(report.step)
        self._picture(self.step)  # a preview is made after the report of its step
        if is_step:
            self._scalars({name: getattr(report, name) for name in OF_A_STEP}, report.step)
            self.step = report.step
        elif report.phase == "evaluated":
            for row in runs.read_rows(self.run.quality):
                if row["step"] == report.step:
                    self._quality(row)
        if report.phase in ("saved", "done", "stopped"):
            self.writer.flush()

    def close(self) -> None:
        """Ends the file."""
        if self.writer is not None:
            self.writer.close()

    def _begin(self, step: int) -> None:
        """Opens the track to go on with this step, and writes what it lacks of those before it.

        What comes after the first thing that it lacks is written again: steps of a track rise.
        """
        known = _steps_in(self.run.path / FOLDER)
        rows = [r for r in runs.read_rows(self.run.stats) if "loss" in r and r["step"] < step]
        evaluated = [r for r in runs.read_rows(self.run.quality) if r["step"] < step]
        pictures = [n for n in _previews(self.run) if n < step]
        lacking = {row["step"] for row in rows} - known["loss"]
        lacking |= {row["step"] for row in evaluated} - known["quality/kid"]
        lacking |= set(pictures) - known["preview"]
        first = min(lacking, default=step)
        self.pictured = known["preview"]
        self._open(first)
        for row in rows:
            if row["step"] >= first:
                self._scalars(row, row["step"])
        for row in evaluated:
            if row["step"] >= first:
                self._quality(row)
        for number in pictures:
            self._picture(number)
        self.step = step - 1

    def _open(self, step: int) -> None:
        """Opens a file by which steps from this one on, in the files before it, do not count."""
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        folder = self.run.path / FOLDER
        # files count in the order of their names, which begin with the second they are made in
        if (second := max(map(_second_of, folder.glob(FILES)), default=0)) == int(time.time()):
            time.sleep(max(0.0, second + 1 - time.time()))
        self.writer = SummaryWriter(str(folder), purge_step=step)
        self.step = step - 1
        self.pictured = {number for number in self.pictured if number < step}

    def _quality(self, row: Mapping[str, Any]) -> None:
        values = {f"quality/{name}": row.get(name) for name in OF_AN_EVALUATION}
        self._scalars(values, row["step"], tuple(values))

    def _scalars(
        self, values: Mapping[str, Any], step: int, names: tuple[str, ...] = OF_A_STEP
    ) -> None:
        for name in names:
            value = values.get(name)
            if isinstance(value, int | float) and math.isfinite(value):
                self.writer.add_scalar(name, value, step)

    def _picture(self, step: int) -> None:
        """Adds the preview of a step, where there is one that is not in the track yet."""
        file = self.run.samples / f"step-{step:08d}.png"
        if step in self.pictured or not file.is_file():
            return
        with Image.open(file, formats=("PNG",)) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        self.writer.add_image("preview", pixels, step, dataformats="HWC")
        self.pictured.add(step)


def _second_of(file: Path) -> int:
    found = re.match(r"events\.out\.tfevents\.(\d+)", file.name)
    return int(found[1]) if found else 0


def _previews(run: Run) -> list[int]:
    """The steps of a run's previews, rising."""
    names = (re.fullmatch(r"step-(\d{8,})\.png", p.name) for p in run.samples.glob("step-*.png"))
    return sorted(int(found[1]) for found in names if found)


def _steps_in(folder: Path) -> dict[str, set[int]]:
    """The steps in a track, by tag; what was purged does not count."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    steps: dict[str, set[int]] = defaultdict(set)
    for file in sorted(folder.glob(FILES)):
        for event in LegacyEventFileLoader(str(file)).Load():
            if event.HasField("session_log"):
                for tag in steps:
                    steps[tag] = {step for step in steps[tag] if step < event.step}
            for value in event.summary.value:
                steps[value.tag].add(event.step)
    return steps
