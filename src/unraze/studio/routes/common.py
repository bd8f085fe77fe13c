"""What routes share."""

from typing import Annotated, Any

from fastapi import Depends, Path, Request, Response

from unraze.studio.app import Studio
from unraze.studio.library import Missing
from unraze.studio.work import Job

__all__ = ["PNG", "Here", "JobName", "RunName", "job_of", "png"]


def _studio(request: Request) -> Studio:
    studio: Studio = request.app.state.studio
    return studio


Here = Annotated[Studio, Depends(_studio)]
RunName = Annotated[str, Path(pattern="^[0-9a-f]{16}$", description="A run's identifier.")]
JobName = Annotated[str, Path(pattern="^[0-9a-f]{16}$", description="A job's identifier.")]

PNG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
}
"""What a route that answers with a picture says of itself."""


def job_of(studio: Studio, name: str) -> Job:
    """A job; raises `Missing`."""
    job = studio.queue.get(name)
    if job is None:
        raise Missing("this job is not remembered any more; ask for it again")
    return job


def png(
    data: bytes, *, name: str | None = None, kept: bool = False, kind: str = "image/png"
) -> Response:
    """A picture, to be shown, or saved under a name; `kept`: it never changes."""
    headers = {}
    if name is not None:
        headers["Content-Disposition"] = f'attachment; filename="{name}"'
    if kept:
        headers["Cache-Control"] = "private, max-age=3600, immutable"
    return Response(data, media_type=kind, headers=headers)
