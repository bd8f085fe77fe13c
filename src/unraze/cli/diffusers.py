"""`unraze import diffusers` and `unraze export diffusers`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from unraze.cli.app import DATA, OUTPUT, SAMPLING, Checkpoint, Raw, parse_size, told_as_options
from unraze.cli.exporting import exporting
from unraze.cli.importing import importing

__all__ = ["from_diffusers", "to_diffusers"]


@importing.command(
    name="diffusers",
    usage="Usage: unraze import diffusers FOLDER [OPTIONS]",
    help_epilogue=(
        "Examples:\n\n"
        "  unraze import diffusers ddpm-cifar10-32\n"
        "  unraze import diffusers FOLDER --own-sampler --out runs/theirs\n\n"
        "Then, as with any run:\n\n"
        "  unraze sample runs/00000-imported-ddpm-cifar10-32 -n 64\n"
        "  unraze train IMAGES --from RUN"
    ),
)
def from_diffusers(
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
    out: Annotated[
        Path | None,
        Parameter(group=OUTPUT, help="The new run's folder; a fresh one under runs/ if absent."),
    ] = None,
) -> int:
    """Make a run of a model that diffusers saved: a UNet2DModel of pixels, as safetensors.

    Its weights are taken as they are; its scheduler becomes the run's schedule and sampler, and a
    setting that Unraze cannot follow is an error. The run draws as any other does; which images it
    learned from is not said, so these are named where it is evaluated or trained on. Its folder is
    the last line printed.
    """
    from unraze import run as runs
    from unraze.cli.drawing import require_place
    from unraze.interop.from_diffusers import read
    from unraze.interop.made import create_run

    if out is not None:
        runs.require_free(out)
        require_place(out, f"--out {out}")
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


@exporting.command(
    name="diffusers",
    usage="Usage: unraze export diffusers RUN --out FOLDER [OPTIONS]",
    help_epilogue=(
        "Examples:\n\n"
        "  unraze export diffusers runs/00000-fashion-mnist --out clothing --licence mit\n\n"
        "Then, in Python, as the folder's README.md says it:\n\n"
        "  from diffusers import DiffusionPipeline\n"
        "  pipe = DiffusionPipeline.from_pretrained('clothing', trust_remote_code=True)\n"
        "  pipe(batch_size=4).images[0].save('one.png')"
    ),
)
def to_diffusers(
    run: Annotated[Path, Parameter(help="The run's folder.")],
    /,
    *,
    out: Annotated[Path, Parameter(group=OUTPUT, help="The new folder.")],
    licence: Annotated[
        str | None,
        Parameter(group=OUTPUT, help="Identifier of the model's licence for its card, as mit."),
    ] = None,
    title: Annotated[
        str | None, Parameter(group=OUTPUT, help="The model's name; the run's folder's if absent.")
    ] = None,
    preview: Annotated[
        bool,
        Parameter(
            group=OUTPUT,
            negative="",
            show_default=False,
            help="Show the newest preview of the training in the card, not fresh samples.",
        ),
    ] = False,
    checkpoint: Checkpoint = None,
    raw: Raw = False,
) -> int:
    """Write a pipeline folder that diffusers loads, with a model card.

    A network that is a UNet2DModel of diffusers, as that of the preset ddpm is, becomes a stock
    pipeline. With the others, and with classes or clusters, goes the network's code, which
    diffusers runs where it is told trust_remote_code=True. The folder is the last line printed.
    """
    from rich.console import Console

    from unraze import generate, run as runs
    from unraze.cli.drawing import require_place
    from unraze.cli.show import follow_drawing
    from unraze.interop import card as cards, to_diffusers as interop
    from unraze.interop.folder import require_free

    require_free(out)
    require_place(out, f"--out {out}")
    model = generate.load(run, raw=raw, step=checkpoint)
    newest = cards.newest_preview(runs.find(run)) if preview else None
    with told_as_options({"licence": "--licence"}):
        written = interop.write(
            model,
            out,
            licence=licence,
            title=title,
            preview=newest,
            follow=lambda moments: follow_drawing(moments, Console()),
        )
    if written.stock:
        print(f"a stock {written.pipeline}: {written.pipeline}.from_pretrained('{out}')")
    else:
        print(
            "with the network's code: DiffusionPipeline.from_pretrained"
            f"('{out}', trust_remote_code=True)"
        )
    for note in written.notes:
        print(f"note: {note}")
    print(out)
    return 0
