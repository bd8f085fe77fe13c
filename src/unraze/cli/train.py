"""`unraze train` and `unraze resume`."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from unraze.cli.app import (
    BUDGET,
    DATA,
    INTERRUPTED,
    MACHINE,
    MAKE,
    NETWORK,
    OUTPUT,
    Device,
    Settings,
    Threads,
    app,
    option_of,
    parse_size,
    told_as_options,
)
from unraze.environment import are_several
from unraze.errors import DataError, InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from unraze.config import Config
    from unraze.data import Images
    from unraze.generate import Model
    from unraze.interop.tracking import Name
    from unraze.ranks import Ranks
    from unraze.run import Run
    from unraze.train import Report

__all__ = [
    "Track",
    "follow",
    "read_images",
    "refuse_early",
    "require_trackers",
    "resume",
    "settings_given",
    "spoken_for",
    "train",
]

HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)
"""The signal that a closed terminal sends; not on every system."""
TOGETHER = 2.0
"""Seconds within which a signal that comes to several ranks again is the same one."""
TOLD = "train.classes"
"""What it depends on, of a run that goes on from another, how that is taken over."""

Track = Annotated[
    Literal["tensorboard", "trackio"] | None,
    Parameter(
        group=OUTPUT,
        help="Write the figures and previews for TensorBoard too, into the run's folder, or for "
        "trackio, into its data base on this machine; needs unraze[tensorboard] or "
        "unraze[trackio]. Once begun it goes on, also in `unraze resume`.",
    ),
]


@app.command(
    group=MAKE,
    sort_key=1,
    usage="Usage: unraze train DATA [OPTIONS]",
    help_epilogue=(
        "Examples:\n\n"
        "  unraze train fashion-mnist\n"
        "  unraze train photos/ --size 32x48 --minutes 10 --out runs/photos\n"
        "  unraze train digits --classes --steps 2000 --eval-every 500\n"
        "  unraze train digits --preset literal --set loss.objective=four-variable\n\n"
        "`unraze config PRESET` shows what a preset holds,\n"
        "`unraze config --full` every key that --set takes."
    ),
)
def train(
    data: Annotated[
        str | None,
        Parameter(
            group=DATA,
            help="A folder (sub-folders are classes), zip, tar shards, .npy/.npz, IDX or CIFAR "
            "file, fashion-mnist or digits, or hf:NAME, a data set of the datasets library.",
        ),
    ] = None,
    /,
    *,
    minutes: Annotated[
        float | None,
        Parameter(group=BUDGET, help="Wall-clock minutes; the preset's if no budget is given."),
    ] = None,
    steps: Annotated[int | None, Parameter(group=BUDGET, help="Optimiser steps.")] = None,
    epochs: Annotated[float | None, Parameter(group=BUDGET, help="Passes over the data.")] = None,
    size: Annotated[
        str | None,
        Parameter(group=DATA, help="32, or height x width: 32x48; the images' own if absent."),
    ] = None,
    channels: Annotated[
        Literal[1, 3] | None,
        Parameter(group=DATA, help="1 grey, 3 colour; the images' own if absent."),
    ] = None,
    fit: Annotated[
        Literal["crop", "pad", "stretch"] | None,
        Parameter(
            group=DATA,
            help="How an image of another aspect is brought to the size; crop if absent.",
        ),
    ] = None,
    background: Annotated[
        str | None,
        Parameter(group=DATA, help="What transparency is flattened onto; white if absent."),
    ] = None,
    flip: Annotated[
        bool | None,
        Parameter(
            group=DATA,
            help="Mirror half of the images (symmetric data only); samples show it; no if absent.",
        ),
    ] = None,
    augment: Annotated[
        Literal["auto"] | float | None,
        Parameter(
            group=DATA,
            help="Chance from 0 to 1 of each of six changes of an image (mirrored, turned, scaled "
            "…), which samples do not show; for many passes over few images, 0.12 say; auto: that, "
            "where fewer than 10,000 are trained on; as the preset has it if absent.",
        ),
    ] = None,
    skip_bad: Annotated[
        bool | None,
        Parameter(
            group=DATA,
            negative="",
            show_default=False,
            help="Leave unreadable files out and count them.",
        ),
    ] = None,
    held_out: Annotated[
        float | None,
        Parameter(
            group=DATA,
            help="Share of the images never trained on, to judge by, 0 to 0.5; 0.1 if absent. A "
            "source with a test part of its own keeps that instead.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        Parameter(
            group=NETWORK, help="What to begin with, see `unraze config --list`; fast if absent."
        ),
    ] = None,
    config: Annotated[
        Path | None, Parameter(group=NETWORK, help="A TOML file, laid over the preset it names.")
    ] = None,
    classes: Annotated[
        bool | None, Parameter(group=NETWORK, help="Condition on the class labels; no if absent.")
    ] = None,
    clusters: Annotated[
        int | None,
        Parameter(
            group=NETWORK,
            help="Without --classes: condition on so many clusters of alike images, which are "
            "found first, at most one for each 100 images; the preset's if absent, 0 for none.",
        ),
    ] = None,
    batch: Annotated[
        int | None, Parameter(group=NETWORK, help="Images a step; the preset's if absent.")
    ] = None,
    lr: Annotated[
        float | None, Parameter(group=NETWORK, help="Learning rate; the preset's if absent.")
    ] = None,
    seed: Annotated[
        int | None, Parameter(group=NETWORK, help="The same seed gives the same run; 0 if absent.")
    ] = None,
    eval_every: Annotated[
        int | None,
        Parameter(
            group=NETWORK,
            help="Evaluate on held-out images every so many steps, and keep the best; never if "
            "absent.",
        ),
    ] = None,
    from_: Annotated[
        Path | None,
        Parameter(
            name="--from",
            group=NETWORK,
            help="Go on from the weights of a run: its network, schedule, loss and sampler, its "
            "size, channels and clusters where none are given, the preset's training at a tenth "
            "of its learning rate.",
        ),
    ] = None,
    allow_signal: Annotated[
        bool | None,
        Parameter(
            group=NETWORK,
            negative="",
            show_default=False,
            help="Accept a schedule that leaves more than ᾱ_T = 0.01 of the picture.",
        ),
    ] = None,
    set_: Settings = (),
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"] | None,
        Parameter(
            group=MACHINE, help="auto, bfloat16 where it is in hardware and faster, if absent."
        ),
    ] = None,
    device: Device = None,
    threads: Threads = None,
    shard: Annotated[
        bool | None,
        Parameter(
            group=MACHINE,
            negative="",
            show_default=False,
            help="Of several processes (torchrun), divide the network over them (FSDP2) in place "
            "of giving each all of it (DDP): for networks that one does not hold.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        Parameter(group=OUTPUT, help="The run's folder; a fresh number under runs/ if absent."),
    ] = None,
    track: Track = None,
) -> int:
    """Train on images; the run's folder is the last line printed.

    Ctrl-C saves and says how to go on; a second one aborts at once.
    """
    budget = {"--minutes": minutes, "--steps": steps, "--epochs": epochs}
    budgets = [name for name, value in budget.items() if value is not None]
    if len(budgets) > 1:
        raise InputError(f"{' and '.join(budgets)}: give one of them")
    if classes and clusters:
        raise InputError(
            f"--classes and --clusters {clusters}: a network is told one of them; give one"
        )
    require_trackers(track)
    changes = {
        "data.source": _source(data),
        "data.size": parse_size(size),
        "data.channels": channels,
        "data.fit": fit,
        "data.background": background,
        "data.flip": flip,
        "data.augment": augment,
        "data.skip_bad": skip_bad,
        "data.held_out": held_out,
        "schedule.allow_signal": allow_signal,
        "train.minutes": minutes,
        "train.steps": steps,
        "train.epochs": epochs,
        "train.classes": classes,
        "train.clusters": clusters,
        "train.batch": batch,
        "train.lr": lr,
        "train.seed": seed,
        "train.dtype": dtype,
        "train.device": device,
        "train.eval_every": eval_every,
        "train.threads": threads,
        "train.shard": shard,
    }
    given = {key: value for key, value in changes.items() if value is not None}
    with told_as_options(_options(given)):
        model = None if from_ is None else _begun_with(from_, config, given, set_)
        wanted = _configuration(preset, config, given, set_, model)
        if not wanted.data.source:
            raise InputError("say what to train on: a folder of images, or fashion-mnist or digits")

    with spoken_for(wanted.train.device) as ranks:
        if wanted.train.shard and ranks.count == 1:
            given_as = "--shard" if shard else "train.shard = true"
            raise InputError(f"{given_as}: there is one process here; start several by torchrun")
        begun = ranks.first(_begun_before, out, ranks)
        if begun is not None:
            return _go_on(begun, track, ranks)
        with told_as_options(_options(given)):
            ranks.first(refuse_early, wanted, out)
            images = read_images(wanted, ranks)
            run = ranks.first(_created, wanted, images, model, out, ranks)
        if clusters and (had := ranks.first(_clusters_of, run)) < clusters:
            print(f"--clusters {clusters}: are {had or 'none'}, each wants 100 images on average")
        return follow(run, images, track=track, ranks=ranks)


@app.command(
    group=MAKE,
    sort_key=2,
    usage="Usage: unraze resume RUN [OPTIONS]",
    help_epilogue="Example: unraze resume runs/00000-fashion-mnist",
)
def resume(
    run: Annotated[Path, Parameter(help="The run's folder.")],
    /,
    *,
    accept_changed_data: Annotated[
        bool,
        Parameter(
            group=DATA,
            negative="",
            show_default=False,
            help="Go on though the images are not those it was trained on; what changed is logged.",
        ),
    ] = False,
    track: Track = None,
) -> int:
    """Go on with a run that was stopped or killed, exactly as if it never had been.

    Its settings are those it began with. The run's folder is the last line printed.
    """
    from unraze import run as runs

    found = runs.find(run)
    with spoken_for(runs.read_config(found).train.device) as ranks:
        # as `train` begins: a machine that is started again may say the one while others say the
        # other, and it is the first rank that knows
        begun = ranks.first(lambda: found)
        if begun is None:
            raise InputError(f"{run}: rank 0 was told to begin another run; start all alike")
        return _go_on(begun, track, ranks, accept_changed_data=accept_changed_data)


def _go_on(
    found: Run, track: Name | None, ranks: Ranks, *, accept_changed_data: bool = False
) -> int:
    """Trains a run that is there from where it is."""
    from unraze import run as runs
    from unraze.data import NAMES
    from unraze.data.reading import IMPORTED, IN_MEMORY
    from unraze.hardware import require_device

    config = ranks.first(runs.read_config, found)
    with told_as_options({"device": f"{found.path / 'config.toml'}: train.device"}):
        require_device(config.train.device)
    require_trackers(track, found)
    try:
        images = read_images(config, ranks)
    except DataError as error:
        source = config.data.source
        if source in NAMES or source.startswith((IMPORTED, IN_MEMORY)) or os.path.exists(source):
            raise
        file = found.path / "config.toml"
        raise DataError(f"{error}; if they were moved, say in {file} where to: source") from error
    return follow(found, images, track=track, ranks=ranks, accept_changed_data=accept_changed_data)


def _begun_before(out: Path | None, ranks: Ranks) -> Run | None:
    """The run that this call of torchrun began before one of its processes failed and all were
    started anew; None where it began none, or was not."""
    from unraze import run as runs
    from unraze.ranks import attempt, launch

    # not every machine's torchrun counts an attempt that began on another; a folder that was named
    # is known by its name, so that it need not be asked
    if not (launch() and (attempt() or out is not None)):
        return None
    return runs.of_launch(launch(ranks.call), ["unraze", *sys.argv[1:]], out=out)


def _created(
    wanted: Config, images: Images, model: Model | None, out: Path | None, ranks: Ranks
) -> Run:
    """The folder of a run that is yet to be trained."""
    from unraze import finetuning, run as runs, train as training
    from unraze.ranks import launch

    how: dict[str, Any] = {"command": ["unraze", *sys.argv[1:]]}
    how |= {"launch": launch(ranks.call)}
    if model is not None:
        return finetuning.create(model, wanted, images, out=out, ranks=ranks, **how)
    config = training.prepare(wanted, images, ranks)
    return runs.create(config, out=out, ranks=ranks.count, **how)


def _clusters_of(run: Run) -> int:
    from unraze import run as runs

    return runs.read_config(run).train.clusters


@contextmanager
def spoken_for(device: str) -> Iterator[Ranks]:
    """The ranks that torchrun started, of which the first one alone prints; one, without it."""
    from unraze.ranks import joined

    with joined(device) as ranks, ExitStack() as silent:
        if not ranks.is_first:
            nowhere = silent.enter_context(open(os.devnull, "w"))
            silent.enter_context(redirect_stdout(nowhere))
        yield ranks


def require_trackers(track: Name | None, run: Run | None = None) -> None:
    """Raises `InputError` where a track is asked for, or a run has one, that cannot be written."""
    if track is None and run is None:
        return  # nor is torch loaded for nothing
    from unraze.interop.tracking import require_tracker, tracks

    if track is not None:
        require_tracker(track, f"--track {track}")
    if run is not None:
        for tracker in tracks(run):
            require_tracker(tracker, f"{run.path}: this run is tracked")


def _begun_with(
    run: Path, file: Path | None, given: Collection[str], settings: tuple[str, ...]
) -> Model:
    """The model to go on from; refuses what would make its weights mean something else."""
    from unraze import generate

    if file is not None:
        raise InputError(f"--config {file} and --from {run}: give one of them, and --set the rest")
    said = {key: option_of(key) for key in given}
    said |= {key: f"--set {key}" for key, _ in map(_setting, settings)}
    for key, option in said.items():
        if key.split(".")[0] in ("network", "schedule", "loss"):
            raise InputError(f"{option}: is that of {run} with --from; leave it out")
    return generate.load(run)


def _options(keys: Iterable[str]) -> dict[str, str]:
    """The option that set each key; some errors name only the last part of it."""
    names = {key: option_of(key) for key in keys}
    last = ("data.background", "train.device")
    return names | {key.split(".")[1]: names[key] for key in last if key in names}


def refuse_early(wanted: Config, out: Path | None) -> None:
    """Raises `InputError` for what need not wait until all images are read."""
    from unraze import run as runs, schedule as schedules, train as training
    from unraze.cli.drawing import require_place
    from unraze.config import updated
    from unraze.data.shape import colour
    from unraze.hardware import require_device

    schedules.from_config(wanted.schedule)
    colour(wanted.data.background)
    require_device(wanted.train.device)
    if wanted.data.size is not None:
        known: dict[str, Any] = {"data.channels": wanted.data.channels or 1}
        if wanted.data.augment == "auto":  # which goes by the images, and weighs next to nothing
            known["data.augment"] = 0.0
        training.require_memory(updated(wanted, known))
    if out is None:
        return
    runs.require_free(out)
    require_place(out, f"--out {out}")


def _source(data: str | None) -> str | None:
    """What is on disk by its full path, so that a run is resumed from any folder."""
    from unraze.data import NAMES

    if data is None or data in NAMES or not os.path.exists(data):
        return data
    return str(Path(data).resolve())


def _configuration(
    preset: str | None,
    file: Path | None,
    options: dict[str, Any],
    settings: tuple[str, ...],
    model: Model | None,
) -> Config:
    """A preset or a file's, or what goes on from a model; with all that is asked for."""
    from unraze import config as configs

    if preset is not None and file is not None:
        raise InputError(f"--preset {preset} and --config {file}: give one of them")
    begun = (
        configs.from_toml(file) if file else configs.preset("fast" if preset is None else preset)
    )
    changes = settings_given(settings, options)
    if "preset" in changes:
        raise InputError(f"--set preset: only names it; give --preset {changes['preset']} instead")
    # what an option of its own sets is named by `told_as_options`, so the rest is of --set
    where = "--set" if changes else "option"
    given = changes | options
    if model is not None:
        from unraze import finetuning

        told = {TOLD: given[TOLD]} if TOLD in given else {}
        begun = finetuning.configuration(configs.updated(begun, told, where=where), model)
    return configs.updated(begun, given, where=where)


def settings_given(texts: Sequence[str], options: Collection[str]) -> dict[str, Any]:
    """What `--set` gives: each key once, and none that an option of its own sets (`options`)."""
    from unraze.config import WRITTEN

    pairs = [_setting(text) for text in texts]
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise InputError(f"--set {key}: is given twice; give one value")
        if key.split(".")[0] in WRITTEN:
            raise InputError(
                f"--set {key}: is written by `unraze train --from` and `unraze distill`, which say "
                "whose weights a run began with; leave it out"
            )
    if twice := sorted(set(keys) & set(options)):
        raise InputError(f"--set {twice[0]}: is given as an option of its own too; give one")
    return dict(pairs)


def _setting(text: str) -> tuple[str, Any]:
    """("train.lr", 1e-3) from "train.lr=1e-3"; a value that is no TOML is taken as a text."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {text}: give KEY=VALUE, as train.lr=1e-3")
    try:
        read = tomllib.loads(f"value = {value}")
    except (ValueError, RecursionError):  # the latter where brackets are without end
        return key.strip(), value.strip()
    return key.strip(), read["value"] if len(read) == 1 else value


def read_images(config: Config, ranks: Ranks) -> Images:
    """The images of a configuration; how many there are is said.

    One rank of each machine reads them first: what it keeps on disk is there for its others.
    """
    from rich.console import Console

    from unraze.cli.show import follow_reading, held_out
    from unraze.data import load
    from unraze.data.found import counted

    show = follow_reading(Console(stderr=True)) if ranks.is_first else None
    images = ranks.in_turn(lambda: load(config.data, split="train", progress=show))
    count, channels, height, width = images.pixels.shape
    held = held_out(images)
    held = "" if held == "none" and not config.data.held_out else f", {held} held out"
    skipped = f", {len(images.skipped)} left out as unreadable" if images.skipped else ""
    print(
        f"{images.source}: {counted(count, 'image')} of {height} x {width}, "
        f"{'grey' if channels == 1 else 'colour'}{held}{skipped}",
        flush=True,
    )
    return images


def follow(
    run: Run,
    images: Images,
    *,
    track: Name | None = None,
    ranks: Ranks,
    accept_changed_data: bool = False,
) -> int:
    """Trains a run to its end or until it is asked to stop, shows how, and says what is next.

    It is tracked where that is asked for, or was before, by the first of the ranks. Where nobody is
    there any more to be shown anything, for the terminal or what read the pipe has gone, it is
    stopped: saved before it ends.
    """
    from rich.console import Console

    from unraze import train as training
    from unraze.cli.show import follow_training
    from unraze.hardware import memory_told
    from unraze.interop.tracking import shown_by, tracked, tracks

    path = shlex.quote(str(run.path))
    smaller = "give a smaller --batch, or --set train.accumulate=PARTS"
    with (
        _asked_to_stop() as asked,
        memory_told(f"its checkpoints are intact: unraze resume {path} goes on; or {smaller}"),
    ):
        reports = training.train(
            run, images, stop=asked.is_set, ranks=ranks, accept_changed_data=accept_changed_data
        )
        trackers = {*tracks(run), *([] if track is None else [track])} if ranks.is_first else set()
        for tracker in sorted(trackers):
            reports = tracked(reports, run, tracker)
        kept = _Kept(reports)
        try:
            last = follow_training(kept, Console())
        except (OSError, SystemExit):  # the latter is rich's, where a pipe has gone
            if kept.ended:  # it was no showing that failed
                raise
            asked.set()
            last = kept.drained()
            _tell_nobody()
    for tracker in tracks(run):
        print(f"its figures: {shown_by(run, tracker)}")
    if last.phase == "stopped":
        print(f"go on with: unraze resume {path}")
    else:
        print(f"pictures of its progress: {run.samples}, loss: {run.path / 'loss.png'}")
        print(f"draw from it with: unraze sample {path} -n 64 --film")
    print(run.path)
    return INTERRUPTED if last.phase == "stopped" else 0


class _Kept:
    """Reports of a training as they go by; remembers the last one, and whether they ended."""

    def __init__(self, reports: Iterator[Report]) -> None:
        self.reports, self.ended = reports, False
        self.last: Report | None = None

    def __iter__(self) -> Iterator[Report]:
        return self

    def __next__(self) -> Report:
        try:
            self.last = next(self.reports)
        except BaseException:  # its end is a StopIteration
            self.ended = True
            raise
        return self.last

    def drained(self) -> Report:
        """The last report, once all have gone by."""
        for _ in self:
            pass
        assert self.last is not None, "training always reports how it ended"
        return self.last


def _tell_nobody() -> None:
    """What is printed from here on goes nowhere, and does not fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # what is left in it has nowhere to go
            stream.flush()
    for number in (1, 2):
        os.dup2(nowhere, number)


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """Is set when SIGINT, SIGTERM or SIGHUP comes (a closed terminal; left alone under nohup).

    The second SIGINT or SIGTERM ends the process; a SIGHUP comes twice by itself, and one of each
    may come from whoever started it. torchrun hands on what came to it to processes that it came to
    as well: of several ranks, what comes again within `TOGETHER` seconds is the same one.
    """

    since = 0.0
    asked, came = threading.Event(), set[int]()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # only the main thread may handle signals
        return

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal since
        if number in came and are_several() and time.monotonic() - since < TOGETHER:
            return
        since = time.monotonic()
        if number in came and number != HANGUP:
            for each in before:
                signal.signal(each, signal.SIG_DFL)
            signal.raise_signal(number)
        came.add(number)
        asked.set()
        # not print(): the signal may have come in the middle of one; the terminal may have gone
        with suppress(OSError):
            if os.environ.get("RANK", "0") == "0":
                os.write(2, b"\nsaving, then stopping; once more to abort at once\n")

    numbers = [signal.SIGINT, signal.SIGTERM, *([] if HANGUP is None else [HANGUP])]
    before = {each: signal.getsignal(each) for each in numbers}
    if HANGUP is not None and before[HANGUP] is signal.SIG_IGN:
        del before[HANGUP]
    for each in before:
        signal.signal(each, handle)
    try:
        yield asked
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
