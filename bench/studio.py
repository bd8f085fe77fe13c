"""How quickly the studio answers: its start, a list of 200 runs, a first preview, a sliding t.

    python bench/studio.py RUN [--rounds 20]

RUN is a run of `unraze train fashion-mnist`. A studio is started as users start it, of a folder
with 200 runs (RUN and links to its files), and asked over HTTP, one request after another. Beside
the first preview of sixteen pictures, the noise that they form from, and the first that a network
call made of it, stands what the network takes for one call on them, measured in this process; the
previews are what the studio says, so that their journey is in them.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2 as httpx

from unraze import generate
from unraze.run import Run
from unraze.studio.library import name_of
from unraze.studio.work import ENDED

RUNS = 200
COUNT = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.run.parent) as place:
        folder = Path(place)
        for number in range(RUNS):
            shutil.copytree(options.run, folder / f"{number:05d}", copy_function=os.link)
        measured(folder, options.run, options.rounds)


def measured(folder: Path, run: Path, rounds: int) -> None:
    began = time.perf_counter()
    command = [sys.executable, "-m", "unraze", "studio", str(folder), "--no-browser", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.search(r"(http://\S+)/#token=(\S+)", line)
        assert found, line
        said = time.perf_counter() - began
        with httpx.Client(base_url=found[1], timeout=120) as client:
            client.get("/").raise_for_status()
            page = time.perf_counter() - began
            client.post("/api/session", json={"token": found[2]}).raise_for_status()
            client.get("/api/runs").raise_for_status()
            listed = time.perf_counter() - began
            print(f"start: address {said:.2f} s, page {page:.2f} s, {RUNS} runs {listed:.2f} s")
            again = [timed(lambda: client.get("/api/runs")) for _ in range(rounds)]
            told("list of 200 runs, again", again, 0.2)
            sliding(client, name_of("00000"), rounds)
            previewed(client, name_of("00000"), run, rounds)
    finally:
        process.terminate()
        process.wait()


def sliding(client: httpx.Client, name: str, rounds: int) -> None:
    """One moment of an image, at as many times as a slider gives."""

    def ask(t: float) -> Callable[[], Any]:
        body = {"image": {"kind": "example", "number": 0}, "t": t, "seed": 0}
        return lambda: client.post(f"/api/runs/{name}/destroy", json=body).raise_for_status()

    timed(ask(500))  # the network and the images are read
    told("a moment of a sliding t", [timed(ask(10 * k + 1)) for k in range(rounds)], 0.15)


def previewed(client: httpx.Client, name: str, run: Path, rounds: int) -> None:
    """From asking for sixteen pictures to being told of the first frames, and having them."""
    seen, told_of = dict[str, int](), threading.Condition()

    def listen() -> None:
        events = client.stream("GET", "/api/events?client=bench")
        with suppress(httpx.HTTPError), events as stream:  # it ends with the studio
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    state = json.loads(line[5:])
                    with told_of:
                        seen[state.get("id", "")] = (state.get("result") or {}).get("frames", 0)
                        told_of.notify_all()

    threading.Thread(target=listen, daemon=True).start()
    time.sleep(0.5)
    took: list[list[float]] = [[], []]
    for seed in range(rounds):
        began = time.perf_counter()
        body = {"client": "bench", "run": name, "count": COUNT, "seed": seed}
        job = client.post("/api/jobs/sample", json=body).json()["id"]
        for number in (0, 1):
            with told_of:
                if not told_of.wait_for(lambda job=job, n=number: seen.get(job, 0) > n, 60):
                    raise SystemExit(f"no preview {number} within 60 s: {state_of(client, job)}")
            client.get(f"/api/jobs/{job}/frames/{number}.png").raise_for_status()
            took[number].append(time.perf_counter() - began)
        while (state := state_of(client, job)) not in ENDED:
            time.sleep(0.02)
        if state != "done":
            raise SystemExit(f"a drawing {state}")
    told("a first preview of 16 pictures, noise", took[0][1:], None)
    told("the next, after a network call", took[1][1:], None)
    one = call(Run(run), rounds)
    print(
        f"one network call on them: {1000 * one:.0f} ms, the previews take "
        + " and ".join(f"{statistics.median(each[1:]) / one:.1f}" for each in took)
        + " of it"
    )


def state_of(client: httpx.Client, job: str) -> str:
    """Where a job of the studio stands."""
    return str(client.get(f"/api/jobs/{job}").json()["state"])


def call(run: Run, rounds: int) -> float:
    """Seconds of one step of the run's own sampler on these pictures, guidance included."""
    model, taken = generate.load(run.path), []
    for seed in range(max(3, rounds // 4)):
        steps = generate.generate(model, COUNT, seed=seed, batch=COUNT)
        began = time.perf_counter()
        next(steps)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def timed(ask: Callable[[], Any]) -> float:
    began = time.perf_counter()
    ask()
    return time.perf_counter() - began


def told(what: str, seconds: list[float], bar: float | None) -> None:
    median, worst = statistics.median(seconds), max(seconds)
    against = "" if bar is None else f" (bar {1000 * bar:.0f} ms)"
    print(f"{what}: median {1000 * median:.0f} ms, worst {1000 * worst:.0f} ms{against}")


if __name__ == "__main__":
    main()
