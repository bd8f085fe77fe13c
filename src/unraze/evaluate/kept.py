"""What an evaluation keeps, so that a stopped one goes on and the next one is quicker.

Results of its parts are JSON files, arrays are zip files (`.npz`), whose check sums show damage.
Each has a name that says what it depends on: a hash of the weights, images and settings it is made
from, so that none is mistaken for another. Features of real images are kept in the package's cache.
"""

import hashlib
import io
import json
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from unraze import __version__, files, untrusted
from unraze.data import Images
from unraze.data.cache import cache_folder
from unraze.errors import InputError, UnrazeError
from unraze.evaluate.features import FeatureSpace
from unraze.evaluate.stage import Stage

__all__ = [
    "features_of_images",
    "features_of_pixels",
    "found_part",
    "has_features",
    "kept_part",
    "key_of",
    "newest_first",
    "read_arrays",
    "read_result",
    "write_arrays",
    "write_bytes",
    "write_result",
]

T = TypeVar("T")
Array = np.ndarray[Any, Any]

CHUNK = 1000
MAX_RESULT = 2**28
"""The most bytes of a result, which names pairs of images and figures of each class."""
STALE_SECONDS = 3600.0
"""A temporary file that is older than this was left by a process that was killed."""
DAMAGE = (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What reading a damaged `.npz` raises, by the part that is damaged."""


def key_of(**what: Any) -> str:
    """Eight hex digits that tell what was made from these plain values from what was not."""
    text = json.dumps({**what, "unraze": __version__}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def features_of_pixels(
    space: FeatureSpace, pixels: Array, name: str
) -> Generator[Stage, None, Array]:
    """Features (N, dim) of uint8 (N, C, H, W); the stages, called `name`, count images."""
    features = np.empty((len(pixels), space.dim), dtype=np.float32)
    for first in range(0, len(pixels), CHUNK):
        part = np.ascontiguousarray(pixels[first : first + CHUNK])
        features[first : first + CHUNK] = space.extract(part)
        yield Stage(name, min(first + CHUNK, len(pixels)), len(pixels))
    return features


def features_of_images(
    space: FeatureSpace, images: Images, name: str, *, mirrored: bool = False
) -> Generator[Stage, None, Array]:
    """The same of a set of real images, or of their mirror images, kept for the next time.

    Warns where they cannot be kept.
    """
    file = _file_of_features(space, images, mirrored)
    kept = read_arrays(file, features=((len(images), space.dim), np.dtype(np.float32)))
    if kept is not None:
        return kept["features"]
    pixels = images.pixels[..., ::-1] if mirrored else images.pixels
    features = yield from features_of_pixels(space, pixels, name)
    try:
        write_arrays(file, features=features)
    except UnrazeError as error:
        warnings.warn(f"{error}; or set UNRAZE_CACHE to another folder", stacklevel=2)
    return features


def has_features(space: FeatureSpace, images: Images, *, mirrored: bool = False) -> bool:
    """Whether there is a file of what `features_of_images` returns."""
    return _file_of_features(space, images, mirrored).is_file()


def kept_part(
    file: Path, adapter: TypeAdapter[T], make: Callable[[], Generator[Stage, None, T]]
) -> Generator[Stage, None, T]:
    """A part's result from its file, or made and written there.

    A file that is damaged, or of another version, is made anew. Raises `UnrazeError` where it
    cannot be written.
    """
    found = found_part(file, adapter)
    if found is not None:
        return found
    result = yield from make()
    write_result(file, adapter, result)
    return result


def found_part(file: Path, adapter: TypeAdapter[T]) -> T | None:
    """The same where it was made before; None where not, or where its file is damaged."""
    try:
        return adapter.validate_json(untrusted.read(file, MAX_RESULT))
    except (FileNotFoundError, ValueError):  # as that of what does not fit is too
        return None
    except OSError as error:
        raise UnrazeError(f"{file}: cannot be read ({error.strerror or error})") from error


def write_result(file: Path, adapter: TypeAdapter[T], result: T) -> None:
    """Writes a result as JSON; numbers that do not exist are null. Raises `UnrazeError`."""
    write_bytes(file, adapter.dump_json(result, indent=1) + b"\n")


def read_result(file: Path, adapter: TypeAdapter[T]) -> T:
    """What `write_result` wrote; raises `InputError` that names the file."""
    try:
        return adapter.validate_json(untrusted.read(file, MAX_RESULT))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{file}: is no evaluation of this version{f', {place}' if place else ''}: "
            f"{first['msg']}; give an evaluation's .json file, or evaluate again"
        ) from error
    except ValueError as error:
        raise InputError(f"{file}: is no evaluation, it {error}") from error


def newest_first(files: Iterable[Path]) -> list[Path]:
    """Some evaluations' files by when they were made; raises `InputError` for a damaged one."""
    return sorted(files, key=lambda file: (_made(file), file.name), reverse=True)


def _made(file: Path) -> str:
    """When an evaluation was made, in ISO 8601 of UTC, which sorts by time."""
    try:
        return str(untrusted.json_of(file, MAX_RESULT)["made"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{file}: is damaged, or no evaluation; remove it, or name another's file"
        ) from error


def read_arrays(file: Path, **wanted: tuple[tuple[int, ...], np.dtype]) -> dict[str, Array] | None:
    """Arrays of just these shapes and types; None where there are none, or they are damaged."""
    try:
        untrusted.require_plain(file)
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as opened:
            arrays = {name: opened[name] for name in wanted}
    except DAMAGE:  # cut off by a crash, say: it is made again
        return None
    fits = all((arrays[n].shape, arrays[n].dtype) == kind for n, kind in wanted.items())
    return arrays if fits else None


def write_arrays(file: Path, **arrays: Array | float) -> None:
    """Writes arrays into one file. Raises `UnrazeError`."""
    buffer = io.BytesIO()
    np.savez(buffer, **_as_arrays(arrays))
    write_bytes(file, buffer.getvalue())


def write_bytes(file: Path, data: bytes) -> None:
    """Writes under a temporary name, flushes to the disk and renames, so that a file is whole.

    Makes the folder where need be. Raises `UnrazeError`.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(file.parent)
        files.write_whole(file, data)
    except OSError as error:
        then, otherwise = "give the same command again: it goes on", "make its folder writable"
        why = files.cannot_write(file, error, then=then, otherwise=otherwise)
        raise UnrazeError(why) from error


def _file_of_features(space: FeatureSpace, images: Images, mirrored: bool) -> Path:
    text = f"{space.hash} {images.fingerprint}{' mirrored' if mirrored else ''}"
    return cache_folder() / "features" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"


def _as_arrays(values: Mapping[str, Array | float]) -> dict[str, Any]:
    return {name: np.asarray(value) for name, value in values.items()}


def _remove_stale(folder: Path) -> None:
    for left in folder.glob(".*.part"):
        process = files.left_by(left)
        if process is not None and files.is_running(process):  # whatever the clock says
            continue
        with suppress(FileNotFoundError):  # another process was done with it meanwhile
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                left.unlink()
