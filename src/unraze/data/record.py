"""What a run keeps of the images it is trained on, to say later which of them are others now.

For each image its name and a CRC-32 of its pixels and its class: for a million images a few
megabytes, and a few seconds, once. Whether anything changed at all is told by the fingerprint, a
SHA-256; the CRC-32 only tells which.
"""

import base64
import json
import zlib
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from unraze import untrusted
from unraze.data.found import listed
from unraze.data.images import Images

__all__ = ["Record", "changes", "read", "record", "written"]

MAX_BYTES = 2**30
"""The most bytes of a record, and of the names in one: some ten million images have as many."""

Array = np.ndarray[Any, Any]

LONGEST = 200
"""Letters told of a name."""
SHOWN = 3
"""Names told of each kind of change."""
CHUNK = 1024


class Record(BaseModel):
    """The images of a run.

    Arguments:
        run: the run's identity, see `unraze.run.identity`.
        fingerprint: SHA-256 of pixels, shape and labels, of `Images`.
        shape: (N, C, H, W).
        names: one for each image: JSON, compressed, in base 64; None where they are only numbers.
        digests: CRC-32 of each image's pixels and class: little-endian uint32, in base 64.
        accepted: fingerprints of the images that these took the place of, the oldest first.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    run: str
    fingerprint: str
    shape: Annotated[list[int], Field(min_length=4, max_length=4)]
    names: str | None
    digests: str
    accepted: list[str] = []


def record(images: Images, run: str, accepted: list[str] | None = None) -> Record:
    """What is kept of these images."""
    names = list(images.names)
    numbered = all(name == f"number {i}" for i, name in enumerate(names))
    packed = None if numbered else zlib.compress(json.dumps(names).encode())
    return Record(
        run=run,
        fingerprint=images.fingerprint,
        shape=list(images.pixels.shape),
        names=None if packed is None else base64.b64encode(packed).decode(),
        digests=base64.b64encode(digests(images).astype("<u4").tobytes()).decode(),
        accepted=accepted or [],
    )


def digests(images: Images) -> Array:
    """CRC-32 of each image's pixels and class, uint32 (N,)."""
    found = np.empty(len(images), dtype=np.uint32)
    labels = None if images.labels is None else images.labels.astype("<i8")
    for first in range(0, len(images), CHUNK):
        part = np.ascontiguousarray(images.pixels[first : first + CHUNK])
        for i, pixels in enumerate(part, start=first):
            label = b"" if labels is None else labels[i].tobytes()
            found[i] = zlib.crc32(label, zlib.crc32(pixels.data))
    return found


def written(kept: Record) -> str:
    """The record as the text of a file."""
    return kept.model_dump_json(indent=1) + "\n"


def read(file: Path) -> Record | None:
    """What `written` wrote, from a file; None where there is none, or it is damaged."""
    try:
        return Record.model_validate_json(untrusted.read(file, MAX_BYTES))
    except (OSError, ValueError):  # pydantic's error is one
        return None


def changes(kept: Record, images: Images) -> str:
    """What is no longer as it was kept, in words: which images are gone, new or changed."""
    try:
        was = _by_name(_names_of(kept), _digests_of(kept))
    except (ValueError, zlib.error):
        return f"{kept.shape[0]} then, {len(images)} now; which, is no longer legible"
    is_now = _by_name(list(images.names), digests(images))
    gone = [name for name in was if name not in is_now]
    new = [name for name in is_now if name not in was]
    other = [name for name, mark in is_now.items() if name in was and was[name] != mark]
    said = []
    if (before := tuple(kept.shape[1:])) != images.pixels.shape[1:]:
        said.append(f"they were of {before}, channels x height x width")
    elif other:
        said.append(f"{_counted(other)} changed")
    if gone:
        said.append(f"{_counted(gone)} gone")
    if new:
        said.append(f"{_counted(new)} new")
    if not said:
        said.append("the same images, in another order")
    return f"{kept.shape[0]} then, {len(images)} now: {', '.join(said)}"


def _counted(names: list[str]) -> str:
    return f"{len(names)} ({listed([name[:LONGEST] for name in names[:SHOWN]] + names[SHOWN:])})"


def _by_name(names: list[str], marks: Array) -> dict[str, int]:
    """A mark of each name; those of a name that is there more than once are numbered."""
    found: dict[str, int] = {}
    for name, mark in zip(names, marks.tolist(), strict=True):
        unique, again = name, 1
        while unique in found:
            again += 1
            unique = f"{name} ({again})"
        found[unique] = mark
    return found


def _names_of(kept: Record) -> list[str]:
    """Raises `ValueError` or `zlib.error` where they are damaged."""
    count = len(_digests_of(kept))
    if kept.names is None:
        return [f"number {i}" for i in range(count)]
    unpacker = zlib.decompressobj()
    text = unpacker.decompress(base64.b64decode(kept.names, validate=True), MAX_BYTES)
    if not unpacker.eof:
        raise ValueError(f"cut off, or of more than {MAX_BYTES} bytes")
    names = untrusted.json_in(text)
    if not isinstance(names, list) or len(names) != count:
        raise ValueError("not one name for each image")
    return [str(name) for name in names]


def _digests_of(kept: Record) -> Array:
    """Raises `ValueError` where they are damaged."""
    found = np.frombuffer(base64.b64decode(kept.digests, validate=True), dtype="<u4")
    if len(found) != kept.shape[0]:
        raise ValueError("not one digest for each image")
    return found
