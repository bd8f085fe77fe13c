"""Studios to be asked: as processes that a test starts, and by whom."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx

__all__ = ["HOST", "PORT", "Ended", "asked", "started", "unprivileged"]

PORT = 8420
HOST = f"http://127.0.0.1:{PORT}"
"""Of studios that are asked without a server."""

Ended = Callable[[dict[str, Any]], dict[str, Any]]
"""A job to the same job once it has ended."""


@contextmanager
def started(*options: str, cwd: Path | None = None) -> Iterator[tuple[str, str, subprocess.Popen]]:
    """A studio's address and token, and its process."""
    command = [sys.executable, "-m", "unraze", "studio", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.search(r"(http://\S+)/#token=(\S+)$", line.strip())
        assert found, line + process.stdout.read()
        yield found[1], found[2], process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def asked(address: str, token: str) -> Iterator[httpx.Client]:
    """A client with a session; the server listens already, and answers once it can."""
    with httpx.Client(base_url=address, timeout=60) as client:
        answer = client.post("/api/session", json={"token": token})
        assert answer.status_code == 204, answer.text
        yield client


NOBODY = 65534


@contextmanager
def unprivileged() -> Iterator[None]:
    """As a user from whom permissions keep things, which they do not from root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)
