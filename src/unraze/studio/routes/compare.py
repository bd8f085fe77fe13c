"""Evaluations: those of a run, and of several side by side."""

from typing import Annotated, Any

from fastapi import APIRouter, Query

from unraze.errors import InputError
from unraze.evaluate.compare import compared, letter
from unraze.studio.library import checkpoints_of
from unraze.studio.routes.common import Here, RunName
from unraze.studio.tasks.evaluating import evaluations_of, told

__all__ = ["router"]

router = APIRouter(tags=["compare"])


@router.get("/runs/{name}/evaluations")
def evaluations(here: Here, name: RunName) -> dict[str, Any]:
    """All evaluations of a run, the newest first."""
    run = here.library.run(name)
    found = evaluations_of(run)
    tuned = here.held.model(run).tuning if checkpoints_of(run)[0] else None
    return {
        "evaluations": [told(file, evaluation) for file, evaluation in found],
        "tuned": {}
        if tuned is None
        else {
            calls: settings.model_dump(mode="json") for calls, settings in tuned.settings.items()
        },
    }


@router.get("/compare")
def compare(
    here: Here,
    run: Annotated[
        list[Annotated[str, Query(pattern="^[0-9a-f]{16}$")]], Query(min_length=1, max_length=4)
    ],
) -> dict[str, Any]:
    """The newest evaluations of some runs, and which differences are real."""
    newest = {name: evaluations_of(here.library.run(name))[:1] for name in dict.fromkeys(run)}
    shown = [
        {"id": name, "evaluation": told(*found[0]) if found else None}
        for name, found in newest.items()
    ]
    measured = [found[0][1] for found in newest.values() if found]
    if len(measured) < 2:
        return {"runs": shown, "words": [], "error": None}
    try:
        comparison = compared(measured)
    except InputError as error:
        return {"runs": shown, "words": [], "error": str(error)}
    named = [
        f"{letter(place)} is {evaluation.subject.name}."
        for place, evaluation in enumerate(measured)
    ]
    return {"runs": shown, "words": [*named, *comparison.words, *comparison.remarks], "error": None}
