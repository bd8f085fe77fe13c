"""`unraze distill`: a run that needs a network call or two, from one that needs many."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from unraze.cli.app import (
    BUDGET,
    MACHINE,
    MAKE,
    NETWORK,
    OUTPUT,
    SAMPLING,
    Raw,
    Settings,
    app,
    option_of,
    told_as_options,
)
from unraze.cli.train import (
    Track,
    follow,
    read_images,
    refuse_early,
    require_trackers,
    settings_given,
)
from unraze.errors import DataError, InputError

if TYPE_CHECKING:
    from unraze.config import Config
    from unraze.data import Images

__all__ = ["distill"]


@app.command(
    group=MAKE,
    sort_key=5,
    usage="Usage: unraze distill RUN [OPTIONS]",
    help_epilogue=(
        "Examples:\n\n"
        "  unraze distill runs/00000-fashion-mnist\n"
        "  unraze distill RUN --calls 1 --minutes 10 --out runs/one-call\n"
        "  unraze distill RUN --guidance 2\n\n"
        "Then, as with any run:\n\n"
        "  unraze sample RUN-distilled -n 64\n"
        "  unraze eval RUN-distilled\n"
        "  unraze resume RUN-distilled"
    ),
)
def distill(
    run: Annotated[Path, Parameter(help="The folder of the run that is the teacher.")],
    /,
    *,
    calls: Annotated[
        int | None,
        Parameter(
            group=SAMPLING, help="Network calls an image of the new run, 1 or 2; 2 if absent."
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        Parameter(
            group=SAMPLING,
            help="How far towards the class or cluster, learned once and for all; if absent RUN's "
            "as it was trained, not as `unraze tune` found it.",
        ),
    ] = None,
    guidance_interval: Annotated[
        tuple[float, float] | None,
        Parameter(
            group=SAMPLING,
            negative="",
            help="Part of the time t/T in which it acts, as 0.1 0.8; RUN's as it was trained if "
            "absent.",
        ),
    ] = None,
    checkpoint: Annotated[
        int | Literal["best"] | None,
        Parameter(group=SAMPLING, help="Of RUN: a training step, or best; the newest if absent."),
    ] = None,
    raw: Raw = False,
    minutes: Annotated[
        float | None,
        Parameter(
            group=BUDGET, help="Wall-clock minutes; no more than RUN took if no budget is given."
        ),
    ] = None,
    steps: Annotated[int | None, Parameter(group=BUDGET, help="Optimiser steps.")] = None,
    batch: Annotated[
        int | None, Parameter(group=NETWORK, help="Images a step; RUN's if absent.")
    ] = None,
    lr: Annotated[
        float | None, Parameter(group=NETWORK, help="Learning rate; 0.001 if absent.")
    ] = None,
    seed: Annotated[
        int | None,
        Parameter(group=NETWORK, help="The same seed gives the same run; RUN's if absent."),
    ] = None,
    eval_every: Annotated[
        int | None,
        Parameter(
            group=NETWORK,
            help="Evaluate on held-out images every so many steps, and keep the best; never if "
            "absent.",
        ),
    ] = None,
    set_: Settings = (),
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"] | None,
        Parameter(group=MACHINE, help="RUN's if absent."),
    ] = None,
    device: Annotated[
        str | None, Parameter(group=MACHINE, help="cpu, cuda, cuda:1, mps …; RUN's if absent.")
    ] = None,
    threads: Annotated[
        int | None, Parameter(group=MACHINE, help="Threads of the processor; RUN's if absent.")
    ] = None,
    out: Annotated[
        Path | None,
        Parameter(group=OUTPUT, help="The new run's folder; RUN-distilled if absent."),
    ] = None,
    track: Track = None,
) -> int:
    """Make of a run one that draws a picture in a call or two, in no more time than RUN took.

    The new run is one like any other: what draws from it, measures it or goes on with it are the
    same commands. Its folder is the last line printed. Ctrl-C saves and says how to go on.
    """
    if minutes is not None and steps is not None:
        raise InputError("--minutes and --steps: give one of them")
    require_trackers(track)
    changes = {
        "loss.teacher_guidance": guidance,
        "loss.teacher_interval": guidance_interval,
        "train.minutes": minutes,
        "train.steps": steps,
        "train.batch": batch,
        "train.lr": lr,
        "train.seed": seed,
        "train.eval_every": eval_every,
        "train.dtype": dtype,
        "train.device": device,
        "train.threads": threads,
    }
    given = {key: value for key, value in changes.items() if value is not None}
    names = {key: option_of(key) for key in given} | {"calls": "--calls"}
    if guidance is not None:
        names |= dict.fromkeys(("loss.teacher_guidance", "guidance"), "--guidance")
    if guidance_interval is not None:
        names["loss.teacher_interval"] = "--guidance-interval"
    if out is not None:
        from unraze import run as runs
        from unraze.cli.drawing import require_place

        runs.require_free(out)
        require_place(out, f"--out {out}")
    with told_as_options(names | {"device": "--device"}):
        from unraze import distillation, generate
        from unraze.ranks import ALONE

        pairs = settings_given(set_, given)
        model = generate.load(run, raw=raw, step=checkpoint)
        config = distillation.configuration(
            model, calls=calls, changes=pairs | given, where="--set"
        )
        if config.train.shard:
            raise InputError(
                "train.shard = true: runs are distilled by one process, which divides nothing; "
                "leave it out"
            )
        refuse_early(config, None)
        images = _images(run, config)
        made = distillation.create(
            model,
            config,
            images,
            out=_free_beside(run) if out is None else out,
            command=["unraze", *sys.argv[1:]],
        )
    return follow(made, images, track=track, ranks=ALONE)


def _images(run: Path, config: Config) -> Images:
    from unraze.ranks import ALONE

    try:
        return read_images(config, ALONE)
    except DataError as error:
        raise DataError(
            f"{run}: cannot be distilled without the images that it was trained on: {error}"
        ) from error


def _free_beside(run: Path) -> Path:
    """RUN-distilled, or RUN-distilled-2 and so on where that is there."""
    run = run if run.name not in ("", "..") else run.resolve()
    first = run.with_name(f"{run.name}-distilled")
    others = (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))
    return next(itertools.dropwhile(os.path.exists, itertools.chain([first], others)))
