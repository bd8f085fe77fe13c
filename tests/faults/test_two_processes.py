"""One run has one trainer: a second one is refused, and told who the first is."""

import fcntl
import json
import os
import socket
from pathlib import Path

import pytest
from filelock import FileLock
from processes import Forker, Whole, command, left_by
from test_told_to_stop import wait_for

from unraze import run as runs
from unraze.errors import InputError
from unraze.run import Run

pytestmark = pytest.mark.faults


def test_the_second_is_told_of_the_first(forker: Forker, whole: Whole, tmp_path: Path) -> None:
    out, log, marker = tmp_path / "run", tmp_path / "log.txt", tmp_path / "marker"
    faults = [{"enter": "evaluation", "time": 1, "marker": str(marker), "seconds a step": 0.3}]
    first = forker.start("cli", argv=command(whole.data, out), faults=faults)
    wait_for(marker.exists, first)
    second = forker.finish("cli", argv=["resume", str(out)], out=str(log))
    assert second == 2, log.read_text()
    name = f"another process, {first} on this machine ({socket.gethostname()})"
    assert name in log.read_text().splitlines()[-1]
    assert forker.wait(first) == 0
    assert left_by(out) == whole.left
    assert not (out / ".trainer.json").exists()


def test_a_dead_one_holds_nothing_and_is_not_named(
    forker: Forker, whole: Whole, tmp_path: Path
) -> None:
    out, log, marker = tmp_path / "run", tmp_path / "log.txt", tmp_path / "marker"
    inside, _ = forker.kill_inside("evaluation", 1, 0, marker, "cli", argv=command(whole.data, out))
    assert inside
    dead = json.loads((out / ".trainer.json").read_text())["process"]
    with FileLock(out / ".lock"):  # of one that has not said yet who it is
        assert forker.finish("cli", argv=["resume", str(out)], out=str(log)) == 2
    assert "is being trained by another process; wait" in log.read_text()
    assert forker.finish("cli", argv=["resume", str(out)]) == 0
    assert f"process {dead}, which trained it before, was killed" in (out / "log.txt").read_text()
    assert left_by(out) == whole.left


def test_a_number_that_is_another_process_now_is_not_named(tmp_path: Path) -> None:
    run = Run(tmp_path)
    said = {"process": os.getpid(), "machine": socket.gethostname(), "begun": "before"}
    run.trainer.write_text(json.dumps(said))
    with (
        FileLock(tmp_path / ".lock"),
        pytest.raises(InputError, match="another process; "),
        runs.locked(run),
    ):
        pass


def test_one_on_another_machine_is_named_with_it(tmp_path: Path) -> None:
    run = Run(tmp_path)
    said = {"process": 17, "machine": "elsewhere", "begun": None}
    run.trainer.write_text(json.dumps(said))
    with (
        FileLock(tmp_path / ".lock"),
        pytest.raises(InputError, match="17 on elsewhere"),
        runs.locked(run),
    ):
        pass
    with runs.locked(run) as left:  # where locks do not reach so far
        assert left is not None
        assert "17 on elsewhere" in left
        assert "may still run" in left
    with runs.locked(run) as left:
        assert left is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"process": "x", "machine": 3}', "[" * 100_000, "a pipe", "too large"]
)
def test_what_is_not_legible_names_nobody(tmp_path: Path, text: str) -> None:
    run = Run(tmp_path)
    run.trainer.write_text(text)
    if text == "a pipe":
        run.trainer.unlink()
        os.mkfifo(run.trainer)
    elif text == "too large":  # 4 TiB, none of which is on the disk
        with run.trainer.open("r+b") as file:
            file.truncate(2**42)
    with runs.locked(run) as left:
        assert left is None
        said = json.loads(run.trainer.read_text())
        assert (said["process"], said["machine"]) == (os.getpid(), socket.gethostname())


def test_two_who_list_runs_do_not_take_each_other_for_a_trainer(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with runs.locked(run):
        pass
    with (tmp_path / ".lock").open("rb") as asks:
        fcntl.flock(asks, fcntl.LOCK_SH)  # as one who asks does, for a moment
        assert not runs.is_busy(run)
    with runs.locked(run):
        assert runs.is_busy(run)


def test_whoever_lists_runs_does_not_keep_one_from_being_trained(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with runs.locked(run):
        assert runs.is_busy(run)
    assert not runs.is_busy(run)
    assert not run.trainer.exists()
