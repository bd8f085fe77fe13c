"""Destroy and Reconstruct: examples, dropped pictures, one moment of an image; and recipes."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from torch import Tensor

from unraze.generate import Model
from unraze.studio import asked, looks
from unraze.studio.recipes import understood
from unraze.studio.routes.common import PNG, Here, RunName, png
from unraze.studio.routes.session import UPLOAD
from unraze.studio.sprites import columns_of, sprite

__all__ = ["router"]

router = APIRouter(tags=["destroy"])

EXAMPLES = 24
FileName = Annotated[
    str, Query(max_length=255, description="What its file is called; a recipe names it so.")
]
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
"""What a route that takes a picture says of itself: the bytes of its file."""


@router.get("/runs/{name}/examples")
async def examples(here: Here, name: RunName) -> dict[str, Any]:
    """Images to begin with: such as the run was not trained on, where there are any."""

    def ask() -> dict[str, Any]:
        model = here.held.model(here.library.run(name))
        images = here.held.examples(model)
        count = min(EXAMPLES, len(images))
        labels = images.labels
        return {
            "count": count,
            "columns": columns_of(count),
            "shape": list(model.shape),
            "of": "training" if images.split == "train" else "held-out",
            "labels": [
                None if labels is None else images.class_names[labels[k]] for k in range(count)
            ],
        }

    return await here.read(ask)


@router.get("/runs/{name}/examples.png", response_class=Response, responses=PNG)
async def example_pictures(here: Here, name: RunName) -> Response:
    """They, as a sprite."""

    def ask() -> bytes:
        images = here.held.examples(here.held.model(here.library.run(name)))
        shown = images.pixels[: min(EXAMPLES, len(images))].transpose(0, 2, 3, 1)
        return sprite(shown, columns_of(len(shown)))

    return png(await here.read(ask))


@router.post("/runs/{name}/destroy")
async def destroy(here: Here, name: RunName, said: asked.Destroyed) -> dict[str, Any]:
    """x_t of an image, the noise in it, and what the network says of x_t alone."""

    def prepare() -> tuple[Model, Tensor]:
        model = here.held.model(here.library.run(name))
        return model, looks.image_of(said.image, model, here.held, here.queue)

    return await here.look(prepare, lambda read: looks.destroyed(said, *read))


@router.post("/images", status_code=201, openapi_extra=BODY, max_body_size=UPLOAD)
async def upload(here: Here, request: Request, file: FileName = "picture") -> dict[str, Any]:
    """Keeps a picture that was dropped, for as long as it is wanted."""
    data = await request.body()
    return await here.read(lambda: here.held.keep(data, file))


@router.post("/recipes", openapi_extra=BODY, max_body_size=UPLOAD)
async def recipe(here: Here, request: Request) -> dict[str, Any]:
    """What a picture that Unraze made says of how it was made."""
    data = await request.body()
    return await here.read(lambda: understood(data, here.library, here.held))
