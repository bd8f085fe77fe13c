"""`unraze studio`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

from unraze.cli.app import DATA, LOOK, Device, app, told_as_options
from unraze.cli.look import RUNS, require_runs
from unraze.errors import DataError, InputError

__all__ = ["studio"]

ADDRESS = Group("Address", sort_key=1)


@app.command(
    group=LOOK,
    sort_key=0,
    usage="Usage: unraze studio [RUNS] [OPTIONS]",
    help_epilogue=(
        "Examples:\n\n"
        "  unraze studio\n"
        "  unraze studio elsewhere/runs --data photos/ --data drawings.zip\n"
        "  unraze studio --no-browser --port 9000"
    ),
)
def studio(
    runs: Annotated[Path, Parameter(help="The folder of runs; it need not be there yet.")] = RUNS,
    /,
    *,
    data: Annotated[
        tuple[str, ...],
        Parameter(
            group=DATA,
            negative="",
            show_default=False,
            help="Images that can be looked at and trained on in the studio, as DATA of `unraze "
            "train`; may be repeated.",
        ),
    ] = (),
    port: Annotated[
        int | None,
        Parameter(group=ADDRESS, help="8420, or another that is free, if absent; 0 for any."),
    ] = None,
    browser: Annotated[
        bool, Parameter(group=ADDRESS, help="Open the browser.", show_default=False)
    ] = True,
    host: Annotated[
        str,
        Parameter(group=ADDRESS, help="The address to listen at: this machine's own alone."),
    ] = "127.0.0.1",
    remote: Annotated[
        bool,
        Parameter(
            group=ADDRESS,
            negative="",
            show_default=False,
            help="Let others reach it by --host. Whoever has the address can use it, and nothing "
            "is encrypted.",
        ),
    ] = False,
    name: Annotated[
        tuple[str, ...],
        Parameter(
            group=ADDRESS,
            negative="",
            show_default=False,
            help="Another name that it is reached by, if that leads here; may be repeated.",
        ),
    ] = (),
    device: Device = None,
) -> int:
    """Watch, sample, compare and understand runs in the browser, on this machine.

    Prints the address, which has a token in it that is new at every start, and serves the page
    until Ctrl-C. Trainings that were started there go on.
    """
    try:
        from unraze.studio.server import serve
    except ImportError as error:
        raise InputError(
            f"the studio needs {error.name}, which is not installed: pip install 'unraze[studio]'"
        ) from error

    if port is not None and not 0 <= port <= 65535:
        raise InputError(f"--port {port}: give 0 to 65535")
    how: dict[str, Any] = {
        "data": [_source(each) for each in data],
        "host": host,
        "names": name,
        "remote": remote,
        "browser": browser,
        "device": "cpu" if device is None else device,
    }
    require_runs(runs)
    with told_as_options({"device": "--device"}):
        if how["device"] != "cpu":  # else torch, which is slow to load, waits
            from unraze.hardware import require_device

            require_device(how["device"])
        serve(runs, port=port, **how)
    return 0


def _source(given: str) -> str:
    """What is on disk by its full path, for a training is begun from any folder; raises
    `InputError` for what is neither there nor a name or an address."""
    from unraze.data import NAMES, hub, remote, shards

    if given in NAMES or hub.is_source(given) or remote.is_address(given):
        return given
    if os.path.exists(given):
        return str(Path(given).resolve())
    try:
        if shards.named(given) is not None:
            return str(Path(given).expanduser().absolute())
    except DataError as error:
        raise InputError(f"--data {error}") from error
    raise InputError(
        f"--data {given}: there is no such file or folder, nor a data set of that name; give a "
        f"path, hf:NAME, or one of {' and '.join(NAMES)}"
    )
