"""`unraze publish`: a run, or what was exported of it, on a model hub."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from unraze.cli.app import EXCHANGE, OUTPUT, Checkpoint, app, told_as_options
from unraze.errors import InputError

__all__ = ["publish"]


@app.command(
    group=EXCHANGE,
    sort_key=4,
    usage="Usage: unraze publish FOLDER OWNER/NAME [OPTIONS]",
    help_epilogue=(
        "Examples:\n\n  unraze card RUN --licence mit\n  unraze publish RUN me/my-model --private"
    ),
)
def publish(
    folder: Annotated[
        Path,
        Parameter(
            help="A run, or a model's folder with its card, as `unraze export diffusers` writes it."
        ),
    ],
    name: Annotated[str, Parameter(help="The repository, OWNER/NAME; made where there is none.")],
    /,
    *,
    private: Annotated[
        bool,
        Parameter(
            group=OUTPUT,
            negative="",
            show_default=False,
            help="Make it visible to its owner alone; if absent, as the account has it.",
        ),
    ] = False,
    licence: Annotated[
        str | None,
        Parameter(
            group=OUTPUT,
            help="Of a run that has no card yet: the identifier of its licence, as mit.",
        ),
    ] = None,
    checkpoint: Checkpoint = None,
) -> int:
    """Upload a model to the hub that huggingface_hub is set up for; its address is printed last.

    Of a run goes what drawing needs, with its card, RUN/README.md, or a new one: weights without
    the optimiser's state, and no path of this machine. Of another folder goes all but hidden files.
    """
    from unraze import run as runs
    from unraze.interop import publish as publishing
    from unraze.interop.card import is_card

    if runs.is_run(folder):
        from rich.console import Console

        from unraze import generate
        from unraze.cli.show import follow_drawing

        show = partial(follow_drawing, console=Console())
        model = generate.load(folder, step=checkpoint)
        publishing.require_hub(name)  # packing may draw pictures for the card
        with (
            told_as_options({"licence": "--licence"}),
            publishing.packed(model, licence=licence, follow=show) as made,
        ):
            done = publishing.publish(made, name, private=private, in_place_of=publishing.OF_A_RUN)
    else:
        given = {"--licence": licence, "--checkpoint": checkpoint}
        if extra := [option for option, value in given.items() if value is not None]:
            raise InputError(f"{extra[0]}: is for a run, and {folder} is none; leave it out")
        if not is_card(folder / "README.md"):
            raise InputError(
                f"{folder}: is neither a run nor a model's folder with a card, a README.md that "
                "names the library_name; give a run, or what `unraze export diffusers` wrote"
            )
        done = publishing.publish(folder, name, private=private)
    print("\n".join(done.files))
    print(done.address)
    return 0
