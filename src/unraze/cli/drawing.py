"""What `unraze sample` does once its options are understood: draw, write, and draw again."""

from __future__ import annotations

import filecmp
import os
import re
import reprlib
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from unraze import files
from unraze.config import Config, SampleConfig, remedy, updated
from unraze.errors import CheckpointError, InputError, UnrazeError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor

    from unraze.generate import Classes, Model
    from unraze.ranks import Ranks

__all__ = [
    "Order",
    "Recipe",
    "again",
    "draw",
    "fresh_folder",
    "overview",
    "require_file_place",
    "require_new",
    "require_ours",
    "require_place",
    "set_threads",
    "share_of",
    "writing",
]

GRID_AT_MOST = 400
FILM_AT_MOST = 36
FILM_FRAMES = 100
FILM_SIDE = 360
"""About the film's width in pixels: noise does not compress, so a larger one weighs too much."""
LONGEST_NAME = 255
"""Bytes of a file's or a folder's name: what the usual file systems take."""
PICTURES = re.compile(r"(\d{5,})\.png|grid\.png|film\.gif")
"""The names that sampling gives to what it writes into a folder."""


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


MOST_PICTURES = 10**8
MOST_AT_ONCE = 2**20

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
    def _what_its_kind_needs(self) -> Recipe:
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


def draw(order: Order, folder: Path | None, npy: Path | None, *, film: bool) -> None:
    """Draws, and writes 00000.png … and film.gif into `folder`, the array into `npy`.

    The film, of the first batch, is written with the first of the pictures. Nothing is written
    before that batch is done, so that what is refused leaves no trace; an array that is not
    finished is removed again.
    """
    from unraze import pictures

    filmed = Film() if film else None
    with _array(npy, order.count) as add:
        for numbers, pixels in _batches(order, filmed):
            if folder is not None:
                with writing(folder):
                    folder.mkdir(parents=True, exist_ok=True)
                    for number, picture in zip(numbers, pictures.to_pil(pixels), strict=True):
                        recipe = _recipe(order, numbers) | {"kind": "image", "image": number}
                        pictures.write_png(picture, folder / f"{number:05d}.png", recipe)
            add(pixels)
        if folder is not None and filmed is not None and order.first == 0:
            with writing(folder):
                _write_film(order, filmed, folder / "film.gif")


def overview(order: Order, folder: Path) -> None:
    """Writes grid.png, of the first pictures that `draw` has written into a folder."""
    import numpy as np
    from PIL import Image

    from unraze import pictures

    shown = []
    with writing(folder):
        for number in range(min(order.count, GRID_AT_MOST)):
            with Image.open(folder / f"{number:05d}.png", formats=("PNG",)) as picture:
                shown.append(np.asarray(picture))
        pixels = np.stack(shown)
        grid, recipe = _grid(order, pixels if pixels.ndim == 4 else pixels[..., None])
        pictures.write_png(grid, folder / "grid.png", recipe)


@contextmanager
def _array(path: Path | None, count: int) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that adds images (B, H, W, C) to an array file of `count`, whole or not at all.

    The file is written, not mapped into memory: on a full disk writing raises, while a map would
    end the process without a word.
    """
    import numpy as np

    if path is None:
        yield lambda pixels: None
        return
    partial = files.temporary(path)
    file: FileIO | None = None

    def add(pixels: np.ndarray) -> None:
        nonlocal file
        with writing(path):
            if file is None:
                file = partial.open("wb", buffering=0)
                shape = (count, *pixels.shape[1:])
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            left = pixels.data.cast("B")
            while left:
                left = left[file.write(left) :]

    try:
        yield add
        if file is not None:
            with writing(path):
                os.fsync(file.fileno())
                partial.replace(path)
    finally:
        if file is not None:
            file.close()
        partial.unlink(missing_ok=True)


def again(picture: Path, run: Path | None, out: Path | None) -> Path:
    """Makes a picture, grid or film again from its recipe; returns where it is.

    Raises `CheckpointError` where run or checkpoint are not those of the recipe, `InputError` where
    the picture holds no recipe, or one that can't be followed, or its place is taken, and
    `UnrazeError` where the bytes differ.
    """
    import numpy as np

    from unraze import __version__, generate, pictures
    from unraze.hardware import require_device

    written = pictures.read_recipe(picture)
    recipe = _understood(written, picture)
    beside = picture.resolve().parent
    target = (out or beside.with_name(f"{beside.name}-again")) / picture.name
    if os.path.exists(target):
        raise InputError(f"{target}: exists; give another --out")
    require_place(target.parent, f"--out {target.parent}")
    folder = run or Path(recipe.run)
    if not os.path.exists(folder):
        raise CheckpointError(
            f"{folder}: the run that {picture} was drawn from is not here; give it as "
            f"`unraze sample RUN --like {shlex.quote(str(picture))}`"
        )
    device = recipe.device.split(":")[0]
    with _following(picture):
        set_threads(recipe.threads)
        require_device(device)
    try:
        model = generate.load(folder, raw=recipe.raw, step=recipe.step, device=device)
    except CheckpointError as error:
        reason = str(error).removesuffix("; give another --checkpoint")
        raise CheckpointError(
            f"{reason}; {picture} can be made again "
            f"only by a run that has its weights, {recipe.checkpoint[:12]}… of step {recipe.step}"
        ) from error
    if model.checkpoint != recipe.checkpoint:
        raise CheckpointError(
            f"{folder}: its checkpoint of step {recipe.step} is {model.checkpoint[:12]}…, while "
            f"{picture} was drawn from {recipe.checkpoint[:12]}…: this is another run"
        )
    if recipe.unraze != __version__:
        print(f"note: {picture} is of Unraze {recipe.unraze}, this is {__version__}")

    settings = recipe.settings
    if recipe.engine != "torch":
        from unraze.interop import engines

        with _following(picture):
            model, settings = engines.with_engine(model, recipe.engine, settings)
    first, size = recipe.batch
    order = Order(
        model=model,
        settings=settings,
        seed=recipe.seed,
        classes=recipe.classes,
        count=recipe.count,
        batch=size,
        raw=recipe.raw,
        first=first,
    )
    film = Film() if recipe.kind == "film" else None
    with _following(picture):
        made = [pixels for _, pixels in _batches(order, film)]
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if film is not None:
            _write_film(order, film, target, written)
        elif recipe.kind == "grid":
            pictures.write_png(_grid(order, np.concatenate(made))[0], target, written)
        else:
            place = (recipe.image or 0) - first
            pictures.write_png(pictures.to_pil(made[0])[place], target, written)
    if not filecmp.cmp(target, picture, shallow=False):
        raise UnrazeError(
            f"{target}: made again, but not to the same bytes as {picture}: another machine, "
            "another version or a changed picture"
        )
    print(f"the same, byte for byte, as {picture}")
    return target


def require_ours(folder: Path, names: re.Pattern[str], count: int | None = None) -> None:
    """Raises `InputError` where a folder holds what would be lost, or mixed up with what comes.

    It may be absent, empty, or hold files of these names only; with `count`, of fewer numbers.
    """
    if not os.path.exists(folder):
        return
    if not folder.is_dir():
        raise InputError(f"{folder}: exists and is not a folder; give another --out")
    for entry in sorted(folder.iterdir()):
        found = names.fullmatch(entry.name)
        if found is None:
            raise InputError(
                f"{folder}: exists and holds other things, {entry.name} say; give another --out"
            )
        if count is not None and found.groups() and found[1] and int(found[1]) >= count:
            raise InputError(
                f"{folder}: holds more pictures than are to be drawn now, {entry.name} say; "
                "give another --out"
            )


def require_new(file: Path | None) -> None:
    """Raises `InputError` where an array to be written exists, is no .npy, or has no folder."""
    if file is None:
        return
    if file.suffix != ".npy":
        raise InputError(f"--npy {file}: give a name that ends in .npy")
    if os.path.lexists(file):
        raise InputError(f"--npy {file}: exists; give another name or remove it")
    if not file.parent.is_dir():
        raise InputError(
            f"--npy {file}: there is no folder {file.parent}; make it, or give another"
        )
    require_file_place(file, f"--npy {file}")


def require_place(folder: Path, given: str) -> None:
    """Raises `InputError` where nothing can be written into a folder, or it can't be made.

    It is tried, in the folder or in the nearest above it that exists; no trace is left. `given` is
    what the message begins with: the option and its value.
    """
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in folder.parts):
        raise InputError(f"{given}: the name is too long; give a shorter one")
    if os.path.islink(folder) and not os.path.exists(folder):
        raise InputError(f"{given}: is a link that leads nowhere; remove it, or give another")
    there = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    try:
        with tempfile.TemporaryDirectory(prefix=".unraze-", dir=there):
            pass
    except OSError as error:
        raise InputError(
            f"{given}: cannot be written ({error.strerror or error}); choose another place"
        ) from error


def require_file_place(file: Path, given: str) -> None:
    """Raises `InputError` where a file can't be written, or is something else than a file now."""
    if len(os.fsencode(file.name)) > LONGEST_NAME:
        raise InputError(f"{given}: the name is too long; give a shorter one")
    if os.path.exists(file) and not file.is_file():
        raise InputError(f"{given}: exists and is not a file; give another name")
    require_place(file.parent, given)


def set_threads(threads: int | None) -> None:
    """Makes torch compute with so many threads; None leaves it.

    Raises `InputError` for a number that a configuration may not have either.
    """
    if threads is None:
        return
    updated(Config(), {"train.threads": threads})
    import torch

    torch.set_num_threads(threads)


def fresh_folder(run: Path) -> Path:
    """RUN/samples-00000, or the next number that is free."""
    names = (p.name[8:] for p in run.glob("samples-*"))
    taken = [int(name) for name in names if re.fullmatch(r"[0-9]{1,18}", name)]
    return run / f"samples-{max(taken, default=-1) + 1:05d}"


@contextmanager
def writing(path: Path | None) -> Iterator[None]:
    """Turns what the system says while a file is written into an `UnrazeError`."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise UnrazeError(
            f"{where}: cannot be written ({error.strerror or error}); choose another place, or "
            "make room there"
        ) from error


@contextmanager
def _following(picture: Path) -> Iterator[None]:
    """Names the picture in what is wrong with its recipe."""
    try:
        yield
    except InputError as error:
        said = str(error).removeprefix("option: ")
        raise InputError(
            f"{picture}: its recipe cannot be followed here: {said}; draw anew without --like"
        ) from error


def _understood(recipe: Mapping[str, Any], picture: Path) -> Recipe:
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


def _batches(order: Order, film: Film | None) -> Iterator[tuple[range, np.ndarray]]:
    """The numbers and pixels (B, H, W, C) of each batch; states of the first go into the film."""
    from rich.console import Console

    from unraze import generate
    from unraze.cli.show import follow_drawing

    moments = generate.generate(
        order.model,
        order.count,
        seed=order.seed,
        settings=order.settings,
        classes=order.classes,
        batch=order.batch,
        first=order.first,
    )
    states = generate.plan_of(order.model, order.settings).states
    count = min(states, FILM_FRAMES)
    kept = frozenset(round((k + 1) * states / count) for k in range(count))
    for moment in follow_drawing(moments, Console()):
        if film is not None and moment.numbers.start == order.first and moment.done in kept:
            film.states.append(_pixels(order, moment.x[:FILM_AT_MOST]))
            film.times.append(moment.t)
        if moment.finished:
            yield moment.numbers, _pixels(order, moment.x)


def _pixels(order: Order, x: Tensor) -> np.ndarray:
    """x (N, C, H, W) as bytes (N, H, W, C); raises `UnrazeError` where the model is ruined."""
    from unraze.pictures import pixels_of

    if bool(x.isnan().any()):
        what = "weights" if order.raw else "averaged weights"
        raise UnrazeError(
            f"{order.model.run}: the {what} of its checkpoint of step {order.model.step} draw "
            "not-a-number; give an older --checkpoint, or train again with a smaller --lr"
        )
    return pixels_of(x)


def _recipe(order: Order, numbers: range) -> dict[str, Any]:
    from unraze.generate import recipe

    return recipe(
        order.model,
        order.settings,
        seed=order.seed,
        classes=order.classes,
        batch=numbers,
        raw=order.raw,
    )


def _grid(order: Order, pixels: np.ndarray) -> tuple[Image.Image, dict[str, Any]]:
    """The first pictures side by side, and the recipe of that."""
    from unraze import pictures

    shown = pixels[:GRID_AT_MOST]
    recipe = _recipe(order, range(order.first, order.first + order.batch)) | {
        "kind": "grid",
        "images": [order.first, len(shown)],
        "drawn": min(order.count, -(-len(shown) // order.batch) * order.batch),
    }
    return pictures.grid(shown), recipe


def _write_film(order: Order, film: Film, path: Path, recipe: dict[str, Any] | None = None) -> None:
    from unraze import pictures

    recipe = recipe or _recipe(order, range(order.first, order.first + _size(order))) | {
        "kind": "film",
        "images": [order.first, len(film.states[0])],
    }
    count, _, width, _ = film.states[0].shape
    upscale = max(1, FILM_SIDE // (pictures.square(count) * width))
    frames = pictures.film_frames(film.states, film.times, upscale=upscale)
    pictures.write_film(frames, path, recipe)


def _size(order: Order) -> int:
    """How many images the first batch has."""
    return min(order.batch, order.count)
