"""A folder of image files, whose sub-folders are classes."""

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from unraze.data.found import Opener, Pictures, by_class, counted, is_hidden, is_image, natural
from unraze.data.samples import overviews
from unraze.errors import DataError

__all__ = ["read"]


def read(path: Path) -> Pictures:
    """The image files of a folder, at any depth, in natural order; see `by_class` for labels.

    Hidden files, files that are not images by their names, and overviews of samples are left out.
    Links are followed, but no folder is read twice, so that links in a circle end. Raises
    `DataError` where a folder cannot be read, or holds no images.
    """
    found: list[tuple[str, ...]] = []
    left_out: list[str] = []
    _walk(path, (), {_identity(path)}, found, left_out)
    if not found:
        others = f" ({counted(len(left_out), 'file')} of other kinds)" if left_out else ""
        raise DataError(f"{path}: holds no images{others}; give a folder of .png, .jpg or the like")
    beside = overviews(found, lambda parts: path.joinpath(*parts).open("rb"))
    left_out += ["/".join(parts) for parts in beside]
    found = sorted(set(found) - beside, key=lambda parts: [natural(part) for part in parts])
    labels, class_names = by_class(found, str(path))
    files = [path.joinpath(*parts) for parts in found]

    def opened() -> AbstractContextManager[Opener]:
        return nullcontext(lambda number: files[number].open("rb"))

    return Pictures(
        source=str(path),
        names=tuple("/".join(parts) for parts in found),
        labels=labels,
        class_names=class_names,
        stamps=[_stamp(file) for file in files],
        opened=opened,
        left_out=tuple(sorted(left_out, key=natural)),
    )


def _walk(
    folder: Path,
    above: tuple[str, ...],
    seen: set[tuple[int, int]],
    found: list[tuple[str, ...]],
    left_out: list[str],
) -> None:
    try:
        with os.scandir(folder) as entries:
            # what is really there goes before links to it
            ordered = sorted(entries, key=lambda e: (e.is_symlink(), natural(e.name)))
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be read ({error.strerror or error}); change its permissions"
        ) from error
    for entry in ordered:
        parts = (*above, entry.name)
        if is_hidden(entry.name):
            left_out.append("/".join(parts))
        elif entry.is_dir():
            identity = _identity(Path(entry.path))
            if identity in seen:
                left_out.append("/".join(parts))
            else:
                seen.add(identity)
                _walk(Path(entry.path), parts, seen, found, left_out)
        elif is_image(entry.name) and (entry.is_file() or _is_broken(entry)):
            found.append(parts)
        else:
            left_out.append("/".join(parts))


def _is_broken(entry: os.DirEntry[str]) -> bool:
    """A link that leads nowhere: an image that is missing, to be named when it is opened."""
    return entry.is_symlink() and not os.path.exists(entry.path)


def _identity(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); check its permissions"
        ) from error
    return stat.st_dev, stat.st_ino


def _stamp(file: Path) -> tuple[int, int]:
    stat = file.lstat() if not file.exists() else file.stat()
    return stat.st_size, stat.st_mtime_ns
