"""What `unraze sample` does once its options are understood: draw, write, and draw again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unraze.errors import CheckpointError, InputError, UnrazeError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from unraze.config import SampleConfig
    from unraze.generate import Classes, Model

__all__ = ["Order", "again", "draw", "fresh_folder", "require_new", "require_ours", "writing"]

GRID_AT_MOST = 400
FILM_AT_MOST = 36
FILM_FRAMES = 100
FILM_SIDE = 360
"""About the film's width in pixels: noise does not compress, so a larger one weighs too much."""
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
class Frame:
    """The first images (N, H, W, C) of a batch after `step` of `steps`."""

    step: int
    steps: int
    pixels: np.ndarray

    @property
    def share(self) -> float:
        """How much of the way is gone, 0 to 1."""
        return self.step / self.steps


def draw(order: Order, folder: Path | None, npy: Path | None, *, film: bool) -> None:
    """Draws, and writes 00000.png …, grid.png and film.gif into `folder`, the array into `npy`.

    Nothing is written before the first batch is done, so that what is refused leaves no trace.
    """
    import numpy as np

    from unraze import pictures

    grid: list[np.ndarray] = []
    frames: list[Frame] = []
    array: np.ndarray | None = None
    partial = None if npy is None else npy.with_name(npy.name + ".part")
    for batch in _batches(order, frames_of=order.first if film else None, frames=frames):
        numbers, pixels = batch
        with writing(folder or npy):
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                for number, picture in zip(numbers, pictures.to_pil(pixels), strict=True):
                    recipe = _recipe(order, numbers) | {"kind": "image", "image": number}
                    pictures.write_png(picture, folder / f"{number:05d}.png", recipe)
                if sum(map(len, grid)) < GRID_AT_MOST:
                    grid.append(pixels)
            if partial is not None:
                if array is None:
                    partial.parent.mkdir(parents=True, exist_ok=True)
                    shape = (order.count, *pixels.shape[1:])
                    array = np.lib.format.open_memmap(
                        partial, mode="w+", dtype=np.uint8, shape=shape
                    )
                array[numbers.start : numbers.stop] = pixels
    with writing(folder or npy):
        if folder is not None:
            picture, recipe = _grid(order, np.concatenate(grid))
            pictures.write_png(picture, folder / "grid.png", recipe)
            if film:
                _write_film(order, frames, folder / "film.gif")
        if npy is not None and partial is not None and array is not None:
            array.flush()  # type: ignore[attr-defined]
            partial.replace(npy)


def again(picture: Path, run: Path | None, out: Path | None) -> Path:
    """Makes a picture, grid or film again from its recipe; returns where it is.

    Raises `CheckpointError` where run or checkpoint are not those of the recipe, `InputError` where
    the picture holds no recipe or its place is taken, and `UnrazeError` where the bytes differ.
    """
    import numpy as np
    import torch

    from unraze import __version__, generate, pictures

    recipe = pictures.read_recipe(picture)
    wanted = {"kind", "run", "checkpoint", "step", "raw", "seed", "class", "batch", "settings"}
    if recipe.get("kind") not in ("image", "grid", "film") or wanted - recipe.keys():
        raise InputError(f"{picture}: has no recipe of `unraze sample`, so it can't be made again")
    target = (out or picture.parent / "again") / picture.name
    if target.exists():
        raise InputError(f"{target}: exists; give another --out")
    folder = run or Path(recipe["run"])
    if not folder.exists():
        raise CheckpointError(
            f"{folder}: the run that {picture} was drawn from is not here; give it as "
            f"`unraze sample RUN --like {picture}`"
        )
    torch.set_num_threads(recipe["threads"])
    model = generate.load(
        folder, raw=recipe["raw"], step=recipe["step"], device=recipe["device"].split(":")[0]
    )
    if model.checkpoint != recipe["checkpoint"]:
        raise CheckpointError(
            f"{folder}: its checkpoint of step {recipe['step']} is {model.checkpoint[:12]}…, while "
            f"{picture} was drawn from {recipe['checkpoint'][:12]}…: this is another run"
        )
    if recipe["unraze"] != __version__:
        print(f"note: {picture} is of Unraze {recipe['unraze']}, this is {__version__}")

    first, size = recipe["batch"]
    count = recipe["drawn"] if recipe["kind"] == "grid" else size
    order = Order(
        model=model,
        settings=generate.changed(model.config.sample, recipe["settings"]),
        seed=recipe["seed"],
        classes=recipe["class"],
        count=count,
        batch=size,
        raw=recipe["raw"],
        first=first,
    )
    frames: list[Frame] = []
    film = recipe["kind"] == "film"
    made = [
        pixels for _, pixels in _batches(order, frames_of=first if film else None, frames=frames)
    ]
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        match recipe["kind"]:
            case "image":
                pictures.write_png(
                    pictures.to_pil(made[0])[recipe["image"] - first], target, recipe
                )
            case "grid":
                shown, _ = _grid(order, np.concatenate(made))
                pictures.write_png(shown, target, recipe)
            case "film":
                _write_film(order, frames, target, recipe)
    if target.read_bytes() != picture.read_bytes():
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
    if not folder.exists():
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
    """Raises `InputError` where a file to be written exists or is no .npy."""
    if file is None:
        return
    if file.suffix != ".npy":
        raise InputError(f"--npy {file}: give a name that ends in .npy")
    if file.exists():
        raise InputError(f"--npy {file}: exists; give another name or remove it")


def fresh_folder(run: Path) -> Path:
    """RUN/samples-00000, or the next number that is free."""
    taken = [int(p.name[8:]) for p in run.glob("samples-*") if p.name[8:].isdigit()]
    return run / f"samples-{max(taken, default=-1) + 1:05d}"


@contextmanager
def writing(path: Path | None) -> Iterator[None]:
    """Turns what the system says while a file is written into an `UnrazeError`."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise UnrazeError(f"{where}: cannot be written ({error.strerror or error})") from error


def _batches(
    order: Order, *, frames_of: int | None, frames: list[Frame]
) -> Iterator[tuple[range, np.ndarray]]:
    """The numbers and pixels (B, H, W, C) of each batch; the states of one go into `frames`."""
    from rich.console import Console

    from unraze import generate
    from unraze.cli.show import follow_drawing
    from unraze.pictures import pixels_of

    moments = generate.generate(
        order.model,
        order.count,
        seed=order.seed,
        settings=order.settings,
        classes=order.classes,
        batch=order.batch,
        first=order.first,
    )
    steps = generate.steps_of(order.model, order.settings).steps
    count = min(steps, FILM_FRAMES)
    kept = frozenset(round((k + 1) * steps / count) for k in range(count))
    for moment in follow_drawing(moments, Console()):
        if moment.numbers.start == frames_of and moment.done in kept:
            frames.append(Frame(moment.done, steps, pixels_of(moment.x[:FILM_AT_MOST])))
        if moment.finished:
            yield moment.numbers, pixels_of(moment.x)


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


def _write_film(
    order: Order, frames: list[Frame], path: Path, recipe: dict[str, Any] | None = None
) -> None:
    from unraze import pictures

    recipe = recipe or _recipe(order, range(order.first, order.first + _size(order))) | {
        "kind": "film",
        "images": [order.first, len(frames[0].pixels)],
    }
    images = frames[0].pixels
    upscale = max(1, FILM_SIDE // (pictures.square(len(images)) * images.shape[2]))
    shown = [
        pictures.captioned(
            pictures.grid(frame.pixels, upscale=upscale),
            f"step {frame.step} of {frame.steps}",
            share=frame.share,
        )
        for frame in frames
    ]
    pictures.write_film(shown, path, recipe)


def _size(order: Order) -> int:
    """How many images the first batch has."""
    return min(order.batch, order.count)
