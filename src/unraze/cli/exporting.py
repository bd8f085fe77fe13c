"""`unraze export …`: what a run learned, in the formats of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from unraze.cli.app import EXCHANGE, OUTPUT, Checkpoint, Raw, app

__all__ = ["diffusers", "exporting"]

exporting = App(
    name="export",
    help="Write what a run learned in the format of another program.",
    help_epilogue="Examples:\n\n  unraze export diffusers RUN --out FOLDER",
    group=EXCHANGE,
    sort_key=2,
)
app.command(exporting)


@exporting.command(
    help_epilogue=(
        "Examples:\n\n"
        "  unraze export diffusers runs/00000-fashion-mnist --out clothing --licence mit\n\n"
        "Then, in Python, as the folder's README.md says it:\n\n"
        "  from diffusers import DiffusionPipeline\n"
        "  pipe = DiffusionPipeline.from_pretrained('clothing', trust_remote_code=True)\n"
        "  pipe(batch_size=4).images[0].save('one.png')"
    ),
)
def diffusers(
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
    checkpoint: Checkpoint = None,
    raw: Raw = False,
) -> int:
    """Write a pipeline folder that diffusers loads, with a model card.

    A network that is a UNet2DModel of diffusers, as that of the preset ddpm is, becomes a stock
    pipeline. With the others, and with classes or clusters, goes the network's code, which
    diffusers runs where it is told trust_remote_code=True. The folder is the last line printed.
    """
    from unraze import generate
    from unraze.cli.drawing import require_place
    from unraze.interop import to_diffusers
    from unraze.interop.folder import require_free

    require_free(out)
    require_place(out, f"--out {out}")
    model = generate.load(run, raw=raw, step=checkpoint)
    written = to_diffusers.write(model, out, licence=licence, title=title)
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
