"""The one queue of long work: one thing at a time, with its place, how far it is, and an end to it.

A task is a generator of stages, as the parts of an evaluation are; between two of them it can be
cancelled, and whoever waits for a look (`Turns`) goes first.
"""

import secrets
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

from unraze.errors import UnrazeError
from unraze.evaluate.stage import Stage
from unraze.hardware import memory_told
from unraze.studio.events import Crowded, Hub

__all__ = ["ENDED", "Cancelled", "Job", "JobTold", "Queue", "Task", "Turns", "Work"]

MOST_WAITING = 16
MOST_KEPT = 64
"""Jobs that have ended, with their pictures, that are remembered."""
MOST_BYTES = 2**29
"""Bytes of their pictures, all together."""
SELDOM = 0.05
"""Seconds between two words on how far a job is."""
ENDED = ("done", "failed", "cancelled")

State = Literal["waiting", "running", "done", "failed", "cancelled"]


class JobTold(BaseModel):
    """A job as tabs are told of it; times in seconds of the epoch."""

    id: str
    kind: str
    title: str
    client: str
    keep: bool
    state: State
    position: int | None
    done: int
    total: int
    stage: str | None
    seconds_left: float | None
    error: str | None
    made: float
    run: str | None
    asked: dict[str, Any]
    result: dict[str, Any] | None


@dataclass(eq=False)
class Job:
    """One piece of work.

    `shown` is what its pictures are made from, of the kind's own type; `shows` says that tabs were
    told of a result, or of a part of one.
    """

    kind: str
    title: str
    client: str
    keep: bool
    run: str | None
    asked: dict[str, Any]
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    state: State = "waiting"
    stage: Stage | None = None
    stage_began: float = 0.0
    stage_from: int = 0
    error: str | None = None
    made: float = field(default_factory=time.time)
    result: dict[str, Any] | None = None
    shown: Any = None
    shows: bool = False
    cancelled: bool = False

    def told(self, position: int | None = None) -> JobTold:
        """It, as it stands."""
        stage = self.stage
        return JobTold(
            id=self.id,
            kind=self.kind,
            title=self.title,
            client=self.client,
            keep=self.keep,
            state=self.state,
            position=position,
            done=stage.done if stage else 0,
            total=stage.total if stage else 0,
            stage=stage.name if stage else None,
            seconds_left=self._left() if self.state == "running" else None,
            error=self.error,
            made=self.made,
            run=self.run,
            asked=self.asked,
            result=self.result,
        )

    def _left(self) -> float | None:
        """Seconds that this stage will take on."""
        stage = self.stage
        if stage is None or stage.done <= self.stage_from:
            return None
        took = time.monotonic() - self.stage_began
        return took / (stage.done - self.stage_from) * max(0, stage.total - stage.done)


class Cancelled(Exception):
    """Work was to end before it was done."""


@dataclass(frozen=True)
class Task:
    """What work is given: its job, and a way to say how far it is where it cannot yield.

    `aside` is a context in which it has no turn: for what reads and does not compute.
    """

    job: Job
    say: Callable[[Stage | None], None]
    aside: Callable[[], AbstractContextManager[None]]

    def progress(self, name: str) -> Callable[[int, int], None]:
        """For what reports (done, total): says so, and raises `Cancelled` where it is to end."""

        def report(done: int, total: int) -> None:
            self.say(Stage(name, done, total))
            if self.job.cancelled:
                raise Cancelled

        return report


Work = Callable[[Task], Generator[Stage, None, dict[str, Any] | None]]
"""A task: yields its stages, returns its result, or None where `job.result` has it already."""


class Turns:
    """Who computes: one at a time, for two that spin on the same cores both take ten times as long.

    Whoever looks goes before whoever works.
    """

    def __init__(self) -> None:
        self._free, self._busy, self._looking = threading.Condition(), False, 0

    @contextmanager
    def look(self) -> Iterator[None]:
        """The next turn."""
        with self._free:
            self._looking += 1
            self._free.wait_for(lambda: not self._busy)
            self._looking -= 1
            self._busy = True
        yield from self._turn()

    @contextmanager
    def work(self) -> Iterator[None]:
        """A turn once nobody looks."""
        with self._free:
            self._free.wait_for(lambda: not self._busy and not self._looking)
            self._busy = True
        yield from self._turn()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Within `work`: gives the turn away for as long as this lasts."""
        self._give()
        try:
            yield
        finally:
            with self._free:
                self._free.wait_for(lambda: not self._busy and not self._looking)
                self._busy = True

    def _turn(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._give()

    def _give(self) -> None:
        with self._free:
            self._busy = False
            self._free.notify_all()


class Queue:
    """Jobs in order, worked on by one thread."""

    def __init__(self, hub: Hub, turns: Turns) -> None:
        self._hub, self._turns = hub, turns
        self._jobs, self._work = dict[str, Job](), dict[str, Work]()
        self._changed, self._closed, self._said = threading.Condition(), False, 0.0
        self._thread = threading.Thread(target=self._run, name="studio-work", daemon=True)
        self._thread.start()

    def add(self, job: Job, work: Work) -> JobTold:
        """Puts a job at the end; raises `Crowded` where too many wait."""
        with self._changed:
            if self._closed:
                raise Crowded("the studio is ending; start it again")
            if sum(other.state == "waiting" for other in self._jobs.values()) >= MOST_WAITING:
                raise Crowded(
                    f"{MOST_WAITING} jobs wait already; cancel one, or wait until one is done"
                )
            self._jobs[job.id], self._work[job.id] = job, work
            self._forget_oldest()
            self._changed.notify_all()
        self.tell(job)
        return self.told(job)

    def get(self, name: str) -> Job | None:
        """A job by its identifier."""
        return self._jobs.get(name)

    def told(self, job: Job) -> JobTold:
        """A job with its place among those that wait."""
        with self._changed:
            waiting = [other for other in self._jobs.values() if other.state == "waiting"]
        return job.told(waiting.index(job) if job in waiting else None)

    def all(self) -> list[JobTold]:
        """All jobs, the oldest first."""
        return [self.told(job) for job in list(self._jobs.values())]

    def tell(self, job: Job) -> None:
        """Says how a job stands, as long as it is remembered."""
        with self._changed:  # or an older state could be said after a newer one, or after its end
            if self._jobs.get(job.id) is job:
                self._hub.say("job", f"job {job.id}", self.told(job).model_dump())

    def end(self, job: Job) -> None:
        """Cancels what waits or runs; forgets what has ended."""
        with self._changed:
            job.cancelled = True
            if job.state == "waiting":
                job.state = "cancelled"
                self._work.pop(job.id, None)
            elif job.state in ENDED:
                self._forget(job)
                return
        self._tell_waiting(job)

    def abandon(self, client: str) -> None:
        """Ends what a tab that was closed only looked at."""
        for job in list(self._jobs.values()):
            if job.client == client and not job.keep and job.state not in ENDED:
                self.end(job)

    def close(self) -> None:
        """Ends all of it."""
        with self._changed:
            self._closed = True
            for job in self._jobs.values():
                job.cancelled = True
            self._changed.notify_all()
        self._thread.join(timeout=10.0)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._next() is not None)
                job = self._next()
                if self._closed or job is None:
                    return
                job.state = "running"
                work = self._work.pop(job.id)
            self._tell_waiting(job)
            self._do(job, work)
            with self._changed:
                self._forget_oldest()
            self.tell(job)

    def _do(self, job: Job, work: Work) -> None:
        """Works on a job to its end, however it ends."""
        stages = work(Task(job, lambda stage: self._at(job, stage), self._turns.aside))
        try:
            with memory_told("ask for fewer or smaller pictures"):
                job.result = self._stepped(job, stages) or job.result
            job.state = "done"
        except Cancelled:
            job.state = "cancelled"
        except UnrazeError as error:
            job.error, job.state = str(error), "failed"
        except Exception as error:  # a defect, which must not end the queue
            traceback.print_exc(file=sys.stderr)
            said = f"{type(error).__name__}: {error}"
            job.error = f"a defect of Unraze ({said}); the terminal has the whole of it"
            job.state = "failed"
        finally:
            stages.close()

    def _stepped(
        self, job: Job, stages: Generator[Stage, None, dict[str, Any] | None]
    ) -> dict[str, Any] | None:
        while True:
            if job.cancelled:
                raise Cancelled
            try:
                with self._turns.work():
                    stage = next(stages)
            except StopIteration as end:
                result: dict[str, Any] | None = end.value
                return result
            self._at(job, stage)

    def _at(self, job: Job, stage: Stage | None) -> None:
        """Notes how far a job is, and says so, though not more often than anybody looks."""
        now = time.monotonic()
        if stage is not None:
            if job.stage is None or job.stage.name != stage.name:
                job.stage_began, job.stage_from, self._said = now, stage.done, 0.0
            job.stage = stage
        first = job.result is not None and not job.shows  # which is waited for
        if first or now - self._said >= SELDOM:
            self._said, job.shows = now, job.result is not None
            self.tell(job)

    def _next(self) -> Job | None:
        return next((job for job in self._jobs.values() if job.state == "waiting"), None)

    def _tell_waiting(self, job: Job) -> None:
        """Of a job, and of those whose place it changed."""
        self.tell(job)
        for other in list(self._jobs.values()):
            if other.state == "waiting":
                self.tell(other)

    def _forget_oldest(self) -> None:
        """Of what has ended: as many as are remembered, and as large as that may be together."""
        ended = [job for job in self._jobs.values() if job.state in ENDED]
        sizes = [getattr(job.shown, "nbytes", 0) for job in ended]
        while ended and (len(ended) > MOST_KEPT or (sum(sizes) > MOST_BYTES and len(ended) > 1)):
            self._forget(ended.pop(0))
            sizes.pop(0)

    def _forget(self, job: Job) -> None:
        if self._jobs.pop(job.id, None) is not None:
            self._hub.say("job-gone", f"job {job.id}", {"id": job.id})
