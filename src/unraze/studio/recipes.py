"""What a dropped picture says of how it was made, and whether its run is here."""

from pathlib import Path
from typing import Any

from unraze import __version__, drawing, pictures
from unraze.drawing import Recipe
from unraze.errors import InputError, UnrazeError
from unraze.studio.asked import MOST_PICTURES
from unraze.studio.held import Held
from unraze.studio.library import Library, sayable

__all__ = ["understood"]

NAME = "the picture"


def understood(data: bytes, library: Library, held: Held) -> dict[str, Any]:
    """The recipe, the run here that can follow it, and what to ask for to draw it again.

    Raises `InputError` for a picture without a recipe, or with one that is not of a drawing.
    """
    written = pictures.recipe_in(data[: pictures.HEAD], NAME)
    recipe = drawing.understood(written, Path(NAME))
    library.refresh()
    run = library.named(recipe.run)
    if run is None:
        words = (
            f"it was drawn from the run {Path(recipe.run).name}, which is not here; start the "
            "studio in the folder that has it"
        )
        return _told(written, None, None, words, None)
    try:
        model = held.model(library.run(run), step=recipe.step, raw=recipe.raw)
        same, words = model.checkpoint == recipe.checkpoint, ""
    except UnrazeError as error:
        same, words = False, str(error)
    if not same and not words:
        words = "the run of this name has other weights now, so that it draws other pictures"
    elif same:
        words = _unlike(recipe)
    return _told(written, run, same, words or None, _sample(recipe, run))


def _unlike(recipe: Recipe) -> str:
    """Why what the studio draws by a recipe may differ from its picture; empty where it may not."""
    if recipe.count > MOST_PICTURES:
        return (
            f"it is one of {recipe.count} that were drawn at once, of which the studio draws "
            f"{MOST_PICTURES}; a pixel may differ by a grey level"
        )
    if recipe.engine != "torch":
        return f"it was drawn by {recipe.engine}, the studio draws by torch: a pixel may differ"
    if recipe.unraze != __version__:
        return f"it is of Unraze {recipe.unraze}, this is {__version__}: pixels may differ"
    return ""


def _told(
    written: dict[str, Any],
    run: str | None,
    same: bool | None,
    words: str | None,
    sample: dict[str, Any] | None,
) -> dict[str, Any]:
    return {
        "recipe": sayable(written),
        "run": run,
        "same_weights": same,
        "words": words,
        "sample": sample,
    }


def _sample(recipe: Recipe, run: str) -> dict[str, Any]:
    """The request that draws it again: the same bytes where its batch began with image 0."""
    first, size = recipe.batch
    if first:
        raise InputError(
            f"{NAME}: is of images {first} to {first + size - 1} of its seed, and the studio draws "
            "from image 0; make it again with `unraze sample --like`"
        )
    return {
        "run": run,
        "checkpoint": recipe.step,
        "raw": recipe.raw,
        "seed": recipe.seed,
        "count": min(recipe.count, MOST_PICTURES),
        "classes": recipe.classes,
        "settings": recipe.settings.model_dump(mode="json", exclude_none=True),
    }
