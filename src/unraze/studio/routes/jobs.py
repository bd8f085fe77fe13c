"""The queue: what there is, what is put into it, and its end."""

from fastapi import APIRouter, Response
from torch import Tensor

from unraze.config import DataConfig
from unraze.errors import InputError
from unraze.generate import Model
from unraze.studio import asked, looks
from unraze.studio.app import Studio
from unraze.studio.routes.common import Here, JobName, job_of
from unraze.studio.routes.runs import wanted
from unraze.studio.tasks import (
    calling,
    editing,
    estimating,
    evaluating,
    looking,
    nearness,
    sampling,
    walking,
)
from unraze.studio.work import Job, JobTold

__all__ = ["router"]

router = APIRouter(tags=["jobs"])

EDIT = asked.MOST_MASK + 2**14
"""Bytes of a request to edit: a mask has one bit for each pixel."""
EDITS = {"vary": "Vary an image", "inpaint": "Fill in an image", "interpolate": "Blend two images"}


@router.get("/jobs")
def jobs(here: Here) -> dict[str, list[JobTold]]:
    """All jobs that are remembered, the oldest first."""
    return {"jobs": here.queue.all()}


@router.get("/jobs/{name}")
def job(here: Here, name: JobName) -> JobTold:
    """One job."""
    return here.queue.told(job_of(here, name))


@router.delete("/jobs/{name}", status_code=204)
def end(here: Here, name: JobName) -> Response:
    """Cancels a job, or forgets one that has ended."""
    here.queue.end(job_of(here, name))
    return Response(status_code=204)


@router.post("/jobs/sample", status_code=201)
def sample(here: Here, said: asked.Sampled) -> JobTold:
    """Draws pictures."""
    run = here.library.run(said.run)
    title = f"Draw {said.count} from {run.path.name}"
    made = _job("sample", title, said, keep=said.keep, run=said.run)
    return here.queue.add(made, sampling.sampling(said, run, here.held))


@router.post("/jobs/{name}/keep")
def keep(here: Here, name: JobName) -> JobTold:
    """Writes what was drawn into the run's folder, as `unraze sample` does."""
    made = job_of(here, name)
    if not isinstance(made.shown, sampling.Drawing):
        raise InputError("only drawings can be kept in a run's folder")
    sampling.keep(made.shown)
    made.result = {**(made.result or {}), "folder": made.shown.folder}
    here.queue.tell(made)
    return here.queue.told(made)


@router.post("/jobs/walk", status_code=201)
def walk(here: Here, said: asked.Walked) -> JobTold:
    """Walks back from x_t, greedy and random side by side."""
    run = here.library.run(said.run)
    made = _job("walk", f"Walk back from t = {said.t:g} with {run.path.name}", said, run=said.run)
    work = walking.walking(
        said, run, here.held, lambda model: looks.image_of(said.image, model, here.held, here.queue)
    )
    return here.queue.add(made, work)


@router.post("/jobs/edit", status_code=201, max_body_size=EDIT)
def edit(here: Here, said: asked.Edited) -> JobTold:
    """Varies an image, draws a part of it anew, or blends it with another."""
    run = here.library.run(said.run)

    def image(model: Model, picture: asked.Picture) -> tuple[Tensor, str]:
        x0 = looks.image_of(picture, model, here.held, here.queue)
        return x0, looks.file_of(picture, model, here.held)

    made = _job("edit", f"{EDITS[said.edit]} with {run.path.name}", said, run=said.run)
    return here.queue.add(made, editing.edit(said, run, here.held, image))


@router.post("/jobs/nearest", status_code=201)
def nearest(here: Here, said: asked.Near) -> JobTold:
    """Looks for the training images nearest to a drawn one."""
    drawn = job_of(here, said.job)
    if not isinstance(drawn.shown, sampling.Drawing):
        raise InputError("this job has drawn no pictures yet; wait until it is done")
    made = _job("nearest", f"Nearest to picture {said.image}", said, run=drawn.run)
    return here.queue.add(made, nearness.nearness(said, drawn.shown, here.held))


@router.post("/jobs/calls", status_code=201)
def calls(here: Here, said: asked.Calls) -> JobTold:
    """Measures quality against the number of network calls."""
    run = here.library.run(said.run)
    made = _job("calls", f"Quality by calls of {run.path.name}", said, run=said.run)
    return here.queue.add(made, calling.calling(said, run, here.held))


@router.post("/jobs/evaluate", status_code=201)
def evaluate(here: Here, said: asked.Evaluated) -> JobTold:
    """Evaluates a run, as `unraze eval` does."""
    run = here.library.run(said.run)
    made = _job("evaluate", f"Evaluate {run.path.name}", said, keep=True, run=said.run)
    return here.queue.add(made, evaluating.evaluating(said, run, here.held))


@router.post("/jobs/data", status_code=201)
def data(here: Here, said: asked.Data) -> JobTold:
    """Looks at a set of images, and for what would spoil a training."""
    source = here.sources.source(said.source)
    wanted_data = DataConfig(
        source=source,
        size=said.wanted_size,
        channels=said.channels,
        held_out=looking.HELD_OUT,
    )
    made = _job("data", f"Look at {_title(here, said.source)}", said)
    return here.queue.add(made, looking.looking(wanted_data, here.held))


@router.post("/jobs/estimate", status_code=201)
def estimate(here: Here, said: asked.Started) -> JobTold:
    """Estimates what a training takes, by a few steps of it."""
    config = wanted(said, here.sources.source(said.source))
    made = _job("estimate", "Estimate time and memory", said)
    return here.queue.add(made, estimating.estimating(config))


def _job(
    kind: str, title: str, said: asked.Client, *, keep: bool = False, run: str | None = None
) -> Job:
    plain = said.model_dump(mode="json", by_alias=True, exclude={"client"})
    return Job(kind=kind, title=title, client=said.client, keep=keep, run=run, asked=plain)


def _title(here: Studio, name: str) -> str:
    return next((str(s["title"]) for s in here.sources.all() if s["id"] == name), name)
