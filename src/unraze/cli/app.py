"""The application that the commands are added to, its groups of options, and what they share."""

import re
from typing import Annotated, Literal

from cyclopts import App, Group, Parameter

from unraze import __version__
from unraze.errors import InputError

__all__ = [
    "BUDGET",
    "DATA",
    "EXPLAIN",
    "LOOK",
    "MACHINE",
    "MAKE",
    "NETWORK",
    "OUTPUT",
    "SAMPLING",
    "SCHEDULE_KINDS",
    "Device",
    "ScheduleKind",
    "Seed",
    "Threads",
    "app",
    "parse_size",
]

MAKE = Group("Train and sample", sort_key=1)
EXPLAIN = Group("See what happens", sort_key=2)
LOOK = Group("Look around", sort_key=3)

BUDGET = Group("Budget (one of them)", sort_key=1)
DATA = Group("Data", sort_key=2)
NETWORK = Group("Network and training", sort_key=3)
SAMPLING = Group("Sampling", sort_key=4)
MACHINE = Group("Machine", sort_key=5)
OUTPUT = Group("Output", sort_key=6)

ScheduleKind = Literal["linear", "quadratic", "sigmoid", "cosine", "angle"]
SCHEDULE_KINDS: tuple[ScheduleKind, ...] = ("linear", "quadratic", "sigmoid", "cosine", "angle")

Device = Annotated[
    str | None, Parameter(group=MACHINE, help="cpu, cuda, cuda:1, mps …; cpu where absent.")
]
Threads = Annotated[
    int | None, Parameter(group=MACHINE, help="Threads of the processor; all cores where absent.")
]
Seed = Annotated[int, Parameter(group=SAMPLING, help="The same seed gives the same result.")]

app = App(
    name="unraze",
    help="Raze an image to noise; learn to raise it back: denoising diffusion models.",
    help_epilogue=(
        "Examples:\n\n"
        "  unraze train fashion-mnist\n"
        "  unraze train FOLDER --size 32 --minutes 10\n"
        "  unraze sample runs/00000-fashion-mnist -n 64 --film\n"
        "  unraze resume runs/00000-fashion-mnist\n\n"
        "`unraze COMMAND --help` tells all options of one command."
    ),
    help_format="plaintext",
    version=__version__,
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)


def parse_size(text: str | None, option: str = "--size") -> tuple[int, int] | None:
    """(height, width) from "32" or "32x48"; None from None. Raises `InputError`."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)(?:[x×](\d+))?", text.strip())
    if found is None or int(found[1]) < 1 or int(found[2] or found[1]) < 1:
        raise InputError(
            f"{option} {text}: give one number for a square (32), or height x width (32x48)"
        )
    return int(found[1]), int(found[2] or found[1])
