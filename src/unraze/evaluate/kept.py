"""What an evaluation keeps, so that a stopped one goes on and a second one is quicker.

Results of its parts are JSON files; features of real images are arrays in the package's cache,
named by the feature space's hash and the images' fingerprint, so that neither can be mistaken.
"""

import hashlib
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from unraze.checkpoint import write_atomically
from unraze.data import Images
from unraze.data.cache import cache_folder
from unraze.errors import InputError, UnrazeError
from unraze.evaluate.features import FeatureSpace
from unraze.evaluate.stage import Stage

__all__ = [
    "features_of_images",
    "features_of_pixels",
    "kept_part",
    "read_array",
    "read_result",
    "write_array",
    "write_result",
]

T = TypeVar("T")
CHUNK = 1000


def features_of_pixels(
    space: FeatureSpace, pixels: np.ndarray, name: str
) -> Generator[Stage, None, np.ndarray]:
    """Features (N, dim) of uint8 (N, C, H, W); the stages, called `name`, count images."""
    features = np.empty((len(pixels), space.dim), dtype=np.float32)
    for first in range(0, len(pixels), CHUNK):
        features[first : first + CHUNK] = space.extract(pixels[first : first + CHUNK])
        yield Stage(name, min(first + CHUNK, len(pixels)), len(pixels))
    return features


def features_of_images(
    space: FeatureSpace, images: Images, name: str
) -> Generator[Stage, None, np.ndarray]:
    """The same of a set of real images, kept for the next time. Raises `UnrazeError`."""
    key = hashlib.sha256(f"{space.hash} {images.fingerprint}".encode()).hexdigest()[:32]
    file = cache_folder() / "features" / f"{key}.npy"
    kept = read_array(file, (len(images), space.dim), np.dtype(np.float32))
    if kept is not None:
        return kept
    features = yield from features_of_pixels(space, images.pixels, name)
    write_array(file, features)
    return features


def kept_part(
    file: Path, adapter: TypeAdapter[T], make: Callable[[], Generator[Stage, None, T]]
) -> Generator[Stage, None, T]:
    """A part's result from its file, or made and written there. A file of another version is
    made anew."""
    if file.is_file():
        try:
            return adapter.validate_json(file.read_bytes())
        except ValidationError:  # of another version, or cut off: it is made again and replaced
            file.unlink()
    result = yield from make()
    write_result(file, adapter, result)
    return result


def write_result(file: Path, adapter: TypeAdapter[T], result: T) -> None:
    """Writes a result as JSON; numbers that do not exist are null. Raises `UnrazeError`."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnrazeError(f"{file.parent}: cannot be made ({error.strerror})") from error
    write_atomically(file, adapter.dump_json(result, indent=1).decode() + "\n")


def read_result(file: Path, adapter: TypeAdapter[T]) -> T:
    """What `write_result` wrote; raises `InputError` that names the file."""
    try:
        return adapter.validate_json(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise InputError(
            f"{file}: is not an evaluation of this version ({error.error_count()} fields differ); "
            "evaluate again"
        ) from error


def read_array(file: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
    """An array of just this shape and type; None where there is none, or it is cut off."""
    if not file.is_file():
        return None
    try:
        array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # cut off by a full disk, say: it is made again
        return None
    return array if array.shape == shape and array.dtype == dtype else None


def write_array(file: Path, array: np.ndarray) -> None:
    """Writes an array under a temporary name and renames it. Raises `UnrazeError`."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            np.save(stream, array)
        temporary.replace(file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UnrazeError(f"{file}: cannot be written ({error.strerror})") from error
