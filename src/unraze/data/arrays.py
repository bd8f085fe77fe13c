"""Images saved as numpy arrays: `.npy`, and `.npz` with labels; never a pickle in them."""

import io
import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from unraze import untrusted
from unraze.data.found import MOST_DEFLATED, Arrays, listed, no_test_part
from unraze.errors import DataError

__all__ = ["has_test_part", "read"]

_TRAIN = ("images", "x", "arr_0", "x_train", "nhwc", "nchw")
_TEST = ("x_test",)
_LABELS = {"x_train": ("y_train",), "x_test": ("y_test",)}
_CHANNELS = (1, 3, 4)
_CHUNK = 4096
_MAX_BYTES = 2**34
_LONGEST_HEADER = 2**14
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, EOFError, ValueError, TypeError, NotImplementedError),
    *(RuntimeError, SyntaxError, tokenize.TokenError),
)
"""What zipfile, and numpy's reader of headers, raise on damaged files."""

_Array = np.ndarray[Any, Any]


def has_test_part(path: Path) -> bool:
    """Whether an `.npz` has images that are for testing; of a damaged one `read` tells."""
    if path.suffix.lower() != ".npz":
        return False
    try:
        untrusted.require_plain(path)
        with zipfile.ZipFile(path) as archive:
            return any(f"{key}.npy" in archive.namelist() for key in _TEST)
    except _DAMAGE:
        return False


def read(path: Path, split: Literal["train", "test"] = "train") -> Arrays:
    """Images (N, H, W), (N, H, W, C) or (N, C, H, W) of uint8, or of floats in [0, 1].

    C is 1, 3, or 4 (RGB and alpha). An `.npz` has the images under the key `images`, `x`, `arr_0`
    or `x_train`; or `nhwc` or `nchw`, which state what the axes are where the shape leaves it
    open. Its labels, integers (N,), are under `labels`, `y` or `y_train`, the classes' names,
    where there are any, under `class_names`. `x_test` and `y_test` are its test part.

    Raises `DataError` for arrays of objects (pickles), and for all else that is not so.
    """
    try:
        untrusted.require_plain(path)
        if path.suffix.lower() == ".npz":
            images, labels, class_names = _npz(path, split)
        elif split == "test":
            raise no_test_part(str(path))
        else:
            with path.open("rb") as stream:
                _check_header(stream, str(path), path.stat().st_size)
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            images, labels, class_names = _channels_last(mapped, str(path)), None, ()
    except DataError:
        raise
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: is damaged or cut off ({reason}); save it again") from error
    except MemoryError as error:
        raise DataError(
            f"{path}: does not fit in memory; save the images with np.save: a .npy file is not "
            "read whole"
        ) from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); check it, and its permissions"
        ) from error
    stat = path.stat()
    return Arrays(
        source=str(path),
        pixels=images,
        labels=labels,
        class_names=class_names,
        stamps=[(path.name, stat.st_size, stat.st_mtime_ns)],
    )


def _npz(path: Path, split: str) -> tuple[_Array, _Array | None, tuple[str, ...]]:
    with zipfile.ZipFile(path) as archive:
        keys = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
        wanted = _TRAIN if split == "train" else _TEST
        present = [key for key in wanted if key in keys]
        if not present and split == "test" and any(key in keys for key in _TRAIN):
            raise no_test_part(str(path))
        if len(present) != 1:
            what = f"more than one of them ({listed(present)})" if present else listed(keys, 6)
            raise DataError(
                f"{path}: has {what or 'nothing'}; save the images under one of the keys "
                f"{', '.join(wanted)}"
            )
        key = present[0]
        of_labels = [k for k in _LABELS.get(key, ("labels", "y")) if k in keys]
        images = _channels_last(_member(archive, key, path), f"{path} [{key}]", key)
        labels = _member(archive, of_labels[0], path) if of_labels else None
        named = "class_names" in keys and labels is not None
        names = _member(archive, "class_names", path) if named else np.array([])
    if labels is not None and labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if names.ndim != 1:
        raise DataError(
            f"{path} [class_names]: has the shape {names.shape}; save one name for each class"
        )
    return images, labels, tuple(str(name) for name in names.tolist())


def _member(archive: zipfile.ZipFile, key: str, path: Path) -> _Array:
    """One array of an `.npz`, read after its header was found to be harmless."""
    info = archive.getinfo(f"{key}.npy")
    most = path.stat().st_size * (1 if info.compress_type == zipfile.ZIP_STORED else MOST_DEFLATED)
    with archive.open(info) as stream:
        _check_header(stream, f"{path} [{key}]", min(info.file_size, most))
    if info.file_size > _MAX_BYTES:
        raise DataError(
            f"{path} [{key}]: unpacks to {info.file_size / 2**30:.0f} GiB, more than "
            f"{_MAX_BYTES // 2**30}; save the images with np.save: a .npy file is not read whole"
        )
    with archive.open(info) as stream:
        array: _Array = np.lib.format.read_array(stream, allow_pickle=False)
    return array


def _check_header(file: IO[bytes], where: str, size: int) -> None:
    """Raises `DataError` where the array's header is not one, announces a pickle, or more than the
    file's `size` in bytes can hold."""
    stream = io.BytesIO(file.read(_LONGEST_HEADER))
    if stream.read(6) != b"\x93NUMPY":
        raise DataError(
            f"{where}: is not a numpy array (a pickle, which can run code when it is loaded, is "
            "not read); save it with np.save, or give a folder of images"
        )
    version = tuple(stream.read(2))
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    elif len(version) < 2:
        raise EOFError("its header ends too soon")
    else:
        raise DataError(f"{where}: is a numpy array of version {version}; save plain numbers")
    if dtype.hasobject:
        raise DataError(
            f"{where}: holds Python objects, that is a pickle, which can run code when it is "
            "loaded, so it is not read; save plain numbers: np.save(FILE, np.stack(images))"
        )
    declared = stream.tell() + math.prod(shape) * max(1, dtype.itemsize)
    if min(shape, default=0) < 0 or declared > size:
        raise DataError(
            f"{where}: declares the shape {shape}, {declared} bytes, but has {size} at most; "
            "save it again"
        )


def _channels_last(array: _Array, where: str, key: str = "") -> _Array:
    """Images (N, H, W, C), checked; raises `DataError`."""
    shape = array.shape
    if 0 in shape:
        raise DataError(f"{where}: is empty, its shape is {shape}; give images")
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise DataError(
            f"{where}: holds {array.dtype}; save uint8 from 0 to 255, or floats from 0 to 1"
        )
    if array.dtype.kind == "f":
        _check_range(array, where)
    if array.ndim == 3 and shape[2] not in _CHANNELS:
        return array[..., None]
    if array.ndim == 4:
        last, first = shape[3] in _CHANNELS, shape[1] in _CHANNELS
        if key == "nhwc" or key == "nchw":
            last, first = last and key == "nhwc", first and key == "nchw"
        if last and first:
            raise DataError(
                f"{where}: {shape} may be (N, H, W, C) or (N, C, H, W); say which by the key: "
                "np.savez(FILE, nhwc=images) or np.savez(FILE, nchw=images)"
            )
        if last or first:
            return array if last else array.transpose(0, 2, 3, 1)
    stated = f", as the key {key} says" if key in ("nhwc", "nchw") else ""
    raise DataError(
        f"{where}: has the shape {shape}; save images as (N, H, W), (N, H, W, C) or "
        f"(N, C, H, W) with C = 1, 3 or 4{stated}"
    )


def _check_range(array: _Array, where: str) -> None:
    for first in range(0, len(array), _CHUNK):
        part = array[first : first + _CHUNK]
        low, high = float(part.min()), float(part.max())
        if not (low >= 0 and high <= 1):
            raise DataError(
                f"{where}: holds floats from {low:g} to {high:g}; bring them to 0 … 1, "
                "(x + 1)/2 does for -1 … 1, or save uint8"
            )
