"""The memory that a process has after so many steps, or so many samples."""

import gc
from pathlib import Path

from unraze import generate, run as runs, train
from unraze.data import load
from unraze.hardware import resident


def of_steps(path: Path, counts: list[int]) -> list[int]:
    """Bytes after each of these numbers of steps of a run."""
    run = runs.find(path)
    images = load(runs.read_config(run).data)
    found = []
    for report in train.train(run, images):
        if report.phase == "training" and report.step in counts:
            gc.collect()
            found.append(resident())
    return found


def of_samples(path: Path, counts: list[int]) -> list[int]:
    """Bytes after each of these numbers of calls that draw from a run."""
    model = generate.load(path)
    found = []
    for number in range(1, max(counts) + 1):
        generate.sample(model, 2, seed=number)
        if number in counts:
            gc.collect()
            found.append(resident())
    return found
