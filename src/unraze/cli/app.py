"""The application that the commands are added to, its groups of options, and what they share."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import cleandoc
from typing import Annotated, Any, Literal, get_args, get_origin

from cyclopts import App, Group, Parameter, Token, convert
from cyclopts.exceptions import CoercionError

from unraze import __version__
from unraze.errors import InputError

__all__ = [
    "BUDGET",
    "DATA",
    "EXCHANGE",
    "EXPLAIN",
    "INTERRUPTED",
    "LOOK",
    "MACHINE",
    "MAKE",
    "NETWORK",
    "OUTPUT",
    "SAMPLING",
    "SCHEDULE_KINDS",
    "Checkpoint",
    "Device",
    "Guidance",
    "Raw",
    "Sampler",
    "SamplerName",
    "ScheduleKind",
    "Seed",
    "Settings",
    "Spacing",
    "SpacingName",
    "Steps",
    "Threads",
    "app",
    "option_of",
    "parse_size",
    "told_as_options",
    "unwrap",
]

MAKE = Group("Train and sample", sort_key=1)
EXPLAIN = Group("See what happens", sort_key=2)
LOOK = Group("Look around", sort_key=3)
EXCHANGE = Group("From and to other programs", sort_key=4)

BUDGET = Group("Budget (one of them)", sort_key=1)
DATA = Group("Data", sort_key=2)
NETWORK = Group("Network and training", sort_key=3)
SAMPLING = Group("Sampling", sort_key=4)
MACHINE = Group("Machine", sort_key=5)
OUTPUT = Group("Output", sort_key=6)

ScheduleKind = Literal["linear", "quadratic", "sigmoid", "cosine", "angle"]
"""Those of `unraze.schedule.SCHEDULES`, spelt again: `--help` is to answer without pydantic."""
SCHEDULE_KINDS: tuple[ScheduleKind, ...] = get_args(ScheduleKind)

SamplerName = Literal[
    "greedy",
    "random",
    "ddim",
    "heun",
    "dpmpp_2m",
    "dpmpp_3m",
    "dpmpp_2m_sde",
    "dpmpp_3m_sde",
    "unipc",
    "ipndm",
    "deis",
    "adams",
    "restart",
    "consistency",
]
SpacingName = Literal["time", "angle", "log_snr", "karras"]
"""As in `unraze.config.SampleConfig`: `--help` is to answer without pydantic."""

INTERRUPTED = 130
"""The exit status of what Ctrl-C ended."""

Device = Annotated[
    str | None, Parameter(group=MACHINE, help="cpu, cuda, cuda:1, mps …; cpu if absent.")
]
Threads = Annotated[
    int | None, Parameter(group=MACHINE, help="Threads of the processor; all cores if absent.")
]
Seed = Annotated[int, Parameter(group=SAMPLING, help="The same seed gives the same result.")]
Steps = Annotated[
    int | None,
    Parameter(
        group=SAMPLING,
        help="Network calls, 1 to T; guided ones are double, but where `unraze tune` searched for "
        "so many; the run's own if absent.",
    ),
]
Sampler = Annotated[
    SamplerName | None,
    Parameter(
        group=SAMPLING,
        help="How x_{t-1} follows from x_t, consistency in distilled runs alone; the run's own if "
        "absent.",
    ),
]
Spacing = Annotated[
    SpacingName | None,
    Parameter(
        group=SAMPLING,
        help="Kept steps are even in t, in angle, in log-SNR, or as Karras et al. have them; the "
        "run's own if absent.",
    ),
]
Guidance = Annotated[
    float | None,
    Parameter(
        group=SAMPLING, help="How far towards the class, 1 is none; the run's own if absent."
    ),
]
Raw = Annotated[
    bool,
    Parameter(
        group=SAMPLING, negative="", show_default=False, help="The weights, not their average."
    ),
]
Settings = Annotated[
    tuple[str, ...],
    Parameter(
        name="--set",
        group=NETWORK,
        negative="",
        show_default=False,
        help="KEY=VALUE for any other key, as train.ema=0.999; may be repeated.",
    ),
]
Checkpoint = Annotated[
    int | Literal["best"] | None,
    Parameter(group=SAMPLING, help="A training step, or best; the newest if absent."),
]


def _converted(kind: Any, tokens: Sequence[Token]) -> Any:
    """What the words of an option mean; a fraction where a whole number belongs is not rounded."""
    parts = {kind, *get_args(kind)}
    given = f'"{" ".join(token.value for token in tokens)}"'
    if len(tokens) > 1:  # else the option is named by cyclopts
        given = f"{tokens[0].keyword} {given}"
    what = "a whole number" if int in parts else "a number"
    words = [word for part in parts if get_origin(part) is Literal for word in get_args(part)]
    said = f"is neither {what} nor {' nor '.join(map(str, words))}" if words else f"is not {what}"
    if int in parts and "." in given:
        raise ValueError(f"{given} {said}")
    try:
        return convert(kind, tokens)
    except CoercionError as error:
        if parts.isdisjoint((int, float)):
            raise
        raise ValueError(f"{given} {said}") from error


app = App(
    name="unraze",
    default_parameter=Parameter(converter=_converted),
    help="Raze an image to noise; learn to raise it back: denoising diffusion models.",
    help_epilogue=(
        "Examples:\n\n"
        "  unraze train fashion-mnist\n"
        "  unraze train FOLDER --size 32 --minutes 10\n"
        "  unraze resume runs/00000-fashion-mnist\n"
        "  unraze sample runs/00000-fashion-mnist -n 64 --film\n"
        "  unraze eval runs/00000-fashion-mnist\n\n"
        "`unraze COMMAND --help` tells all options of one command, with examples.\n\n"
        "Exit status: 0 done, 1 a failure, 2 a value that will not do, 3 training\n"
        "diverged, 130 interrupted."
    ),
    help_format="plaintext",
    version=__version__,
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)


def unwrap(group: App) -> None:
    """Lets the paragraphs of the commands' help be as wide as the terminal, not as the source."""
    for name in group:
        command = group[name]
        if name.startswith("-") or not command.help:
            continue
        command.help = re.sub(r"(?<=\S)\n(?=\S)", " ", cleandoc(command.help))
        if command.default_command is None:
            unwrap(command)


def parse_size(text: str | None, option: str = "--size") -> tuple[int, int] | None:
    """(height, width) from "32" or "32x48"; None from None. Raises `InputError`."""
    if text is None:
        return None
    from unraze.data.shape import size_in

    return size_in(text, option)


def option_of(key: str) -> str:
    """The option that sets a key of the configuration: "--skip-bad" of "data.skip_bad"."""
    return f"--{key.split('.')[-1].replace('_', '-')}"


@contextmanager
def told_as_options(names: Mapping[str, str]) -> Iterator[None]:
    """Lets errors name the options that were given, not the keys that these set.

    With {"train.lr": "--lr"}, "option: train.lr = -1.0: …" becomes "--lr = -1.0: …". Of a list, as
    "train.betas.1 = 2", the option is named, not the place in it. A whole key is found further
    on as well: "network: a step of train.batch = 9 images …".
    """
    try:
        yield
    except InputError as error:
        found = re.match(
            r"(?:option: |--set: )?(?:([a-z]+): )?([a-z_.]+?)(?:\.[0-9])?(?= = )", str(error)
        )
        key = ".".join(part for part in found.groups() if part) if found else ""
        told = str(error)
        if found is not None and key in names:
            told = names[key] + told[found.end() :]
        told = re.sub(r"\b[a-z]+\.[a-z_]+(?= = )", lambda m: names.get(m[0], m[0]), told)
        if told == str(error):
            raise
        raise type(error)(told) from error
