"""TensorBoard's event files, in RUN/tensorboard."""

import re
import shlex
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unraze.run import Run

__all__ = ["FOLDER", "TensorBoard"]

FOLDER = "tensorboard"
"""Where in a run its track is."""
FILES = "events.out.tfevents.*"


class TensorBoard:
    """An event file that is being written."""

    def __init__(self, run: Run) -> None:
        self.folder = run.path / FOLDER
        self.writer: Any = None

    @staticmethod
    def require() -> None:
        """Raises `ImportError` where the package is not installed."""
        import torch.utils.tensorboard  # noqa: F401

    @staticmethod
    def is_of(run: Run) -> bool:
        """Whether the run has such a track."""
        return (run.path / FOLDER).is_dir()

    @staticmethod
    def shown_by(run: Run) -> str:
        """The command that shows the track."""
        return f"tensorboard --logdir {shlex.quote(str(run.path / FOLDER))}"

    def steps(self) -> Mapping[str, set[int]]:
        """The steps in the files, by tag; what was purged does not count."""
        from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

        steps: dict[str, set[int]] = defaultdict(set)
        for file in sorted(self.folder.glob(FILES)):
            for event in LegacyEventFileLoader(str(file)).Load():
                if event.HasField("session_log"):
                    for tag in steps:
                        steps[tag] = {step for step in steps[tag] if step < event.step}
                for value in event.summary.value:
                    steps[value.tag].add(event.step)
        return steps

    def open(self, first: int) -> None:
        """Begins a file by which steps from this one on, in the files before it, do not count."""
        from torch.utils.tensorboard import SummaryWriter

        # files count in the order of their names, which begin with the second they are made in
        if max(map(_second_of, self.folder.glob(FILES)), default=0) == int(time.time()):
            time.sleep(1.0)  # by another clock than that, which may jump
        self.writer = SummaryWriter(str(self.folder), purge_step=first)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Adds the values of a step."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, name: str, pixels: np.ndarray[Any, Any], step: int) -> None:
        """Adds a picture, uint8 (H, W, 3)."""
        self.writer.add_image(name, pixels, step, dataformats="HWC")

    def flush(self) -> None:
        """Has all of it in the file."""
        self.writer.flush()

    def close(self) -> None:
        """Ends the file."""
        self.writer.close()


def _second_of(file: Path) -> int:
    found = re.match(r"events\.out\.tfevents\.(\d+)", file.name)
    return int(found[1]) if found else 0
