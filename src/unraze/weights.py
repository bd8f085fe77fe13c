"""Tensors in a safetensors file, read with bounds: eight bytes, a header in JSON, the numbers.

    N (8 bytes, little-endian)    N bytes of JSON: names, types, shapes, places    the numbers

A file that was made by a stranger can say anything in its header. It holds no code, and is refused
before any tensor is made where the header is longer or nests deeper than one of weights does.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from unraze import untrusted
from unraze.errors import CheckpointError, UnreadableError
from unraze.hardware import memory

__all__ = ["MAX_HEADER", "header", "metadata", "parsed", "read", "reading", "require_memory"]

MAX_HEADER = 2**24
"""The most bytes of a header: a hundred times that of a network of a thousand tensors."""
MAX_DIMENSIONS = 8
NO_FILE = (errno.EINVAL, errno.EISDIR, errno.ENOTDIR, errno.ELOOP)
"""What the system says of what is there and is no file, however often it is tried."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """A part of a checkpoint is read in here: where it is gone or is no file that is a
    `CheckpointError`, and where the system does not give it now, an `UnreadableError`."""
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: is missing") from error
    except (OSError, MemoryError) as error:
        code = errno.ENOMEM if isinstance(error, MemoryError) else error.errno
        why = os.strerror(code) if code else str(error)
        if code in NO_FILE:
            raise CheckpointError(f"{path}: is damaged, it is not a file ({why})") from error
        raise UnreadableError(
            f"{path}: cannot be read now ({why}), and may be whole; try again, or, where it stays "
            "so, move its checkpoint away, and the one before it is taken"
        ) from error


def require_memory(path: Path, size: int) -> None:
    """Raises `UnreadableError` where so many bytes do not fit in this machine's memory."""
    if size > memory():
        raise UnreadableError(
            f"{path}: has {size:,} bytes, more than {memory():,}, does not fit in memory; take a "
            "machine that has more"
        )


def read(file: Path) -> bytes:
    """The bytes of a file that fits in this machine's memory; raises `OSError`, `ValueError`."""
    return untrusted.read(file, memory())


def header(file: Path) -> dict[str, Any]:
    """What the header of a file says of each tensor, of which none is read; for what opens the file
    itself, which has bounds of its own or none. Raises `OSError`, and `ValueError` for a header
    that is longer or deeper than one of weights is."""
    size = untrusted.require_plain(file)
    with file.open("rb") as stream:
        return _checked(stream.read(_length(stream.read(8), size)))


def _checked(text: bytes) -> dict[str, Any]:
    """What a header says; raises `ValueError`."""
    said = untrusted.json_in(text)
    if not isinstance(said, dict):
        raise ValueError("a header that holds no names")
    for name, about in said.items():
        shape = about.get("shape") if isinstance(about, dict) else None
        if isinstance(shape, list) and len(shape) > MAX_DIMENSIONS:
            raise ValueError(f"{untrusted.one_line(name)} has {len(shape)} dimensions")
    return said


def _length(begin: bytes, size: int) -> int:
    """Bytes of the header, in a file of that size; raises `ValueError`."""
    length = int.from_bytes(begin, "little")
    if len(begin) < 8 or length > size - 8:
        raise ValueError(f"a header of {length:,} bytes, in a file of {size:,}")
    if length > MAX_HEADER:
        raise ValueError(f"a header of {length:,} bytes, more than {MAX_HEADER:,}")
    return length


def metadata(data: bytes) -> dict[str, str]:
    """The words beside the tensors of a file, which `parsed` has found to be whole."""
    found: dict[str, str] = untrusted.json_in(data[8 : 8 + _length(data[:8], len(data))]).get(
        "__metadata__", {}
    )
    return found


def parsed(data: bytes) -> dict[str, Tensor]:
    """The tensors by name; raises `ValueError` with what is wrong with them, and `OSError` where
    there is no memory left for them."""
    _checked(data[8 : 8 + _length(data[:8], len(data))])
    try:
        return safetensors.torch.load(data)
    except MemoryError as error:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error
    # what torch says of a type that it has not, or of a shape that cannot be
    except (SafetensorError, RuntimeError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(untrusted.one_line(" ".join(str(error).split()))) from error
