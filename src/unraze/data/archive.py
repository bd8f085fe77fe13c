"""A zip archive of image files, read in place: nothing is unpacked to disk."""

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from unraze import untrusted
from unraze.data.found import Opener, Pictures, by_class, counted, is_hidden, is_image, natural
from unraze.data.samples import overviews
from unraze.data.shape import UnreadableError
from unraze.errors import DataError

__all__ = ["MAX_BYTES", "read"]

MAX_BYTES = 2**30
"""The most bytes that one file of an archive may unpack to."""


def read(path: Path) -> Pictures:
    """The image files of a zip, in natural order; its folders are classes, as a folder's are.

    Raises `DataError` where the file is not a zip, or holds no images.
    """
    try:
        untrusted.require_plain(path)
        with zipfile.ZipFile(path) as archive:
            named = [info for info in archive.infolist() if info.filename]
            members = {info.filename: info for info in named if not info.is_dir()}
    except MemoryError:
        raise
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); check its permissions"
        ) from error
    except Exception as error:  # what is raised over a damaged directory is not a closed set
        why = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: is not a whole zip archive ({why}); make it again") from error
    found: list[tuple[tuple[str, ...], zipfile.ZipInfo]] = []
    left_out: list[str] = []
    for name, info in members.items():
        parts = tuple(part for part in name.split("/") if part not in ("", "."))
        if parts and is_image(parts[-1]) and not any(is_hidden(part) for part in parts):
            found.append((parts, info))
        else:
            left_out.append(name)
    if not found:
        raise DataError(
            f"{path}: holds no images ({counted(len(left_out), 'file')} of other kinds); "
            "give a zip of .png, .jpg or the like"
        )
    by_parts = dict(found)

    def unpacked(parts: tuple[str, ...]) -> IO[bytes]:
        with zipfile.ZipFile(path) as archive:
            return _unpacked(archive, by_parts[parts])

    beside = overviews(list(by_parts), unpacked)
    left_out += [by_parts[parts].filename for parts in beside]
    found = [pair for pair in found if pair[0] not in beside]
    found.sort(key=lambda pair: [natural(part) for part in pair[0]])
    labels, class_names = by_class([parts for parts, _ in found], str(path))
    infos = [info for _, info in found]

    @contextmanager
    def opened() -> Iterator[Opener]:
        with zipfile.ZipFile(path) as archive:
            yield lambda number: _unpacked(archive, infos[number])

    return Pictures(
        source=str(path),
        names=tuple("/".join(parts) for parts, _ in found),
        labels=labels,
        class_names=class_names,
        stamps=[(info.CRC, info.file_size) for info in infos],
        opened=opened,
        left_out=tuple(sorted(left_out, key=natural)),
    )


def _unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    if info.file_size > MAX_BYTES:
        raise UnreadableError(f"unpacks to {info.file_size} bytes, more than {MAX_BYTES}")
    try:
        return io.BytesIO(archive.read(info))
    except NotImplementedError as error:
        raise UnreadableError(f"is packed in a way that cannot be unpacked: {error}") from error
    except RuntimeError as error:  # how zipfile says that a password is needed
        raise UnreadableError(f"cannot be unpacked: {error}") from error
    except (MemoryError, OSError):
        raise
    except Exception as error:  # what unpackers raise on damaged data is not a closed set
        raise UnreadableError(f"is damaged in the archive: {error}") from error
