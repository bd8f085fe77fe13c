"""Faults that befall a process of a test: it dies, or its disk is full, at a chosen moment."""

import ctypes
import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from unraze import checkpoint, files, generate, run as runs, train as training
from unraze.data import reading
from unraze.evaluate import during

seen = 0
"""How many changes of the disk there were that `at_change` counts."""

CHANGES = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "fsync")
NEED_ROOM = ("open", "os.mkdir", "fsync")
PHASES: dict[str, tuple[Any, str]] = {
    "checkpoint": (checkpoint, "save"),
    "evaluation": (during, "quality"),
    "preview": (training, "preview"),
    "going on": (runs, "truncate_rows"),
    "making the cache": (reading, "_on_disk"),
}
"""Parts of a run, by the function that each one is."""


def install(fault: dict[str, Any]) -> None:
    """Lets the fault befall this process."""
    match fault:
        case {"die at change": int(at), "below": str(below)}:
            events = tuple(fault.get("of", CHANGES))
            at_change(at, below, events, lambda _: os.kill(os.getpid(), signal.SIGKILL))
        case {"full from change": int(at), "below": str(below)}:
            at_change(at, below, NEED_ROOM, full, lasting=True)
        case {"die half-way in write": int(at)}:
            half_written(at)
        case {"enter": str(phase), "time": int(at), "marker": str(marker)}:
            marked(phase, at, Path(marker), fault.get("seconds a step", 0.0))
        case {"clock": "jumps"}:
            jumping_clock()
        case _:
            raise ValueError(fault)


def full(what: str) -> None:
    """As a disk without room has it."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), what)


def at_change(
    at: int,
    below: str,
    events: tuple[str, ...],
    act: Callable[[str], None],
    *,
    lasting: bool = False,
) -> None:
    """Acts before change number `at`, from 1, of what is below a folder; `lasting`: and later."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        global seen
        if event not in events or not _is_change(event, args, below):
            return
        seen += 1
        if seen == at or (lasting and seen > at):
            act(str(args[0]))

    honest = os.fsync

    def fsync(handle: int) -> None:
        hook("fsync", (os.readlink(f"/proc/self/fd/{handle}"),))
        honest(handle)

    sys.addaudithook(hook)
    os.fsync = fsync


def _is_change(event: str, args: tuple[Any, ...], below: str) -> bool:
    path = args[0]
    if event == "open" and not (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        return False
    if not isinstance(path, str | bytes | os.PathLike):
        return False
    name = os.fsdecode(path)
    # what removes a tree of folders names its files relative to one of them
    relative = event in ("os.remove", "os.rmdir") and not os.path.isabs(name)
    return relative or os.path.abspath(name).startswith(below)


def lose_privilege() -> None:
    """Root is bound by the permissions of files from here on, as everybody else is."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    for number in (0, 1):
        sets[number] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")


def half_written(at: int) -> None:
    """Dies when half of file number `at` is written, of those that are flushed."""
    honest, count = files.write_and_flush, 0

    def write_and_flush(path: Path, data: bytes | memoryview) -> None:
        nonlocal count
        count += 1
        if count == at:
            with path.open("wb") as file:
                file.write(data[: len(data) // 2])
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        honest(path, data)

    files.write_and_flush = write_and_flush


def marked(phase: str, at: int, marker: Path, seconds: float) -> None:
    """A file is there while this process is in a part of the run for the time number `at`.

    Each step of drawing takes so long then.
    """
    module, name = PHASES[phase]
    honest, count = getattr(module, name), 0

    def function(*args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count != at:
            return honest(*args, **options)
        marker.touch()
        at_once = generate.generate
        try:
            if seconds:
                generate.generate = slowly(seconds)
            return honest(*args, **options)
        finally:
            generate.generate = at_once
            marker.unlink()

    setattr(module, name, function)


def slowly(seconds: float) -> Callable[..., Iterator[Any]]:
    """Drawing of which each step takes so long."""
    honest = generate.generate

    def generated(*args: Any, **options: Any) -> Iterator[Any]:
        for step in honest(*args, **options):
            time.sleep(seconds)
            yield step

    return generated


def jumping_clock() -> None:
    """The time of day jumps an hour on, and a day back, whenever it is asked for."""
    honest, asked = time.time, 0

    def jumping() -> float:
        nonlocal asked
        asked += 1
        return honest() + (3600.0 if asked % 2 else -86400.0) * asked

    time.time = jumping
