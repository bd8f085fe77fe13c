"""The commands that only look: `data`, `config`, `runs`, `doctor`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from unraze.cli.app import DATA, LOOK, OUTPUT, Device, app, parse_size, told_as_options
from unraze.errors import InputError

if TYPE_CHECKING:
    from unraze.config import DataConfig

__all__ = ["check", "config", "doctor", "get", "require_runs", "runs", "stats"]

data = App(
    name="data",
    help="Look at images before training on them.",
    help_epilogue=(
        "Examples:\n\n  unraze data check FOLDER\n  unraze data stats digits --out sheet.png\n"
        "  unraze data get fashion-mnist"
    ),
    group=LOOK,
    sort_key=1,
)
app.command(data)

Source = Annotated[
    str,
    Parameter(
        help="A folder (sub-folders are classes), zip, tar shards, .npy/.npz, IDX or CIFAR "
        "file, fashion-mnist or digits, or hf:NAME, a data set of the datasets library."
    ),
]
Size = Annotated[
    str | None,
    Parameter(group=DATA, help="32, or height x width: 32x48; the images' own if absent."),
]
Channels = Annotated[
    Literal[1, 3] | None,
    Parameter(group=DATA, help="1 grey, 3 colour; the images' own if absent."),
]
Fit = Annotated[
    Literal["crop", "pad", "stretch"],
    Parameter(group=DATA, help="How an image of another aspect is brought to the size."),
]
Background = Annotated[
    str, Parameter(group=DATA, help="The colour that transparency is flattened onto.")
]
SkipBad = Annotated[
    bool,
    Parameter(group=DATA, negative="", show_default=False, help="Leave unreadable files out."),
]
HeldOut = Annotated[
    float,
    Parameter(group=DATA, help="Share of the images that training leaves out, to judge by."),
]

RUNS = Path("runs")
HELD_OUT = 0.1
"""As in the presets."""
NAMED_AT_MOST = 20
OPTIONS = {"background": "--background", "held_out": "--held-out"}


@data.command(usage="Usage: unraze data check SOURCE [OPTIONS]")
def check(
    source: Source,
    /,
    *,
    size: Size = None,
    channels: Channels = None,
    fit: Fit = "crop",
    background: Background = "white",
    skip_bad: SkipBad = False,
    held_out: HeldOut = HELD_OUT,
    all_: Annotated[
        bool,
        Parameter(
            name="--all",
            negative="",
            show_default=False,
            group=OUTPUT,
            help="Name every image concerned, not the first 20 of each kind.",
        ),
    ] = False,
) -> int:
    """Find what would spoil a training: unreadable files, duplicates, odd sizes, rare classes.

    It tells which images are held out, too. Exit status 1 where something would stop a run, else 0.
    Nothing is changed.
    """
    from rich.console import Console

    from unraze import data as images
    from unraze.cli.show import follow_reading

    progress = follow_reading(Console(stderr=True))
    with told_as_options(OPTIONS):
        wanted = _wanted(
            source,
            size=size,
            channels=channels,
            fit=fit,
            background=background,
            skip_bad=skip_bad,
            held_out=held_out,
        )
        findings = images.check(wanted, progress=progress)
    for each in findings:
        print(f"{each.severity}: {each.what}; {each.remedy}")
        shown = each.names if all_ else each.names[:NAMED_AT_MOST]
        for name in shown:
            print(f"  {name}")
        if len(shown) < len(each.names):
            print(f"  and {len(each.names) - len(shown)} more: --all names them")
    if all(each.kind == "held out" for each in findings):
        print(f"{source}: nothing wrong with it")
    return 1 if any(each.severity == "error" for each in findings) else 0


@data.command(usage="Usage: unraze data stats SOURCE [OPTIONS]")
def stats(
    source: Source,
    /,
    *,
    size: Size = None,
    channels: Channels = None,
    fit: Fit = "crop",
    background: Background = "white",
    skip_bad: SkipBad = False,
    held_out: HeldOut = HELD_OUT,
    out: Annotated[
        Path, Parameter(group=OUTPUT, help="The contact sheet, a PNG; an older one is replaced.")
    ] = Path("contact-sheet.png"),
) -> int:
    """Tell size, channels, mean and spread, and lay out a contact sheet: of those trained on.

    Mean and spread are of the values that the network sees, from -1 (black) to 1 (white).
    """
    if out.suffix != ".png":
        raise InputError(f"--out {out}: give a name that ends in .png")
    from rich.console import Console

    from unraze import data as images, pictures
    from unraze.cli import show
    from unraze.cli.drawing import require_file_place

    require_file_place(out, f"--out {out}")
    progress = show.follow_reading(Console(stderr=True))
    with told_as_options(OPTIONS):
        wanted = _wanted(
            source,
            size=size,
            channels=channels,
            fit=fit,
            background=background,
            skip_bad=skip_bad,
            held_out=held_out,
        )
        loaded = images.load(wanted, progress=progress)
    told = images.stats(loaded)
    print(f"images     {told.count}")
    print(f"held out   {show.held_out(loaded)}")
    print(f"size       {told.size[0]} x {told.size[1]}")
    print(f"channels   {told.channels} ({'grey' if told.channels == 1 else 'RGB'})")
    print(f"mean       {'  '.join(f'{m:.4f}' for m in told.mean)}")
    print(f"spread     {'  '.join(f'{s:.4f}' for s in told.spread)}")
    print(f"sigma_data {told.sigma_data:.4f}")
    for name, count in told.classes.items():
        print(f"class      {name}: {count}{'' if count else ', so none is trained on'}")
    if told.skipped:
        print(f"left out   {told.skipped} unreadable")
    pictures.write_png(
        pictures.to_pil(images.contact_sheet(loaded)[None])[0],
        out,
        {"kind": "contact sheet", "source": loaded.source},
    )
    print(out)
    return 0


@data.command
def get(name: Annotated[str, Parameter(help="A known name: fashion-mnist or digits.")], /) -> int:
    """Have a known data set ready: from the cache, the system's data sets, or a download.

    Where it lies is the last line printed.
    """
    from rich.console import Console

    from unraze.cli.show import follow_reading
    from unraze.data import get as got

    print(got(name, progress=follow_reading(Console(stderr=True))))
    return 0


@app.command(
    group=LOOK,
    sort_key=2,
    usage="Usage: unraze config [PRESET] [OPTIONS]",
    help_epilogue=(
        "Examples:\n\n  unraze config --list\n  unraze config literal\n"
        "  unraze config fast --full > mine.toml"
    ),
)
def config(
    preset: Annotated[str | None, Parameter(help="Which preset; fast if absent.")] = None,
    /,
    *,
    full: Annotated[
        bool,
        Parameter(
            negative="", show_default=False, help="Every key with its value, not the preset's text."
        ),
    ] = False,
    list_: Annotated[
        bool, Parameter(name="--list", negative="", show_default=False, help="Name the presets.")
    ] = False,
) -> int:
    """Print a preset as the TOML that `unraze train --config` reads."""
    from unraze import config as configs

    if list_ and (preset is not None or full):
        raise InputError("--list: names all presets; leave the rest out")
    if list_:
        for name in configs.preset_names():
            print(f"{name:20} {configs.preset(name).about}")
        return 0
    wanted = "fast" if preset is None else preset
    if not full:
        print(configs.preset_text(wanted), end="")
        return 0
    print(configs.to_toml(configs.preset(wanted)), end="")
    absent = ", ".join(configs.absent_keys(configs.preset(wanted)))
    print(f"\n# without a value here, but to be given one: {absent}")
    return 0


@app.command(
    group=LOOK,
    sort_key=3,
    usage="Usage: unraze runs [FOLDER]",
    help_epilogue="Examples:\n\n  unraze runs\n  unraze runs elsewhere/runs",
)
def runs(folder: Annotated[Path, Parameter(help="Where the runs are.")] = RUNS, /) -> int:
    """List the runs of a folder: state, step, loss, preset and data."""
    from rich.console import Console
    from rich.table import Table

    from unraze import run as run_folders

    if folder == RUNS and not os.path.exists(folder):
        print("no runs yet; `unraze train DATA` makes one")
        return 0
    require_runs(folder)
    found = run_folders.summaries(folder)
    if not found:
        print(f"{folder}: no runs in it; `unraze train DATA` makes one")
        return 0
    table = Table("run", "state", "step", "loss", "preset", "data")
    for each in found:
        loss = "" if each.loss != each.loss else f"{each.loss:.4f}"
        if abs(each.loss) >= 1000:
            loss = f"{each.loss:.1e}"
        of = f"{each.step}/{each.steps}" if each.steps else str(each.step or "")
        table.add_row(str(each.path), each.state, of, loss, each.preset, each.source)
    Console(soft_wrap=True).print(table)
    return 0


@app.command(group=LOOK, sort_key=4, help_epilogue="Example: unraze doctor")
def doctor(*, device: Device = None) -> int:
    """Tell versions, device and threads, and measure how fast this machine computes."""
    from unraze import doctor as examined
    from unraze.hardware import has_bfloat16, require_device

    where = "cpu" if device is None else device
    with told_as_options({"device": "--device"}):
        require_device(where)
    for name, value in examined.versions().items():
        print(f"{name:12} {value}")
    hardware = has_bfloat16(where.split(":")[0])
    print(f"{'bfloat16':12} {'in hardware' if hardware else 'not in hardware: slower, not used'}")
    speeds = examined.measure(where)
    print(f"\n{'GFLOP/s':12} {'matrices':>10} {'3x3 conv':>10}")
    for speed in speeds:
        print(f"{speed.dtype:12} {speed.matmul:10.0f} {speed.conv:10.0f}")
    best = max(s.conv for s in speeds if s.dtype == "float32" or hardware)
    work = examined.flops_an_image() / 1e9
    print(
        f"\nTraining the default network on one 28 x 28 image takes {work:.2f} GFLOP: at the speed "
        f"of its\nconvolutions, {best / work:.0f} images a second. What is reached is less, for "
        "attention, norms and the\noptimiser are bound by memory, not by arithmetic."
    )
    return 0


def require_runs(folder: Path) -> None:
    """Raises `InputError` where what should hold runs is a file, or a run; it need not be there."""
    if os.path.isfile(folder / "config.toml"):
        above = (folder if folder.name not in ("", "..") else folder.resolve()).parent
        raise InputError(f"{folder}: is a run itself; give the folder that holds it, {above}")
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise InputError(f"{folder}: is not a folder; give the one that holds the runs")


def _wanted(source: str, *, size: str | None, **options: Any) -> DataConfig:
    from pydantic import ValidationError

    from unraze.config import DataConfig, explained

    try:
        return DataConfig(source=source, size=parse_size(size), **options)
    except ValidationError as error:
        raise InputError(explained(error)) from error
