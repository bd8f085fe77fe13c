"""Data sets that are known by name: `digits`, which comes with the package, and `fashion-mnist`.

`digits` is the test part of the "Optical Recognition of Handwritten Digits" data set (E. Alpaydin,
C. Kaynak, UCI Machine Learning Repository, 1998, CC BY 4.0), 1,797 grey images of 8 x 8 with 17
levels, in the order in which scikit-learn (BSD-3-Clause) distributes it; `tools/make_digits.py`
made the file. Its first 1,500 images are the train part here, the last 297 the test part: the
images stand in order of writers, so that most of the test part is by hands that training did not
see.

`fashion-mnist` (H. Xiao, K. Rasul, R. Vollgraf 2017, arXiv:1708.07747, MIT licence) has 60,000 and
10,000 grey images of 28 x 28.
"""

import difflib
import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np

from unraze.data import idx
from unraze.data.cache import cache_folder
from unraze.data.found import Arrays, shown
from unraze.errors import DataError, InputError

__all__ = ["FASHION_CLASS_NAMES", "NAMES", "get", "read"]

NAMES = ("digits", "fashion-mnist")
"""The data sets that are known by name."""

FASHION_CLASS_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)

_SYSTEM = Path("/usr/share/datasets/fashion-mnist")
_DEBIAN_PACKAGE = "dataset-fashion-mnist"
_ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
# size and SHA-256 of the files at that address; their MD5 are those of the data set's README
_FILES = {
    "train-images-idx3-ubyte.gz": (
        26_421_880,
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    ),
    "train-labels-idx1-ubyte.gz": (
        29_515,
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    ),
    "t10k-images-idx3-ubyte.gz": (
        4_422_102,
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    ),
    "t10k-labels-idx1-ubyte.gz": (
        5_148,
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
}
_SECONDS = 30.0
_CHUNK = 2**16
_DIGITS_LEVELS = 16
_DIGITS_TRAIN = 1500

Progress = Callable[[int, int], None]


def read(
    name: str, split: Literal["train", "test"] = "train", *, progress: Progress | None = None
) -> Arrays:
    """A data set's images, fetched where need be; raises, and tells `progress`, as `get` does."""
    match name:
        case "digits":
            return _digits(split)
        case "fashion-mnist":
            folder = get(name, progress=progress)
            return idx.read(folder, split, source=name, class_names=FASHION_CLASS_NAMES)
        case _:
            raise _unknown(name)


def get(name: str, *, progress: Progress | None = None) -> Path:
    """Where a named data set lies on this machine, after fetching it where it does not yet.

    `fashion-mnist` is looked for in the package's cache, then in the system's folder of data sets,
    then downloaded into the cache and checked by SHA-256. `progress` is told the bytes done, and
    the bytes in all.

    Raises `InputError` for an unknown name, `DataError` where the data set is not to be had.
    """
    match name:
        case "digits":
            return Path(str(resources.files("unraze.data") / "digits.npz"))
        case "fashion-mnist":
            cached = cache_folder() / "fashion-mnist"
            if all(_is_whole(cached / file, *known) for file, known in _FILES.items()):
                return cached
            if all((_SYSTEM / file).is_file() for file in _FILES):
                return _SYSTEM
            _download(cached, progress)
            return cached
        case _:
            raise _unknown(name)


def _digits(split: str) -> Arrays:
    with np.load(get("digits"), allow_pickle=False) as arrays:
        levels, labels = arrays["images"], arrays["labels"]
    part = slice(None, _DIGITS_TRAIN) if split == "train" else slice(_DIGITS_TRAIN, None)
    pixels = np.rint(levels[part, ..., None] * (255 / _DIGITS_LEVELS)).astype(np.uint8)
    return Arrays(
        source="digits",
        pixels=pixels,
        labels=labels[part].astype(np.int64),
        class_names=tuple(str(digit) for digit in range(10)),
        stamps=[("digits", 0, 0)],
    )


def _is_whole(file: Path, size: int, sha256: str) -> bool:
    if not file.is_file() or file.stat().st_size != size:
        return False
    return hashlib.sha256(file.read_bytes()).hexdigest() == sha256


def _download(folder: Path, progress: Progress | None) -> None:
    total = sum(size for size, _ in _FILES.values())
    done = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, (size, sha256) in _FILES.items():
            if not _is_whole(folder / name, size, sha256):
                _download_file(name, folder, size, sha256, done, total, progress)
            done += size
    except (OSError, http.client.HTTPException, urllib.error.URLError, _WrongFile) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise DataError(
            f"fashion-mnist: could not be downloaded ({' '.join(str(reason).split())}), and is "
            "not on this machine; any of three ways will do: install the Debian package "
            f"{_DEBIAN_PACKAGE} (apt install {_DEBIAN_PACKAGE}); or put the four .gz files of "
            f"{_ADDRESS} into {folder}; or connect to the network and try again"
        ) from error


def _download_file(
    name: str,
    folder: Path,
    size: int,
    sha256: str,
    done: int,
    total: int,
    progress: Progress | None,
) -> None:
    """One file, under a temporary name until its checksum is found to be right."""
    digest, received = hashlib.sha256(), 0
    handle, partial = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    try:
        with (
            os.fdopen(handle, "wb") as out,
            urllib.request.urlopen(_ADDRESS + name, timeout=_SECONDS) as answer,
        ):
            while received <= size and (data := answer.read(_CHUNK)):
                out.write(data)
                digest.update(data)
                received += len(data)
                if progress is not None:
                    progress(min(done + received, total), total)
        if digest.hexdigest() != sha256:
            raise _WrongFile(f"{_ADDRESS}{name} sent {received} bytes with a wrong checksum")
        os.replace(partial, folder / name)
    finally:
        Path(partial).unlink(missing_ok=True)


def _unknown(name: str) -> InputError:
    close = difflib.get_close_matches(name.lower(), NAMES, n=1)
    meant = f", did you mean '{close[0]}'?" if close else ""
    return InputError(
        f"{shown(name)}: is no known data set{meant}; the names are {', '.join(NAMES)}"
    )


class _WrongFile(Exception):
    """What came is not what was asked for."""
