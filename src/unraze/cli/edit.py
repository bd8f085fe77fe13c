"""`unraze edit vary|inpaint|restore|interpolate|invert`: what was learned, used on pictures."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from unraze.cli.app import (
    MACHINE,
    MAKE,
    OUTPUT,
    SAMPLING,
    Checkpoint,
    Device,
    Raw,
    Sampler,
    Seed,
    Spacing,
    Threads,
    app,
    option_of,
    told_as_options,
)
from unraze.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from unraze.config import SampleConfig
    from unraze.data.shape import Fit as Fitting
    from unraze.edit.editing import Wish
    from unraze.edit.operators import Operator
    from unraze.generate import Model, Progress

__all__ = ["inpaint", "interpolate", "invert", "restore", "vary"]

MOST_RESULTS = 10_000
OTHERS = ("again.png", "film.gif", "given.png", "grid.png", "noise.npy", "seen.png", "strip.png")
"""What is written beside the results."""

edit = App(
    name="edit",
    help="Vary, fill in, restore, blend and invert pictures, with what a run learned.",
    help_epilogue=(
        "Examples:\n\n"
        "  unraze edit vary RUN shoe.png --strength 0.6 -n 8\n"
        "  unraze edit inpaint RUN shoe.png --mask 0,14,28,14 -n 8\n"
        "  unraze edit restore RUN small.png --operator downsample:4 -n 8\n"
        "  unraze edit interpolate RUN shoe.png boot.png --film\n"
        "  unraze edit invert RUN shoe.png\n\n"
        "`unraze edit COMMAND --help` tells all options of one of them."
    ),
    group=MAKE,
    sort_key=4,
)
app.command(edit)

RunFolder = Annotated[Path, Parameter(help="The run's folder.")]
Picture = Annotated[Path, Parameter(help="The picture.")]
Count = Annotated[
    int, Parameter(name=["-n", "--count"], group=SAMPLING, help="How many results, by seed.")
]
Class = Annotated[
    tuple[str, ...],
    Parameter(
        name="--class",
        group=SAMPLING,
        negative="",
        show_default=False,
        help="A class by name or number; may be repeated, then all hold together. No label if "
        "absent.",
    ),
]
Fit = Annotated[
    Literal["crop", "pad", "stretch"] | None,
    Parameter(
        group=OUTPUT,
        help="Bring a picture of another size or other colours to the run's; refused if absent.",
    ),
]
Film = Annotated[
    bool,
    Parameter(group=OUTPUT, negative="", show_default=False, help="Also film.gif, of the way."),
]
Out = Annotated[
    Path | None,
    Parameter(group=OUTPUT, help="Folder for the results; RUN/edits-00000, … if absent."),
]
Batch = Annotated[int, Parameter(group=MACHINE, help="Results computed at once.")]
CallsOfEdit = Annotated[
    int | None,
    Parameter(
        group=SAMPLING, help="Network calls, 1 to T, of which guided ones are double; 50 if absent."
    ),
]
"""As `unraze.edit.editing.settings_for` has them, and so is the guidance."""
GuidanceOfEdit = Annotated[
    float | None,
    Parameter(group=SAMPLING, help="How far towards the class; 1, which is none, if absent."),
]


@Parameter(name="*")
@dataclass(frozen=True)
class How:
    """Which weights edit, on which machine, and where the results go."""

    raw: Raw = False
    checkpoint: Checkpoint = None
    device: Device = None
    threads: Threads = None
    out: Out = None


HOW = How()


@edit.command(
    sort_key=1,
    usage="Usage: unraze edit vary RUN IMAGE [OPTIONS]",
    help_epilogue=(
        "Examples:\n\n"
        "  unraze edit vary RUN shoe.png -n 8\n"
        "  unraze edit vary RUN photo.jpg --fit crop --strength 0.4\n"
        "  unraze edit vary RUN shoe.png --class Bag --guidance 3\n"
        "  unraze edit vary RUN shoe.png --of Sneaker --class 'Ankle boot'"
    ),
)
def vary(
    run: RunFolder,
    image: Picture,
    /,
    *,
    strength: Annotated[
        float,
        Parameter(group=SAMPLING, help="How far it is destroyed, 0 (the image itself) to 1."),
    ] = 0.5,
    n: Count = 4,
    seed: Seed = 0,
    class_: Class = (),
    of: Annotated[
        str | None,
        Parameter(
            group=SAMPLING,
            help="The class that the picture is of: its own noise is found, and walked again with "
            "--class, so that the layout stays.",
        ),
    ] = None,
    sampler: Sampler = None,
    spacing: Spacing = None,
    guidance: Annotated[
        float | None,
        Parameter(
            group=SAMPLING,
            help="How far towards the class, 1 is none; if absent the run's own with --class, and "
            "none without it or with --of.",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        Parameter(
            group=SAMPLING,
            help="Network calls, 1 to T; guided ones are double, but where `unraze tune` searched "
            "for so many; the run's own if absent, 50 with --of.",
        ),
    ] = None,
    batch: Batch = 64,
    fit: Fit = None,
    how: How = HOW,
    film: Film = False,
) -> int:
    """Variations of a picture: destroyed to t, and reconstructed from there (SDEdit).

    Writes 00000.png …, and grid.png with the picture first; their folder is the last line printed.
    """
    if of is not None and not class_:
        raise InputError(f"--of {of}: say with --class what it is to become")
    if of is not None and (sampler or spacing):
        option = "--sampler" if sampler else "--spacing"
        raise InputError(f"--of walks by random sampling, even in angle: leave {option} out")
    with _editing(run, how, _files("grid.png", film=film), n, "strength") as model:
        from unraze.edit import editing, recipes

        given = _given(steps, guidance, sampler, spacing)
        settings = (
            editing.settings_to_vary(model, given, guided=bool(class_))
            if of is None
            else editing.settings_for(model, given, by="class")
        )
        wish = _wish(model, settings, n, seed, class_, batch)
        x0, picture = _read(image, model.shape, fit, f"{run}")
        source = None if of is None else _class(model, of, "--of")
        if source is None:
            moments = editing.vary(model, x0, wish, strength=strength)
        else:
            moments = editing.change_class(model, x0, wish, of=(source,), strength=strength)
        about = recipes.varied(picture, strength=strength, of=source)
        return _write(run, how, model, wish, moments, about, film=film, first=[x0])


@edit.command(
    sort_key=2,
    usage="Usage: unraze edit inpaint RUN IMAGE --mask MASK [OPTIONS]",
    help_epilogue=(
        "Examples:\n\n"
        "  unraze edit inpaint RUN shoe.png --mask mask.png -n 8\n"
        "  unraze edit inpaint RUN shoe.png --mask 0,14,28,14 --film\n"
        "  unraze edit inpaint RUN shoe.png --mask mask.png --method repaint --steps 250"
    ),
)
def inpaint(
    run: RunFolder,
    image: Picture,
    /,
    *,
    mask: Annotated[
        str,
        Parameter(
            group=SAMPLING,
            allow_leading_hyphen=True,  # of a rectangle that will not do
            help="What to draw anew: a picture of the run's size, white there and black elsewhere, "
            "or a rectangle LEFT,TOP,WIDTH,HEIGHT in pixels.",
        ),
    ],
    method: Annotated[
        Literal["mmps", "pigdm", "diffpir", "dps", "repaint", "replace"],
        Parameter(group=SAMPLING, help="How what is known leads."),
    ] = "pigdm",
    repeats: Annotated[
        int | None, Parameter(group=SAMPLING, help="RePaint: how often; 5 if absent.")
    ] = None,
    n: Count = 4,
    seed: Seed = 0,
    class_: Class = (),
    guidance: GuidanceOfEdit = None,
    steps: CallsOfEdit = None,
    batch: Batch = 64,
    fit: Fit = None,
    how: How = HOW,
    film: Film = False,
) -> int:
    """Draw a part of a picture anew, to go with the rest, which stays as it is to the bit.

    Writes 00000.png …, given.png, and grid.png with what is known first; their folder is the last
    line printed.
    """
    if repeats is not None and method != "repaint":
        raise InputError(f"--repeats is for repaint, the method is {method}: leave it out")
    if repeats is not None and repeats < 1:
        raise InputError(f"--repeats {repeats}: give at least 1")
    files = _files("grid.png", "given.png", film=film)
    with _editing(run, how, files, n, "mask", "repeats") as model:
        from unraze.edit import editing, recipes

        settings = editing.settings_to_inpaint(model, _given(steps, guidance), method=method)
        wish = _wish(model, settings, n, seed, class_, batch)
        x0, picture = _read(image, model.shape, fit, f"{run}")
        unknown = _mask(mask, f"--mask {mask}", model.shape, fit)
        again = editing.REPEATS if repeats is None else repeats
        moments = editing.inpaint(model, x0, unknown, wish, method=method, repeats=again)
        about = recipes.inpainted(picture, unknown, method=method, repeats=again)
        known = x0.masked_fill(unknown, 0.0)
        return _write(run, how, model, wish, moments, about, film=film, first=[x0, known])


@edit.command(
    sort_key=3,
    usage="Usage: unraze edit restore RUN IMAGE --operator OPERATOR [OPTIONS]",
    help_epilogue=(
        "Operators:\n\n"
        "  downsample:4          means of squares of 4 x 4 pixels: IMAGE is the small picture\n"
        "  blur:1.5              a Gaussian blur of 1.5 pixels\n"
        "  grey                  colours to grey\n"
        "  missing:MASK.png      pixels that are white in MASK are not known\n"
        "  missing:0.8           four fifths of the pixels, at random: with --spoil\n"
        "  noise                 nothing but noise: with --noise\n"
        "  FILE.py:FUNCTION      one's own, of images (B, C, H, W) in [-1, 1], by torch\n\n"
        "Examples:\n\n"
        "  unraze edit restore RUN small.png --operator downsample:4 -n 8\n"
        "  unraze edit restore RUN shoe.png --operator blur:2 --noise 0.05 --spoil"
    ),
)
def restore(
    run: RunFolder,
    image: Picture,
    /,
    *,
    operator: Annotated[
        str, Parameter(group=SAMPLING, help="How the picture was spoilt; the list is below.")
    ],
    noise: Annotated[
        float,
        Parameter(
            group=SAMPLING,
            help="Standard deviation of the noise in it, of pixels in [-1, 1]; a byte is 0.008.",
        ),
    ] = 0.0,
    spoil: Annotated[
        bool,
        Parameter(
            group=SAMPLING,
            negative="",
            show_default=False,
            help="IMAGE is whole: spoil it first, and say how near the results come.",
        ),
    ] = False,
    method: Annotated[
        Literal["mmps", "pigdm", "diffpir", "dps"],
        Parameter(group=SAMPLING, help="How what is seen leads."),
    ] = "pigdm",
    n: Count = 4,
    seed: Seed = 0,
    class_: Class = (),
    guidance: GuidanceOfEdit = None,
    steps: CallsOfEdit = None,
    batch: Batch = 64,
    fit: Fit = None,
    how: How = HOW,
    film: Film = False,
) -> int:
    """Pictures that may be behind a spoilt one: enlarged, sharpened, coloured, without noise.

    Writes 00000.png …, seen.png, and grid.png with what is seen first; their folder is the last
    line printed.
    """
    with _editing(run, how, _files("grid.png", "seen.png", film=film), n, "operator") as model:
        from unraze import rng
        from unraze.edit import editing
        from unraze.edit.operators import Observed, shape_seen

        apply, told = _operator(operator, model.shape, fit, seed, spoil)
        if operator == "noise" and noise <= 0:
            raise InputError("--operator noise: say with --noise how much there is, 0.5 say")
        settings = editing.settings_for(model, _given(steps, guidance), by="posterior")
        wish = _wish(model, settings, n, seed, class_, batch)
        try:
            shape = shape_seen(apply, model.shape)
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"--operator {operator}: {error}") from error
        first: list[Tensor] = []
        is_picture = len(shape) == 3 and shape[0] in (1, 3)
        if spoil:
            x0, picture = _read(image, model.shape, fit, f"{run}")
            y = apply(x0[None])
            y = y + noise * rng.normal(seed, "spoilt", range(1), 0, y.shape[1:])
            first.append(x0)
        else:
            if not is_picture:
                raise InputError(
                    f"--operator {operator}: what it gives, {shape}, is no picture; give the whole "
                    "one and --spoil"
                )
            x0, picture = _read(image, shape, fit, f"--operator {operator}")
            y = x0[None]
        if "mask" in told:  # what there is where nothing is known says nothing
            y = apply(y)
        try:
            seen = Observed(y, apply, noise)
        except ValueError as error:
            raise InputError(str(error).replace("sigma", "--noise", 1)) from error
        moments = editing.restore(model, seen, wish, method=method)
        about = {
            "edit": "restore",
            "image": picture,
            "operator": operator,
            **told,
            "noise": noise,
            "spoil": spoil,
            "method": method,
        }
        if is_picture:
            first.append(y[0])
        ends: dict[str, Any] = {"first": first, "whole": x0 if spoil else None, "seen": is_picture}
        return _write(run, how, model, wish, moments, about, film=film, **ends)


@edit.command(
    sort_key=4,
    usage="Usage: unraze edit interpolate RUN IMAGE IMAGE [OPTIONS]",
    help_epilogue=(
        "Examples:\n\n"
        "  unraze edit interpolate RUN shoe.png boot.png\n"
        "  unraze edit interpolate RUN --seeds 3 8 -n 30 --film"
    ),
)
def interpolate(
    run: RunFolder,
    images: Annotated[
        tuple[Path, ...], Parameter(show_default=False, help="Two pictures; none with --seeds.")
    ] = (),
    /,
    *,
    seeds: Annotated[
        tuple[int, int] | None,
        Parameter(group=SAMPLING, negative="", help="From the drawing of one seed to another's."),
    ] = None,
    n: Count = 9,
    iterations: Annotated[
        int | None,
        Parameter(
            group=SAMPLING, help="Calls for each step of the pictures' inversion; 3 if absent."
        ),
    ] = None,
    class_: Class = (),
    guidance: GuidanceOfEdit = None,
    steps: CallsOfEdit = None,
    batch: Batch = 64,
    fit: Fit = None,
    how: How = HOW,
    film: Film = False,
) -> int:
    """Blend two pictures, or two drawings, through the noise that they are made from.

    Writes 00000.png … and strip.png, from one to the other; --film shows them one after another.
    Their folder is the last line printed.
    """
    if (seeds is None) == (not images):
        raise InputError("give two pictures, or --seeds A B")
    if images and len(images) != 2:
        raise InputError(f"there are {len(images)} pictures: give two")
    if n < 2:
        raise InputError(f"-n {n}: give at least 2, the two ends")
    for option, value in (("--iterations", iterations), ("--fit", fit)):
        if seeds is not None and value is not None:
            raise InputError(f"{option} {value}: is for pictures, --seeds has none: leave it out")
    calls = 3 if iterations is None else iterations
    if calls < 1:
        raise InputError(f"--iterations {calls}: give at least 1")
    with _editing(run, how, _files("strip.png", film=film), n, "seeds") as model:
        from unraze.edit import editing, recipes

        settings = editing.settings_for(model, _given(steps, guidance))
        wish = _wish(model, settings, n, 0, class_, batch)
        ends: Any = seeds
        if seeds is not None and min(seeds) < 0:
            raise InputError(f"--seeds {seeds[0]} {seeds[1]}: give 0 or more")
        read = [_read(one, model.shape, fit, f"{run}") for one in images]
        if seeds is None:
            ends = (read[0][0], read[1][0])
        told = [picture for _, picture in read] or None
        about = recipes.interpolated(told, seeds=seeds, iterations=calls)
        moments = editing.interpolate(model, ends, wish, iterations=calls)
        return _write(run, how, model, wish, moments, about, film=film, strip=True)


@edit.command(
    sort_key=5,
    usage="Usage: unraze edit invert RUN IMAGE [OPTIONS]",
    help_epilogue="Example:\n\n  unraze edit invert RUN shoe.png --steps 100",
)
def invert(
    run: RunFolder,
    image: Picture,
    /,
    *,
    iterations: Annotated[
        int, Parameter(group=SAMPLING, help="Calls for each step; more bring it nearer.")
    ] = 3,
    class_: Class = (),
    guidance: GuidanceOfEdit = None,
    steps: CallsOfEdit = None,
    fit: Fit = None,
    how: How = HOW,
    film: Film = False,
) -> int:
    """Find the noise that DDIM makes a picture from, and say how near what it makes comes to it.

    Writes noise.npy, float32 (C, H, W), again.png and grid.png, the picture and what was made
    again; their folder is the last line printed.
    """
    if iterations < 1:
        raise InputError(f"--iterations {iterations}: give at least 1")
    files = _files("again.png", "grid.png", "noise.npy", film=film)
    with _editing(run, how, files, 0, "iterations") as model:
        from unraze.edit import editing

        settings = editing.settings_for(model, _given(steps, guidance))
        wish = _wish(model, settings, 1, 0, class_)
        x0, picture = _read(image, model.shape, fit, f"{run}")
        about = {"edit": "invert", "image": picture, "iterations": iterations}
        found: list[editing.Inverted] = []

        def moments() -> Iterator[Progress]:
            for one in editing.inverted(model, x0, wish, iterations=iterations):
                if isinstance(one, editing.Inverted):
                    found.append(one)
                else:
                    yield one

        first = [x0]
        return _write(
            run, how, model, wish, moments(), about, film=film, first=first, inverted=found
        )


def _given(
    steps: int | None,
    guidance: float | None,
    sampler: str | None = None,
    spacing: str | None = None,
) -> dict[str, Any]:
    """The keys of `sample` that were given."""
    told = {"steps": steps, "guidance": guidance, "sampler": sampler, "spacing": spacing}
    return {key: value for key, value in told.items() if value is not None}


def _files(*others: str, film: bool) -> re.Pattern[str]:
    """The names of what a command writes: numbered results, and these."""
    names = [*others, "film.gif"] if film else others
    return re.compile("|".join([r"(\d{5,})\.png", *map(re.escape, names)]))


@contextmanager
def _editing(run: Path, how: How, files: re.Pattern[str], count: int, *own: str) -> Iterator[Model]:
    """The run's model; what is wrong with a setting is told as the option that gave it.

    A folder that exists holds nothing but `files` that will be written over, `count` results.
    """
    from unraze import generate
    from unraze.cli.drawing import require_ours, require_place, set_threads
    from unraze.hardware import require_device

    keys = ("steps", "guidance", "device", "sampler", "spacing", "threads", "class", *own)
    names = {key: option_of(key) for key in keys}
    names |= {f"sample.{key}": option for key, option in names.items()}
    with told_as_options(names | {"train.threads": "--threads", "count": "-n"}):
        device = "cpu" if how.device is None else how.device
        require_device(device)
        set_threads(how.threads)
        if how.out is not None:
            require_ours(how.out, files, count)
            require_place(how.out, f"--out {how.out}")
        yield generate.load(run, raw=how.raw, step=how.checkpoint, device=device)


def _wish(
    model: Model,
    settings: SampleConfig,
    n: int,
    seed: int,
    classes: tuple[str, ...],
    batch: int = 1,
) -> Wish:
    from unraze.edit.editing import Wish, knows_unlabelled

    if not 1 <= n <= MOST_RESULTS:
        raise InputError(f"-n {n}: give 1 to {MOST_RESULTS:,}")
    if seed < 0:
        raise InputError(f"--seed {seed}: give at least 0")
    if batch < 1:
        raise InputError(f"--batch {batch}: give at least 1")
    numbers = tuple(_class(model, text, "--class") for text in classes)
    if not numbers and not knows_unlabelled(model):
        raise InputError(
            "name a class with --class: this run saw a label with every image "
            "(train.label_dropout = 0), so it does not know images without one"
        )
    return Wish(settings, count=n, seed=seed, classes=numbers, batch=batch)


def _class(model: Model, text: str, option: str) -> int:
    from unraze import generate
    from unraze.cli.sample import class_named

    found = class_named(model, text, option, one=True)
    with told_as_options({"class": option}):
        generate.class_of(model, found, 0, 0)
    return found


def _read(
    path: Path, shape: tuple[int, ...], fit: Fitting | None, whose: str
) -> tuple[Tensor, dict[str, Any]]:
    """A picture (C, H, W) in [-1, 1], and what a recipe says of it; brought to this shape only
    where `fit` says how."""
    from unraze.cli.opening import opened
    from unraze.data import to_float
    from unraze.data.shape import fitted, is_grey
    from unraze.edit.recipes import image_told

    white = (255, 255, 255)
    channels, height, width = shape
    with opened(path) as picture:
        has = (1 if is_grey(picture, white) else 3, picture.height, picture.width)
        if has != tuple(shape) and fit is None:
            said = " x ".join(map(str, has)), " x ".join(map(str, shape))
            raise InputError(
                f"{path}: is {said[0]} (channels x height x width), {whose} needs {said[1]}; give "
                "--fit crop, pad or stretch to have it brought to that"
            )
        size = (height, width)
        pixels = fitted(
            picture, size=size, fit=fit or "stretch", channels=channels, background=white
        )
    return to_float(pixels[None])[0], image_told(path.name, pixels)


def _mask(text: str, given: str, shape: tuple[int, ...], fit: Fitting | None) -> Tensor:
    """bool (H, W), true what is to be drawn: from a picture, or LEFT,TOP,WIDTH,HEIGHT.

    `given` is what a message begins with: the option and its value.
    """
    unknown = _rectangle(text, given, shape)
    if unknown is None:
        unknown = _masked(text, given, shape, fit)
    if not bool(unknown.any()):
        raise InputError(f"{given}: is empty, nothing is white: nothing is to be drawn")
    if bool(unknown.all()):
        raise InputError(
            f"{given}: covers the whole image, nothing is known; draw with unraze sample"
        )
    return unknown


def _rectangle(text: str, given: str, shape: tuple[int, ...]) -> Tensor | None:
    """bool (H, W), true in LEFT,TOP,WIDTH,HEIGHT; None for another text."""
    import torch

    _, height, width = shape
    if not re.fullmatch(r"\s*-?\d+(\s*,\s*-?\d+)*\s*", text):
        return None
    numbers = [int(number) for number in text.split(",")]
    if len(numbers) != 4 or min(numbers) < 0 or min(numbers[2:]) < 1:
        raise InputError(
            f"{given}: a rectangle is LEFT,TOP,WIDTH,HEIGHT, 0,14,28,14 say, not empty"
        )
    left, top, wide, high = numbers
    if left + wide > width or top + high > height:
        raise InputError(f"{given}: goes beyond the run's images, {width} x {height} pixels")
    unknown = torch.zeros(height, width, dtype=torch.bool)
    unknown[top : top + high, left : left + wide] = True
    return unknown


def _masked(text: str, given: str, shape: tuple[int, ...], fit: Fitting | None) -> Tensor:
    """bool (H, W), true what is white in a picture."""
    import torch

    from unraze.cli.opening import opened
    from unraze.data.shape import fitted

    _, height, width = shape
    with opened(Path(text)) as picture:
        if (picture.height, picture.width) != (height, width) and fit is None:
            raise InputError(
                f"{given}: is {picture.width} x {picture.height} pixels, the run's images "
                f"are {width} x {height}; give one of that size, or --fit"
            )
        how: dict[str, Any] = {"size": (height, width), "fit": fit or "stretch"}
        pixels = fitted(picture, channels=1, background=(0, 0, 0), **how)
    return torch.from_numpy(pixels[0].copy()) >= 128


def _operator(
    text: str,
    shape: tuple[int, ...],
    fit: Fitting | None,
    seed: int,
    spoil: bool,
) -> tuple[Operator, dict[str, str | dict[str, str]]]:
    """The operator of --operator, and what a recipe says of the file that it was made from, if of
    any; raises `InputError` for one that is not known."""
    from unraze import rng
    from unraze.edit import operators, recipes

    name, _, value = text.partition(":")
    if name in ("grey", "noise"):
        if value:
            raise InputError(f"--operator {text}: takes no value; give {name}")
        if name == "noise":
            return operators.identity, {}
        if shape[0] == 1:
            raise InputError("--operator grey: the run's images have no colours to restore")
        return operators.grey, {}
    if name in ("downsample", "blur"):
        try:
            if name == "downsample":
                return operators.downsampled(int(value)), {}
            return operators.blurred(float(value)), {}
        except ValueError as error:
            example = {"downsample": "downsample:4", "blur": "blur:1.5"}[name]
            raise InputError(f"--operator {text}: give a number above 0, {example} say") from error
    if name == "missing":
        if not value:
            raise InputError(
                f"--operator {name}: say which pixels, missing:MASK.png, or what share of them, "
                "missing:0.8, with --spoil"
            )
        try:
            share = float(value)
        except ValueError:
            unknown = _mask(value, f"--operator {text}", shape, fit)
            return operators.only(~unknown), {"mask": recipes.mask_told(unknown)}
        if not 0 < share < 1:
            raise InputError(f"--operator {text}: a share lies between 0 and 1, 0.8 say")
        if not spoil:
            raise InputError(
                f"--operator {text}: which pixels are missing is not known; give missing:MASK.png, "
                "or the whole picture and --spoil"
            )
        chosen = rng.uniform(seed, "missing", shape[1] * shape[2]).reshape(shape[1:]) >= share
        return operators.only(chosen), {"mask": recipes.mask_told(~chosen)}
    if name.endswith(".py") and value:
        own = _own(Path(name), value)
        return own, {"code": hashlib.sha256(Path(name).read_bytes()).hexdigest()}
    raise InputError(
        f"--operator {text}: is not known; give downsample:4, blur:1.5, grey, missing:MASK.png, "
        "noise, or FILE.py:FUNCTION"
    )


def _own(file: Path, function: str) -> Operator:
    """A function of the user's own file, which is run."""
    given = f"--operator {file}:{function}"
    if not file.is_file():
        raise InputError(f"{given}: there is no file {file}")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise InputError(f"{given}: {file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's own code may raise
        raise InputError(f"{given}: {type(error).__name__} in the file: {error}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise InputError(f"{given}: there is no function of that name in the file")

    def operator(x: Tensor) -> Tensor:
        try:
            seen: Tensor = found(x)
        except (Exception, SystemExit) as error:
            raise InputError(f"{given}: {type(error).__name__}: {error}") from error
        return seen

    return operator


def _write(
    run: Path,
    how: How,
    model: Model,
    wish: Wish,
    moments: Iterator[Progress],
    about: dict[str, Any],
    *,
    film: bool,
    first: list[Tensor] | None = None,
    whole: Tensor | None = None,
    seen: bool = True,
    strip: bool = False,
    inverted: list[Any] | None = None,
) -> int:
    """Draws, writes the results with their recipe, and says where they are.

    Nothing is written before the first of them are done, and these as soon as they are. `first`
    stands before the results in the grid, the last of it what was `seen`, where that is a picture;
    to `whole` the results are compared.
    """
    import numpy as np
    from rich.console import Console

    from unraze import drawing, pictures
    from unraze.cli.drawing import clear, own_folder, require_place, saying_where, writing
    from unraze.cli.show import follow_drawing
    from unraze.edit import recipes
    from unraze.hardware import memory_told
    from unraze.ranks import ALONE

    require_place(how.out or run, f"--out {how.out or run}")
    recipe = recipes.recipe_of(model, wish, about, raw=how.raw)
    drawn: list[np.ndarray] = []
    states: list[np.ndarray] = []
    times: list[float] = []
    batches = -(-wish.count // wish.batch)
    with memory_told("give a smaller --batch"), ExitStack() as stack:
        done = stack.enter_context(saying_where(wish.count))
        folder = how.out or stack.enter_context(own_folder(run, ALONE, "edits"))
        for moment in follow_drawing(moments, Console()):
            is_filmed = film and not strip and moment.numbers.start == 0
            if is_filmed and moment.done in drawing.kept_states(moment.total // batches):
                states.append(recipes.pixels_of(model, moment.x[: drawing.FILM_AT_MOST]))
                times.append(moment.t)
            if not moment.finished:
                continue
            drawn.append(recipes.pixels_of(model, moment.x))
            with writing(folder):
                if not done:
                    clear(folder, range(wish.count), *OTHERS)
                for number, picture in zip(moment.numbers, pictures.to_pil(drawn[-1]), strict=True):
                    name, one = "again", recipe
                    if inverted is None:
                        name = f"{number:05d}"
                        one = recipes.of_result(recipe, moment.numbers, number)
                    pictures.write_png(picture, folder / f"{name}.png", one)
                done[folder] += len(moment.numbers)
        results = np.concatenate(drawn)
        given = [] if first is None else [_like(model, one) for one in first]
        with writing(folder):
            if inverted:
                found = inverted[0]
                np.save(folder / "noise.npy", found.noise[0].cpu().numpy())
                print(f"made again, it differs by {found.error:.4f} (root mean square, of [-1, 1])")
            if first and seen and about["edit"] in ("inpaint", "restore"):
                name = "given" if about["edit"] == "inpaint" else "seen"
                known = pictures.to_pil(first[-1][None].clamp(-1, 1))[0]
                pictures.write_png(known, folder / f"{name}.png", recipe)
            name = "strip" if strip else "grid"
            whole_picture = recipes.together(given, results, strip=strip)
            pictures.write_png(whole_picture, folder / f"{name}.png", recipe)
            if film and strip:
                frames = recipes.there_and_back(results)
                pictures.write_film(frames, folder / "film.gif", recipe, hold_last_ms=80)
            elif film:
                pictures.write_film(
                    pictures.film_frames(states, times), folder / "film.gif", recipe
                )
    if whole is not None:
        print(_nearness(results, whole, given[-1] if given and seen else None))
    print(folder)
    return 0


def _like(model: Model, image: Tensor) -> np.ndarray:
    """An image as bytes (1, H, W, C) of the run's shape, to be seen beside the others."""
    import numpy as np
    from PIL import Image

    from unraze import pictures

    channels, height, width = model.shape
    picture = pictures.to_pil(image[None].clamp(-1, 1))[0]
    picture = picture.convert("L" if channels == 1 else "RGB")
    picture = picture.resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(picture).reshape(1, height, width, channels)


def _nearness(results: np.ndarray, whole: Tensor, seen: np.ndarray | None) -> str:
    """How near results, and what was seen, come to the whole picture, in decibels."""
    import numpy as np

    from unraze import pictures

    true = pictures.pixels_of(whole[None]).astype(np.float64)

    def psnr(images: np.ndarray) -> float:
        squares = np.square(images - true).mean(axis=(1, 2, 3))
        return float((20 * np.log10(255) - 10 * np.log10(np.maximum(squares, 1e-9))).mean())

    one = f"PSNR of the results to the whole picture: {psnr(results):.1f} dB"
    mean = f", of their mean {psnr(results.mean(axis=0, keepdims=True)):.1f}" * (len(results) > 1)
    return one + mean + ("" if seen is None else f", of what was seen {psnr(seen):.1f}")
