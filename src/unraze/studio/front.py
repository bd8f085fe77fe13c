"""What answers first: the page at once, and what needs torch as soon as that is loaded.

Loading torch takes longer than all else; nobody should look at an empty window meanwhile.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from unraze.studio.guard import Guard, Keys

if TYPE_CHECKING:
    from unraze.studio.app import Studio

__all__ = ["Front", "guarded"]

PATIENCE = 0.5
"""Seconds that the page is waited for: a browser takes as long to ask."""
PAGE = Path(__file__).parent / "page"


class Front:
    """Serves the page, and hands on what is asked under /api/ once it is made.

    `make` makes the rooms and their application, in a thread. What it raises is kept in `failed`,
    and `stop` is called.
    """

    def __init__(
        self,
        make: "Callable[[], tuple[Studio, ASGIApp]]",
        stop: Callable[[], None] = lambda: None,
    ) -> None:
        self._make, self._stop = make, stop
        files = StaticFiles(directory=PAGE, html=True)
        self._page = Starlette(routes=[Mount("/", files)], exception_handlers={404: _no_such_page})
        self._made: asyncio.Future[tuple[Studio, ASGIApp]] | None = None
        self._asked = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.failed: Exception | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http" and scope["path"].startswith("/api/"):
            self._asked.set()
            assert self._made is not None
            _, app = await asyncio.shield(self._made)
            await app(scope, receive, send)
        else:
            await self._page(scope, receive, send)
            self._asked.set()

    async def _live(self, receive: Receive, send: Send) -> None:
        """From the start of the server to its end."""
        await receive()
        self._loop = asyncio.get_running_loop()
        self._made = asyncio.ensure_future(self._making())
        living = asyncio.create_task(self._lives(self._made))
        await send({"type": "lifespan.startup.complete"})
        await receive()
        living.cancel()
        with suppress(asyncio.CancelledError):
            await living
        await send({"type": "lifespan.shutdown.complete"})

    async def _making(self) -> "tuple[Studio, ASGIApp]":
        """Loads torch, which leaves little time for anything else, once the page is served."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._asked.wait(), PATIENCE)
        return await run_in_threadpool(self._make)

    def leave(self) -> None:
        """Ends what tabs listen to, so that the server can end; any thread, and a
        signal's handler, may call it."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._end_streams)

    def _end_streams(self) -> None:
        made = self._made
        if made is not None and made.done() and not made.cancelled() and not made.exception():
            made.result()[0].hub.end()

    async def _lives(self, made: "asyncio.Future[tuple[Studio, ASGIApp]]") -> None:
        try:
            studio, _ = await asyncio.shield(made)
        except Exception as error:  # it is raised again when the server has ended
            self.failed = error
            self._stop()
            return
        from unraze.studio.app import watch  # loaded by now: it needs torch

        try:
            await watch(studio)
        finally:
            await run_in_threadpool(studio.queue.close)


async def _no_such_page(request: Request, error: Exception) -> Response:
    return PlainTextResponse("There is no such page here; the studio's is at /", 404)


def guarded(front: Front, keys: Keys, hosts: tuple[str, ...], *, remote: bool = False) -> ASGIApp:
    """The front behind its guard."""
    return Guard(front, keys, hosts, remote)
