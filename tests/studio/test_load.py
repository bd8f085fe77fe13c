"""Many tabs at once: every one is told how each job and run stands at the end, and memory stays."""

import json
import threading
import time
from pathlib import Path

import httpx2 as httpx

from studios import asked, started

TABS = 50


def test_fifty_tabs_are_told_how_a_drawing_ends_while_it_is_drawn(
    folder: Path, ids: dict[str, str]
) -> None:
    with (
        started(str(folder), "--no-browser", "--port", "0") as (address, token, process),
        asked(address, token) as client,
    ):
        client.get("/api/runs")  # torch is there
        before = _memory(process.pid)
        last: list[dict[str, str]] = [{} for _ in range(TABS)]
        ready, done = threading.Barrier(TABS + 1), threading.Event()

        def listen(number: int) -> None:
            own = httpx.Client(base_url=address, cookies=client.cookies, timeout=60)
            with own, own.stream("GET", f"/api/events?client=tab-{number}") as stream:
                name = ""
                for line in stream.iter_lines():
                    if line.startswith("event:"):
                        name = line[6:].strip()
                        if name == "hello":
                            ready.wait(60)
                    elif line.startswith("data:") and name == "job":
                        told = json.loads(line[5:])
                        last[number][told["id"]] = told["state"]
                        if number % 10 == 0:
                            time.sleep(0.05)  # some read slowly
                    if done.is_set() and len(last[number]) == 3 and _ended(last[number]):
                        return

        threads = [threading.Thread(target=listen, args=(n,)) for n in range(TABS)]
        for thread in threads:
            thread.start()
        ready.wait(60)
        body = {"client": "one", "run": ids["run"], "keep": True, "count": 16}
        settings = {"sampler": "ddim", "steps": 50}
        jobs = [
            client.post("/api/jobs/sample", json=body | {"settings": settings}).json()["id"]
            for _ in range(3)
        ]
        done.set()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        assert all(tab == dict.fromkeys(jobs, "done") for tab in last)
        assert _memory(process.pid) - before < 150 * 2**20


def _ended(states: dict[str, str]) -> bool:
    return all(state == "done" for state in states.values())


def _memory(process: int) -> int:
    """Bytes of the process that no file is behind."""
    for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon"):
            return 1024 * int(line.split()[1])
    raise AssertionError("the system does not say")
