"""Trainings from the studio: real processes, which are started, stopped, gone on with, and fail."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from unraze import run as runs
from unraze.run import Run
from unraze.studio.app import Studio

Until = Callable[[Callable[[dict[str, Any]], bool]], dict[str, Any]]
WAIT = 90.0


def source(browser: TestClient, title: str = "digits") -> str:
    sources = browser.get("/api/sources").json()["sources"]
    return str(next(each["id"] for each in sources if each["title"] == title))


def seen(browser: TestClient, name: str, found: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The run once it is as it is waited for."""
    told: dict[str, Any] = {}
    for _ in range(int(WAIT / 0.1)):
        told = browser.get(f"/api/runs/{name}").json()
        if found(told):
            return told
        time.sleep(0.1)
    raise AssertionError(told)


def test_a_training_is_started_watched_stopped_and_gone_on_with(
    browser: TestClient, studio: Studio, folder: Path
) -> None:
    asked = {"source": source(browser), "preset": "fast", "steps": 400, "batch": 8, "name": "mine"}
    answer = browser.post("/api/trainings", json=asked)
    assert answer.status_code == 201, answer.text
    told = answer.json()
    assert (told["state"], told["name"]) == ("starting", "mine")
    name = told["id"]
    assert name in {run["id"] for run in browser.get("/api/runs").json()["runs"]}

    told = seen(browser, name, lambda run: run["state"] == "running" and run["step"] >= 5)
    assert told["can_stop"]
    assert told["steps"] == 400
    curves = browser.get(f"/api/runs/{name}/curves").json()
    assert curves["columns"]["step"][:5] == [1, 2, 3, 4, 5]
    later = browser.get(f"/api/runs/{name}/curves?after=5").json()
    assert all(step > 5 for step in later["columns"]["step"])
    busy = browser.post(f"/api/runs/{name}/resume")
    assert busy.status_code == 400
    assert "trained already" in busy.json()["error"]

    assert browser.post(f"/api/runs/{name}/stop").status_code == 202
    told = seen(browser, name, lambda run: run["state"] == "stopped")
    assert 5 <= told["step"] < 400
    assert told["error"] is None
    assert told["can_resume"]
    assert told["checkpoints"] == [told["step"]]
    stopped = told["step"]
    for _ in range(200):
        if not studio.trainings.running():
            break
        time.sleep(0.1)
    again = browser.post(f"/api/runs/{name}/stop")
    assert again.status_code == 400
    assert "no process of this machine" in again.json()["error"]

    assert browser.post(f"/api/runs/{name}/resume").status_code == 202
    told = seen(browser, name, lambda run: run["step"] > stopped)
    assert studio.trainings.running() == [(str(folder / "mine"), runs.trainer_here(_run(folder)))]
    browser.post(f"/api/runs/{name}/stop")
    seen(browser, name, lambda run: run["state"] == "stopped")


def _run(folder: Path) -> Run:
    return Run(folder / "mine")


def test_a_training_that_fails_says_why_and_leaves_no_folder(
    browser: TestClient, folder: Path, made: Any
) -> None:
    asked = {"source": source(browser, made.data.name), "steps": 5, "size": "7x5"}
    told = browser.post("/api/trainings", json=asked).json()
    told = seen(browser, told["id"], lambda run: run["state"] != "starting")
    assert told["state"] == "failed"
    assert told["error"].startswith("size 7x5 (height x width) does not suit the network")
    assert not (folder / told["name"]).exists()


def test_a_name_that_is_taken_or_leads_elsewhere_is_refused(
    browser: TestClient, folder: Path
) -> None:
    asked = {"source": source(browser), "steps": 5}
    taken = browser.post("/api/trainings", json=asked | {"name": "run"})
    assert taken.status_code == 400
    assert "another name" in taken.json()["error"]
    for name in ("../out", "a/b", ".hidden", "-n", ""):
        assert browser.post("/api/trainings", json=asked | {"name": name}).status_code == 422
    wrong = browser.post("/api/trainings", json=asked | {"preset": "fats"})
    assert wrong.status_code == 400
    assert "did you mean 'fast'" in wrong.json()["error"]
    assert {path.name for path in folder.iterdir()} == {"run", "other", "classy"}


def test_a_training_that_was_killed_can_be_gone_on_with(browser: TestClient, folder: Path) -> None:
    asked = {"source": source(browser), "steps": 300, "batch": 8, "name": "mine"}
    name = browser.post("/api/trainings", json=asked).json()["id"]
    seen(browser, name, lambda run: run["step"] >= 3)
    number = runs.trainer_here(_run(folder))
    assert number is not None
    os.kill(number, signal.SIGKILL)
    told = seen(browser, name, lambda run: run["state"] in ("stopped", "empty"))
    assert told["can_resume"]
    assert browser.post(f"/api/runs/{name}/resume").status_code == 202
    seen(browser, name, lambda run: run["state"] == "running" and run["step"] >= 3)
    browser.post(f"/api/runs/{name}/stop")
    seen(browser, name, lambda run: run["state"] == "stopped")


@pytest.mark.slow
def test_a_training_outlives_its_studio(browser: TestClient, studio: Studio, folder: Path) -> None:
    asked = {"source": source(browser), "steps": 100_000, "batch": 8, "name": "mine"}
    name = browser.post("/api/trainings", json=asked).json()["id"]
    seen(browser, name, lambda run: run["step"] >= 3)
    studio.queue.close()
    ((_, number),) = studio.trainings.running()
    step = browser.get(f"/api/runs/{name}").json()["step"]
    seen(browser, name, lambda run: run["step"] > step)
    os.kill(number, signal.SIGTERM)
    seen(browser, name, lambda run: run["state"] == "stopped")
