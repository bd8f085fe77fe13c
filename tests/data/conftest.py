"""A cache of the test's own, and pictures made on the fly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, so that no test sees this machine's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("UNRAZE_CACHE", str(folder))
    return folder


@pytest.fixture
def noise() -> Callable[..., np.ndarray[Any, Any]]:
    """Random bytes of a shape: the same ones each time."""

    def make(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
        return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)

    return make


@pytest.fixture
def folder(tmp_path: Path, noise: Callable[..., np.ndarray[Any, Any]]) -> Path:
    """12 colour images of 6 × 4 (not square): 0.png … 11.png."""
    path = tmp_path / "pictures"
    path.mkdir()
    for number, pixels in enumerate(noise(12, 6, 4, 3)):
        Image.fromarray(pixels).save(path / f"{number}.png")
    return path
