"""`unraze card`: what a run is, how it was made and how good it is, for whoever it is given to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from unraze.cli.app import EXCHANGE, OUTPUT, Checkpoint, app, told_as_options

__all__ = ["card"]


@app.command(
    group=EXCHANGE,
    sort_key=3,
    usage="Usage: unraze card RUN [OPTIONS]",
    help_epilogue=(
        "Examples:\n\n"
        "  unraze card runs/00000-fashion-mnist --licence mit\n"
        "  unraze card RUN --out cards/mine.md --preview"
    ),
)
def card(
    run: Annotated[Path, Parameter(help="The run's folder.")],
    /,
    *,
    licence: Annotated[
        str | None,
        Parameter(
            group=OUTPUT,
            help="Identifier of the model's licence, as mit or cc-by-4.0; if absent, the card says "
            "that none is given.",
        ),
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
            help="Show the newest preview of the training in place of fresh samples.",
        ),
    ] = False,
    checkpoint: Checkpoint = None,
    out: Annotated[
        Path | None, Parameter(group=OUTPUT, help="The card's file; RUN/README.md if absent.")
    ] = None,
) -> int:
    """Write the model card of a run: its README.md, and a picture of samples beside it.

    The picture is samples.png, or named as the card is: x.png beside --out x.md.

    It says what the run is, its data and recipe, how to draw from it, what the newest `unraze eval`
    found, and its limits. A card that was edited is not written over. Its path is printed last.
    """
    from rich.console import Console

    from unraze import generate, run as runs
    from unraze.cli.drawing import require_file_place
    from unraze.cli.show import follow_drawing
    from unraze.interop import card as cards

    found = runs.find(run)
    file = run / "README.md" if out is None else out
    require_file_place(file, str(file) if out is None else f"--out {out}")
    cards.require_replaceable(file)
    with told_as_options({"licence": "--licence"}):
        written = cards.write_card(
            file.parent,
            generate.load(run, step=checkpoint),
            file=file.name,
            title=title,
            licence=licence,
            preview=cards.newest_preview(found) if preview else None,
            follow=lambda moments: follow_drawing(moments, Console()),
        )
    print(written)
    return 0
