"""Who asks, what this studio is, and the stream of what happens."""

import os
from collections.abc import AsyncIterable
from typing import Annotated, Any

import torch
from fastapi import APIRouter, Depends, HTTPException, Query, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from unraze import __version__, config
from unraze.config import OF_A_SAMPLER, ORDERS
from unraze.studio import asked
from unraze.studio.routes.common import Here
from unraze.studio.work import MOST_WAITING

__all__ = ["router"]

router = APIRouter(tags=["session"])

UPLOAD = 2**25
"""Bytes of a picture that may be dropped."""


@router.post("/session", status_code=204)
def session(here: Here, said: asked.Token) -> Response:
    """Gives a session to whoever has the token of the address."""
    if not here.keys.buys(said.token):
        raise HTTPException(
            401,
            "this is not the token of this studio, which has a new one at every start; open the "
            "address that `unraze studio` printed in the terminal",
        )
    answer = Response(status_code=204)
    answer.set_cookie(here.keys.cookie, here.keys.session, httponly=True, samesite="strict")
    return answer


@router.get("/about")
def about(here: Here) -> dict[str, Any]:
    """What this studio is, and what can be chosen in it."""
    keys = {"sigma": ("random",), "final_noise": ("random",), **OF_A_SAMPLER}
    samplers = config.SampleConfig.model_fields["sampler"].annotation.__args__  # type: ignore[union-attr]
    return {
        "version": __version__,
        "folder": str(here.library.folder),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": here.held.device,
        "presets": [
            {"name": name, "about": config.preset(name).about} for name in config.preset_names()
        ],
        "samplers": [
            {
                "name": name,
                "keys": [key for key, of in keys.items() if name in of],
                "order": ORDERS.get(name),
            }
            for name in samplers
        ],
        "spacings": ["time", "angle", "log_snr", "karras"],
        "sigmas": ["beta", "beta_tilde", "learned"],
        "clips": ["none", "clip", "x0-only", "dynamic"],
        "limits": {
            "pictures": asked.MOST_PICTURES,
            "upload_bytes": UPLOAD,
            "waiting": MOST_WAITING,
        },
    }


def _room(here: Here) -> None:
    """Before the answer begins: then it is too late to say that there is no room."""
    here.hub.require_room()


@router.get("/events", response_class=EventSourceResponse, dependencies=[Depends(_room)])
async def events(
    here: Here,
    client: Annotated[str, Query(min_length=1, max_length=64, pattern=r"^[0-9A-Za-z-]+$")],
) -> AsyncIterable[ServerSentEvent]:
    """What happens, as it happens: `run` and `job` with their states, `run-gone`, `job-gone`."""
    async for event in here.hub.join(client):
        if event is None:
            yield ServerSentEvent(comment="still here")
        else:
            name, state = event
            yield ServerSentEvent(data=state, event=name)
