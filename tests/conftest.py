"""One thread a test process: the test command runs one process a core."""

import os
from collections.abc import Iterator
from pathlib import Path

ONE_THREAD = {"MKL_CBWR": "AUTO,STRICT", "MKL_DYNAMIC": "FALSE", "OPENBLAS_NUM_THREADS": "1"}
"""numpy's small matrices take several times as long on two threads that others want too."""
for variable, value in ONE_THREAD.items():
    os.environ.setdefault(variable, value)

import numpy as np
import pytest
import torch
from processes import Forker, forking

from small_pictures import small_pictures
from unraze import train as training
from unraze.config import Config, from_dict
from unraze.data import Images

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What tests keep for the next time goes into a folder of their own, not into the user's."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["UNRAZE_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def forker(cache: Path) -> Iterator[Forker]:
    """A program that makes processes of the package, to which something befalls."""
    with forking() as running:
        yield running


@pytest.fixture(scope="session", autouse=True)
def quick_pictures() -> Iterator[None]:
    with small_pictures():
        yield


@pytest.fixture(scope="session", autouse=True)
def counted_once() -> Iterator[None]:
    """What a step keeps in memory is counted once of each configuration: a tenth of a second."""
    count, found = training.kept_for_gradients, dict[object, int]()

    def kept(
        network: torch.nn.Module,
        config: Config,
        at_once: int | None = None,
        *,
        num_classes: int = 0,
    ) -> int:
        train = config.train
        key = (
            *(part.model_dump_json() for part in (config.data, config.network, config.loss)),
            *(train.dtype, train.recompute, train.batch, train.accumulate, at_once),
            *((name, p.shape) for name, p in network.named_parameters()),
        )
        if key not in found:
            found[key] = count(network, config, at_once, num_classes=num_classes)
        return found[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "kept_for_gradients", kept)
        yield


@pytest.fixture(scope="session")
def tiny_config() -> Config:
    """A configuration that trains in well under a second: 8×8 images, a few thousand weights."""
    return from_dict(
        {
            "preset": "tiny",
            "network": {"kind": "lean", "fold": 1, "widths": [8, 8], "blocks": 1, "groups": 4},
            "schedule": {"steps": 50},
            "sample": {"steps": 4},
            "train": {
                "steps": 12,
                "batch": 8,
                "dtype": "float32",
                "threads": 1,
                "warmup": 2,
                "preview_every": 6,
                "checkpoint_every": 1000,  # so that nothing need be measured
            },
        }
    )


@pytest.fixture(scope="session")
def tiny_images() -> Images:
    """40 grey images of 8×8, of two classes: bright above, bright below."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 60, (40, 1, 8, 8)).astype(np.uint8)
    labels = (np.arange(40) % 2).astype(np.int64)
    pixels[labels == 0, :, :4] += 180
    pixels[labels == 1, :, 4:] += 180
    return Images.from_arrays(pixels, labels=labels, class_names=("above", "below"), source="tiny")
