"""Trainings from the studio: real processes, which are started, stopped, gone on with, and fail."""

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from unraze import run as runs
from unraze.run import Run
from unraze.studio import trainings
from unraze.studio.app import Studio
from unraze.studio.trainings import Trainings

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
    asked = {"source": source(browser, made.data.name), "preset": "annotated", "steps": 5}
    asked |= {"size": "7x5"}
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


def test_of_two_who_go_on_with_a_run_at_once_one_does(
    browser: TestClient, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = tmp_path / "begun"
    begun.mkdir()
    training = f"import os, pathlib, time; pathlib.Path({str(begun)!r}, str(os.getpid())).touch(); "
    monkeypatch.setattr(trainings, "PROGRAM", training + "time.sleep(60)")
    monkeypatch.setattr(trainings, "ENDS", 0.2)
    both, ask = threading.Barrier(2), Trainings._has_ended

    def has_ended(self: Trainings, name: str) -> bool:
        answer = ask(self, name)
        with suppress(threading.BrokenBarrierError):
            both.wait(0.3)  # or the other is not let in before this one has begun
        return answer

    monkeypatch.setattr(Trainings, "_has_ended", has_ended)
    name = next(run["id"] for run in browser.get("/api/runs").json()["runs"])
    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(browser.post, f"/api/runs/{name}/resume") for _ in range(2)]
    answers = sorted((each.result() for each in asked), key=lambda answer: answer.status_code)
    try:
        assert [answer.status_code for answer in answers] == [202, 400]
        assert "is being trained already, or about to be" in answers[1].json()["error"]
    finally:
        processes = begun_in(begun)
        for process in processes:
            os.kill(process, signal.SIGKILL)
    assert len(processes) == 1


def begun_in(folder: Path) -> list[int]:
    """The processes that noted themselves in a folder, once no other does for a while."""
    found: list[int] = []
    for _ in range(100):
        time.sleep(0.2)
        before, found = found, [int(file.name) for file in folder.iterdir()]
        if found and found == before:
            break
    return found


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
