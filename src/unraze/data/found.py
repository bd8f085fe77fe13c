"""What a reader hands on: pictures yet to be decoded, or arrays; and what folders and zips share.

A reader finds images and their classes. Decoding and fitting them to one shape is
`unraze.data.reading`'s part, the same for all.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from unraze.errors import DataError

__all__ = [
    "IMAGE_SUFFIXES",
    "MOST_DEFLATED",
    "Arrays",
    "Pictures",
    "by_class",
    "counted",
    "is_hidden",
    "is_image",
    "listed",
    "natural",
    "no_test_part",
    "shown",
]

IMAGE_SUFFIXES = frozenset(
    (
        *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".webp"),
        *(".avif", ".tif", ".tiff", ".pbm", ".pgm", ".ppm", ".pnm", ".tga", ".jp2", ".ico"),
    )
)
"""The endings of the files that are taken for images."""

MOST_DEFLATED = 1032
"""How many times larger than it is packed anything can be that is packed by deflate."""

Opener = Callable[[int], IO[bytes]]


@dataclass(frozen=True, eq=False)
class Pictures:
    """Image files that are found but not decoded.

    Arguments:
        source: where they lie, for messages.
        names: of each, relative to the source, in the order they are used in.
        labels: int64 (N,), or None where there are no classes.
        class_names: one for each class number.
        stamps: two numbers of each, which tell an image that was replaced: size in bytes and time
            of change, or checksum and size.
        opened: a context that gives a function from the number of a picture to its bytes.
        left_out: what lies there too but is not an image by its name.
    """

    source: str
    names: Sequence[str]
    labels: np.ndarray[Any, Any] | None
    class_names: tuple[str, ...]
    stamps: Sequence[tuple[int, int]]
    opened: Callable[[], AbstractContextManager[Opener]]
    left_out: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Arrays:
    """Images that come as numbers.

    Arguments:
        source: where they come from, for messages.
        pixels: (N, H, W, C), uint8, or float in [0, 1]; C is 1, 3, or 4 with alpha last.
        labels: int64 (N,), or None.
        class_names: one for each class number.
        stamps: names, sizes in bytes and times of change of the files they come from.
    """

    source: str
    pixels: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any] | None
    class_names: tuple[str, ...]
    stamps: Sequence[tuple[str, int, int]]


def natural(name: str) -> tuple[list[str | int], str]:
    """A key that sorts as people do: 2.png before 10.png; ties are broken by the name itself."""
    parts: list[str | int] = list(re.split(r"([0-9]{1,18})", name.casefold()))
    parts[1::2] = [int(digits) for digits in parts[1::2]]
    return parts, name


def is_image(name: str) -> bool:
    """Whether a file is taken for an image: its name ends as image files' names do."""
    dot = name.rfind(".")
    return dot > 0 and name[dot:].lower() in IMAGE_SUFFIXES


def is_hidden(name: str) -> bool:
    """Whether a file or folder is one that its system hides, or keeps for itself."""
    return name.startswith(".") or name == "__MACOSX"


def by_class(
    paths: Sequence[tuple[str, ...]], source: str
) -> tuple[np.ndarray[Any, Any] | None, tuple[str, ...]]:
    """Labels (N,) and class names from the images' paths (folder, …, file) below the source.

    The first folder of a path is its class; classes are numbered in natural order. A folder that
    holds all images alone is no class: what is below it counts. Where images lie flat there are no
    classes (None, ()). Raises `DataError` where some lie flat and others in folders.
    """
    rest = list(paths)
    while all(len(p) > 1 and p[0] == rest[0][0] for p in rest):
        inner = [p[1:] for p in rest]
        if len({len(p) > 1 for p in inner}) > 1:
            break
        rest = inner
    flat = [p for p in rest if len(p) == 1]
    if len(flat) == len(rest):
        return None, ()
    folders = sorted({p[0] for p in rest if len(p) > 1}, key=natural)
    if flat:
        raise DataError(
            f"{source}: holds {counted(len(flat), 'image')} ({listed([p[0] for p in flat])}) "
            "beside "
            f"{counted(len(folders), 'folder')} of images ({listed(folders)}); sub-folders are "
            "classes, so move what lies beside them into one, or give one sub-folder as the source"
        )
    number = {name: i for i, name in enumerate(folders)}
    labels = np.array([number[p[0]] for p in rest], dtype=np.int64)
    return labels, tuple(shown(name) for name in folders)


def counted(count: int, what: str) -> str:
    """A number of things: "1 image", "2 images"."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first few names and how many more there are: "a, b, c and 4 more"."""
    first = ", ".join(shown(name) for name in names[:most])
    return first + (f" and {len(names) - most} more" if len(names) > most else "")


def shown(name: str) -> str:
    """A name as one line of printable text, whatever bytes a file system let it have."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def no_test_part(source: str) -> DataError:
    """The error for a source that is not divided into training and test images."""
    return DataError(
        f"{source}: has no test part of its own; give the folder or file of the test images "
        "as the source"
    )
