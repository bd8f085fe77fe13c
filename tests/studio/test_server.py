"""`unraze studio` as a process: its start, its address, its end; and the interface as described."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx2 as httpx
import pytest

from studios import asked, started
from unraze.cli import main
from unraze.studio import server

LONG = 20_000
ALL_STEPS = {"sampler": "random", "steps": LONG}
"""A drawing that takes minutes."""


def test_the_page_is_there_before_torch_is_and_all_of_it_ends_with_ctrl_c(
    folder: Path, ids: dict[str, str]
) -> None:
    config = folder / "run" / "config.toml"
    short = config.read_text(encoding="utf-8")
    assert "\nsteps = 50\n" in short
    config.write_text(short.replace("\nsteps = 50\n", f"\nsteps = {LONG}\n"), encoding="utf-8")
    with started(str(folder), "--no-browser", "--port", "0") as (address, token, process):
        assert address.startswith("http://127.0.0.1:")
        page = httpx.get(address, timeout=10)
        assert page.status_code == 200
        assert "<title>" in page.text
        with asked(address, token) as client:
            assert {run["name"] for run in client.get("/api/runs").json()["runs"]} == {
                "run",
                "other",
                "classy",
            }
            told, drawn = threading.Event(), threading.Event()

            def listen() -> None:
                events = client.stream("GET", "/api/events?client=a")
                with suppress(httpx.HTTPError), events as stream:  # it ends with the studio
                    for line in stream.iter_lines():
                        if "hello" in line:
                            told.set()
                        if '"state": "running"' in line and '"stage": "drawing"' in line:
                            drawn.set()

            listening = threading.Thread(target=listen, daemon=True)
            listening.start()
            assert told.wait(20)
            asked_for = {"client": "a", "run": ids["run"], "count": 64, "settings": ALL_STEPS}
            answer = client.post("/api/jobs/sample", json=asked_for)
            assert answer.status_code == 201, answer.text
            assert drawn.wait(20)
            began = time.monotonic()
            process.send_signal(signal.SIGINT)  # though somebody listens, and something is drawn
            assert process.wait(15) == 0
            assert time.monotonic() - began < 8
            listening.join(15)
        assert process.stdout is not None
        assert process.stdout.read() == "Ctrl-C ends it; trainings go on\n"
    assert process.returncode == 0


def test_a_studio_that_starts_again_finds_everything_and_has_another_token(folder: Path) -> None:
    seen = []
    for _ in range(2):
        with started(str(folder), "--no-browser", "--port", "0") as (address, token, process):
            with asked(address, token) as client:
                runs = client.get("/api/runs").json()["runs"]
            seen.append((token, [(run["id"], run["state"]) for run in runs]))
            process.send_signal(signal.SIGTERM)
            process.wait(15)
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] == seen[1][1]


def test_a_port_that_is_taken_is_told_where_it_was_asked_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["studio", str(tmp_path), "--no-browser", "--port", str(port)]) == 1
    said = capsys.readouterr().err
    assert f"port {port}" in said
    assert "another --port" in said


def test_an_address_that_others_reach_has_to_be_meant(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["studio", str(tmp_path), "--no-browser", "--host", "0.0.0.0"]) == 2
    assert "--remote" in capsys.readouterr().err
    assert main(["studio", str(tmp_path), "--port", "70000"]) == 2
    assert "0 to 65535" in capsys.readouterr().err


def test_a_studio_that_others_reach_says_what_that_means(folder: Path) -> None:
    options = ("--no-browser", "--port", "0", "--host", "0.0.0.0", "--remote")
    with started(str(folder), *options, "--name", "lab.example") as (_, token, process):
        assert process.stdout is not None
        said = process.stdout.readline()
        assert "nothing is encrypted" in said
        # by its address, by the name that was given, and by no other
        port = _port_of(process)
        with asked(f"http://127.0.0.1:{port}", token) as client:
            for host, status in (("lab.example", 200), ("evil.example", 421)):
                answer = client.get("/api/runs", headers={"Host": f"{host}:{port}"})
                assert answer.status_code == status


def _port_of(process: subprocess.Popen) -> int:
    """The port that a process listens at."""
    own = {os.readlink(f) for f in Path(f"/proc/{process.pid}/fd").iterdir() if f.exists()}
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
            return int(fields[1].partition(":")[2], 16)
    raise AssertionError("listens nowhere")


def test_a_device_that_is_not_there_ends_it_in_words(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "unraze", "studio", str(tmp_path), "--no-browser"]
    command += ["--port", "0", "--device", "cuda:99"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--device = 'cuda:99'" in done.stderr
    assert not done.stdout  # no address that nobody answers at
    assert "Traceback" not in done.stderr


def test_the_browser_is_not_told_the_token_where_others_can_read_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told, opened = list[str](), threading.Event()

    def browser(address: str) -> None:
        told.append(address)
        opened.set()

    monkeypatch.setattr(server.webbrowser, "open", browser)
    with server._opened("http://127.0.0.1:1/#token=secret"):
        assert opened.wait(5)
        (page,) = (Path(address.removeprefix("file://")) for address in told)
        assert "secret" not in told[0]
        assert "url=http://127.0.0.1:1/#token=secret" in page.read_text(encoding="utf-8")
        assert page.parent.stat().st_mode & 0o077 == 0
    assert not page.parent.exists()
    with server._opened("http://127.0.0.1:1/#token=secret"):
        pass  # it could not be served
    time.sleep(0.5)
    assert len(told) == 1


def test_addresses_of_this_machine_alone_are_known() -> None:
    assert all(map(server._is_own, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(server._is_own, ("0.0.0.0", "::", "10.0.0.1", "example.org")))
