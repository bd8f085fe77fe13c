"""What is wrong with a set of images, found before an hour is spent on it."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from unraze.config import DataConfig
from unraze.data.found import Arrays, Pictures
from unraze.data.held_out import FEWEST, held_out, is_too_few
from unraze.data.images import classes
from unraze.data.reading import (
    find,
    has_test_part,
    opaque_bytes,
    quiet_decoders,
    read_one,
    shape_of,
)
from unraze.data.shape import UnreadableError, colour, fitted
from unraze.errors import DataError

__all__ = ["FEW_IMAGES", "MOST_IMBALANCE", "Finding", "check"]

FEW_IMAGES = 1000
"""Of fewer images than this a network soon learns copies by heart."""

MOST_IMBALANCE = 10
"""How many times larger than the smallest class the largest may be."""

Kind = Literal[
    "unreadable",
    "duplicates",
    "sizes",
    "small",
    "modes",
    "balance",
    "few",
    "left out",
    "held out",
    "lost classes",
]


@dataclass(frozen=True)
class Finding:
    """One thing worth knowing about a set of images.

    Arguments:
        kind: which check found it.
        what: it, in a sentence.
        names: the images, classes or files that it is about, all of them.
        count: how many those are.
        severity: "error" stops a run, "warning" spoils one, "note" is only said.
        remedy: what to do.
    """

    kind: Kind
    what: str
    names: tuple[str, ...]
    count: int
    severity: Literal["error", "warning", "note"]
    remedy: str


@dataclass(frozen=True)
class _Seen:
    """One image that could be decoded: its name, size (H, W), kind of colours, and pixels' hash;
    and whether it is held out of training."""

    number: int
    name: str
    size: tuple[int, int]
    mode: str
    digest: bytes
    held: bool


def check(
    config: DataConfig, *, progress: Callable[[int, int], None] | None = None
) -> list[Finding]:
    """Decodes every image and says what is wrong with the set, the worst first; [] if nothing is.

    It looks for unreadable files, images of the same pixels, odd sizes, sizes below the asked one,
    odd colour modes, classes out of balance, too few images, and files that are no images; it tells
    which images are held out of training, where `config.held_out` is not 0. Changes nothing. Raises
    `DataError` where there are no images to check.
    """
    colour(config.background)
    found = find(config.source, progress=progress)
    bad: dict[str, str] = {}
    seen: list[_Seen] = []
    with quiet_decoders():
        for one in _each(found, config, progress):
            if isinstance(one, _Seen):
                seen.append(one)
            else:
                bad[one[0]] = one[1]
    divided = has_test_part(config.source)
    findings = [
        *_unreadable(bad, len(seen), config.skip_bad),
        *_sizes(seen, config),
        *_duplicates(seen),
        *_modes(seen, config),
        *_balance(found, seen),
        *_few(seen),
        *_left_out(found),
        *_held_out(seen, config, divided),
        *_lost_classes(found, seen, divided),
    ]
    order = {"error": 0, "warning": 1, "note": 2}
    return sorted(findings, key=lambda finding: order[finding.severity])


def _each(
    found: Pictures | Arrays, config: DataConfig, progress: Callable[[int, int], None] | None
) -> Iterator["_Seen | tuple[str, str]"]:
    background = colour(config.background)
    arrays = isinstance(found, Arrays)
    count = len(found.pixels) if isinstance(found, Arrays) else len(found.names)
    shape = _shape_of(found, config) if config.held_out else None
    with nullcontext() if isinstance(found, Arrays) else found.opened() as opener:
        for number in range(count):
            name = f"number {number}" if isinstance(found, Arrays) else found.names[number]
            try:
                if isinstance(found, Arrays):
                    flat = opaque_bytes(found.pixels[number : number + 1], background)[0]
                    picture = Image.fromarray(flat[..., 0] if flat.shape[-1] == 1 else flat)
                else:
                    assert opener is not None
                    picture = read_one(opener, number)
                pixels = fitted(picture, size=None, fit="crop", channels=3, background=background)
                mode = "array" if arrays else _kind_of_colours(picture)
                held = shape is not None and _is_held_out(picture, config, shape)
                yield _Seen(number, name, pixels.shape[1:], mode, _digest(pixels), held)
            except UnreadableError as error:
                yield name, str(error)
            if progress is not None:
                progress(number + 1, count)


def _shape_of(found: Pictures | Arrays, config: DataConfig) -> tuple[int, int, int] | None:
    """The shape that images are brought to; None where that fails, which other findings tell."""
    try:
        return shape_of(found, config, colour(config.background))
    except DataError:
        return None


def _is_held_out(picture: Image.Image, config: DataConfig, shape: tuple[int, int, int]) -> bool:
    channels, height, width = shape
    pixels = fitted(
        picture,
        size=(height, width),
        fit=config.fit,
        channels=channels,
        background=colour(config.background),
    )
    return bool(held_out(pixels[None], config.held_out)[0])


def _digest(pixels: np.ndarray[Any, Any]) -> bytes:
    digest = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


def _kind_of_colours(picture: Image.Image) -> str:
    match picture.mode:
        case "1" | "L" | "LA" | "La":
            kind = "grey"
        case "I" | "F" | "I;16" | "I;16B" | "I;16L" | "I;16N":
            kind = "grey of 16 bits"
        case "CMYK":
            kind = "CMYK"
        case _:
            kind = "colour"
    return f"{kind} with transparency" if picture.has_transparency_data else kind


def _unreadable(bad: dict[str, str], good: int, skip_bad: bool) -> Iterator[Finding]:
    if bad:
        remedy = "mend or remove them, or leave them out by --skip-bad"
        if skip_bad:
            remedy = "none needed: they are left out, as --skip-bad asks"
        if not good:
            remedy = "give other images"
        yield Finding(
            kind="unreadable",
            what=f"{len(bad)} of {good + len(bad)} images cannot be read",
            names=tuple(f"{name} ({reason})" for name, reason in bad.items()),
            count=len(bad),
            severity="warning" if skip_bad and good else "error",
            remedy=remedy,
        )


def _sizes(seen: list[_Seen], config: DataConfig) -> Iterator[Finding]:
    sizes = Counter(one.size for one in seen)
    if len(sizes) > 1:
        (height, width), count = sizes.most_common(1)[0]
        odd = [f"{o.name} ({o.size[0]} x {o.size[1]})" for o in seen if o.size != (height, width)]
        yield Finding(
            kind="sizes",
            what=f"{len(sizes)} sizes: {count} images are {height} x {width}, the others are not",
            names=tuple(odd),
            count=len(odd),
            severity="error" if config.size is None else "note",
            remedy=f"bring all to one size, --size {height}x{width} for example"
            if config.size is None
            else f"none needed: they are brought to one size ({config.fit})",
        )
    if config.size is not None:
        height, width = config.size
        small = [o for o in seen if o.size[0] < height or o.size[1] < width]
        if small:
            yield Finding(
                kind="small",
                what=f"{len(small)} images are smaller than {height} x {width}, so are enlarged",
                names=tuple(f"{o.name} ({o.size[0]} x {o.size[1]})" for o in small),
                count=len(small),
                severity="warning",
                remedy="give a smaller --size, or larger images",
            )


def _duplicates(seen: list[_Seen]) -> Iterator[Finding]:
    first: dict[bytes, str] = {}
    copies: list[str] = []
    for one in seen:
        if one.digest in first:
            copies.append(f"{one.name} (the same as {first[one.digest]})")
        else:
            first[one.digest] = one.name
    if copies:
        yield Finding(
            kind="duplicates",
            what=f"{len(copies)} images have the same pixels as one before them",
            names=tuple(copies),
            count=len(copies),
            severity="warning",
            remedy="remove them: images that come often are learned by heart",
        )


def _modes(seen: list[_Seen], config: DataConfig) -> Iterator[Finding]:
    modes: dict[str, list[str]] = defaultdict(list)
    for one in seen:
        modes[one.mode].append(one.name)
    if len(modes) > 1:
        common = max(modes, key=lambda mode: len(modes[mode]))
        odd = [
            f"{name} ({mode})" for mode, names in modes.items() if mode != common for name in names
        ]
        yield Finding(
            kind="modes",
            what=f"{len(modes)} kinds of colours: {len(modes[common])} images are {common}, the "
            "others are not",
            names=tuple(odd),
            count=len(odd),
            severity="note",
            remedy=f"see whether they belong; all become {_channels(config)}, and transparency "
            f"becomes {config.background}",
        )


def _channels(config: DataConfig) -> str:
    names = {1: "grey", 3: "RGB", None: "RGB unless all are grey"}
    return names[config.channels]


def _balance(found: Pictures | Arrays, seen: list[_Seen]) -> Iterator[Finding]:
    if found.labels is None or not seen:
        return
    count = len(found.labels)
    labels, names = classes(found.labels, found.class_names, count, found.source)
    sizes = np.bincount(labels[[one.number for one in seen]], minlength=len(names))
    small = [i for i in np.argsort(sizes, kind="stable") if sizes[i] * MOST_IMBALANCE < sizes.max()]
    if small:
        largest = int(sizes.argmax())
        yield Finding(
            kind="balance",
            what=f"{len(small)} classes have less than a {MOST_IMBALANCE}th of the images of the "
            f"largest, {names[largest]} ({sizes[largest]})",
            names=tuple(f"{names[i]} ({sizes[i]})" for i in small),
            count=len(small),
            severity="warning",
            remedy="add images to them, or leave them out: rare classes come out worse",
        )


def _few(seen: list[_Seen]) -> Iterator[Finding]:
    different = len({one.digest for one in seen})
    if 0 < different < FEW_IMAGES:
        are = "image is" if different == 1 else "images are"
        yield Finding(
            kind="few",
            what=f"{different} different {are} few: below {FEW_IMAGES} a network soon "
            "learns them by heart",
            names=(),
            count=different,
            severity="warning",
            remedy="add images, train for a shorter time, and look for copies among the samples",
        )


def _left_out(found: Pictures | Arrays) -> Iterator[Finding]:
    if isinstance(found, Pictures) and found.left_out:
        yield Finding(
            kind="left out",
            what=f"{len(found.left_out)} files are hidden or no images by their names",
            names=found.left_out,
            count=len(found.left_out),
            severity="note",
            remedy="none needed: they are left out",
        )


def _held_out(seen: list[_Seen], config: DataConfig, divided: bool) -> Iterator[Finding]:
    if not config.held_out or not seen:
        return
    if config.size is None and len({one.size for one in seen}) > 1:  # no set yet: an error says so
        return
    held = tuple(one.name for one in seen if one.held)
    what = f"{len(held)} of {len(seen)} images are held out of training, to judge it by"
    remedy = "none needed: --held-out 0 trains on all"
    if divided:
        held = ()
        what = "its own test part is held out of training, and nothing else"
        remedy = "none needed"
    elif is_too_few(len(seen) - len(held), len(held)):
        held = ()
        what = "no image is held out of training: the set cannot be divided"
        remedy = f"add images, {FEWEST} at least, to judge training by those it has not seen"
    yield Finding(
        kind="held out",
        what=what,
        names=held,
        count=len(held),
        severity="note",
        remedy=remedy,
    )


def _lost_classes(found: Pictures | Arrays, seen: list[_Seen], divided: bool) -> Iterator[Finding]:
    held = sum(one.held for one in seen)
    if found.labels is None or divided or is_too_few(len(seen) - held, held):
        return
    count = len(found.labels)
    labels, names = classes(found.labels, found.class_names, count, found.source)
    there = {int(labels[one.number]) for one in seen}
    kept = {int(labels[one.number]) for one in seen if not one.held}
    lost = tuple(names[i] for i in sorted(there - kept))
    if lost:
        yield Finding(
            kind="lost classes",
            what=f"{len(lost)} classes have no image to train on: all of theirs are held out",
            names=lost,
            count=len(lost),
            severity="warning",
            remedy="add images to them, or hold none out by --held-out 0",
        )
