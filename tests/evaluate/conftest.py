"""What the tests of whole evaluations share."""

import shutil
from pathlib import Path

import pytest

from evaluated import Small, short_flow, small
from unraze.generate import Model, load


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small(tmp_path_factory.mktemp("evaluated"))


@pytest.fixture
def ready(made_once: Small, monkeypatch: pytest.MonkeyPatch) -> Small:
    """Runs, images and trained features; the cache is that of the features."""
    monkeypatch.setenv("UNRAZE_CACHE", str(made_once.cache))
    short_flow(monkeypatch)
    return made_once


@pytest.fixture
def model(ready: Small) -> Model:
    return load(ready.run)


@pytest.fixture
def run(ready: Small, tmp_path: Path) -> Path:
    """A copy of a run, to be spoilt at will."""
    shutil.copytree(ready.run, tmp_path / "copy")
    return tmp_path / "copy"
