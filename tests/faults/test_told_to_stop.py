"""Signals, and a terminal or a pipe that has gone: the run is saved before it ends."""

import os
import pty
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import Forker, Whole, command, has_ended, left_by

from unraze import checkpoint, run as runs
from unraze.run import Run

pytestmark = pytest.mark.faults

INTERRUPTED = 130


def wait_for(what: Callable[[], bool], process: int) -> None:
    """Waits until something is so, as long as the process runs."""
    while not what():
        assert not has_ended(process), "it ended first"
        time.sleep(0.001)


def is_saved_and_goes_on(forker: Forker, whole: Whole, out: Path) -> None:
    """Its last step is in a checkpoint; resumed, it ends as the whole run did."""
    (*_, last), run = runs.read_rows(Run(out).stats), Run(out)
    assert checkpoint.read(checkpoint.listing(run.checkpoints)[-1]).step == last["step"]
    assert "stopped at step" in (out / "log.txt").read_text()
    assert forker.finish("cli", argv=["resume", str(out)]) == 0
    assert left_by(out) == whole.left


@pytest.mark.parametrize(
    "numbers",
    [
        (signal.SIGTERM,),
        (signal.SIGHUP, signal.SIGHUP),
        # Ctrl-C, and what a launcher passes on of it
        pytest.param((signal.SIGINT, signal.SIGTERM), marks=pytest.mark.slow),
    ],
    ids=["SIGTERM", "SIGHUP twice", "SIGINT and SIGTERM"],
)
def test_a_signal_saves(
    forker: Forker, whole: Whole, tmp_path: Path, numbers: tuple[signal.Signals, ...]
) -> None:
    out, log = tmp_path / "run", tmp_path / "log.txt"
    process = forker.start("cli", argv=command(whole.data, out), out=str(log))
    wait_for(lambda: len(runs.read_rows(Run(out).stats)) >= 2, process)
    for number in numbers:
        os.kill(process, number)
    assert forker.wait(process) == INTERRUPTED
    assert log.read_text().splitlines()[-1] == str(out)
    is_saved_and_goes_on(forker, whole, out)


@pytest.mark.parametrize(
    ("phase", "at"),
    [
        ("evaluation", 1),
        ("preview", 2),
        pytest.param("evaluation", 2, marks=pytest.mark.slow),
        pytest.param("preview", 1, marks=pytest.mark.slow),
    ],
)
def test_a_signal_is_heard_in_an_evaluation_and_in_a_preview(
    forker: Forker, whole: Whole, tmp_path: Path, phase: str, at: int
) -> None:
    """The first one and that of the last step: it is left for later, and its step is saved."""
    out, marker = tmp_path / "run", tmp_path / "marker"
    faults = [{"enter": phase, "time": at, "marker": str(marker), "seconds a step": 0.3}]
    process = forker.start("cli", argv=command(whole.data, out), faults=faults)
    wait_for(marker.exists, process)
    os.kill(process, signal.SIGTERM)
    assert forker.wait(process) == INTERRUPTED
    done = [row["step"] for row in runs.read_rows(Run(out).quality)]
    assert done == [8, 16][: at - (phase == "evaluation")]
    assert len(list(Run(out).samples.iterdir())) == at - 1
    is_saved_and_goes_on(forker, whole, out)


def test_a_closed_terminal(forker: Forker, whole: Whole, tmp_path: Path) -> None:
    """Which sends SIGHUP, and to which nothing can be written any more."""
    out = tmp_path / "run"
    ours, theirs = pty.openpty()
    process = forker.start("cli", argv=command(whole.data, out), terminal=os.ttyname(theirs))
    wait_for(lambda: len(runs.read_rows(Run(out).stats)) >= 2, process)
    os.close(theirs)
    os.close(ours)
    assert forker.wait(process) == INTERRUPTED
    is_saved_and_goes_on(forker, whole, out)


@pytest.mark.parametrize(
    "bars", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["lines", "bars"]
)
def test_a_reader_that_has_gone(forker: Forker, whole: Whole, tmp_path: Path, bars: bool) -> None:
    """As in `unraze train … | head -1`: at the next line it is noticed."""
    out, pipe = tmp_path / "run", tmp_path / "pipe"
    os.mkfifo(pipe)
    env = {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1"} if bars else {}
    process = forker.start("cli", argv=command(whole.data, out), out=str(pipe), env=env)
    with pipe.open("rb") as reader:
        assert reader.readline()
    assert forker.wait(process) == INTERRUPTED
    is_saved_and_goes_on(forker, whole, out)


def test_a_terminal_that_closes_on_a_run_that_was_to_outlive_it(
    forker: Forker, whole: Whole, tmp_path: Path
) -> None:
    """SIGHUP is left alone where whoever started it wanted that, as nohup does."""
    out, log = tmp_path / "run", tmp_path / "log.txt"
    argv = command(whole.data, out)
    process = forker.start("cli", argv=argv, out=str(log), ignored=["SIGHUP"])
    wait_for(lambda: len(runs.read_rows(Run(out).stats)) >= 2, process)
    os.kill(process, signal.SIGHUP)
    assert forker.wait(process) == 0, log.read_text()
    assert left_by(out) == whole.left
