"""A set of images at a glance: what `unraze data stats` and `data check` say of it."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np

from unraze import data
from unraze.config import DataConfig
from unraze.data import Images
from unraze.errors import DataError
from unraze.evaluate.stage import Stage
from unraze.studio.held import Held
from unraze.studio.library import Missing, finite
from unraze.studio.sprites import png
from unraze.studio.work import Task, Work

__all__ = ["HELD_OUT", "Sheets", "looking"]

HELD_OUT = 0.1
"""As in the presets."""
NAMED = 20


@dataclass(frozen=True, eq=False)
class Sheets:
    """Contact sheets of what is trained on and of what is held out, uint8 (H, W, C)."""

    training: np.ndarray[Any, Any]
    held_out: np.ndarray[Any, Any] | None

    def sheet(self, name: str) -> bytes:
        """One of them as a PNG; raises `Missing`."""
        pixels = self.training if name == "sheet" else self.held_out
        if pixels is None:
            raise Missing("nothing is held out of these images")
        return png(pixels)


def looking(wanted: DataConfig, held: Held) -> Work:
    """The work of reading all of them and looking for what would spoil a training."""

    def work(task: Task) -> Generator[Stage, None, dict[str, Any]]:
        yield Stage("reading", 0, 1)
        progress = task.progress("reading")
        with task.aside():
            images = held.images(wanted, "train", progress)
            try:
                unseen: Images | None = held.images(wanted, "held-out", progress)
            except DataError:  # too few, or the source has no such part
                unseen = None
        yield Stage("counting", 0, 1)
        told = data.stats(images)
        sheets = [None if one is None else data.contact_sheet(one) for one in (images, unseen)]
        assert sheets[0] is not None
        task.job.shown = Sheets(sheets[0], sheets[1])
        yield Stage("checking", 0, 1)
        with task.aside():
            findings = data.check(wanted, progress=task.progress("checking"))
        return {
            "stats": {
                "count": told.count,
                "held_out": 0 if unseen is None else len(unseen),
                "height": told.size[0],
                "width": told.size[1],
                "channels": told.channels,
                "mean": [finite(value) for value in told.mean],
                "spread": [finite(value) for value in told.spread],
                "sigma_data": finite(told.sigma_data),
                "classes": told.classes,
            },
            "findings": [
                {
                    "severity": each.severity,
                    "kind": each.kind,
                    "what": each.what,
                    "remedy": each.remedy,
                    "names": list(each.names[:NAMED]),
                    "count": each.count,
                }
                for each in findings
            ],
            "sheet": True,
            "held_sheet": unseen is not None,
            "words": "nothing wrong with it"
            if all(each.kind == "held out" for each in findings)
            else "",
        }

    return work
