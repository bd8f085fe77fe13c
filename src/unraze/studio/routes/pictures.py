"""The pictures of jobs: frames as they form, files with their recipes, sheets."""

from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Path, Query, Response

from unraze.studio.library import Missing
from unraze.studio.routes.common import PNG, Here, JobName, job_of, png
from unraze.studio.tasks.editing import Edits
from unraze.studio.tasks.looking import Sheets
from unraze.studio.tasks.nearness import Neighbours
from unraze.studio.tasks.sampling import Drawing
from unraze.studio.tasks.walking import Walk
from unraze.studio.work import Job

__all__ = ["router"]

T = TypeVar("T")

router = APIRouter(tags=["pictures"])

Number = Annotated[int, Path(ge=0, le=10_000)]
Download = Annotated[bool, Query(description="Have the browser save it.")]
GIF: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/gif": {"schema": {"type": "string", "format": "binary"}}}}
}


@router.get("/jobs/{name}/frames/{number}.png", response_class=Response, responses=PNG)
def frame(
    here: Here, name: JobName, number: Number, of: Literal["state", "estimate"] = "state"
) -> Response:
    """A frame of a drawing, of an edit or of a walk, as a sprite; estimates are of drawings."""
    shown = job_of(here, name).shown
    if isinstance(shown, Walk | Edits):
        return png(shown.frame(number), kept=True)
    return png(_shown(job_of(here, name), Drawing).frame(number, of), kept=True)


@router.get("/jobs/{name}/images/{number}.png", response_class=Response, responses=PNG)
def image(here: Here, name: JobName, number: Number, download: Download = False) -> Response:
    """One picture, with its recipe."""
    data = _drawn(job_of(here, name)).picture(number)
    return png(data, name=f"{number:05d}.png" if download else None, kept=True)


@router.get("/jobs/{name}/grid.png", response_class=Response, responses=PNG)
def grid(here: Here, name: JobName, download: Download = False) -> Response:
    """All pictures, with their recipe; those of a blend in one row."""
    shown = _drawn(job_of(here, name))
    file = "strip.png" if isinstance(shown, Edits) and shown.strip else "grid.png"
    return png(shown.grid(), name=file if download else None, kept=True)


@router.get("/jobs/{name}/film.gif", response_class=Response, responses=GIF)
def film(here: Here, name: JobName, download: Download = False) -> Response:
    """How they formed, with their recipe; of a blend the way there and back."""
    data = _drawn(job_of(here, name)).gif()
    return png(data, name="film.gif" if download else None, kept=True, kind="image/gif")


@router.get("/jobs/{name}/sprite.png", response_class=Response, responses=PNG)
def neighbours(here: Here, name: JobName) -> Response:
    """A drawn picture, and the training images nearest to it."""
    return png(_shown(job_of(here, name), Neighbours).sprite(), kept=True)


@router.get("/jobs/{name}/{sheet}.png", response_class=Response, responses=PNG)
def sheet(here: Here, name: JobName, sheet: Literal["sheet", "held-out"]) -> Response:
    """A contact sheet of a set of images, or of what is held out of it."""
    return png(_shown(job_of(here, name), Sheets).sheet(sheet), kept=True)


def _drawn(job: Job) -> Drawing | Edits:
    """What a job has drawn; raises `Missing`."""
    return job.shown if isinstance(job.shown, Edits) else _shown(job, Drawing)


def _shown(job: Job, kind: type[T]) -> T:
    """What a job has to show; raises `Missing`."""
    if not isinstance(job.shown, kind):
        raise Missing("this job has no such pictures, or not yet")
    return job.shown
