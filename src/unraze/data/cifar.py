"""CIFAR-10's binary format: records of 3,073 bytes, one label and 32 x 32 red, green, blue.

Source: Krizhevsky 2009, "Learning multiple layers of features from tiny images"; the page of the
CIFAR-10 data set, "Binary version".
"""

import re
from pathlib import Path
from typing import Literal

import numpy as np

from unraze import untrusted
from unraze.data.found import Arrays, natural, no_test_part
from unraze.errors import DataError

__all__ = ["CLASS_NAMES", "has_test_part", "is_batch", "is_pickled", "is_set", "read"]

CLASS_NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)

_RECORD = 1 + 3 * 32 * 32
_MAX_BYTES = 2**30
_TRAIN = re.compile(r"data_batch_\d+\.bin")
_TEST = "test_batch.bin"
_PICKLED = re.compile(r"data_batch_\d+|test_batch|batches\.meta")


def is_batch(name: str) -> bool:
    """Whether a file is one of CIFAR-10's binary batches by its name."""
    return _TRAIN.fullmatch(name) is not None or name == _TEST


def is_pickled(name: str) -> bool:
    """Whether a file is one of CIFAR-10's Python version, a pickle, by its name."""
    return _PICKLED.fullmatch(name) is not None


def is_set(folder: Path) -> bool:
    """Whether a folder holds CIFAR-10 in either of its versions."""
    return any(is_batch(entry.name) or is_pickled(entry.name) for entry in folder.iterdir())


def has_test_part(path: Path) -> bool:
    """Whether a folder, or a batch, has the batch for testing beside those for training."""
    folder = path if path.is_dir() else path.parent
    return path.name != _TEST and (folder / _TEST).exists()


def read(path: Path, split: Literal["train", "test"] = "train") -> Arrays:
    """The images and labels of a folder of batches, or of one batch.

    Raises `DataError` where they are damaged, and for the Python version, whose files are pickles:
    these are not opened at all.
    """
    files = _files(path, split)
    parts = []
    for file in files:
        try:
            data = np.frombuffer(untrusted.read(file, _MAX_BYTES), dtype=np.uint8)
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror or error})") from error
        except ValueError as error:
            raise DataError(f"{file}: {error}; CIFAR-10's have 30 million") from error
        if not data.size or data.size % _RECORD:
            raise DataError(
                f"{file}: has {data.size} bytes, which is no multiple of {_RECORD}, CIFAR-10's "
                "record; get it again"
            )
        parts.append(data.reshape(-1, _RECORD))
    records = np.concatenate(parts)
    labels = records[:, 0].astype(np.int64)
    if labels.max() >= len(CLASS_NAMES):
        raise DataError(
            f"{path}: has the label {labels.max()}, but CIFAR-10's run from 0 to 9; get it again"
        )
    return Arrays(
        source=str(path),
        pixels=records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1),
        labels=labels,
        class_names=CLASS_NAMES,
        stamps=[(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files],
    )


def _files(path: Path, split: str) -> list[Path]:
    folder = path if path.is_dir() else path.parent
    names = [entry.name for entry in folder.iterdir()]
    if is_pickled(path.name) or (path.is_dir() and not any(is_batch(name) for name in names)):
        raise DataError(
            f"{path}: is CIFAR-10's Python version, whose files are pickles, which can run code "
            "when they are loaded, so they are not opened; get its binary version "
            "(cifar-10-binary.tar.gz, the same images) and give the folder of its .bin files"
        )
    if split == "test":
        test = folder / _TEST
        if not test.exists():
            raise no_test_part(str(path))
        return [test]
    if not path.is_dir():
        return [path]
    training = sorted((n for n in names if _TRAIN.fullmatch(n)), key=natural)
    if not training:
        raise DataError(f"{path}: has no training part; put data_batch_1.bin … there")
    return [folder / name for name in training]
