"""The IDX format of the MNIST family: a magic number, the dimensions, the bytes; gzipped or plain.

    00 00 08 n    unsigned bytes in n dimensions (n = 3: images, n = 1: labels)
    n times 4     the dimensions, big-endian
    ...           the bytes, row by row

Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits", File formats.
"""

import gzip
import math
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from unraze import untrusted
from unraze.data.found import MOST_DEFLATED, Arrays, listed, natural
from unraze.errors import DataError

__all__ = ["has_test_part", "is_images", "is_set", "read", "read_array"]

_NAME = re.compile(r"(?P<before>.*?)(?P<part>train|t10k|test)-images[.-]idx3-ubyte(?P<gz>\.gz)?")
_TEST_PARTS = ("t10k", "test")
_MAX_BYTES = 2**34

Split = Literal["train", "test"]


def is_images(name: str) -> bool:
    """Whether a file is an IDX file of images by its name."""
    return re.search(r"idx3-ubyte(\.gz)?$", name) is not None


def is_set(folder: Path) -> bool:
    """Whether a folder holds IDX files of images."""
    return any(is_images(entry.name) for entry in folder.iterdir())


def has_test_part(path: Path) -> bool:
    """Whether an IDX file or folder has images that are for testing, beside those for training."""
    if path.is_dir():
        files = [file.name for file in path.iterdir()]
    else:
        match = _NAME.fullmatch(path.name)
        if match is None or match["part"] != "train":
            return False
        names = _spellings(match["before"], _TEST_PARTS, "images")
        files = [name for name in names if path.with_name(name).exists()]
    return any((match := _NAME.fullmatch(n)) and match["part"] in _TEST_PARTS for n in files)


def read(
    path: Path,
    split: Split = "train",
    *,
    source: str | None = None,
    class_names: Sequence[str] = (),
) -> Arrays:
    """Images, and labels where their file lies beside it, of an IDX file or a folder of them.

    A folder has `train-images-idx3-ubyte` and `t10k-images-idx3-ubyte` (or `test-…`), with `.gz` or
    without; `labels` and `idx1` stand in the names of the labels' files. Raises `DataError`.
    """
    images_file = _images_file(path, split)
    pixels = read_array(images_file, dimensions=3)
    labels_file = _labels_file(images_file)
    labels = None if labels_file is None else read_array(labels_file, dimensions=1)
    if labels is not None and len(labels) != len(pixels):
        raise DataError(
            f"{labels_file}: has {len(labels)} labels for the {len(pixels)} images of "
            f"{images_file.name}; get both files from the same place"
        )
    files = [file for file in (images_file, labels_file) if file is not None]
    return Arrays(
        source=source or str(path),
        pixels=pixels[..., None],
        labels=labels,
        class_names=tuple(class_names),
        stamps=[(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files],
    )


def read_array(path: Path, *, dimensions: int) -> np.ndarray[Any, Any]:
    """The uint8 array of one IDX file; raises `DataError` where it is not whole, or another."""
    try:
        untrusted.require_plain(path)
        packed = path.suffix == ".gz"
        with gzip.open(path) if packed else path.open("rb") as stream:
            most = path.stat().st_size * (MOST_DEFLATED if packed else 1)
            return _parse(stream, path, dimensions, most)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: is damaged or cut off ({' '.join(str(error).split())}); get it again"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except MemoryError as error:
        raise DataError(
            f"{path}: does not fit in memory; save the images with np.save: a .npy file is not "
            "read whole"
        ) from error


def _parse(
    stream: BinaryIO | gzip.GzipFile, path: Path, dimensions: int, most: int
) -> np.ndarray[Any, Any]:
    header = stream.read(4 + 4 * dimensions)
    if len(header) < 4 + 4 * dimensions or header[:4] != bytes([0, 0, 8, dimensions]):
        raise DataError(
            f"{path}: is not an IDX file of {dimensions} dimensions, it begins with "
            f"{header[:4].hex() or 'nothing'}, not 000008{dimensions:02x}; get it again"
        )
    shape = struct.unpack(f">{dimensions}I", header[4:])
    count = math.prod(shape)
    if not 0 < count <= _MAX_BYTES:
        raise DataError(f"{path}: declares {shape} bytes; give 1 to {_MAX_BYTES} in all")
    if count > most:  # asked before, for what is read is first made room for
        raise DataError(f"{path}: declares {count} bytes but has only {most}; get it again")
    data = stream.read(count + 1)
    if len(data) != count:
        there = f"only {len(data)}" if len(data) < count else "more"
        raise DataError(f"{path}: declares {count} bytes but has {there}; get it again")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _images_file(path: Path, split: Split) -> Path:
    if path.is_dir():
        files = sorted((f for f in path.iterdir() if _NAME.fullmatch(f.name)), key=_order)
        sets = sorted({_before(file) for file in files})
        if len(sets) > 1:
            raise DataError(
                f"{path}: holds {len(sets)} sets of IDX files ({listed(sets)}); give the images' "
                "file of one as the source"
            )
        return _of_split(files, path, split)
    if split == "test" and (match := _NAME.fullmatch(path.name)) and match["part"] == "train":
        beside = [path.with_name(n) for n in _spellings(match["before"], _TEST_PARTS, "images")]
        return _of_split([file for file in beside if file.exists()], path, split)
    return path


def _of_split(files: Sequence[Path], path: Path, split: Split) -> Path:
    parts = ("train",) if split == "train" else _TEST_PARTS
    for file in files:
        match = _NAME.fullmatch(file.name)
        if match and match["part"] in parts:
            return file
    raise DataError(
        f"{path}: has no {split} part; put {parts[0]}-images-idx3-ubyte.gz there, or give an IDX "
        "file of images as the source"
    )


def _labels_file(images_file: Path) -> Path | None:
    match = _NAME.fullmatch(images_file.name)
    if match is None:
        return None
    names = _spellings(match["before"], (match["part"],), "labels")
    beside = [images_file.with_name(name) for name in names]
    return next((file for file in beside if file.exists()), None)


def _spellings(before: str, parts: Sequence[str], what: str) -> list[str]:
    dimensions = "idx3" if what == "images" else "idx1"
    return [
        f"{before}{part}-{what}{mark}{dimensions}-ubyte{end}"
        for part in parts
        for mark in "-."
        for end in (".gz", "")
    ]


def _before(file: Path) -> str:
    match = _NAME.fullmatch(file.name)
    return match["before"] if match else ""


def _order(file: Path) -> tuple[list[str | int], str]:
    return natural(file.name)
