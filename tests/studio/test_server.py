"""`unraze studio` as a process: its start, its address, its end; and the interface as described."""

import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import httpx2 as httpx
import pytest

from studios import asked, started
from unraze.cli import main
from unraze.studio import server


def test_the_page_is_there_before_torch_is_and_all_of_it_ends_with_ctrl_c(folder: Path) -> None:
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
            told = threading.Event()

            def listen() -> None:
                events = client.stream("GET", "/api/events?client=a")
                with suppress(httpx.HTTPError), events as stream:  # it ends with the studio
                    for line in stream.iter_lines():
                        if "hello" in line:
                            told.set()

            listening = threading.Thread(target=listen, daemon=True)
            listening.start()
            assert told.wait(20)
            process.send_signal(signal.SIGINT)  # though somebody listens
            assert process.wait(15) == 0
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
    assert "cuda:99" in done.stderr
    assert "Traceback" not in done.stderr


def test_addresses_of_this_machine_alone_are_known() -> None:
    assert all(map(server._is_own, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(server._is_own, ("0.0.0.0", "::", "10.0.0.1", "example.org")))
