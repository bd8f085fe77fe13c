"""`unraze destroy` and `unraze schedule`: the forward process, and what drives it."""

from __future__ import annotations

import re
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from unraze.cli.app import (
    EXPLAIN,
    OUTPUT,
    SAMPLING,
    SCHEDULE_KINDS,
    ScheduleKind,
    Seed,
    app,
    parse_size,
    told_as_options,
)
from unraze.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor

    from unraze.evaluate.stage import Stage
    from unraze.schedule import Schedule

__all__ = ["destroy", "schedule"]

LARGEST_SIDE = 256
LARGEST_FILM = 2**28
"""The most pixels, over all its frames, that a film may have: it is made in memory."""
STRIP = 9
"""How many states the strip shows, the picture and the noise included."""
DRAWN = re.compile(r"strip\.png|film\.gif")

ScheduleOption = Annotated[ScheduleKind, Parameter(group=SAMPLING, help="Which ᾱ_t.")]


@app.command(
    group=EXPLAIN,
    sort_key=4,
    usage="Usage: unraze destroy IMAGE [OPTIONS]",
    help_epilogue="Example: unraze destroy photo.jpg --size 128 --schedule cosine",
)
def destroy(
    image: Annotated[Path, Parameter(help="The picture.")],
    /,
    *,
    schedule: ScheduleOption = "linear",
    steps: Annotated[int, Parameter(group=SAMPLING, help="T, the number of steps.")] = 1000,
    seed: Seed = 0,
    size: Annotated[
        str | None,
        Parameter(group=SAMPLING, help="Cut to 128, or height x width; at most 256 if absent."),
    ] = None,
    frames: Annotated[int, Parameter(group=OUTPUT, help="Pictures in the film.")] = 60,
    out: Annotated[
        Path | None, Parameter(group=OUTPUT, help="Folder; IMAGE-destroyed here if absent.")
    ] = None,
) -> int:
    """Film a picture's way into noise, x_t = α_t x_{t-1} + β_t ε_t, step by step.

    Writes film.gif and strip.png; their folder is the last line printed.
    """
    if seed < 0:
        raise InputError(f"--seed {seed}: give 0 or more")
    if not 2 <= frames <= 1000:
        raise InputError(f"--frames {frames}: give 2 to 1000")
    cut = parse_size(size)
    if cut is not None and frames * cut[0] * cut[1] > LARGEST_FILM:
        raise InputError(
            f"--size {size}, --frames {frames}: a film of more than "
            f"{LARGEST_FILM // 10**6} million pixels; give fewer frames or a smaller size"
        )
    folder = out or Path(f"{image.stem}-destroyed")
    from unraze.cli.drawing import require_ours, require_place, writing

    require_ours(folder, DRAWN)
    require_place(folder, f"--out {folder}")

    import numpy as np
    from rich.console import Console

    from unraze import __version__, pictures
    from unraze.cli.show import follow_stages
    from unraze.data import to_float
    from unraze.evaluate.stage import Stage
    from unraze.schedule import SCHEDULES

    with told_as_options({"steps": "--steps"}):
        walk = SCHEDULES[schedule](steps)
    x0 = to_float(_opened(image, cut)[None])
    filmed = {round(k * steps / (frames - 1)) for k in range(frames)}
    recipe = {
        "unraze": __version__,
        "of": image.name,
        "schedule": schedule,
        "steps": steps,
        "seed": seed,
    }

    def stages() -> Generator[Stage, None, None]:
        film, strip = yield from _destroyed(walk, x0, seed, filmed)
        yield Stage("writing", 0, 1)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            pictures.write_film(film, folder / "film.gif", recipe | {"kind": "destroy film"})
            row = pictures.grid(np.concatenate(strip), columns=len(strip))
            pictures.write_png(row, folder / "strip.png", recipe | {"kind": "destroy strip"})

    follow_stages(stages(), Console())
    print(folder)
    return 0


@app.command(
    group=EXPLAIN,
    sort_key=5,
    usage="Usage: unraze schedule [KINDS] [OPTIONS]",
    help_epilogue="Example: unraze schedule linear cosine --steps 300 --out schedules.png",
)
def schedule(
    kinds: Annotated[
        tuple[ScheduleKind, ...],
        Parameter(show_default=False, help="Which; all of them if absent."),
    ] = (),
    /,
    *,
    steps: Annotated[int, Parameter(group=SAMPLING, help="T, the number of steps.")] = 1000,
    unscaled: Annotated[
        bool,
        Parameter(
            group=SAMPLING,
            negative="",
            show_default=False,
            help="The formula at T points, not stretched.",
        ),
    ] = False,
    out: Annotated[
        Path, Parameter(group=OUTPUT, help="The PNG file; an older one is replaced.")
    ] = Path("schedule.png"),
) -> int:
    """Draw ᾱ_t, β̄_t, β_t and log-SNR of schedules, and tell their landmarks."""
    if out.suffix != ".png":
        raise InputError(f"--out {out}: give a name that ends in .png")
    from rich.console import Console
    from rich.table import Table

    from unraze import plots
    from unraze.cli.drawing import require_file_place, writing
    from unraze.schedule import MAX_TERMINAL_SIGNAL, SCHEDULES

    require_file_place(out, f"--out {out}")
    with told_as_options({"steps": "--steps"}):
        chosen: dict[str, Schedule] = {
            kind: SCHEDULES[kind](steps, rescaled=not unscaled) for kind in kinds or SCHEDULE_KINDS
        }
    table = Table("schedule", "T", "β_1", "β_T", "ᾱ = 0.5 at t =", "ᾱ_T", "")
    for kind, each in chosen.items():
        half = int((each.alpha_bar >= 0.5).sum()) - 1
        left = float(each.alpha_bar[-1])
        table.add_row(
            kind,
            str(each.steps),
            f"{float(each.beta[1]):.4f}",
            f"{float(each.beta[-1]):.4f}",
            str(half),
            f"{left:.4g}",
            "more than 0.01" if left > MAX_TERMINAL_SIGNAL * (1 + 1e-9) else "",
        )
    Console().print(table)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        plots.save(plots.schedule_figure(chosen), out, {"kind": "schedule", "steps": str(steps)})
    print(out)
    return 0


def _destroyed(
    walk: Schedule, x: Tensor, seed: int, filmed: set[int]
) -> Generator[Stage, None, tuple[list[Image.Image], list[np.ndarray]]]:
    """The frames of the film, at the times `filmed`, and the pictures of the strip."""
    from unraze import pictures, rng
    from unraze.evaluate.stage import Stage
    from unraze.process import destroy_step

    steps, film, strip = walk.steps, [], []
    stripped = {round(k * steps / (STRIP - 1)) for k in range(STRIP)}
    for t in range(steps + 1):
        if t > 0:
            x = destroy_step(walk, x, t, rng.normal(seed, "destroy", [0], t, x.shape[1:]))
        if t in filmed:
            picture = pictures.grid(pictures.pixels_of(x))
            film.append(pictures.captioned(picture, f"t = {t} of {steps}", share=t / steps))
        if t in stripped:
            strip.append(pictures.pixels_of(x))
        yield Stage("destroying", t, steps)
    return film, strip


def _opened(path: Path, size: tuple[int, int] | None) -> np.ndarray:
    """A picture (C, H, W) uint8, on white; no side above 256 where no size is given."""
    from unraze.cli.opening import opened
    from unraze.data.shape import fitted, is_grey

    white = (255, 255, 255)
    with opened(path) as picture:
        if size is None:
            scale = min(1.0, LARGEST_SIDE / max(picture.size))
            size = (max(1, round(picture.height * scale)), max(1, round(picture.width * scale)))
        channels = 1 if is_grey(picture, white) else 3
        return fitted(picture, size=size, fit="crop", channels=channels, background=white)
