"""Runs: the list, one of them, its curves and pictures; to start, to stop and to go on."""

from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response

from unraze import generate, run as folders, schedule as schedules, untrusted
from unraze.config import Config, preset, updated
from unraze.errors import InputError, UnrazeError
from unraze.run import Run
from unraze.studio import asked, looks
from unraze.studio.library import RunTold, checkpoints_of, is_there, sayable
from unraze.studio.routes.common import PNG, Here, RunName, png

__all__ = ["router", "wanted"]

router = APIRouter(tags=["runs"])

Step = Annotated[int, Path(ge=0, le=10**9)]


@router.get("/runs")
def runs(here: Here) -> dict[str, Any]:
    """All runs of the folder, those that changed last first."""
    return {"folder": str(here.library.folder), "runs": here.library.all()}


@router.get("/runs/{name}")
def run(here: Here, name: RunName) -> dict[str, Any]:
    """One run, with all that its folder says of it."""
    told = here.library.told(name)
    if name in here.library.starting:
        return {**told.model_dump(), **_nothing(), "can_stop": told.state == "starting"}
    found = here.library.run(name)
    steps, best = checkpoints_of(found)
    trained_here = folders.trainer_here(found) is not None
    more = {
        **_nothing(),
        "config": _text(found, "config.toml"),
        "command": _text(found, "command.txt").strip(),
        "environment": sayable(folders.read_env(found)),
        "log": here.library.log(found),
        "checkpoints": steps,
        "best": best,
        "previews": here.library.previews(found),
        "reals": f"/api/runs/{name}/reals.png" if is_there(found.path / "reals.png") else None,
        "can_stop": told.state == "running" and trained_here,
        "can_resume": told.state in ("stopped", "empty"),
    }
    with suppress(InputError):  # `error` says it
        more |= _of_config(folders.read_config(found))
    if steps:
        try:
            more |= _of_model(here, found)
        except UnrazeError as error:
            more |= {"can_sample": False, "error": told.error or str(error)}
    return told.model_dump() | more


@router.get("/runs/{name}/curves")
def curves(
    here: Here, name: RunName, after: Annotated[int, Query(ge=0, le=10**9)] = 0
) -> dict[str, Any]:
    """Loss, learning rate, speed and quality by step, of the steps after one."""
    if name in here.library.starting:
        empty: dict[str, list[float]] = {"step": [], "loss": [], "lr": [], "images_per_second": []}
        return {"columns": empty, "quality": [], "step": 0, "began_anew": False}
    return here.library.curves(name, after)


@router.get("/runs/{name}/schedule")
def schedule(here: Here, name: RunName) -> dict[str, Any]:
    """The schedule's curves."""
    found = here.library.run(name)
    return looks.schedule_of(schedules.from_config(folders.read_config(found).schedule))


@router.get("/runs/{name}/previews/{step}.png", response_class=Response, responses=PNG)
def preview(here: Here, name: RunName, step: Step) -> Response:
    """What it drew at this step: as trained on the left, with averaged weights on the right."""
    return png(here.library.preview(name, step))


@router.get("/runs/{name}/thumbnail.png", response_class=Response, responses=PNG)
def thumbnail(here: Here, name: RunName) -> Response:
    """What it draws, small."""
    return png(here.library.thumbnail(name))


@router.get("/runs/{name}/reals.png", response_class=Response, responses=PNG)
def reals(here: Here, name: RunName) -> Response:
    """Some of what it learns from."""
    return png(here.library.reals(name))


@router.post("/runs/{name}/stop", status_code=202)
def stop(here: Here, name: RunName) -> dict[str, Any]:
    """Has a training save and stop."""
    here.trainings.stop(name)
    return {"words": "saving, then stopping"}


@router.post("/runs/{name}/resume", status_code=202)
def resume(here: Here, name: RunName) -> dict[str, Any]:
    """Goes on with a run that was stopped."""
    here.trainings.resume(name)
    return {"words": "going on"}


@router.get("/sources")
def sources(here: Here) -> dict[str, Any]:
    """The sets of images that can be trained on here."""
    return {"sources": here.sources.all()}


@router.post("/trainings", status_code=201)
def train(here: Here, said: asked.Training) -> RunTold:
    """Starts a training, in a process of its own."""
    source = here.sources.source(said.source)
    wanted(said, source)  # refuses what no training takes, before there is a folder
    return here.trainings.start(_options(said), source=source, preset=said.preset, name=said.name)


def wanted(said: asked.Training, source: str) -> Config:
    """The configuration that a request asks for; raises `InputError`."""
    if said.minutes is not None and said.steps is not None:
        raise InputError("minutes and steps: give one of them")
    changes = {
        "data.source": source,
        "data.size": said.wanted_size,
        "data.channels": said.channels,
        "data.flip": said.flip,
        "data.held_out": said.held_out,
        "train.minutes": said.minutes,
        "train.steps": said.steps,
        "train.classes": said.classes,
        "train.seed": said.seed,
        "train.eval_every": said.eval_every,
        "train.batch": said.batch,
        "train.lr": said.lr,
    }
    given = {key: value for key, value in changes.items() if value is not None}
    return updated(preset(said.preset), given)


def _options(said: asked.Training) -> list[str]:
    """The same as options of `unraze train`, but for the images."""
    options = ["--preset", said.preset, "--seed", str(said.seed)]
    flags = {"--classes": said.classes, "--flip": said.flip}
    options += [name for name, value in flags.items() if value]
    values = {
        "--minutes": said.minutes,
        "--steps": said.steps,
        "--size": said.size,
        "--channels": said.channels,
        "--held-out": said.held_out,
        "--eval-every": said.eval_every,
        "--batch": said.batch,
        "--lr": said.lr,
    }
    return options + [
        word for name, value in values.items() if value is not None for word in (name, str(value))
    ]


def _nothing() -> dict[str, Any]:
    """What is told of a run of which nothing is known."""
    return {
        "config": "",
        "command": "",
        "environment": {},
        "log": [],
        "checkpoints": [],
        "best": None,
        "previews": [],
        "reals": None,
        "class_names": [],
        "num_classes": 0,
        "clusters": 0,
        "T": None,
        "parametrisation": None,
        "sample": None,
        "calls": None,
        "tuned": [],
        "guidable": False,
        "learned_variance": False,
        "distilled": False,
        "can_stop": False,
        "can_resume": False,
    }


def _of_config(config: Config) -> dict[str, Any]:
    return {
        "T": config.schedule.steps,
        "parametrisation": config.loss.parametrisation,
        "sample": config.sample.model_dump(mode="json"),
        "learned_variance": config.loss.variance == "learned",
        "distilled": config.distilled is not None,
    }


def _of_model(here: Here, run: Run) -> dict[str, Any]:
    model = here.held.model(run)
    settings = generate.settings_of(model)
    clusters = 0 if model.clusters is None else model.num_classes
    return {
        "class_names": [] if clusters else list(model.class_names),
        "num_classes": 0 if clusters else model.num_classes,
        "clusters": clusters,
        "sample": settings.model_dump(mode="json"),
        "calls": generate.calls_of(model, settings),
        "tuned": sorted(model.tuning.settings) if model.tuning else [],
        "guidable": generate.can_be_guided(model) and model.config.distilled is None,
    }


def _text(run: Run, name: str) -> str:
    try:
        return untrusted.read(run.path / name, 2**20).decode("utf-8", "replace")
    except (OSError, ValueError):
        return ""
