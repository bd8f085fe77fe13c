"""What the results of an edit say of how they were made, and the pictures of all of them."""

import base64
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unraze import generate, pictures
from unraze.edit.editing import Wish
from unraze.errors import UnrazeError
from unraze.generate import Model

__all__ = [
    "image_told",
    "inpainted",
    "interpolated",
    "mask_told",
    "of_result",
    "pixels_of",
    "recipe_of",
    "there_and_back",
    "together",
    "varied",
]

Array = np.ndarray[Any, Any]


def recipe_of(model: Model, wish: Wish, about: dict[str, Any], *, raw: bool) -> dict[str, Any]:
    """The recipe of all results, whose first batch it names; see `of_result`."""
    plain = generate.recipe(
        model,
        wish.settings,
        seed=wish.seed,
        classes=wish.classes or "none",
        batch=range(min(wish.batch, wish.count)),
        raw=raw,
    )
    return plain | {"kind": "edit"} | {key: v for key, v in about.items() if v is not None}


def of_result(recipe: dict[str, Any], numbers: range, number: int) -> dict[str, Any]:
    """The recipe of one result, of the batch `numbers`."""
    return recipe | {"batch": [numbers.start, len(numbers)], "result": number}


def varied(image: dict[str, Any], *, strength: float, of: int | None) -> dict[str, Any]:
    """What is said of a variation; `of` is the class that the image was of."""
    return {"edit": "vary", "image": image, "strength": strength, "of": of}


def inpainted(
    image: dict[str, Any], unknown: Tensor, *, method: str, repeats: int
) -> dict[str, Any]:
    """What is said of a part drawn anew; `repeats` are of RePaint alone."""
    about = {"edit": "inpaint", "image": image, "mask": mask_told(unknown), "method": method}
    return about | ({"repeats": repeats} if method == "repaint" else {})


def interpolated(
    images: Sequence[dict[str, Any]] | None, *, seeds: tuple[int, int] | None, iterations: int
) -> dict[str, Any]:
    """What is said of a way from one image, or seed, to another."""
    ends = {"images": images and list(images), "seeds": seeds and list(seeds)}
    return {"edit": "interpolate", "iterations": iterations, **ends}


def pixels_of(model: Model, x: Tensor) -> Array:
    """x (N, C, H, W) as bytes (N, H, W, C); raises `UnrazeError` where it is not a number."""
    if not bool(x.isfinite().all()):
        raise UnrazeError(
            f"{model.run}: what was drawn is not a number; give more steps, another method, or an "
            "older checkpoint"
        )
    return pictures.pixels_of(x)


def image_told(name: str, pixels: Array) -> dict[str, Any]:
    """An image that was edited, bytes (C, H, W): by its file's name, and the hash of its pixels."""
    digest = hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
    return {"name": name, "pixels": digest}


def mask_told(unknown: Tensor) -> str | dict[str, str]:
    """A mask, bool (H, W): the rectangle LEFT,TOP,WIDTH,HEIGHT where it is one, else its bits, row
    by row, eight in a byte with the first as the highest, in base64."""
    rows, columns = unknown.any(1).nonzero()[:, 0], unknown.any(0).nonzero()[:, 0]
    if len(rows):
        top, left = int(rows[0]), int(columns[0])
        height, width = int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left
        if bool(unknown[top : top + height, left : left + width].all()):
            return f"{left},{top},{width},{height}"
    bits = np.packbits(unknown.to(torch.uint8).cpu().numpy())
    return {"bits": base64.b64encode(bits.tobytes()).decode()}


def together(given: Sequence[Array], results: Array, *, strip: bool) -> Image.Image:
    """What was given, bytes (N, H, W, C) each, and the results after it: a grid, or one row."""
    shown = np.concatenate([*given, results])
    return pictures.grid(shown, columns=len(shown) if strip else None)


def there_and_back(results: Array) -> list[Image.Image]:
    """The frames of a film from one end of a way to the other, and back."""
    frames = [pictures.grid(one[None]) for one in results]
    return [*frames, *frames[-2:0:-1]]
