"""Drawing: the pictures of `unraze sample`, byte for byte, seen as they form."""

import threading
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from unraze import drawing, generate, pictures
from unraze.drawing import Film, Order
from unraze.evaluate.stage import Stage
from unraze.generate import Model
from unraze.run import Run
from unraze.studio.asked import Sampled
from unraze.studio.held import Held
from unraze.studio.library import Missing
from unraze.studio.sprites import MOST_BYTES, columns_of, sprite
from unraze.studio.work import Task, Work

__all__ = ["Drawing", "keep", "labels_of", "sampling"]

Array = np.ndarray[Any, Any]


@dataclass(eq=False)
class Drawing:
    """What was drawn so far: states x_t from the noise x_T on, and what the network takes each of
    them for, x̂_0, which is known a call later; uint8 (N, H, W, C) each."""

    order: Order
    times: list[float] = field(default_factory=list)
    states: list[Array] = field(default_factory=list)
    estimates: list[Array] = field(default_factory=list)
    film: Film | None = None
    final: Array | None = None
    folder: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        film = [] if self.film is None else self.film.states
        final = [] if self.final is None else [self.final]
        return sum(one.nbytes for one in (*self.states, *self.estimates, *film, *final))

    def frame(self, number: int, of: str) -> bytes:
        """A frame as a sprite; raises `Missing`."""
        frames = self.estimates if of == "estimate" else self.states
        if number >= len(frames):
            raise Missing(f"frame {number} is not drawn yet")
        return sprite(frames[number], columns_of(self.order.count))

    def picture(self, number: int) -> bytes:
        """The file that `unraze sample` writes of one picture; raises `Missing`."""
        drawn = self.drawn()
        if number >= len(drawn):
            raise Missing(f"there is no picture {number}, there are {len(drawn)}")
        recipe = drawing.recipe_of(self.order, range(self.order.count), number)
        return pictures.png_bytes(pictures.to_pil(drawn[number : number + 1])[0], recipe)

    def grid(self) -> bytes:
        """The file that `unraze sample` writes of all of them; raises `Missing`."""
        return pictures.png_bytes(*drawing.grid_of(self.order, self.drawn()))

    def gif(self) -> bytes:
        """The film that `unraze sample --film` writes; raises `Missing`."""
        self.drawn()
        if self.film is None:
            raise Missing("its film is too large to be kept here; unraze sample --film draws it")
        return pictures.film_bytes(*drawing.film_of(self.order, self.film))

    def drawn(self) -> Array:
        """The pictures, once they are; raises `Missing`."""
        if self.final is None:
            raise Missing("it is not drawn yet; wait until it is done")
        return self.final


def sampling(asked: Sampled, run: Run, held: Held) -> Work:
    """The work of drawing what is asked for."""

    def work(task: Task) -> Generator[Stage, None, None]:
        yield Stage("reading the network", 0, 1)
        model = held.model(run, step=asked.checkpoint, raw=asked.raw)
        order = _order(asked, model)
        plan = generate.plan_of(model, order.settings)
        states = plan.states
        bytes_each = 2 * order.count * int(np.prod(model.shape))
        kept = drawing.kept_states(
            states, max(1, min(drawing.FILM_FRAMES, MOST_BYTES // bytes_each))
        )
        filmed = drawing.kept_states(states)
        shown = task.job.shown = Drawing(order)
        if len(filmed) * bytes_each <= 2 * MOST_BYTES:
            shown.film = Film()
        about = _about(order)

        def say() -> None:
            task.job.result = {
                **about,
                "frames": len(shown.states),
                "estimates": len(shown.estimates),
                "times": list(shown.times),
                "folder": None,
            }

        noise = generate.start(model, order.seed, range(order.count))
        shown.states.append(drawing.pixels_of(order, noise))
        shown.times.append(float(plan.chain.times[-1]))
        say()
        yield Stage("drawing", 0, states)
        for moment in drawing.moments(order):
            if len(shown.estimates) < len(shown.states):
                shown.estimates.append(drawing.pixels_of(order, moment.estimate))
                say()
            if moment.done in kept:
                shown.states.append(drawing.pixels_of(order, moment.x))
                shown.times.append(moment.t)
                if moment.finished:  # without noise there is nothing to estimate
                    shown.estimates.append(shown.states[-1])
                say()
            if shown.film is not None and moment.done in filmed:
                first = moment.x[: drawing.FILM_AT_MOST]
                shown.film.states.append(drawing.pixels_of(order, first))
                shown.film.times.append(moment.t)
            if moment.finished:
                shown.final = drawing.pixels_of(order, moment.x)
                shown.order = _without_network(order)
            yield Stage("drawing", moment.done, moment.total)
        if asked.keep:
            yield Stage("writing", 0, 1)
            keep(shown)
            task.job.result = {**(task.job.result or {}), "folder": shown.folder}

    return work


def _order(asked: Sampled, model: Model) -> Order:
    settings = generate.asked(model, asked.settings, classes=asked.classes)
    return Order(
        model=model,
        settings=settings,
        seed=asked.seed,
        classes=asked.classes,
        count=asked.count,
        batch=asked.count,
        raw=asked.raw,
    )


def _without_network(order: Order) -> Order:
    """What recipes are made of: pictures are remembered for longer than networks."""
    device = next(order.model.network.parameters()).device
    return replace(order, model=replace(order.model, network=nn.Linear(1, 1, device=device)))


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


def keep(shown: Drawing) -> None:
    """Writes the pictures into the run's folder, as `unraze sample` does; once."""
    final = shown.drawn()
    with shown.lock:
        if shown.folder is not None:
            return
        folder = drawing.make_folder(Path(shown.order.model.run))
        count = shown.order.count
        for number, one in enumerate(pictures.to_pil(final)):
            recipe = drawing.recipe_of(shown.order, range(count), number)
            pictures.write_png(one, folder / f"{number:05d}.png", recipe)
        whole, recipe = drawing.grid_of(shown.order, final)
        pictures.write_png(whole, folder / "grid.png", recipe)
        shown.folder = str(folder)
