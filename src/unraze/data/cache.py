"""Decoded images on disk, for sets that do not fit in memory: mapped, not read.

One folder per set under `cache_folder()/images`, named by a hash of all that the pixels depend on:
the source's path, its files' names, sizes and times of change, the data options and the part.

    pixels      uint8, N x C x H x W, nothing else
    about.json  the shape, labels, names, and the fingerprint that all of it is checked by

And under `cache_folder()/values`, NAME.json: what took long to find out, and its SHA-256.
"""

import errno
import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from filelock import FileLock, Timeout

from unraze import untrusted
from unraze.data.images import Images, fingerprint
from unraze.errors import UnrazeError
from unraze.files import flush_folder, is_full, remove_left_over, write_and_flush, write_whole

__all__ = ["cache_folder", "describe", "keep_value", "kept", "kept_value", "key", "making"]

_VERSION = 2
_BLOCK = 2**24
_MAX_ABOUT = 2**30  # a name for each of millions of images
_STALE_SECONDS = 24 * 3600.0
_MAKING = ".making-"
_PUTTING, _PATIENCE = ".putting", 600.0
"""The file that whoever gives a set its place has locked, and how long the others wait for that: a
large set that is there is read first."""
_HELD = "held"
"""The file by whose lock a folder is known to be in the making."""


def cache_folder() -> Path:
    """Where decoded and downloaded data is kept: $UNRAZE_CACHE, or the system's place for it."""
    return Path(os.environ.get("UNRAZE_CACHE") or platformdirs.user_cache_dir("unraze"))


def key(*what: object) -> str:
    """A name, 32 hex digits, for a set of images made from `what` (plain values)."""
    text = json.dumps([_VERSION, *what], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def kept(name: str, source: str, *, verify: bool = True) -> Images | None:
    """The set of that key, mapped from disk; None where there is none, or it is damaged.

    All its bytes are read once and compared with the fingerprint, unless `verify` is false.
    """
    folder = _place(name)
    try:
        about = untrusted.json_of(folder / "about.json", _MAX_ABOUT)
        shape = tuple(int(n) for n in about["shape"])
        numbers = about["labels"]
        labels = None if numbers is None else np.array(numbers, dtype=np.int64)
        untrusted.require_plain(folder / "pixels")
        pixels = np.memmap(folder / "pixels", dtype=np.uint8, mode="r", shape=shape)
        images = Images(
            pixels=pixels,
            labels=labels,
            class_names=tuple(about["class_names"]),
            names=tuple(about["names"]),
            source=source,
            fingerprint=about["fingerprint"],
            skipped=tuple(about["skipped"]),
            held_back=int(about["held_back"]),
        )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        OverflowError,
    ):  # not there, cut off, or another's
        return None
    try:
        whole = (folder / "pixels").stat().st_size == pixels.size
        found = _fingerprint_of(folder / "pixels", images) if whole and verify else None
    except OSError:  # another process puts its own in this place
        return None
    return images if whole and found in (None, images.fingerprint) else None


@contextmanager
def making(name: str, size: int) -> Iterator[Path]:
    """A temporary folder to make a set in, which takes the key's place when the block ends well.

    `size` is the bytes to come. Whatever goes wrong, nothing half-made stays. Several processes may
    make the same set at once: the first one's is kept, if it is whole, and what the others made is
    dropped. Raises `UnrazeError` where the disk is full or the cache cannot be written.
    """
    place = _place(name)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(place.parent)
        free = shutil.disk_usage(place.parent).free
        if free < size:
            raise OSError(errno.ENOSPC, f"{free / 2**30:.1f} GiB are free")
        folder, lock = _begun(place.parent)
    except OSError as error:
        raise _refused(place.parent, size, error) from error
    try:
        yield folder
        flush_folder(folder)
        _put(folder, name)
        flush_folder(place.parent)
    except OSError as error:
        raise _refused(place.parent, size, error) from error
    finally:
        for where in (folder, place):  # it is not of the set
            with suppress(OSError):
                (where / _HELD).unlink()
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)


def describe(folder: Path, images: Images) -> None:
    """Writes, beside the pixels, all else there is to know."""
    about: dict[str, Any] = {
        "version": _VERSION,
        "shape": list(images.pixels.shape),
        "labels": None if images.labels is None else images.labels.tolist(),
        "class_names": list(images.class_names),
        "names": list(images.names),
        "skipped": list(images.skipped),
        "held_back": images.held_back,
        "fingerprint": images.fingerprint,
    }
    write_and_flush(folder / "about.json", json.dumps(about).encode("ascii"))


def kept_value(name: str) -> dict[str, Any] | None:
    """The value of that key; None where there is none, or it is damaged."""
    try:
        about = untrusted.json_of(_value_place(name), _MAX_ABOUT)
        text, digest = about["value"], about["sha256"]
        if hashlib.sha256(text.encode("ascii")).hexdigest() != digest:
            return None
        value = json.loads(text)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return value if isinstance(value, dict) else None


def keep_value(name: str, value: dict[str, Any]) -> None:
    """Keeps a value of plain values under a key. Where it cannot be written that is warned of: it
    is found out again then."""
    text = json.dumps(value)
    about = {"sha256": hashlib.sha256(text.encode("ascii")).hexdigest(), "value": text}
    place = _value_place(name)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        remove_left_over(place.parent)
        write_whole(place, json.dumps(about).encode("ascii"))
    except OSError as error:
        why = "the disk is full" if is_full(error) else "cannot be written"
        warnings.warn(
            f"{place.parent}: {why} ({error.strerror or error}); what was found out of this data "
            "is not kept, and will be found out again",
            stacklevel=2,
        )


def _value_place(name: str) -> Path:
    return cache_folder() / "values" / f"{name}.json"


def _place(name: str) -> Path:
    return cache_folder() / "images" / name


def _fingerprint_of(file: Path, images: Images) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return fingerprint(digest, images.pixels.shape, images.labels)


def _begun(parent: Path) -> tuple[Path, FileLock]:
    """A new folder, and its lock, held; raises `OSError`."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_made_here(), dir=parent))
        lock = FileLock(folder / _HELD)
        # before the lock was held another took it for left over
        with suppress(FileNotFoundError, Timeout):
            lock.acquire(timeout=0)
            if (folder / _HELD).exists():
                return folder, lock
        lock.release()


def _put(folder: Path, name: str) -> None:
    """Gives the key's place to a folder that is made, unless there is a whole set; raises
    `OSError`.

    A folder takes the place of none that holds something, so whole sets need no lock. What is
    damaged is taken away first, one process at a time, where locks reach; where they do not, two
    that come to it at the same moment may take a whole one away, and make it anew.
    """
    place = _place(name)
    with suppress(Timeout), FileLock(cache_folder() / _PUTTING, timeout=_PATIENCE):
        return _put_in(place, folder, name)
    _put_in(place, folder, name)


def _put_in(place: Path, folder: Path, name: str) -> None:
    while True:
        there = _identity(place)
        if there is not None:
            if kept(name, "") is not None:
                return
            if _identity(place) == there:  # and not one that another put there meanwhile
                _take_away(place)
        try:
            os.replace(folder, place)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return


def _identity(place: Path) -> tuple[int, int] | None:
    try:
        about = place.stat()
    except FileNotFoundError:
        return None
    return about.st_dev, about.st_ino


def _take_away(place: Path) -> None:
    """Removes what is damaged; whoever has mapped it keeps what it has."""
    aside = Path(tempfile.mkdtemp(prefix=_made_here(), dir=place.parent))
    try:
        with suppress(FileNotFoundError):  # another was quicker
            os.replace(place, aside / "damaged")
    finally:
        shutil.rmtree(aside)


def _made_here() -> str:
    return f"{_MAKING}{socket.gethostname()}-"


def _remove_stale(folder: Path) -> None:
    """Removes what processes that were killed while making a set have left.

    One of this machine is known by its lock, which its process took with it, whatever the clock
    says. Those of others are left alone for a day as well: locks may not reach from one to another.
    """
    for left in folder.glob(f"{_MAKING}*"):
        with suppress(OSError, Timeout):  # another was quicker, or it cannot be told, or is held
            if not (left / _HELD).exists():
                if _is_old(left):
                    shutil.rmtree(left, ignore_errors=True)
            elif left.name.startswith(_made_here()) or _is_old(left):
                with FileLock(left / _HELD, timeout=0):
                    shutil.rmtree(left, ignore_errors=True)


def _is_old(folder: Path) -> bool:
    changed = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    return time.time() - changed > _STALE_SECONDS


def _refused(folder: Path, size: int, error: OSError) -> UnrazeError:
    why = "the disk is full" if is_full(error) else "cannot be written"
    return UnrazeError(
        f"{folder}: {why} ({error.strerror or error}); the decoded images take "
        f"{size / 2**30:.2f} GiB: make room, or set UNRAZE_CACHE to a folder on another disk"
    )
