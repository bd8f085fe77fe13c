"""The queue: order, bounds, cancelling, what fails, and who computes."""

import threading
import time
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from unraze.errors import InputError
from unraze.evaluate.stage import Stage
from unraze.studio.events import Crowded, Hub
from unraze.studio.work import MOST_KEPT, MOST_WAITING, Job, JobTold, Queue, Task, Turns, Work


@pytest.fixture
def queue() -> Iterator[Queue]:
    made = Queue(Hub(), Turns())
    yield made
    made.close()


def job(client: str = "tab", *, keep: bool = False) -> Job:
    return Job(kind="sample", title="", client=client, keep=keep, run=None, asked={})


def until(gate: threading.Event, log: list[str] | None = None, name: str = "") -> Work:
    """Works until the gate is opened."""

    def work(task: Task) -> Generator[Stage, None, dict[str, Any]]:
        if log is not None:
            log.append(name)
        while not gate.is_set():
            yield Stage("waiting", 0, 1)
            time.sleep(0.001)
        return {"name": name}

    return work


def wait_for(job: Job, *states: str) -> None:
    for _ in range(4000):
        if job.state in states:
            return
        time.sleep(0.002)
    raise AssertionError(f"{job.state}, not {states}")


def test_jobs_are_done_in_order_one_at_a_time(queue: Queue) -> None:
    gate, log = threading.Event(), list[str]()
    jobs = [job() for _ in range(4)]
    for number, each in enumerate(jobs):
        queue.add(each, until(gate, log, str(number)))
    wait_for(jobs[0], "running")
    assert [told.position for told in queue.all()] == [None, 0, 1, 2]
    assert log == ["0"]
    gate.set()
    wait_for(jobs[3], "done")
    assert log == ["0", "1", "2", "3"]
    assert [told.result for told in queue.all()] == [{"name": str(n)} for n in range(4)]


def test_the_queue_is_bounded(queue: Queue) -> None:
    gate = threading.Event()
    first = job()
    queue.add(first, until(gate))
    wait_for(first, "running")
    waiting = [job() for _ in range(MOST_WAITING)]
    for each in waiting:
        queue.add(each, until(gate))
    with pytest.raises(Crowded, match="wait already"):
        queue.add(job(), until(gate))
    queue.end(waiting[3])  # makes room
    queue.add(job(), until(gate))
    gate.set()


def test_what_has_ended_is_remembered_up_to_a_number(queue: Queue) -> None:
    gate = threading.Event()
    gate.set()
    jobs = [job() for _ in range(MOST_KEPT + 10)]
    for each in jobs:
        queue.add(each, until(gate))
        wait_for(each, "done")
    assert len(queue.all()) == MOST_KEPT
    assert queue.get(jobs[0].id) is None
    assert queue.get(jobs[-1].id) is jobs[-1]


def test_the_last_word_on_a_job_that_is_forgotten_is_that_it_is(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, gate, said = job(), threading.Event(), list[str]()
    gate.set()
    queue.add(done, until(gate))
    wait_for(done, "done")
    told, forgets = queue.told, threading.Thread(target=queue.end, args=(done,))

    def meanwhile(job: Job) -> JobTold:
        forgets.start()
        forgets.join(0.1)
        return told(job)

    monkeypatch.setattr(queue, "told", meanwhile)
    monkeypatch.setattr(queue._hub, "say", lambda name, about, state: said.append(name))
    queue.tell(done)
    forgets.join()
    queue.tell(done)
    assert said == ["job", "job-gone"]


def test_what_runs_and_what_waits_can_be_cancelled(queue: Queue) -> None:
    gate = threading.Event()
    first, second, third = job(), job(), job()
    for each in (first, second, third):
        queue.add(each, until(gate))
    wait_for(first, "running")
    queue.end(second)
    assert second.state == "cancelled"
    queue.end(first)
    wait_for(first, "cancelled")
    wait_for(third, "running")
    gate.set()
    wait_for(third, "done")
    queue.end(third)
    assert queue.get(third.id) is None


def test_cancelling_tidies_up_what_the_work_holds(queue: Queue) -> None:
    begun, tidied = threading.Event(), threading.Event()

    def work(task: Task) -> Generator[Stage, None, None]:
        try:
            begun.set()
            while True:
                yield Stage("for ever", 0, 1)
        finally:
            tidied.set()

    made = job()
    queue.add(made, work)
    assert begun.wait(5)
    queue.end(made)
    assert tidied.wait(5)


def test_a_reader_that_cannot_yield_is_cancelled_by_its_progress(queue: Queue) -> None:
    def work(task: Task) -> Generator[Stage, None, None]:
        yield Stage("reading", 0, 1)
        report = task.progress("reading")
        for number in range(10**9):
            report(number, 10**9)

    made = job()
    queue.add(made, work)
    wait_for(made, "running")
    queue.end(made)
    wait_for(made, "cancelled")


def test_a_failure_is_told_in_words_and_the_queue_goes_on(
    queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(task: Task) -> Generator[Stage, None, None]:
        yield Stage("a", 0, 1)
        raise InputError("steps = 0: give at least 1")

    def defect(task: Task) -> Generator[Stage, None, None]:
        yield Stage("a", 0, 1)
        raise KeyError("oh")

    first, second, third = job(), job(), job()
    gate = threading.Event()
    gate.set()
    queue.add(first, wrong)
    queue.add(second, defect)
    queue.add(third, until(gate))
    wait_for(third, "done")
    assert (first.state, first.error) == ("failed", "steps = 0: give at least 1")
    assert second.state == "failed"
    assert "a defect of Unraze (KeyError" in str(second.error)
    assert "Traceback" in capsys.readouterr().err  # the terminal has the whole of it


def test_a_closed_tab_ends_what_it_only_looked_at(queue: Queue) -> None:
    gate = threading.Event()
    looked, kept, other = job("a"), job("a", keep=True), job("b")
    for each in (looked, kept, other):
        queue.add(each, until(gate))
    wait_for(looked, "running")
    queue.abandon("a")
    wait_for(looked, "cancelled")
    wait_for(kept, "running")
    gate.set()
    wait_for(other, "done")
    assert kept.state == "done"


def test_the_time_left_is_told_by_what_was_done(queue: Queue) -> None:
    made = job()
    made.state, made.stage = "running", Stage("drawing", 5, 20)
    made.stage_began = time.monotonic() - 10.0
    left = made.told().seconds_left
    assert left == pytest.approx(30.0, abs=0.5)
    made.stage = Stage("drawing", 0, 20)
    assert made.told().seconds_left is None


def test_a_first_result_is_told_at_once_and_the_next_ones_now_and_then() -> None:
    hub, said = Hub(), list[dict[str, Any]]()
    hub.say = lambda name, about, state: said.append(state)  # type: ignore[method-assign]
    queue = Queue(hub, Turns())

    def work(task: Task) -> Generator[Stage, None, None]:
        for number in range(200):
            if number:
                task.job.result = {"frames": number}
            yield Stage("drawing", number, 200)

    made = job()
    queue.add(made, work)
    wait_for(made, "done")
    queue.close()
    shown = [state["result"]["frames"] for state in said if state["result"]]
    assert shown[0] == 1
    assert shown[-1] == 199
    assert len(shown) < 150  # though each took much less than is looked at


def test_what_reads_does_so_aside_while_others_look(queue: Queue) -> None:
    reading, looked = threading.Event(), threading.Event()

    def work(task: Task) -> Generator[Stage, None, dict[str, Any]]:
        yield Stage("reading", 0, 1)
        with task.aside():
            reading.set()
            assert looked.wait(5)
        return {}

    made = job()
    queue.add(made, work)
    assert reading.wait(5)
    with queue._turns.look():  # though the job is between two stages
        looked.set()
    wait_for(made, "done")


def test_whoever_looks_goes_before_whoever_works() -> None:
    turns, order = Turns(), list[str]()
    working, looking = threading.Event(), threading.Event()

    def work() -> None:
        for number in range(3):
            with turns.work():
                order.append(f"work {number}")
                working.set()
                if number == 0:
                    looking.wait(5)
                    while not turns._looking:
                        time.sleep(0.001)

    def look() -> None:
        working.wait(5)
        looking.set()
        with turns.look():
            order.append("look")

    threads = [threading.Thread(target=each) for each in (work, look)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(10)
    assert order == ["work 0", "look", "work 1", "work 2"]
