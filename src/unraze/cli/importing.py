"""`unraze import …`: runs made of models that other programs trained."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from unraze.cli.app import DATA, EXCHANGE, OUTPUT, SAMPLING, app, parse_size

__all__ = ["diffusers", "importing"]

importing = App(
    name="import",
    help="Make a run of a model that another program trained.",
    help_epilogue="Examples:\n\n  unraze import diffusers FOLDER",
    group=EXCHANGE,
    sort_key=1,
)
app.command(importing)

Out = Annotated[
    Path | None,
    Parameter(group=OUTPUT, help="The new run's folder; a fresh one under runs/ if absent."),
]


@importing.command(
    help_epilogue=(
        "Examples:\n\n"
        "  unraze import diffusers ddpm-cifar10-32\n"
        "  unraze import diffusers FOLDER --own-sampler --out runs/theirs\n\n"
        "Then, as with any run:\n\n"
        "  unraze sample runs/00000-ddpm-cifar10-32 -n 64"
    ),
)
def diffusers(
    folder: Annotated[
        Path,
        Parameter(
            help="Of a pipeline (model_index.json), or of a UNet2DModel alone (config.json)."
        ),
    ],
    /,
    *,
    own_sampler: Annotated[
        bool,
        Parameter(
            group=SAMPLING,
            negative="",
            show_default=False,
            help="Take the scheduler's betas alone and draw by DDIM in 50 steps, not as it does.",
        ),
    ] = False,
    prediction: Annotated[
        Literal["epsilon", "sample", "v_prediction"] | None,
        Parameter(
            group=SAMPLING, help="What the network emits; what its scheduler says if absent."
        ),
    ] = None,
    size: Annotated[
        str | None,
        Parameter(group=DATA, help="Of a model that does not say its own: 32, or 32x48."),
    ] = None,
    out: Out = None,
) -> int:
    """Make a run of a model that diffusers saved: a UNet2DModel of pixels, as safetensors.

    Its weights are taken as they are; its scheduler becomes the run's schedule and sampler, and a
    setting that Unraze cannot follow is an error. The run draws as any other does; trained on it
    cannot be, for which images it learned from is not said. Its folder is the last line printed.
    """
    from unraze import run as runs
    from unraze.interop.from_diffusers import read
    from unraze.interop.made import create_run

    if out is not None:
        runs.require_free(out)
    found = read(folder, scheduler=not own_sampler, size=parse_size(size), prediction=prediction)
    config = found.config
    run = create_run(
        config,
        found.weights,
        found.weights,
        shape=found.shape,
        class_names=tuple(map(str, range(found.num_classes))),
        num_classes=found.num_classes,
        out=out,
        command=["unraze", *sys.argv[1:]],
    )
    channels, height, width = found.shape
    numbers = sum(value.numel() for value in found.weights.values())
    sample, schedule = config.sample, config.schedule
    print(
        f"{folder}: UNet2DModel of {numbers / 1e6:.1f} M weights, {height} x {width} "
        f"{'colour' if channels == 3 else 'grey'}, predicting {config.loss.parametrisation}"
        + (f", of {found.num_classes} classes" if found.num_classes else "")
    )
    print(
        f"schedule: {schedule.kind}, {schedule.steps} steps; drawn by {sample.sampler} in "
        f"{sample.steps} steps, x̂₀ clipped: {sample.clip}"
    )
    for note in found.notes:
        print(f"note: {note}")
    print(
        f"worth trying: unraze sample {shlex.quote(str(run.path))} -n 16 --sampler adams --steps 20"
    )
    print(run.path)
    return 0
