"""Small runs, and the images and features that they are evaluated by, made in a second or two."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unraze import train as training
from unraze.config import Config, DataConfig, from_dict, updated
from unraze.data import load
from unraze.evaluate import feature_training, likelihood
from unraze.evaluate.features import FeatureSpace, spaces
from unraze.evaluate.stage import finish

TRAINING, HELD_OUT = 150, 60


@dataclass(frozen=True)
class Small:
    """Where things are: some of the digits with a test part, runs trained on them, a cache.

    `run` and `other` differ in the seed of their training, `classy` is conditional.
    """

    folder: Path
    data: Path
    cache: Path
    run: Path
    other: Path
    classy: Path
    spaces: tuple[FeatureSpace, ...]


def small(folder: Path) -> Small:
    """Makes it all; the features are trained for few steps and kept in a cache of their own."""
    data, cache = digits_file(folder / "digits.npz"), folder / "cache"
    with pytest.MonkeyPatch.context() as patch, few_steps():
        patch.setenv("UNRAZE_CACHE", str(cache))
        config = DataConfig(source=str(data))
        found = finish(spaces(load(config), load(config, split="held-out")))
        return Small(
            folder=folder,
            data=data,
            cache=cache,
            run=small_run(folder / "run", data),
            other=small_run(folder / "other", data, {"train.seed": 1}),
            classy=small_run(folder / "classy", data, {"train.classes": True}),
            spaces=found,
        )


def digits_file(file: Path, *, test_labels: bool = True) -> Path:
    """An `.npz` of digits: 150 to train on, 60 to test with, and their labels."""
    whole = load(DataConfig(source="digits"))
    assert whole.labels is not None
    parts = {"train": slice(TRAINING), "test": slice(TRAINING, TRAINING + HELD_OUT)}
    arrays = {f"x_{name}": whole.pixels[part, 0] for name, part in parts.items()}
    arrays |= {f"y_{name}": whole.labels[part] for name, part in parts.items()}
    if not test_labels:
        del arrays["y_test"]
    np.savez(file, **arrays)
    return file


def small_config(changes: dict[str, Any] | None = None) -> Config:
    """30 steps of a network of a few thousand weights, and 4 steps of sampling."""
    values = {
        "preset": "tiny",
        "network": {"kind": "lean", "fold": 2, "widths": [8, 8], "blocks": 1, "groups": 4},
        "schedule": {"steps": 50},
        "sample": {"steps": 4},
        "train": {"steps": 30, "batch": 16, "dtype": "float32", "threads": 1, "warmup": 2},
    }
    values["train"] |= {"preview_every": 1000, "checkpoint_every": 1000}  # type: ignore[operator]
    return updated(from_dict(values), changes or {})


def small_run(out: Path, source: Path, changes: dict[str, Any] | None = None) -> Path:
    """A run of that configuration, trained."""
    config = small_config({"data.source": str(source), **(changes or {})})
    training.fit(load(config.data), config, out=out)
    return out


@contextmanager
def few_steps() -> Iterator[None]:
    """Feature networks are trained for 12 steps in here: they tell images apart, if badly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_training, "FEWEST_STEPS", 12)
        patch.setattr(feature_training, "EPOCHS", 1)
        yield


def short_flow(patch: pytest.MonkeyPatch) -> None:
    """An evaluation follows the flow in 4 steps and in 2, not in 32 and in 16: most of its time."""
    patch.setitem(likelihood.flow.__kwdefaults__, "steps", 4)


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, and what is in it."""
    return {
        os.path.relpath(path, folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
