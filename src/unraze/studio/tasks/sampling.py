"""Drawing: the pictures of `unraze sample`, byte for byte, seen as they form."""

import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from unraze import drawing, generate, pictures
from unraze.drawing import Film, Order
from unraze.evaluate.stage import Stage
from unraze.generate import Model
from unraze.run import Run
from unraze.studio.asked import Sampled
from unraze.studio.held import Held
from unraze.studio.library import Missing
from unraze.studio.sprites import columns_of, sprite
from unraze.studio.work import Task, Work

__all__ = ["Drawing", "film", "grid", "keep", "labels_of", "picture", "sampling"]

Array = np.ndarray[Any, Any]

MOST_BYTES = 2**26
"""Of the frames that a drawing keeps in memory."""


@dataclass(eq=False)
class Drawing:
    """What was drawn so far: its frames, states x_t and estimates x̂_0, uint8 (N, H, W, C) each."""

    order: Order
    film: Film = field(default_factory=Film)
    estimates: list[Array] = field(default_factory=list)
    final: Array | None = None
    folder: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def frame(self, number: int, of: str) -> bytes:
        """A frame as a sprite; raises `Missing`."""
        frames = self.estimates if of == "estimate" else self.film.states
        if number >= len(self.estimates):
            raise Missing(f"frame {number} is not drawn yet")
        return sprite(frames[number], columns_of(self.order.count))


def sampling(asked: Sampled, run: Run, held: Held) -> Work:
    """The work of drawing what is asked for."""

    def work(task: Task) -> Generator[Stage, None, None]:
        yield Stage("reading the network", 0, 1)
        model = held.model(run, step=asked.checkpoint, raw=asked.raw)
        order = _order(asked, model)
        states = generate.plan_of(model, order.settings).states
        bytes_each = 2 * order.count * int(np.prod(model.shape))
        kept = drawing.kept_states(
            states, max(1, min(drawing.FILM_FRAMES, MOST_BYTES // bytes_each))
        )
        shown = task.job.shown = Drawing(order)
        about = _about(order)
        yield Stage("drawing", 0, states)
        for moment in drawing.moments(order):
            if moment.done in kept:
                state = drawing.pixels_of(order, moment.x)
                estimate = drawing.pixels_of(order, moment.estimate)
                with shown.lock:
                    shown.film.states.append(state)
                    shown.film.times.append(moment.t)
                    shown.estimates.append(estimate)
                times = list(shown.film.times)
                task.job.result = {**about, "frames": len(times), "times": times, "folder": None}
            if moment.finished:
                shown.final = drawing.pixels_of(order, moment.x)
            yield Stage("drawing", moment.done, moment.total)
        if asked.keep:
            yield Stage("writing", 0, 1)
            keep(shown)
            task.job.result = {**(task.job.result or {}), "folder": shown.folder}

    return work


def _order(asked: Sampled, model: Model) -> Order:
    settings = generate.asked(model, asked.settings)
    return Order(
        model=model,
        settings=settings,
        seed=asked.seed,
        classes=asked.classes,
        count=asked.count,
        batch=asked.count,
        raw=asked.raw,
    )


def _about(order: Order) -> dict[str, Any]:
    model, count = order.model, order.count
    return {
        "count": count,
        "columns": columns_of(count),
        "shape": list(model.shape),
        "labels": labels_of(order),
        "recipe": drawing.recipe_of(order, range(count), 0),
        "settings": order.settings.model_dump(mode="json"),
        "calls": generate.calls_of(model, order.settings),
    }


def labels_of(order: Order) -> list[str | None]:
    """The name of each image's class; None where it has none, or one of clusters."""
    names = order.model.class_names
    if not order.model.num_classes or order.model.clusters is not None:
        return [None] * order.count
    found = [
        generate.class_of(order.model, order.classes, k, order.seed) for k in range(order.count)
    ]
    return [None if k is None else names[k] if k < len(names) else str(k) for k in found]


def picture(shown: Drawing, number: int) -> bytes:
    """The file that `unraze sample` writes of one picture."""
    final = _final(shown)
    if number >= len(final):
        raise Missing(f"there is no picture {number}, there are {len(final)}")
    recipe = drawing.recipe_of(shown.order, range(shown.order.count), number)
    return pictures.png_bytes(pictures.to_pil(final[number : number + 1])[0], recipe)


def grid(shown: Drawing) -> bytes:
    """The file that `unraze sample` writes of all of them."""
    return pictures.png_bytes(*drawing.grid_of(shown.order, _final(shown)))


def film(shown: Drawing) -> bytes:
    """The film that `unraze sample --film` writes."""
    _final(shown)
    states = [state[: drawing.FILM_AT_MOST] for state in shown.film.states]
    frames, recipe = drawing.film_of(shown.order, Film(states, shown.film.times))
    return pictures.film_bytes(frames, recipe)


def keep(shown: Drawing) -> None:
    """Writes the pictures into the run's folder, as `unraze sample` does; once."""
    final = _final(shown)
    with shown.lock:
        if shown.folder is not None:
            return
        folder = drawing.fresh_folder(Path(shown.order.model.run))
        count = shown.order.count
        for number, one in enumerate(pictures.to_pil(final)):
            recipe = drawing.recipe_of(shown.order, range(count), number)
            pictures.write_png(one, folder / f"{number:05d}.png", recipe)
        whole, recipe = drawing.grid_of(shown.order, final)
        pictures.write_png(whole, folder / "grid.png", recipe)
        shown.folder = str(folder)


def _final(shown: Drawing) -> Array:
    if shown.final is None:
        raise Missing("it is not drawn yet; wait until it is done")
    return shown.final
