"""Editing: the pictures of `unraze edit`, byte for byte, seen as they form."""

import base64
import binascii
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import assert_never

from unraze import pictures
from unraze.data import to_uint8
from unraze.drawing import FILM_AT_MOST, FILM_FRAMES, kept_states
from unraze.edit import editing, recipes
from unraze.edit.editing import Wish
from unraze.errors import InputError
from unraze.evaluate.stage import Stage
from unraze.generate import Model, Progress
from unraze.run import Run
from unraze.studio.asked import Edited, Inpainted, Interpolated, Picture, Varied
from unraze.studio.held import Held
from unraze.studio.library import Missing
from unraze.studio.sprites import MOST_BYTES, columns_of, sprite
from unraze.studio.work import Task, Work

__all__ = ["Edits", "edit"]

Array = np.ndarray[Any, Any]
Images = Callable[[Model, Picture], tuple[Tensor, str]]
"""Gives x_0 (1, C, H, W) of a model's shape, and the name of its file."""


@dataclass(eq=False)
class Edits:
    """What came of an image so far: states x_t, uint8 (N, H, W, C) each, and what was given, which
    stands before them in a grid; of a `strip` each result is a moment of the way."""

    recipe: dict[str, Any]
    given: list[Array]
    strip: bool
    times: list[float] = field(default_factory=list)
    states: list[Array] = field(default_factory=list)
    final: Array | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return sum(one.nbytes for one in (*self.states, *self.given))

    def frame(self, number: int) -> bytes:
        """A frame as a sprite; raises `Missing`."""
        if number >= len(self.states):
            raise Missing(f"frame {number} is not drawn yet")
        return sprite(self.states[number], columns_of(len(self.states[number])))

    def picture(self, number: int) -> bytes:
        """The file that `unraze edit` writes of one result; raises `Missing`."""
        final = self.drawn()
        if number >= len(final):
            raise Missing(f"there is no picture {number}, there are {len(final)}")
        one = pictures.to_pil(final[number : number + 1])[0]
        of = recipes.of_result(self.recipe, range(len(final)), number)
        return pictures.png_bytes(one, of)

    def grid(self) -> bytes:
        """The file that `unraze edit` writes of all of them; raises `Missing`."""
        whole = recipes.together(self.given, self.drawn(), strip=self.strip)
        return pictures.png_bytes(whole, self.recipe)

    def gif(self) -> bytes:
        """The film that `unraze edit --film` writes, of the frames that are kept; raises
        `Missing`."""
        if self.strip:
            frames = recipes.there_and_back(self.drawn())
            return pictures.film_bytes(frames, self.recipe, hold_last_ms=80)
        self.drawn()
        states = [state[:FILM_AT_MOST] for state in self.states]
        return pictures.film_bytes(pictures.film_frames(states, self.times), self.recipe)

    def drawn(self) -> Array:
        """The results, once they are; raises `Missing`."""
        if self.final is None:
            raise Missing("it is not drawn yet; wait until it is done")
        return self.final


def edit(asked: Edited, run: Run, held: Held, images: Images) -> Work:
    """The work of editing as it is asked for."""

    def work(task: Task) -> Generator[Stage, None, None]:
        yield Stage("reading the network", 0, 1)
        model = held.model(run)
        wish = _wish(asked, model)
        moments, about, given = _edit(asked, model, wish, lambda one: images(model, one))
        recipe = recipes.recipe_of(model, wish, about, raw=False)
        first = [pictures.pixels_of(one) for one in given]
        shown = task.job.shown = Edits(recipe, first, strip=isinstance(asked, Interpolated))
        yield from _seen(task, model, wish, moments, shown)

    return work


def _seen(
    task: Task, model: Model, wish: Wish, moments: Iterator[Progress], shown: Edits
) -> Generator[Stage, None, None]:
    """Follows an edit, and keeps some of its states: the last among them."""
    about = _about(model, wish, shown.recipe)
    each = max(1, wish.count * int(np.prod(model.shape)))
    most = max(1, min(FILM_FRAMES, MOST_BYTES // each))
    kept, before = frozenset[int](), None
    for moment in moments:
        if len(moment.numbers) < wish.count:  # the noise of an image that is given
            yield Stage("finding the noise", moment.done, moment.total)
            continue
        if before is None:
            before = moment.done - 1
            kept = kept_states(moment.total - before, most)
        if moment.done - before in kept:
            shown.states.append(recipes.pixels_of(model, moment.x))
            shown.times.append(moment.t)
            if moment.finished:
                shown.final = shown.states[-1]
            task.job.result = {
                **about,
                "frames": len(shown.states),
                "times": list(shown.times),
            }
        yield Stage("drawing", moment.done, moment.total)


def _wish(asked: Edited, model: Model) -> Wish:
    given = {"steps": asked.steps, "guidance": asked.guidance}
    changes = {key: value for key, value in given.items() if value is not None}
    match asked:
        case Varied(of=None):
            guided = asked.label is not None
            settings = editing.settings_to_vary(model, changes, guided=guided)
        case Varied():
            if asked.label is None:
                raise InputError("of: say with class what the image is to become")
            settings = editing.settings_for(model, changes, by="class")
        case Inpainted(method=method):
            settings = editing.settings_to_inpaint(model, changes, method=method)
        case Interpolated():
            settings = editing.settings_for(model, changes)
        case _:
            assert_never(asked)
    return Wish(
        settings,
        count=asked.count,
        seed=0 if isinstance(asked, Interpolated) else asked.seed,
        classes=() if asked.label is None else (asked.label,),
        batch=asked.count,
    )


def _edit(
    asked: Edited, model: Model, wish: Wish, image: Callable[[Picture], tuple[Tensor, str]]
) -> tuple[Iterator[Progress], dict[str, Any], list[Tensor]]:
    """The steps of an edit, what its recipe says of it, and what stands before its results."""
    x0, name = image(asked.image)
    told = recipes.image_told(name, to_uint8(x0)[0])
    match asked:
        case Varied(strength=strength, of=of):
            about = recipes.varied(told, strength=strength, of=of)
            if of is None:
                return editing.vary(model, x0[0], wish, strength=strength), about, [x0]
            moments = editing.change_class(model, x0[0], wish, of=(of,), strength=strength)
            return moments, about, [x0]
        case Inpainted(method=method, repeats=repeats):
            unknown = _mask(asked.mask, model.shape)
            about = recipes.inpainted(told, unknown, method=method, repeats=repeats)
            how: dict[str, Any] = {"method": method, "repeats": repeats}
            known = x0.masked_fill(unknown, 0.0)
            return editing.inpaint(model, x0[0], unknown, wish, **how), about, [x0, known]
        case Interpolated(iterations=iterations):
            x1, other = image(asked.to)
            both = [told, recipes.image_told(other, to_uint8(x1)[0])]
            about = recipes.interpolated(both, seeds=None, iterations=iterations)
            ends = (x0[0], x1[0])
            return editing.interpolate(model, ends, wish, iterations=iterations), about, []
        case _:
            assert_never(asked)


def _mask(text: str, shape: tuple[int, int, int]) -> Tensor:
    """bool (H, W), true what is to be drawn; raises `InputError` for a mask of another size."""
    _, height, width = shape
    count = height * width
    try:
        bits = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    except binascii.Error as error:
        raise InputError(f"mask: is no base64, {error}") from error
    if len(bits) != -(-count // 8) or np.unpackbits(bits)[count:].any():
        raise InputError(
            f"mask: is not of the run's images, {height} x {width}; give one bit a pixel, "
            f"{-(-count // 8)} bytes"
        )
    return torch.from_numpy(np.unpackbits(bits, count=count).reshape(height, width)).bool()


def _about(model: Model, wish: Wish, recipe: dict[str, Any]) -> dict[str, Any]:
    return {
        "count": wish.count,
        "columns": columns_of(wish.count),
        "shape": list(model.shape),
        "labels": [_label(model, wish)] * wish.count,
        "recipe": recipe,
        "settings": wish.settings.model_dump(mode="json"),
        "estimates": 0,
    }


def _label(model: Model, wish: Wish) -> str | None:
    """The name of the results' class; None where there is none, or one of clusters."""
    if not wish.classes or model.clusters is not None:
        return None
    return str(dict(enumerate(model.class_names)).get(wish.classes[0], wish.classes[0]))
