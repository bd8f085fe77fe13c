"""Starting: a port of this machine, an address with a token, a browser; and the end.

The page is served before torch is there, which takes longer to load than all else: what needs it
waits.
"""

import html
import ipaddress
import socket
import tempfile
import threading
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from unraze.errors import InputError, UnrazeError
from unraze.studio.front import Front, guarded
from unraze.studio.guard import Keys, address_of

__all__ = ["serve"]

PORT = 8420
DRAIN = 2
"""Seconds that open streams are given when the studio ends."""


def serve(
    folder: Path,
    *,
    data: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int | None = None,
    names: Sequence[str] = (),
    remote: bool = False,
    browser: bool = True,
    device: str = "cpu",
) -> None:
    """Serves the studio of a folder of runs until it is stopped.

    Without a port, at `PORT`, or where that is taken at one that is free; port 0 is any that is.
    Raises `InputError` for an address that others reach without `remote`, or the other way round,
    and `UnrazeError` where it cannot be had.
    """
    _require_meant(host, remote)
    try:
        bound = _bound(host, PORT if port is None else port)
    except UnrazeError:
        if port is not None:
            raise
        bound = _bound(host, 0)
    keys = Keys(bound.getsockname()[1])
    address = f"{address_of(_shown(host), keys.port)}/#token={keys.token}"
    print(f"the studio of {folder}: {address}", flush=True)
    if remote:
        print(
            "whoever has this address can look at these runs, draw from them and train on this "
            "machine, and whoever listens on the way can read along, for nothing is encrypted; "
            "safer from afar: ssh -L and the studio without --remote",
            flush=True,
        )
    print("Ctrl-C ends it; trainings go on", flush=True)

    def made() -> tuple[Any, ASGIApp]:
        from unraze.hardware import require_device
        from unraze.studio.app import app_of, studio_of

        require_device(device)
        studio = studio_of(folder, data=tuple(data), device=device, keys=keys)
        going_on.append(studio.trainings.running)
        return studio, app_of(studio)

    going_on: list[Callable[[], list[tuple[str, int]]]] = []
    front = Front(made, lambda: setattr(server, "should_exit", True))
    config = uvicorn.Config(
        guarded(front, keys, _names(host, names), remote=remote),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=DRAIN,
        ws="none",
    )
    server = uvicorn.Server(config)
    ending = server.handle_exit

    def ended(sig: int, frame: FrameType | None) -> None:
        front.leave()
        ending(sig, frame)

    server.handle_exit = ended  # type: ignore[method-assign]
    try:
        with suppress(KeyboardInterrupt), _opened(address) if browser else nullcontext():
            server.run(sockets=[bound])  # which raises again what ended it
    finally:
        bound.close()
    if front.failed is not None:
        raise front.failed
    for running in going_on:
        for path, process in running():
            print(f"goes on: the training of {path}; kill {process} saves and stops it")


@contextmanager
def _opened(address: str) -> Iterator[None]:
    """Opens a browser on a page that leads there and only this user can read: a command line, as
    that of the browser is, can be read by all users of a machine, and the address has the token."""
    with tempfile.TemporaryDirectory(prefix="unraze-studio-") as folder:  # for nobody else
        page = Path(folder) / "open.html"
        to = html.escape(address)
        page.write_text(
            '<!doctype html><meta charset="utf-8">'
            f'<meta http-equiv="refresh" content="0; url={to}"><a href="{to}">The studio</a>',
            encoding="utf-8",
        )
        opening = threading.Timer(0.3, webbrowser.open, [page.as_uri()])
        opening.daemon = True  # a browser of the terminal is not waited for
        opening.start()
        try:
            yield
        finally:
            opening.cancel()


def _require_meant(host: str, remote: bool) -> None:
    if not _is_own(host) and not remote:
        raise InputError(
            f"--host {host}: others can reach that address; give --remote too, if that is meant, "
            "or leave --host out and go there by `ssh -L`"
        )
    if remote and _is_own(host):
        raise InputError(
            f"--remote: nobody else reaches {host}; give an address that others reach too, as "
            "--host 0.0.0.0, or leave it out"
        )


def _is_own(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(128)
    except (OSError, OverflowError) as error:
        bound.close()
        why = getattr(error, "strerror", None) or error
        raise UnrazeError(
            f"{host}, port {port}: cannot be listened at ({why}); give another --port, or none"
        ) from error
    return bound


def _shown(host: str) -> str:
    """A name to reach it by, of one that stands for all of the machine's addresses."""
    return socket.gethostname() if host in ("0.0.0.0", "::") else host


def _names(host: str, names: Sequence[str]) -> tuple[str, ...]:
    own = ("127.0.0.1", "localhost", "::1") if _is_own(host) else (_shown(host),)
    return (*own, host, *names)
