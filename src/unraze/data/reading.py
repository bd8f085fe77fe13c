"""From a data configuration to images of one shape: find, look, decode, fit, keep."""

import difflib
import hashlib
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import ValidationError

from unraze import hardware
from unraze.config import DataConfig, explained
from unraze.data import archive, arrays, cache, cifar, folder, hub, idx, named, remote, shards
from unraze.data.found import Arrays, Opener, Pictures, is_image, no_test_part, shown
from unraze.data.held_out import cannot_hold_out, held_out as which_held_out, is_too_few
from unraze.data.images import Images, Split, at_once, classes, fingerprint
from unraze.data.shape import (
    MAX_PIXELS,
    Rgb,
    UnreadableError,
    colour,
    decode,
    fitted,
    flatten,
    is_grey,
    look,
    size_of,
)
from unraze.errors import DataError, InputError, UnrazeError

__all__ = [
    "IMPORTED",
    "IN_MEMORY",
    "MEMORY_BYTES",
    "find",
    "has_test_part",
    "load",
    "load_images",
    "opaque_bytes",
    "quiet_decoders",
    "read_one",
    "shape_of",
]

MEMORY_BYTES = 2**30
"""The most bytes of pixels that stay in memory; larger sets are mapped from the cache."""

MANY_FILES = 20_000
"""So many pictures take a while to decode: they are kept in the cache, however small they are."""

IN_MEMORY = "memory:"
"""Before the name of a source that a program gave as numbers: it cannot be read again."""

IMPORTED = "imported:"
"""Before the name of the file that a run was made of: what it was trained on is not known."""

_CHUNK = 256

Progress = Callable[[int, int], None]
Own = Literal["train", "test"]
Part = Literal["all", "train", "held-out", "test"]
Shape = tuple[int, int, int]

_BY_SHARE: tuple[Part, ...] = ("train", "held-out")


def load_images(
    source: str | Path,
    *,
    size: int | tuple[int, int] | None = None,
    channels: Literal[1, 3] | None = None,
    split: Split = "train",
    held_out: float = 0.0,
) -> Images:
    """The images of a folder, zip, array file or known name: `load` with the usual options.

    `size` is height and width, one number for squares; absent, it is the images' own, which they
    must share. `channels` is 1 for grey, 3 for RGB; absent, it is theirs. `held_out`, 0 to 0.5, is
    the share of the images that `split="train"` leaves out and `split="held-out"` gives, where the
    source has no test part of its own. Raises as `load` does.
    """
    square = (size, size) if isinstance(size, int) else size
    try:
        wanted = DataConfig(source=str(source), size=square, channels=channels, held_out=held_out)
    except ValidationError as error:
        raise InputError(explained(error)) from error
    return load(wanted, split=split)


def load(
    config: DataConfig,
    *,
    split: Split = "train",
    progress: Progress | None = None,
    memory: int | None = None,
) -> Images:
    """The images of `config.source`, all of one shape, in natural order of their names.

    Arguments:
        config: where they are and how they are brought to one shape.
        split: "train"; "test" for a source that has a test part of its own (IDX, CIFAR-10, `.npz`
            with x_test, the data sets known by name); "held-out" for that test part, or else for
            the share `config.held_out`, which "train" leaves out (see `unraze.data.held_out`).
        progress: told how many images of how many are read; of a data set that is fetched, bytes.
        memory: sets of more bytes than this, and those of `MANY_FILES` or more, are decoded once
            into a memory-mapped cache; `MEMORY_BYTES` if absent, or a quarter of what this process
            may have where that is less.

    Where a set is too small to be divided, "train" is all of it. Raises `DataError` where images
    are missing, unreadable or of several sizes, or none is held out though "held-out" is asked for,
    `InputError` for an option that will not do, `UnrazeError` where the cache cannot be written.
    """
    background = colour(config.background)
    if memory is None:
        memory = min(MEMORY_BYTES, hardware.memory() // 4)
    if config.size is not None and math.prod(config.size) > MAX_PIXELS:
        raise InputError(
            f"size = {config.size[0]} x {config.size[1]}: is more than "
            f"{MAX_PIXELS // 1_000_000} million pixels; give a smaller size"
        )
    divided = split != "test" and has_test_part(config.source)
    of_test = split == "test" or (split == "held-out" and divided)
    found = find(config.source, "test" if of_test else "train", progress=progress)
    part: Part = "test" if of_test else "all" if divided or not config.held_out else split
    if split == "held-out" and part == "all":
        raise cannot_hold_out(found.source, 0.0, _count(found), 0)
    try:
        images = _read(found, config, background, part, progress, memory)
    except _Undivided as error:
        if split == "held-out":
            why = cannot_hold_out(found.source, config.held_out, error.kept, error.held)
            raise why from None
        images = _read(found, config, background, "all", progress, memory)
    return replace(images, origin=_origin(config), split=split)


def _read(
    found: Pictures | Arrays,
    config: DataConfig,
    background: Rgb,
    part: Part,
    progress: Progress | None,
    memory: int,
) -> Images:
    """The images of a part; raises `_Undivided` where there is to be none of that kind."""
    # of files that must be looked at for it, the shape is kept with the images
    is_open = isinstance(found, Pictures) and None in (config.size, config.channels)
    kept_as = _key(found, config, "shape") if is_open else ""
    known = cache.kept_value(kept_as) if is_open else None
    shape = _shape(found, config, background, known)

    def keep_shape() -> None:
        if is_open and known is None:
            cache.keep_value(kept_as, {"shape": list(shape)})

    # a run keeps what was found, and is to find again what was kept before it knew
    asked, config = config, config.model_copy(update={"size": shape[1:], "channels": shape[0]})
    name = _key(found, config, part)
    images = cache.kept(name, found.source)
    if images is not None:
        keep_shape()
        return images
    with quiet_decoders():
        size = _count(found) * math.prod(shape)
        is_quick = isinstance(found, Arrays) or _count(found) < MANY_FILES

        def chunks() -> Iterator[_Chunk]:
            return _chunks(found, asked, shape, background, progress)

        if size <= memory and is_quick:
            return _in_memory(found, config, shape, chunks(), _Taken(part, config.held_out))
        parts = _BY_SHARE if part in _BY_SHARE else (part,)
        names = [_key(found, config, each) for each in parts]
        try:
            with ExitStack() as stack:  # what is divided is decoded once, for both parts
                made = [
                    (_Taken(each, config.held_out), stack.enter_context(cache.making(key, size)))
                    for each, key in zip(parts, names, strict=True)
                ]
                _on_disk(found, config, shape, chunks(), made)
            keep_shape()
        except UnrazeError as error:
            if isinstance(error, InputError) or size > memory:
                raise
            warnings.warn(f"{error}; they are decoded again each time", stacklevel=2)
            return _in_memory(found, config, shape, chunks(), _Taken(part, config.held_out))
    images = cache.kept(name, found.source, verify=False)
    if images is None:
        raise DataError(
            f"{cache.cache_folder()}: what was just written there cannot be read back; check that "
            "disk, or set UNRAZE_CACHE to a folder on another"
        )
    return images


def find(
    source: str, split: Own = "train", *, progress: Progress | None = None
) -> Pictures | Arrays:
    """What a source is and holds: a name of `NAMES`, hf: and a name, an address, or else a path.

    `progress` is told how many images are found, of 0, or bytes fetched, of how many, where that
    takes a while. Raises `DataError`.

    A folder called as a data set is meant by ./digits.
    """
    if source in named.NAMES:
        return named.read(source, split, progress=progress)
    if hub.is_source(source):
        return hub.read(source, split)
    try:
        if (tars := shards.named(source)) is not None:
            if split == "test":
                raise no_test_part(source)
            return shards.read(_place_of(source), tars, progress)
        path = _path(source)
        if path.is_dir():
            if idx.is_set(path):
                return idx.read(path, split)
            if cifar.is_set(path):
                return cifar.read(path, split)
            return _undivided(folder.read, path, split)
        return _find_file(path, split)
    except OSError as error:
        raise _denied(source, error) from error


def has_test_part(source: str) -> bool:
    """Whether a source has images for testing of its own, which `split="test"` gives.

    Raises `DataError` where there is nothing there, or it cannot be read.
    """
    if source in named.NAMES:
        return True
    if hub.is_source(source):
        return hub.has_test_part(source)
    try:
        if shards.named(source) is not None:
            return False
        path = _path(source)
        if path.is_dir():
            if idx.is_set(path):
                return idx.has_test_part(path)
            return cifar.is_set(path) and cifar.has_test_part(path)
        if idx.is_images(path.name):
            return idx.has_test_part(path)
        if path.suffix.lower() == ".bin":
            return cifar.has_test_part(path)
        return arrays.has_test_part(path)
    except OSError as error:
        raise _denied(source, error) from error


def read_one(opener: Opener, number: int) -> Image.Image:
    """Picture `number`, decoded; raises `UnreadableError` with the reason."""
    try:
        with opener(number) as stream:
            return decode(stream)
    except OSError as error:
        raise UnreadableError(f"cannot be opened: {error.strerror or error}") from error


def opaque_bytes(pixels: np.ndarray[Any, Any], background: Rgb) -> np.ndarray[Any, Any]:
    """Images (n, H, W, C) of `Arrays` as opaque uint8 (n, H, W, 1 or 3), floats times 255."""
    if pixels.dtype != np.uint8:
        pixels = np.rint(pixels.astype(np.float64) * 255.0).astype(np.uint8)
    if pixels.shape[-1] == 4:
        return flatten(pixels[..., :3], pixels[..., 3:], background)
    return np.asarray(pixels)


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Keeps Pillow's warnings off the terminal; sizes are checked by `look`, damage raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


@dataclass(frozen=True)
class _Chunk:
    """Some images in a row: those that could be read, and why the others could not."""

    pixels: np.ndarray[Any, Any]
    numbers: list[int]
    bad: list[tuple[int, str]]


@dataclass(frozen=True)
class _Taken:
    """What has gone by: the numbers of the images taken, the others' reasons, the pixels' hash.

    Where `part` is "train" or "held-out", `share` divides what is found, and `others` are the
    numbers of those of the other part; else all are taken.
    """

    part: Part
    share: float
    others: list[int] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def take(self, chunk: _Chunk) -> np.ndarray[Any, Any]:
        """The pixels of those images of a chunk that belong to the part."""
        self.bad.extend(chunk.bad)
        pixels, numbers = chunk.pixels, chunk.numbers
        if self.part in _BY_SHARE:
            held = which_held_out(pixels, self.share)
            ours = held if self.part == "held-out" else ~held
            self.others.extend(n for n, mine in zip(numbers, ours, strict=True) if not mine)
            pixels = pixels[ours]
            numbers = [n for n, mine in zip(numbers, ours, strict=True) if mine]
        self.numbers.extend(numbers)
        pixels = np.ascontiguousarray(pixels)
        self.digest.update(pixels.data)
        return pixels

    def finish(self, found: Pictures | Arrays, config: DataConfig) -> None:
        """Raises `DataError` for what could not be read, `_Undivided` where no part is to be."""
        if self.bad and not (config.skip_bad and (self.numbers or self.others)):
            raise _unreadable(found, self.bad)
        if self.part in _BY_SHARE:
            sides = (len(self.numbers), len(self.others))
            kept, held = sides if self.part == "train" else sides[::-1]
            if is_too_few(kept, held):
                raise _Undivided(kept, held)


class _Undivided(Exception):
    """A set is not to be divided into these numbers of images, see `held_out.is_too_few`."""

    def __init__(self, kept: int, held: int) -> None:
        super().__init__(f"{kept} and {held} images")
        self.kept, self.held = kept, held


def _in_memory(
    found: Pictures | Arrays,
    config: DataConfig,
    shape: Shape,
    chunks: Iterator[_Chunk],
    taken: _Taken,
) -> Images:
    pixels = np.empty((_count(found), *shape), dtype=np.uint8)
    for chunk in chunks:
        first = len(taken.numbers)
        part = taken.take(chunk)
        pixels[first : first + len(part)] = part
    taken.finish(found, config)
    # the rest of it was never touched, so takes no memory; a copy would take as much again
    return _images(found, pixels[: len(taken.numbers)], taken)


def _on_disk(
    found: Pictures | Arrays,
    config: DataConfig,
    shape: Shape,
    chunks: Iterator[_Chunk],
    made: Sequence[tuple[_Taken, Path]],
) -> None:
    """Writes parts of what is found, each into its folder, as the pixels go by."""
    with ExitStack() as stack:
        outs = [stack.enter_context((place / "pixels").open("wb")) for _, place in made]
        for chunk in chunks:
            for out, (taken, _) in zip(outs, made, strict=True):
                out.write(taken.take(chunk).data)
        for out in outs:
            out.flush()
            os.fsync(out.fileno())
    for taken, place in made:
        taken.finish(found, config)
        whole = (len(taken.numbers), *shape)
        pixels = np.memmap(place / "pixels", dtype=np.uint8, mode="r", shape=whole)
        cache.describe(place, _images(found, pixels, taken))


def _images(found: Pictures | Arrays, pixels: np.ndarray[Any, Any], taken: _Taken) -> Images:
    labels, class_names = found.labels, found.class_names
    if labels is not None:
        labels, class_names = classes(labels, class_names, _count(found), found.source)
        labels = labels[taken.numbers]
    return Images(
        pixels=pixels,
        labels=labels,
        class_names=class_names,
        names=[_name(found, number) for number in taken.numbers],
        source=found.source,
        fingerprint=fingerprint(taken.digest, pixels.shape, labels),
        skipped=tuple(_name(found, number) for number, _ in taken.bad),
        held_back=len(taken.others) if taken.part == "train" else 0,
    )


def _chunks(
    found: Pictures | Arrays,
    config: DataConfig,
    shape: Shape,
    background: Rgb,
    progress: Progress | None,
) -> Iterator[_Chunk]:
    count = _count(found)
    chunks = (
        _array_chunks(found, config, shape, background)
        if isinstance(found, Arrays)
        else _picture_chunks(found, config, shape, background)
    )
    done = 0
    for chunk in chunks:
        yield chunk
        done += len(chunk.numbers) + len(chunk.bad)
        if progress is not None:
            progress(done, count)


def _array_chunks(
    found: Arrays, config: DataConfig, shape: Shape, background: Rgb
) -> Iterator[_Chunk]:
    channels, height, width = shape
    # floats become bytes by way of float64
    many = at_once(max(found.pixels.shape[1:], shape, key=math.prod), _CHUNK, itemsize=8)
    for first in range(0, len(found.pixels), many):
        flat = opaque_bytes(found.pixels[first : first + many], background)
        if flat.shape[1:] == (height, width, channels):
            pixels = flat.transpose(0, 3, 1, 2)
        else:
            pixels = np.empty((len(flat), *shape), dtype=np.uint8)
            for out, one in zip(pixels, flat, strict=True):
                picture = Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one)
                out[...] = fitted(
                    picture,
                    size=(height, width),
                    fit=config.fit,
                    channels=channels,
                    background=background,
                )
        yield _Chunk(pixels, list(range(first, first + len(flat))), [])


def _picture_chunks(
    found: Pictures, config: DataConfig, shape: Shape, background: Rgb
) -> Iterator[_Chunk]:
    channels, height, width = shape
    count, many = len(found.names), at_once(shape, _CHUNK)
    with found.opened() as opener:
        for first in range(0, count, many):
            read: dict[int, np.ndarray[Any, Any]] = {}
            bad: list[tuple[int, str]] = []
            for number in range(first, min(first + many, count)):
                try:
                    picture = read_one(opener, number)
                    pixels = fitted(
                        picture,
                        size=config.size,
                        fit=config.fit,
                        channels=channels,
                        background=background,
                    )
                    if pixels.shape != shape:  # its data is not of the size its header declares
                        raise UnreadableError(
                            f"decodes to {pixels.shape[1]} x {pixels.shape[2]}, "
                            f"not {height} x {width}"
                        )
                    read[number] = pixels
                except UnreadableError as error:
                    bad.append((number, str(error)))
            stacked = np.stack(list(read.values())) if read else np.empty((0, *shape), np.uint8)
            yield _Chunk(stacked, list(read), bad)


def _shape(
    found: Pictures | Arrays, config: DataConfig, background: Rgb, known: dict[str, Any] | None
) -> Shape:
    """`shape_of`, or the shape that was kept."""
    if known is None:
        with quiet_decoders():
            return shape_of(found, config, background)
    channels, height, width = known["shape"]
    return channels, height, width


def shape_of(found: Pictures | Arrays, config: DataConfig, background: Rgb) -> Shape:
    """(C, H, W) that the images are brought to: what the configuration asks, or their own.

    Raises `DataError` where they are of several sizes, or none can be read.
    """
    if isinstance(found, Arrays):
        height, width = config.size or found.pixels.shape[1:3]
        return config.channels or (1 if found.pixels.shape[-1] == 1 else 3), height, width
    if config.size is not None and config.channels is not None:
        return config.channels, *config.size
    sizes: Counter[tuple[int, int]] = Counter()
    grey = True
    bad: list[tuple[int, str]] = []
    with found.opened() as opener:
        for number in range(len(found.names)):
            try:
                with opener(number) as stream, look(stream) as picture:
                    grey = grey and is_grey(picture, background)
                    size = config.size or size_of(picture)
                sizes[size] += 1
            except OSError as error:
                bad.append((number, f"cannot be opened: {error.strerror or error}"))
            except UnreadableError as error:
                bad.append((number, str(error)))
    if not sizes:
        raise _unreadable(found, bad)
    if config.size is None and len(sizes) > 1:
        raise _mixed(found.source, sizes)
    height, width = config.size or next(iter(sizes))
    return config.channels or (1 if grey else 3), height, width


def _unreadable(found: Pictures | Arrays, bad: list[tuple[int, str]]) -> DataError:
    reasons = [f"{shown(_name(found, number))} {reason}" for number, reason in bad[:3]]
    more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
    remedy = "mend or remove them (`unraze data check` names all), or leave them out by --skip-bad"
    if len(bad) == _count(found):
        remedy = "give other images"
    return DataError(
        f"{found.source}: {len(bad)} of {_count(found)} images cannot be read: "
        f"{'; '.join(reasons)}{more}; {remedy}"
    )


def _mixed(source: str, sizes: Counter[tuple[int, int]]) -> DataError:
    common = sizes.most_common()
    some = ", ".join(f"{h} x {w} ({n})" for (h, w), n in common[:4])
    more = f" and {len(common) - 4} more" if len(common) > 4 else ""
    height, width = common[0][0]
    return DataError(
        f"{source}: holds images of {len(common)} sizes, height x width: {some}{more}; say which "
        f"to bring them to, --size {height}x{width} for example"
    )


def _find_file(path: Path, split: Own) -> Pictures | Arrays:
    name = path.name.lower()
    if name.endswith(".zip"):
        return _undivided(archive.read, path, split)
    if name.endswith((".npy", ".npz")):
        return arrays.read(path, split)
    if idx.is_images(path.name):
        return idx.read(path, split)
    if name.endswith(".bin") or cifar.is_pickled(path.name):
        return cifar.read(path, split)
    if name.endswith((".pkl", ".pickle", ".pt", ".pth")):
        raise DataError(
            f"{path}: is a pickle, which can run code when it is loaded, so it is not opened; "
            "save the images as .png files or with np.save"
        )
    if name.endswith((".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar")):
        raise DataError(
            f"{path}: is an archive that is not read in place; unpack it, or use a zip or a .tar "
            "that is not compressed"
        )
    if is_image(path.name):
        raise DataError(f"{path}: is a single image; give the folder of the images to learn from")
    raise DataError(
        f"{path}: is no kind of file that is read; give a folder of images, a .zip, .tar, .npy or "
        ".npz, an IDX file (…-images-idx3-ubyte.gz), or a CIFAR-10 batch (.bin)"
    )


def _undivided(reader: Callable[[Path], Pictures], path: Path, split: Own) -> Pictures:
    if split == "test":
        raise no_test_part(str(path))
    return reader(path)


def _path(source: str) -> Path:
    """The path that a source is; raises `DataError` where there is nothing."""
    if source.startswith(IN_MEMORY):
        raise DataError(
            f"{shown(source)}: images that a program gave as numbers, which cannot be read again; "
            "give them from Python once more, to go on with a run for example: "
            "unraze.train.train(unraze.run.find(Path(RUN)), images)"
        )
    if source.startswith(IMPORTED):
        raise DataError(
            f"{shown(source)}: was trained by another program, on images that this run does not "
            "know; say which: `unraze train IMAGES --from RUN` trains on from its weights, `unraze "
            "eval RUN --against IMAGES` measures it"
        )
    path = Path(source).expanduser()
    if not source or not os.path.exists(path):
        raise _nothing(source)
    if not path.is_dir() and not path.is_file():
        raise DataError(f"{shown(source)}: is neither a file nor a folder; give one of them")
    return path


def _origin(config: DataConfig) -> DataConfig:
    """The configuration with the whole path of its source, so that it holds in any folder."""
    if config.source in named.NAMES:
        return config
    if hub.is_source(config.source):
        return config.model_copy(update={"source": hub.absolute(config.source)})
    if remote.is_address(config.source):
        return config
    return config.model_copy(update={"source": str(Path(config.source).expanduser().resolve())})


def _place_of(source: str) -> str:
    """The source as messages name it and the cache knows it."""
    return remote.short(source) if remote.is_address(source) else str(Path(source).expanduser())


def _denied(source: str, error: OSError) -> DataError:
    return DataError(
        f"{shown(source)}: cannot be read ({error.strerror or error}); check its permissions"
    )


def _nothing(source: str) -> DataError:
    known = " and ".join(named.NAMES)
    if not source:
        return DataError(f"no data is given; give a folder of images, or one of the names {known}")
    close = difflib.get_close_matches(source.lower(), named.NAMES, n=1)
    meant = f", did you mean '{close[0]}'?" if close else ""
    return DataError(
        f"{shown(source)}: there is no such file or folder, nor a data set of that name{meant}; "
        f"check the path (the names are {known})"
    )


def _key(found: Pictures | Arrays, config: DataConfig, part: Part | Literal["shape"]) -> str:
    path = found.source
    if hub.is_source(path):
        path = hub.absolute(path)
    elif not remote.is_address(path):
        path = str(Path(path).absolute())
    stamps = [list(stamp) for stamp in found.stamps]
    names = list(found.names) if isinstance(found, Pictures) else []
    options = config.model_dump(
        mode="json", include={"size", "fit", "channels", "background", "skip_bad"}
    )
    share = config.held_out if part in _BY_SHARE else 0.0
    return cache.key(path, names, stamps, options, part, share)


def _count(found: Pictures | Arrays) -> int:
    return len(found.names) if isinstance(found, Pictures) else len(found.pixels)


def _name(found: Pictures | Arrays, number: int) -> str:
    return found.names[number] if isinstance(found, Pictures) else f"number {number}"
