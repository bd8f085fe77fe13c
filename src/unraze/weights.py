"""Tensors in a safetensors file, read with bounds: eight bytes, a header in JSON, the numbers.

    N (8 bytes, little-endian)    N bytes of JSON: names, types, shapes, places    the numbers

A file that was made by a stranger can say anything in its header. It holds no code, and is refused
before any tensor is made where the header is longer or nests deeper than one of weights does.
"""

from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from unraze import untrusted
from unraze.hardware import memory

__all__ = ["MAX_HEADER", "metadata", "parsed", "read", "require_header"]

MAX_HEADER = 2**24
"""The most bytes of a header: a hundred times that of a network of a thousand tensors."""
MAX_DIMENSIONS = 8


def read(file: Path) -> bytes:
    """The bytes of a file that fits in this machine's memory; raises `OSError`, `ValueError`."""
    return untrusted.read(file, memory())


def require_header(file: Path) -> None:
    """Raises `ValueError` for a file whose header is longer or deeper than one of weights is, and
    `OSError`; for what opens the file itself, which has bounds of its own or none."""
    size = untrusted.require_plain(file)
    with file.open("rb") as stream:
        untrusted.json_in(stream.read(_length(stream.read(8), size)))


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
    """The tensors by name; raises `ValueError` with what is wrong with them."""
    header = untrusted.json_in(data[8 : 8 + _length(data[:8], len(data))])
    if not isinstance(header, dict):
        raise ValueError("a header that holds no names")
    for name, about in header.items():
        shape = about.get("shape") if isinstance(about, dict) else None
        if isinstance(shape, list) and len(shape) > MAX_DIMENSIONS:
            raise ValueError(f"{untrusted.one_line(name)} has {len(shape)} dimensions")
    try:
        return safetensors.torch.load(data)
    except MemoryError as error:
        raise ValueError("more than fits in memory") from error
    # what torch says of a type that it has not, or of a shape that cannot be
    except (SafetensorError, RuntimeError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(untrusted.one_line(" ".join(str(error).split()))) from error
