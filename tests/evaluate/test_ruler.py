"""The evaluator evaluated: figures move as they must where samples are spoilt, and only there.

What is expected stands in docs/ruler.py, which measures Fashion-MNIST for the document; here the
same is asked of the bundled digits, at one strength each.
"""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from unraze.data import Images
from unraze.data.named import read
from unraze.evaluate.features import spaces
from unraze.evaluate.stage import finish

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "docs" / "ruler.py"

TRAINING, REAL, SAMPLES = 500, 450, 450
STRENGTHS = {
    "blur": 0.7,
    "noise": 64,
    "shift": 2,
    "dropped classes": 4,
    "duplicates": 15,
    "copies": 0.1,
    "noisy copies": 0.1,
    "mirrored copies": 1,
}


@pytest.fixture(scope="module")
def ruler() -> Iterator[ModuleType]:
    """docs/ruler.py as a module."""
    spec = importlib.util.spec_from_file_location("ruler", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ruler"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["ruler"]


def digits() -> tuple[Images, Images]:
    """All 1,797, in an order of chance: those to train on, and the rest."""
    parts = [read("digits", part) for part in ("train", "test")]
    pixels = np.concatenate([part.pixels for part in parts]).transpose(0, 3, 1, 2)
    labels = np.concatenate([part.labels for part in parts])
    order = np.random.default_rng(0).permutation(len(pixels))
    return tuple(  # type: ignore[return-value]
        Images.from_arrays(pixels[some], labels=labels[some], source="digits")
        for some in (order[:TRAINING], order[TRAINING:])
    )


@pytest.fixture(scope="module")
def material(ruler: ModuleType, tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNRAZE_CACHE", str(tmp_path_factory.mktemp("cache")))
        training, rest = digits()
        both = finish(spaces(training, rest))
    return ruler.Material.of(training, rest, both, REAL, SAMPLES)


@pytest.fixture(scope="module")
def undisturbed(ruler: ModuleType, material):
    return ruler.measured(material, ruler.UNDISTURBED, 0)
