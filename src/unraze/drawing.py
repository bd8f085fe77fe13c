"""What is to be drawn, as one value, and the pictures, grids and films of it with their recipes.

An `Order` says all that decides the bytes of a drawing; a picture's recipe is that, as plain values
in its metadata, and `understood` turns it back. The command line and the studio both draw by it.
"""

import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from unraze import generate, pictures
from unraze.config import SampleConfig, remedy
from unraze.errors import InputError, UnrazeError
from unraze.generate import Classes, Model, Progress
from unraze.ranks import Ranks
from unraze.run import make_next

__all__ = [
    "FILM_AT_MOST",
    "FILM_FRAMES",
    "GRID_AT_MOST",
    "MOST_AT_ONCE",
    "Film",
    "Order",
    "Recipe",
    "film_of",
    "fresh_folder",
    "grid_of",
    "kept_states",
    "moments",
    "pixels_of",
    "recipe_of",
    "share_of",
    "understood",
]

GRID_AT_MOST = 400
FILM_AT_MOST = 36
FILM_FRAMES = 100
FILM_SIDE = 360
"""About the film's width in pixels: noise does not compress, so a larger one weighs too much."""

MOST_AT_ONCE = 2**20


@dataclass(frozen=True)
class Order:
    """What is to be drawn: images first … first+count-1 of a seed, `batch` at once."""

    model: Model
    settings: SampleConfig
    seed: int
    classes: Classes
    count: int
    batch: int
    raw: bool
    first: int = 0


@dataclass(frozen=True)
class Film:
    """What is kept for a film: the first images (N, H, W, C) of a batch at some of the times."""

    states: list[np.ndarray] = field(default_factory=list)
    times: list[float] = field(default_factory=list)


Count = Annotated[int, Field(ge=1, le=MOST_AT_ONCE)]
Number = Annotated[int, Field(ge=0, le=2**53)]


class Recipe(BaseModel):
    """What a picture says of how it was made, as far as it is needed to make it again."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    kind: Literal["image", "grid", "film"]
    unraze: str
    run: str
    checkpoint: str
    step: Number
    raw: bool
    seed: Annotated[int, Field(ge=0)]
    classes: Number | Literal["all", "none"] | None = Field(alias="class")
    batch: tuple[Number, Count]
    threads: int
    device: str
    settings: SampleConfig
    engine: Literal["torch", "onnx", "openvino"] = "torch"
    image: Number | None = None
    drawn: Count | None = None

    @model_validator(mode="after")
    def _what_its_kind_needs(self) -> "Recipe":
        first, size = self.batch
        if self.kind == "image" and (self.image is None or not first <= self.image < first + size):
            raise ValueError(f"image = {self.image}: give a number from {first} to {first + size}")
        if self.kind == "grid" and (self.drawn is None or self.drawn >= GRID_AT_MOST + size):
            raise ValueError(f"drawn = {self.drawn}: give 1 to {GRID_AT_MOST + size - 1}")
        return self

    @property
    def count(self) -> int:
        """How many images are to be drawn: a grid's are of several batches."""
        return self.drawn or self.batch[1]


def share_of(order: Order, ranks: Ranks) -> Order | None:
    """The batches of an order that are this rank's; None where it has none.

    They are those that one process would draw, so that each picture has the same bytes.
    """
    own = ranks.share(-(-order.count // order.batch))
    first, end = own.start * order.batch, min(own.stop * order.batch, order.count)
    return replace(order, first=first, count=end - first) if own else None


def fresh_folder(run: Path, kind: str = "samples") -> Path:
    """RUN/samples-00000, or the next number that is free."""
    names = (p.name.removeprefix(f"{kind}-") for p in run.glob(f"{kind}-*"))
    taken = [int(name) for name in names if re.fullmatch(r"[0-9]{1,18}", name)]
    return run / f"{kind}-{max(taken, default=-1) + 1:05d}"


def make_folder(run: Path, kind: str = "samples") -> Path:
    """Makes it, for this process alone; raises `UnrazeError`."""
    return make_next(lambda: fresh_folder(run, kind))


def understood(recipe: Mapping[str, Any], picture: Path) -> Recipe:
    """The recipe, checked; raises `InputError` that names the picture and the field."""
    if recipe.get("kind") not in ("image", "grid", "film"):
        raise InputError(f"{picture}: has no recipe of `unraze sample`, so it can't be made again")
    try:
        return Recipe.model_validate(_with_tuples(recipe), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        path = first["loc"][: 2 if first["loc"][:1] in (("settings",), ("batch",)) else 1]
        place = ".".join(map(str, path))
        what = remedy(first)
        if first["type"] == "missing":
            what = f"{place} is missing"
        elif place:
            what = f"{place} = {reprlib.repr(first['input'])}: {what}"
        raise InputError(
            f"{picture}: its recipe is not as unraze writes it, {what}; give the picture as it was "
            "made, or draw anew without --like"
        ) from error


def _with_tuples(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with its lists, all that JSON has, as tuples."""
    return {
        key: tuple(value)
        if isinstance(value, list)
        else _with_tuples(value)
        if isinstance(value, dict)
        else value
        for key, value in recipe.items()
    }


def moments(order: Order) -> Iterator[Progress]:
    """Draws it, yielding every step of every batch; raises `InputError` before the first."""
    return generate.generate(
        order.model,
        order.count,
        seed=order.seed,
        settings=order.settings,
        classes=order.classes,
        batch=order.batch,
        first=order.first,
    )


def kept_states(states: int, most: int = FILM_FRAMES) -> frozenset[int]:
    """Which of a batch's states, from 1, a film of at most so many frames shows: the last among
    them, the others evenly."""
    count = min(states, most)
    return frozenset(round((k + 1) * states / count) for k in range(count))


def pixels_of(order: Order, x: Tensor) -> np.ndarray:
    """x (N, C, H, W) as bytes (N, H, W, C); raises `UnrazeError` where the model is ruined."""
    if bool(x.isnan().any()):
        what = "weights" if order.raw else "averaged weights"
        raise UnrazeError(
            f"{order.model.run}: the {what} of its checkpoint of step {order.model.step} draw "
            "not-a-number; give an older --checkpoint, or train again with a smaller --lr"
        )
    return pictures.pixels_of(x)


def recipe_of(order: Order, numbers: range, image: int) -> dict[str, Any]:
    """The recipe of one image of the batch `numbers`."""
    return _recipe(order, numbers) | {"kind": "image", "image": image}


def grid_of(order: Order, pixels: np.ndarray) -> tuple[Image.Image, dict[str, Any]]:
    """The first pictures side by side, and the recipe of that."""
    shown = pixels[:GRID_AT_MOST]
    recipe = _recipe(order, range(order.first, order.first + order.batch)) | {
        "kind": "grid",
        "images": [order.first, len(shown)],
        "drawn": min(order.count, -(-len(shown) // order.batch) * order.batch),
    }
    return pictures.grid(shown), recipe


def film_of(order: Order, film: Film) -> tuple[list[Image.Image], dict[str, Any]]:
    """The frames of a film of the first batch, and its recipe."""
    recipe = _recipe(order, range(order.first, order.first + min(order.batch, order.count))) | {
        "kind": "film",
        "images": [order.first, len(film.states[0])],
    }
    count, _, width, _ = film.states[0].shape
    upscale = max(1, FILM_SIDE // (pictures.square(count) * width))
    return pictures.film_frames(film.states, film.times, upscale=upscale), recipe


def _recipe(order: Order, numbers: range) -> dict[str, Any]:
    return generate.recipe(
        order.model,
        order.settings,
        seed=order.seed,
        classes=order.classes,
        batch=numbers,
        raw=order.raw,
    )
