"""Pictures and films, with the recipe that made them in their metadata.

Images are bytes (N, H, W, C), C 1 or 3. The same images and recipe give the same file, byte for
byte: no file holds a date. A file is written under a temporary name and renamed.
"""

import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from unraze import files, untrusted
from unraze.data import to_uint8
from unraze.errors import InputError, UnrazeError

__all__ = [
    "HEAD",
    "KEY",
    "beside",
    "captioned",
    "film_bytes",
    "film_frames",
    "grid",
    "pixels_of",
    "png_bytes",
    "png_metadata",
    "read_recipe",
    "recipe_in",
    "square",
    "to_pil",
    "write_film",
    "write_png",
]

KEY = "unraze"
"""The PNG text entry that holds the recipe as JSON; a GIF's comment is this word and the JSON."""

HEAD = 2**21
"""Of a picture whose recipe is read, the bytes that are read: a recipe is at its beginning."""

WIDE = 720
"""How many pixels wide a grid of small images is to come out, about."""
LARGEST_FACTOR = 16
PAPER = 255
PALETTE_FRAMES = 8
"""How many frames of a film, from the first to the last, its palette is made from."""
SHORTEST_MS = 20
"""Viewers slow down what is shown for less than this."""


def pixels_of(x: Tensor) -> np.ndarray[Any, Any]:
    """x (N, C, H, W) in [-1, 1] as bytes (N, H, W, C)."""
    return np.ascontiguousarray(to_uint8(x).transpose(0, 2, 3, 1))


def to_pil(x: Tensor | np.ndarray[Any, Any]) -> list[Image.Image]:
    """Pillow images of a tensor (N, C, H, W) in [-1, 1], or of bytes (N, H, W, C)."""
    pixels = pixels_of(x) if isinstance(x, Tensor) else x
    _check(pixels)
    return [Image.fromarray(p[:, :, 0] if p.shape[2] == 1 else p) for p in pixels]


def square(count: int) -> int:
    """The number of columns that makes a grid of `count` images about square."""
    return math.ceil(math.sqrt(count))


def grid(
    images: np.ndarray[Any, Any],
    *,
    columns: int | None = None,
    padding: int | None = None,
    upscale: int | None = None,
) -> Image.Image:
    """Images (N, H, W, C) in rows, row by row, on white.

    Arguments:
        columns: how many a row; where absent, as many as make the grid about square.
        padding: white pixels around each image; where absent, `upscale` of them, from 2 to 8.
        upscale: each pixel becomes a square of this side; where absent, the whole number, 1 to 16,
            that brings the grid near a width of 720.

    Raises `ValueError` where one of them is too small, or images are not bytes (N, H, W, C).
    """
    _check(images)
    for name, value, least in (("columns", columns, 1), ("padding", padding, 0)):
        if value is not None and value < least:
            raise ValueError(f"{name} = {value}: give at least {least}")
    if upscale is not None and upscale < 1:
        raise ValueError(f"upscale = {upscale}: give at least 1")
    count, height, width, channels = images.shape
    columns = min(square(count) if columns is None else columns, count)
    rows = math.ceil(count / columns)
    factor = upscale or max(1, min(LARGEST_FACTOR, round(WIDE / (columns * width))))
    gap = max(2, min(8, factor)) if padding is None else padding
    cell_h, cell_w = height * factor + gap, width * factor + gap
    paper = np.full((rows * cell_h + gap, columns * cell_w + gap, channels), PAPER, dtype=np.uint8)
    for i, image in enumerate(images):
        top, left = gap + i // columns * cell_h, gap + i % columns * cell_w
        large = image.repeat(factor, axis=0).repeat(factor, axis=1)
        paper[top : top + height * factor, left : left + width * factor] = large
    return to_pil(paper[None])[0]


def beside(pictures: Sequence[Image.Image], *, gap: int = 16) -> Image.Image:
    """Pictures side by side on white, aligned at the top."""
    mode = "L" if all(p.mode == "L" for p in pictures) else "RGB"
    width = sum(p.width for p in pictures) + gap * (len(pictures) - 1)
    whole = Image.new(mode, (width, max(p.height for p in pictures)), "white")
    left = 0
    for picture in pictures:
        whole.paste(picture, (left, 0))
        left += picture.width + gap
    return whole


def captioned(picture: Image.Image, text: str, *, share: float | None = None) -> Image.Image:
    """The picture with a line of text below it, and a bar that is `share` (0 to 1) full."""
    size = max(12, min(18, picture.width // 24))
    font = ImageFont.load_default(size)
    whole = Image.new(picture.mode, (picture.width, picture.height + size + 14), "white")
    whole.paste(picture, (0, 0))
    draw = ImageDraw.Draw(whole)
    if share is not None:
        end = round(share * (picture.width - 1))
        draw.rectangle((0, picture.height + 2, picture.width - 1, picture.height + 4), "#dddddd")
        draw.rectangle((0, picture.height + 2, end, picture.height + 4), "#333333")
    draw.text((4, picture.height + 7), text, fill="#333333", font=font)
    return whole


def film_frames(
    states: Sequence[np.ndarray[Any, Any]],
    times: Sequence[float],
    *,
    columns: int | None = None,
    upscale: int | None = None,
    caption: bool = True,
) -> list[Image.Image]:
    """Grids of the states, each (N, H, W, C), with their times below: "t = 740" and a bar.

    `columns` and `upscale` are those of `grid`. The bar fills from the first time to the last, up
    or down, and where times go both ways frame by frame. Raises `ValueError` where there are not as
    many times as states.
    """
    grids = [grid(state, columns=columns, upscale=upscale) for state in states]
    if not caption:
        return grids
    way = (times[-1] - times[0]) if len(times) else 0.0
    shares = [(t - times[0]) / way if way else 1.0 for t in times]
    if any(not 0 <= share <= 1 for share in shares):
        shares = [k / (len(times) - 1) for k in range(len(times))]
    return [
        captioned(each, f"t = {t:.4g}", share=share)
        for each, t, share in zip(grids, times, shares, strict=True)
    ]


def write_png(picture: Image.Image, path: Path, recipe: Mapping[str, Any]) -> None:
    """Writes a PNG with its recipe, whole or not at all.

    Raises `UnrazeError` where it cannot be written, `ValueError` or `TypeError` for a recipe that
    is not JSON.
    """
    _write(path, png_bytes(picture, recipe))


def png_bytes(picture: Image.Image, recipe: Mapping[str, Any]) -> bytes:
    """The PNG that `write_png` writes."""
    return _encoded([picture], format="PNG", pnginfo=_png_info(recipe))


def write_film(
    frames: Sequence[Image.Image],
    path: Path,
    recipe: Mapping[str, Any],
    *,
    milliseconds: int = 80,
    hold_last_ms: int = 2000,
) -> None:
    """Writes a film, .gif or .png (animated), whole or not at all; it runs for ever.

    Each frame is shown for `milliseconds`, the last for `hold_last_ms`; frames that are equal to
    the one before are not stored, they lengthen it. A GIF counts in hundredths of a second, and
    has 256 colours for the whole film: grey levels are exact, colours near.

    Raises `InputError` for another ending or no frames, `UnrazeError` where it cannot be written,
    `ValueError` for frames that differ in size or durations that viewers do not keep to.
    """
    ending = path.suffix.lower()
    if ending not in (".gif", ".png"):
        raise InputError(f"{path}: films are .gif or .png (animated), not '{ending}'")
    if not frames:
        raise InputError(f"{path}: a film needs at least one frame")
    times = {"milliseconds": milliseconds, "hold_last_ms": hold_last_ms}
    _write(path, film_bytes(frames, recipe, gif=ending == ".gif", **times))


def film_bytes(
    frames: Sequence[Image.Image],
    recipe: Mapping[str, Any],
    *,
    gif: bool = True,
    milliseconds: int = 80,
    hold_last_ms: int = 2000,
) -> bytes:
    """The film that `write_film` writes, a GIF or an animated PNG."""
    if len({frame.size for frame in frames}) > 1:
        raise ValueError(f"the frames differ in size: {sorted({f.size for f in frames})}")
    if min(milliseconds, hold_last_ms) < SHORTEST_MS:
        raise ValueError(
            f"milliseconds = {milliseconds}, hold_last_ms = {hold_last_ms}: give at least "
            f"{SHORTEST_MS}, as viewers do not show frames for less"
        )
    grey = all(frame.mode == "L" for frame in frames)
    frames = frames if grey else [frame.convert("RGB") for frame in frames]
    options: dict[str, Any] = {
        "save_all": True,
        "duration": [milliseconds] * (len(frames) - 1) + [hold_last_ms],
        "loop": 0,
    }
    if not gif:
        return _encoded(frames, format="PNG", pnginfo=_png_info(recipe), **options)
    if not grey:
        palette = _palette(frames)
        frames = [f.quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    comment = f"{KEY} {_to_json(recipe)}".encode("ascii")
    return _encoded(frames, format="GIF", comment=comment, optimize=False, **options)


def read_recipe(path: Path) -> dict[str, Any]:
    """The recipe of a picture or film; raises `InputError` where there is none."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path}: is not a file; give a picture that unraze made")
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; give a picture that unraze made") from error
    except OSError as error:
        raise _unreadable(str(path), error) from error
    return recipe_in(head, str(path))


def recipe_in(head: bytes, name: str) -> dict[str, Any]:
    """The recipe of a picture or film that begins with these bytes, at least `HEAD` of them or all;
    errors call it `name`. Raises `InputError` where there is none."""
    try:
        with Image.open(io.BytesIO(head), formats=("PNG", "GIF")) as picture:
            text = picture.info.get(KEY) or _of_comment(picture.info.get("comment"))
    except Exception as error:  # what decoders raise on damaged headers is not a closed set
        raise _unreadable(name, error) from error
    remedy = "it was not made by unraze, or its metadata was stripped; give another picture"
    if not text:
        raise InputError(f"{name}: holds no recipe; {remedy}")
    try:
        recipe = untrusted.json_in(text, parse_constant=_no_number)
    except ValueError as error:
        raise InputError(f"{name}: its recipe cannot be read ({error}); {remedy}") from error
    if not isinstance(recipe, dict):
        raise InputError(f"{name}: its recipe cannot be read; {remedy}")
    return recipe


def _unreadable(name: str, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or "it is no PNG or GIF, or a damaged one"
    return InputError(f"{name}: cannot be read as a picture ({reason}); give one that unraze made")


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no number")


def png_metadata(recipe: Mapping[str, Any]) -> dict[str, str]:
    """The text entries of a PNG, all ASCII: who made it, what of, and the recipe as JSON."""
    parts = (f"{_words(k)} {_words(v)}" for k, v in sorted(recipe.items()) if _is_plain(v))
    return {"Software": "unraze", "Description": ", ".join(parts), KEY: _to_json(recipe)}


def _png_info(recipe: Mapping[str, Any]) -> PngInfo:
    info = PngInfo()
    for key, value in png_metadata(recipe).items():
        if value:
            info.add_text(key, value)
    return info


def _to_json(recipe: Mapping[str, Any]) -> str:
    # escapes beyond ASCII: a file's name may hold what no encoding of text can
    return json.dumps(dict(recipe), sort_keys=True, allow_nan=False)


def _words(value: object) -> str:
    return json.dumps(value).strip('"')


def _is_plain(value: object) -> bool:
    return isinstance(value, (str, int, float))


def _of_comment(comment: bytes | None) -> bytes | None:
    start = f"{KEY} ".encode("ascii")
    return comment.removeprefix(start) if comment and comment.startswith(start) else None


def _palette(frames: Sequence[Image.Image]) -> Image.Image:
    """256 colours for the whole film: a palette a frame would flicker."""
    last = len(frames) - 1
    chosen = sorted({round(k * last / (PALETTE_FRAMES - 1)) for k in range(PALETTE_FRAMES)})
    thinned = [np.asarray(frames[k])[::2, ::2] for k in chosen]
    return Image.fromarray(np.concatenate(thinned)).quantize(256, Image.Quantize.MEDIANCUT)


def _encoded(pictures: Sequence[Image.Image], **options: Any) -> bytes:
    encoded = io.BytesIO()
    if len(pictures) > 1:
        options["append_images"] = list(pictures[1:])
    pictures[0].save(encoded, **options)
    return encoded.getvalue()


def _write(path: Path, data: bytes) -> None:
    """Writes under a temporary name and renames."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(path, data, durable=False)
    except OSError as error:
        raise UnrazeError(files.cannot_write(path, error)) from error


def _check(images: np.ndarray[Any, Any]) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(
            f"images are {images.dtype} {images.shape}: give uint8 (N, H, W, C), C 1 or 3"
        )
    if 0 in images.shape:
        raise ValueError(f"images have shape {images.shape}: there is nothing to show")
