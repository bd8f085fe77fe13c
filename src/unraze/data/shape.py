"""How a picture of any kind becomes C × H × W bytes: orientation, colour, transparency, size.

The order is: turn as EXIF says, bring to 8 bits of grey or RGB, flatten transparency onto the
background (before resizing, so that hidden colours cannot bleed into the edges), convert to the
asked channels, resize.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import IO, Any, Literal

import numpy as np
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from unraze.errors import InputError
from unraze.untrusted import MAX_PIXELS

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "UnreadableError",
    "colour",
    "decode",
    "fitted",
    "flatten",
    "is_grey",
    "look",
    "size_in",
    "size_of",
]

FORMATS = (
    *("PNG", "JPEG", "BMP", "DIB", "GIF", "WEBP", "AVIF", "TIFF", "PPM", "TGA"),
    *("JPEG2000", "ICO"),
)
"""The decoders that are let near a file: those of plain pictures, none that runs a program."""

MAX_WORDS = 2**20
"""The most bytes that a GIF may have before its first frame; a recipe of ours has some thousand."""

_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_GREY = ("1", "L", "LA", "La", "I", "F", *_SIXTEEN_BITS)
_ORIENTATION = 0x0112

Fit = Literal["crop", "pad", "stretch"]
Rgb = tuple[int, int, int]


class UnreadableError(Exception):
    """Why one picture cannot be read; the caller knows its name."""


def colour(name: str) -> Rgb:
    """Red, green and blue (0 … 255) of a colour's name or #rrggbb; raises `InputError`."""
    rgb: tuple[int, ...]
    try:
        rgb = ImageColor.getrgb(name)
    except ValueError:
        rgb = ()  # of no length that is a colour
    if len(rgb) == 4 and rgb[3] == 255:
        rgb = rgb[:3]
    if len(rgb) != 3:
        raise InputError(
            f"background = {name!r}: is not an opaque colour; give a name (white, black, red) "
            "or #rrggbb"
        )
    return rgb[0], rgb[1], rgb[2]


def size_in(text: str, given: str) -> tuple[int, int]:
    """(height, width) from "32" or "32x48"; errors begin with what it was given as. Raises
    `InputError`."""
    found = re.fullmatch(r"([0-9]{1,9})(?:[x×]([0-9]{1,9}))?", text.strip())
    height, width = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not height * width:
        raise InputError(
            f"{given} {text}: give one number for a square (32), or height x width (32x48)"
        )
    if height * width > MAX_PIXELS:
        raise InputError(
            f"{given} {text}: is more than {MAX_PIXELS // 1_000_000} million pixels; give less"
        )
    return height, width


def look(stream: IO[bytes]) -> Image.Image:
    """Opens a picture by its header and checks what that declares; decodes no pixel.

    Raises `UnreadableError` for an empty file, one in no known format, one of more than
    `MAX_PIXELS` pixels, and a GIF of comments without end.
    """
    begin = stream.read(4)
    if not begin:
        raise UnreadableError("is empty, 0 bytes")
    if begin == b"GIF8":
        _require_few_words(stream)
    stream.seek(0)
    try:
        picture = Image.open(stream, formats=_formats())
    except Image.DecompressionBombError:
        raise UnreadableError(_too_many()) from None
    except MemoryError:
        raise
    except UnidentifiedImageError:
        raise UnreadableError("is in no image format that can be read") from None
    except Exception as error:  # what decoders raise on damaged headers is not a closed set
        raise UnreadableError(_reason(error)) from error
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise UnreadableError(f"{_too_many()}: {width} x {height}")
    if not width * height:
        raise UnreadableError(f"has no pixels: {width} x {height}")
    return picture


def decode(stream: IO[bytes]) -> Image.Image:
    """The whole picture, its first frame where it moves; raises `UnreadableError`."""
    picture = look(stream)
    with _damage():
        picture.load()
        return ImageOps.exif_transpose(picture)


def size_of(picture: Image.Image) -> tuple[int, int]:
    """Height and width as the picture is to be seen, from its header; raises `UnreadableError`."""
    with _damage("its EXIF data "):
        turned = picture.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    return picture.size if turned else (picture.height, picture.width)


def is_grey(picture: Image.Image, background: Rgb) -> bool:
    """Whether the picture, flattened onto the background, can only hold greys; from its header, or
    where that has a palette, from all of it. Raises `UnreadableError`."""
    coloured_ground = len(set(background)) > 1
    if picture.has_transparency_data and coloured_ground:
        return False
    if picture.mode in ("P", "PA"):
        with _damage():
            palette = np.array(picture.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return picture.mode in _GREY


def flatten(
    pixels: np.ndarray[Any, Any], alpha: np.ndarray[Any, Any], background: Rgb
) -> np.ndarray[Any, Any]:
    """Lays bytes over the background: round((p·a + b·(255 - a)) / 255), exactly.

    Arguments:
        pixels: uint8 (…, C), C = 1 or 3.
        alpha: uint8 (…, 1), 255 where opaque.
        background: its colour; where that is not grey, grey pixels become RGB.
    """
    ground = np.array(background, dtype=np.uint32)
    if pixels.shape[-1] == 1 and len(set(background)) == 1:
        ground = ground[:1]
    a = alpha.astype(np.uint32)
    return np.asarray((pixels * a + ground * (255 - a) + 127) // 255, dtype=np.uint8)


def fitted(
    picture: Image.Image,
    *,
    size: tuple[int, int] | None,
    fit: Fit,
    channels: int,
    background: Rgb,
) -> np.ndarray[Any, Any]:
    """A decoded picture as uint8 (C, H, W).

    Arguments:
        size: (H, W); None keeps the picture's own.
        fit: how another aspect is met: "crop" cuts off the ends of the longer side, "pad" adds
            background to the shorter, "stretch" does not keep the aspect.
        channels: 1 (grey: 0.299 R + 0.587 G + 0.114 B) or 3.

    Reducing is done with the Lanczos filter, enlarging with the bicubic one. Raises
    `UnreadableError` for numbers whose range is not known, and colours that say nothing.
    """
    with _damage():
        flat = _flat(picture, background).convert("L" if channels == 1 else "RGB")
    if size is not None and size != (flat.height, flat.width):
        flat = _resized(flat, size, fit, background)
    array = np.asarray(flat)
    return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _resized(picture: Image.Image, size: tuple[int, int], fit: Fit, background: Rgb) -> Image.Image:
    height, width = size
    lanczos, bicubic = Image.Resampling.LANCZOS, Image.Resampling.BICUBIC
    smaller = height < picture.height or width < picture.width
    match fit:
        case "stretch":
            return picture.resize((width, height), lanczos if smaller else bicubic)
        case "crop":
            scale = max(height / picture.height, width / picture.width)
            h, w = height / scale, width / scale
            top, left = (picture.height - h) / 2, (picture.width - w) / 2
            box = (max(left, 0.0), max(top, 0.0), left + w, top + h)
            box = (*box[:2], min(box[2], picture.width), min(box[3], picture.height))
            return picture.resize((width, height), lanczos if scale < 1 else bicubic, box=box)
        case "pad":
            scale = min(height / picture.height, width / picture.width)
            h, w = max(1, round(picture.height * scale)), max(1, round(picture.width * scale))
            inner = picture.resize((w, h), lanczos if scale < 1 else bicubic)
            ground = Image.new("RGB", (width, height), background).convert(picture.mode)
            ground.paste(inner, ((width - w) // 2, (height - h) // 2))
            return ground


def _flat(picture: Image.Image, background: Rgb) -> Image.Image:
    """An opaque picture in mode L or RGB."""
    mode = picture.mode
    if mode in _SIXTEEN_BITS or mode in ("I", "F"):
        return _eight_bits(picture, background)
    if picture.has_transparency_data:
        grey = mode in ("1", "L", "LA", "La")
        layers = np.asarray(picture.convert("LA" if grey else "RGBA"))
        flat = flatten(layers[..., :-1], layers[..., -1:], background)
        return Image.fromarray(flat[..., 0] if flat.shape[-1] == 1 else flat)
    if mode in ("1", "L"):
        return picture.convert("L")
    if mode in ("P", "PA"):
        return picture.convert("RGB")
    if mode == "RGB":
        return picture
    try:
        return picture.convert("RGB")
    except ValueError:
        raise UnreadableError(
            f"has colours of the kind {mode}, which say nothing without a profile; save it as RGB"
        ) from None


def _eight_bits(picture: Image.Image, background: Rgb) -> Image.Image:
    """Grey of 16 bits, or of numbers in [0, 1], as 8 bits: round(v/257), round(255 v)."""
    values = np.asarray(picture)
    low, high = values.min(), values.max()
    if picture.mode == "F":
        if not (low >= 0 and high <= 1):
            raise UnreadableError(
                f"holds floating-point numbers from {low:g} to {high:g}; save it in 8 or 16 bits, "
                "or with values from 0 to 1"
            )
        grey = np.rint(values * 255.0)
    else:
        if low < 0 or high > 65_535:
            raise UnreadableError(
                f"holds 32-bit numbers from {low} to {high}; save it in 8 or 16 bits"
            )
        grey = (values.astype(np.uint32) + 128) // 257
    flat = grey.astype(np.uint8)[..., None]
    clear = picture.info.get("transparency")
    if isinstance(clear, int):
        alpha = np.where(values == clear, 0, 255).astype(np.uint8)[..., None]
        flat = flatten(flat, alpha, background)
    return Image.fromarray(flat[..., 0] if flat.shape[-1] == 1 else flat)


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this build of Pillow knows."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _require_few_words(stream: IO[bytes]) -> None:
    """Raises `UnreadableError` where the parts before a GIF's first frame are longer than
    `MAX_WORDS`: its decoder copies all of a comment for every 255 bytes of it."""
    stream.seek(10)
    flags = stream.read(1) or b"\0"
    stream.seek(13 + (3 << (flags[0] & 7) + 1 if flags[0] & 128 else 0))
    words = 0
    while (mark := stream.read(1)) not in (b"", b",", b";"):
        words += 1  # whatever else stands there is passed over by the decoder too
        if mark == b"!":
            stream.read(1)
            while (size := stream.read(1)) not in (b"", b"\0"):
                words += size[0]
                stream.seek(size[0], os.SEEK_CUR)
                if words > MAX_WORDS:
                    break
        if words > MAX_WORDS:
            raise UnreadableError(f"has comments of more than {MAX_WORDS:,} bytes")


def _too_many() -> str:
    return f"declares more than {MAX_PIXELS // 1_000_000} million pixels"


@contextmanager
def _damage(where: str = "") -> Iterator[None]:
    """Raises `UnreadableError` for what decoders raise: over damage that is not a closed set."""
    try:
        yield
    except (MemoryError, UnreadableError):
        raise
    except Exception as error:
        raise UnreadableError(f"{where}{_reason(error)}") from error


def _reason(error: Exception) -> str:
    words = " ".join(str(error).split())
    return f"is damaged: {words or type(error).__name__}"
