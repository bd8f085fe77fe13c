"""A studio of three small runs, asked as a browser asks it."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from evaluated import Small, few_steps, small
from studios import HOST, PORT, Ended
from unraze.studio.app import Studio, app_of, studio_of
from unraze.studio.front import Front, guarded
from unraze.studio.guard import Keys
from unraze.studio.library import name_of


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """The runs `run`, `other` and `classy`, made once."""
    return small(tmp_path_factory.mktemp("made"))


@pytest.fixture
def folder(made: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own with these runs."""
    monkeypatch.setenv("UNRAZE_CACHE", str(made.cache))
    for run in (made.run, made.other, made.classy):
        shutil.copytree(run, tmp_path / "runs" / run.name)
    return tmp_path / "runs"


@pytest.fixture
def studio(folder: Path, made: Small) -> Iterator[Studio]:
    """The rooms of the studio of that folder."""
    rooms = studio_of(folder, data=(str(made.data),), keys=Keys(PORT))
    yield rooms
    rooms.queue.close()


@pytest.fixture
def stranger(studio: Studio) -> Iterator[TestClient]:
    """A browser that has no session."""
    front = Front(lambda: (studio, app_of(studio)))
    app = guarded(front, studio.keys, ("127.0.0.1", "localhost"))
    with TestClient(app, base_url=HOST, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def browser(stranger: TestClient, studio: Studio) -> TestClient:
    """A browser that has one."""
    answer = stranger.post("/api/session", json={"token": studio.keys.token})
    assert answer.status_code == 204, answer.text
    return stranger


@pytest.fixture(scope="session")
def ids() -> dict[str, str]:
    """The identifiers of the runs."""
    return {name: name_of(name) for name in ("run", "other", "classy")}


@pytest.fixture
def ended(browser: TestClient) -> Ended:
    """A job once it has ended."""

    def wait(job: dict[str, Any]) -> dict[str, Any]:
        with few_steps():
            for _ in range(2400):
                told: dict[str, Any] = browser.get(f"/api/jobs/{job['id']}").json()
                if told["state"] in ("done", "failed", "cancelled"):
                    return told
                time.sleep(0.025)
        raise AssertionError(f"{job} does not end")

    return wait
