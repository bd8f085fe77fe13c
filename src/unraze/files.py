"""Files that are there as a whole or not at all: written under another name, then renamed."""

import errno
import os
import re
from contextlib import suppress
from pathlib import Path

__all__ = [
    "cannot_make",
    "cannot_write",
    "flush",
    "flush_folder",
    "is_full",
    "is_running",
    "left_by",
    "remove_left_over",
    "temporary",
    "write_and_flush",
    "write_whole",
]


def temporary(path: Path) -> Path:
    """The name beside `path` that this process writes under: `.NAME.PID.part`."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def left_by(path: Path) -> int | None:
    """The number of the process that wrote under this name, where it is one of `temporary`."""
    found = re.fullmatch(r"\..+\.(\d{1,10})\.part", path.name)
    return int(found[1]) if found else None


def is_running(process: int) -> bool:
    """Whether there is a process of this number on this machine."""
    if os.name != "posix":  # elsewhere asking would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def remove_left_over(folder: Path) -> None:
    """Removes what processes that were killed left half-written in a folder; what cannot be removed
    stays."""
    for path in folder.glob(".*.part"):
        process = left_by(path)
        if process is not None and not is_running(process) and path.is_file():
            with suppress(OSError):
                path.unlink()


def write_whole(path: Path, data: bytes | memoryview, *, durable: bool = True) -> None:
    """Writes a file that is whole whenever it is there; `durable`: the disk has it first.

    Its name is on the disk only after `flush_folder`. Raises `OSError`; what was at `path` before
    is still there then, and nothing else is left.
    """
    part = temporary(path)
    try:
        if durable:
            write_and_flush(part, data)
        else:
            part.write_bytes(data)
        part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink()


def flush(path: Path) -> None:
    """Waits until the disk has a file. Raises `OSError`."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_and_flush(path: Path, data: bytes | memoryview) -> None:
    """Writes a file and waits until the disk has it. Raises `OSError`."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def flush_folder(path: Path) -> None:
    """Waits until the disk has the names in a folder. Raises `OSError`."""
    if os.name == "posix":  # elsewhere a folder cannot be opened, and a rename is durable by itself
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def is_full(error: OSError) -> bool:
    """Whether it was for want of room on the disk, or of a share of it."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def cannot_make(folder: Path, error: OSError) -> str:
    """What to say of a folder that could not be made."""
    if is_full(error):
        return f"{folder}: cannot be made, the disk is full; free some space and try again"
    return f"{folder}: cannot be made ({error.strerror or error}); choose another place"


def cannot_write(
    path: Path, error: OSError, *, then: str = "try again", otherwise: str = "choose another place"
) -> str:
    """What to say of it: what to do once there is room, or where it is not for want of room."""
    if is_full(error):
        return f"{path}: cannot be written, the disk is full; free some space and {then}"
    return f"{path}: cannot be written ({error.strerror or error}); {otherwise}"
