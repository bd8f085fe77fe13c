"""`unraze gather`: the plain files of a checkpoint that several ranks wrote in parts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from unraze.cli.app import MAKE, app

__all__ = ["gather"]


@app.command(
    group=MAKE,
    sort_key=6,
    usage="Usage: unraze gather RUN",
    help_epilogue="Example: unraze gather runs/00000-fashion-mnist",
)
def gather(run: Annotated[Path, Parameter(help="The run's folder.")], /) -> int:
    """Put the parts of a divided run's checkpoints together, into plain files of weights.

    All commands read either; other programs may want the plain ones: model, ema and
    optim.safetensors. What `unraze tune` found stays with them. A run that was not trained with
    --shard has them, and stays as it is.
    """
    from unraze import checkpoint, run as runs

    found = runs.find(run)
    with runs.locked(found):
        for folder in (found.checkpoints, found.best):
            for path in checkpoint.listing(folder):
                print(checkpoint.gather(path), flush=True)
    return 0
