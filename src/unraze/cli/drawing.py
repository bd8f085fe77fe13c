"""What `unraze sample` does once its options are understood: draw, write, and draw again."""

from __future__ import annotations

import filecmp
import os
import re
import shlex
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from unraze import files
from unraze.config import Config, updated
from unraze.errors import CheckpointError, InputError, UnrazeError

if TYPE_CHECKING:
    import numpy as np

    from unraze.drawing import Film, Order
    from unraze.ranks import Ranks

__all__ = [
    "MOST_PICTURES",
    "again",
    "clear",
    "draw",
    "overview",
    "own_folder",
    "require_file_place",
    "require_new",
    "require_ours",
    "require_place",
    "saying_where",
    "set_threads",
    "writing",
]

LONGEST_NAME = 255
"""Bytes of a file's or a folder's name: what the usual file systems take."""
NUMBERED = re.compile(r"(\d{5,})\.png")
PICTURES = re.compile(rf"{NUMBERED.pattern}|grid\.png")
PICTURES_AND_FILM = re.compile(rf"{PICTURES.pattern}|film\.gif")
"""The names that sampling gives to what it writes into a folder, without a film and with one."""
MOST_PICTURES = 10**8


@contextmanager
def own_folder(run: Path, ranks: Ranks, kind: str = "samples") -> Iterator[Path]:
    """RUN/samples-00000, or the next number that is free: made at once, so that no other command
    takes it, and gone again where nothing was drawn into it."""
    from unraze import drawing

    folder = ranks.first(drawing.make_folder, run, kind)
    try:
        yield folder
    finally:
        if ranks.is_first:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def draw(order: Order, folder: Path | None, npy: Path | None, *, film: bool) -> None:
    """Draws, and writes 00000.png … and film.gif into `folder`, the array into `npy`.

    The film, of the first batch, is written with the first of the pictures. Nothing is written
    before that batch is done, so that what is refused leaves no trace; an array that is not
    finished is removed again.
    """
    from unraze import drawing, pictures
    from unraze.hardware import memory_told

    filmed = drawing.Film() if film else None
    out_of_memory = memory_told("give a smaller --batch")
    with out_of_memory, _array(npy, order.count) as add, saying_where(order.count) as done:
        for numbers, pixels in _batches(order, filmed):
            if folder is not None:
                with writing(folder):
                    if not done:
                        own = range(order.first, order.first + order.count)
                        clear(folder, own, *(() if order.first else ("grid.png", "film.gif")))
                    for number, picture in zip(numbers, pictures.to_pil(pixels), strict=True):
                        recipe = drawing.recipe_of(order, numbers, number)
                        pictures.write_png(picture, folder / f"{number:05d}.png", recipe)
                    done[folder] += len(numbers)
            add(pixels)
        if folder is not None and filmed is not None and order.first == 0:
            frames, recipe = drawing.film_of(order, filmed)
            with writing(folder):
                pictures.write_film(frames, folder / "film.gif", recipe)


def clear(folder: Path, numbers: range, *others: str) -> None:
    """Makes a folder, if need be, where these pictures are to be, 00000.png say, and files of other
    names: without those that were there before, so that pictures of two drawings are not mixed
    where the second one is interrupted."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        found = NUMBERED.fullmatch(file.name)
        if (found and int(found[1]) in numbers) or file.name in others:
            file.unlink()


@contextmanager
def saying_where(count: int) -> Iterator[Counter[Path]]:
    """A number for each folder, of the pictures that were written into it; which is said of them,
    of `count` in all, where drawing is interrupted."""
    done = Counter[Path]()
    try:
        yield done
    except KeyboardInterrupt:
        for folder, number in done.items():
            print(f"{number} of {count} pictures are in {folder}")
        raise


def overview(order: Order, folder: Path) -> None:
    """Writes grid.png, of the first pictures that `draw` has written into a folder."""
    import numpy as np
    from PIL import Image

    from unraze import drawing, pictures

    shown = []
    with writing(folder):
        for number in range(min(order.count, drawing.GRID_AT_MOST)):
            with Image.open(folder / f"{number:05d}.png", formats=("PNG",)) as picture:
                shown.append(np.asarray(picture))
        pixels = np.stack(shown)
        grid, recipe = drawing.grid_of(order, pixels if pixels.ndim == 4 else pixels[..., None])
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

    from unraze import __version__, drawing, generate, pictures
    from unraze.hardware import require_device

    written = pictures.read_recipe(picture)
    recipe = drawing.understood(written, picture)
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
    order = drawing.Order(
        model=model,
        settings=settings,
        seed=recipe.seed,
        classes=recipe.classes,
        count=recipe.count,
        batch=size,
        raw=recipe.raw,
        first=first,
    )
    film = drawing.Film() if recipe.kind == "film" else None
    with _following(picture):
        made = [pixels for _, pixels in _batches(order, film)]
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if film is not None:
            pictures.write_film(drawing.film_of(order, film)[0], target, written)
        elif recipe.kind == "grid":
            pictures.write_png(drawing.grid_of(order, np.concatenate(made))[0], target, written)
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


def _batches(order: Order, film: Film | None) -> Iterator[tuple[range, np.ndarray]]:
    """The numbers and pixels (B, H, W, C) of each batch; states of the first go into the film."""
    from rich.console import Console

    from unraze import drawing, generate
    from unraze.cli.show import follow_drawing

    kept = drawing.kept_states(generate.plan_of(order.model, order.settings).states)
    for moment in follow_drawing(drawing.moments(order), Console()):
        if film is not None and moment.numbers.start == order.first and moment.done in kept:
            film.states.append(drawing.pixels_of(order, moment.x[: drawing.FILM_AT_MOST]))
            film.times.append(moment.t)
        if moment.finished:
            yield moment.numbers, drawing.pixels_of(order, moment.x)
