"""What is shown while something runs: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress as Bars, TaskProgressColumn, TextColumn

if TYPE_CHECKING:
    from unraze.data import Images
    from unraze.evaluate.stage import Stage
    from unraze.generate import Progress
    from unraze.train import Report

__all__ = [
    "clock",
    "follow_drawing",
    "follow_reading",
    "follow_stages",
    "follow_training",
    "held_out",
    "size_of",
]

T = TypeVar("T")

FIRST_SECONDS = 2.0
"""When the first line is printed where there is no terminal to draw a bar in."""
PLAIN_SECONDS = 5.0
"""How often there is one from then on."""


def follow_training(reports: Iterator[Report], console: Console) -> Report:
    """Shows training until it ends and returns its last report."""
    if console.is_terminal:
        return _training_bar(reports, console)
    last, due = None, _now_and_then(at_once=True)
    for last in reports:
        if last.message:
            print(last.message, flush=True)
        elif last.phase == "preparing" and due():
            print(f"preparing {last.step}/{last.steps}", flush=True)
        elif last.phase == "training" and due(last.step == last.steps):
            print(f"step {last.step}/{last.steps}  {_figures(last)}", flush=True)
    assert last is not None, "training always reports how it ended"
    return last


def _training_bar(reports: Iterator[Report], console: Console) -> Report:
    columns = (
        TextColumn("{task.fields[place]}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    last = None
    with Bars(*columns, console=console, refresh_per_second=4) as bars:
        task = bars.add_task("", total=None, place="", figures="measuring")
        for last in reports:
            if last.message:
                bars.console.print(last.message, markup=False, highlight=False)
            if last.phase in ("preparing", "training") and last.steps:
                preparing = last.phase == "preparing"
                bars.update(
                    task,
                    total=last.steps,
                    completed=last.step,
                    place=f"{'preparing' if preparing else 'step'} {last.step}/{last.steps}",
                    figures="" if preparing else _figures(last),
                )
    assert last is not None, "training always reports how it ended"
    return last


def _figures(report: Report) -> str:
    return (
        f"loss {report.loss:.4f}  {report.images_per_second:.0f} img/s  "
        f"{clock(report.seconds_left)} left  {size_of(report.memory)}"
    )


def follow_drawing(moments: Iterator[Progress], console: Console) -> Iterator[Progress]:
    """Shows how far sampling has come, and hands every moment on."""
    if not console.is_terminal:
        due = _now_and_then()
        for moment in moments:
            if due():
                print(f"step {moment.done}/{moment.total}", flush=True)
            yield moment
        return
    with _bars("images {task.fields[images]}", console) as bars:
        task = bars.add_task("", total=None, images="", left="")
        started = time.monotonic()
        for moment in moments:
            took = time.monotonic() - started
            bars.update(
                task,
                total=moment.total,
                completed=moment.done,
                images=f"{moment.numbers.start} … {moment.numbers.stop - 1}",
                left=clock(took / moment.done * (moment.total - moment.done)),
            )
            yield moment


def follow_reading(console: Console) -> Callable[[int, int], None]:
    """A function (done, total) that shows how far reading has come, for `unraze.data.load`."""
    due = _now_and_then()

    def show(done: int, total: int) -> None:
        if due():
            of = f" of {total}" if total else ""
            console.print(f"reading {done}{of}", markup=False, highlight=False)

    return show


def follow_stages(stages: Generator[Stage, None, T], console: Console) -> T:
    """Shows the parts of an evaluation as they go by, and returns its result."""
    from unraze.evaluate.stage import finish

    if not console.is_terminal:
        due, begun = _now_and_then(), False

        def say(stage: Stage) -> None:
            nonlocal begun
            if due(not begun):
                begun = True
                print(f"{stage.name} {stage.done}/{stage.total}", flush=True)

        return finish(stages, say)
    with _bars("{task.description}", console) as bars:
        task, name, started, before = bars.add_task("", total=None, left="?"), "", 0.0, 0

        def show(stage: Stage) -> None:
            nonlocal name, started, before
            now = time.monotonic()
            if stage.name != name:
                name, started, before = stage.name, now, stage.done
            made = stage.done - before
            left = (now - started) / made * (stage.total - stage.done) if made else float("nan")
            bars.update(
                task,
                description=stage.name,
                total=stage.total,
                completed=stage.done,
                left=clock(left),
            )

        return finish(stages, show)


def _now_and_then(*, at_once: bool = False) -> Callable[..., bool]:
    """A question that is answered yes after `FIRST_SECONDS`, or at once, then every
    `PLAIN_SECONDS`, and whenever it is asked with True."""
    before = PLAIN_SECONDS - min(FIRST_SECONDS, PLAIN_SECONDS)
    said = float("-inf") if at_once else time.monotonic() - before

    def due(anyway: bool = False) -> bool:
        nonlocal said
        now = time.monotonic()
        if not anyway and now - said < PLAIN_SECONDS:
            return False
        said = now
        return True

    return due


def _bars(name: str, console: Console) -> Bars:
    """A bar that goes when it is done: what is called `name`, how far it is, the time left."""
    columns = (
        TextColumn(name),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.fields[left]} left"),
    )
    return Bars(*columns, console=console, transient=True)


def held_out(images: Images) -> str:
    """What is held out of these images: how many, their source's test part, or "none"."""
    from unraze.data import has_test_part

    if images.origin is not None and has_test_part(images.origin.source):
        return "its own test part"
    return str(images.held_back or "none")


def clock(seconds: float) -> str:
    """Seconds as 1:05 or 2:03:04; "?" where they are not known."""
    if not seconds < float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size_of(count: int) -> str:
    """Bytes as MiB or GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
