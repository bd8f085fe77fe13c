"""The studio's routes: what the page asks, by which room answers it.

Everything is JSON but pictures and the stream of events. What goes wrong is answered in words,
{"error": …}: 404 for what is not there, 429 for too much at once, 400 for what will not do.
"""

import asyncio
import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from unraze import __version__
from unraze.errors import UnrazeError
from unraze.studio.events import Crowded, Hub
from unraze.studio.guard import Keys
from unraze.studio.held import Held
from unraze.studio.library import Library, Missing
from unraze.studio.sources import Sources
from unraze.studio.trainings import Trainings
from unraze.studio.work import Queue, Turns

__all__ = ["Studio", "app_of", "studio_of", "watch"]

S = TypeVar("S")
T = TypeVar("T")

EVERY = 1.0
"""Seconds between two looks at the folder of runs, while anybody listens."""
MOST_LOOKS = 32
"""Looks that wait for a thread."""
MOST_BODY = 2**16
"""Bytes of a request that is no picture."""


class Said(JSONResponse):
    """JSON of whatever texts: what no encoding has, as in names of files that another system wrote,
    is replaced, wherever it comes from."""

    def render(self, content: Any) -> bytes:
        said = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return said.encode("utf-8", "replace")


class Refused(BaseModel):
    """What went wrong, where, and what to do."""

    error: str


@dataclass(frozen=True)
class Studio:
    """The rooms."""

    library: Library
    sources: Sources
    held: Held
    hub: Hub
    turns: Turns
    queue: Queue
    trainings: Trainings
    keys: Keys
    looks: CapacityLimiter

    async def read(self, ask: Callable[[], T]) -> T:
        """What is asked for, read and not computed; raises `Crowded`, so that what takes long does
        not take all threads."""
        if self.looks.statistics().tasks_waiting > MOST_LOOKS:
            raise Crowded("too much is asked for at once; wait until the last has been answered")
        return await to_thread.run_sync(ask, limiter=self.looks)

    async def look(self, prepare: Callable[[], S], ask: Callable[[S], T]) -> T:
        """What is asked of what is read first, computed before any work goes on."""

        def asked() -> T:
            read = prepare()
            with self.turns.look():
                return ask(read)

        return await self.read(asked)


def studio_of(
    folder: Path, *, data: tuple[str, ...] = (), device: str = "cpu", keys: Keys
) -> Studio:
    """The rooms of a studio for the runs of a folder."""
    hub, turns, library = Hub(), Turns(), Library(folder)
    queue = Queue(hub, turns)
    hub.closed = queue.abandon
    return Studio(
        library=library,
        sources=Sources(data, library),
        held=Held(device),
        hub=hub,
        turns=turns,
        queue=queue,
        trainings=Trainings(library, hub),
        keys=keys,
        looks=CapacityLimiter(8),
    )


def app_of(studio: Studio) -> FastAPI:
    """The application that answers under /api/; `front` has the page, and the guard before it."""
    from unraze.studio.routes import ROUTERS

    codes = (400, 401, 403, 404, 405, 413, 415, 421, 422, 429)
    app = FastAPI(
        title="Unraze studio",
        version=__version__,
        summary="Runs, drawings and the queue of a studio on this machine.",
        openapi_url="/api/openapi.json",
        docs_url=None,  # they would fetch their scripts elsewhere
        redoc_url=None,
        responses={code: {"model": Refused} for code in codes},
        max_body_size=MOST_BODY,
        default_response_class=Said,
    )
    app.state.studio = studio
    app.add_exception_handler(UnrazeError, _told_error)
    app.add_exception_handler(PermissionError, _told_forbidden)
    app.add_exception_handler(RequestValidationError, _told_invalid)
    app.add_exception_handler(HTTPException, _told_http)
    app.add_exception_handler(Exception, _told_defect)
    for router in ROUTERS:
        app.include_router(router, prefix="/api")
    return app


async def watch(studio: Studio) -> None:
    """Says which runs have changed, whoever trains them; never ends by itself."""
    while True:
        await asyncio.sleep(EVERY)
        if not studio.hub.listens:
            continue
        try:
            changed, gone = await run_in_threadpool(studio.library.news)
        except UnrazeError:  # whoever asks for runs is told
            continue
        except Exception:  # a defect, which must not end the watch
            traceback.print_exc(file=sys.stderr)
            continue
        for told in changed:
            studio.hub.say("run", f"run {told.id}", told.model_dump())
        for name in gone:
            studio.hub.say("run-gone", f"run {name}", {"id": name})


async def _told_error(request: Request, error: Exception) -> Response:
    match error:
        case Missing():
            status = 404
        case Crowded():
            status = 429
        case _:
            status = 400
    return Said({"error": str(error)}, status)


async def _told_forbidden(request: Request, error: Exception) -> Response:
    assert isinstance(error, PermissionError)
    return Said({"error": f"{error.filename}: {error.strerror}; check its permissions"}, 400)


async def _told_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    if first["type"] == "json_invalid":
        return Said({"error": "the request is no JSON"}, 422)
    said = f"{place}: {first['msg'][:1].lower()}{first['msg'][1:]}" if place else first["msg"]
    return Said({"error": said}, 422)


async def _told_defect(request: Request, error: Exception) -> Response:
    said = f"a defect of Unraze ({type(error).__name__}); the terminal has the whole of it"
    return Said({"error": said}, 500)


async def _told_http(request: Request, error: Exception) -> Response:
    status = int(getattr(error, "status_code", 400))
    words = {
        404: "there is nothing at this address",
        405: f"{request.method}: is not what this address answers",
    }
    headers = getattr(error, "headers", None)
    return Said({"error": words.get(status, str(getattr(error, "detail", error)))}, status, headers)
