"""Tar archives of images, as WebDataset has them, read in place: nothing is unpacked to disk.

They are files, or lie on a web server (http://, https://), which is asked for ranges of them.

A sample is the members of one shard whose names are the same up to the first dot of their last
part, the key: `0001.jpg` beside `0001.cls`. Its image is the member that ends as images do, its
class what `.cls`, `.json` (under `label`, `cls` or `class`) or `.txt` says. The order is that of
the shards' names, and in a shard that of its members. A shard is read header by header once, to
know where each member lies; headers are small, and no more of them than that is taken into memory.
What was found in many, or far away, is kept in the cache, until the shards change.
"""

import io
import itertools
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from unraze import untrusted
from unraze.data import cache, remote
from unraze.data.archive import MAX_BYTES
from unraze.data.found import (
    IMAGE_SUFFIXES,
    Opener,
    Pictures,
    by_class,
    counted,
    is_hidden,
    is_image,
    listed,
    natural,
    shown,
)
from unraze.data.samples import overviews
from unraze.data.shape import UnreadableError
from unraze.errors import DataError

__all__ = ["is_set", "named", "read"]

MAX_HEADER = 2**20
"""The most bytes that one header may take: extended ones hold names, of any length."""
MAX_LABEL = 2**20
"""The most bytes that a label's member may have."""
MAX_SHARDS = 100_000
MANY = 10_000
"""Where so many images were found is kept; fewer are found again in a moment."""
LONGEST_NAME, FEW_CLASSES = 100, 10
"""Texts are classes' names where they are of one line, no longer than this, and of images in number
twice as many as the names, beyond a few: else they are captions."""

_BLOCK = 512
_LABELS = ("cls", "json", "txt")
_KEYS = ("label", "cls", "class")
_OCTAL = re.compile(rb"[0-7]{1,12}")
_RANGE = re.compile(r"\{([0-9]{1,9})\.\.([0-9]{1,9})\}")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}

Label = int | str
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Member:
    """A file in a shard, of that number: its name, where its bytes begin, and how many they are.

    `problem` is empty, or why they cannot be read.
    """

    shard: int
    name: str
    offset: int
    size: int
    problem: str = ""


Sample = dict[str, Member]
"""The members of one key, by their endings in small letters."""


@dataclass(frozen=True, eq=False)
class Index:
    """What shards hold: where their images lie, and all that is said of them, see `Pictures`."""

    images: list[Member]
    names: tuple[str, ...]
    labels: np.ndarray[Any, Any] | None
    class_names: tuple[str, ...]
    left_out: tuple[str, ...]


def is_set(path: Path) -> bool:
    """Whether a folder holds tar archives, and neither images nor folders beside them."""
    visible = [p for p in path.iterdir() if not is_hidden(p.name)]
    return any(_is_tar(p) for p in visible) and not any(
        p.is_dir() or is_image(p.name) for p in visible
    )


def named(source: str) -> list[str] | None:
    """The shards that a source names, in order: a `.tar`, a folder of them, `{000..003}` or `*` in
    the last part of a path, a `.tar` on a web server or `{000..003}` there. None where it names
    something else.

    Raises `DataError` where a pattern matches nothing, or names too many.
    """
    if remote.is_address(source):
        if not remote.name_of(source).lower().endswith(".tar"):
            raise DataError(f"{remote.short(source)}: only .tar files are read from web servers")
        return _expanded(source)
    path = Path(source).expanduser()
    if source and os.path.isdir(path):
        return _sorted(p for p in path.iterdir() if _is_tar(p)) if is_set(path) else None
    if not source.lower().endswith(".tar"):
        return None
    if os.path.exists(path):
        return [str(path)] if path.is_file() else None
    if "*" in path.name:
        found = _sorted(p for p in path.parent.glob(path.name) if _is_tar(p))
        if not found:
            raise DataError(f"{shown(source)}: there is no such file; check the path")
        return found
    return _expanded(str(path)) if _RANGE.search(source) else None


def read(source: str, shards: Sequence[str], progress: Progress | None = None) -> Pictures:
    """The images of these shards, with their classes, where each has one.

    Where no member is a label, folders in the members' names are classes, as a zip's are.
    `progress` is told how many images are found, of 0. Raises `DataError` for a shard that is
    missing, damaged or cut off, where there are no images at all, and where some samples have a
    label and others do not.
    """
    stamps = _stamps(shards)
    key = cache.key("tar", source, [_where(shard) for shard in shards], stamps)
    about = cache.kept_value(key)
    index = _index_of(about) if about is not None else None
    if index is None:
        index = _indexed(source, shards, progress)
        if len(index.images) >= MANY or any(map(remote.is_address, shards)):
            cache.keep_value(key, _about(index))
    images = index.images
    return Pictures(
        source=source,
        names=index.names,
        labels=index.labels,
        class_names=index.class_names,
        stamps=[stamps[image.shard] for image in images],
        opened=lambda: _opened(shards, images),
        left_out=index.left_out,
    )


def _indexed(source: str, shards: Sequence[str], progress: Progress | None) -> "Index":
    """What the shards hold, walked from header to header."""
    samples: list[Sample] = []
    images: list[Member] = []
    others: list[Member] = []
    for number in range(len(shards)):
        for sample, image in _samples(shards, number, others):
            samples.append(sample)
            images.append(image)
        if progress is not None:
            progress(len(images), 0)
    if not images:
        raise DataError(
            f"{shown(source)}: holds no images ({counted(len(others), 'file')} of other kinds); "
            "give tar archives of .png, .jpg or the like"
        )
    labels, class_names = _labels(source, shards, images, samples, others)
    if labels is None:
        labels, class_names = by_class([_parts(image.name) for image in images], source)
    return Index(
        images=images,
        names=_names(shards, images),
        labels=labels,
        class_names=class_names,
        left_out=tuple(sorted(_names(shards, others), key=natural)),
    )


def _stamps(shards: Sequence[str]) -> list[tuple[int, int]]:
    """Size and time of change of each shard, or what else tells a version from another."""
    if all(map(remote.is_address, shards)):
        return remote.stamps(shards)
    stats = []
    for shard in shards:
        try:
            stat = os.stat(shard)
        except FileNotFoundError as error:
            raise _missing(shard) from error
        stats.append((stat.st_size, stat.st_mtime_ns))
    return stats


def _about(index: "Index") -> dict[str, Any]:
    """An index in plain values, to be kept."""
    return {
        "members": [[m.shard, m.name, m.offset, m.size, m.problem] for m in index.images],
        "names": list(index.names),
        "labels": None if index.labels is None else index.labels.tolist(),
        "class_names": list(index.class_names),
        "left_out": list(index.left_out),
    }


def _index_of(about: dict[str, Any]) -> "Index":
    labels = about["labels"]
    return Index(
        images=[Member(*values) for values in about["members"]],
        names=tuple(about["names"]),
        labels=None if labels is None else np.array(labels, dtype=np.int64),
        class_names=tuple(about["class_names"]),
        left_out=tuple(about["left_out"]),
    )


# ---------------------------------------------------------------------------- what a shard holds


def _samples(
    shards: Sequence[str], number: int, others: list[Member]
) -> list[tuple[Sample, Member]]:
    """The samples of a shard that have an image, with it; what else it holds is added to
    `others`."""
    shard = shards[number]
    samples: dict[str, Sample] = {}
    for member in _members(shard, number, others):
        parts = _parts(member.name)
        if not parts or any(is_hidden(part) for part in parts):
            others.append(member)
            continue
        stem, _, ending = parts[-1].partition(".")
        sample = samples.setdefault("/".join((*parts[:-1], stem)), {})
        if ending.lower() in sample:
            raise DataError(f"{_where(shard)}: holds {shown(member.name)} twice; make it again")
        sample[ending.lower()] = member
    found = []
    for key, sample in samples.items():
        image = _image(shard, key, sample)
        labels = _LABELS if image is not None else ()
        others += [m for kind, m in sample.items() if m is not image and kind not in labels]
        if image is not None:
            found.append((sample, image))
    paths = [_parts(image.name) for _, image in found]
    numbers = {parts: i for i, parts in enumerate(paths)}
    with _opened(shards, [image for _, image in found]) as opener:
        beside = overviews(paths, lambda parts: opener(numbers[parts]))
    others += [found[numbers[parts]][1] for parts in beside]
    return [pair for pair, parts in zip(found, paths, strict=True) if parts not in beside]


def _image(shard: str, key: str, sample: Sample) -> Member | None:
    """The image of a sample: a name of two endings, `0001.2020.png`, is one where no other is."""
    plain = [m for ending, m in sample.items() if f".{ending}" in IMAGE_SUFFIXES]
    images = plain or [m for m in sample.values() if is_image(m.name)]
    if len(images) > 1:
        raise DataError(
            f"{_where(shard)}: has {len(images)} images of the key {shown(key)} "
            f"({listed([m.name for m in images])}); leave one of each key"
        )
    return images[0] if images else None


def _members(shard: str, number: int, others: list[Member]) -> Iterator[Member]:
    """The files of a tar in their order; links and devices are added to `others`.

    Raises `DataError` where it is no tar, or a damaged one.
    """
    try:
        with _open(shard) as stream:
            yield from _walk(shard, number, stream, others)
    except FileNotFoundError as error:
        raise _missing(shard) from error
    except OSError as error:
        raise DataError(
            f"{_where(shard)}: cannot be read ({error.strerror or error}); check its permissions"
        ) from error
    except (tarfile.TarError, ValueError, RecursionError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        why = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{_where(shard)}: is no whole tar archive ({why}); make it again"
        ) from error


def _walk(shard: str, number: int, stream: IO[bytes], others: list[Member]) -> Iterator[Member]:
    begin = stream.read(2)
    if begin in _COMPRESSED:
        raise DataError(
            f"{_where(shard)}: is compressed ({_COMPRESSED[begin]}), so not read in place; "
            "unpack it once, to a plain .tar"
        )
    stream.seek(0)
    headers: Any = _Headers(stream)
    tar: Any
    with tarfile.open(fileobj=headers, mode="r:") as tar:
        last = -1
        while (info := tar.next()) is not None:
            # a size below zero, say, would lead back to where it has been, for ever
            if info.size < 0 or info.offset <= last:
                raise tarfile.ReadError(f"a header of no sense at byte {info.offset}")
            last = info.offset
            tar.members = []  # they are many, and not needed again
            problem = "is stored with holes (sparse), which is not read" if info.issparse() else ""
            member = Member(number, info.name, info.offset_data, info.size, problem)
            if info.isreg():
                yield member
            elif not info.isdir():
                others.append(member)
            while not tar.pax_headers and (plain := _plain(stream, tar.offset)) is not None:
                name, size = plain
                last = tar.offset
                yield Member(number, name, last + _BLOCK, size)
                tar.offset = last + _BLOCK + -(-size // _BLOCK) * _BLOCK
        # at a header that makes no sense, and where the file ends too soon, `next` just stops
        stream.seek(tar.offset)
        end = stream.read(_BLOCK)
        if not end:
            raise tarfile.ReadError("it has no end")
        if any(end):
            raise tarfile.ReadError(f"there is no header at byte {tar.offset}")


def _plain(stream: IO[bytes], offset: int) -> tuple[str, int] | None:
    """Name and size of the file whose header is there; None for all but the plainest headers.

    All others, and what is damaged, are tarfile's to read, which takes five times as long.
    """
    stream.seek(offset)
    header = stream.read(_BLOCK)
    size, checksum = header[124:136].strip(b" \0"), header[148:156].strip(b" \0")
    is_file = header[156:157] == b"0" and header[257:262] == b"ustar"
    if not (is_file and _OCTAL.fullmatch(size) and _OCTAL.fullmatch(checksum)):
        return None
    # the checksum's own bytes count as spaces
    if sum(header) - sum(header[148:156]) + 8 * ord(" ") != int(checksum, 8):
        return None
    name, prefix = (part.partition(b"\0")[0] for part in (header[:100], header[345:500]))
    name = prefix + b"/" + name if prefix else name
    return name.decode(tarfile.ENCODING, "surrogateescape"), int(size, 8)


class _Headers:
    """A file to read headers from: as it is, but that nothing long is taken into memory at once."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self.stream.read(size)


# ------------------------------------------------------------------------------ pixels and labels


@contextmanager
def _opened(shards: Sequence[str], members: Sequence[Member]) -> Iterator[Opener]:
    """A function from the number of a member to its bytes; one shard is open at a time."""
    current: int | None = None
    stream: IO[bytes] | None = None

    def opener(number: int) -> IO[bytes]:
        nonlocal current, stream
        member = members[number]
        if member.problem:
            raise UnreadableError(member.problem)
        if member.size > MAX_BYTES:
            raise UnreadableError(f"has {member.size} bytes, more than {MAX_BYTES}")
        if stream is None or member.shard != current:
            if stream is not None:
                stream.close()
            current, stream = member.shard, _open(shards[member.shard])
        stream.seek(member.offset)
        data = stream.read(member.size)
        if len(data) < member.size:
            raise UnreadableError("is cut off")
        return io.BytesIO(data)

    try:
        yield opener
    finally:
        if stream is not None:
            stream.close()


def _labels(
    source: str,
    shards: Sequence[str],
    images: Sequence[Member],
    samples: Sequence[Sample],
    others: list[Member],
) -> tuple[np.ndarray[Any, Any] | None, tuple[str, ...]]:
    """Labels and names of classes, by the first kind of member that says them; members of other
    kinds are added to `others`."""
    found: list[Label] | None = None
    for kind in _LABELS:
        members = [sample.get(kind) for sample in samples]
        there = [member for member in members if member is not None]
        said = _said(shards, there, kind) if there and found is None else {}
        if not said or (kind == "txt" and not _are_names(list(said.values()))):
            others += there
            continue
        without = [
            image
            for image, member in zip(images, members, strict=True)
            if member is None or member not in said
        ]
        if without:
            raise DataError(
                f"{shown(source)}: {len(without)} of {len(images)} images have no label in a "
                f".{kind} ({listed(_names(shards, without))}); give each one, "
                f"or take the .{kind} files out"
            )
        found = [said[member] for member in there]
    if found is None:
        return None, ()
    if all(isinstance(label, int) for label in found):
        return np.array(found, dtype=np.int64), ()
    names = sorted({str(label) for label in found}, key=natural)
    number = {name: i for i, name in enumerate(names)}
    labels = np.array([number[str(label)] for label in found], dtype=np.int64)
    return labels, tuple(map(shown, names))


def _said(shards: Sequence[str], members: Sequence[Member], kind: str) -> dict[Member, Label]:
    """What members of one kind say; JSON that is of something else says nothing."""
    out: dict[Member, Label] = {}
    with _opened(shards, members) as opener:
        for number, member in enumerate(members):
            where = f"{_where(shards[member.shard])}: {shown(member.name)}"
            if member.size > MAX_LABEL:
                raise DataError(f"{where} has {member.size} bytes, too many for a label")
            try:
                text = opener(number).read().decode("utf-8-sig")
            except (UnreadableError, UnicodeDecodeError) as error:
                why = str(error) if isinstance(error, UnreadableError) else "is no text"
                raise DataError(f"{where} {why}; give a label, a number or a name") from error
            label = _from_json(text, where) if kind == "json" else _label(text)
            if label is not None:
                out[member] = label
    return out


def _from_json(text: str, where: str) -> Label | None:
    try:
        value = untrusted.json_in(text)
    except ValueError as error:
        why = " ".join(str(error).split())
        raise DataError(f"{where} is not JSON ({why}); mend it, or take it out") from error
    if isinstance(value, dict):
        value = next((value[key] for key in _KEYS if key in value), None)
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    return _label(str(value))


def _label(text: str) -> Label:
    text = text.strip()
    return int(text) if re.fullmatch(r"-?[0-9]{1,9}", text) else text


def _are_names(labels: Sequence[Label]) -> bool:
    """Whether texts are names of classes, not captions of images."""
    texts = {str(label) for label in labels}
    short = all(len(text) <= LONGEST_NAME and "\n" not in text for text in texts)
    return short and len(texts) <= max(FEW_CLASSES, len(labels) // 2)


# ----------------------------------------------------------------------------------------- names


def _names(shards: Sequence[str], members: Sequence[Member]) -> tuple[str, ...]:
    """Names of members, with that of their shard where there are several."""
    places = [f"{_file_name(shard)}/" for shard in shards] if len(shards) > 1 else [""]
    return tuple(places[member.shard] + member.name for member in members)


def _file_name(shard: str) -> str:
    return remote.name_of(shard) if remote.is_address(shard) else os.path.basename(shard)


def _where(shard: str) -> str:
    """A shard as messages name it."""
    return remote.short(shard) if remote.is_address(shard) else shard


def _open(shard: str) -> IO[bytes]:
    if remote.is_address(shard):
        return remote.opened(shard)
    untrusted.require_plain(Path(shard))
    return open(shard, "rb")


def _missing(shard: str) -> DataError:
    return DataError(f"{_where(shard)}: there is no such file; check the path")


def _parts(name: str) -> tuple[str, ...]:
    if "/" not in name:
        return () if name in ("", ".") else (name,)
    return tuple(part for part in name.split("/") if part not in ("", "."))


def _is_tar(path: Path) -> bool:
    return path.suffix.lower() == ".tar" and not is_hidden(path.name) and path.is_file()


def _sorted(paths: Iterator[Path]) -> list[str]:
    return [str(path) for path in sorted(paths, key=lambda path: natural(path.name))]


def _expanded(source: str) -> list[str]:
    """The names that ranges such as {000..003} stand for; the first varies slowest.

    A number has as many digits as the longer end where one begins with a zero, as a shell has it.
    """
    pieces = _RANGE.split(source)
    texts, ranges = pieces[::3], []
    for first, last in zip(pieces[1::3], pieces[2::3], strict=True):
        low, high = int(first), int(last)
        if low > high:
            raise DataError(f"{shown(source)}: {{{first}..{last}}} is empty; give the lower first")
        padded = any(end.startswith("0") and len(end) > 1 for end in (first, last))
        width = max(len(first), len(last)) if padded else 0
        ranges.append((low, high, width))
    total = 1
    for low, high, _ in ranges:
        total *= high - low + 1
    if total > MAX_SHARDS:
        raise DataError(f"{shown(source)}: names {total} files, more than {MAX_SHARDS}")
    numbers = ([f"{n:0{width}d}" for n in range(low, high + 1)] for low, high, width in ranges)
    return [
        texts[0] + "".join(n + text for n, text in zip(chosen, texts[1:], strict=True))
        for chosen in itertools.product(*numbers)
    ]
